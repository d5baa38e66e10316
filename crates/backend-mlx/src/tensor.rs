//! [`MlxTensor`]: an MLX array whose shape and element type are known to be what Biplane asked for.

use std::fmt;

use biplane_backend::{
    AttentionMask, BinaryOp, DType, Decode, Device, Error, KvSpec, QuantizedKv, ReduceOp, Result,
    RopeAngles, Shape, Tensor, UnaryOp,
};
use half::{bf16, f16};
use mlx_rs::error::{AsSliceError, Exception};
use mlx_rs::{Array, ArrayElement, Dtype};

use crate::alloc::{self, Dims};
use crate::error::failed;
use crate::{fused, kv, layout, ops};

/// An array on MLX's device, perhaps not computed yet.
///
/// A clone is another handle of the same array: it allocates two words and can fail only where a
/// Rust allocation would abort.
#[derive(Clone)]
pub struct MlxTensor {
    array: Array,
    shape: Shape,
    dtype: DType,
    device: Device,
    /// An exclusive upper bound of a `U32` tensor's elements, where one is known without computing
    /// them: MLX gathers without looking at bounds, and looking ourselves would wait for the device.
    id_limit: Option<u32>,
}

impl MlxTensor {
    /// Makes a tensor of `f`'s array, which must have this shape and element type.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Unsupported`] when it cannot be held, and what MLX says.
    pub(crate) fn make(
        op: &'static str,
        shape: Shape,
        dtype: DType,
        device: Device,
        f: impl FnOnce(&[i32]) -> Result<Array, Exception>,
    ) -> Result<Self> {
        let dims = Dims::new(shape, dtype)?;
        let array = if shape.numel() == 0 {
            mlx_rs::ops::zeros_dtype(dims.as_slice(), mlx_dtype(dtype))
        } else {
            f(dims.as_slice())
        }
        .map_err(failed(op))?;
        debug_assert_eq!(array.shape(), dims.as_slice(), "{op}");
        debug_assert_eq!(array.dtype(), mlx_dtype(dtype), "{op}");
        Ok(MlxTensor {
            array,
            shape,
            dtype,
            device,
            id_limit: None,
        })
    }

    /// As [`MlxTensor::make`], on the device of `self`.
    pub(crate) fn derive(
        &self,
        op: &'static str,
        shape: Shape,
        dtype: DType,
        f: impl FnOnce(&[i32]) -> Result<Array, Exception>,
    ) -> Result<Self> {
        Self::make(op, shape, dtype, self.device, f)
    }

    pub(crate) fn zeros(shape: Shape, dtype: DType, device: Device) -> Result<Self> {
        alloc::reserve(alloc::byte_len(shape, dtype)?, device)?;
        let zeros = Self::make("zeros", shape, dtype, device, |dims| {
            mlx_rs::ops::zeros_dtype(dims, mlx_dtype(dtype))
        })?;
        Ok(zeros.with_id_limit(Some(1)))
    }

    pub(crate) fn from_bytes(
        op: &'static str,
        bytes: &[u8],
        dtype: DType,
        shape: Shape,
        device: Device,
    ) -> Result<Self> {
        let expected = alloc::byte_len(shape, dtype).unwrap_or(usize::MAX);
        if bytes.len() != expected {
            return Err(Error::Bytes {
                op,
                expected,
                got: bytes.len(),
            });
        }
        alloc::reserve(bytes.len(), device)?;
        if i32::try_from(shape.numel()).is_err() {
            return Err(Error::Unsupported {
                backend: crate::error::NAME,
                what: format!("copy {} elements at once", shape.numel()),
                instead: "split the tensor".into(),
            });
        }
        let tensor = Self::make(op, shape, dtype, device, |dims| {
            Ok(copy_of(bytes, dtype, dims))
        })?;
        // mlx-c gives an empty handle instead of an error when the copy cannot be allocated.
        if tensor.array.size() != shape.numel() {
            return Err(alloc::out_of_memory(bytes.len()));
        }
        let limit = (dtype == DType::U32).then(|| id_limit(bytes)).flatten();
        Ok(tensor.with_id_limit(limit))
    }

    pub(crate) fn array(&self) -> &Array {
        &self.array
    }

    pub(crate) fn into_array(self) -> Array {
        self.array
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    pub(crate) fn id_limit(&self) -> Option<u32> {
        self.id_limit
    }

    /// Notes a bound of the elements, where they are `U32`.
    pub(crate) fn with_id_limit(mut self, limit: Option<u32>) -> Self {
        self.id_limit = limit.filter(|_| self.dtype == DType::U32);
        self
    }
}

/// MLX's name of an element type.
pub(crate) fn mlx_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::Float32,
        DType::F16 => Dtype::Float16,
        DType::BF16 => Dtype::Bfloat16,
        DType::U32 => Dtype::Uint32,
        DType::I32 => Dtype::Int32,
        DType::U8 => Dtype::Uint8,
    }
}

