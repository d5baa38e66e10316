//! Loops over whole vocabularies. Written so that they vectorise, and with nothing but correctly rounded
//! arithmetic, so that every platform gets the same bits.

const LANES: usize = 16;

/// `e^-x` for `x >= 0` within 2 units in the last place; 0 for NaN and where it is below 2^-125.
#[inline]
pub(super) fn exp_neg(x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first exact when multiplied by a small whole number.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let t = -x;
    let rounded = t * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = t - n * LN2.0 - n * LN2.1;
    // Taylor's series: |r| <= ln 2 / 2.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits());
    let power = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x <= 86.0 { p * power } else { 0.0 }
}

/// The largest value and its position, the lowest among equals; `None` when all are NaN or minus
/// infinity. Infinity counts as the largest number.
pub(super) fn largest(values: &[f32]) -> Option<(u32, f32)> {
    let mut best = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (best, &v) in best.iter_mut().zip(chunk) {
            *best = if v > *best { v } else { *best };
        }
    }
    let max = best
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |max, &v| max.max(v));
    if max == f32::NEG_INFINITY {
        return None;
    }
    let id = values.iter().position(|&v| v == max)?;
    Some((id as u32, max.min(f32::MAX)))
}

/// How far `value` is below `max`; infinity counts as the largest number, and NaN stays.
#[inline]
pub(super) fn below(max: f32, value: f32) -> f32 {
    max - if value > f32::MAX { f32::MAX } else { value }
}

/// The sum of `e^(value - max)` over all values.
pub(super) fn sum_exp(values: &[f32], max: f32) -> f64 {
    let mut total = 0.0;
    for block in values.chunks(1024) {
        let mut weights = [0.0f32; 1024];
        for (weight, &v) in weights.iter_mut().zip(block) {
            *weight = exp_neg(below(max, v));
        }
        total += sum_from(0.0, &weights);
    }
    total
}

/// The sum of the weights that are at least `floor`.
pub(super) fn sum_from(floor: f32, weights: &[f32]) -> f64 {
    let counted = |weight: f32| f64::from(if weight >= floor { weight } else { 0.0 });
    let mut sums = [0.0f64; 8];
    let (chunks, rest) = weights.as_chunks::<8>();
    for chunk in chunks {
        for (sum, &weight) in sums.iter_mut().zip(chunk) {
            *sum += counted(weight);
        }
    }
    sums.into_iter()
        .chain(rest.iter().map(|&weight| counted(weight)))
        .sum()
}

/// The `k` largest values with their positions, in no order, the lowest positions among equals. NaN and
/// minus infinity are left out.
pub(super) fn top_k(values: &[f32], k: usize, out: &mut Vec<(f32, u32)>) {
    out.clear();
    if k == 0 {
        return;
    }
    let room = k.saturating_mul(2).max(k.saturating_add(256));
    let mut floor = f32::NEG_INFINITY;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut look = |first: usize, values: &[f32]| {
        for (i, &v) in values.iter().enumerate() {
            if v > floor {
                out.push((v, (first + i) as u32));
            }
        }
        if out.len() >= room {
            // What comes later has higher positions, so that it has to be larger.
            floor = cut_to_k(out, k);
        }
        floor
    };
    let mut bound = f32::NEG_INFINITY;
    for (i, chunk) in chunks.iter().enumerate() {
        if chunk.iter().fold(false, |any, &v| any | (v > bound)) {
            bound = look(i * LANES, chunk);
        }
    }
    look(values.len() - rest.len(), rest);
    if out.len() > k {
        cut_to_k(out, k);
    }
}

/// Keeps the `k` largest; gives the least of them.
fn cut_to_k(values: &mut Vec<(f32, u32)>, k: usize) -> f32 {
    let (_, least, _) = values.select_nth_unstable_by(k - 1, larger_first);
    let least = least.0;
    values.truncate(k);
    least
}

/// The order of falling values and rising positions.
pub(super) fn larger_first(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    // Neither is NaN; minus zero is zero.
    let values = b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal);
    values.then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        for i in 0..860_000u32 {
            let x = i as f32 * 1e-4;
            let want = (-f64::from(x)).exp();
            let error = (f64::from(exp_neg(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "{x}: {error}");
        }
        for (x, want) in [
            (0.0, 1.0),
            (87.0, 0.0),
            (f32::INFINITY, 0.0),
            (f32::MAX, 0.0),
            (f32::NAN, 0.0),
        ] {
            assert_eq!(exp_neg(x), want, "{x}");
        }
    }

    #[test]
    fn the_largest_is_the_first_of_its_equals() {
        let mut values = vec![0.5; 100];
        assert_eq!(largest(&values), Some((0, 0.5)));
        values[37] = 2.0;
        values[98] = 2.0;
        values[0] = f32::NAN;
        assert_eq!(largest(&values), Some((37, 2.0)));
        values[99] = f32::INFINITY;
        assert_eq!(largest(&values), Some((99, f32::MAX)));
        assert_eq!(largest(&[f32::NAN; 40]), None);
        assert_eq!(largest(&[f32::NEG_INFINITY; 40]), None);
        assert_eq!(largest(&[]), None);
    }

    #[test]
    fn top_k_is_the_sorted_list_cut() {
        for (size, k) in [
            (0, 3),
            (5, 0),
            (5, 9),
            (1000, 1),
            (1003, 40),
            (5000, 700),
            (5000, 5000),
            (9, usize::MAX),
        ] {
            // Many equals, some no numbers; rising, so that the floor moves all the time.
            let values: Vec<f32> = (0..size)
                .map(|i| match i % 13 {
                    0 => f32::NAN,
                    1 => f32::NEG_INFINITY,
                    m => (i / 20) as f32 + (m % 4) as f32,
                })
                .collect();
            let mut got = Vec::new();
            top_k(&values, k, &mut got);
            got.sort_by(larger_first);
            let mut want: Vec<(f32, u32)> = values
                .iter()
                .copied()
                .zip(0..)
                .filter(|v| v.0 > f32::NEG_INFINITY)
                .collect();
            want.sort_by(larger_first);
            want.truncate(k);
            assert_eq!(got, want, "{k} of {size}");
        }
    }
}
