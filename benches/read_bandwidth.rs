//! How fast the memory is read on this machine: what decode can be at most.
//!
//!     rustc --edition 2024 -C opt-level=3 -C target-cpu=native -o read_bandwidth benches/read_bandwidth.rs
//!     ./read_bandwidth THREADS
//!
//! Prints the median of some passes over 256 MB, GB/s; every thread reads a stretch of its own in order.

use std::{env, hint::black_box, thread, time::Instant};

const BYTES: usize = 256 << 20;
const PASSES: usize = 15;

fn main() {
    let threads = env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(1usize)
        .max(1);
    let words: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let mut rates: Vec<f64> = (0..PASSES).map(|_| pass(&words, threads)).collect();
    rates.sort_by(f64::total_cmp);
    println!("{:.1}", rates[PASSES / 2]);
}

/// GB/s of one pass, threads' start left out.
fn pass(words: &[u64], threads: usize) -> f64 {
    let stretch = words.len() / threads;
    let times: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let reads: Vec<_> = words
            .chunks_exact(stretch)
            .map(|part| {
                scope.spawn(move || {
                    let start = Instant::now();
                    black_box(part.iter().fold(0, |a: u64, b| a.wrapping_add(*b)));
                    (start, Instant::now())
                })
            })
            .collect();
        reads
            .into_iter()
            .filter_map(|read| read.join().ok())
            .collect()
    });
    let start = times.iter().map(|(start, _)| *start).min();
    let end = times.iter().map(|(_, end)| *end).max();
    let seconds = start
        .zip(end)
        .map_or(f64::INFINITY, |(a, b)| (b - a).as_secs_f64());
    size_of_val(words) as f64 / 1e9 / seconds
}
