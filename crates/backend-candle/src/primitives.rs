//! The required operations on candle tensors.
//!
//! Arguments are checked here first, so that errors are Biplane's. Tensors without elements never
//! reach candle's kernels, some of which divide by an axis' length.

use biplane_backend::{
    BinaryOp, DType, Error, ReduceOp, Result, Shape, Tensor, UnaryOp,
    defaults::{require_float, same_float},
};
use candle_core::Tensor as Inner;

use crate::{CandleTensor, bytes::candle_dtype, failed, fused, gpu, memory};

impl CandleTensor {
    pub(crate) fn cast_to(&self, dtype: DType) -> Result<Self> {
        let shape = self.shape();
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        if shape.numel() == 0 {
            return self.zeros_like(shape, dtype);
        }
        if dtype == DType::F16 && self.is_cpu_f32() {
            return fused::to_f16(self);
        }
        let half = |dtype| matches!(dtype, DType::F16 | DType::BF16);
        let from = self.dtype();
        if self.is_on_gpu()
            && (from == DType::I32 && half(dtype) || half(from) && dtype == DType::I32)
        {
            // candle's kernels for GPUs do not go from one to the other.
            return self.cast_to(DType::F32)?.cast_to(dtype);
        }
        let inner = self
            .inner
            .to_dtype(candle_dtype(dtype, self.inner.device()))
            .map_err(failed("cast"))?;
        Ok(CandleTensor::new(inner, shape, dtype))
    }

