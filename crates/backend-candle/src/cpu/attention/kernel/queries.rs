//! Some queries of a head: which they are, what they see and where their outputs lie.

use std::ops::Range;

use biplane_backend::AttentionMask;
use half::f16;

use super::{KEY_BLOCK, KEYS, WIDENED, rows::room_for_codes};
use crate::cpu::attention::AttentionShape;
use crate::cpu::{Kept, SharedOut, Strided};

/// Some queries of one key head. Queries of a key head are numbered position by position, the heads
/// of a position next to each other.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
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
    pub(super) fn place(&self, query: usize) -> (usize, usize) {
        let group = self.shape.heads / self.shape.kv_heads;
        let number = self.first + query;
        (self.kv_head * group + number % group, number / group)
    }

    /// The keys a query sees.
    #[inline(always)]
    pub(super) fn visible(&self, query: usize) -> Range<usize> {
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
    pub(super) fn block(&self) -> usize {
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

    /// Where a head's key lies that is kept in halves, else null. For prefetches: it may be beyond the end.
    pub fn key(&self, kv_head: usize, key: usize) -> *const f16 {
        start_of(self.k, kv_head, key)
    }

    /// As [`Self::key`].
    pub fn value(&self, kv_head: usize, key: usize) -> *const f16 {
        start_of(self.v, kv_head, key)
    }

    /// One query's output.
    #[inline(always)]
    pub(super) fn out(&self, query: usize) -> *mut f32 {
        let (head, position) = self.place(query);
        let start = (position * self.shape.heads + head) * self.shape.head_dim;
        // SAFETY: there are `[q_len, heads, head_dim]` elements.
        unsafe { self.out.at(start) }
    }
}

fn start_of(kept: Kept<'_>, kv_head: usize, key: usize) -> *const f16 {
    match kept {
        Kept::F16(kept) => {
            let row = kv_head * kept.head_stride + key * kept.token_stride;
            kept.data.as_ptr().wrapping_add(row)
        }
        Kept::F32(_) | Kept::Codes(_) => std::ptr::null(),
    }
}
