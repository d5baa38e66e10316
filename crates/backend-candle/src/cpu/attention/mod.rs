//! Scaled dot-product attention with grouped queries.
//!
//! Two passes over a few queries' visible keys: all scores into a row buffer, softmax, then the weighted
//! sum of values. Every score, sum and output is added up in an order that the query's own visible keys
//! alone decide, so neither blocks nor neighbours change a bit of it. A prompt's queries are shared out
//! among the threads; of a decode step's, which are few, keys and values are: see [`few`].

mod few;
mod kernel;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::mem::discriminant;

use biplane_backend::AttentionMask;

use super::simd::{Isa, launch};
use super::{Kept, SharedOut, Strided, pool};
use few::Few;
use kernel::{MAX_QUERIES, Queries, Whole};

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
    // Room is made by what keys are kept in.
    assert_eq!(discriminant(&k), discriminant(&v), "keys and values");
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
    if worthwhile
        && per_kv_head <= MAX_QUERIES
        && let Some(few) = Few::of(isa, queries(0, 0, per_kv_head))
    {
        return few.run();
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
        let reads = |thread| {
            let first = pool::stretch(kv_heads * chunks, thread, pool::threads()).start;
            let queries = queries(first / chunks, 0, per_kv_head);
            let seen = queries.visible_to_any(0..per_kv_head);
            let start = queries.key(queries.kv_head, seen.start);
            (!start.is_null()).then(|| std::ptr::slice_from_raw_parts(start, seen.len() * head_dim))
        };
        pool::parallel_for_between(reads, kv_heads * chunks, task);
    } else {
        (0..kv_heads * chunks).for_each(task);
    }
}
