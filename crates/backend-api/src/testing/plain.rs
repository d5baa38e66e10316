use crate::{BinaryOp, DType, ReduceOp, Result, RopeAngles, Shape, Tensor, UnaryOp};

/// A tensor that has only `T`'s primitives: its fused operations are the trait's defaults.
#[derive(Clone, Debug)]
pub struct Plain<T>(pub T);

impl<T: Tensor> Plain<T> {
    /// The same angles for plain tensors.
    pub fn angles(angles: &RopeAngles<T>) -> RopeAngles<Plain<T>> {
        angles.map(|t| Plain(t.clone()))
    }
}

impl<T: Tensor> Tensor for Plain<T> {
    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn cast(&self, dtype: DType) -> Result<Self> {
        self.0.cast(dtype).map(Plain)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        self.0.to_bytes()
    }

    fn from_bytes_like(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        self.0.from_bytes_like(bytes, dtype, shape).map(Plain)
    }

    fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        self.0.reshape(shape).map(Plain)
    }

    fn swap_axes(&self, a: usize, b: usize) -> Result<Self> {
        self.0.swap_axes(a, b).map(Plain)
    }

    fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self> {
        self.0.broadcast_to(shape).map(Plain)
    }

    fn concat(tensors: &[&Self], axis: usize) -> Result<Self> {
        let tensors: Vec<&T> = tensors.iter().map(|t| &t.0).collect();
        T::concat(&tensors, axis).map(Plain)
    }

    fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        self.0.narrow(axis, start, len).map(Plain)
    }

    fn write_slice(self, axis: usize, start: usize, src: &Self) -> Result<Self> {
        self.0.write_slice(axis, start, &src.0).map(Plain)
    }

    fn unary(&self, op: UnaryOp) -> Result<Self> {
        self.0.unary(op).map(Plain)
    }

    fn binary(&self, op: BinaryOp, rhs: &Self) -> Result<Self> {
        self.0.binary(op, &rhs.0).map(Plain)
    }

    fn affine(&self, mul: f64, add: f64) -> Result<Self> {
        self.0.affine(mul, add).map(Plain)
    }

    fn matmul(&self, rhs: &Self) -> Result<Self> {
        self.0.matmul(&rhs.0).map(Plain)
    }

    fn select(mask: &Self, on_true: &Self, on_false: &Self) -> Result<Self> {
        T::select(&mask.0, &on_true.0, &on_false.0).map(Plain)
    }

    fn reduce(&self, op: ReduceOp, axis: usize) -> Result<Self> {
        self.0.reduce(op, axis).map(Plain)
    }

    fn take_rows(&self, ids: &Self) -> Result<Self> {
        self.0.take_rows(&ids.0).map(Plain)
    }
}
