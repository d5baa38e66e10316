//! A backend that is obviously right: every value an `f64` in row-major order, every result rounded
//! to its element type. Slow; for tests of what is built on the traits.

use std::sync::Arc;

use super::nd::Nd;
use crate::defaults::{require_float, same_float};
use crate::{
    Backend, BinaryOp, DType, Device, Error, PackedMatrix, ReduceOp, Result, Shape, Tensor,
    UnaryOp, WeightMatrix, repack,
};

/// More than any test needs, and less than would trouble a machine.
const MAX_BYTES: usize = 1 << 30;

/// The host's memory and processor.
#[derive(Clone, Debug)]
pub struct HostBackend;

/// A tensor of [`HostBackend`].
#[derive(Clone, Debug)]
pub struct HostTensor {
    dtype: DType,
    data: Arc<Nd>,
}

/// A weight matrix of [`HostBackend`]: dequantized to `f32`.
#[derive(Clone, Debug)]
pub struct HostMatrix(HostTensor);

fn make(dtype: DType, data: Nd) -> HostTensor {
    HostTensor {
        dtype,
        data: Arc::new(data.rounded(dtype)),
    }
}

fn read(op: &'static str, bytes: &[u8], dtype: DType, shape: Shape) -> Result<HostTensor> {
    let expected = shape.numel().saturating_mul(dtype.size());
    if bytes.len() != expected {
        return Err(Error::Bytes {
            op,
            expected,
            got: bytes.len(),
        });
    }
    Ok(HostTensor {
        dtype,
        data: Arc::new(Nd::from_bytes(shape, dtype, bytes)),
    })
}

impl Backend for HostBackend {
    type Tensor = HostTensor;
    type Matrix = HostMatrix;

    const NAME: &'static str = "host";

