//! The one canonical quantized form, and every checkpoint format read as it: pure functions over
//! bytes, without a backend.
use crate::{AffineSpec, PackedMatrix, Result};
use std::ops::Range;

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

impl PackedMatrix<'_> {
    /// Checks every length against shape and format, with checked arithmetic.
    pub fn validate(&self) -> Result<()> { unimplemented!() }
}
/// Reads rows of a quantized matrix as canonical form into `out` (its buffers are reused).
pub fn canonical_rows(_m: &PackedMatrix<'_>, _rows: Range<usize>, _out: &mut CanonicalRows) -> Result<()> { unimplemented!() }
/// Values of rows of any matrix as f32: `scale * q + bias`, multiplied and added separately.
pub fn dequantize_rows(_m: &PackedMatrix<'_>, _rows: Range<usize>, _out: &mut [f32]) -> Result<()> { unimplemented!() }
/// Quantizes f32 rows of length `cols` to canonical form (min-max affine, as MLX does).
pub fn quantize_rows(_values: &[f32], _cols: usize, _spec: AffineSpec, _out: &mut CanonicalRows) -> Result<()> { unimplemented!() }
/// Packs codes (one a byte) into MLX's little-endian 32-bit words.
pub fn pack_codes(_codes: &[u8], _bits: u8, _out: &mut Vec<u32>) -> Result<()> { unimplemented!() }
