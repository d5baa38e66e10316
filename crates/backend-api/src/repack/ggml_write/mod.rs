//! `f32` rows written as GGML's blocks (ggml-common.h of llama.cpp).

mod fit;
mod k;
mod simple;

#[cfg(test)]
mod tests;

use half::f16;

use super::bad;
use crate::{GgmlKind, Result};

/// No kind reaches this: the largest `f16`, a scale of 128 and a code of 32 make less. Below it, no
/// sum of squares overflows.
const BEYOND_EVERY_KIND: f32 = 268_435_456.0;

/// Quantizes rows of length `cols` to `kind`'s blocks, appended to `out`.
///
/// The kinds of 32 elements are bit for bit those of llama.cpp's `quantize_row_*_ref` and of gguf-py.
/// The K kinds are fitted as llama.cpp does without an importance matrix, though not by the same
/// steps: for every group a weighted least-squares fit of scale and minimum to several candidate
/// roundings, then scales quantized against the block's, then codes chosen anew. Larger values weigh
/// more, since they matter more to a product.
///
/// Values too small for a block's `f16` scale become zero.
///
/// # Errors
/// [`crate::Error::Weight`] for rows that are no whole number of blocks, values that are not finite,
/// or so large that `f16` cannot hold a block's scale. `out` is then as it was.
pub fn quantize_ggml(values: &[f32], cols: usize, kind: GgmlKind, out: &mut Vec<u8>) -> Result<()> {
    let len = kind.block_len();
    if cols == 0 || !cols.is_multiple_of(len) || !values.len().is_multiple_of(cols) {
        return Err(bad(
            "values",
            format!(
                "{} values in rows of {cols}, expected whole rows of {} blocks of {len}; choose a \
                 kind whose blocks divide the rows or keep them dense",
                values.len(),
                kind.name()
            ),
        ));
    }
    let start = out.len();
    out.reserve(values.len() / len * kind.block_bytes());
    let written = match kind {
        GgmlKind::Q4_0 => each(values, out, simple::q4_0),
        GgmlKind::Q4_1 => each(values, out, simple::q4_1),
        GgmlKind::Q5_0 => each(values, out, simple::q5_0),
        GgmlKind::Q5_1 => each(values, out, simple::q5_1),
        GgmlKind::Q8_0 => each(values, out, simple::q8_0),
        GgmlKind::Q2K => each(values, out, k::q2_k),
        GgmlKind::Q3K => each(values, out, k::q3_k),
        GgmlKind::Q4K => each(values, out, k::q4_k),
        GgmlKind::Q5K => each(values, out, k::q5_k),
        GgmlKind::Q6K => each(values, out, k::q6_k),
    };
    written.map_err(|block| {
        out.truncate(start);
        refused(values, block * len, cols, kind)
    })
}

/// Appends a block for every `N` values; the error is the number of the block that has none.
#[inline(always)]
fn each<const N: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut Vec<u8>,
    write: impl Fn(&[f32; N]) -> Option<[u8; BYTES]>,
) -> std::result::Result<(), usize> {
    let (blocks, _) = values.as_chunks::<N>();
    for (i, block) in blocks.iter().enumerate() {
        // False for NaN as well.
        let held = block
            .iter()
            .fold(true, |held, v| held & (v.abs() < BEYOND_EVERY_KIND));
        let bytes = if held { write(block) } else { None };
        out.extend_from_slice(&bytes.ok_or(i)?);
    }
    Ok(())
}

/// Why the block at `start` could not be written.
fn refused(values: &[f32], start: usize, cols: usize, kind: GgmlKind) -> crate::Error {
    let block = values.iter().skip(start).take(kind.block_len());
    if let Some((i, v)) = block.clone().enumerate().find(|(_, v)| !v.is_finite()) {
        let (row, col) = ((start + i) / cols, (start + i) % cols);
        return bad(
            "values",
            format!("{v} at row {row}, column {col}: only finite values can be quantized"),
        );
    }
    let largest = block.fold(0.0f32, |largest, v| largest.max(v.abs()));
    let instead = if kind != GgmlKind::Q8_0 && largest / 127.0 < f16::MAX.to_f32() {
        "quantize to Q8_0 or keep them as bf16 or f32"
    } else {
        "keep them as bf16 or f32"
    };
    bad(
        "values",
        format!(
            "values up to {largest} in row {} need a {} scale that f16 cannot hold; {instead}",
            start / cols,
            kind.name()
        ),
    )
}

/// `v` as `f16`, unless it is too large.
fn half(v: f32) -> Option<f16> {
    Some(f16::from_f32(v)).filter(|h| h.is_finite())
}

/// Codes of the first half in the lower nibbles, of the second in the upper; only four bits of each
/// count.
#[inline(always)]
fn nibbles(codes: &[u8], packed: &mut [u8]) {
    let (low, high) = codes.split_at(packed.len());
    for ((byte, low), high) in packed.iter_mut().zip(low).zip(high) {
        *byte = low & 15 | high << 4;
    }
}