    pub(crate) fn reshaped(&self, shape: Shape) -> Result<Self> {
        let op = "reshape";
        if shape.numel() != self.shape().numel() {
            return Err(Error::Shape {
                op,
                lhs: self.shape(),
                rhs: shape,
            });
        }
        if shape.numel() == 0 {
            return self.zeros_like(shape, self.dtype());
        }
        let inner = self.inner.reshape(shape.as_slice()).map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, self.dtype()))
    }

    pub(crate) fn swapped(&self, a: usize, b: usize) -> Result<Self> {
        let op = "swap_axes";
        let shape = self.shape().swapped(op, a, b)?;
        let inner = self.inner.transpose(a, b).map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, self.dtype()))
    }

    pub(crate) fn broadcasted(&self, shape: Shape) -> Result<Self> {
        let op = "broadcast_to";
        if self.shape().broadcast(op, &shape)? != shape {
            return Err(Error::Shape {
                op,
                lhs: self.shape(),
                rhs: shape,
            });
        }
        self.stretched(op, shape)
    }

    /// `self` as a view of a shape it is known to broadcast to.
    fn stretched(&self, op: &'static str, shape: Shape) -> Result<Self> {
        if shape == self.shape() {
            return Ok(self.clone());
        }
        // A view costs nothing, but whatever reads it makes all of it.
        memory::check(shape, self.dtype(), self.inner.device())?;
        let inner = self
            .inner
            .broadcast_as(shape.as_slice())
            .map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, self.dtype()))
    }

    pub(crate) fn concatenated(tensors: &[&Self], axis: usize) -> Result<Self> {
        let op = "concat";
        let Some((first, rest)) = tensors.split_first() else {
            return Err(Error::OutOfRange {
                op,
                index: 0,
                limit: 0,
            });
        };
        let mut len = first.shape().dim(op, axis)?;
        for t in rest {
            if t.dtype() != first.dtype() {
                return Err(Error::DType {
                    op,
                    got: t.dtype(),
                    expected: first.dtype().name(),
                });
            }
            let mismatch = || Error::Shape {
                op,
                lhs: first.shape(),
                rhs: t.shape(),
            };
            let own = t.shape().dim(op, axis).map_err(|_| mismatch())?;
            if t.shape().with_dim(op, axis, 0)? != first.shape().with_dim(op, axis, 0)? {
                return Err(mismatch());
            }
            len = len.saturating_add(own);
        }
        let shape = first.shape().with_dim(op, axis, len)?;
        memory::check(shape, first.dtype(), first.inner.device())?;
        if shape.numel() == 0 {
            return first.zeros_like(shape, first.dtype());
        }
        let parts: Vec<&Inner> = tensors
            .iter()
            .filter(|t| t.shape().numel() > 0)
            .map(|t| &t.inner)
            .collect();
        let inner = Inner::cat(&parts, axis).map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, first.dtype()))
    }

    pub(crate) fn narrowed(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let op = "narrow";
        let shape = self.shape().with_dim(op, axis, len)?;
        in_range(op, start, len, self.shape().dim(op, axis)?)?;
        let inner = self.inner.narrow(axis, start, len).map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, self.dtype()))
    }

    pub(crate) fn written(self, axis: usize, start: usize, src: &Self) -> Result<Self> {
        let op = "write_slice";
        let limit = self.shape().dim(op, axis)?;
        if src.dtype() != self.dtype() {
            return Err(Error::DType {
                op,
                got: src.dtype(),
                expected: self.dtype().name(),
            });
        }
        let mismatch = || Error::Shape {
            op,
            lhs: self.shape(),
            rhs: src.shape(),
        };
        let len = src.shape().dim(op, axis).map_err(|_| mismatch())?;
        if src.shape().with_dim(op, axis, limit)? != self.shape() {
            return Err(mismatch());
        }
        in_range(op, start, len, limit)?;
        if src.shape().numel() == 0 {
            return Ok(self);
        }
        let write = || {
            let target = self.inner.contiguous()?;
            // candle refuses to copy within one storage.
            let src = if shares_storage(&target, &src.inner) {
                src.inner.force_contiguous()?
            } else {
                src.inner.contiguous()?
            };
            target.slice_set(&src, axis, start)?;
            Ok(target)
        };
        let inner = write().map_err(failed(op))?;
        Ok(CandleTensor::new(inner, self.shape(), self.dtype()))
    }

    pub(crate) fn mapped(&self, op: UnaryOp) -> Result<Self> {
        require_float("unary", self)?;
        if self.shape().numel() == 0 {
            return Ok(self.clone());
        }
        let x = &self.inner;
        let inner = match op {
            UnaryOp::Neg => x.neg(),
            UnaryOp::Exp => x.exp(),
            UnaryOp::Log => x.log(),
            UnaryOp::Sqrt => x.sqrt(),
            UnaryOp::Recip => x.recip(),
            UnaryOp::Tanh => x.tanh(),
            UnaryOp::Sin => x.sin(),
            UnaryOp::Cos => x.cos(),
        }
        .map_err(failed("unary"))?;
        Ok(CandleTensor::new(inner, self.shape(), self.dtype()))
    }

    pub(crate) fn zipped(&self, op: BinaryOp, rhs: &Self) -> Result<Self> {
        let name = "binary";
        same_float(name, self, rhs)?;
        let shape = self.shape().broadcast(name, &rhs.shape())?;
        if shape.numel() == 0 {
            return self.zeros_like(shape, self.dtype());
        }
        if self.is_cpu_f32() && rhs.is_cpu_f32() && self.shape() == rhs.shape() {
            // candle shares such work out among threads of its own, which then keep ours from their cores.
            match op {
                BinaryOp::Add => return fused::zipped(self, rhs, |a, b| a + b),
                BinaryOp::Mul => return fused::zipped(self, rhs, |a, b| a * b),
                _ => {}
            }
        }
        let (a, b) = (self.stretched(name, shape)?, rhs.stretched(name, shape)?);
        let (a, b) = (&a.inner, &b.inner);
        let inner = match op {
            BinaryOp::Add => a.add(b),
            BinaryOp::Sub => a.sub(b),
            BinaryOp::Mul => a.mul(b),
            BinaryOp::Div => a.div(b),
            BinaryOp::Max => a.maximum(b),
            BinaryOp::Min => a.minimum(b),
        }
        .map_err(failed(name))?;
        Ok(CandleTensor::new(inner, shape, self.dtype()))
    }

    pub(crate) fn scaled(&self, mul: f64, add: f64) -> Result<Self> {
        require_float("affine", self)?;
        if self.shape().numel() == 0 {
            return Ok(self.clone());
        }
        if self.is_cpu_f32() {
            let (mul, add) = (mul as f32, add as f32);
            return fused::mapped(self, |x| x * mul + add);
        }
        let inner = self.inner.affine(mul, add).map_err(failed("affine"))?;
        Ok(CandleTensor::new(inner, self.shape(), self.dtype()))
    }

    pub(crate) fn multiplied(&self, rhs: &Self) -> Result<Self> {
        let op = "matmul";
        same_float(op, self, rhs)?;
        let (a, b) = (self.shape(), rhs.shape());
        for shape in [a, b] {
            if shape.rank() < 2 {
                return Err(Error::Rank {
                    op,
                    expected: 2,
                    got: shape.rank(),
                });
            }
        }
        let (lead_a, lead_b) = (a.rank() - 2, b.rank() - 2);
        let [m, k] = [a.dim(op, lead_a)?, a.dim(op, lead_a + 1)?];
        let [rows, n] = [b.dim(op, lead_b)?, b.dim(op, lead_b + 1)?];
        let same_lead = a.as_slice()[..lead_a] == b.as_slice()[..lead_b];
        if k != rows || !(lead_b == 0 || same_lead) {
            return Err(Error::Shape { op, lhs: a, rhs: b });
        }
        let shape = a.with_dim(op, lead_a + 1, n)?;
        memory::check(shape, self.dtype(), self.inner.device())?;
        if shape.numel() == 0 || k == 0 {
            return self.zeros_like(shape, self.dtype());
        }
        if self.dtype() != DType::F32 && !self.is_on_gpu() {
            // Neither gemm nor Accelerate has both half types.
            let product = self
                .cast_to(DType::F32)?
                .multiplied(&rhs.cast_to(DType::F32)?)?;
            return product.cast_to(self.dtype());
        }
        let product = || {
            if lead_b == 0 && lead_a > 0 {
                // One product of all rows instead of one for every leading index.
                let rows = a.numel() / k;
                debug_assert_eq!(rows % m, 0);
                let lhs = self.inner.reshape((rows, k))?;
                lhs.matmul(&matrix_order(&rhs.inner)?)?
                    .reshape(shape.as_slice())
            } else {
                matrix_order(&self.inner)?.matmul(&matrix_order(&rhs.inner)?)
            }
        };
        let inner = product().map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, self.dtype()))
    }

    pub(crate) fn selected(mask: &Self, on_true: &Self, on_false: &Self) -> Result<Self> {
        let op = "select";
        let expect = |t: &Self, dtype: DType| {
            if t.dtype() == dtype {
                return Ok(());
            }
            Err(Error::DType {
                op,
                got: t.dtype(),
                expected: dtype.name(),
            })
        };
        expect(mask, DType::U8)?;
        expect(on_false, on_true.dtype())?;
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
        if shape.numel() == 0 {
            return on_true.zeros_like(shape, on_true.dtype());
        }
        let inner = mask
            .stretched(op, shape)?
            .inner
            .where_cond(&on_true.inner, &on_false.inner)
            .map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, on_true.dtype()))
    }

    pub(crate) fn reduced(&self, op: ReduceOp, axis: usize) -> Result<Self> {
        let name = "reduce";
        require_float(name, self)?;
        let len = self.shape().dim(name, axis)?;
        if len == 0 && op != ReduceOp::Sum {
            return Err(Error::OutOfRange {
                op: name,
                index: 0,
                limit: 0,
            });
        }
        let shape = self.shape().with_dim(name, axis, 1)?;
        let dtype = match op {
            ReduceOp::ArgMax => DType::U32,
            ReduceOp::Sum | ReduceOp::Max => self.dtype(),
        };
        if self.shape().numel() == 0 {
            return self.zeros_like(shape, dtype);
        }
        let inner = match op {
            // candle divides by the axis' stride, which is 0 where it was broadcast.
            ReduceOp::ArgMax if len == 1 => return self.zeros_like(shape, dtype),
            ReduceOp::Sum | ReduceOp::Max if len == 1 => return Ok(self.clone()),
            // candle would round every partial sum to half precision.
            ReduceOp::Sum if dtype != DType::F32 => {
                return self.cast_to(DType::F32)?.reduced(op, axis)?.cast_to(dtype);
            }
            ReduceOp::Sum => self.inner.sum_keepdim(axis),
            ReduceOp::Max => self.inner.max_keepdim(axis),
            ReduceOp::ArgMax if self.is_on_gpu() => gpu::first_max(&self.inner, axis),
            ReduceOp::ArgMax => self.inner.argmax_keepdim(axis),
        }
        .map_err(failed(name))?;
        Ok(CandleTensor::new(inner, shape, dtype))
    }

    pub(crate) fn rows(&self, ids: &Self) -> Result<Self> {
        let op = "take_rows";
        let [rows, cols] = self.shape().dims(op)?;
        let n = check_ids(op, ids, rows)?.len();
        let shape = Shape::from([n, cols]);
        memory::check(shape, self.dtype(), self.inner.device())?;
        if shape.numel() == 0 {
            return self.zeros_like(shape, self.dtype());
        }
        let take = || {
            self.inner
                .contiguous()?
                .index_select(&ids.inner.contiguous()?, 0)
        };
        let inner = take().map_err(failed(op))?;
        Ok(CandleTensor::new(inner, shape, self.dtype()))
    }
}

