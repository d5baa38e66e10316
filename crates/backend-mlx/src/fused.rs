//! Fused operations.
//!
//! On a GPU MLX's fast kernels sum in `f32` whatever the element type. On the CPU they are composed
//! of ordinary operations that round to the element type at every step, so halves are computed in
//! `f32` there.

use std::cell::RefCell;

use biplane_backend::defaults::{
    self, attention_dims, attention_each_dims, norm_len, require_float, same_float,
};
use biplane_backend::{AttentionMask, DType, Decode, Error, Result, RopeAngles, Shape, Tensor};
use mlx_rs::fast::{self, ScaledDotProductAttentionMask as SdpaMask};
use mlx_rs::transforms::compile::compile;
use mlx_rs::{Array, Dtype, ops as mlx};

use crate::MlxTensor;
use crate::tensor::mlx_dtype;
use crate::{alloc, cuda};

/// The element type to compute in; see the module's documentation.
fn working_dtype(x: &MlxTensor) -> DType {
    if x.device().is_cpu() {
        DType::F32
    } else {
        x.dtype()
    }
}

pub(crate) fn rms_norm(x: &MlxTensor, weight: &MlxTensor, eps: f32) -> Result<MlxTensor> {
    norm_len("rms_norm", x, weight)?;
    let dtype = working_dtype(x);
    let (wide, weight) = (x.cast(dtype)?, weight.cast(dtype)?);
    wide.derive("rms_norm", x.shape(), dtype, |_| {
        fast::rms_norm(wide.array(), Some(weight.array()), eps)
    })?
    .cast(x.dtype())
}

pub(crate) fn layer_norm(
    x: &MlxTensor,
    weight: &MlxTensor,
    bias: Option<&MlxTensor>,
    eps: f32,
) -> Result<MlxTensor> {
    norm_len("layer_norm", x, weight)?;
    if let Some(bias) = bias {
        norm_len("layer_norm", x, bias)?;
    }
    let dtype = working_dtype(x);
    let (wide, weight) = (x.cast(dtype)?, weight.cast(dtype)?);
    let bias = bias.map(|b| b.cast(dtype)).transpose()?;
    wide.derive("layer_norm", x.shape(), dtype, |_| {
        let bias = bias.as_ref().map(MlxTensor::array);
        fast::layer_norm(wide.array(), weight.array(), bias, eps)
    })?
    .cast(x.dtype())
}

/// On the CPU MLX's fast form computes sines and cosines in every layer, and rounds them to the
/// element type; the default has them once a step.
pub(crate) fn rope(x: &MlxTensor, angles: &RopeAngles<MlxTensor>) -> Result<MlxTensor> {
    if x.device().is_cpu() {
        return defaults::rope(x, angles);
    }
    rope_fast(x, angles)
}

fn rope_fast(x: &MlxTensor, angles: &RopeAngles<MlxTensor>) -> Result<MlxTensor> {
    angles.check(x)?;
    x.derive("rope", x.shape(), x.dtype(), |_| {
        // The axis before the last is MLX's sequence: every token is a batch of its own, `[tokens,
        // heads, 1, head_dim]`, at its own offset. MLX's `freqs` are wavelengths: it divides by them.
        fast::rope_dynamic(
            x.array().expand_dims(2)?,
            angles.rotary_dim() as i32,
            angles.interleaved,
            None,
            1.0,
            angles.positions.array(),
            angles.periods.array(),
        )?
        .squeeze_axes(&[2])
    })
}

