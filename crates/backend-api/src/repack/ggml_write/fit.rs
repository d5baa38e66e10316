//! Weighted least-squares fits of one group of a K kind.
//!
//! A fit tries several roundings of the group, each by multiplying with another step, and keeps the
//! one whose best scale leaves the least weighted squared error. Eight roundings are tried at once,
//! one in each lane: so nothing is summed across lanes, and the loops vectorize.

/// How many roundings one pass over a group tries.
pub(super) const LANES: usize = 8;

/// Groups that span less are constant: the smallest `f16` is 2^-24, and half of it rounds to zero.
const NOTHING: f32 = 2.980_232_2e-8;

/// Codes whose variance is this part of their mean square are the same up to rounding errors.
const ALIKE: f32 = 1e-5;

/// To the nearest integer, halves to even; for at most 2^22 in magnitude.
#[inline(always)]
pub(super) fn nearest(v: f32) -> f32 {
    // The baseline of x86-64 has no instruction that rounds; 1.5 · 2^23 leaves no bits for a fraction.
    const ROUND: f32 = 12_582_912.0;
    v + ROUND - ROUND
}

/// Sums over a group for each lane's rounding `q`.
#[derive(Default)]
struct Sums {
    q: [f32; LANES],
    qq: [f32; LANES],
    qx: [f32; LANES],
}

impl Sums {
    /// Of `q = nearest(step · x)` within `low ..= high`.
    #[inline(always)]
    fn of<const N: usize>(
        x: &[f32; N],
        weights: &[f32; N],
        steps: &[f32; LANES],
        low: f32,
        high: f32,
    ) -> Self {
        let mut sums = Self::default();
        for (&x, &w) in x.iter().zip(weights) {
            for (lane, &step) in steps.iter().enumerate() {
                let q = nearest(x * step).clamp(low, high);
                sums.q[lane] += w * q;
                sums.qq[lane] += w * q * q;
                sums.qx[lane] += w * q * x;
            }
        }
        sums
    }
}

/// Scale and minimum, neither negative, of the best fit `x ≈ scale · q - minimum` with codes
/// `0 ..= top`; `steps` are codes per the group's span.
pub(super) fn affine<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    top: f32,
    steps: &[[f32; LANES]],
) -> (f32, f32) {
    let low = x.iter().fold(0.0f32, |low, &v| low.min(v));
    let high = x.iter().fold(f32::NEG_INFINITY, |high, &v| high.max(v));
    let span = high - low;
    if span < NOTHING {
        return (0.0, -low);
    }
    // Within 0 ..= 1: no sum over- or underflows, and a large offset costs no precision.
    let inverse = 1.0 / span;
    let unit = x.map(|v| (v - low) * inverse);
    let largest_bias = -low * inverse;
    let (mut w, mut wx) = (0.0, 0.0);
    for (&x, &weight) in unit.iter().zip(weights) {
        w += weight;
        wx += weight * x;
    }
    let mut best = (f32::INFINITY, 1.0 / top, 0.0);
    for steps in steps {
        let sums = Sums::of(&unit, weights, steps, 0.0, top);
        for lane in 0..LANES {
            let (q, qq, qx) = (sums.q[lane], sums.qq[lane], sums.qx[lane]);
            let variance = w * qq - q * q;
            let mut scale = (w * qx - q * wx) / variance;
            let mut bias = (wx - scale * q) / w;
            // The format has no positive bias; and where all codes are the same, any bias would do.
            if bias > largest_bias || variance <= ALIKE * w * qq {
                bias = largest_bias;
                scale = (qx - bias * q) / qq;
            }
            // Short of the sum of `x` squared, which all lanes share.
            let error = scale * (scale * qq + 2.0 * (bias * q - qx)) + bias * (bias * w - 2.0 * wx);
            if scale > 0.0 && error < best.0 {
                best = (error, scale, bias);
            }
        }
    }
    let (_, scale, bias) = best;
    (scale * span, (-low - bias * span).max(0.0))
}

/// The scale, which may be negative, of the best fit `x ≈ scale · q` with codes `-zero ..= zero - 1`;
/// `steps` are codes per the value farthest from zero.
pub(super) fn symmetric<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    zero: f32,
    steps: &[[f32; LANES]],
) -> f32 {
    let farthest = x
        .iter()
        .fold(0.0f32, |far, &v| if v.abs() > far.abs() { v } else { far });
    if farthest.abs() < NOTHING {
        return 0.0;
    }
    let inverse = 1.0 / farthest;
    let unit = x.map(|v| v * inverse);
    let mut best = (0.0, 0.0);
    for steps in steps {
        let sums = Sums::of(&unit, weights, steps, -zero, zero - 1.0);
        for lane in 0..LANES {
            let scale = sums.qx[lane] / sums.qq[lane];
            let explained = scale * sums.qx[lane];
            if explained > best.0 {
                best = (explained, scale);
            }
        }
    }
    best.1 * farthest
}
