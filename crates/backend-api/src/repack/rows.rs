use std::ops::Range;

use super::{bad, codes, floats, ggml};
use crate::{Error, PackedLayout, PackedMatrix, Result};

/// Canonical rows: codes one a byte, scales and biases one a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CanonicalRows {
    /// `[rows, in]`
    pub codes: Vec<u8>,
    /// `[rows, in / group_size]`
    pub scales: Vec<f32>,
    /// `[rows, in / group_size]`
    pub biases: Vec<f32>,
}

impl CanonicalRows {
    /// Gives the buffers the lengths of `elements` in groups of `group_size`; what they hold is
    /// unspecified.
    pub(super) fn resize(&mut self, elements: usize, group_size: usize) {
        let groups = elements / group_size;
        self.codes.resize(elements, 0);
        self.scales.resize(groups, 0.0);
        self.biases.resize(groups, 0.0);
    }

    /// The values as `f32`, by [`dequantize_value`]; `zero_point` is that of the matrix the rows
    /// come from ([`PackedMatrix::zero_point`]), 0 for those of [`super::quantize_rows`].
    ///
    /// # Errors
    /// [`Error::Bytes`] when `out` has another length than the codes; [`Error::Weight`] when the
    /// number of scales or biases is not that of the groups.
    pub fn dequantize(&self, group_size: usize, zero_point: u8, out: &mut [f32]) -> Result<()> {
        if out.len() != self.codes.len() {
            return Err(Error::Bytes {
                op: "dequantize",
                expected: self.codes.len().saturating_mul(4),
                got: out.len().saturating_mul(4),
            });
        }
        let groups = self.codes.len().checked_div(group_size).unwrap_or(0);
        if groups.checked_mul(group_size) != Some(self.codes.len())
            || self.scales.len() != groups
            || self.biases.len() != groups
        {
            return Err(bad(
                "canonical rows",
                format!(
                    "{} codes in groups of {group_size} with {} scales and {} biases",
                    self.codes.len(),
                    self.scales.len(),
                    self.biases.len()
                ),
            ));
        }
        let rows = out.chunks_exact_mut(group_size.max(1));
        let codes = self.codes.chunks_exact(group_size.max(1));
        for (((out, codes), &scale), &bias) in rows.zip(codes).zip(&self.scales).zip(&self.biases) {
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = dequantize_value(code, scale, bias, zero_point);
            }
        }
        Ok(())
    }
}

/// The value of one code, as every format's own tools compute it in `f32`.
///
/// Without a `zero_point` ([`PackedMatrix::zero_point`] is 0) it is `scale · code + bias`, product
/// and sum each rounded; with one, the same as `scale · (code - zero_point)`, so that a zero has the
/// sign of the reference.
#[inline(always)]
pub fn dequantize_value(code: u8, scale: f32, bias: f32, zero_point: u8) -> f32 {
    if zero_point == 0 {
        scale * f32::from(code) + bias
    } else {
        scale * (f32::from(code) - f32::from(zero_point))
    }
}

/// Reads rows of a quantized matrix as canonical form into `out`, whose buffers are reused and hold
/// just these rows afterwards.
///
/// # Errors
/// [`Error::Weight`] for a malformed or dense matrix, [`Error::OutOfRange`] for rows that do not
/// exist.
pub fn canonical_rows(
    m: &PackedMatrix<'_>,
    rows: Range<usize>,
    out: &mut CanonicalRows,
) -> Result<()> {
    check_rows("canonical_rows", m, &rows)?;
    read_rows(m, rows, out)
}

/// Values of rows of any matrix as `f32`, `[rows, in]`: bit-exact with the formats' own tools, see
/// the module's documentation.
///
/// # Errors
/// [`Error::Weight`] for a malformed matrix, [`Error::OutOfRange`] for rows that do not exist,
/// [`Error::Bytes`] when `out` has another length.
pub fn dequantize_rows(m: &PackedMatrix<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
    let op = "dequantize_rows";
    check_rows(op, m, &rows)?;
    let cols = m.shape[1];
    if out.len() != rows.len() * cols {
        return Err(Error::Bytes {
            op,
            expected: rows.len().saturating_mul(cols).saturating_mul(4),
            got: out.len().saturating_mul(4),
        });
    }
    if let PackedLayout::Dense { dtype, bytes } = m.layout {
        let start = rows.start * cols * dtype.size();
        floats::to_f32s(dtype, &bytes[start..], out);
        return Ok(());
    }
    let Some(spec) = m.spec() else {
        return Err(not_quantized(m));
    };
    let mut row = CanonicalRows::default();
    for (i, out) in rows.zip(out.chunks_exact_mut(cols)) {
        read_rows(m, i..i + 1, &mut row)?;
        row.dequantize(spec.group_size, m.zero_point(), out)?;
    }
    Ok(())
}

/// As [`canonical_rows`], for a matrix and rows that were checked.
fn read_rows(m: &PackedMatrix<'_>, rows: Range<usize>, out: &mut CanonicalRows) -> Result<()> {
    let cols = m.shape[1];
    match m.layout {
        PackedLayout::Dense { .. } => return Err(not_quantized(m)),
        PackedLayout::Affine {
            codes,
            scales,
            biases,
            scale_dtype,
            bits,
            group_size,
        } => {
            out.resize(rows.len() * cols, group_size);
            let row_bytes = cols * usize::from(bits) / 8;
            codes::unpack_into(&codes[rows.start * row_bytes..], bits, &mut out.codes);
            let start = rows.start * (cols / group_size) * scale_dtype.size();
            floats::to_f32s(scale_dtype, &scales[start..], &mut out.scales);
            floats::to_f32s(scale_dtype, &biases[start..], &mut out.biases);
        }
        PackedLayout::Ggml { kind, blocks } => {
            out.resize(rows.len() * cols, kind.spec().group_size);
            let row_bytes = cols / kind.block_len() * kind.block_bytes();
            ggml::read_blocks(kind, &blocks[rows.start * row_bytes..], out);
        }
    }
    Ok(())
}

fn check_rows(op: &'static str, m: &PackedMatrix<'_>, rows: &Range<usize>) -> Result<()> {
    m.validate()?;
    let limit = m.shape[0];
    if rows.end > limit || rows.start > rows.end {
        return Err(Error::OutOfRange {
            op,
            index: rows.start.max(rows.end),
            limit,
        });
    }
    Ok(())
}

fn not_quantized(m: &PackedMatrix<'_>) -> Error {
    bad(
        m.name,
        "dense elements have no canonical form; quantize them with `quantize_rows`".into(),
    )
}
