//! Neighbouring keys or values as `f32`, and what is asked of the memory beforehand.

use std::ops::Range;

use half::f16;

use crate::cpu::Kept;
use crate::cpu::simd::{Simd, prefetch};

/// Keys or values to ask the memory for before they are needed: a decode step's lie there, and the
/// processor itself looks no further than a page.
pub(super) const AHEAD: usize = 16;
/// Floats of a cache line.
pub(super) const LINE: usize = 16;
/// Some elements of neighbouring keys or values of one head, as `f32`.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub start: *const f32,
    pub stride: usize,
    /// The key at `start`.
    pub first: usize,
    /// Whether they lie in the cache's memory, so that those after them may be asked for.
    pub in_place: bool,
}

impl Rows {
    /// What is kept as `f16` is widened into `room`.
    #[inline(always)]
    pub(super) unsafe fn of<V: Simd>(
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
    pub(super) fn after(&self, elements: usize) -> Rows {
        Rows {
            start: self.start.wrapping_add(elements),
            ..*self
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, key: usize) -> *const f32 {
        self.start.wrapping_add((key - self.first) * self.stride)
    }
}
