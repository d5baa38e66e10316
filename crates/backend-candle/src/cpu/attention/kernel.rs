use std::array::from_fn;
use std::ops::Range;

use biplane_backend::AttentionMask;

use crate::cpu::elementwise::Exponentials;
use crate::cpu::simd::{Kernel, Simd, prefetch};
use crate::cpu::{SharedOut, Strided};

use super::AttentionShape;

/// Queries that meet a key or a value while it is in registers.
pub(super) const TILE: usize = 3;
/// Most queries of a task: they share what they read of keys and values in the cache.
pub(super) const MAX_QUERIES: usize = 4 * TILE;
/// Keys that all queries of a task meet while they are in the first-level cache.
const KEY_BLOCK: usize = 64;
/// Keys whose scores are computed at once.
const KEYS: usize = 4;
/// Keys or values to ask the memory for before they are needed: a decode step's lie there, and the
/// processor itself looks no further than a page.
const AHEAD: usize = 16;
/// Floats of a cache line.
const LINE: usize = 16;

/// Some queries of one key head. Queries of a key head are numbered position by position, the heads
/// of a position next to each other.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub q: Strided<'a>,
    pub k: Strided<'a>,
    pub v: Strided<'a>,
    pub shape: AttentionShape,
    pub mask: AttentionMask,
    pub scale: f32,
    pub kv_head: usize,
    pub first: usize,
    /// At most [`MAX_QUERIES`].
    pub count: usize,
    pub out: SharedOut,
}

impl Queries<'_> {
    /// Head and position of a query.
    fn place(&self, query: usize) -> (usize, usize) {
        let group = self.shape.heads / self.shape.kv_heads;
        let number = self.first + query;
        (self.kv_head * group + number % group, number / group)
    }

    /// The keys a query sees.
    fn visible(&self, query: usize) -> Range<usize> {
        let (_, position) = self.place(query);
        self.mask
            .visible(position, self.shape.q_len, self.shape.kv_len)
    }

    /// The keys that any of some queries sees: the first query sees the first, the last the last.
    fn visible_to_any(&self, queries: Range<usize>) -> Range<usize> {
        self.visible(queries.start).start..self.visible(queries.end - 1).end
    }

    /// Floats of scores: a row of [`Self::visible_to_any`] for each query.
    pub fn scores_len(&self) -> usize {
        self.count * self.visible_to_any(0..self.count).len()
    }

    /// One query's output.
    fn out(&self, query: usize) -> *mut f32 {
        let (head, position) = self.place(query);
        let start = (position * self.shape.heads + head) * self.shape.head_dim;
        // SAFETY: `[q_len, heads, head_dim]` elements, of which no other task has this query's.
        unsafe { self.out.part(start, self.shape.head_dim).as_mut_ptr() }
    }
}

