//! The fused operations on the processor: our kernels over candle's `f32` storage. Callers have
//! checked shapes, and that every operand is `F32` on the processor.

mod decode;
mod quantized;

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use biplane_backend::{
    AttentionMask, DType, Error, Result, RopeAngles, Shape, Tensor, defaults::AttentionDims,
};
use candle_core::{CpuStorage, Device, Storage, StorageRef, Tensor as Inner};
use half::{f16, slice::HalfFloatSliceExt};

pub(crate) use decode::decode_attention;
pub(crate) use quantized::{attention_quantized, codes_serve, quantize_kv};

use crate::{
    CandleTensor, NAME,
    cpu::{self, AttentionShape, Kept, Strided},
    failed, memory,
};

pub(crate) fn rms_norm(x: &CandleTensor, weight: &CandleTensor, eps: f32) -> Result<CandleTensor> {
    let op = "rms_norm";
    let (rows, weight) = (row_major(op, x)?, row_major(op, weight)?);
    let (rows, weight) = (Floats::all(op, &rows)?, Floats::all(op, &weight)?);
    output(op, x.shape(), |out| cpu::rms_norm(&rows, &weight, eps, out))
}

pub(crate) fn layer_norm(
    x: &CandleTensor,
    weight: &CandleTensor,
    bias: Option<&CandleTensor>,
    eps: f32,
) -> Result<CandleTensor> {
    let op = "layer_norm";
    let (rows, weight) = (row_major(op, x)?, row_major(op, weight)?);
    let (rows, weight) = (Floats::all(op, &rows)?, Floats::all(op, &weight)?);
    let bias = bias.map(|bias| row_major(op, bias)).transpose()?;
    let bias = bias
        .as_ref()
        .map(|bias| Floats::all(op, bias))
        .transpose()?;
    output(op, x.shape(), |out| {
        cpu::layer_norm(&rows, &weight, bias.as_deref(), eps, out);
    })
}

pub(crate) fn silu_mul(gate: &CandleTensor, up: &CandleTensor) -> Result<CandleTensor> {
    gated("silu_mul", gate, up, cpu::silu_mul)
}

pub(crate) fn gelu_tanh_mul(gate: &CandleTensor, up: &CandleTensor) -> Result<CandleTensor> {
    gated("gelu_tanh_mul", gate, up, cpu::gelu_tanh_mul)
}

fn gated(
    op: &'static str,
    gate: &CandleTensor,
    up: &CandleTensor,
    kernel: fn(&[f32], &[f32], &mut [f32]),
) -> Result<CandleTensor> {
    let shape = gate.shape();
    let (gate, up) = (row_major(op, gate)?, row_major(op, up)?);
    let (gate, up) = (Floats::all(op, &gate)?, Floats::all(op, &up)?);
    output(op, shape, |out| kernel(&gate, &up, out))
}

pub(crate) fn softmax(x: &CandleTensor, cols: usize) -> Result<CandleTensor> {
    let op = "softmax";
    let rows = row_major(op, x)?;
    let rows = Floats::all(op, &rows)?;
    output(op, x.shape(), |out| cpu::softmax(&rows, cols, out))
}

/// `cols` is at least 1.
pub(crate) fn argmax(x: &CandleTensor, cols: usize) -> Result<CandleTensor> {
    let op = "argmax";
    let shape = x.shape();
    let shape = Shape::new(&shape.as_slice()[..shape.rank() - 1])?;
    let rows = row_major(op, x)?;
    let rows = Floats::all(op, &rows)?;
    let at: Vec<u32> = rows
        .chunks_exact(cols)
        .map(|row| cpu::argmax(row) as u32)
        .collect();
    numbers(op, shape, at)
}

/// A tensor of whole numbers on the processor, as many as `shape` has.
pub(crate) fn numbers(op: &'static str, shape: Shape, values: Vec<u32>) -> Result<CandleTensor> {
    let inner = Inner::from_vec(values, shape.as_slice(), &Device::Cpu).map_err(failed(op))?;
    Ok(CandleTensor::new(inner, shape, DType::U32))
}

pub(crate) fn rope(
    x: &CandleTensor,
    angles: &RopeAngles<CandleTensor>,
    [tokens, heads, head_dim]: [usize; 3],
) -> Result<CandleTensor> {
    let op = "rope";
    let (cos, sin) = (row_major(op, &angles.cos)?, row_major(op, &angles.sin)?);
    let (cos, sin) = (Floats::all(op, &cos)?, Floats::all(op, &sin)?);
    let view = unit_stride(op, x)?;
    let floats = Floats::from_start(op, &view)?;
    let x_strided = strided(&floats, &view, [1, 0]);
    output(op, x.shape(), |out| {
        cpu::rope(
            x_strided,
            tokens,
            heads,
            head_dim,
            &cos,
            &sin,
            angles.rotary_dim() / 2,
            angles.interleaved,
            out,
        );
    })
}