pub(crate) fn attention(
    q: &MlxTensor,
    k: &MlxTensor,
    v: &MlxTensor,
    mask: AttentionMask,
    scale: f32,
) -> Result<MlxTensor> {
    let op = "attention";
    let n = attention_dims(q, k, v, mask)?;
    let dtype = working_dtype(q);
    if q.shape().numel() == 0 {
        return q.derive(op, q.shape(), q.dtype(), |_| Ok(q.array().clone()));
    }
    // No query sees keys before the first query's window.
    let kv_len = match mask {
        AttentionMask::SlidingWindow(w) => n.kv_len.min((n.q_len - 1).saturating_add(w)),
        _ => n.kv_len,
    };
    if q.device().is_cpu() {
        // Scores are written out in full there.
        let scores = Shape::from([n.heads, n.q_len, kv_len]);
        alloc::reserve(alloc::byte_len(scores, DType::F32)?, q.device())?;
    }
    let last_keys = |t: &MlxTensor| t.narrow(1, n.kv_len - kv_len, kv_len)?.cast(dtype);
    let (wide, k, v) = (q.cast(dtype)?, last_keys(k)?, last_keys(v)?);
    if n.q_len == 1 && cuda::attends(&wide, n.head_dim, kv_len, false) {
        return wide.derive(op, q.shape(), dtype, |dims| {
            let q = wide.array().squeeze_axes(&[1])?.expand_dims(0)?;
            let (k, v) = (k.array().expand_dims(0)?, v.array().expand_dims(0)?);
            let sizes = [1, n.heads, kv_len, n.head_dim];
            cuda::attention(&q, [&k, &v], None, scale, sizes)?.reshape(dims)
        });
    }
    let window;
    let mask = match mask {
        AttentionMask::None => None,
        _ if n.q_len == 1 => None,
        AttentionMask::SlidingWindow(w) if w < kv_len => {
            window = visible(mask, n.q_len, kv_len, q)?;
            Some(SdpaMask::Array(&window))
        }
        // MLX aligns the last query with the last key, as we do.
        _ => Some(SdpaMask::Causal),
    };
    wide.derive(op, q.shape(), dtype, |_| {
        fast::scaled_dot_product_attention(
            wide.array().expand_dims(0)?,
            k.array().expand_dims(0)?,
            v.array().expand_dims(0)?,
            scale,
            mask,
            None,
        )?
        .squeeze_axes(&[0])
    })?
    .cast(q.dtype())
}

pub(crate) fn attention_each(
    q: &MlxTensor,
    k: &MlxTensor,
    v: &MlxTensor,
    mask: Option<&MlxTensor>,
    scale: f32,
) -> Result<MlxTensor> {
    let op = "attention_each";
    let [rows, heads, _, kv_len, d] = attention_each_dims(q, k, v, mask)?;
    if q.shape().numel() == 0 {
        return Ok(q.clone());
    }
    let dtype = working_dtype(q);
    if q.device().is_cpu() {
        let scores = Shape::from([rows, heads, kv_len]);
        alloc::reserve(alloc::byte_len(scores, DType::F32)?, q.device())?;
    }
    let (wide, k, v) = (q.cast(dtype)?, k.cast(dtype)?, v.cast(dtype)?);
    let mask = mask.map(|m| m.cast(dtype)).transpose()?;
    let on_cuda = cuda::attends(&wide, d, kv_len, mask.is_some());
    wide.derive(op, q.shape(), dtype, |_| {
        if on_cuda {
            let mask = mask.as_ref().map(MlxTensor::array);
            let sizes = [rows, heads, kv_len, d];
            return cuda::attention(wide.array(), [k.array(), v.array()], mask, scale, sizes);
        }
        // `[rows, 1, 1, kv_len]`: for all heads and the one query.
        let mask = mask.as_ref().map(|m| m.array().expand_dims_axes(&[1, 2]));
        let mask = mask.transpose()?;
        fast::scaled_dot_product_attention(
            wide.array().expand_dims(2)?,
            k.array(),
            v.array(),
            scale,
            mask.as_ref().map(SdpaMask::Array),
            None,
        )?
        .squeeze_axes(&[2])
    })?
    .cast(q.dtype())
}

/// Where there is a kernel of our own it writes the caches in place: nothing else holds what lies
/// beyond their sequences' ends.
pub(crate) fn decode_attention(
    qkv: &MlxTensor,
    caches: (MlxTensor, MlxTensor),
    with: &Decode<'_, MlxTensor>,
) -> Result<(MlxTensor, (MlxTensor, MlxTensor))> {
    let n = defaults::decode_dims(qkv, (&caches.0, &caches.1), with)?;
    let ours = match qkv.dtype() == caches.0.dtype() {
        true => cuda::decode_attention(qkv, (&caches.0, &caches.1), with, n),
        false => None,
    };
    match ours {
        Some(y) => {
            let shape = Shape::from([n.rows, n.heads * n.head_dim]);
            let y = qkv.derive("decode_attention", shape, qkv.dtype(), |_| y)?;
            Ok((y, caches))
        }
        None => defaults::decode_attention(qkv, caches, with),
    }
}

