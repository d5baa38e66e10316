//! Neighbouring keys or values as `f32`, and what is asked of the memory beforehand.

use std::ops::Range;

use half::f16;

use crate::cpu::simd::{Simd, prefetch};
use crate::cpu::{Codes, Kept, Strided};

/// Bytes to ask the memory for before they are needed: a decode step's keys and values lie there, and
/// the processor itself looks no further than a page.
const AHEAD: usize = 5120;
/// Bytes of a cache line.
const LINE: usize = 64;

/// What keys and values are read as.
pub(super) trait Element: Copy {
    /// A vector of them.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<V: Simd>(p: *const Self) -> V::F;
    fn wide(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Simd>(p: *const f32) -> V::F {
        // SAFETY: the caller's contract.
        unsafe { V::load(p) }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: Simd>(p: *const f16) -> V::F {
        // SAFETY: the caller's contract; `f16` is a `u16` in memory.
        unsafe { V::load_f16(p.cast()) }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        widen(self)
    }
}

/// Some elements of neighbouring keys or values of one head.
#[derive(Clone, Copy)]
pub(super) struct Rows<E> {
    start: *const E,
    stride: usize,
    /// The key at `start`.
    first: usize,
    /// How many elements further on that lies which the memory is to be asked for: nothing where rows
    /// were widened into the cache.
    ahead: usize,
    /// Where these rows end, and those begin that are read after them: what is asked of the memory goes on there.
    end: *const E,
    next: *const E,
}

impl<E: Element> Rows<E> {
    /// As they are kept.
    #[inline(always)]
    pub(super) fn in_place(
        kept: Strided<'_, E>,
        head: usize,
        keys: &Range<usize>,
        elements: &Range<usize>,
    ) -> Rows<E> {
        if keys.is_empty() {
            return Rows {
                start: kept.data.as_ptr(),
                stride: 0,
                first: keys.start,
                ahead: 0,
                end: std::ptr::null(),
                next: std::ptr::null(),
            };
        }
        let rows_ahead = AHEAD / (elements.len().max(1) * size_of::<E>());
        kept.row(head, keys.start, elements.end);
        let place = head * kept.head_stride + keys.start * kept.token_stride + elements.start;
        let start = kept.data.as_ptr().wrapping_add(place);
        let end = start.wrapping_add(keys.len() * kept.token_stride);
        Rows {
            start,
            stride: kept.token_stride,
            first: keys.start,
            ahead: rows_ahead.max(1) * kept.token_stride,
            end,
            next: end,
        }
    }

    /// Says where that begins which is read after these rows; null where nothing is known.
    #[inline(always)]
    pub(super) fn then(self, next: *const E) -> Rows<E> {
        Rows { next, ..self }
    }

    /// Without the rows before `key`, which becomes number 0.
    #[inline(always)]
    pub(super) fn from(&self, key: usize) -> Rows<E> {
        Rows {
            start: self.row(key),
            first: 0,
            ..*self
        }
    }

    /// Without the first elements.
    #[inline(always)]
    pub(super) fn after(&self, elements: usize) -> Rows<E> {
        Rows {
            start: self.start.wrapping_add(elements),
            ..*self
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, key: usize) -> *const E {
        self.start.wrapping_add((key - self.first) * self.stride)
    }

    /// Asks the memory for `n` elements of a later row than this one, or of what follows the rows.
    #[inline(always)]
    pub(super) fn ask(&self, row: *const E, n: usize) {
        if self.ahead == 0 {
            return;
        }
        let mut row = row.wrapping_add(self.ahead);
        if row >= self.end {
            if self.next.is_null() {
                return;
            }
            row = self.next.wrapping_byte_add(row.addr() - self.end.addr());
        }
        ask(row, n);
    }
}

/// Asks the memory for elements.
#[inline(always)]
fn ask<E>(start: *const E, n: usize) {
    let mut at = 0;
    while at < n {
        prefetch(start.wrapping_add(at));
        at += LINE / size_of::<E>();
    }
}

impl Rows<f32> {
    /// What is not kept as `f32` is widened into `room`.
    #[inline(always)]
    pub(super) unsafe fn of<V: Simd>(
        kept: Kept<'_>,
        head: usize,
        keys: &Range<usize>,
        elements: &Range<usize>,
        head_dim: usize,
        room: *mut f32,
    ) -> Rows<f32> {
        let n = elements.len();
        let kept = match kept {
            Kept::F32(kept) => return Rows::in_place(kept, head, keys, elements),
            Kept::F16(kept) => Rows::in_place(kept, head, keys, elements),
            Kept::Codes(kept) => {
                // SAFETY: the caller's contract.
                unsafe { widen_codes::<V>(&kept, head, keys, elements, head_dim, room) };
                return Rows::widened(room, n, keys);
            }
        };
        for (i, key) in keys.clone().enumerate() {
            let row = kept.row(key);
            kept.ask(row, n);
            // SAFETY: the row has `n` elements, and there is room for a block of them.
            unsafe {
                let to = room.add(i * n);
                let mut at = 0;
                while at + V::LANES <= n {
                    V::store(to.add(at), f16::load::<V>(row.add(at)));
                    at += V::LANES;
                }
                for at in at..n {
                    *to.add(at) = widen(*row.add(at));
                }
            }
        }
        Rows::widened(room, n, keys)
    }

    #[inline(always)]
    fn widened(room: *const f32, stride: usize, keys: &Range<usize>) -> Rows<f32> {
        Rows {
            start: room,
            stride,
            first: keys.start,
            ahead: 0,
            end: std::ptr::null(),
            next: std::ptr::null(),
        }
    }
}

/// Floats of room for a block of codes of heads of `head_dim` elements: their values, scales and biases.
pub(super) fn room_for_codes(block: usize, head_dim: usize) -> usize {
    block * (head_dim + 2 * (head_dim / Codes::GROUP))
}

/// The values of codes, rows of `elements` into `room`, which [`room_for_codes`] measures. A head is whole
/// groups, and the elements' bounds are multiples of every vector's lanes.
#[inline(always)]
unsafe fn widen_codes<V: Simd>(
    kept: &Codes<'_>,
    head: usize,
    keys: &Range<usize>,
    elements: &Range<usize>,
    head_dim: usize,
    room: *mut f32,
) {
    let n = elements.len();
    let groups = head_dim / Codes::GROUP;
    // SAFETY: room for scales and biases comes after that for values.
    let (scales, biases) = unsafe {
        let scales = room.add(keys.len() * n);
        let biases = scales.add(keys.len() * groups);
        widen_halves::<V>(&kept.scales, head, keys, groups, scales);
        widen_halves::<V>(&kept.biases, head, keys, groups, biases);
        (scales, biases)
    };
    for (i, key) in keys.clone().enumerate() {
        let codes = kept.codes.row(head, key, head_dim * kept.bits / 8).as_ptr();
        let bytes = (n * kept.bits / 8).max(1);
        let ahead = codes.wrapping_add((AHEAD / bytes).max(1) * kept.codes.token_stride);
        ask(ahead.wrapping_add(elements.start * kept.bits / 8), bytes);
        let mut at = elements.start;
        // SAFETY: the rows have codes up to the elements' end, and there is room for a block of them.
        unsafe {
            let to = room.add(i * n).wrapping_sub(elements.start);
            while at < elements.end {
                let group = at / Codes::GROUP;
                let end = elements.end.min((group + 1) * Codes::GROUP);
                let scale = V::splat(*scales.add(i * groups + group));
                let bias = V::splat(*biases.add(i * groups + group));
                while at < end {
                    let code = match kept.bits {
                        4 => V::load_nibbles(codes.add(at / 2)),
                        _ => V::load_bytes(codes.add(at)),
                    };
                    V::store(to.wrapping_add(at), V::fma(code, scale, bias));
                    at += V::LANES;
                }
            }
        }
    }
}

/// Rows of `n` halves of neighbouring keys as `f32`, one after the other.
#[inline(always)]
unsafe fn widen_halves<V: Simd>(
    halves: &Strided<'_, f16>,
    head: usize,
    keys: &Range<usize>,
    n: usize,
    to: *mut f32,
) {
    // In a cache all lie side by side.
    let (rows, n) = match halves.token_stride == n && !keys.is_empty() {
        true => (keys.start..keys.start + 1, n * keys.len()),
        false => (keys.clone(), n),
    };
    let whole = n / V::LANES * V::LANES;
    for (i, key) in rows.enumerate() {
        let row = halves.row(head, key, n);
        // SAFETY: the row has `n` elements, and there is room for all rows.
        unsafe {
            let to = to.add(i * n);
            for at in (0..whole).step_by(V::LANES) {
                V::store(to.add(at), V::load_f16(row.as_ptr().add(at).cast()));
            }
            for (at, x) in row.iter().enumerate().skip(whole) {
                *to.add(at) = widen(*x);
            }
        }
    }
}

/// `f16` as `f32` without a call: the exponent moved by a product.
#[inline(always)]
fn widen(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    // Infinity and NaN have the largest exponent.
    let size = match bits & 0x7c00 {
        0x7c00 => size.to_bits() | 0x7f80_0000,
        _ => size.to_bits(),
    };
    f32::from_bits(size | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            match x.is_nan() {
                true => assert!(widen(x).is_nan()),
                false => assert_eq!(widen(x).to_bits(), x.to_f32().to_bits(), "{bits:x}"),
            }
        }
    }
}
