use std::{fmt::Debug, ops::Range};

use crate::{DType, Result, Tensor, defaults};

/// What gates a feed-forward part's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// [`Tensor::silu_mul`].
    Silu,
    /// [`Tensor::gelu_tanh_mul`].
    GeluTanh,
}

impl Gate {
    /// The gated values.
    ///
    /// # Errors
    /// As [`Tensor::silu_mul`].
    pub fn apply<T: Tensor>(self, gate: &T, up: &T) -> Result<T> {
        match self {
            Gate::Silu => gate.silu_mul(up),
            Gate::GeluTanh => gate.gelu_tanh_mul(up),
        }
    }
}

/// What is done before and after a product, in this order; see [`WeightMatrix::matmul_t_with`].
#[derive(Debug)]
pub struct Around<'a, T> {
    /// RMSNorm of the input by a weight `[in]` and epsilon.
    pub norm: Option<(&'a T, f32)>,
    /// `[out]`, added to every row.
    pub bias: Option<&'a T>,
    /// The first half of a row's outputs are gates of the second half.
    pub gate: Option<Gate>,
    /// RMSNorm of what has been computed so far, by a weight as long as its rows and epsilon.
    pub norm_after: Option<(&'a T, f32)>,
    /// Added to the result, of its shape.
    pub add: Option<&'a T>,
}

impl<T> Clone for Around<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Around<'_, T> {}

impl<T> Default for Around<'_, T> {
    fn default() -> Self {
        Around {
            norm: None,
            bias: None,
            gate: None,
            norm_after: None,
            add: None,
        }
    }
}

/// A weight matrix `[out, in]` on a device, dense or quantized: what linear layers and embeddings
/// are made of.
pub trait WeightMatrix: Clone + Debug + Send + 'static {
    /// The backend's tensors.
    type Tensor: Tensor;

    /// `[out, in]`: the rows give outputs.
    fn shape(&self) -> [usize; 2];

    /// Bytes it takes on the device.
    fn size_in_bytes(&self) -> usize;

    /// `x · Wᵀ`: `x [.., in]` gives `[.., out]` in the element type of `x`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when the last axis is not `in`; [`crate::Error::DType`] unless
    /// floating-point.
    fn matmul_t(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// [`WeightMatrix::matmul_t`] with what comes before and after it, as one operation where the backend
    /// has one. Gives `[.., out]`, or `[.., out / 2]` where gated.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t`], [`Tensor::rms_norm`] and [`Tensor::binary`].
    fn matmul_t_with(
        &self,
        x: &Self::Tensor,
        around: &Around<'_, Self::Tensor>,
    ) -> Result<Self::Tensor> {
        defaults::matmul_t_with(self, x, around)
    }

    /// [`Tensor::argmax`] of [`WeightMatrix::matmul_t`], where the outputs themselves are not wanted: `x
    /// [rows, in]` gives `U32 [rows]`. A backend may leave out outputs that cannot be the largest.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t`] and [`Tensor::argmax`].
    fn argmax_t(&self, x: &Self::Tensor) -> Result<Self::Tensor> {
        self.matmul_t(x)?.argmax()
    }

    /// The rows of some matrices of one `in` under each other as one matrix, where the backend
    /// multiplies that faster than the parts and can have them so; `None` where not.
    ///
    /// # Errors
    /// Only what the backend reports.
    fn join(_matrices: &[&Self]) -> Result<Option<Self>> {
        Ok(None)
    }

    /// Rows by number, dequantized: `ids` a `U32` vector `[n]` gives `[n, in]` (an embedding).
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] for a row that does not exist, [`crate::Error::DType`],
    /// [`crate::Error::Rank`].
    fn take_rows(&self, ids: &Self::Tensor, dtype: DType) -> Result<Self::Tensor>;

    /// The whole matrix `[out, in]`, exactly as [`crate::repack::dequantize_rows`] gives it in
    /// `F32`.
    ///
    /// # Errors
    /// Only what the backend reports.
    fn dequantize(&self, dtype: DType) -> Result<Self::Tensor>;
}

/// A weight matrix's bytes as a checkpoint holds them.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatrix<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The bytes.
    pub layout: PackedLayout<'a>,
}