/// A Boolean mask `[q_len, kv_len]`.
fn visible(mask: AttentionMask, q_len: usize, kv_len: usize, like: &MlxTensor) -> Result<Array> {
    let mut bytes = vec![0u8; q_len * kv_len];
    for (i, row) in bytes.chunks_mut(kv_len).enumerate() {
        row[mask.visible(i, q_len, kv_len)].fill(1);
    }
    let bytes = like.from_bytes_like(&bytes, DType::U8, [q_len, kv_len])?;
    bytes
        .array()
        .as_dtype(Dtype::Bool)
        .map_err(crate::error::failed("attention"))
}

pub(crate) fn silu_mul(x: &MlxTensor, up: &MlxTensor) -> Result<MlxTensor> {
    let op = "silu_mul";
    same_float(op, x, up)?;
    let shape = x.shape().broadcast(op, &up.shape())?;
    let dtype = working_dtype(x);
    let (wide, up) = (x.cast(dtype)?, up.cast(dtype)?);
    wide.derive(op, shape, dtype, |_| {
        if x.device().is_cpu() {
            return silu_times(wide.array(), up.array());
        }
        COMPILED.with_borrow_mut(|c| (c.silu_mul)((wide.array(), up.array())))
    })?
    .cast(x.dtype())
}

pub(crate) fn gelu_tanh_mul(x: &MlxTensor, up: &MlxTensor) -> Result<MlxTensor> {
    if x.device().is_cpu() {
        return defaults::gelu_tanh_mul(x, up);
    }
    let op = "gelu_tanh_mul";
    same_float(op, x, up)?;
    let shape = x.shape().broadcast(op, &up.shape())?;
    x.derive(op, shape, x.dtype(), |_| {
        COMPILED.with_borrow_mut(|c| (c.gelu_tanh_mul)((x.array(), up.array())))
    })
}

type Exception = mlx_rs::error::Exception;
type Compiled2 = Box<dyn for<'a> FnMut((&'a Array, &'a Array)) -> Result<Array, Exception>>;

/// Chains of element-wise operations as one kernel each. Not on the CPU, where MLX would call the
/// system's C++ compiler.
struct Compiled {
    silu_mul: Compiled2,
    gelu_tanh_mul: Compiled2,
}

thread_local! {
    static COMPILED: RefCell<Compiled> = RefCell::new(Compiled {
        silu_mul: Box::new(compile(
            |(x, up): (&Array, &Array)| silu_times(x, up),
            true,
        )),
        gelu_tanh_mul: Box::new(compile(
            |(x, up): (&Array, &Array)| gelu_tanh_times(x, up),
            true,
        )),
    });
}

fn silu_times(x: &Array, up: &Array) -> Result<Array, Exception> {
    x.multiply(mlx::sigmoid(x)?)?.multiply(up)
}

/// In `f32`, as the default.
fn gelu_tanh_times(x: &Array, up: &Array) -> Result<Array, Exception> {
    let dtype = x.dtype();
    let x = x.as_dtype(Dtype::Float32)?;
    let scalar = Array::from_f32;
    let cube = x.multiply(&x)?.multiply(&x)?;
    let root = (2.0 / std::f32::consts::PI).sqrt();
    let inner = x.add(cube.multiply(scalar(0.044715))?)?;
    let t = mlx::tanh(inner.multiply(scalar(root))?)?;
    let gelu = x.multiply(t.add(scalar(1.0))?.multiply(scalar(0.5))?)?;
    gelu.multiply(up.as_dtype(Dtype::Float32)?)?.as_dtype(dtype)
}

pub(crate) fn softmax(x: &MlxTensor) -> Result<MlxTensor> {
    x.shape().last("softmax")?;
    require_float("softmax", x)?;
    x.derive("softmax", x.shape(), x.dtype(), |_| {
        mlx::softmax_axis(x.array(), -1, true)
    })
}

