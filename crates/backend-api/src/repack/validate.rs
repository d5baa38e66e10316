use super::bad;
use crate::{AffineSpec, PackedLayout, PackedMatrix, Result};

impl AffineSpec {
    /// Whether this is a width and a group size that the canonical form has.
    pub const fn is_valid(self) -> bool {
        matches!(self.bits, 2 | 3 | 4 | 5 | 6 | 8) && matches!(self.group_size, 16 | 32 | 64 | 128)
    }
}

impl PackedMatrix<'_> {
    /// Checks every length against shape and format, with checked arithmetic: afterwards all rows
    /// can be read.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] with the figures.
    pub fn validate(&self) -> Result<()> {
        let [rows, cols] = self.shape;
        if rows == 0 || cols == 0 {
            return Err(bad(
                self.name,
                format!("the shape [{rows}, {cols}] has no elements"),
            ));
        }
        self.product("elements", rows, cols)?;
        match self.layout {
            PackedLayout::Dense { dtype, bytes } => {
                if !dtype.is_float() {
                    return Err(bad(
                        self.name,
                        format!("elements are {dtype}, expected f32, f16 or bf16"),
                    ));
                }
                let row = self.product("bytes of a row", cols, dtype.size())?;
                self.expect_len(&format!("{dtype} elements"), rows, row, bytes)
            }
            PackedLayout::Ggml { kind, blocks } => {
                self.expect_multiple(cols, kind.block_len(), kind.name())?;
                let row = self.product(
                    "bytes of a row",
                    cols / kind.block_len(),
                    kind.block_bytes(),
                )?;
                self.expect_len(&format!("{} blocks", kind.name()), rows, row, blocks)
            }
            PackedLayout::Affine {
                codes,
                scales,
                biases,
                scale_dtype,
                bits,
                group_size,
            } => {
                check_spec(self.name, AffineSpec { bits, group_size })?;
                if !scale_dtype.is_float() {
                    return Err(bad(
                        self.name,
                        format!("scales are {scale_dtype}, expected f32, f16 or bf16"),
                    ));
                }
                self.expect_multiple(cols, group_size, "a group")?;
                let row_bits = self.product("bits of a row", cols, usize::from(bits))?;
                if !row_bits.is_multiple_of(32) {
                    return Err(bad(
                        self.name,
                        format!("{cols} codes of {bits} bits are no whole number of 32-bit words"),
                    ));
                }
                self.expect_len(&format!("{bits}-bit codes"), rows, row_bits / 8, codes)?;
                let row = self.product(
                    "bytes of a row of scales",
                    cols / group_size,
                    scale_dtype.size(),
                )?;
                self.expect_len(&format!("{scale_dtype} scales"), rows, row, scales)?;
                self.expect_len(&format!("{scale_dtype} biases"), rows, row, biases)
            }
        }
    }

    fn product(&self, what: &str, a: usize, b: usize) -> Result<usize> {
        a.checked_mul(b).ok_or_else(|| {
            let [rows, cols] = self.shape;
            bad(
                self.name,
                format!("the shape [{rows}, {cols}] is impossible: too many {what}"),
            )
        })
    }

    fn expect_multiple(&self, cols: usize, of: usize, what: &str) -> Result<()> {
        if cols.is_multiple_of(of) {
            return Ok(());
        }
        Err(bad(
            self.name,
            format!("rows of {cols} elements are no multiple of {of}, the length of {what}"),
        ))
    }

    fn expect_len(&self, what: &str, rows: usize, row: usize, bytes: &[u8]) -> Result<()> {
        let expected = self.product("bytes", rows, row)?;
        if bytes.len() == expected {
            return Ok(());
        }
        let [rows, cols] = self.shape;
        Err(bad(
            self.name,
            format!(
                "expected {expected} bytes of {what} for the shape [{rows}, {cols}], got {}",
                bytes.len()
            ),
        ))
    }
}

/// Refuses widths and group sizes that the canonical form does not have.
pub(super) fn check_spec(name: &str, spec: AffineSpec) -> Result<()> {
    check_bits(name, spec.bits)?;
    if spec.is_valid() {
        return Ok(());
    }
    Err(bad(
        name,
        format!(
            "groups of {} elements, expected 16, 32, 64 or 128",
            spec.group_size
        ),
    ))
}

/// Refuses widths that the canonical form does not have.
pub(super) fn check_bits(name: &str, bits: u8) -> Result<()> {
    if matches!(bits, 2 | 3 | 4 | 5 | 6 | 8) {
        return Ok(());
    }
    Err(bad(
        name,
        format!("codes of {bits} bits, expected 2, 3, 4, 5, 6 or 8"),
    ))
}
