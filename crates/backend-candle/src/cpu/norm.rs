use super::for_row_chunks;
use super::simd::{Isa, Kernel, Simd, launch};

/// RMSNorm of rows of `weight.len()`: `x / sqrt(mean(x²) + eps) · weight` (Zhang and Sennrich 2019).
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    norm(
        Isa::get(),
        Norm {
            centre: false,
            weight,
            bias: None,
            eps,
        },
        x,
        out,
    );
}

/// LayerNorm of rows of `weight.len()`: `(x - mean) / sqrt(var + eps) · weight + bias` (Ba, Kiros
/// and Hinton 2016).
///
/// # Panics
/// When the lengths differ.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    norm(
        Isa::get(),
        Norm {
            centre: true,
            weight,
            bias,
            eps,
        },
        x,
        out,
    );
}

#[derive(Clone, Copy)]
struct Norm<'a> {
    /// Whether the mean is taken away.
    centre: bool,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

fn norm(isa: Isa, norm: Norm<'_>, x: &[f32], out: &mut [f32]) {
    let n = norm.weight.len();
    assert_eq!(x.len(), out.len(), "as many outputs as inputs");
    assert!(
        x.is_empty() || n > 0 && x.len().is_multiple_of(n),
        "whole rows"
    );
    assert!(
        norm.bias.is_none_or(|b| b.len() == n),
        "bias is as long as weight"
    );
    for_row_chunks(out, n, 2 * n, |first, out| {
        let x = &x[first * n..][..out.len()];
        launch(isa, NormRows { norm, x, out });
    });
}

struct NormRows<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Norm {
            centre,
            weight,
            bias,
            eps,
        } = self.norm;
        let n = weight.len();
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            // SAFETY: same instructions.
            let (mean, scale) = unsafe {
                let mean = if centre {
                    sum::<V, false>(x, 0.0) / n as f32
                } else {
                    0.0
                };
                (
                    mean,
                    1.0 / (sum::<V, true>(x, mean) / n as f32 + eps).sqrt(),
                )
            };
            // Plain loops over equal lengths: the compiler vectorizes them.
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                *out = (x - mean) * scale * w;
            }
            if let Some(bias) = bias {
                for (out, &b) in out.iter_mut().zip(bias) {
                    *out += b;
                }
            }
        }
    }
}

/// Sum of `x`, or of `(x - mean)²`.
#[inline(always)]
unsafe fn sum<V: Simd, const SQUARES: bool>(x: &[f32], mean: f32) -> f32 {
    let parts = x.chunks_exact(4 * V::LANES);
    let mut rest = 0.0;
    for &x in parts.remainder() {
        rest += if SQUARES { (x - mean) * (x - mean) } else { x };
    }
    // SAFETY: every part has four vectors.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        for part in parts {
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = V::load(part.as_ptr().add(i * V::LANES));
                *sum = if SQUARES {
                    let x = V::sub(x, V::splat(mean));
                    V::fma(x, x, *sum)
                } else {
                    V::add(x, *sum)
                };
            }
        }
        V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3]))) + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_equal_their_definitions() {
        for n in [1usize, 5, 32, 75, 576] {
            let rows = 130;
            let x: Vec<f32> = (0..rows * n)
                .map(|i| ((i * 31) % 97) as f32 * 0.07 - 2.0)
                .collect();
            let weight: Vec<f32> = (0..n).map(|i| 0.5 + i as f32 * 0.01).collect();
            let bias: Vec<f32> = (0..n).map(|i| i as f32 * 0.1 - 1.0).collect();
            for (&isa, centre) in Isa::available()
                .iter()
                .flat_map(|i| [(i, false), (i, true)])
            {
                let bias = centre.then_some(bias.as_slice());
                let mut out = vec![0.0; x.len()];
                norm(
                    isa,
                    Norm {
                        centre,
                        weight: &weight,
                        bias,
                        eps: 1e-5,
                    },
                    &x,
                    &mut out,
                );
                for (x, out) in x.chunks(n).zip(out.chunks(n)) {
                    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    let mean = if centre {
                        x.iter().sum::<f64>() / n as f64
                    } else {
                        0.0
                    };
                    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                    for i in 0..n {
                        let want = (x[i] - mean) / (var + 1e-5).sqrt() * f64::from(weight[i])
                            + bias.map_or(0.0, |b| f64::from(b[i]));
                        let got = f64::from(out[i]);
                        assert!(
                            (got - want).abs() < 2e-5 * (1.0 + want.abs()),
                            "{isa:?} {n} {got} {want}"
                        );
                    }
                }
            }
        }
    }
}
