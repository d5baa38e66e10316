// Plain loops over constant lengths and no closures: what a closure calls would not have the kernel's
// instructions, and where it is not inlined all registers go to memory.
#![allow(clippy::needless_range_loop)]

mod rows;
mod score;
mod weigh;

use std::ops::Range;

use biplane_backend::AttentionMask;

use crate::cpu::elementwise::Exponentials;

use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::{Kept, SharedOut, Strided};

use half::f16;

use self::{
    rows::{Element, Rows, room_for_codes},
    score::score,
    weigh::weigh_block,
};
use super::AttentionShape;

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

/// Some queries of one key head. Queries of a key head are numbered position by position, the heads
/// of a position next to each other.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub q: Strided<'a>,
    pub k: Kept<'a>,
    pub v: Kept<'a>,
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
    #[inline(always)]
    fn place(&self, query: usize) -> (usize, usize) {
        let group = self.shape.heads / self.shape.kv_heads;
        let number = self.first + query;
        (self.kv_head * group + number % group, number / group)
    }

    /// The keys a query sees.
    #[inline(always)]
    fn visible(&self, query: usize) -> Range<usize> {
        let (_, position) = self.place(query);
        self.mask
            .visible(position, self.shape.q_len, self.shape.kv_len)
    }

    /// The keys that any of some queries sees: the first query sees the first, the last the last.
    #[inline(always)]
    pub fn visible_to_any(&self, queries: Range<usize>) -> Range<usize> {
        self.visible(queries.start).start..self.visible(queries.end - 1).end
    }

    /// Floats of scores: a row of [`Self::visible_to_any`] for each query.
    pub fn scores_len(&self) -> usize {
        self.count * self.visible_to_any(0..self.count).len()
    }

    /// Keys of a block, a multiple of [`KEYS`]. It changes no result.
    #[inline(always)]
    fn block(&self) -> usize {
        match self.k {
            Kept::F32(_) => KEY_BLOCK,
            Kept::F16(_) | Kept::Codes(_) => {
                (WIDENED / self.shape.head_dim).clamp(KEYS, KEY_BLOCK) / KEYS * KEYS
            }
        }
    }

    /// Floats of room for a block that was kept otherwise.
    pub fn room_len(&self) -> usize {
        match self.k {
            Kept::F32(_) => 0,
            Kept::F16(_) => self.block() * self.shape.head_dim,
            Kept::Codes(_) => room_for_codes(self.block(), self.shape.head_dim),
        }
    }

    /// One query's output.
    #[inline(always)]
    fn out(&self, query: usize) -> *mut f32 {
        let (head, position) = self.place(query);
        let start = (position * self.shape.heads + head) * self.shape.head_dim;
        // SAFETY: `[q_len, heads, head_dim]` elements, of which no other task has this query's.
        unsafe { self.out.part(start, self.shape.head_dim).as_mut_ptr() }
    }
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
            score_keys::<V>(queries, keys.clone(), scores, room);
            soften::<V>(queries, self.scores, &mut factors);
            weigh_values::<V>(queries, 0..d, scores, &factors, room);
        }
    }
}

/// The scores of some queries against some of their keys.
pub(super) struct Scores<'a> {
    pub queries: Queries<'a>,
    /// A range of [`Queries::visible_to_any`].
    pub keys: Range<usize>,
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

/// Some elements of the outputs of some queries.
pub(super) struct Weighted<'a> {
    pub queries: Queries<'a>,
    /// Elements of a head: bounds are multiples of [`MAX_LANES`](crate::cpu::simd::MAX_LANES) but for
    /// the last.
    pub elements: Range<usize>,
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
        let weights = self.weights.as_ptr();
        let room = self.room.as_mut_ptr();
        // SAFETY: as in `Whole`; no other task has these elements.
        unsafe { weigh_values::<V>(&self.queries, self.elements, weights, self.factors, room) }
    }
}

/// Scores of all queries against some keys.
#[inline(always)]
unsafe fn score_keys<V: Simd>(
    queries: &Queries<'_>,
    some: Range<usize>,
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
            let rows = Rows::in_place(kept, queries.kv_head, &some, &(0..d));
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

/// Some elements of all queries' outputs: the sums of weighted values.
#[inline(always)]
unsafe fn weigh_values<V: Simd>(
    queries: &Queries<'_>,
    elements: Range<usize>,
    weights: *const f32,
    factors: &[f32; MAX_QUERIES],
    room: *mut f32,
) {
    let n = queries.count;
    let size = queries.block();
    let keys = queries.visible_to_any(0..n);
    assert!(n <= MAX_QUERIES && elements.end <= queries.shape.head_dim);
    // SAFETY: the caller's contract; outputs are `head_dim` long.
    unsafe {
        for query in 0..n {
            let out = queries.out(query).add(elements.start);
            out.write_bytes(0, elements.len());
        }
        if let (Kept::F16(kept), true) = (queries.v, n <= tile::<V>()) {
            let rows = Rows::in_place(kept, queries.kv_head, &keys, &elements);
            weigh_tiles::<V, f16>(queries, &rows, &elements, &keys, weights, &keys);
        } else {
            let mut start = keys.start;
            while start < keys.end {
                let block = start..keys.end.min(start + size);
                let d = queries.shape.head_dim;
                let rows = Rows::of::<V>(queries.v, queries.kv_head, &block, &elements, d, room);
                weigh_tiles::<V, f32>(queries, &rows, &elements, &block, weights, &keys);
                start += size;
            }
        }
        for (query, factor) in factors.iter().enumerate().take(n) {
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
