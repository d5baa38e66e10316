//! The fused operations made of primitives, and the checks of their arguments: what
//! [`Tensor`]'s methods do by default, for backends that override a method only in part.

use crate::{Around, DType, Error, ReduceOp, Result, Shape, Tensor, UnaryOp, WeightMatrix};

pub use crate::attention::{
    AttentionDims, attention_default as attention, attention_dims,
    attention_each_default as attention_each, attention_each_dims, attention_quantized_dims,
};
pub use crate::decode::{DecodeDims, decode_attention_default as decode_attention, decode_dims};
pub use crate::kept::{
    attention_each_quantized_default as attention_each_quantized,
    attention_quantized_default as attention_quantized, dequantize_kv_default as dequantize_kv,
    quantize_kv_default as quantize_kv, quantize_kv_shape,
};
pub use crate::rope::rope_default as rope;

/// A product and what comes before and after it, one by one.
///
/// # Errors
/// As [`WeightMatrix::matmul_t_with`].
pub fn matmul_t_with<M: WeightMatrix>(
    matrix: &M,
    x: &M::Tensor,
    around: &Around<'_, M::Tensor>,
) -> Result<M::Tensor> {
    let op = "matmul_t_with";
    let mut y = match around.norm {
        Some((weight, eps)) => matrix.matmul_t(&x.rms_norm(weight, eps)?)?,
        None => matrix.matmul_t(x)?,
    };
    if let Some(bias) = around.bias {
        y = y.add(bias)?;
    }
    if let Some(gate) = around.gate {
        let shape = y.shape();
        let (n, axis) = (shape.last(op)?, shape.rank() - 1);
        if !n.is_multiple_of(2) {
            return Err(Error::Shape {
                op,
                lhs: x.shape(),
                rhs: Shape::from(matrix.shape()),
            });
        }
        y = gate.apply(&y.narrow(axis, 0, n / 2)?, &y.narrow(axis, n / 2, n / 2)?)?;
    }
    after(y, around)
}

/// What [`Around`] does last.
///
/// # Errors
/// As [`WeightMatrix::matmul_t_with`].
pub fn after<T: Tensor>(mut y: T, around: &Around<'_, T>) -> Result<T> {
    if let Some((weight, eps)) = around.norm_after {
        y = y.rms_norm(weight, eps)?;
    }
    match around.add {
        Some(add) if add.shape() == y.shape() => add.add(&y),
        Some(add) => Err(Error::Shape {
            op: "matmul_t_with",
            lhs: y.shape(),
            rhs: add.shape(),
        }),
        None => Ok(y),
    }
}

/// RMSNorm out of primitives.
///
/// # Errors
/// As [`Tensor::rms_norm`].
pub fn rms_norm<T: Tensor>(input: &T, weight: &T, eps: f32) -> Result<T> {
    let n = norm_len("rms_norm", input, weight)?;
    let x = input.cast(DType::F32)?;
    let axis = x.shape().rank() - 1;
    let mean = x
        .mul(&x)?
        .reduce(ReduceOp::Sum, axis)?
        .affine(1.0 / n as f64, f64::from(eps))?;
    x.div(&mean.unary(UnaryOp::Sqrt)?)?
        .mul(&weight.cast(DType::F32)?)?
        .cast(input.dtype())
}

/// LayerNorm out of primitives.
///
/// # Errors
/// As [`Tensor::layer_norm`].
pub fn layer_norm<T: Tensor>(input: &T, weight: &T, bias: Option<&T>, eps: f32) -> Result<T> {
    let n = norm_len("layer_norm", input, weight)? as f64;
    if let Some(bias) = bias {
        norm_len("layer_norm", input, bias)?;
    }
    let x = input.cast(DType::F32)?;
    let axis = x.shape().rank() - 1;
    let x = x.sub(&x.reduce(ReduceOp::Sum, axis)?.affine(1.0 / n, 0.0)?)?;
    let var = x
        .mul(&x)?
        .reduce(ReduceOp::Sum, axis)?
        .affine(1.0 / n, f64::from(eps))?;
    let y = x
        .div(&var.unary(UnaryOp::Sqrt)?)?
        .mul(&weight.cast(DType::F32)?)?;
    match bias {
        Some(bias) => y.add(&bias.cast(DType::F32)?)?,
        None => y,
    }
    .cast(input.dtype())
}

