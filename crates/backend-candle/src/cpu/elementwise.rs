use biplane_backend::Gate;

use super::for_row_chunks;
use super::math::{exp, load_part, store_part};
use super::simd::{Isa, Kernel, MAX_LANES, Simd, launch};

/// `silu(gate) · up`, with `silu(x) = x / (1 + e^-x)` (SwiGLU, Shazeer 2020).
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated(Isa::get(), Activation::Silu, gate, up, out);
}

/// `gelu(gate) · up` with the tanh form of GELU (Hendrycks and Gimpel 2016).
///
/// # Panics
/// When the lengths differ.
pub fn gelu_tanh_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated(Isa::get(), Activation::GeluTanh, gate, up, out);
}

/// Softmax of every row of `cols` elements.
///
/// # Panics
/// When the lengths differ or are no multiple of `cols`.
pub fn softmax(x: &[f32], cols: usize, out: &mut [f32]) {
    softmax_with(Isa::get(), x, cols, out);
}

/// Position of the largest element, the lowest among equals; NaN counts as smallest. 0 for an empty
/// row.
pub fn argmax(row: &[f32]) -> usize {
    let mut largest = f32::NEG_INFINITY;
    launch(Isa::get(), Largest(row, &mut largest));
    row.iter().position(|&x| x == largest).unwrap_or(0)
}

fn softmax_with(isa: Isa, x: &[f32], cols: usize, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "as many outputs as inputs");
    assert!(
        cols > 0 && x.len().is_multiple_of(cols) || x.is_empty(),
        "whole rows"
    );
    for_row_chunks(out, cols, 4 * cols, |first, out| {
        let x = &x[first * cols..][..out.len()];
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            out.copy_from_slice(x);
            let mut sum = 0.0;
            launch(
                isa,
                Exponentials {
                    row: out,
                    sum: &mut sum,
                },
            );
            let factor = 1.0 / sum;
            out.iter_mut().for_each(|x| *x *= factor);
        }
    });
}

/// What gates.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Activation {
    Silu,
    GeluTanh,
}

impl From<Gate> for Activation {
    fn from(gate: Gate) -> Self {
        match gate {
            Gate::Silu => Activation::Silu,
            Gate::GeluTanh => Activation::GeluTanh,
        }
    }
}

fn gated(isa: Isa, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(
        gate.len() == out.len() && up.len() == out.len(),
        "three equal lengths"
    );
    for_row_chunks(out, 1, 4, |first, out| {
        let (gate, up) = (&gate[first..][..out.len()], &up[first..][..out.len()]);
        gated_row(isa, activation, gate, up, out);
    });
}

/// Gates a row, on this thread.
///
/// # Panics
/// When the lengths differ.
pub(super) fn gated_row(
    isa: Isa,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
) {
    let width = out.len();
    assert!(gate.len() == width && up.len() == width, "one length");
    let kernel = GatedRows {
        activation,
        gate,
        up,
        width,
        out: out.as_mut_ptr(),
        stride: width,
    };
    launch(isa, kernel);
}

/// Rows of `width` gates and values, and where the gated values go.
pub(super) struct GatedRows<'a> {
    pub activation: Activation,
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub width: usize,
    /// A row of `width` for each row of gates, which nothing else uses.
    pub out: *mut f32,
    /// Elements from one row of `out` to the next.
    pub stride: usize,
}

