//! 8-bit codes whose low bits lie apart from the high ones, so that what the high ones decide needs no others.
//!
//! Of a vocabulary's matrix often only the largest output is wanted. The [`HIGH`] high bits of the codes
//! tell it to within a bound: with `low` what of a row they and a middle value for the others leave out, the
//! Cauchy-Schwarz inequality has `|low · x| <= |low| · |x|`, and [`bound`] is `|low|` with what is lost in
//! rounding, kept for every row. Rows that
//! cannot be the largest are never read in full (`largest.rs`). With a bit less, ten times as many rows
//! are read in full, which costs more than it saves.

use crate::cpu::simd::Simd;

use super::codec::{PANEL, Quads, mask, place};

/// Bits of a code.
const BITS: usize = 8;
/// Codes of a block.
pub(super) const BLOCK: usize = 32;
/// High bits of a code, which a panel's blocks hold in planes of 1 and 4 bits.
const HIGH: usize = 5;
/// Low bits, which lie apart in planes of 1 and 2 bits.
const LOW: usize = BITS - HIGH;

/// What is taken for the low bits while they are not known: the middle of what they may be.
pub(super) const MIDDLE: u8 = 1 << (LOW - 1);

/// Words that a plane of `bits` bits has of a block of a panel.
const fn plane(bits: usize) -> usize {
    BLOCK * bits / 32 * PANEL
}

/// The planes: their bits, the lowest of a code's bits that they hold, and the words before them. Those of
/// a bit, all of which is read first, come first: the processor fetches what is read in order.
struct Plane(usize, usize, usize);
const PLANES: [Plane; 2] = [Plane(1, 3, 0), Plane(4, 4, plane(1))];
const LOW_PLANES: [Plane; 2] = [Plane(1, 2, 0), Plane(2, 0, plane(1))];

impl Plane {
    /// Stores this plane's bits of a block's codes of `row`.
    #[inline(always)]
    fn set(&self, words: &mut [u32], row: usize, quads: &[u32; BLOCK / 4]) {
        for (i, quads) in quads.chunks_exact(8 / self.0).enumerate() {
            let mut word = 0;
            for (q, codes) in quads.iter().enumerate() {
                word |= (codes >> self.1 & mask(self.0)) << (self.0 * q);
            }
            words[self.2 + i * PANEL + row] = word;
        }
    }

    /// What [`Self::set`] stored.
    fn get(&self, words: &[u32], q: usize, row: usize) -> u32 {
        let (word, shift) = place(self.0, q);
        (words[self.2 + word * PANEL + row] >> shift & mask(self.0)) << self.1
    }

    /// As [`Self::get`], of the rows of vector `v`.
    ///
    /// # Safety
    /// As [`Quads::quad`].
    #[inline(always)]
    unsafe fn quad<V: Simd>(&self, words: *const u32, q: usize, v: usize) -> V::I {
        let (word, at) = place(self.0, q);
        // SAFETY: the caller's contract.
        unsafe {
            let words = V::load_words(words.add(self.2 + word * PANEL + v * V::LANES));
            let moved = match (at, self.1) {
                (at, to) if at < to => V::shl(words, (to - at) as u32),
                (at, to) if at > to => V::shr(words, (at - to) as u32),
                _ => words,
            };
            V::and(moved, V::splat_word(mask(self.0) << self.1))
        }
    }
}

/// Codes: high bits in the block, low bits apart.
pub(super) struct Apart;

/// Their high bits, zeros in the place of the low ones.
pub(super) struct Coarse;

impl Apart {
    /// Stores a block's codes of `row`.
    pub fn set(block: &mut [u32], low: &mut [u32], row: usize, codes: &[u8; BLOCK]) {
        let mut quads = [0; BLOCK / 4];
        for (quad, codes) in quads.iter_mut().zip(codes.as_chunks::<4>().0) {
            *quad = u32::from_le_bytes(*codes);
        }
        let ([a, b], [c, d]) = (&PLANES, &LOW_PLANES);
        a.set(block, row, &quads);
        b.set(block, row, &quads);
        c.set(low, row, &quads);
        d.set(low, row, &quads);
    }

    /// Code `k` of `row`.
    pub fn get(block: &[u32], low: &[u32], k: usize, row: usize) -> u8 {
        let all = |planes: &[Plane], words: &[u32]| {
            let bits = planes.iter().map(|p| p.get(words, k / 4, row));
            bits.fold(0, |a, b| a | b)
        };
        ((all(&PLANES, block) | all(&LOW_PLANES, low)) >> (8 * (k % 4))) as u8
    }
}

impl Quads for Coarse {
    const QUADS: usize = BLOCK / 4;
    const BLOCK_WORDS: usize = plane(HIGH);
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn quad<V: Simd>(block: *const u32, _: *const u32, q: usize, v: usize) -> V::I {
        let [one, four] = &PLANES;
        // SAFETY: the caller's contract.
        unsafe { V::or(one.quad::<V>(block, q, v), four.quad::<V>(block, q, v)) }
    }
}

impl Quads for Apart {
    const QUADS: usize = BLOCK / 4;
    const BLOCK_WORDS: usize = Coarse::BLOCK_WORDS;
    const WIDE: bool = true;
    const LOW_WORDS: usize = plane(LOW);

    #[inline(always)]
    unsafe fn quad<V: Simd>(block: *const u32, low: *const u32, q: usize, v: usize) -> V::I {
        let [one, two] = &LOW_PLANES;
        // SAFETY: the caller's contract.
        unsafe {
            let high = Coarse::quad::<V>(block, low, q, v);
            V::or(
                high,
                V::or(one.quad::<V>(low, q, v), two.quad::<V>(low, q, v)),
            )
        }
    }
}

/// What a row's low bits are off from the middle by at most, times `|x|`: `|low|`, and the roundings
/// of both products' sums. A scale is for every [`BLOCK`] codes.
pub(super) fn bound(codes: &[u8], scales: &[f32]) -> f32 {
    let (mut low, mut whole) = (0.0, 0.0);
    for (codes, scale) in codes.as_chunks::<BLOCK>().0.iter().zip(scales) {
        let mut sum = 0u32;
        for code in codes {
            let off = (code & ((1 << LOW) - 1)).abs_diff(MIDDLE);
            sum += u32::from(off * off);
        }
        let square = f64::from(*scale) * f64::from(*scale);
        low += square * f64::from(sum);
        whole += square;
    }
    // A code is at most 128 from the zero point; a sum of n terms is off by n·2^-24 of their magnitudes,
    // and three operations make a term.
    let terms = (scales.len() + 3) as f64;
    let rounding = (whole * BLOCK as f64).sqrt() * 128.0 * terms * 2f64.powi(-22);
    ((low.sqrt() + rounding) * (1.0 + 1e-6)) as f32
}
