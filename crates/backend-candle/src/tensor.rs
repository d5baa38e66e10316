//! [`CandleTensor`]: which implementation each of a tensor's operations has.

use std::fmt;

use biplane_backend::{
    AttentionMask, BinaryOp, DType, Decode, KvSpec, QuantizedKv, ReduceOp, Result, RopeAngles,
    Shape, Tensor, UnaryOp, defaults,
};
use candle_core::Tensor as Inner;

use crate::{bytes, fused, gpu, memory};

/// A candle tensor, with shape and element type as Biplane has them.
#[derive(Clone)]
pub struct CandleTensor {
    pub(crate) inner: Inner,
    shape: Shape,
    dtype: DType,
}

impl CandleTensor {
    /// `shape` and `dtype` are those of `inner`.
    pub(crate) fn new(inner: Inner, shape: Shape, dtype: DType) -> Self {
        debug_assert_eq!(inner.dims(), shape.as_slice());
        debug_assert_eq!(inner.dtype(), bytes::candle_dtype(dtype, inner.device()));
        CandleTensor {
            inner,
            shape,
            dtype,
        }
    }

    /// Whether our own kernels can read it: `F32` on the processor.
    pub(crate) fn is_cpu_f32(&self) -> bool {
        self.dtype == DType::F32 && self.inner.device().is_cpu()
    }

    /// Whether it is on a GPU.
    pub(crate) fn is_on_gpu(&self) -> bool {
        !self.inner.device().is_cpu()
    }
}

impl fmt::Debug for CandleTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CandleTensor({} {})", self.dtype, self.shape)
    }
}

impl Tensor for CandleTensor {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn cast(&self, dtype: DType) -> Result<Self> {
        self.cast_to(dtype)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        bytes::to_bytes(&self.inner)
    }

    fn from_bytes_like(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let inner = bytes::from_bytes(bytes, dtype, shape, self.inner.device())?;
        Ok(CandleTensor::new(inner, shape, dtype))
    }

    fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        self.reshaped(shape.into())
    }

    fn swap_axes(&self, a: usize, b: usize) -> Result<Self> {
        self.swapped(a, b)
    }

    fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self> {
        self.broadcasted(shape.into())
    }

    fn concat(tensors: &[&Self], axis: usize) -> Result<Self> {
        Self::concatenated(tensors, axis)
    }

    fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        self.narrowed(axis, start, len)
    }

    fn write_slice(self, axis: usize, start: usize, src: &Self) -> Result<Self> {
        self.written(axis, start, src)
    }

    fn unary(&self, op: UnaryOp) -> Result<Self> {
        self.mapped(op)
    }

    fn binary(&self, op: BinaryOp, rhs: &Self) -> Result<Self> {
        self.zipped(op, rhs)
    }

    fn affine(&self, mul: f64, add: f64) -> Result<Self> {
        self.scaled(mul, add)
    }

    fn matmul(&self, rhs: &Self) -> Result<Self> {
        self.multiplied(rhs)
    }

    fn select(mask: &Self, on_true: &Self, on_false: &Self) -> Result<Self> {
        Self::selected(mask, on_true, on_false)
    }

    fn reduce(&self, op: ReduceOp, axis: usize) -> Result<Self> {
        self.reduced(op, axis)
    }

    fn take_rows(&self, ids: &Self) -> Result<Self> {
        self.rows(ids)
    }

    // ---- fused operations: our kernels in f32 on the processor, candle's on a GPU -----------------

    fn rms_norm(&self, weight: &Self, eps: f32) -> Result<Self> {
        defaults::norm_len("rms_norm", self, weight)?;
        if self.is_cpu_f32() && weight.is_cpu_f32() {
            fused::rms_norm(self, weight, eps)
        } else if self.is_on_gpu() && weight.dtype == self.dtype && self.shape.numel() > 0 {
            gpu::rms_norm(self, weight, eps)
        } else {
            defaults::rms_norm(self, weight, eps)
        }
    }

    fn layer_norm(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Result<Self> {
        defaults::norm_len("layer_norm", self, weight)?;
        if let Some(bias) = bias {
            defaults::norm_len("layer_norm", self, bias)?;
        }
        let ours = self.is_cpu_f32() && weight.is_cpu_f32();
        if ours && bias.is_none_or(Self::is_cpu_f32) {
            fused::layer_norm(self, weight, bias, eps)
        } else {
            defaults::layer_norm(self, weight, bias, eps)
        }
    }

    fn rope(&self, angles: &RopeAngles<Self>) -> Result<Self> {
        let dims @ [.., head_dim] = angles.check(self)?;
        let whole_halves = !angles.interleaved && angles.rotary_dim() == head_dim;
        if self.is_cpu_f32() {
            fused::rope(self, angles, dims)
        } else if self.is_on_gpu() && whole_halves && self.shape.numel() > 0 {
            gpu::rope(self, angles, dims)
        } else {
            defaults::rope(self, angles)
        }
    }

    fn attention(&self, k: &Self, v: &Self, mask: AttentionMask, scale: f32) -> Result<Self> {
        let kept = k.is_cpu_f32() || k.dtype == DType::F16 && k.inner.device().is_cpu();
        if self.is_cpu_f32() && kept {
            let dims = defaults::attention_dims(self, k, v, mask)?;
            fused::attention(self, k, v, dims, mask, scale)
        } else {
            defaults::attention(self, k, v, mask, scale)
        }
    }

    fn decode_attention(
        &self,
        caches: (Self, Self),
        with: &Decode<'_, Self>,
    ) -> Result<(Self, (Self, Self))> {
        let n = defaults::decode_dims(self, (&caches.0, &caches.1), with)?;
        match fused::decode_attention(self, (&caches.0, &caches.1), with, n)? {
            Some(y) => Ok((y, caches)),
            None => defaults::decode_attention(self, caches, with),
        }
    }

    fn quantize_kv(&self, spec: KvSpec) -> Result<QuantizedKv<Self>> {
        let shape = defaults::quantize_kv_shape(self, spec)?;
        if self.is_cpu_f32() && fused::codes_serve(spec) {
            fused::quantize_kv(self, shape, spec)
        } else {
            defaults::quantize_kv(self, spec)
        }
    }

    fn attention_quantized(
        &self,
        k: &QuantizedKv<Self>,
        v: &QuantizedKv<Self>,
        mask: AttentionMask,
        scale: f32,
    ) -> Result<Self> {
        let dims = defaults::attention_quantized_dims(self, k, v, mask)?;
        let serve = |kept: &QuantizedKv<Self>| {
            fused::codes_serve(kept.spec) && kept.codes.inner.device().is_cpu()
        };
        if self.is_cpu_f32() && serve(k) && serve(v) {
            fused::attention_quantized(self, k, v, dims, mask, scale)
        } else {
            defaults::attention_quantized(self, k, v, mask, scale)
        }
    }

    fn silu_mul(&self, up: &Self) -> Result<Self> {
        if self.is_cpu_f32() && up.is_cpu_f32() && self.shape == up.shape {
            fused::silu_mul(self, up)
        } else {
            defaults::silu_mul(self, up)
        }
    }

    fn gelu_tanh_mul(&self, up: &Self) -> Result<Self> {
        if self.is_cpu_f32() && up.is_cpu_f32() && self.shape == up.shape {
            fused::gelu_tanh_mul(self, up)
        } else {
            defaults::gelu_tanh_mul(self, up)
        }
    }

    fn softmax(&self) -> Result<Self> {
        let cols = self.shape.last("softmax")?;
        if self.is_cpu_f32() {
            fused::softmax(self, cols)
        } else if self.is_on_gpu() && self.dtype.is_float() && self.shape.numel() > 0 {
            gpu::softmax(self)
        } else {
            defaults::softmax(self)
        }
    }

    fn argmax(&self) -> Result<Self> {
        let cols = self.shape.last("argmax")?;
        if self.is_cpu_f32() && cols > 0 {
            fused::argmax(self, cols)
        } else {
            defaults::argmax(self)
        }
    }
}

impl CandleTensor {
    /// Zeros on the same device; also what an operation on no elements gives.
    pub(crate) fn zeros_like(&self, shape: Shape, dtype: DType) -> Result<Self> {
        let device = self.inner.device();
        memory::check(shape, dtype, device)?;
        Inner::zeros(shape.as_slice(), bytes::candle_dtype(dtype, device), device)
            .map(|t| CandleTensor::new(t, shape, dtype))
            .map_err(crate::failed("zeros"))
    }
}
