//! Scaled dot-product attention with grouped queries.
//!
//! Two passes over a few queries' visible keys: all scores into a row buffer of the thread, softmax,
//! then the weighted sum of values. Every score, sum and output is added up in an order that the
//! query's own visible keys alone decide, so neither blocks nor neighbours change a bit of it.

mod kernel;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use biplane_backend::AttentionMask;

use super::simd::{Isa, launch};
use super::{SharedOut, Strided, pool};
use kernel::{MAX_QUERIES, Queries};

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
}

/// `softmax(scale · q · kᵀ + mask) · v`, token-major: `out [q_len, heads, head_dim]`.
///
/// A query that sees no key gives zeros.
///
/// # Panics
/// When a slice is shorter than its shape says or heads do not divide.
pub fn attention(
    q: Strided<'_>,
    k: Strided<'_>,
    v: Strided<'_>,
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
    k: Strided<'_>,
    v: Strided<'_>,
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
    for (x, heads, tokens) in [
        (q, heads, q_len),
        (k, kv_heads, kv_len),
        (v, kv_heads, kv_len),
    ] {
        x.row(heads - 1, tokens - 1, head_dim); // the furthest element is there
    }

    let per_kv_head = heads / kv_heads * q_len;
    let chunk = (CACHED_SCORES / kv_len)
        .clamp(kernel::TILE, MAX_QUERIES)
        .min(per_kv_head)
        // With fewer key heads than threads, a decode step's queries of one part too.
        .min(per_kv_head.div_ceil(pool::threads().div_ceil(kv_heads)));
    let chunks = per_kv_head.div_ceil(chunk);
    let out = SharedOut(out.as_mut_ptr());
    let task = |i: usize| {
        let first = i % chunks * chunk;
        let queries = Queries {
            q,
            k,
            v,
            shape,
            mask,
            scale,
            kv_head: i / chunks,
            first,
            count: chunk.min(per_kv_head - first),
            out,
        };
        let mut scores = SCORES.take();
        let needed = queries.scores_len();
        if scores.len() < needed {
            scores.resize(needed, 0.0);
        }
        launch(isa, (queries, &mut scores[..needed]));
        SCORES.set(scores);
    };
    if heads * q_len * kv_len * head_dim >= WORTHWHILE {
        pool::parallel_for(kv_heads * chunks, task);
    } else {
        (0..kv_heads * chunks).for_each(task);
    }
}
