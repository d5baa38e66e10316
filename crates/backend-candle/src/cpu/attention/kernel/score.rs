//! Scores: dot products of queries and keys.

use std::ops::Range;

use crate::cpu::simd::Simd;

use super::{
    KEYS, Queries,
    rows::{Element, Rows},
};

/// Scaled scores of `T` queries against some keys, into the queries' rows of `scores`.
#[inline(always)]
pub(super) unsafe fn score<V: Simd, E: Element, const T: usize>(
    queries: &Queries<'_>,
    rows: &Rows<E>,
    first: usize,
    block: Range<usize>,
    scores: *mut f32,
    keys: &Range<usize>,
) {
    let d = queries.shape.head_dim;
    let mut q = [std::ptr::null(); T];
    for (t, q) in q.iter_mut().enumerate() {
        let (head, position) = queries.place(first + t);
        *q = queries.q.row(head, position, d).as_ptr();
    }
    let mut key = block.start;
    // SAFETY: rows of `d` elements; every query has a row of scores for `keys`.
    unsafe {
        while key + KEYS <= block.end {
            let mut k = [rows.row(key); KEYS];
            for i in 1..KEYS {
                k[i] = rows.row(key + i);
            }
            for i in 0..KEYS {
                rows.ask(k[i], d);
            }
            let dots = dots::<V, E, T, KEYS>(q, k, d);
            put(queries, first, key - keys.start, keys.len(), dots, scores);
            key += KEYS;
        }
        while key < block.end {
            let dots = dots::<V, E, T, 1>(q, [rows.row(key)], d);
            put(queries, first, key - keys.start, keys.len(), dots, scores);
            key += 1;
        }
    }
}

/// Scales and stores the scores of neighbouring keys, the first in column `at` of rows of `width`.
#[inline(always)]
unsafe fn put<const T: usize, const K: usize>(
    queries: &Queries<'_>,
    first: usize,
    at: usize,
    width: usize,
    dots: [[f32; K]; T],
    scores: *mut f32,
) {
    for t in 0..T {
        // SAFETY: every query has a row of scores.
        unsafe {
            let to = scores.add((first + t) * width + at);
            for i in 0..K {
                *to.add(i) = dots[t][i] * queries.scale;
            }
        }
    }
}

/// Dot products of every `k` with every `q`.
#[inline(always)]
unsafe fn dots<V: Simd, E: Element, const T: usize, const K: usize>(
    q: [*const f32; T],
    k: [*const E; K],
    d: usize,
) -> [[f32; K]; T] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[V::splat(0.0); K]; T];
        let mut at = 0;
        while at + V::LANES <= d {
            for i in 0..K {
                let k = E::load::<V>(k[i].add(at));
                for t in 0..T {
                    sums[t][i] = V::fma(V::load(q[t].add(at)), k, sums[t][i]);
                }
            }
            at += V::LANES;
        }
        let mut dots = sums_of::<V, T, K>(&sums);
        for t in 0..T {
            for i in 0..K {
                for at in at..d {
                    dots[t][i] += *q[t].add(at) * (*k[i].add(at)).wide();
                }
            }
        }
        dots
    }
}

/// [`Simd::sum`] of every vector.
#[inline(always)]
unsafe fn sums_of<V: Simd, const T: usize, const K: usize>(
    vectors: &[[V::F; K]; T],
) -> [[f32; K]; T] {
    let mut sums = [[0.0; K]; T];
    // SAFETY: the caller's contract.
    unsafe {
        if K == 4 && (T == 3 || T == 4) {
            let mut all = [[V::splat(0.0); 4]; 4];
            for t in 0..T {
                for i in 0..4 {
                    all[t][i] = vectors[t][i];
                }
            }
            let all = V::sum16(all);
            for t in 0..T {
                sums[t].copy_from_slice(&all[t][..K]);
            }
            return sums;
        }
        for t in 0..T {
            for i in 0..K / 4 {
                let four = V::sum4(*vectors[t].as_ptr().add(4 * i).cast());
                sums[t][4 * i..4 * i + 4].copy_from_slice(&four);
            }
            for i in K / 4 * 4..K {
                sums[t][i] = V::sum(vectors[t][i]);
            }
        }
    }
    sums
}