impl Kernel for (Queries<'_>, &mut [f32]) {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (queries, scores) = self;
        let n = queries.count;
        let keys = queries.visible_to_any(0..n);
        let width = keys.len();
        assert!(n <= MAX_QUERIES && scores.len() == n * width);
        // SAFETY: queries, keys and scores are within the slices' bounds by the assertions here and
        // in `attention_with`.
        unsafe {
            for block in keys.clone().step_by(KEY_BLOCK) {
                let block = block..keys.end.min(block + KEY_BLOCK);
                for first in (0..n).step_by(TILE) {
                    let tile = first..n.min(first + TILE);
                    let block = clip(&queries.visible_to_any(tile.clone()), &block);
                    let out = scores.as_mut_ptr();
                    match tile.len() {
                        1 => score::<V, 1>(&queries, first, block, out, &keys),
                        2 => score::<V, 2>(&queries, first, block, out, &keys),
                        _ => score::<V, TILE>(&queries, first, block, out, &keys),
                    }
                }
            }

            let mut factors = [0.0; MAX_QUERIES];
            for (query, factor) in factors.iter_mut().enumerate().take(n) {
                let seen = queries.visible(query);
                let start = query * width + seen.start - keys.start;
                let row = &mut scores[start..start + seen.len()];
                let mut sum = 0.0;
                Exponentials { row, sum: &mut sum }.run::<V>();
                *factor = if seen.is_empty() { 0.0 } else { 1.0 / sum };
                queries.out(query).write_bytes(0, queries.shape.head_dim);
            }

            for block in keys.clone().step_by(KEY_BLOCK) {
                let block = block..keys.end.min(block + KEY_BLOCK);
                for first in (0..n).step_by(TILE) {
                    let weights = scores.as_ptr();
                    match n - first {
                        1 => weigh_block::<V, 1>(&queries, first, &block, weights, &keys),
                        2 => weigh_block::<V, 2>(&queries, first, &block, weights, &keys),
                        _ => weigh_block::<V, TILE>(&queries, first, &block, weights, &keys),
                    }
                }
            }

            for (query, factor) in factors.into_iter().enumerate().take(n) {
                let out =
                    std::slice::from_raw_parts_mut(queries.out(query), queries.shape.head_dim);
                out.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

/// What two ranges share.
fn clip(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Scaled scores of `T` queries against some keys, into the queries' rows of `scores`.
#[inline(always)]
unsafe fn score<V: Simd, const T: usize>(
    queries: &Queries<'_>,
    first: usize,
    block: Range<usize>,
    scores: *mut f32,
    keys: &Range<usize>,
) {
    let d = queries.shape.head_dim;
    let q: [*const f32; T] = from_fn(|t| {
        let (head, position) = queries.place(first + t);
        queries.q.row(head, position, d).as_ptr()
    });
    let row = |key: usize| queries.k.row(queries.kv_head, key, d).as_ptr();
    let mut key = block.start;
    // SAFETY: rows of `d` elements; every query has a row of scores for `keys`.
    unsafe {
        while key + KEYS <= block.end {
            for i in 0..KEYS {
                let ahead = row(key).wrapping_add((AHEAD + i) * queries.k.token_stride);
                for at in (0..d).step_by(LINE) {
                    prefetch(ahead.wrapping_add(at));
                }
            }
            let dots = dots::<V, T, KEYS>(q, from_fn(|i| row(key + i)), d);
            put(queries, first, key - keys.start, keys.len(), dots, scores);
            key += KEYS;
        }
        while key < block.end {
            let dots = dots::<V, T, 1>(q, [row(key)], d);
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
    for (t, dots) in dots.into_iter().enumerate() {
        let scaled = dots.map(|s| s * queries.scale);
        // SAFETY: every query has a row of scores.
        unsafe {
            let to = scores.add((first + t) * width + at);
            to.cast::<[f32; K]>().write_unaligned(scaled);
        }
    }
}

/// Dot products of every `k` with every `q`.
#[inline(always)]
unsafe fn dots<V: Simd, const T: usize, const K: usize>(
    q: [*const f32; T],
    k: [*const f32; K],
    d: usize,
) -> [[f32; K]; T] {
    let whole = d / V::LANES * V::LANES;
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[V::splat(0.0); K]; T];
        for at in (0..whole).step_by(V::LANES) {
            for i in 0..K {
                let k = V::load(k[i].add(at));
                for t in 0..T {
                    sums[t][i] = V::fma(V::load(q[t].add(at)), k, sums[t][i]);
                }
            }
        }
        let mut dots = [[0.0; K]; T];
        for t in 0..T {
            for i in 0..K / 4 {
                let four = V::sum4(*sums[t].as_ptr().add(4 * i).cast());
                dots[t][4 * i..4 * i + 4].copy_from_slice(&four);
            }
            for i in K / 4 * 4..K {
                dots[t][i] = V::sum(sums[t][i]);
            }
            for i in 0..K {
                for at in whole..d {
                    dots[t][i] += *q[t].add(at) * *k[i].add(at);
                }
            }
        }
        dots
    }
}

/// Adds a block's weighted values to the outputs of `T` queries: together for the keys that all see,
/// one by one for those before and after, so that each adds its keys in order and no others.
#[inline(always)]
unsafe fn weigh_block<V: Simd, const T: usize>(
    queries: &Queries<'_>,
    first: usize,
    block: &Range<usize>,
    weights: *const f32,
    keys: &Range<usize>,
) {
    let seen: [Range<usize>; T] = from_fn(|t| clip(&queries.visible(first + t), block));
    let start = seen.iter().map(|r| r.start).max().unwrap_or(0);
    let end = seen.iter().map(|r| r.end).min().unwrap_or(0);
    let out: [*mut f32; T] = from_fn(|t| queries.out(first + t));
    // SAFETY: every query has a row of weights for `keys`, counted from their start.
    unsafe {
        let weights: [*const f32; T] = from_fn(|t| {
            weights
                .wrapping_add((first + t) * keys.len())
                .wrapping_sub(keys.start)
        });
        if start >= end {
            for t in 0..T {
                weigh::<V, 1>(queries, seen[t].clone(), [weights[t]], [out[t]]);
            }
            return;
        }
        for t in 0..T {
            weigh::<V, 1>(queries, seen[t].start..start, [weights[t]], [out[t]]);
        }
        weigh::<V, T>(queries, start..end, weights, out);
        for t in 0..T {
            weigh::<V, 1>(queries, end..seen[t].end, [weights[t]], [out[t]]);
        }
    }
}

/// Adds the weighted values of some keys to outputs. A key's weight is at its number.
#[inline(always)]
unsafe fn weigh<V: Simd, const T: usize>(
    queries: &Queries<'_>,
    keys: Range<usize>,
    weights: [*const f32; T],
    out: [*mut f32; T],
) {
    if keys.is_empty() {
        return;
    }
    let d = queries.shape.head_dim;
    let values = queries.v.row(queries.kv_head, keys.start, d).as_ptr();
    let stride = queries.v.token_stride;
    let weights = weights.map(|w| w.wrapping_add(keys.start));
    let n = keys.len();
    // SAFETY: the caller's contract; `at` and the lanes after it stay below `d`.
    unsafe {
        let mut at = 0;
        // A lone query needs more chains of additions to keep the units busy.
        while T == 1 && at + 8 * V::LANES <= d {
            weigh_lanes::<V, T, 8>(values.add(at), stride, n, weights, out.map(|o| o.add(at)));
            at += 8 * V::LANES;
        }
        while at + 4 * V::LANES <= d {
            weigh_lanes::<V, T, 4>(values.add(at), stride, n, weights, out.map(|o| o.add(at)));
            at += 4 * V::LANES;
        }
        while at + V::LANES <= d {
            weigh_lanes::<V, T, 1>(values.add(at), stride, n, weights, out.map(|o| o.add(at)));
            at += V::LANES;
        }
        for at in at..d {
            for t in 0..T {
                for i in 0..n {
                    *out[t].add(at) += *weights[t].add(i) * *values.add(i * stride + at);
                }
            }
        }
    }
}

/// As [`weigh`], for `N` vectors of the values' elements.
#[inline(always)]
unsafe fn weigh_lanes<V: Simd, const T: usize, const N: usize>(
    values: *const f32,
    stride: usize,
    n: usize,
    weights: [*const f32; T],
    out: [*mut f32; T],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; T];
        for (sums, out) in sums.iter_mut().zip(out) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(out.add(i * V::LANES));
            }
        }
        for key in 0..n {
            for at in (0..N * V::LANES).step_by(LINE) {
                prefetch(values.wrapping_add((key + AHEAD) * stride + at));
            }
            // A value at a time: sums, weights and it just fit the registers.
            #[allow(clippy::needless_range_loop)]
            for i in 0..N {
                let value = V::load(values.add(key * stride + i * V::LANES));
                for t in 0..T {
                    sums[t][i] = V::fma(V::splat(*weights[t].add(key)), value, sums[t][i]);
                }
            }
        }
        for (sums, out) in sums.into_iter().zip(out) {
            for (i, sum) in sums.into_iter().enumerate() {
                V::store(out.add(i * V::LANES), sum);
            }
        }
    }
}
