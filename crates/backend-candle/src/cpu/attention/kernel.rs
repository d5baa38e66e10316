// Plain loops over constant lengths and no closures: what a closure calls would not have the kernel's
// instructions, and where it is not inlined all registers go to memory.
#![allow(clippy::needless_range_loop)]

mod queries;
mod rows;
mod score;
mod weigh;

use std::ops::Range;

use crate::cpu::elementwise::Exponentials;

use crate::cpu::Kept;
use crate::cpu::simd::{Kernel, Simd};

use half::f16;

pub(super) use queries::Queries;

use self::{
    rows::{Element, Rows},
    score::score,
    weigh::weigh_block,
};

/// Most queries that meet a key or a value while it is in registers.
pub(super) const TILE: usize = 4;
/// Most queries of a task: they share what they read of keys and values in the cache.
pub(super) const MAX_QUERIES: usize = 24;
/// Keys that all queries of a task meet while they are in the first-level cache.
pub(super) const KEY_BLOCK: usize = 64;
/// Floats of a block of keys or values that were kept otherwise.
const WIDENED: usize = 4096;
/// Keys whose scores are computed at once.
const KEYS: usize = 4;

/// Queries that meet a key or a value while it is in registers, as many as there are registers for.
#[inline(always)]
const fn tile<V: Simd>() -> usize {
    if V::LANES == 16 { TILE } else { 3 }
}

/// Calls `$body` with `$T` the number of queries of a tile, at most [`tile`].
macro_rules! with_tile {
    ($V:ident, $n:expr, $T:ident => $body:expr) => {
        match $n {
            1 => {
                const $T: usize = 1;
                $body
            }
            2 => {
                const $T: usize = 2;
                $body
            }
            4 if $V::LANES == 16 => {
                const $T: usize = 4;
                $body
            }
            _ => {
                const $T: usize = 3;
                $body
            }
        }
    };
}

/// Everything of some queries, in one thread.
pub(super) struct Whole<'a> {
    pub queries: Queries<'a>,
    /// [`Queries::scores_len`] floats.
    pub scores: &'a mut [f32],
    /// [`Queries::room_len`] floats.
    pub room: &'a mut [f32],
}

impl Kernel for Whole<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let queries = &self.queries;
        let keys = queries.visible_to_any(0..queries.count);
        let d = queries.shape.head_dim;
        let (scores, room) = (self.scores.as_mut_ptr(), self.room.as_mut_ptr());
        assert!(self.scores.len() == queries.scores_len() && self.room.len() >= queries.room_len());
        let mut factors = [0.0; MAX_QUERIES];
        // SAFETY: queries, keys, scores and room are within the slices' bounds by the assertions here
        // and in `attention_with`.
        unsafe {
            let values = queries.value(queries.kv_head, keys.start);
            score_keys::<V>(queries, keys.clone(), values, scores, room);
            soften::<V>(queries, self.scores, &mut factors);
            let next = match queries.kv_head + 1 < queries.shape.kv_heads {
                true => queries.key(queries.kv_head + 1, keys.start),
                false => std::ptr::null(),
            };
            weigh_values::<V>(queries, keys, next, 0..d, scores, &factors, room);
        }
    }
}

/// The scores of some queries against some of their keys.
pub(super) struct Scores<'a> {
    pub queries: Queries<'a>,
    /// A range of [`Queries::visible_to_any`].
    pub keys: Range<usize>,
    /// What is read afterwards, for prefetches of halves, where that is known.
    pub next: *const f16,
    /// [`Queries::scores_len`] floats, of which other tasks write other keys'.
    pub scores: *mut f32,
    /// [`Queries::room_len`] floats.
    pub room: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        assert!(self.room.len() >= self.queries.room_len());
        // SAFETY: as in `Whole`; no other task writes these keys' scores.
        unsafe {
            score_keys::<V>(
                &self.queries,
                self.keys,
                self.next,
                self.scores,
                self.room.as_mut_ptr(),
            );
        }
    }
}

/// Weights of the scores.
pub(super) struct Soften<'a> {
    pub queries: Queries<'a>,
    /// [`Queries::scores_len`] floats.
    pub scores: &'a mut [f32],
    pub factors: &'a mut [f32; MAX_QUERIES],
}

impl Kernel for Soften<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        // SAFETY: same instructions.
        unsafe { soften::<V>(&self.queries, self.scores, self.factors) }
    }
}

/// Some elements of the outputs of some queries, added up for some keys after those before them.
pub(super) struct Weighted<'a> {
    pub queries: Queries<'a>,
    /// Elements of a head: bounds are multiples of [`MAX_LANES`](crate::cpu::simd::MAX_LANES) but for
    /// the last.
    pub elements: Range<usize>,
    /// A range of [`Queries::visible_to_any`].
    pub keys: Range<usize>,
    /// What is read afterwards, for prefetches of halves, where that is known.
    pub next: *const f16,
    /// [`Queries::scores_len`] floats.
    pub weights: &'a [f32],
    pub factors: &'a [f32; MAX_QUERIES],
    /// [`Queries::room_len`] floats.
    pub room: &'a mut [f32],
}

impl Kernel for Weighted<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        assert!(self.weights.len() == self.queries.scores_len());
        assert!(self.room.len() >= self.queries.room_len());
        let (weights, room) = (self.weights.as_ptr(), self.room.as_mut_ptr());
        // SAFETY: as in `Whole`; no other task has these elements.
        unsafe {
            weigh_values::<V>(
                &self.queries,
                self.keys,
                self.next,
                self.elements,
                weights,
                self.factors,
                room,
            );
        }
    }
}