/// An array of bytes that may lie unaligned. `from_slice` panics unless the lengths agree and fit an
/// `i32`: the caller has checked both.
fn copy_of(bytes: &[u8], dtype: DType, dims: &[i32]) -> Array {
    macro_rules! copy {
        ($element:ty) => {
            match bytemuck::try_cast_slice::<u8, $element>(bytes) {
                Ok(slice) => Array::from_slice(slice, dims),
                Err(_) => {
                    let zero: $element = bytemuck::Zeroable::zeroed();
                    let mut aligned = vec![zero; bytes.len() / size_of::<$element>()];
                    bytemuck::cast_slice_mut(&mut aligned).copy_from_slice(bytes);
                    Array::from_slice(&aligned, dims)
                }
            }
        };
    }
    match dtype {
        DType::F32 => copy!(f32),
        DType::F16 => copy!(f16),
        DType::BF16 => copy!(bf16),
        DType::U32 => copy!(u32),
        DType::I32 => copy!(i32),
        DType::U8 => copy!(u8),
    }
}

/// One more than the largest element.
fn id_limit(bytes: &[u8]) -> Option<u32> {
    let ids = bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    ids.max().map_or(Some(0), |largest| largest.checked_add(1))
}

/// The array itself where it lies in order: a copy would be one more operation, which waits for all
/// that was started meanwhile.
fn bytes_of<T: ArrayElement + bytemuck::NoUninit>(array: &Array) -> Result<Vec<u8>> {
    let row_major;
    let elements = match array.try_as_slice::<T>() {
        Err(AsSliceError::NotContiguous) => {
            row_major = array.contiguous().map_err(failed("to_bytes"))?;
            row_major.try_as_slice::<T>()
        }
        result => result,
    };
    Ok(bytemuck::cast_slice(elements.map_err(failed("to_bytes"))?).to_vec())
}

impl fmt::Debug for MlxTensor {
    /// Shape and type only: MLX's own form would compute the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MlxTensor({} {})", self.dtype, self.shape)
    }
}

impl Tensor for MlxTensor {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn cast(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        self.derive("cast", self.shape, dtype, |_| {
            self.array.as_dtype(mlx_dtype(dtype))
        })
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        if self.shape.numel() == 0 {
            return Ok(Vec::new());
        }
        crate::cuda::finish_compiling();
        match self.dtype {
            DType::F32 => bytes_of::<f32>(&self.array),
            DType::F16 => bytes_of::<f16>(&self.array),
            DType::BF16 => bytes_of::<bf16>(&self.array),
            DType::U32 => bytes_of::<u32>(&self.array),
            DType::I32 => bytes_of::<i32>(&self.array),
            DType::U8 => bytes_of::<u8>(&self.array),
        }
    }

    fn from_bytes_like(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        Self::from_bytes("from_bytes_like", bytes, dtype, shape.into(), self.device)
    }

    fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        layout::reshape(self, shape.into())
    }

    fn swap_axes(&self, a: usize, b: usize) -> Result<Self> {
        layout::swap_axes(self, a, b)
    }

    fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self> {
        layout::broadcast_to(self, shape.into())
    }

    fn concat(tensors: &[&Self], axis: usize) -> Result<Self> {
        layout::concat(tensors, axis)
    }

    fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        layout::narrow(self, axis, start, len)
    }

    fn write_slice(self, axis: usize, start: usize, src: &Self) -> Result<Self> {
        layout::write_slice(self, axis, start, src)
    }

    fn unary(&self, op: UnaryOp) -> Result<Self> {
        ops::unary(self, op)
    }

    fn binary(&self, op: BinaryOp, rhs: &Self) -> Result<Self> {
        ops::binary(self, op, rhs)
    }

    fn affine(&self, mul: f64, add: f64) -> Result<Self> {
        ops::affine(self, mul, add)
    }

    fn matmul(&self, rhs: &Self) -> Result<Self> {
        ops::matmul(self, rhs)
    }

    fn select(mask: &Self, on_true: &Self, on_false: &Self) -> Result<Self> {
        ops::select(mask, on_true, on_false)
    }

    fn reduce(&self, op: ReduceOp, axis: usize) -> Result<Self> {
        ops::reduce(self, op, axis)
    }

    fn take_rows(&self, ids: &Self) -> Result<Self> {
        layout::take_rows(self, ids)
    }

    fn rms_norm(&self, weight: &Self, eps: f32) -> Result<Self> {
        fused::rms_norm(self, weight, eps)
    }

    fn layer_norm(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Result<Self> {
        fused::layer_norm(self, weight, bias, eps)
    }

    fn rope(&self, angles: &RopeAngles<Self>) -> Result<Self> {
        fused::rope(self, angles)
    }

    fn attention(&self, k: &Self, v: &Self, mask: AttentionMask, scale: f32) -> Result<Self> {
        fused::attention(self, k, v, mask, scale)
    }

    fn attention_each(&self, k: &Self, v: &Self, mask: Option<&Self>, scale: f32) -> Result<Self> {
        fused::attention_each(self, k, v, mask, scale)
    }

    fn decode_attention(
        &self,
        caches: (Self, Self),
        with: &Decode<'_, Self>,
    ) -> Result<(Self, (Self, Self))> {
        fused::decode_attention(self, caches, with)
    }

    fn quantize_kv(&self, spec: KvSpec) -> Result<QuantizedKv<Self>> {
        kv::quantize(self, spec)
    }

    fn dequantize_kv(kept: &QuantizedKv<Self>, dtype: DType) -> Result<Self> {
        kv::dequantize(kept, dtype)
    }

    fn attention_quantized(
        &self,
        k: &QuantizedKv<Self>,
        v: &QuantizedKv<Self>,
        mask: AttentionMask,
        scale: f32,
    ) -> Result<Self> {
        kv::attention(self, k, v, mask, scale)
    }

    fn attention_each_quantized(
        &self,
        k: &QuantizedKv<Self>,
        v: &QuantizedKv<Self>,
        mask: Option<&Self>,
        scale: f32,
    ) -> Result<Self> {
        kv::attention_each(self, k, v, mask, scale)
    }

    fn silu_mul(&self, up: &Self) -> Result<Self> {
        fused::silu_mul(self, up)
    }

    fn gelu_tanh_mul(&self, up: &Self) -> Result<Self> {
        fused::gelu_tanh_mul(self, up)
    }

    fn softmax(&self) -> Result<Self> {
        fused::softmax(self)
    }

    fn top_k(&self, k: usize) -> Result<(Self, Self)> {
        fused::top_k(self, k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MlxBackend;
    use biplane_backend::Backend;
    use mlx_rs::ops as mlx;

    #[test]
    fn lazy_failures_are_errors_where_they_surface() {
        let backend = MlxBackend::new(Device::Cpu).unwrap();
        let x = backend.zeros([1, 32], DType::F32).unwrap();
        let codes = backend.zeros([4, 4], DType::U32).unwrap();
        let scales = backend.zeros([4, 2], DType::F32).unwrap();
        // MLX notices only while computing that it has no kernel for groups of 16.
        let lazy = || {
            x.derive("lazy", [1, 4].into(), DType::F32, |_| {
                let (codes, scales) = (codes.array(), scales.array());
                mlx::quantized_matmul(x.array(), codes, scales, scales, true, 16, 4)
            })
            .unwrap()
        };
        let started = lazy();
        // Started work fails where it is waited for.
        let waited = backend
            .async_eval(&[&started])
            .and_then(|()| started.to_bytes());
        for result in [
            lazy().to_bytes().map(|_| ()),
            backend.eval(&[&lazy()]),
            waited.map(|_| ()),
        ] {
            match result {
                Err(Error::Backend { message, .. }) => {
                    assert!(message.contains("group size") && !message.contains(".cpp"));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(x.to_bytes().unwrap(), [0; 128]);
    }

    #[test]
    fn bytes_need_no_alignment() {
        let backend = MlxBackend::new(Device::Cpu).unwrap();
        let bytes: Vec<u8> = (0..17).collect();
        for dtype in DType::ALL {
            let part = &bytes[1..];
            let t = backend
                .from_bytes(part, dtype, [2, 8 / dtype.size()])
                .unwrap();
            assert_eq!(t.to_bytes().unwrap(), part);
        }
        assert!(matches!(
            backend.from_bytes(&bytes, DType::U8, [16]),
            Err(Error::Bytes {
                expected: 16,
                got: 17,
                ..
            })
        ));
    }

    #[test]
    fn threads_compute_side_by_side() {
        let threads: Vec<_> = (0..4u32)
            .map(|t| {
                std::thread::spawn(move || {
                    let backend = MlxBackend::new(Device::Cpu).unwrap();
                    for i in 0..50u32 {
                        let n = (t * 50 + i) as f32;
                        let x = backend.from_f32s(&[n; 64], [8, 8]).unwrap();
                        let y = x.matmul(&x).unwrap().add(&x).unwrap();
                        assert_eq!(y.to_f32s().unwrap(), [8.0 * n * n + n; 64]);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        // What another thread left uncomputed is an error, not a crash.
        let lazy = std::thread::spawn(|| {
            let backend = MlxBackend::new(Device::Cpu).unwrap();
            let x = backend.from_f32s(&[1.0], [1]).unwrap();
            x.affine(2.0, 0.0).unwrap()
        });
        assert!(matches!(
            lazy.join().unwrap().to_bytes(),
            Err(Error::Backend { .. })
        ));
    }
}
