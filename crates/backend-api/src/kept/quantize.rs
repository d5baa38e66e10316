//! Quantization of keys and values out of primitives.

use super::{KvSpec, QuantizedKv};
use crate::{
    AttentionMask, BinaryOp, DType, Error, ReduceOp, Result, Shape, Tensor, defaults::require_float,
};

/// [`Tensor::quantize_kv`] out of primitives.
///
/// # Errors
/// As [`Tensor::quantize_kv`].
pub fn quantize_kv_default<T: Tensor>(x: &T, spec: KvSpec) -> Result<QuantizedKv<T>> {
    let op = "quantize_kv";
    let shape = quantize_kv_shape(x, spec)?;
    let last = shape.rank() - 1;
    let groups = shape.numel() / spec.group_size;
    let x = x.cast(DType::F32)?.reshape([groups, spec.group_size])?;
    let scalar = |v: f32| x.from_bytes_like(&v.to_le_bytes(), DType::F32, [1, 1]);
    let levels = f32::from(spec.levels());
    let most = x.reduce(ReduceOp::Max, 1)?;
    let least = x
        .affine(-1.0, 0.0)?
        .reduce(ReduceOp::Max, 1)?
        .affine(-1.0, 0.0)?;
    // Nothing where all are finite, else NaN.
    let broken = x.affine(0.0, 0.0)?.reduce(ReduceOp::Sum, 1)?;
    let scales = most.sub(&least)?.div(&scalar(levels)?)?.cast(spec.scales)?;
    let biases = least.add(&broken)?.cast(spec.scales)?;
    // A scale of nothing makes all codes alike.
    let steps = scales
        .cast(DType::F32)?
        .binary(BinaryOp::Max, &scalar(f32::MIN_POSITIVE)?)?;
    let codes = x
        .sub(&biases.cast(DType::F32)?)?
        .div(&steps)?
        .affine(1.0, 0.5)?
        .binary(BinaryOp::Max, &scalar(0.0)?)?
        .binary(BinaryOp::Min, &scalar(levels)?)?
        .cast(DType::U8)?;
    let codes = match spec.bits {
        8 => codes,
        _ => {
            let pairs = codes.cast(DType::F32)?.reshape([shape.numel() / 2, 2])?;
            let (low, high) = (pairs.narrow(1, 0, 1)?, pairs.narrow(1, 1, 1)?);
            low.add(&high.affine(16.0, 0.0)?)?.cast(DType::U8)?
        }
    };
    let head_dim = shape.last(op)?;
    let by_group = shape.with_dim(op, last, head_dim / spec.group_size)?;
    Ok(QuantizedKv {
        codes: codes.reshape(shape.with_dim(op, last, spec.code_bytes(head_dim))?)?,
        scales: scales.reshape(by_group)?,
        biases: biases.reshape(by_group)?,
        spec,
    })
}

/// What [`Tensor::quantize_kv`] takes; gives its shape.
///
/// # Errors
/// [`Error::DType`], [`Error::Rank`] for a scalar, [`Error::Shape`] for a last axis that is no whole
/// groups, [`Error::OutOfRange`] for a width of codes that is not 4 or 8.
pub fn quantize_kv_shape<T: Tensor>(x: &T, spec: KvSpec) -> Result<Shape> {
    let op = "quantize_kv";
    require_float(op, x)?;
    let shape = x.shape();
    let last = shape.last(op)?;
    if !matches!(spec.bits, 4 | 8) {
        return Err(Error::OutOfRange {
            op,
            index: spec.bits.into(),
            limit: 8,
        });
    }
    if spec.group_size == 0
        || !spec.group_size.is_multiple_of(2)
        || !last.is_multiple_of(spec.group_size)
    {
        return Err(Error::Shape {
            op,
            lhs: shape,
            rhs: Shape::from([spec.group_size]),
        });
    }
    Ok(shape)
}

/// [`Tensor::dequantize_kv`] out of primitives.
///
/// # Errors
/// As [`Tensor::dequantize_kv`].
pub fn dequantize_kv_default<T: Tensor>(kept: &QuantizedKv<T>, dtype: DType) -> Result<T> {
    let shape = kept.shape("dequantize_kv")?;
    let bytes = kept.codes.cast(DType::F32)?;
    let codes = match kept.spec.bits {
        8 => bytes,
        _ => {
            let bytes = bytes.reshape([shape.numel() / 2, 1])?;
            let high = bytes
                .affine(1.0 / 16.0, 0.0)?
                .cast(DType::U8)?
                .cast(DType::F32)?;
            let low = bytes.sub(&high.affine(16.0, 0.0)?)?;
            T::concat(&[&low, &high], 1)?
        }
    };
    let groups = shape.numel() / kept.spec.group_size;
    let per_group = |t: &T| t.cast(DType::F32)?.reshape([groups, 1]);
    codes
        .reshape([groups, kept.spec.group_size])?
        .mul(&per_group(&kept.scales)?)?
        .add(&per_group(&kept.biases)?)?
        .reshape(shape)?
        .cast(dtype)
}

/// [`Tensor::attention`] over the values of codes.
///
/// # Errors
/// As [`Tensor::attention_quantized`].
pub fn attention_quantized_default<T: Tensor>(
    q: &T,
    k: &QuantizedKv<T>,
    v: &QuantizedKv<T>,
    mask: AttentionMask,
    scale: f32,
) -> Result<T> {
    require_float("attention", q)?;
    let values = |kept| T::dequantize_kv(kept, q.dtype());
    q.attention(&values(k)?, &values(v)?, mask, scale)
}

/// [`Tensor::attention_each`] over the values of codes.
///
/// # Errors
/// As [`Tensor::attention_each_quantized`].
pub fn attention_each_quantized_default<T: Tensor>(
    q: &T,
    k: &QuantizedKv<T>,
    v: &QuantizedKv<T>,
    mask: Option<&T>,
    scale: f32,
) -> Result<T> {
    require_float("attention_each", q)?;
    let values = |kept| T::dequantize_kv(kept, q.dtype());
    q.attention_each(&values(k)?, &values(v)?, mask, scale)
}
