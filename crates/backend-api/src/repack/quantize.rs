use super::validate::check_spec;
use super::{CanonicalRows, bad};
use crate::{AffineSpec, Result};

/// The smallest scale, so that a constant group does not divide by zero.
const MIN_SCALE: f32 = 1e-7;

/// Quantizes `f32` rows of length `cols` to canonical form; `out`'s buffers are reused.
///
/// The algorithm is that of MLX's `quantize`: a group's codes span its smallest to its largest
/// value. The scale is then moved so that 0 has a whole code and the edge farther from 0 is exact;
/// it is negative when that edge is the upper one. The error of a value that is not clipped is at
/// most half a scale.
///
/// # Errors
/// [`crate::Error::Weight`] for a form that does not exist, rows that are no whole number of groups,
/// values that are not finite or span more than `f32` can hold.
pub fn quantize_rows(
    values: &[f32],
    cols: usize,
    spec: AffineSpec,
    out: &mut CanonicalRows,
) -> Result<()> {
    check_spec("values", spec)?;
    let group = spec.group_size;
    if cols == 0 || !cols.is_multiple_of(group) || !values.len().is_multiple_of(cols) {
        return Err(bad(
            "values",
            format!(
                "{} values in rows of {cols}, expected whole rows of groups of {group}",
                values.len()
            ),
        ));
    }
    out.resize(values.len(), group);
    let codes = out.codes.chunks_exact_mut(group);
    let affine = out.scales.iter_mut().zip(&mut out.biases);
    for ((values, codes), (scale, bias)) in values.chunks_exact(group).zip(codes).zip(affine) {
        (*scale, *bias) = quantize_group(values, spec.bits, codes).ok_or_else(|| {
            bad(
                "values",
                "a group has values that are not finite or are too far apart".into(),
            )
        })?;
    }
    Ok(())
}

fn quantize_group(values: &[f32], bits: u8, codes: &mut [u8]) -> Option<(f32, f32)> {
    let bins = ((1u32 << bits) - 1) as f32;
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let finite = values.iter().fold(true, |all, v| all & v.is_finite());
    if !finite || !(high - low).is_finite() {
        return None;
    }
    let step = ((high - low) / bins).max(MIN_SCALE);
    let (edge, step) = if low.abs() > high.abs() {
        (low, step)
    } else {
        (high, -step)
    };
    let zero = (edge / step).round_ties_even();
    let (scale, bias) = if zero == 0.0 {
        (step, 0.0)
    } else {
        (edge / zero, edge)
    };
    // Adding 1.5 · 2^23 leaves the nearest integer (ties to even) in the lowest bits: the baseline
    // of x86-64 has no instruction that rounds.
    const ROUND: f32 = 12_582_912.0;
    for (code, &v) in codes.iter_mut().zip(values) {
        let at = ((v - bias) / scale).clamp(0.0, bins);
        *code = (at + ROUND).to_bits() as u8;
    }
    Some((scale, bias))
}