/// SiLU times `up` out of primitives.
///
/// # Errors
/// As [`Tensor::silu_mul`].
pub fn silu_mul<T: Tensor>(input: &T, up: &T) -> Result<T> {
    same_float("silu_mul", input, up)?;
    let x = input.cast(DType::F32)?;
    let denominator = x
        .unary(UnaryOp::Neg)?
        .unary(UnaryOp::Exp)?
        .affine(1.0, 1.0)?;
    x.div(&denominator)?
        .mul(&up.cast(DType::F32)?)?
        .cast(input.dtype())
}

/// GELU times `up` out of primitives.
///
/// # Errors
/// As [`Tensor::gelu_tanh_mul`].
pub fn gelu_tanh_mul<T: Tensor>(input: &T, up: &T) -> Result<T> {
    same_float("gelu_tanh_mul", input, up)?;
    let x = input.cast(DType::F32)?;
    let cube = x.mul(&x)?.mul(&x)?.affine(0.044715, 0.0)?;
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let t = x.add(&cube)?.affine(root, 0.0)?.unary(UnaryOp::Tanh)?;
    x.mul(&t.affine(0.5, 0.5)?)?
        .mul(&up.cast(DType::F32)?)?
        .cast(input.dtype())
}

/// Softmax out of primitives.
///
/// # Errors
/// As [`Tensor::softmax`].
pub fn softmax<T: Tensor>(input: &T) -> Result<T> {
    input.shape().last("softmax")?;
    require_float("softmax", input)?;
    let axis = input.shape().rank() - 1;
    let x = input.cast(DType::F32)?;
    let e = x
        .sub(&x.reduce(ReduceOp::Max, axis)?)?
        .unary(UnaryOp::Exp)?;
    e.div(&e.reduce(ReduceOp::Sum, axis)?)?.cast(input.dtype())
}

/// Positions of largest elements out of primitives.
///
/// # Errors
/// As [`Tensor::argmax`].
pub fn argmax<T: Tensor>(input: &T) -> Result<T> {
    input.shape().last("argmax")?;
    let shape = input.shape();
    let axis = shape.rank() - 1;
    let dims = Shape::new(&shape.as_slice()[..axis])?;
    input.reduce(ReduceOp::ArgMax, axis)?.reshape(dims)
}

/// Checks a norm's operands; gives the length of the normalized axis.
///
/// # Errors
/// [`Error::DType`], [`Error::Rank`] for a scalar, [`Error::Shape`].
pub fn norm_len<T: Tensor>(op: &'static str, x: &T, weight: &T) -> Result<usize> {
    require_float(op, x)?;
    require_float(op, weight)?;
    let n = x.shape().last(op)?;
    if weight.shape() != Shape::from([n]) {
        return Err(Error::Shape {
            op,
            lhs: x.shape(),
            rhs: weight.shape(),
        });
    }
    Ok(n)
}

/// Refuses integers.
///
/// # Errors
/// [`Error::DType`].
pub fn require_float<T: Tensor>(op: &'static str, x: &T) -> Result<()> {
    if x.dtype().is_float() {
        return Ok(());
    }
    Err(Error::DType {
        op,
        got: x.dtype(),
        expected: "a floating-point type",
    })
}

/// Refuses integers and unlike element types.
///
/// # Errors
/// [`Error::DType`].
pub fn same_float<T: Tensor>(op: &'static str, a: &T, b: &T) -> Result<()> {
    require_float(op, a)?;
    require_float(op, b)?;
    if a.dtype() == b.dtype() {
        return Ok(());
    }
    Err(Error::DType {
        op,
        got: b.dtype(),
        expected: a.dtype().name(),
    })
}