/// The kernel writes tokens outermost; so the result is a view, and exchanging its first two axes
/// again costs nothing.
pub(crate) fn attention(
    q: &CandleTensor,
    k: &CandleTensor,
    v: &CandleTensor,
    dims: AttentionDims,
    mask: AttentionMask,
    scale: f32,
) -> Result<CandleTensor> {
    let op = "attention";
    let [q, k, v] = [
        unit_stride(op, q)?,
        unit_stride(op, k)?,
        unit_stride(op, v)?,
    ];
    let q_floats = Floats::from_start(op, &q)?;
    let (k_kept, v_kept) = (KeptFloats::of(op, &k)?, KeptFloats::of(op, &v)?);
    let by_token = Shape::from([dims.q_len, dims.heads, dims.head_dim]);
    output(op, by_token, |out| {
        cpu::attention(
            strided(&q_floats, &q, [0, 1]),
            k_kept.strided(&k),
            v_kept.strided(&v),
            attention_shape(dims),
            mask,
            scale,
            out,
        );
    })?
    .swap_axes(0, 1)
}

fn attention_shape(dims: AttentionDims) -> AttentionShape {
    AttentionShape {
        heads: dims.heads,
        kv_heads: dims.kv_heads,
        q_len: dims.q_len,
        kv_len: dims.kv_len,
        head_dim: dims.head_dim,
    }
}

/// `f` of every two elements of tensors of one shape.
pub(crate) fn zipped(
    a: &CandleTensor,
    b: &CandleTensor,
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<CandleTensor> {
    let op = "binary";
    let shape = a.shape();
    let (a, b) = (row_major(op, a)?, row_major(op, b)?);
    let (a, b) = (Floats::all(op, &a)?, Floats::all(op, &b)?);
    output(op, shape, |out| {
        cpu::for_chunks(out, |first, out| {
            let (a, b) = (&a[first..][..out.len()], &b[first..][..out.len()]);
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = f(*a, *b);
            }
        });
    })
}

/// `f` of every element.
pub(crate) fn mapped(x: &CandleTensor, f: impl Fn(f32) -> f32 + Sync) -> Result<CandleTensor> {
    let op = "unary";
    let rows = row_major(op, x)?;
    let rows = Floats::all(op, &rows)?;
    output(op, x.shape(), |out| {
        cpu::for_chunks(out, |first, out| {
            for (out, x) in out.iter_mut().zip(&rows[first..]) {
                *out = f(*x);
            }
        });
    })
}

/// A tensor of the nearest `f16` values.
pub(crate) fn to_f16(x: &CandleTensor) -> Result<CandleTensor> {
    let op = "cast";
    let rows = row_major(op, x)?;
    let rows = Floats::all(op, &rows)?;
    let mut halves = vec![f16::ZERO; rows.len()];
    halves.convert_from_f32_slice(&rows);
    let inner = Inner::from_vec(halves, x.shape().as_slice(), &Device::Cpu).map_err(failed(op))?;
    Ok(CandleTensor::new(inner, x.shape(), DType::F16))
}

/// A new tensor that `fill` writes every element of; `fill` is not called when there are none.
pub(crate) fn output(
    op: &'static str,
    shape: Shape,
    fill: impl FnOnce(&mut [f32]),
) -> Result<CandleTensor> {
    memory::check(shape, DType::F32, &Device::Cpu)?;
    let mut values = vec![0.0; shape.numel()];
    if !values.is_empty() {
        fill(&mut values);
    }
    made(op, shape, values)
}

/// A tensor of values on the processor, as many as `shape` has.
pub(crate) fn made(op: &'static str, shape: Shape, values: Vec<f32>) -> Result<CandleTensor> {
    let inner = Inner::from_vec(values, shape.as_slice(), &Device::Cpu).map_err(failed(op))?;
    Ok(CandleTensor::new(inner, shape, DType::F32))
}

pub(crate) fn row_major(op: &'static str, x: &CandleTensor) -> Result<Inner> {
    x.inner.contiguous().map_err(failed(op))
}

/// `x` with the elements of its last axis next to each other; the other axes may be views.
fn unit_stride(op: &'static str, x: &CandleTensor) -> Result<Inner> {
    let last = x.shape().rank().saturating_sub(1);
    if x.inner.stride().get(last) == Some(&1) {
        return Ok(x.inner.clone());
    }
    row_major(op, x)
}

