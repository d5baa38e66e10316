use std::fmt::Debug;

use crate::{
    AttentionMask, BinaryOp, DType, Decode, Error, KvSpec, QuantizedKv, ReduceOp, Result,
    RopeAngles, Shape, UnaryOp, defaults,
};

/// An array on a device: about twenty required primitives, and fused operations with defaults.
///
/// Methods never change a tensor in place, but for [`Tensor::write_slice`], which consumes it.
/// Arguments are checked by every backend in the same way and refused with the same errors; see the
/// conformance suite.
///
/// Arithmetic is in the tensor's own element type unless a method says otherwise; the fused
/// operations that sum (norms, softmax, attention) sum in `f32`.
// `from_bytes_like` takes the device from `self`.
#[allow(clippy::wrong_self_convention)]
pub trait Tensor: Clone + Debug + Send + 'static {
    /// The axes' lengths.
    fn shape(&self) -> Shape;

    /// The element type.
    fn dtype(&self) -> DType;

    /// The same values in another element type (floats to integers truncate).
    ///
    /// # Errors
    /// Only what the backend's library reports.
    fn cast(&self, dtype: DType) -> Result<Self>;

    /// Row-major little-endian bytes: waits for the device. **The only synchronisation point.**
    ///
    /// # Errors
    /// Whatever pending operations fail with.
    fn to_bytes(&self) -> Result<Vec<u8>>;

    /// A new tensor on the same device from row-major little-endian bytes (copied).
    ///
    /// # Errors
    /// [`Error::Bytes`] when the length is not what shape and type need.
    fn from_bytes_like(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self>;

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements differs.
    fn reshape(&self, shape: impl Into<Shape>) -> Result<Self>;

    /// Two axes exchanged.
    ///
    /// # Errors
    /// [`Error::Axis`] when either does not exist.
    fn swap_axes(&self, a: usize, b: usize) -> Result<Self>;

    /// Stretches axes of length 1; missing axes are added in front.
    ///
    /// # Errors
    /// [`Error::Shape`] when an axis of another length would have to change.
    fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self>;

    /// Joins tensors along an axis.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an empty list, [`Error::Axis`], [`Error::Shape`] when other axes
    /// differ, [`Error::DType`] when element types differ.
    fn concat(tensors: &[&Self], axis: usize) -> Result<Self>;

    /// The elements `start .. start + len` of an axis.
    ///
    /// # Errors
    /// [`Error::Axis`], [`Error::OutOfRange`] when the range ends beyond the axis.
    fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self>;

    /// Writes `src` over the elements `start ..` of an axis, in place where no other handle needs
    /// the old contents. Clones and views of `self` taken earlier may or may not see the change:
    /// drop them first.
    ///
    /// # Errors
    /// [`Error::Axis`], [`Error::OutOfRange`], [`Error::Shape`], [`Error::DType`].
    fn write_slice(self, axis: usize, start: usize, src: &Self) -> Result<Self>;

    /// An element-wise function.
    ///
    /// # Errors
    /// [`Error::DType`] unless floating-point.
    fn unary(&self, op: UnaryOp) -> Result<Self>;

    /// An element-wise function of two tensors, with broadcasting.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not broadcast, [`Error::DType`] when the element types
    /// differ or are integers.
    fn binary(&self, op: BinaryOp, rhs: &Self) -> Result<Self>;

    /// `self * mul + add`.
    ///
    /// # Errors
    /// [`Error::DType`] unless floating-point.
    fn affine(&self, mul: f64, add: f64) -> Result<Self>;

    /// Matrix product `[.., m, k] · [.., k, n]`: leading axes are equal, or `rhs` has just two.
    ///
    /// # Errors
    /// [`Error::Rank`] below two axes, [`Error::Shape`], [`Error::DType`].
    fn matmul(&self, rhs: &Self) -> Result<Self>;

    /// `on_true` where the `U8` mask is not 0, else `on_false`; the mask broadcasts.
    ///
    /// # Errors
    /// [`Error::DType`] when the mask is not `U8` or the branches differ, [`Error::Shape`].
    fn select(mask: &Self, on_true: &Self, on_false: &Self) -> Result<Self>;

    /// Reduces one axis, which is kept with length 1.
    ///
    /// # Errors
    /// [`Error::Axis`], [`Error::DType`] unless floating-point, [`Error::OutOfRange`] for the
    /// largest of an axis of length 0.
    fn reduce(&self, op: ReduceOp, axis: usize) -> Result<Self>;

    /// Rows by number: `self [rows, cols]`, `ids` a `U32` vector `[n]`, gives `[n, cols]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a row that does not exist, [`Error::DType`], [`Error::Rank`].
    fn take_rows(&self, ids: &Self) -> Result<Self>;

    // ---- fused operations, each with a default made of primitives -------------------------------

    /// RMSNorm over the last axis: `x / sqrt(mean(x²) + eps) * weight`, in `f32` inside
    /// (Zhang and Sennrich 2019).
    ///
    /// # Errors
    /// [`Error::Shape`] unless `weight` is a vector of the last axis' length, [`Error::DType`].
    fn rms_norm(&self, weight: &Self, eps: f32) -> Result<Self> {
        defaults::rms_norm(self, weight, eps)
    }

    /// LayerNorm over the last axis: `(x - mean) / sqrt(var + eps) * weight + bias`, in `f32` inside
    /// (Ba, Kiros and Hinton 2016).
    ///
    /// # Errors
    /// [`Error::Shape`] unless `weight` and `bias` are vectors of the last axis' length,
    /// [`Error::DType`].
    fn layer_norm(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Result<Self> {
        defaults::layer_norm(self, weight, bias, eps)
    }

    /// Rotary position embedding of `[tokens, heads, head_dim]` (Su et al. 2021): the first
    /// `2 · freqs` elements of every head turn by the angles, the rest pass.
    ///
    /// # Errors
    /// [`Error::Shape`] when the token counts differ or the angles cover more than a head.
    fn rope(&self, angles: &RopeAngles<Self>) -> Result<Self> {
        defaults::rope(self, angles)
    }

    /// Scaled dot-product attention with grouped queries: `self` is the queries
    /// `[heads, q_len, d]`, `k` and `v` are `[kv_heads, kv_len, d]`; `heads` is a multiple of
    /// `kv_heads`, and the queries are the last `q_len` of the `kv_len` positions. Gives
    /// `[heads, q_len, d]` in the queries' element type. Keys and values share one, perhaps another. The
    /// softmax is computed in `f32`.
    ///
    /// # Errors
    /// [`Error::Shape`] when heads, lengths or head sizes do not fit; [`Error::DType`] for what is not
    /// floats, or when keys' and values' element types differ.
    fn attention(&self, k: &Self, v: &Self, mask: AttentionMask, scale: f32) -> Result<Self> {
        defaults::attention(self, k, v, mask, scale)
    }

    /// Attention of one query for each of some sequences: `self` is `[rows, heads, d]`, `k` and `v`
    /// are `[rows, kv_heads, kv_len, d]`, each row a sequence. The `mask` `[rows, kv_len]` is added to
    /// the scores: minus infinity hides a key. At least one key of a row is to be seen. Gives
    /// `[rows, heads, d]`; the softmax is computed in `f32`.
    ///
    /// # Errors
    /// As [`Tensor::attention`].
    fn attention_each(&self, k: &Self, v: &Self, mask: Option<&Self>, scale: f32) -> Result<Self> {
        defaults::attention_each(self, k, v, mask, scale)
    }

    /// One token of each of some sequences: `self` is its projections `[rows, (heads + 2 · kv_heads) · d]`,
    /// queries, keys and values side by side. Query and key heads are normed and turned, keys and
    /// values are written to the caches at [`Decode::end`], and each row attends to its cache from
    /// [`Decode::seen`] on. The caches are `[rows, kv_heads, capacity, d]`, or of one row without that
    /// axis, in any floating-point type. Gives `[rows, heads · d]` and the caches, which a backend may have written in place: what
    /// shares their elements must not read beyond `end`.
    ///
    /// # Errors
    /// As [`Tensor::rms_norm`], [`Tensor::rope`], [`Tensor::write_slice`] and
    /// [`Tensor::attention_each`].
    fn decode_attention(
        &self,
        caches: (Self, Self),
        with: &Decode<'_, Self>,
    ) -> Result<(Self, (Self, Self))> {
        defaults::decode_attention(self, caches, with)
    }

    /// Keys or values `[.., head_dim]` in codes, each value off by one and a half steps of its group, and by
    /// what the scales' type rounds away, at most. What a row becomes depends on that row alone.
    ///
    /// # Errors
    /// [`Error::DType`] unless floating-point, [`Error::Shape`] when the last axis is no whole groups,
    /// [`Error::OutOfRange`] for a width of codes that is not 4 or 8.
    fn quantize_kv(&self, spec: KvSpec) -> Result<QuantizedKv<Self>> {
        defaults::quantize_kv(self, spec)
    }

    /// The values of codes, `[.., head_dim]`.
    ///
    /// # Errors
    /// [`Error::DType`], [`Error::Rank`], [`Error::Shape`] for parts that do not fit each other.
    fn dequantize_kv(kept: &QuantizedKv<Self>, dtype: DType) -> Result<Self> {
        defaults::dequantize_kv(kept, dtype)
    }

    /// [`Tensor::attention`] over the values of codes.
    ///
    /// # Errors
    /// As [`Tensor::attention`] and [`Tensor::dequantize_kv`].
    fn attention_quantized(
        &self,
        k: &QuantizedKv<Self>,
        v: &QuantizedKv<Self>,
        mask: AttentionMask,
        scale: f32,
    ) -> Result<Self> {
        defaults::attention_quantized(self, k, v, mask, scale)
    }

    /// [`Tensor::attention_each`] over the values of codes.
    ///
    /// # Errors
    /// As [`Tensor::attention_each`] and [`Tensor::dequantize_kv`].
    fn attention_each_quantized(
        &self,
        k: &QuantizedKv<Self>,
        v: &QuantizedKv<Self>,
        mask: Option<&Self>,
        scale: f32,
    ) -> Result<Self> {
        defaults::attention_each_quantized(self, k, v, mask, scale)
    }

    /// `silu(self) * up`, where `silu(x) = x / (1 + e^-x)` (SwiGLU, Shazeer 2020).
    ///
    /// # Errors
    /// As [`Tensor::binary`].
    fn silu_mul(&self, up: &Self) -> Result<Self> {
        defaults::silu_mul(self, up)
    }

    /// `gelu(self) * up` with the tanh form of GELU (Hendrycks and Gimpel 2016).
    ///
    /// # Errors
    /// As [`Tensor::binary`].
    fn gelu_tanh_mul(&self, up: &Self) -> Result<Self> {
        defaults::gelu_tanh_mul(self, up)
    }

    /// Softmax over the last axis, in `f32` inside.
    ///
    /// # Errors
    /// [`Error::Rank`] for a scalar, [`Error::DType`] unless floating-point.
    fn softmax(&self) -> Result<Self> {
        defaults::softmax(self)
    }

    /// Positions of the largest elements of the last axis, as `U32` without that axis; the lowest
    /// position among equals.
    ///
    /// # Errors
    /// As [`Tensor::reduce`].
    fn argmax(&self) -> Result<Self> {
        defaults::argmax(self)
    }

    /// The `k` largest elements of the last axis in falling order and their positions (`U32`); the
    /// lowest position first among equals, NaN last. The default sorts on the host and so waits for
    /// the device.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when `k` is longer than the axis.
    fn top_k(&self, k: usize) -> Result<(Self, Self)> {
        let shape = self.shape();
        let n = shape.last("top_k")?;
        defaults::require_float("top_k", self)?;
        if k > n {
            return Err(Error::OutOfRange {
                op: "top_k",
                index: k,
                limit: n,
            });
        }
        let values = self.to_f32s()?;
        let (mut top, mut at) = (Vec::<f32>::new(), Vec::<u32>::new());
        for row in values.chunks(n.max(1)) {
            let mut order: Vec<u32> = (0..n as u32).collect();
            let key = |i: u32| {
                let v = row[i as usize];
                if v.is_nan() { f32::NEG_INFINITY } else { v }
            };
            order.sort_by(|&a, &b| {
                (row[a as usize].is_nan(), -key(a))
                    .partial_cmp(&(row[b as usize].is_nan(), -key(b)))
                    .unwrap_or(std::cmp::Ordering::Equal)
            });
            top.extend(order.iter().take(k).map(|&i| row[i as usize]));
            at.extend(order.iter().take(k));
        }
        let shape = shape.with_dim("top_k", shape.rank() - 1, k)?;
        let top = self
            .from_bytes_like(bytemuck::cast_slice(&top), DType::F32, shape)?
            .cast(self.dtype())?;
        Ok((
            top,
            self.from_bytes_like(bytemuck::cast_slice(&at), DType::U32, shape)?,
        ))
    }

    // ---- short forms ----------------------------------------------------------------------------

    /// `self + rhs`; see [`Tensor::binary`].
    ///
    /// # Errors
    /// As [`Tensor::binary`].
    fn add(&self, rhs: &Self) -> Result<Self> {
        self.binary(BinaryOp::Add, rhs)
    }

    /// `self - rhs`; see [`Tensor::binary`].
    ///
    /// # Errors
    /// As [`Tensor::binary`].
    fn sub(&self, rhs: &Self) -> Result<Self> {
        self.binary(BinaryOp::Sub, rhs)
    }

    /// `self * rhs`; see [`Tensor::binary`].
    ///
    /// # Errors
    /// As [`Tensor::binary`].
    fn mul(&self, rhs: &Self) -> Result<Self> {
        self.binary(BinaryOp::Mul, rhs)
    }

    /// `self / rhs`; see [`Tensor::binary`].
    ///
    /// # Errors
    /// As [`Tensor::binary`].
    fn div(&self, rhs: &Self) -> Result<Self> {
        self.binary(BinaryOp::Div, rhs)
    }

    /// The values as `f32`, row-major; waits for the device.
    ///
    /// # Errors
    /// As [`Tensor::to_bytes`].
    fn to_f32s(&self) -> Result<Vec<f32>> {
        let bytes = if self.dtype() == DType::F32 {
            self.to_bytes()?
        } else {
            self.cast(DType::F32)?.to_bytes()?
        };
        Ok(bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    /// The values of a `U32` tensor, row-major; waits for the device.
    ///
    /// # Errors
    /// [`Error::DType`] for another element type.
    fn to_u32s(&self) -> Result<Vec<u32>> {
        if self.dtype() != DType::U32 {
            return Err(Error::DType {
                op: "to_u32s",
                got: self.dtype(),
                expected: "u32",
            });
        }
        Ok(self
            .to_bytes()?
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }
}
