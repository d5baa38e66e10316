//! Keys and values in codes. A row's bytes depend on that row alone, and are the same on every
//! instruction set: plain operations, each rounded once.

use half::f16;

use super::simd::{Isa, Kernel, Simd, launch};
use super::{Codes, pool};

const GROUP: usize = Codes::GROUP;
/// Elements that are looked at side by side.
const LANES: usize = 8;

/// Rows in codes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quantized {
    /// `bits / 8` bytes an element; of two in a byte the first is in the lower bits.
    pub codes: Vec<u8>,
    /// One a group.
    pub scales: Vec<f16>,
    /// One a group.
    pub biases: Vec<f16>,
}

/// Quantizes whole groups of [`Codes::GROUP`] elements to 4 or 8 bits.
///
/// # Panics
/// When the elements are no whole groups.
pub(crate) fn quantize(rows: &[f32], bits: usize) -> Quantized {
    quantize_with(Isa::get(), rows, bits)
}

fn quantize_with(isa: Isa, rows: &[f32], bits: usize) -> Quantized {
    /// Groups of a task: some ten microseconds.
    const TASK: usize = 512;
    assert!(rows.len().is_multiple_of(GROUP) && matches!(bits, 4 | 8));
    let groups = rows.len() / GROUP;
    let bytes = GROUP * bits / 8;
    let mut out = Quantized {
        codes: vec![0; groups * bytes],
        scales: vec![f16::ZERO; groups],
        biases: vec![f16::ZERO; groups],
    };
    let tasks: Vec<_> = rows
        .chunks(TASK * GROUP)
        .zip(out.codes.chunks_mut(TASK * bytes))
        .zip(out.scales.chunks_mut(TASK).zip(out.biases.chunks_mut(TASK)))
        .map(|((rows, codes), (scales, biases))| {
            std::sync::Mutex::new(Some(Rows {
                rows,
                bits,
                codes,
                scales,
                biases,
            }))
        })
        .collect();
    let run = |i: usize| {
        let task = tasks.get(i).and_then(|task| task.lock().ok()?.take());
        if let Some(task) = task {
            launch(isa, task);
        }
    };
    match tasks.len() {
        1 => run(0),
        n => pool::parallel_for(n, run),
    }
    drop(tasks);
    out
}

struct Rows<'a> {
    rows: &'a [f32],
    bits: usize,
    codes: &'a mut [u8],
    scales: &'a mut [f16],
    biases: &'a mut [f16],
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let groups = self.rows.as_chunks::<GROUP>().0.iter();
        let bytes = GROUP * self.bits / 8;
        let steps = self.scales.iter_mut().zip(self.biases);
        for ((x, codes), (scale, bias)) in groups.zip(self.codes.chunks_mut(bytes)).zip(steps) {
            let mut wide = [0; GROUP];
            match self.bits {
                4 => {
                    (*scale, *bias) = group(x, 15.0, &mut wide);
                    for (byte, [low, high]) in codes.iter_mut().zip(wide.as_chunks::<2>().0) {
                        *byte = low | high << 4;
                    }
                }
                _ => {
                    (*scale, *bias) = group(x, 255.0, &mut wide);
                    codes.copy_from_slice(&wide);
                }
            }
        }
    }
}

/// A group's codes, none above `levels`; gives its scale and bias.
#[inline(always)]
fn group(x: &[f32; GROUP], levels: f32, codes: &mut [u8; GROUP]) -> (f16, f16) {
    let mut most = [f32::NEG_INFINITY; LANES];
    let mut least = [f32::INFINITY; LANES];
    // Nothing where all are finite, else NaN.
    let mut broken = [0.0; LANES];
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            most[i] = if x[i] > most[i] { x[i] } else { most[i] };
            least[i] = if x[i] < least[i] { x[i] } else { least[i] };
            broken[i] += x[i] * 0.0;
        }
    }
    let most = most.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = least.iter().copied().fold(f32::INFINITY, f32::min);
    let broken: f32 = broken.iter().sum();
    let scale = f16::from_f32((most - least) / levels);
    let bias = f16::from_f32(least + broken);
    // A scale of nothing makes all codes alike.
    let (step, start) = (scale.to_f32().max(f32::MIN_POSITIVE), bias.to_f32());
    for (code, x) in codes.iter_mut().zip(x) {
        *code = ((x - start) / step + 0.5).clamp(0.0, levels) as u8;
    }
    (scale, bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (i as f32 * 12.9898).sin() * (1.0 + i as f32 / 50.0))
            .collect()
    }

    #[test]
    fn a_code_is_half_a_step_off_at_most() {
        let x = values(40 * GROUP);
        for bits in [4, 8] {
            let q = quantize(&x, bits);
            for (i, x) in x.iter().enumerate() {
                let code = match bits {
                    4 => q.codes[i / 2] >> (i % 2 * 4) & 15,
                    _ => q.codes[i],
                };
                let (scale, bias) = (q.scales[i / GROUP].to_f32(), q.biases[i / GROUP].to_f32());
                let got = scale * f32::from(code) + bias;
                // The largest may be cut by what rounding took from scale and bias.
                let allowed = scale * 0.5 + bias.abs() / 1000.0 + scale * 0.3;
                assert!(
                    (got - x).abs() <= allowed,
                    "{bits} bits, {i}: {got} for {x}"
                );
            }
        }
    }

    #[test]
    fn a_row_has_the_same_codes_in_any_company_on_every_instruction_set() {
        let x = values(1100 * GROUP);
        for bits in [4, 8] {
            let all = quantize_with(Isa::Portable, &x, bits);
            for &isa in Isa::available() {
                assert_eq!(quantize_with(isa, &x, bits), all, "{isa:?}");
                for (i, x) in x.chunks(GROUP).enumerate().step_by(97) {
                    let one = quantize_with(isa, x, bits);
                    let bytes = GROUP * bits / 8;
                    assert_eq!(one.codes, all.codes[i * bytes..][..bytes]);
                    assert_eq!(one.scales[0], all.scales[i]);
                    assert_eq!(one.biases[0], all.biases[i]);
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_equal_values_stay_equal() {
        for bits in [4, 8] {
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = values(2 * GROUP);
                x[3] = wrong;
                let q = quantize(&x, bits);
                assert!(q.biases[0].is_nan() && q.biases[1].is_finite(), "{wrong}");
            }
            for same in [0.0, -3.0, 0.25] {
                let q = quantize(&[same; GROUP], bits);
                assert_eq!((q.scales[0].to_f32(), q.biases[0].to_f32()), (0.0, same));
            }
        }
    }
}
