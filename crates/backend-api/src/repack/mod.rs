//! The one canonical quantized form, and every checkpoint format read as it: pure functions over
//! bytes, without a backend.
//!
//! # Exactness
//! [`dequantize_rows`] gives bit for bit what the formats' own tools give in `f32`: gguf-py for
//! GGML's blocks, MLX (with `f32` scales) for affine groups. The rule is [`dequantize_value`].
//!
//! A backend that keeps codes, `f32` scales and `f32` biases may compute `scale · q + bias` with or
//! without a fused multiply-add: for every GGML kind and for MLX files with `f16` or `bf16` scales
//! the product fits the 24 bits of an `f32` (11 bits of the half, at most 7 of a block's scale and 6
//! of a code, or 11 and 8), so both equal [`dequantize_value`] up to the sign of a zero. Only MLX
//! files with `f32` scales tell them apart: there product and sum are rounded separately.

mod codes;
mod floats;
mod ggml;
mod ggml_write;
mod quantize;
mod rows;
mod validate;

pub use codes::{pack_codes, unpack_codes};
pub use ggml::{KScales, k_scales};
pub use ggml_write::quantize_ggml;
pub use quantize::quantize_rows;
pub use rows::{CanonicalRows, canonical_rows, dequantize_rows, dequantize_value};

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use crate::Error;

/// [`Error::Weight`] with a reason.
fn bad(name: &str, reason: String) -> Error {
    Error::Weight {
        name: name.into(),
        reason,
    }
}
