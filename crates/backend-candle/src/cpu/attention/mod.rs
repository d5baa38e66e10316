//! Scaled dot-product attention with grouped queries.
//!
//! Two passes over a few queries' visible keys: all scores into a row buffer, softmax, then the weighted
//! sum of values. Every score, sum and output is added up in an order that the query's own visible keys
//! alone decide, so neither blocks nor neighbours change a bit of it. A prompt's queries are shared out
//! among the threads; of a decode step's, which are few, keys are, and then the elements of values.

mod kernel;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use biplane_backend::AttentionMask;

use super::simd::{Isa, MAX_LANES, launch};
use super::{Kept, SharedOut, Strided, pool};
use kernel::{KEY_BLOCK, MAX_QUERIES, Queries, Scores, Soften, Weighted, Whole};

/// The lengths of an attention's operands.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Queries of a head: the last positions of the keys.
    pub q_len: usize,
    /// Keys of a head.
    pub kv_len: usize,
    /// Elements of a query, a key, a value.
    pub head_dim: usize,
}

thread_local! {
    /// Room for the scores of a task, kept from call to call.
    static SCORES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// Room for a block of keys or values of a task.
    static BLOCK: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// What [`Split`] keeps for each key head.
    static HEADS: Cell<Vec<Head>> = const { Cell::new(Vec::new()) };
}

/// The first `n` floats of a buffer that grows.
fn room(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// `softmax(scale · q · kᵀ + mask) · v`, token-major: `out [q_len, heads, head_dim]`.
///
/// A query that sees no key gives zeros.
///
/// # Panics
/// When a slice is shorter than its shape says or heads do not divide.
pub fn attention(
    q: Strided<'_>,
    k: Kept<'_>,
    v: Kept<'_>,
    shape: AttentionShape,
    mask: AttentionMask,
    scale: f32,
    out: &mut [f32],
) {
    attention_with(Isa::get(), q, k, v, shape, mask, scale, out);
}

#[allow(clippy::too_many_arguments)]
fn attention_with(
    isa: Isa,
    q: Strided<'_>,
    k: Kept<'_>,
    v: Kept<'_>,
    shape: AttentionShape,
    mask: AttentionMask,
    scale: f32,
    out: &mut [f32],
) {
    /// Floats of scores that stay in the second-level cache.
    const CACHED_SCORES: usize = 64 * 1024;
    /// Multiply-adds that take some microseconds where keys and values come from memory: less is not
    /// worth meeting for.
    const WORTHWHILE: usize = 32 * 1024;
    /// Keys of which two jobs share out the work better than one costs less.
    const WORTH_SPLITTING: usize = 4 * KEY_BLOCK;
    let AttentionShape {
        heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
    } = shape;
    assert_eq!(
        out.len(),
        q_len * heads * head_dim,
        "out is [q_len, heads, head_dim]"
    );
    if out.is_empty() {
        return;
    }
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads) && q_len <= kv_len,
        "{shape:?}"
    );
    // The furthest elements are there.
    q.row(heads - 1, q_len - 1, head_dim);
    k.check(kv_heads - 1, kv_len - 1, head_dim);
    v.check(kv_heads - 1, kv_len - 1, head_dim);

    let per_kv_head = heads / kv_heads * q_len;
    let worthwhile = heads * q_len * kv_len * head_dim >= WORTHWHILE;
    let out = SharedOut(out.as_mut_ptr());
    let queries = |kv_head, first, count| Queries {
        q,
        k,
        v,
        shape,
        mask,
        scale,
        kv_head,
        first,
        count,
        out,
    };
    if worthwhile && per_kv_head <= MAX_QUERIES && kv_len >= WORTH_SPLITTING && pool::threads() > 1
    {
        return Split::of(&queries(0, 0, per_kv_head)).run(isa);
    }
    let chunk = (CACHED_SCORES / kv_len)
        .clamp(kernel::TILE, MAX_QUERIES)
        .min(per_kv_head)
        // With fewer key heads than threads, a decode step's queries of one part too.
        .min(per_kv_head.div_ceil(pool::threads().div_ceil(kv_heads)));
    let chunks = per_kv_head.div_ceil(chunk);
    let task = |i: usize| {
        let first = i % chunks * chunk;
        let queries = queries(i / chunks, first, chunk.min(per_kv_head - first));
        let (mut scores, mut block) = (SCORES.take(), BLOCK.take());
        let kernel = Whole {
            queries,
            scores: room(&mut scores, queries.scores_len()),
            room: room(&mut block, queries.room_len()),
        };
        launch(isa, kernel);
        SCORES.set(scores);
        BLOCK.set(block);
    };
    if worthwhile {
        pool::parallel_for(kv_heads * chunks, task);
    } else {
        (0..kv_heads * chunks).for_each(task);
    }
}

