//! Arithmetic.

use biplane_backend::defaults::{require_float, same_float};
use biplane_backend::{BinaryOp, DType, Error, ReduceOp, Result, Shape, Tensor, UnaryOp};
use mlx_rs::{Array, Dtype, ops as mlx};

use crate::MlxTensor;
use crate::tensor::mlx_dtype;

pub(crate) fn unary(x: &MlxTensor, op: UnaryOp) -> Result<MlxTensor> {
    require_float("unary", x)?;
    x.derive("unary", x.shape(), x.dtype(), |_| {
        let a = x.array();
        match op {
            UnaryOp::Neg => a.negative(),
            UnaryOp::Exp => a.exp(),
            UnaryOp::Log => a.log(),
            UnaryOp::Sqrt => a.sqrt(),
            UnaryOp::Recip => a.reciprocal(),
            UnaryOp::Tanh => mlx::tanh(a),
            UnaryOp::Sin => a.sin(),
            UnaryOp::Cos => a.cos(),
        }
    })
}

pub(crate) fn binary(x: &MlxTensor, op: BinaryOp, rhs: &MlxTensor) -> Result<MlxTensor> {
    same_float("binary", x, rhs)?;
    let shape = x.shape().broadcast("binary", &rhs.shape())?;
    x.derive("binary", shape, x.dtype(), |_| {
        let (a, b) = (x.array(), rhs.array());
        match op {
            BinaryOp::Add => a.add(b),
            BinaryOp::Sub => a.subtract(b),
            BinaryOp::Mul => a.multiply(b),
            BinaryOp::Div => a.divide(b),
            BinaryOp::Max => mlx::maximum(a, b),
            BinaryOp::Min => mlx::minimum(a, b),
        }
    })
}

pub(crate) fn affine(x: &MlxTensor, mul: f64, add: f64) -> Result<MlxTensor> {
    require_float("affine", x)?;
    // An f32 scalar would promote a half.
    let scalar = |v: f64| Array::from_f32(v as f32).as_dtype(mlx_dtype(x.dtype()));
    x.derive("affine", x.shape(), x.dtype(), |_| {
        let product = match mul {
            1.0 => x.array().clone(),
            _ => x.array().multiply(scalar(mul)?)?,
        };
        match add {
            0.0 => Ok(product),
            _ => product.add(scalar(add)?),
        }
    })
}

pub(crate) fn matmul(x: &MlxTensor, rhs: &MlxTensor) -> Result<MlxTensor> {
    let op = "matmul";
    same_float(op, x, rhs)?;
    let (a, b) = (x.shape(), rhs.shape());
    for shape in [a, b] {
        if shape.rank() < 2 {
            return Err(Error::Rank {
                op,
                expected: 2,
                got: shape.rank(),
            });
        }
    }
    let (batch_a, a2) = a.as_slice().split_at(a.rank() - 2);
    let (batch_b, b2) = b.as_slice().split_at(b.rank() - 2);
    if a2[1] != b2[0] || !(batch_b.is_empty() || batch_a == batch_b) {
        return Err(Error::Shape { op, lhs: a, rhs: b });
    }
    let shape = a.with_dim(op, a.rank() - 1, b2[1])?;
    x.derive(op, shape, x.dtype(), |dims| match a2[1] {
        0 => mlx::zeros_dtype(dims, mlx_dtype(x.dtype())),
        _ => x.array().matmul(rhs.array()),
    })
}

pub(crate) fn select(
    mask: &MlxTensor,
    on_true: &MlxTensor,
    on_false: &MlxTensor,
) -> Result<MlxTensor> {
    let op = "select";
    for (got, expected) in [
        (mask.dtype(), DType::U8),
        (on_false.dtype(), on_true.dtype()),
    ] {
        if got != expected {
            return Err(Error::DType {
                op,
                got,
                expected: expected.name(),
            });
        }
    }
    let shape = on_true.shape();
    for other in [on_false.shape(), mask.shape().broadcast(op, &shape)?] {
        if other != shape {
            return Err(Error::Shape {
                op,
                lhs: shape,
                rhs: other,
            });
        }
    }
    let out = on_true.derive(op, shape, on_true.dtype(), |_| {
        mlx::select(
            mask.array().as_dtype(Dtype::Bool)?,
            on_true.array(),
            on_false.array(),
        )
    })?;
    let limit = on_true.id_limit().zip(on_false.id_limit());
    Ok(out.with_id_limit(limit.map(|(a, b)| a.max(b))))
}

pub(crate) fn reduce(x: &MlxTensor, op: ReduceOp, axis: usize) -> Result<MlxTensor> {
    let name = "reduce";
    let len = x.shape().dim(name, axis)?;
    require_float(name, x)?;
    if len == 0 && op != ReduceOp::Sum {
        return Err(Error::OutOfRange {
            op: name,
            index: 0,
            limit: 0,
        });
    }
    let shape: Shape = x.shape().with_dim(name, axis, 1)?;
    let axis = axis as i32;
    match op {
        ReduceOp::Sum => x.derive(name, shape, x.dtype(), |_| sum(x, axis)),
        ReduceOp::Max => x.derive(name, shape, x.dtype(), |_| x.array().max_axis(axis, true)),
        ReduceOp::ArgMax => Ok(x
            .derive(name, shape, DType::U32, |_| {
                mlx::indexing::argmax_axis(x.array(), axis, true)
            })?
            .with_id_limit(u32::try_from(len).ok())),
    }
}

/// MLX on the CPU adds halves up in halves: 4096 ones in bf16 sum to 256.
fn sum(x: &MlxTensor, axis: i32) -> Result<Array, mlx_rs::error::Exception> {
    if x.dtype() == DType::F32 || !x.device().is_cpu() {
        return x.array().sum_axis(axis, true);
    }
    x.array()
        .as_dtype(Dtype::Float32)?
        .sum_axis(axis, true)?
        .as_dtype(mlx_dtype(x.dtype()))
}
