//! Codes whose low bits lie apart from the high ones, so that what the high ones decide needs no others.
//!
//! Of a vocabulary's matrix often only the largest output is wanted. The [`HIGH`] high bits of the codes
//! tell it to within a bound: with `low` the part of a row that they leave out, the Cauchy-Schwarz
//! inequality has `|low · x| <= |low| · |x|`, and [`bound`] is `|low|`, kept for every row. Rows that
//! cannot be the largest are never read in full (`largest.rs`).

use crate::cpu::simd::Simd;

use super::codec::{PANEL, Quads, mask, place};

/// High bits of a code, which a panel's blocks hold in a plane of this width.
pub(super) const HIGH: usize = 4;

/// What is taken for the low bits while they are not known: the middle of what they may be.
pub(super) const fn middle(bits: usize) -> u8 {
    1 << (bits - HIGH - 1)
}

/// Codes of `BITS` bits: high bits in the block, low bits apart.
pub(super) struct Apart<const BITS: usize, const BLOCK: usize>;

/// Their high bits, zeros in the place of the low ones.
pub(super) struct Coarse<const BITS: usize, const BLOCK: usize>;

impl<const BITS: usize, const BLOCK: usize> Apart<BITS, BLOCK> {
    const LOW: usize = BITS - HIGH;

    /// Stores four codes of `row`, a byte each, into zeros.
    pub fn set_quad(block: &mut [u32], low: &mut [u32], q: usize, row: usize, codes: u32) {
        let (word, shift) = place(HIGH, q);
        block[word * PANEL + row] |= (codes >> Self::LOW & mask(HIGH)) << shift;
        let (word, shift) = place(Self::LOW, q);
        low[word * PANEL + row] |= (codes & mask(Self::LOW)) << shift;
    }

    /// Code `k` of `row`.
    pub fn get(block: &[u32], low: &[u32], k: usize, row: usize) -> u8 {
        let byte = 8 * (k % 4);
        let (word, shift) = place(HIGH, k / 4);
        let high = block[word * PANEL + row] >> shift & mask(HIGH);
        let (word, shift) = place(Self::LOW, k / 4);
        let low = low[word * PANEL + row] >> shift & mask(Self::LOW);
        ((high << Self::LOW | low) >> byte) as u8
    }
}

impl<const BITS: usize, const BLOCK: usize> Quads for Coarse<BITS, BLOCK> {
    const QUADS: usize = BLOCK / 4;
    const BLOCK_WORDS: usize = BLOCK * HIGH / 32 * PANEL;
    const WIDE: bool = BITS == 8;

    #[inline(always)]
    unsafe fn quad<V: Simd>(block: *const u32, _: *const u32, q: usize, v: usize) -> V::I {
        let (word, at) = place(HIGH, q);
        let low = BITS - HIGH;
        // SAFETY: all words read are the block's.
        unsafe {
            let words = V::load_words(block.add(word * PANEL + v * V::LANES));
            let moved = match at < low {
                true => V::shl(words, (low - at) as u32),
                false if at == low => words,
                false => V::shr(words, (at - low) as u32),
            };
            V::and(moved, V::splat_word(mask(HIGH) << low))
        }
    }
}

impl<const BITS: usize, const BLOCK: usize> Quads for Apart<BITS, BLOCK> {
    const QUADS: usize = BLOCK / 4;
    const BLOCK_WORDS: usize = Coarse::<BITS, BLOCK>::BLOCK_WORDS;
    const WIDE: bool = BITS == 8;
    const LOW_WORDS: usize = BLOCK * Self::LOW / 32 * PANEL;

    #[inline(always)]
    unsafe fn quad<V: Simd>(block: *const u32, low: *const u32, q: usize, v: usize) -> V::I {
        let (word, at) = place(Self::LOW, q);
        // SAFETY: the caller's contract.
        unsafe {
            let high = Coarse::<BITS, BLOCK>::quad::<V>(block, low, q, v);
            let words = V::load_words(low.add(word * PANEL + v * V::LANES));
            let moved = match at {
                0 => words,
                _ => V::shr(words, at as u32),
            };
            V::or(high, V::and(moved, V::splat_word(mask(Self::LOW))))
        }
    }
}

/// Calls `$body` with `$C` the type `$which` of codes that lie apart of a format.
macro_rules! with_apart {
    ($which:ident, $format:expr, $C:ident => $body:expr) => {
        match $format {
            Format::Codes { bits: 6, .. } => {
                type $C = $crate::cpu::matrix::apart::$which<6, 16>;
                $body
            }
            _ => {
                type $C = $crate::cpu::matrix::apart::$which<8, 32>;
                $body
            }
        }
    };
}
pub(super) use with_apart;

/// What a row's low bits are off from the middle by at most, times `|x|`: `|low|`, and the roundings
/// of both products' sums. `codes` and `scales` are a row's, the latter for every `group` codes.
pub(super) fn bound(bits: usize, group: usize, codes: &[u8], scales: &[f32]) -> f32 {
    let (low_mask, middle) = ((1u8 << (bits - HIGH)) - 1, i32::from(middle(bits)));
    let (mut low, mut whole) = (0.0, 0.0);
    for (codes, scale) in codes.chunks(group).zip(scales) {
        let mut sum = 0;
        for code in codes {
            let off = i32::from(code & low_mask) - middle;
            sum += off * off;
        }
        let square = f64::from(*scale) * f64::from(*scale);
        low += square * f64::from(sum);
        whole += square * codes.len() as f64;
    }
    // A code is at most `2^(bits - 1)` from the zero point; a sum of n terms is off by n·2^-24 of their
    // magnitudes, and three operations make a term.
    let terms = (scales.len() + 3) as f64;
    let rounding = whole.sqrt() * f64::from(1u32 << (bits - 1)) * terms * 2f64.powi(-22);
    ((low.sqrt() + rounding) * (1.0 + 1e-6)) as f32
}