    fn new(device: Device) -> Result<Self> {
        match device {
            Device::Auto | Device::Cpu => Ok(HostBackend),
            _ => Err(Error::Unsupported {
                backend: Self::NAME,
                what: format!("compute on {device}"),
                instead: "use cpu".into(),
            }),
        }
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<HostTensor> {
        let shape = shape.into();
        let bytes = shape.numel().saturating_mul(8);
        if bytes > MAX_BYTES {
            return Err(Error::OutOfMemory {
                backend: Self::NAME,
                bytes,
            });
        }
        Ok(make(dtype, Nd::from_fn(shape, |_| 0.0)))
    }

    fn from_bytes(
        &self,
        bytes: &[u8],
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Result<HostTensor> {
        read("from_bytes", bytes, dtype, shape.into())
    }

    fn load_matrix(&self, packed: &PackedMatrix<'_>, _: DType) -> Result<HostMatrix> {
        packed.validate()?;
        let [rows, cols] = packed.shape;
        let mut values = vec![0.0; rows * cols];
        repack::dequantize_rows(packed, 0..rows, &mut values)?;
        Ok(HostMatrix(self.from_f32s(&values, packed.shape)?))
    }
}

impl WeightMatrix for HostMatrix {
    type Tensor = HostTensor;

    fn shape(&self) -> [usize; 2] {
        let dims = self.0.data.shape.as_slice();
        [dims[0], dims[1]]
    }

    fn size_in_bytes(&self) -> usize {
        self.0.data.values.len() * 8
    }

    fn matmul_t(&self, x: &HostTensor) -> Result<HostTensor> {
        let op = "matmul_t";
        require_float(op, x)?;
        let [out, cols] = self.shape();
        let shape = x.shape();
        if shape.last(op)? != cols {
            return Err(Error::Shape {
                op,
                lhs: shape,
                rhs: self.0.shape(),
            });
        }
        let rows = shape.numel() / cols;
        let y = x.cast(DType::F32)?.reshape([rows, cols])?;
        let y = y.matmul(&self.0.swap_axes(0, 1)?)?.cast(x.dtype)?;
        y.reshape(shape.with_dim(op, shape.rank() - 1, out)?)
    }

    fn take_rows(&self, ids: &HostTensor, dtype: DType) -> Result<HostTensor> {
        self.0.take_rows(ids)?.cast(dtype)
    }

    fn dequantize(&self, dtype: DType) -> Result<HostTensor> {
        self.0.cast(dtype)
    }
}

impl HostTensor {
    fn make(&self, data: Nd) -> Result<Self> {
        Ok(make(self.dtype, data))
    }

    fn same_type(&self, op: &'static str, other: &Self) -> Result<()> {
        if self.dtype == other.dtype {
            return Ok(());
        }
        Err(Error::DType {
            op,
            got: other.dtype,
            expected: self.dtype.name(),
        })
    }

    fn misfit<T>(&self, op: &'static str, rhs: Shape) -> Result<T> {
        Err(Error::Shape {
            op,
            lhs: self.shape(),
            rhs,
        })
    }

    /// Refuses a range that ends beyond an axis.
    fn check_range(&self, op: &'static str, axis: usize, start: usize, len: usize) -> Result<()> {
        let limit = self.shape().dim(op, axis)?;
        let end = start.saturating_add(len);
        if end <= limit {
            return Ok(());
        }
        Err(Error::OutOfRange {
            op,
            index: end,
            limit,
        })
    }
}

impl Tensor for HostTensor {
    fn shape(&self) -> Shape {
        self.data.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn cast(&self, dtype: DType) -> Result<Self> {
        Ok(make(dtype, (*self.data).clone()))
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(self.data.to_bytes(self.dtype))
    }

    fn from_bytes_like(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        read("from_bytes_like", bytes, dtype, shape.into())
    }

    fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.numel() != self.data.values.len() {
            return self.misfit("reshape", shape);
        }
        self.make(Nd::new(shape, self.data.values.clone()))
    }

    fn swap_axes(&self, a: usize, b: usize) -> Result<Self> {
        self.shape().swapped("swap_axes", a, b)?;
        self.make(self.data.swap_axes(a, b))
    }

    fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if self.shape().broadcast("broadcast_to", &shape)? != shape || shape.numel() > MAX_BYTES {
            return self.misfit("broadcast_to", shape);
        }
        self.make(Nd::from_fn(shape, |index| self.data.at(index)))
    }

    fn concat(tensors: &[&Self], axis: usize) -> Result<Self> {
        let op = "concat";
        let Some((first, rest)) = tensors.split_first() else {
            return Err(Error::OutOfRange {
                op,
                index: 0,
                limit: 0,
            });
        };
        let mut total = first.shape().dim(op, axis)?;
        for t in rest {
            first.same_type(op, t)?;
            let fits = t.shape().rank() == first.shape().rank()
                && t.shape().with_dim(op, axis, 0)? == first.shape().with_dim(op, axis, 0)?;
            if !fits {
                return first.misfit(op, t.shape());
            }
            total += t.shape().dim(op, axis)?;
        }
        let shape = first.shape().with_dim(op, axis, total)?;
        first.make(Nd::from_fn(shape, |index| {
            let mut from = index.to_vec();
            let mut part = 0;
            while from[axis] >= tensors[part].shape().as_slice()[axis] {
                from[axis] -= tensors[part].shape().as_slice()[axis];
                part += 1;
            }
            tensors[part].data.at(&from)
        }))
    }

    fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        self.check_range("narrow", axis, start, len)?;
        let shape = self.shape().with_dim("narrow", axis, len)?;
        self.make(Nd::from_fn(shape, |index| {
            let mut from = index.to_vec();
            from[axis] += start;
            // An axis of length 1 is indexed like any other here.
            self.data.at(&from)
        }))
    }

    fn write_slice(self, axis: usize, start: usize, src: &Self) -> Result<Self> {
        let op = "write_slice";
        self.shape().dim(op, axis)?;
        self.same_type(op, src)?;
        let len = src.shape().as_slice().get(axis).copied().unwrap_or(0);
        let fits = src.shape().rank() == self.shape().rank()
            && self.shape().with_dim(op, axis, len)? == src.shape();
        if !fits {
            return self.misfit(op, src.shape());
        }
        self.check_range(op, axis, start, len)?;
        self.make(Nd::from_fn(self.shape(), |index| {
            let mut from = index.to_vec();
            match index[axis].checked_sub(start) {
                Some(i) if i < len => {
                    from[axis] = i;
                    src.data.at(&from)
                }
                _ => self.data.at(index),
            }
        }))
    }

    fn unary(&self, op: UnaryOp) -> Result<Self> {
        require_float("unary", self)?;
        self.make(self.data.map(|x| match op {
            UnaryOp::Neg => -x,
            UnaryOp::Exp => x.exp(),
            UnaryOp::Log => x.ln(),
            UnaryOp::Sqrt => x.sqrt(),
            UnaryOp::Recip => x.recip(),
            UnaryOp::Tanh => x.tanh(),
            UnaryOp::Sin => x.sin(),
            UnaryOp::Cos => x.cos(),
        }))
    }

