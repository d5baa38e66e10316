// Plain loops over constant lengths and no closures: what a closure calls would not have the kernel's
// instructions, and where it is not inlined all registers go to memory.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use biplane_backend::AttentionMask;

use crate::cpu::elementwise::Exponentials;
use half::f16;

use crate::cpu::simd::{Kernel, Simd, prefetch};
use crate::cpu::{Kept, SharedOut, Strided};

use super::AttentionShape;

/// Queries that meet a key or a value while it is in registers.
pub(super) const TILE: usize = 3;
/// Most queries of a task: they share what they read of keys and values in the cache.
pub(super) const MAX_QUERIES: usize = 4 * TILE;
/// Keys that all queries of a task meet while they are in the first-level cache.
pub(super) const KEY_BLOCK: usize = 64;
/// Floats of a block of keys or values that were kept as `f16`.
const WIDENED: usize = 4096;
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
            Kept::F16(_) => (WIDENED / self.shape.head_dim).clamp(KEYS, KEY_BLOCK) / KEYS * KEYS,
        }
    }

    /// Floats of room for a block that was kept as `f16`.
    pub fn room_len(&self) -> usize {
        match self.k {
            Kept::F32(_) => 0,
            Kept::F16(_) => self.block() * self.shape.head_dim,
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
    for block in some.clone().step_by(size) {
        let block = block..some.end.min(block + size);
        // SAFETY: the caller's contract.
        unsafe {
            let rows = Rows::of::<V>(queries.k, queries.kv_head, &block, &(0..d), room);
            for first in (0..n).step_by(TILE) {
                let tile = first..n.min(first + TILE);
                let block = clip(&queries.visible_to_any(tile.clone()), &block);
                match tile.len() {
                    1 => score::<V, 1>(queries, &rows, first, block, scores, &keys),
                    2 => score::<V, 2>(queries, &rows, first, block, scores, &keys),
                    _ => score::<V, TILE>(queries, &rows, first, block, scores, &keys),
                }
            }
        }
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
        for block in keys.clone().step_by(size) {
            let block = block..keys.end.min(block + size);
            let rows = Rows::of::<V>(queries.v, queries.kv_head, &block, &elements, room);
            for first in (0..n).step_by(TILE) {
                match n - first {
                    1 => weigh_block::<V, 1>(
                        queries, &rows, &elements, first, &block, weights, &keys,
                    ),
                    2 => weigh_block::<V, 2>(
                        queries, &rows, &elements, first, &block, weights, &keys,
                    ),
                    _ => weigh_block::<V, TILE>(
                        queries, &rows, &elements, first, &block, weights, &keys,
                    ),
                }
            }
        }
        for (query, factor) in factors.iter().enumerate().take(n) {
            let out = queries.out(query).add(elements.start);
            let out = std::slice::from_raw_parts_mut(out, elements.len());
            out.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// Some elements of neighbouring keys or values of one head, as `f32`.
#[derive(Clone, Copy)]
struct Rows {
    start: *const f32,
    stride: usize,
    /// The key at `start`.
    first: usize,
    /// Whether they lie in the cache's memory, so that those after them may be asked for.
    in_place: bool,
}

impl Rows {
    /// What is kept as `f16` is widened into `room`.
    #[inline(always)]
    unsafe fn of<V: Simd>(
        kept: Kept<'_>,
        head: usize,
        keys: &Range<usize>,
        elements: &Range<usize>,
        room: *mut f32,
    ) -> Rows {
        let n = elements.len();
        let kept = match kept {
            Kept::F32(kept) => {
                return Rows {
                    start: kept.row(head, keys.start, elements.end)[elements.start..].as_ptr(),
                    stride: kept.token_stride,
                    first: keys.start,
                    in_place: true,
                };
            }
            Kept::F16(kept) => kept,
        };
        let whole = n / V::LANES * V::LANES;
        for (i, key) in keys.clone().enumerate() {
            let row = &kept.row(head, key, elements.end)[elements.start..];
            let ahead = row.as_ptr().wrapping_add(AHEAD * kept.token_stride);
            for at in (0..n).step_by(2 * LINE) {
                prefetch(ahead.wrapping_add(at));
            }
            // SAFETY: the row has `n` elements, and there is room for a block of them.
            unsafe {
                let to = room.add(i * n);
                for at in (0..whole).step_by(V::LANES) {
                    V::store(to.add(at), V::load_f16(row.as_ptr().add(at).cast()));
                }
                for (at, x) in row.iter().enumerate().skip(whole) {
                    *to.add(at) = f16::to_f32(*x);
                }
            }
        }
        Rows {
            start: room,
            stride: n,
            first: keys.start,
            in_place: false,
        }
    }

    /// Without the first elements.
    #[inline(always)]
    fn after(&self, elements: usize) -> Rows {
        Rows {
            start: self.start.wrapping_add(elements),
            ..*self
        }
    }

    #[inline(always)]
    fn row(&self, key: usize) -> *const f32 {
        self.start.wrapping_add((key - self.first) * self.stride)
    }
}

/// What two ranges share.
#[inline(always)]
fn clip(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Scaled scores of `T` queries against some keys, into the queries' rows of `scores`.
#[inline(always)]
unsafe fn score<V: Simd, const T: usize>(
    queries: &Queries<'_>,
    rows: &Rows,
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
            if rows.in_place {
                for i in 0..KEYS {
                    let ahead = rows.row(key + AHEAD + i);
                    for at in (0..d).step_by(LINE) {
                        prefetch(ahead.wrapping_add(at));
                    }
                }
            }
            let mut k = [rows.row(key); KEYS];
            for i in 1..KEYS {
                k[i] = rows.row(key + i);
            }
            let dots = dots::<V, T, KEYS>(q, k, d);
            put(queries, first, key - keys.start, keys.len(), dots, scores);
            key += KEYS;
        }
        while key < block.end {
            let dots = dots::<V, T, 1>(q, [rows.row(key)], d);
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
    rows: &Rows,
    elements: &Range<usize>,
    first: usize,
    block: &Range<usize>,
    weights: *const f32,
    keys: &Range<usize>,
) {
    let (mut from, mut to) = ([0; T], [0; T]);
    let (mut start, mut end) = (0, usize::MAX);
    let mut out = [std::ptr::null_mut(); T];
    for t in 0..T {
        let seen = clip(&queries.visible(first + t), block);
        (from[t], to[t]) = (seen.start, seen.end);
        (start, end) = (start.max(seen.start), end.min(seen.end));
        // SAFETY: the elements are among the output's.
        out[t] = unsafe { queries.out(first + t).add(elements.start) };
    }
    let d = elements.len();
    // SAFETY: every query has a row of weights for `keys`, counted from their start.
    unsafe {
        let row = weights.wrapping_sub(keys.start);
        let mut weights = [row; T];
        for t in 0..T {
            weights[t] = row.wrapping_add((first + t) * keys.len());
        }
        if start >= end {
            for t in 0..T {
                weigh::<V, 1>(rows, d, from[t]..to[t], [weights[t]], [out[t]]);
            }
            return;
        }
        for t in 0..T {
            weigh::<V, 1>(rows, d, from[t]..start, [weights[t]], [out[t]]);
        }
        weigh::<V, T>(rows, d, start..end, weights, out);
        for t in 0..T {
            weigh::<V, 1>(rows, d, end..to[t], [weights[t]], [out[t]]);
        }
    }
}

/// Adds the weighted values of some keys to outputs. A key's weight is at its number.
#[inline(always)]
unsafe fn weigh<V: Simd, const T: usize>(
    rows: &Rows,
    d: usize,
    keys: Range<usize>,
    weights: [*const f32; T],
    out: [*mut f32; T],
) {
    if keys.is_empty() {
        return;
    }
    let values = Rows {
        start: rows.row(keys.start),
        first: 0,
        ..*rows
    };
    let weights = after(weights, keys.start);
    let n = keys.len();
    // SAFETY: the caller's contract; `at` and the lanes after it stay below `d`.
    unsafe {
        let mut at = 0;
        // A lone query needs more chains of additions to keep the units busy.
        while T == 1 && at + 8 * V::LANES <= d {
            weigh_lanes::<V, T, 8>(values.after(at), n, weights, after_mut(out, at));
            at += 8 * V::LANES;
        }
        while at + 4 * V::LANES <= d {
            weigh_lanes::<V, T, 4>(values.after(at), n, weights, after_mut(out, at));
            at += 4 * V::LANES;
        }
        while at + V::LANES <= d {
            weigh_lanes::<V, T, 1>(values.after(at), n, weights, after_mut(out, at));
            at += V::LANES;
        }
        for at in at..d {
            for t in 0..T {
                for i in 0..n {
                    *out[t].add(at) += *weights[t].add(i) * *values.row(i).add(at);
                }
            }
        }
    }
}

/// Pointers that many elements further on.
#[inline(always)]
fn after<const T: usize>(mut pointers: [*const f32; T], elements: usize) -> [*const f32; T] {
    for p in &mut pointers {
        *p = p.wrapping_add(elements);
    }
    pointers
}

/// As [`after`].
#[inline(always)]
fn after_mut<const T: usize>(mut pointers: [*mut f32; T], elements: usize) -> [*mut f32; T] {
    for p in &mut pointers {
        *p = p.wrapping_add(elements);
    }
    pointers
}

/// As [`weigh`], for `N` vectors of the values' elements.
#[inline(always)]
unsafe fn weigh_lanes<V: Simd, const T: usize, const N: usize>(
    values: Rows,
    n: usize,
    weights: [*const f32; T],
    out: [*mut f32; T],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; T];
        for t in 0..T {
            for i in 0..N {
                sums[t][i] = V::load(out[t].add(i * V::LANES));
            }
        }
        for key in 0..n {
            if values.in_place {
                for at in (0..N * V::LANES).step_by(LINE) {
                    prefetch(values.row(key + AHEAD).wrapping_add(at));
                }
            }
            // A value at a time: sums, weights and it just fit the registers.
            #[allow(clippy::needless_range_loop)]
            for i in 0..N {
                let value = V::load(values.row(key).add(i * V::LANES));
                for t in 0..T {
                    sums[t][i] = V::fma(V::splat(*weights[t].add(key)), value, sums[t][i]);
                }
            }
        }
        for t in 0..T {
            for i in 0..N {
                V::store(out[t].add(i * V::LANES), sums[t][i]);
            }
        }
    }
}