/// The formats a checkpoint may hold a matrix in. Nothing is assumed about alignment.
#[derive(Clone, Copy, Debug)]
pub enum PackedLayout<'a> {
    /// `F32`, `F16` or `BF16` elements, row-major.
    Dense {
        /// The element type.
        dtype: DType,
        /// `out · in` elements.
        bytes: &'a [u8],
    },
    /// MLX's affine groups: `w = scale · q + bias` for every `group_size` elements of a row.
    Affine {
        /// Codes packed into little-endian 32-bit words, lowest bits first; a row is
        /// `in · bits / 32` words. Codes of 3, 5 and 6 bits run over word borders.
        codes: &'a [u8],
        /// One a group, `[out, in / group_size]`.
        scales: &'a [u8],
        /// One a group, `[out, in / group_size]`.
        biases: &'a [u8],
        /// Element type of scales and biases.
        scale_dtype: DType,
        /// 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// 16, 32, 64 or 128.
        group_size: usize,
    },
    /// GGML's blocks, row-major.
    Ggml {
        /// The block format.
        kind: GgmlKind,
        /// `out · in / block` blocks.
        blocks: &'a [u8],
    },
}

/// The one canonical quantized form: `bits` wide codes in groups of `group_size` along a row, each
/// group with an `f32` scale and bias. Every quantized format above is read as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffineSpec {
    /// Width of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Elements that share a scale: 16, 32, 64 or 128.
    pub group_size: usize,
}

/// GGML's quantized block formats (ggml-common.h of llama.cpp).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlKind {
    /// 32 4-bit codes, f16 scale.
    Q4_0,
    /// 32 4-bit codes, f16 scale and minimum.
    Q4_1,
    /// 32 5-bit codes, f16 scale.
    Q5_0,
    /// 32 5-bit codes, f16 scale and minimum.
    Q5_1,
    /// 32 8-bit codes, f16 scale.
    Q8_0,
    /// 256 2-bit codes, 4-bit scales and minima of 16.
    Q2K,
    /// 256 3-bit codes, 6-bit scales of 16.
    Q3K,
    /// 256 4-bit codes, 6-bit scales and minima of 32.
    Q4K,
    /// 256 5-bit codes, 6-bit scales and minima of 32.
    Q5K,
    /// 256 6-bit codes, 8-bit scales of 16.
    Q6K,
}

impl GgmlKind {
    /// Every kind, for tests and tables.
    pub const ALL: [GgmlKind; 10] = [
        GgmlKind::Q4_0,
        GgmlKind::Q4_1,
        GgmlKind::Q5_0,
        GgmlKind::Q5_1,
        GgmlKind::Q8_0,
        GgmlKind::Q2K,
        GgmlKind::Q3K,
        GgmlKind::Q4K,
        GgmlKind::Q5K,
        GgmlKind::Q6K,
    ];

    /// Elements of one block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            _ => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The canonical form its values have exactly.
    pub const fn spec(self) -> AffineSpec {
        let (bits, group_size) = match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => (4, 32),
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => (5, 32),
            Self::Q8_0 => (8, 32),
            Self::Q2K => (2, 16),
            Self::Q3K => (3, 16),
            Self::Q6K => (6, 16),
        };
        AffineSpec { bits, group_size }
    }

    /// The code that stands for zero in the symmetric kinds, 0 in those with a minimum; see
    /// [`crate::repack::dequantize_value`].
    pub const fn zero_point(self) -> u8 {
        match self {
            Self::Q3K => 4,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6K => 32,
            Self::Q8_0 => 128,
            Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q4K | Self::Q5K => 0,
        }
    }

    /// The name in GGUF tools: `Q4_0`, `Q4_K`, …
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }
}

impl<'a> PackedMatrix<'a> {
    /// The bytes of some rows; those of an affine matrix are its codes', scales' and biases'.
    pub fn bytes_of_rows(&self, rows: Range<usize>) -> [&'a [u8]; 3] {
        let of_all = match self.layout {
            PackedLayout::Dense { bytes, .. } => [bytes, &[], &[]],
            PackedLayout::Ggml { blocks, .. } => [blocks, &[], &[]],
            PackedLayout::Affine {
                codes,
                scales,
                biases,
                ..
            } => [codes, scales, biases],
        };
        of_all.map(|bytes| {
            let row = bytes.len() / self.shape[0].max(1);
            bytes
                .get(rows.start * row..rows.end * row)
                .unwrap_or_default()
        })
    }

    /// The canonical quantized form, or `None` for dense elements.
    pub fn spec(&self) -> Option<AffineSpec> {
        match self.layout {
            PackedLayout::Dense { .. } => None,
            PackedLayout::Affine {
                bits, group_size, ..
            } => Some(AffineSpec { bits, group_size }),
            PackedLayout::Ggml { kind, .. } => Some(kind.spec()),
        }
    }

    /// The code that stands for zero where the format is symmetric, else 0; see
    /// [`crate::repack::dequantize_value`].
    pub fn zero_point(&self) -> u8 {
        match self.layout {
            PackedLayout::Ggml { kind, .. } => kind.zero_point(),
            PackedLayout::Dense { .. } | PackedLayout::Affine { .. } => 0,
        }
    }
}