/// A view of heads and tokens, which are the axes `head` and `token` of three.
fn strided<'a, T: Element>(
    floats: &'a Floats<'_, T>,
    view: &Inner,
    [head, token]: [usize; 2],
) -> Strided<'a, T> {
    let stride = |axis: usize| view.stride().get(axis).copied().unwrap_or(0);
    Strided {
        data: floats,
        head_stride: stride(head),
        token_stride: stride(token),
    }
}

/// A type of elements that kernels read.
pub(crate) trait Element: Sized {
    /// What a storage holds of this type.
    fn of(storage: &CpuStorage) -> Option<&[Self]>;
}

impl Element for f32 {
    fn of(storage: &CpuStorage) -> Option<&[f32]> {
        match storage {
            CpuStorage::F32(v) => Some(v),
            _ => None,
        }
    }
}

impl Element for u8 {
    fn of(storage: &CpuStorage) -> Option<&[u8]> {
        match storage {
            CpuStorage::U8(v) => Some(v),
            _ => None,
        }
    }
}

impl Element for f16 {
    fn of(storage: &CpuStorage) -> Option<&[f16]> {
        match storage {
            CpuStorage::F16(v) => Some(v),
            _ => None,
        }
    }
}

/// Keys or values while their storage is borrowed.
enum KeptFloats<'a> {
    F32(Floats<'a>),
    F16(Floats<'a, f16>),
}

impl<'a> KeptFloats<'a> {
    fn of(op: &'static str, x: &'a Inner) -> Result<Self> {
        Ok(match x.dtype() {
            candle_core::DType::F16 => KeptFloats::F16(Floats::from_start(op, x)?),
            _ => KeptFloats::F32(Floats::from_start(op, x)?),
        })
    }

    fn strided(&self, view: &Inner) -> Kept<'_> {
        match self {
            KeptFloats::F32(x) => Kept::F32(strided(x, view, [0, 1])),
            KeptFloats::F16(x) => Kept::F16(strided(x, view, [0, 1])),
        }
    }
}

/// Elements of a tensor on the processor, for as long as its storage is borrowed.
pub(crate) struct Floats<'a, T = f32> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<'a, T: Element> Floats<'a, T> {
    /// All elements of a row-major tensor.
    pub(crate) fn all(op: &'static str, x: &'a Inner) -> Result<Self> {
        let (storage, layout) = x.storage_and_layout();
        // A view of no elements may start beyond the storage.
        let range = match layout.shape().elem_count() {
            0 => 0..0,
            n => layout.start_offset()..layout.start_offset() + n,
        };
        Self::new(op, storage, range)
    }

    /// From a view's first element to its storage's end.
    fn from_start(op: &'static str, x: &'a Inner) -> Result<Self> {
        let (storage, layout) = x.storage_and_layout();
        let end = Self::elements(&storage).map_or(0, <[T]>::len);
        let start = layout.start_offset().min(end);
        Self::new(op, storage, start..end)
    }

    fn new(op: &'static str, storage: StorageRef<'a>, range: Range<usize>) -> Result<Self> {
        match Self::elements(&storage) {
            Some(all) if range.end <= all.len() => Ok(Floats {
                storage,
                range,
                element: PhantomData,
            }),
            _ => Err(Error::Backend {
                backend: NAME,
                op,
                message: "an operand is not in the processor's memory in the expected type".into(),
            }),
        }
    }

    fn elements(storage: &Storage) -> Option<&[T]> {
        match storage {
            Storage::Cpu(storage) => T::of(storage),
            _ => None,
        }
    }
}

impl<T: Element> Deref for Floats<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let all = Self::elements(&self.storage).unwrap_or_default();
        all.get(self.range.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CandleBackend;
    use biplane_backend::{Backend, defaults};

    #[test]
    fn attention_reads_views_and_gives_tokens_outermost() {
        let backend = CandleBackend::new(biplane_backend::Device::Cpu).unwrap();
        let tensor = |shape: [usize; 3]| {
            let n = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            backend.from_f32s(&values, shape).unwrap()
        };
        let q = tensor([3, 4, 8]).swap_axes(0, 1).unwrap();
        let cache = tensor([2, 16, 8]);
        let k = cache.narrow(1, 0, 7).unwrap();
        let v = cache.narrow(1, 5, 7).unwrap();
        let (mask, scale) = (AttentionMask::SlidingWindow(4), 0.3);
        let got = q.attention(&k, &v, mask, scale).unwrap();
        assert_eq!(got.shape(), Shape::from([4, 3, 8]));
        assert!(got.swap_axes(0, 1).unwrap().inner.is_contiguous());
        let want = defaults::attention(&q, &k, &v, mask, scale).unwrap();
        for (got, want) in got.to_f32s().unwrap().iter().zip(want.to_f32s().unwrap()) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }
}