/// Scores of all queries against some keys.
#[inline(always)]
unsafe fn score_keys<V: Simd>(
    queries: &Queries<'_>,
    some: Range<usize>,
    next: *const f16,
    scores: *mut f32,
    room: *mut f32,
) {
    let n = queries.count;
    let (size, d) = (queries.block(), queries.shape.head_dim);
    let keys = queries.visible_to_any(0..n);
    assert!(n <= MAX_QUERIES && keys.start <= some.start && some.end <= keys.end);
    // SAFETY: the caller's contract.
    unsafe {
        if let (Kept::F16(kept), true) = (queries.k, n <= tile::<V>()) {
            let rows = Rows::in_place(kept, queries.kv_head, &some, &(0..d)).then(next);
            return score_tiles::<V, f16>(queries, &rows, some, scores, &keys);
        }
        let mut start = some.start;
        while start < some.end {
            let block = start..some.end.min(start + size);
            let rows = Rows::of::<V>(queries.k, queries.kv_head, &block, &(0..d), d, room);
            score_tiles::<V, f32>(queries, &rows, block, scores, &keys);
            start += size;
        }
    }
}

/// Scores of all queries against the keys of a block.
#[inline(always)]
unsafe fn score_tiles<V: Simd, E: Element>(
    queries: &Queries<'_>,
    rows: &Rows<E>,
    block: Range<usize>,
    scores: *mut f32,
    keys: &Range<usize>,
) {
    let mut first = 0;
    while first < queries.count {
        let tile = first..queries.count.min(first + tile::<V>());
        let block = clip(&queries.visible_to_any(tile.clone()), &block);
        // SAFETY: the caller's contract.
        unsafe {
            with_tile!(V, tile.len(), T => {
                score::<V, E, T>(queries, rows, first, block, scores, keys);
            });
        }
        first = tile.end;
    }
}

/// Replaces scores by `e^(score - largest)`, and gives one over their sum for each query.
#[inline(always)]
unsafe fn soften<V: Simd>(
    queries: &Queries<'_>,
    scores: &mut [f32],
    factors: &mut [f32; MAX_QUERIES],
) {
    let keys = queries.visible_to_any(0..queries.count);
    for (query, factor) in factors.iter_mut().enumerate().take(queries.count) {
        let seen = queries.visible(query);
        let start = query * keys.len() + seen.start - keys.start;
        let row = &mut scores[start..start + seen.len()];
        let mut sum = 0.0;
        // SAFETY: same instructions.
        unsafe { Exponentials { row, sum: &mut sum }.run::<V>() };
        *factor = if seen.is_empty() { 0.0 } else { 1.0 / sum };
    }
}

/// Some elements of all queries' outputs: the sums of some keys' weighted values, which are added to those of the
/// keys before. The first keys clear the outputs, and the last ones multiply them by the factors.
#[inline(always)]
unsafe fn weigh_values<V: Simd>(
    queries: &Queries<'_>,
    some: Range<usize>,
    next: *const f16,
    elements: Range<usize>,
    weights: *const f32,
    factors: &[f32; MAX_QUERIES],
    room: *mut f32,
) {
    let n = queries.count;
    let size = queries.block();
    let keys = queries.visible_to_any(0..n);
    assert!(n <= MAX_QUERIES && elements.end <= queries.shape.head_dim);
    assert!(keys.start <= some.start && some.end <= keys.end);
    // SAFETY: the caller's contract; outputs are `head_dim` long.
    unsafe {
        let begun = if some.start == keys.start { n } else { 0 };
        for query in 0..begun {
            let out = queries.out(query).add(elements.start);
            out.write_bytes(0, elements.len());
        }
        if let (Kept::F16(kept), true) = (queries.v, n <= tile::<V>()) {
            let rows = Rows::in_place(kept, queries.kv_head, &some, &elements).then(next);
            weigh_tiles::<V, f16>(queries, &rows, &elements, &some, weights, &keys);
        } else {
            let mut start = some.start;
            while start < some.end {
                let block = start..some.end.min(start + size);
                let d = queries.shape.head_dim;
                let rows = Rows::of::<V>(queries.v, queries.kv_head, &block, &elements, d, room);
                weigh_tiles::<V, f32>(queries, &rows, &elements, &block, weights, &keys);
                start += size;
            }
        }
        let ended = if some.end == keys.end { n } else { 0 };
        for (query, factor) in factors.iter().enumerate().take(ended) {
            let out = queries.out(query).add(elements.start);
            let out = std::slice::from_raw_parts_mut(out, elements.len());
            out.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// Adds a block's weighted values to all queries' outputs.
#[inline(always)]
unsafe fn weigh_tiles<V: Simd, E: Element>(
    queries: &Queries<'_>,
    rows: &Rows<E>,
    elements: &Range<usize>,
    block: &Range<usize>,
    weights: *const f32,
    keys: &Range<usize>,
) {
    let mut first = 0;
    while first < queries.count {
        let n = tile::<V>().min(queries.count - first);
        // SAFETY: the caller's contract.
        unsafe {
            with_tile!(V, n, T => {
                weigh_block::<V, E, T>(queries, rows, elements, first, block, weights, keys);
            });
        }
        first += n;
    }
}

/// What two ranges share.
#[inline(always)]
fn clip(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