impl Kernel for GatedRows<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let rows = self.gate.chunks(self.width).zip(self.up.chunks(self.width));
        for (i, (gate, up)) in rows.enumerate() {
            // SAFETY: the row is there.
            let out =
                unsafe { std::slice::from_raw_parts_mut(self.out.add(i * self.stride), up.len()) };
            let parts = gate.chunks(V::LANES).zip(up.chunks(V::LANES));
            for ((gate, up), out) in parts.zip(out.chunks_mut(V::LANES)) {
                // SAFETY: whole vectors only where there are as many elements.
                unsafe {
                    if out.len() == V::LANES {
                        let (x, up) = (V::load(gate.as_ptr()), V::load(up.as_ptr()));
                        V::store(out.as_mut_ptr(), gated_one::<V>(self.activation, x, up));
                    } else {
                        let (x, up) = (load_part::<V>(gate, 0.0), load_part::<V>(up, 0.0));
                        store_part::<V>(out, gated_one::<V>(self.activation, x, up));
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn gated_one<V: Simd>(activation: Activation, x: V::F, up: V::F) -> V::F {
    // SAFETY: the caller's contract.
    unsafe {
        let exponent = match activation {
            Activation::Silu => V::sub(V::splat(0.0), x),
            // (1 + tanh u) / 2 = 1 / (1 + e^-2u), which keeps its digits for negative u.
            Activation::GeluTanh => {
                let root = (8.0 / std::f64::consts::PI).sqrt();
                let cubic = V::splat((-root * 0.044715) as f32);
                let inner = V::fma(V::mul(x, x), cubic, V::splat(-root as f32));
                V::mul(inner, x)
            }
        };
        let denominator = V::add(exp::<V>(exponent), V::splat(1.0));
        V::mul(V::div(x, denominator), up)
    }
}

/// Largest element of a row, NaN aside.
pub(super) struct Largest<'a>(pub &'a [f32], pub &'a mut f32);

impl Kernel for Largest<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let mut largest = [f32::NEG_INFINITY; MAX_LANES];
        let (row, n) = (self.0.as_ptr(), self.0.len());
        let mut at = 0;
        // SAFETY: vectors are within the row; `largest` is one.
        unsafe {
            let mut most = [V::splat(f32::NEG_INFINITY); 4];
            while at + 4 * V::LANES <= n {
                for (i, most) in most.iter_mut().enumerate() {
                    *most = V::max(V::load(row.add(at + i * V::LANES)), *most);
                }
                at += 4 * V::LANES;
            }
            while at + V::LANES <= n {
                most[0] = V::max(V::load(row.add(at)), most[0]);
                at += V::LANES;
            }
            let most = V::max(V::max(most[0], most[1]), V::max(most[2], most[3]));
            V::store(largest.as_mut_ptr(), most);
        }
        let larger = |a: f32, x: f32| if x > a { x } else { a };
        // In halves: one after the other takes as long as the vectors of a short row.
        let mut half = MAX_LANES / 2;
        while half > 0 {
            for i in 0..half {
                largest[i] = larger(largest[i], largest[half + i]);
            }
            half /= 2;
        }
        *self.1 = self.0[at..].iter().fold(largest[0], |a, &x| larger(a, x));
    }
}

/// Replaces a row by `e^(x - largest)` and gives the sum of that. What it computes depends on the
/// row alone, not on where it lies.
pub(super) struct Exponentials<'a> {
    pub row: &'a mut [f32],
    pub sum: &'a mut f32,
}

impl Kernel for Exponentials<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let mut largest = 0.0;
        // SAFETY: same instructions; whole vectors only where there are as many elements.
        unsafe {
            Largest(self.row, &mut largest).run::<V>();
            let largest = V::splat(largest);
            let mut sums = V::splat(0.0);
            for part in self.row.chunks_mut(V::LANES) {
                if part.len() == V::LANES {
                    let e = exp::<V>(V::sub(V::load(part.as_ptr()), largest));
                    V::store(part.as_mut_ptr(), e);
                    sums = V::add(sums, e);
                } else {
                    let x = load_part::<V>(part, f32::NEG_INFINITY);
                    let e = exp::<V>(V::sub(x, largest));
                    store_part::<V>(part, e);
                    sums = V::add(sums, e);
                }
            }
            *self.sum = V::sum(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::Isa;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919) % 2001) as f32 * 0.012 - 12.0)
            .collect()
    }

    #[test]
    fn gates_equal_their_definitions() {
        let (x, up) = (numbers(1003), numbers(2006)[1003..].to_vec());
        let mut out = vec![0.0; x.len()];
        let root = (2.0 / std::f64::consts::PI).sqrt();
        for &isa in Isa::available() {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                gated(isa, activation, &x, &up, &mut out);
                for i in 0..x.len() {
                    let (x, up) = (f64::from(x[i]), f64::from(up[i]));
                    let y = match activation {
                        Activation::Silu => x / (1.0 + (-x).exp()),
                        Activation::GeluTanh => {
                            let u = root * (x + 0.044715 * x * x * x);
                            x / (1.0 + (-2.0 * u).exp())
                        }
                    };
                    // The exponent, up to some 100, is itself rounded.
                    let tolerance = 2e-5 * (y * up).abs() + 1e-30;
                    assert!(
                        (f64::from(out[i]) - y * up).abs() <= tolerance,
                        "{isa:?} {x} {up}"
                    );
                }
            }
        }
        silu_mul(&[-1000.0, 1000.0], &[1.0, 1.0], &mut out[..2]);
        assert_eq!(out[..2], [0.0, 1000.0]);
    }

    #[test]
    fn softmax_sums_to_one_and_is_right() {
        for &isa in Isa::available() {
            for cols in [1, 7, 8, 33, 200] {
                let x = numbers(cols * 5);
                let mut out = vec![0.0; x.len()];
                softmax_with(isa, &x, cols, &mut out);
                for (x, out) in x.chunks(cols).zip(out.chunks(cols)) {
                    let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
                    for (&x, &y) in x.iter().zip(out) {
                        assert!((f64::from(y) - f64::from(x).exp() / sum).abs() < 1e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_passes_over_nan() {
        let mut x = vec![0.0; 100];
        (x[40], x[77], x[3]) = (2.0, 2.0, f32::NAN);
        assert_eq!(argmax(&x), 40);
        x[99] = 3.0;
        assert_eq!(argmax(&x), 99);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
        assert_eq!(argmax(&[f32::NAN]), 0);
        assert_eq!(argmax(&[]), 0);
    }
}
