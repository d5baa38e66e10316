//! A backend with one fault, to see that the suite finds it.

use super::Plain;
use super::host::{HostBackend, HostMatrix, HostTensor};
use crate::{
    AttentionMask, Backend, BinaryOp, DType, Device, PackedMatrix, ReduceOp, Result, RopeAngles,
    Shape, Tensor, UnaryOp, WeightMatrix,
};

/// What a [`Faulty`] backend does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    /// `to_bytes` of swapped axes is not row-major.
    SwapOnlyInName,
    /// Casts to bf16 truncate.
    TruncatingCast,
    /// `narrow` starts at 0.
    NarrowFromStart,
    /// `write_slice` writes at 0.
    WriteToStart,
    /// `max` is `min`.
    MinForMax,
    /// `select` takes the other branch.
    SelectSwapped,
    /// Sums in half precision lose a thousandth.
    LossySum,
    /// The last of equals wins.
    LastOfEquals,
    /// Row numbers beyond the table give its last row.
    RowsClamped,
    /// `rms_norm` forgets its epsilon.
    NormWithoutEps,
    /// `rope` pairs the other way.
    OtherPairing,
    /// Attention sees the future.
    FutureSeen,
    /// Dequantized values are off by a millionth.
    InexactMatrix,
    /// A malformed matrix is reported as another error.
    OtherError,
    /// `zeros` of an absurd shape is empty.
    AbsurdIsEmpty,
    /// Products of several rows are a tenth too large.
    LargeProducts,
    /// Products of several rows are no numbers.
    ProductsWithoutNumbers,
}

#[derive(Clone, Debug)]
pub(super) struct Faulty<T>(pub T, pub Fault);

type FaultyTensor = Faulty<HostTensor>;

impl<T> Faulty<T> {
    fn with<U>(&self, result: Result<U>) -> Result<Faulty<U>> {
        result.map(|inner| Faulty(inner, self.1))
    }
}

impl Backend for Faulty<HostBackend> {
    type Tensor = FaultyTensor;
    type Matrix = Faulty<HostMatrix>;

    const NAME: &'static str = "faulty";

    fn new(device: Device) -> Result<Self> {
        Ok(Faulty(HostBackend::new(device)?, Fault::None))
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<FaultyTensor> {
        let zeros = self.0.zeros(shape, dtype);
        if self.1 == Fault::AbsurdIsEmpty {
            return self.with(zeros.or_else(|_| self.0.zeros([0], dtype)));
        }
        self.with(zeros)
    }

    fn from_bytes(
        &self,
        bytes: &[u8],
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Result<FaultyTensor> {
        self.with(self.0.from_bytes(bytes, dtype, shape))
    }

    fn load_matrix(&self, m: &PackedMatrix<'_>, dtype: DType) -> Result<Self::Matrix> {
        if self.1 == Fault::OtherError && m.validate().is_err() {
            self.0.from_f32s(&[], [1])?;
        }
        self.with(self.0.load_matrix(m, dtype))
    }
}

impl WeightMatrix for Faulty<HostMatrix> {
    type Tensor = FaultyTensor;

    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    fn size_in_bytes(&self) -> usize {
        self.0.size_in_bytes()
    }

    fn matmul_t(&self, x: &FaultyTensor) -> Result<FaultyTensor> {
        let y = self.0.matmul_t(&x.0)?;
        let several = x.shape().as_slice().first() != Some(&1);
        self.with(match self.1 {
            Fault::LargeProducts if several => y.affine(1.1, 0.0),
            Fault::ProductsWithoutNumbers if several => y.affine(f64::NAN, 0.0),
            _ => Ok(y),
        })
    }

    fn take_rows(&self, ids: &FaultyTensor, dtype: DType) -> Result<FaultyTensor> {
        let table = self.with(self.0.dequantize(dtype))?;
        table.take_rows(ids)
    }

    fn dequantize(&self, dtype: DType) -> Result<FaultyTensor> {
        let values = self.0.dequantize(dtype)?;
        if self.1 == Fault::InexactMatrix {
            return self.with(values.affine(1.0 + 1e-6, 0.0));
        }
        self.with(Ok(values))
    }
}

impl Tensor for FaultyTensor {
    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn cast(&self, dtype: DType) -> Result<Self> {
        if self.1 == Fault::TruncatingCast && dtype == DType::BF16 {
            let bytes = self.0.cast(DType::F32)?.to_bytes()?;
            let halves: Vec<u8> = bytes.chunks(4).flat_map(|b| [b[2], b[3]]).collect();
            return self.from_bytes_like(&halves, dtype, self.shape());
        }
        self.with(self.0.cast(dtype))
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        self.0.to_bytes()
    }

    fn from_bytes_like(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        self.with(self.0.from_bytes_like(bytes, dtype, shape))
    }

    fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        self.with(self.0.reshape(shape))
    }

    fn swap_axes(&self, a: usize, b: usize) -> Result<Self> {
        if self.1 == Fault::SwapOnlyInName {
            return self.reshape(self.shape().swapped("swap_axes", a, b)?);
        }
        self.with(self.0.swap_axes(a, b))
    }

    fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self> {
        self.with(self.0.broadcast_to(shape))
    }

    fn concat(tensors: &[&Self], axis: usize) -> Result<Self> {
        let fault = tensors.first().map_or(Fault::None, |t| t.1);
        let tensors: Vec<&HostTensor> = tensors.iter().map(|t| &t.0).collect();
        HostTensor::concat(&tensors, axis).map(|t| Faulty(t, fault))
    }

    fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let narrow = self.0.narrow(axis, start, len);
        if self.1 == Fault::NarrowFromStart && narrow.is_ok() {
            return self.with(self.0.narrow(axis, 0, len));
        }
        self.with(narrow)
    }