/// By a stable sort of the negated values, which puts NaN last.
pub(crate) fn top_k(x: &MlxTensor, k: usize) -> Result<(MlxTensor, MlxTensor)> {
    let op = "top_k";
    let n = x.shape().last(op)?;
    require_float(op, x)?;
    if k > n {
        return Err(Error::OutOfRange {
            op,
            index: k,
            limit: n,
        });
    }
    let axis = x.shape().rank() - 1;
    // MLX's CUDA sort mixes up rows whose outer axes are swapped.
    let x = &x.derive(op, x.shape(), x.dtype(), |_| x.array().contiguous())?;
    let order = x
        .derive(op, x.shape(), DType::U32, |_| {
            mlx::argsort_axis(x.array().negative()?, -1)
        })?
        .with_id_limit(u32::try_from(n).ok());
    let at = order.narrow(axis, 0, k)?;
    let top = x.derive(op, at.shape(), x.dtype(), |_| {
        x.array().take_along_axis(at.array(), -1)
    })?;
    debug_assert_eq!(top.array().dtype(), mlx_dtype(x.dtype()));
    Ok((top, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MlxBackend;
    use biplane_backend::{Backend, Device};

    fn backend() -> MlxBackend {
        MlxBackend::new(Device::Cpu).unwrap()
    }

    /// Values in -1 .. 1 that repeat late.
    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 12.9898).sin()).collect()
    }

    fn tensor(shape: impl Into<Shape>, dtype: DType) -> MlxTensor {
        let shape = shape.into();
        let x = backend().from_f32s(&values(shape.numel()), shape).unwrap();
        x.cast(dtype).unwrap()
    }

    fn assert_close(got: &MlxTensor, want: &MlxTensor, tolerance: f32) {
        assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()));
        for (i, (a, b)) in got
            .to_f32s()
            .unwrap()
            .iter()
            .zip(want.to_f32s().unwrap())
            .enumerate()
        {
            assert!((a - b).abs() <= tolerance, "{i}: {a}, expected {b}");
        }
    }

    /// The GPU's form of RoPE, run here on the CPU.
    #[test]
    fn the_fast_rope_turns_every_token_at_its_own_position() {
        let backend = backend();
        let inv_freqs = [1.0, 0.3, 0.01, 0.0004];
        for interleaved in [false, true] {
            for (positions, head_dim) in [(vec![0, 7, 7, 4000, 3], 8), (vec![12], 10)] {
                let angles =
                    RopeAngles::new(&backend, &positions, &inv_freqs, interleaved).unwrap();
                let x = tensor([positions.len(), 3, head_dim], DType::F32);
                let want = defaults::rope(&x, &angles).unwrap();
                assert_close(&rope_fast(&x, &angles).unwrap(), &want, 1e-5);
            }
        }
    }

    #[test]
    fn attention_equals_its_default() {
        for dtype in [DType::F32, DType::BF16] {
            for (q_len, kv_len) in [(1, 1), (1, 9), (4, 9), (9, 9), (0, 3)] {
                let q = tensor([6, q_len, 16], dtype);
                // Views of a longer cache, as the KV cache hands out.
                let k = tensor([2, 16, 16], dtype).narrow(1, 3, kv_len).unwrap();
                let v = tensor([2, 12, 16], dtype).narrow(1, 0, kv_len).unwrap();
                for mask in [
                    AttentionMask::None,
                    AttentionMask::Causal,
                    AttentionMask::SlidingWindow(1),
                    AttentionMask::SlidingWindow(3),
                    AttentionMask::SlidingWindow(usize::MAX),
                ] {
                    let got = attention(&q, &k, &v, mask, 0.7).unwrap();
                    let want = defaults::attention(&q, &k, &v, mask, 0.7).unwrap();
                    let tolerance = if dtype == DType::F32 { 1e-5 } else { 0.01 };
                    assert_close(&got, &want, tolerance);
                }
            }
        }
    }

    #[test]
    fn the_largest_come_in_falling_order_and_nan_last() {
        let x = [2.0, f32::NAN, 5.0, -1.0, 5.0, f32::NEG_INFINITY];
        let x = backend().from_f32s(&x, [1, 6]).unwrap();
        let (top, at) = top_k(&x, 6).unwrap();
        assert_eq!(at.to_u32s().unwrap(), [2, 4, 0, 3, 5, 1]);
        assert_eq!(top.to_f32s().unwrap()[..3], [5.0, 5.0, 2.0]);
        assert_eq!(at.id_limit(), Some(6));
        assert!(matches!(
            top_k(&x, 7),
            Err(Error::OutOfRange {
                index: 7,
                limit: 6,
                ..
            })
        ));
    }

    #[test]
    fn scores_that_memory_cannot_hold_are_refused() {
        let x = tensor([1, 1, 1], DType::F32);
        let q = x.broadcast_to([1, 1 << 21, 1]).unwrap();
        assert!(matches!(
            attention(&q, &q, &q, AttentionMask::Causal, 1.0),
            Err(Error::OutOfMemory { .. })
        ));
    }
}