    fn binary(&self, op: BinaryOp, rhs: &Self) -> Result<Self> {
        same_float("binary", self, rhs)?;
        let shape = self.shape().broadcast("binary", &rhs.shape())?;
        self.make(Nd::from_fn(shape, |index| {
            let (a, b) = (self.data.at(index), rhs.data.at(index));
            match op {
                BinaryOp::Add => a + b,
                BinaryOp::Sub => a - b,
                BinaryOp::Mul => a * b,
                BinaryOp::Div => a / b,
                BinaryOp::Max => a.max(b),
                BinaryOp::Min => a.min(b),
            }
        }))
    }

    fn affine(&self, mul: f64, add: f64) -> Result<Self> {
        require_float("affine", self)?;
        self.make(self.data.map(|x| x * mul + add))
    }

    fn matmul(&self, rhs: &Self) -> Result<Self> {
        let op = "matmul";
        same_float(op, self, rhs)?;
        for t in [self, rhs] {
            if t.shape().rank() < 2 {
                return Err(Error::Rank {
                    op,
                    expected: 2,
                    got: t.shape().rank(),
                });
            }
        }
        let (lhs_shape, rhs_shape) = (self.shape(), rhs.shape());
        let (a, b) = (lhs_shape.as_slice(), rhs_shape.as_slice());
        let (batch, [m, k]) = a.split_at(a.len() - 2) else {
            return self.misfit(op, rhs_shape);
        };
        let (rhs_batch, [rhs_k, n]) = b.split_at(b.len() - 2) else {
            return self.misfit(op, rhs_shape);
        };
        if k != rhs_k || !(rhs_batch.is_empty() || batch == rhs_batch) {
            return self.misfit(op, rhs_shape);
        }
        let batches: usize = batch.iter().product();
        let mut y = Vec::with_capacity(batches * m * n);
        for i in 0..batches {
            let x = &self.data.values[i * m * k..];
            let w = &rhs.data.values[if rhs_batch.is_empty() { 0 } else { i * k * n }..];
            for row in 0..*m {
                y.extend((0..*n).map(|col| {
                    let products = (0..*k).map(|j| x[row * k + j] * w[j * n + col]);
                    products.sum::<f64>()
                }));
            }
        }
        let shape = lhs_shape.with_dim(op, a.len() - 1, *n)?;
        self.make(Nd::new(shape, y))
    }

    fn select(mask: &Self, on_true: &Self, on_false: &Self) -> Result<Self> {
        let op = "select";
        if mask.dtype != DType::U8 {
            return Err(Error::DType {
                op,
                got: mask.dtype,
                expected: "u8",
            });
        }
        on_true.same_type(op, on_false)?;
        let shape = on_true.shape();
        if on_false.shape() != shape {
            return on_true.misfit(op, on_false.shape());
        }
        if mask.shape().broadcast(op, &shape)? != shape {
            return on_true.misfit(op, mask.shape());
        }
        on_true.make(Nd::from_fn(shape, |index| {
            if mask.data.at(index) != 0.0 {
                on_true.data.at(index)
            } else {
                on_false.data.at(index)
            }
        }))
    }

    fn reduce(&self, op: ReduceOp, axis: usize) -> Result<Self> {
        let len = self.shape().dim("reduce", axis)?;
        require_float("reduce", self)?;
        if len == 0 && op != ReduceOp::Sum {
            return Err(Error::OutOfRange {
                op: "reduce",
                index: 0,
                limit: 0,
            });
        }
        let dtype = match op {
            ReduceOp::ArgMax => DType::U32,
            _ => self.dtype,
        };
        let shape = self.shape().with_dim("reduce", axis, 1)?;
        let data = Nd::from_fn(shape, |index| {
            let mut from = index.to_vec();
            let (mut sum, mut top, mut at) = (0.0, f64::NEG_INFINITY, 0);
            for i in 0..len {
                from[axis] = i;
                let v = self.data.at(&from);
                sum += v;
                if v > top {
                    (top, at) = (v, i);
                }
            }
            match op {
                ReduceOp::Sum => sum,
                ReduceOp::Max => top,
                ReduceOp::ArgMax => at as f64,
            }
        });
        Ok(make(dtype, data))
    }

    fn take_rows(&self, ids: &Self) -> Result<Self> {
        let op = "take_rows";
        let [rows, cols] = self.shape().dims(op)?;
        let [n] = ids.shape().dims(op)?;
        if ids.dtype != DType::U32 {
            return Err(Error::DType {
                op,
                got: ids.dtype,
                expected: "u32",
            });
        }
        if let Some(&id) = ids.data.values.iter().find(|&&id| id >= rows as f64) {
            return Err(Error::OutOfRange {
                op,
                index: id as usize,
                limit: rows,
            });
        }
        self.make(Nd::from_fn([n, cols], |i| {
            let row = ids.data.values[i[0]] as usize;
            self.data.at(&[row, i[1]])
        }))
    }
}
