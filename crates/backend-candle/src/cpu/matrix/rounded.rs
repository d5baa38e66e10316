//! Activations rounded to 8 bits, for products in integers.
//!
//! Every block of a row, as long as the weights' `Codec::BLOCK`, has a scale of its own:
//! `x ≈ scale · q` with whole `q` from -127 to 127, the largest magnitude at ±127 and halves rounded to
//! even. All steps are exact or rounded as IEEE 754 says, so every machine gives the same.

use crate::cpu::simd::{Isa, Kernel, Simd, launch};
use crate::cpu::{SharedOut, pool};

use super::layout::{Bias, Layout, Scaling};

/// Words after a block's codes: its scale, and what [`Rounding::zero`] says.
pub(super) const EXTRA: usize = 2;

/// How rows are rounded. A row is blocks; a block is its codes, four to a word, its scale (`f32`), and
/// a number that the weights' biases need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Rounding {
    pub rows: usize,
    cols: usize,
    block: usize,
    /// Where weights' codes count from a zero point, the block's last word is the starting value of
    /// their sums, `-zero · Σq` (`i32`); else it is `scale · Σq` (`f32`), for the stored biases.
    zero: Option<u8>,
}

impl Rounding {
    pub fn new(layout: &Layout, rows: usize) -> Rounding {
        Rounding {
            rows,
            cols: layout.cols,
            block: layout.block(),
            zero: match layout.scaling {
                Some(Scaling {
                    bias: Bias::ZeroPoint(zero),
                    ..
                }) => Some(zero),
                _ => None,
            },
        }
    }

    /// The same, where codes count from a zero point that is less by `n`.
    pub fn with_zero_less(self, n: u8) -> Rounding {
        Rounding {
            zero: self.zero.and_then(|zero| zero.checked_sub(n)),
            ..self
        }
    }

    /// Elements that share a scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Words of a row.
    pub fn row_words(&self) -> usize {
        self.cols / self.block * (self.block / 4 + EXTRA)
    }

    /// Words of all rows.
    pub fn len(&self) -> usize {
        self.rows * self.row_words()
    }
}

/// Rounds `x [rows, cols]` into `out`, [`Rounding::len`] long.
pub(super) fn round(isa: Isa, at: &Rounding, x: &[f32], out: &mut [u32]) {
    /// Rows that take some microseconds.
    const WORTHWHILE: usize = 16;
    assert!(x.len() == at.rows * at.cols && out.len() == at.len());
    let shared = SharedOut(out.as_mut_ptr().cast());
    let some = |i: usize| {
        let first = i * WORTHWHILE;
        let n = WORTHWHILE.min(at.rows - first);
        // SAFETY: these rows' words, which no other task has; `u32` and `f32` are alike in memory.
        let out = unsafe { shared.part(first * at.row_words(), n * at.row_words()) };
        let out = bytemuck::cast_slice_mut(out);
        let x = &x[first * at.cols..][..n * at.cols];
        let zero = at.zero;
        match at.block {
            16 => launch(isa, Round::<16> { x, out, zero }),
            _ => launch(isa, Round::<32> { x, out, zero }),
        }
    };
    let tasks = at.rows.div_ceil(WORTHWHILE);
    pool::parallel_for(tasks, some);
}

struct Round<'a, const BLOCK: usize> {
    x: &'a [f32],
    out: &'a mut [u32],
    zero: Option<u8>,
}

impl<const BLOCK: usize> Kernel for Round<'_, BLOCK> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (blocks, _) = self.x.as_chunks::<BLOCK>();
        let outs = self.out.chunks_exact_mut(BLOCK / 4 + EXTRA);
        for (x, out) in blocks.iter().zip(outs) {
            let (words, extra) = out.split_at_mut(BLOCK / 4);
            let (scale, sum) = round_block(x, words);
            extra[0] = scale.to_bits();
            extra[1] = match self.zero {
                Some(zero) => (-i32::from(zero) * sum) as u32,
                None => (scale * sum as f32).to_bits(),
            };
        }
    }
}

/// Rounds a block; gives its scale and the sum of its codes. What is not finite makes the scale NaN,
/// and so all that is computed with it.
#[inline(always)]
fn round_block<const BLOCK: usize>(x: &[f32; BLOCK], words: &mut [u32]) -> (f32, i32) {
    /// Added to a float below 2^22, it leaves the nearest whole number in the low bits.
    const NEAREST: f32 = 12_582_912.0;
    /// Smaller values would have a factor beyond the largest float.
    const SMALLEST: f32 = 1e-30;
    // Plain loops over constant lengths: the compiler vectorizes them. Magnitudes compare as their
    // bits do, NaN above all.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    let (scale, factor) = if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < SMALLEST {
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    };
    let mut codes = [0i32; BLOCK];
    for (code, x) in codes.iter_mut().zip(x) {
        let nearest = x * factor + NEAREST;
        *code = (nearest.to_bits() as i32).wrapping_sub(NEAREST.to_bits() as i32);
    }
    if scale.is_nan() {
        codes = [0; BLOCK];
    }
    let mut bytes = [0u8; BLOCK];
    for (byte, code) in bytes.iter_mut().zip(codes) {
        *byte = code as u8;
    }
    // In lanes of its own: the compiler would not make some by itself here.
    let mut sums = [0; 8];
    for codes in codes.as_chunks::<8>().0 {
        for (sum, code) in sums.iter_mut().zip(codes) {
            *sum += code;
        }
    }
    let sum = sums.iter().sum();
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    (scale, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_rounded_to_the_nearest_of_255_steps() {
        let mut x: [f32; 32] = std::array::from_fn(|i| (i as f32 * 1.7).sin() * 3.0);
        x[5] = -4.0;
        let mut words = [0; 8];
        let (scale, sum) = round_block(&x, &mut words);
        assert_eq!(scale, 4.0 / 127.0);
        let codes: Vec<i8> = words
            .iter()
            .flat_map(|w| w.to_le_bytes().map(|b| b as i8))
            .collect();
        assert_eq!(codes[5], -127);
        assert_eq!(codes.iter().map(|&c| i32::from(c)).sum::<i32>(), sum);
        for (x, code) in x.iter().zip(codes) {
            assert!((x - f32::from(code) * scale).abs() <= scale * 0.5001);
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_spreads() {
        let mut words = [7; 4];
        assert_eq!(round_block(&[0.0; 16], &mut words), (0.0, 0));
        assert_eq!(round_block(&[1e-40; 16], &mut words), (0.0, 0));
        assert_eq!(words, [0; 4]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 16];
            x[3] = bad;
            let (scale, sum) = round_block(&x, &mut words);
            assert!(scale.is_nan() && sum == 0 && words == [0; 4]);
        }
        let huge = round_block(&[f32::MAX; 16], &mut words);
        assert!(huge.0.is_finite() && huge.1 == 16 * 127);
    }
}
