//! The suite's own arrays: what a tensor should hold, in `f64`.

use half::{bf16, f16};

use crate::{Backend, DType, Shape, Tensor};

/// An array of `f64` in host memory; indexing broadcasts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Nd {
    pub shape: Shape,
    pub values: Vec<f64>,
}

impl Nd {
    pub fn new(shape: impl Into<Shape>, values: Vec<f64>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.numel(), values.len());
        Nd { shape, values }
    }

    /// The element at every index, in row-major order.
    pub fn from_fn(shape: impl Into<Shape>, mut f: impl FnMut(&[usize]) -> f64) -> Self {
        let shape = shape.into();
        let n = shape.numel();
        let rank = shape.rank();
        let mut index = [0; Shape::MAX_RANK];
        let mut values = Vec::with_capacity(n);
        for _ in 0..n {
            values.push(f(&index[..rank]));
            for axis in (0..rank).rev() {
                index[axis] += 1;
                if index[axis] < shape.as_slice()[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Nd { shape, values }
    }

    /// Numbers in -2 .. 2.
    pub fn random(shape: impl Into<Shape>, rng: &mut Rng) -> Self {
        Nd::from_fn(shape, |_| rng.uniform() * 4.0 - 2.0)
    }

    /// The element at an index of a shape that this one broadcasts to.
    pub fn at(&self, index: &[usize]) -> f64 {
        let dims = self.shape.as_slice();
        let index = &index[index.len() - dims.len()..];
        let flat = dims.iter().zip(index).fold(0, |flat, (&len, &i)| {
            flat * len + if len == 1 { 0 } else { i }
        });
        self.values[flat]
    }

    /// Every value as an element type holds it.
    pub fn rounded(mut self, dtype: DType) -> Self {
        self.values.iter_mut().for_each(|v| *v = round(dtype, *v));
        self
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Nd {
            shape: self.shape,
            values: self.values.iter().map(|&v| f(v)).collect(),
        }
    }

    pub fn swap_axes(&self, a: usize, b: usize) -> Self {
        let shape = self.shape.swapped("swap", a, b).unwrap();
        Nd::from_fn(shape, |index| {
            let mut from = index.to_vec();
            from.swap(a, b);
            self.at(&from)
        })
    }

    /// `before` and `after` elements of `fill` around the axis.
    pub fn padded(&self, axis: usize, before: usize, after: usize, fill: f64) -> Self {
        let len = self.shape.as_slice()[axis];
        let shape = self
            .shape
            .with_dim("pad", axis, before + len + after)
            .unwrap();
        Nd::from_fn(shape, |index| {
            let mut from = index.to_vec();
            match index[axis].checked_sub(before) {
                Some(i) if i < len => {
                    from[axis] = i;
                    self.at(&from)
                }
                _ => fill,
            }
        })
    }

    pub fn to_bytes(&self, dtype: DType) -> Vec<u8> {
        let each = |f: &dyn Fn(f64, &mut Vec<u8>)| {
            let mut bytes = Vec::with_capacity(self.values.len() * dtype.size());
            self.values.iter().for_each(|&v| f(v, &mut bytes));
            bytes
        };
        match dtype {
            DType::F32 => each(&|v, b| b.extend((v as f32).to_le_bytes())),
            DType::F16 => each(&|v, b| b.extend(f16::from_f64(v).to_le_bytes())),
            DType::BF16 => each(&|v, b| b.extend(bf16::from_f64(v).to_le_bytes())),
            DType::U32 => each(&|v, b| b.extend((v as u32).to_le_bytes())),
            DType::I32 => each(&|v, b| b.extend((v as i32).to_le_bytes())),
            DType::U8 => each(&|v, b| b.push(v as u8)),
        }
    }

    pub fn from_bytes(shape: impl Into<Shape>, dtype: DType, bytes: &[u8]) -> Self {
        let four = |b: &[u8]| <[u8; 4]>::try_from(b).unwrap();
        let values = bytes
            .chunks_exact(dtype.size())
            .map(|b| match dtype {
                DType::F32 => f64::from(f32::from_le_bytes(four(b))),
                DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f64(),
                DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f64(),
                DType::U32 => f64::from(u32::from_le_bytes(four(b))),
                DType::I32 => f64::from(i32::from_le_bytes(four(b))),
                DType::U8 => f64::from(b[0]),
            })
            .collect();
        Nd::new(shape, values)
    }
}

/// The nearest value of an element type; integers truncate.
pub(super) fn round(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(v as f32),
        DType::F16 => f16::from_f64(v).to_f64(),
        DType::BF16 => bf16::from_f64(v).to_f64(),
        DType::U32 => f64::from(v as u32),
        DType::I32 => f64::from(v as i32),
        DType::U8 => f64::from(v as u8),
    }
}

/// A small generator of repeatable numbers (SplitMix64).
pub(super) struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// In 0 .. 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// Shapes of every rank, with axes of length 0 and 1.
pub(super) fn shapes() -> Vec<Shape> {
    vec![
        [].into(),
        [5].into(),
        [1].into(),
        [0].into(),
        [2, 3].into(),
        [3, 1].into(),
        [33, 17].into(),
        [2, 3, 4].into(),
        [2, 0, 3].into(),
        [2, 3, 2, 5].into(),
        [1, 2, 1, 3].into(),
    ]
}

/// A tensor of the array's values.
pub(super) fn upload<B: Backend>(backend: &B, data: &Nd, dtype: DType) -> B::Tensor {
    backend
        .from_bytes(&data.to_bytes(dtype), dtype, data.shape)
        .unwrap()
}

/// What a tensor holds.
pub(super) fn download<T: Tensor>(tensor: &T) -> Nd {
    let bytes = tensor.to_bytes().unwrap();
    assert_eq!(
        bytes.len(),
        tensor.shape().numel() * tensor.dtype().size(),
        "to_bytes of {} {}",
        tensor.dtype(),
        tensor.shape()
    );
    Nd::from_bytes(tensor.shape(), tensor.dtype(), &bytes)
}

/// The same values as a fresh tensor and as views of others that are not contiguous.
pub(super) fn views<B: Backend>(
    backend: &B,
    data: &Nd,
    dtype: DType,
) -> Vec<(&'static str, B::Tensor)> {
    let rank = data.shape.rank();
    let mut all = vec![("contiguous", upload(backend, data, dtype))];
    if rank >= 2 {
        let swapped = |a, b| {
            let whole = upload(backend, &data.swap_axes(a, b), dtype);
            whole.swap_axes(a, b).unwrap()
        };
        all.push(("swapped", swapped(rank - 2, rank - 1)));
        if rank > 2 {
            all.push(("outer axes swapped", swapped(0, 1)));
        }
    }
    if rank >= 1 {
        let narrowed = |axis: usize| {
            let whole = upload(backend, &data.padded(axis, 2, 1, 77.0), dtype);
            whole.narrow(axis, 2, data.shape.as_slice()[axis]).unwrap()
        };
        all.push(("narrowed", narrowed(rank - 1)));
        if rank > 1 {
            all.push(("outer axis narrowed", narrowed(0)));
        }
        if data.shape.as_slice()[0] > 1 {
            let one = data.shape.with_dim("view", 0, 1).unwrap();
            let first = Nd::from_fn(one, |index| data.at(index));
            if Nd::from_fn(data.shape, |index| first.at(index)) == *data {
                let stretched = upload(backend, &first, dtype).broadcast_to(data.shape);
                all.push(("stretched", stretched.unwrap()));
            }
        }
    }
    all
}

/// Equal shape, type and values; NaN equals NaN and zeros of either sign are equal.
#[track_caller]
pub(super) fn assert_same<T: Tensor>(what: &str, got: &T, dtype: DType, want: &Nd) {
    assert_close(what, got, dtype, want, 0.0);
}

/// Equal shape and type; values within `tolerance · (1 + |want|)`.
#[track_caller]
pub(super) fn assert_close<T: Tensor>(
    what: &str,
    got: &T,
    dtype: DType,
    want: &Nd,
    tolerance: f64,
) {
    assert_eq!(got.shape(), want.shape, "{what}: shape");
    assert_eq!(got.dtype(), dtype, "{what}: element type");
    let got = download(got);
    for (i, (&g, &w)) in got.values.iter().zip(&want.values).enumerate() {
        // What overflows the element type is infinite.
        let w = round(dtype, w);
        let near = (g - w).abs() <= tolerance * (1.0 + w.abs());
        assert!(
            g == w || (g.is_nan() && w.is_nan()) || (w.is_finite() && near),
            "{what} {dtype} {}: element {i} is {g}, expected {w} ± {:e}",
            want.shape,
            tolerance * (1.0 + w.abs())
        );
    }
}