/// What is known of a key head between two jobs.
#[derive(Default)]
struct Head {
    /// Parts of its keys without scores.
    left: AtomicUsize,
    factors: [f32; MAX_QUERIES],
}

/// Few queries, shared out by keys for their scores and by elements for their outputs.
struct Split<'a> {
    /// Those of the first key head.
    queries: &'a Queries<'a>,
    /// Keys of a task, a multiple of [`KEY_BLOCK`], and tasks of a head.
    keys: usize,
    key_parts: usize,
    /// Elements of a task, a multiple of [`MAX_LANES`], and tasks of a head.
    elements: usize,
    element_parts: usize,
}

impl<'a> Split<'a> {
    fn of(queries: &'a Queries<'a>) -> Split<'a> {
        /// Tasks for each thread, so that one that is taken away holds up little.
        const TASKS: usize = 4;
        let AttentionShape {
            kv_heads, head_dim, ..
        } = queries.shape;
        let threads = pool::threads();
        let seen = queries.visible_to_any(0..queries.count).len().max(1);
        let keys = seen
            .div_ceil((TASKS * threads).div_ceil(kv_heads))
            .next_multiple_of(KEY_BLOCK);
        let wanted = match kv_heads.is_multiple_of(threads) {
            true => 1,
            false => threads,
        };
        let elements = head_dim.div_ceil(wanted).next_multiple_of(MAX_LANES);
        Split {
            queries,
            keys,
            key_parts: seen.div_ceil(keys),
            elements,
            element_parts: head_dim.div_ceil(elements),
        }
    }

    fn run(&self, isa: Isa) {
        let one = self.queries;
        let kv_heads = one.shape.kv_heads;
        let head = |kv_head| Queries { kv_head, ..*one };
        let seen = one.visible_to_any(0..one.count);
        let (mut scores, mut heads) = (SCORES.take(), HEADS.take());
        let len = one.scores_len();
        let all = SharedOut(room(&mut scores, kv_heads * len).as_mut_ptr());
        heads.resize_with(heads.len().max(kv_heads), Head::default);
        for head in &mut heads {
            *head.left.get_mut() = self.key_parts;
        }
        let states = SharedHeads(heads.as_mut_ptr());

        pool::parallel_for(kv_heads * self.key_parts, |task| {
            let (kv_head, part) = (task / self.key_parts, task % self.key_parts);
            let first = seen.start + part * self.keys;
            let queries = head(kv_head);
            let mut block = BLOCK.take();
            let kernel = Scores {
                queries,
                keys: first..seen.end.min(first + self.keys),
                // SAFETY: this head's scores.
                scores: unsafe { all.at(kv_head * len) },
                room: room(&mut block, queries.room_len()),
            };
            launch(isa, kernel);
            BLOCK.set(block);
            // SAFETY: the head's state; its counter may be used by many tasks at once.
            if unsafe { states.left(kv_head) }.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            // SAFETY: all tasks that write the head's scores have ended, and this is the only one that
            // saw the last of them end.
            let (scores, factors) =
                unsafe { (all.part(kv_head * len, len), states.factors(kv_head)) };
            let kernel = Soften {
                queries,
                scores,
                factors,
            };
            launch(isa, kernel);
        });

        let (weights, states) = (&scores[..kv_heads * len], &heads);
        pool::parallel_for(kv_heads * self.element_parts, |task| {
            let (kv_head, part) = (task / self.element_parts, task % self.element_parts);
            let first = part * self.elements;
            let queries = head(kv_head);
            let mut block = BLOCK.take();
            let kernel = Weighted {
                queries,
                elements: first..one.shape.head_dim.min(first + self.elements),
                weights: &weights[kv_head * len..][..len],
                factors: &states[kv_head].factors,
                room: room(&mut block, queries.room_len()),
            };
            launch(isa, kernel);
            BLOCK.set(block);
        });
        SCORES.set(scores);
        HEADS.set(heads);
    }
}

/// The states of all heads, for the tasks of a job.
#[derive(Clone, Copy)]
struct SharedHeads(*mut Head);

// SAFETY: counters are atomic, and a head's factors belong to the task that counts down to nothing.
unsafe impl Sync for SharedHeads {}

impl SharedHeads {
    /// A head's counter.
    ///
    /// # Safety
    /// The head is there.
    unsafe fn left<'a>(self, head: usize) -> &'a AtomicUsize {
        // SAFETY: the caller's contract; no reference to the whole head is made.
        unsafe { &(*self.0.add(head)).left }
    }

    /// A head's factors.
    ///
    /// # Safety
    /// The head is there, and no other task uses them meanwhile.
    unsafe fn factors<'a>(self, head: usize) -> &'a mut [f32; MAX_QUERIES] {
        // SAFETY: as above.
        unsafe { &mut (*self.0.add(head)).factors }
    }
}