    fn write_slice(self, axis: usize, start: usize, src: &Self) -> Result<Self> {
        let written = self.0.clone().write_slice(axis, start, &src.0);
        if self.1 == Fault::WriteToStart && written.is_ok() {
            return self.with(self.0.clone().write_slice(axis, 0, &src.0));
        }
        self.with(written)
    }

    fn unary(&self, op: UnaryOp) -> Result<Self> {
        self.with(self.0.unary(op))
    }

    fn binary(&self, op: BinaryOp, rhs: &Self) -> Result<Self> {
        let op = match op {
            BinaryOp::Max if self.1 == Fault::MinForMax => BinaryOp::Min,
            op => op,
        };
        self.with(self.0.binary(op, &rhs.0))
    }

    fn affine(&self, mul: f64, add: f64) -> Result<Self> {
        self.with(self.0.affine(mul, add))
    }

    fn matmul(&self, rhs: &Self) -> Result<Self> {
        self.with(self.0.matmul(&rhs.0))
    }

    fn select(mask: &Self, on_true: &Self, on_false: &Self) -> Result<Self> {
        let (on_true, on_false) = match mask.1 {
            Fault::SelectSwapped => (on_false, on_true),
            _ => (on_true, on_false),
        };
        mask.with(HostTensor::select(&mask.0, &on_true.0, &on_false.0))
    }

    fn reduce(&self, op: ReduceOp, axis: usize) -> Result<Self> {
        let result = self.0.reduce(op, axis)?;
        match (self.1, op) {
            (Fault::LossySum, ReduceOp::Sum) => self.with(result.affine(0.999, 0.0)),
            (Fault::LastOfEquals, ReduceOp::ArgMax) if self.shape().as_slice() == [2, 1000] => {
                let values = self.0.to_f32s()?;
                let last = values.chunks(1000).map(|row| {
                    let top = row.iter().copied().fold(f32::MIN, f32::max);
                    row.iter().rposition(|&v| v == top).unwrap_or(0) as u32
                });
                let last: Vec<u32> = last.collect();
                let bytes = bytemuck::cast_slice(&last);
                self.from_bytes_like(bytes, DType::U32, result.shape())
            }
            _ => self.with(Ok(result)),
        }
    }

    fn take_rows(&self, ids: &Self) -> Result<Self> {
        let rows = self.0.take_rows(&ids.0);
        if self.1 == Fault::RowsClamped && matches!(rows, Err(crate::Error::OutOfRange { .. })) {
            return self.narrow(0, 0, 1);
        }
        self.with(rows)
    }

    fn rms_norm(&self, weight: &Self, eps: f32) -> Result<Self> {
        let eps = if self.1 == Fault::NormWithoutEps {
            0.0
        } else {
            eps
        };
        let normed = Plain(self.clone()).rms_norm(&Plain(weight.clone()), eps)?;
        Ok(normed.0)
    }

    fn rope(&self, angles: &RopeAngles<Self>) -> Result<Self> {
        let mut angles = Plain::angles(angles);
        angles.interleaved ^= self.1 == Fault::OtherPairing;
        Ok(Plain(self.clone()).rope(&angles)?.0)
    }

    fn attention(&self, k: &Self, v: &Self, mask: AttentionMask, scale: f32) -> Result<Self> {
        let mask = match mask {
            AttentionMask::Causal if self.1 == Fault::FutureSeen => AttentionMask::None,
            mask => mask,
        };
        let (k, v) = (Plain(k.clone()), Plain(v.clone()));
        Ok(Plain(self.clone()).attention(&k, &v, mask, scale)?.0)
    }
}