/// Row numbers on the host, each of which exists. On a GPU this waits: kernels there read whatever
/// lies at a wrong row.
pub(crate) fn check_ids(op: &'static str, ids: &CandleTensor, rows: usize) -> Result<Vec<u32>> {
    if ids.dtype() != DType::U32 {
        return Err(Error::DType {
            op,
            got: ids.dtype(),
            expected: DType::U32.name(),
        });
    }
    ids.shape().dims::<1>(op)?;
    let ids = ids.to_u32s()?;
    match ids.iter().find(|&&id| id as usize >= rows) {
        Some(&id) => Err(Error::OutOfRange {
            op,
            index: id as usize,
            limit: rows,
        }),
        None => Ok(ids),
    }
}

fn in_range(op: &'static str, start: usize, len: usize, limit: usize) -> Result<()> {
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

fn shares_storage(a: &Inner, b: &Inner) -> bool {
    let address = |t: &Inner| std::ptr::from_ref(&*t.storage_and_layout().0).addr();
    address(a) == address(b)
}

/// Row-major or its transpose, which every matrix product takes; anything else is copied.
fn matrix_order(t: &Inner) -> candle_core::Result<Inner> {
    if t.is_contiguous() || t.t()?.is_contiguous() {
        return Ok(t.clone());
    }
    t.contiguous()
}
