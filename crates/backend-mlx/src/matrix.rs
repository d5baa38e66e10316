//! [`MlxMatrix`]: weights on MLX's device.

use biplane_backend::defaults::require_float;
use biplane_backend::{
    AffineSpec, Around, DType, Device, Error, Result, Shape, Tensor, WeightMatrix, defaults,
};
use mlx_rs::{Array, ops as mlx};

use crate::MlxTensor;
use crate::cuda;
use crate::layout::check_ids;
use crate::tensor::mlx_dtype;

/// A weight matrix `[out, in]`, dense or in MLX's affine groups.
///
/// Dense elements are in the activations' element type. So are scales and biases on a GPU; on the CPU
/// they are in `f32`, because MLX's quantized product of halves is inaccurate there (errors of several
/// units at 576 terms) and slow. MLX computes a product in the wider type of its operands, so no other
/// place needs to know.
#[derive(Clone, Debug)]
pub struct MlxMatrix {
    shape: [usize; 2],
    form: Form,
}

#[derive(Clone, Debug)]
pub(crate) enum Form {
    Dense(MlxTensor),
    Affine(Affine),
}

/// MLX's affine groups.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    /// `U32 [out, in · bits / 32]`
    pub codes: MlxTensor,
    /// `[out, in / group_size]`
    pub scales: MlxTensor,
    /// `[out, in / group_size]`
    pub biases: MlxTensor,
    pub spec: AffineSpec,
    /// See [`biplane_backend::repack::dequantize_value`].
    pub zero_point: u8,
}

impl MlxMatrix {
    pub(crate) fn new(shape: [usize; 2], form: Form) -> Self {
        MlxMatrix { shape, form }
    }

    #[cfg(test)]
    pub(crate) fn spec(&self) -> Option<AffineSpec> {
        match &self.form {
            Form::Dense(_) => None,
            Form::Affine(a) => Some(a.spec),
        }
    }
}

/// Rows from which a GPU widens a quantized matrix for a product: prompts of 256 tokens are read 1.4 times as fast,
/// longer ones up to three times.
const WIDENED_ROWS: usize = 256;

/// Most elements of such a matrix, for whose values there must be room.
const WIDENED_ELEMENTS: usize = 1 << 27;

impl WeightMatrix for MlxMatrix {
    type Tensor = MlxTensor;

    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn size_in_bytes(&self) -> usize {
        let bytes = |t: &MlxTensor| t.shape().numel() * t.dtype().size();
        match &self.form {
            Form::Dense(w) => bytes(w),
            Form::Affine(a) => bytes(&a.codes) + bytes(&a.scales) + bytes(&a.biases),
        }
    }

    fn matmul_t(&self, x: &MlxTensor) -> Result<MlxTensor> {
        let op = "matmul_t";
        require_float(op, x)?;
        let [rows, cols] = self.shape;
        if x.shape().last(op)? != cols {
            return Err(Error::Shape {
                op,
                lhs: x.shape(),
                rhs: Shape::from(self.shape),
            });
        }
        let shape = x.shape().with_dim(op, x.shape().rank() - 1, rows)?;
        let numel = x.shape().numel();
        x.derive(op, shape, x.dtype(), |dims| {
            let flat;
            let x2 = match x.shape().rank() {
                2 => x.array(),
                _ => {
                    flat = x.array().reshape(&[-1, cols as i32])?;
                    &flat
                }
            };
            let y = match &self.form {
                form if cuda::multiplies(x, numel / cols, form, &Around::default()) => {
                    cuda::product(x2, form, numel / cols, rows, &Around::default())?
                }
                Form::Dense(w) => x2.matmul(w.array().transpose()?)?,
                Form::Affine(a) if a.is_widened_for(x, numel / cols) => {
                    let values = mlx::dequantize(
                        a.codes.array(),
                        a.scales.array(),
                        a.biases.array(),
                        a.spec.group_size as i32,
                        i32::from(a.spec.bits),
                    )?;
                    x2.matmul(values.transpose()?)?
                }
                Form::Affine(a) => mlx::quantized_matmul(
                    x2,
                    a.codes.array(),
                    a.scales.array(),
                    a.biases.array(),
                    true,
                    a.spec.group_size as i32,
                    i32::from(a.spec.bits),
                )?,
            };
            let y = match dims.len() {
                2 => y,
                _ => y.reshape(dims)?,
            };
            match mlx_dtype(x.dtype()) {
                same if same == y.dtype() => Ok(y),
                dtype => y.as_dtype(dtype),
            }
        })
    }

    fn matmul_t_with(&self, x: &MlxTensor, around: &Around<'_, MlxTensor>) -> Result<MlxTensor> {
        let op = "matmul_t_with";
        if around.norm_after.is_some() {
            let before = Around {
                norm_after: None,
                add: None,
                ..*around
            };
            return defaults::after(self.matmul_t_with(x, &before)?, around);
        }
        let [outputs, cols] = self.shape;
        let known = x.shape().rank() == 2 && x.shape().last(op)? == cols;
        let rows = x.shape().numel() / cols.max(1);
        let outputs = match around.gate {
            Some(_) => outputs / 2,
            None => outputs,
        };
        let shape = Shape::from([rows, outputs]);
        if !(known
            && cuda::multiplies(x, rows, &self.form, around)
            && fits(around, self.shape, shape))
        {
            return defaults::matmul_t_with(self, x, around);
        }
        // The kernel for several rows has no norm.
        let normed;
        let (x, around) = match around.norm {
            Some((weight, eps)) if rows > 1 => {
                normed = x.rms_norm(weight, eps)?;
                let rest = Around {
                    norm: None,
                    ..*around
                };
                (&normed, rest)
            }
            _ => (x, *around),
        };
        x.derive(op, shape, x.dtype(), |_| {
            cuda::product(x.array(), &self.form, rows, self.shape[0], &around)
        })
    }

    fn join(matrices: &[&Self]) -> Result<Option<Self>> {
        let Some(form) = Form::join(matrices)? else {
            return Ok(None);
        };
        let rows = matrices.iter().map(|m| m.shape[0]).sum();
        let cols = matrices.first().map_or(0, |m| m.shape[1]);
        Ok(Some(MlxMatrix::new([rows, cols], form)))
    }

    fn take_rows(&self, ids: &MlxTensor, dtype: DType) -> Result<MlxTensor> {
        let op = "take_rows";
        check_ids(op, ids, self.shape[0])?;
        let tokens = ids.shape().numel();
        match &self.form {
            Form::Dense(w) => w.take_rows(ids)?,
            Form::Affine(a) if dtype.is_float() && cuda::takes_rows(ids, tokens, a) => {
                let shape = Shape::from([tokens, self.shape[1]]);
                return ids.derive(op, shape, dtype, |_| {
                    cuda::take_rows(ids.array(), tokens, a, mlx_dtype(dtype))
                });
            }
            Form::Affine(a) => a.take_rows(ids)?.values()?,
        }
        .cast(dtype)
    }

    fn dequantize(&self, dtype: DType) -> Result<MlxTensor> {
        match &self.form {
            Form::Dense(w) => w.cast(dtype),
            Form::Affine(a) => a.values()?.cast(dtype),
        }
    }
}

/// Whether what surrounds a product has the right shapes: what has not is for the default to refuse.
fn fits(around: &Around<'_, MlxTensor>, [out, cols]: [usize; 2], result: Shape) -> bool {
    let is = |t: Option<&MlxTensor>, shape: Shape| t.is_none_or(|t| t.shape() == shape);
    is(around.norm.map(|(weight, _)| weight), Shape::from([cols]))
        && is(around.bias, Shape::from([out]))
        && is(around.add, result)
        && (around.gate.is_none() || out.is_multiple_of(2))
}

impl Form {
    /// The tensors it is made of.
    pub(crate) fn parts(&self) -> Vec<&MlxTensor> {
        match self {
            Form::Dense(w) => vec![w],
            Form::Affine(a) => vec![&a.codes, &a.scales, &a.biases],
        }
    }

    /// The rows of some matrices as one, computed at once, so that the parts can go.
    fn join(matrices: &[&MlxMatrix]) -> Result<Option<Self>> {
        let Some(first) = matrices.first() else {
            return Ok(None);
        };
        let alike = |m: &&MlxMatrix| {
            m.shape[1] == first.shape[1]
                && match (&m.form, &first.form) {
                    (Form::Dense(a), Form::Dense(b)) => a.dtype() == b.dtype(),
                    (Form::Affine(a), Form::Affine(b)) => {
                        (a.spec, a.zero_point) == (b.spec, b.zero_point)
                            && a.scales.dtype() == b.scales.dtype()
                    }
                    _ => false,
                }
        };
        if !matrices.iter().all(alike) {
            return Ok(None);
        }
        let parts: Vec<_> = matrices.iter().map(|m| m.form.parts()).collect();
        let join = |i: usize| {
            let tensors: Vec<_> = parts.iter().filter_map(|p| p.get(i).copied()).collect();
            MlxTensor::concat(&tensors, 0)
        };
        let form = match &first.form {
            Form::Dense(_) => Form::Dense(join(0)?),
            Form::Affine(a) => Form::Affine(Affine {
                codes: join(0)?,
                scales: join(1)?,
                biases: join(2)?,
                ..*a
            }),
        };
        form.compute("join")?;
        Ok(Some(form))
    }

    /// Computes what is pending, so that the buffers it is made from are freed.
    pub(crate) fn compute(&self, op: &'static str) -> Result<()> {
        let arrays = self.parts().into_iter().map(MlxTensor::array);
        mlx_rs::transforms::eval(arrays).map_err(crate::error::failed(op))
    }
}

impl Affine {
    /// Elements of a row.
    pub(crate) fn columns(&self) -> usize {
        self.scales.shape().last("columns").unwrap_or_default() * self.spec.group_size
    }

    /// Whether MLX's CUDA kernels fail for `rows` rows `x`: in `f32` tiles of 64 rows by a group of 128 take
    /// 64 KiB of shared memory, more than MLX allows them; of rows that are a single group Hopper's kernel
    /// reads scales as if their number were a multiple of a tile.
    fn lacks_a_product(&self, x: &MlxTensor, rows: usize) -> bool {
        let too_large = x.dtype() == DType::F32 && self.spec.group_size > 64 && rows > 32;
        let one_group = self.columns() <= self.spec.group_size;
        (too_large || one_group) && matches!(x.device(), Device::Cuda(_))
    }

    /// Whether `rows` rows `x` are multiplied by the values, made for this product alone.
    fn is_widened_for(&self, x: &MlxTensor, rows: usize) -> bool {
        // From some hundred rows on a GPU's dense product makes up for it.
        let faster = matches!(x.device(), Device::Cuda(_))
            && rows >= WIDENED_ROWS
            && matches!(x.dtype(), DType::F16 | DType::BF16)
            && self.scales.dtype() == x.dtype()
            && self.scales.shape().numel() * self.spec.group_size <= WIDENED_ELEMENTS;
        faster || self.lacks_a_product(x, rows)
    }

    fn take_rows(&self, ids: &MlxTensor) -> Result<Self> {
        Ok(Affine {
            codes: self.codes.take_rows(ids)?,
            scales: self.scales.take_rows(ids)?,
            biases: self.biases.take_rows(ids)?,
            ..*self
        })
    }

    /// All values in `F32`. Product and sum are operations of their own: a GPU's `dequantize` may
    /// fuse them, which rounds differently.
    fn values(&self) -> Result<MlxTensor> {
        let op = "dequantize";
        let [rows, groups] = self.scales.shape().dims(op)?;
        let per_group = [rows, groups, 1];
        let scales = self.scales.cast(DType::F32)?.reshape(per_group)?;
        let codes = self.unpacked()?;
        let shape = [rows, groups * self.spec.group_size];
        if self.zero_point != 0 {
            let centred = codes.affine(1.0, -f64::from(self.zero_point))?;
            return centred.mul(&scales)?.reshape(shape);
        }
        let biases = self.biases.cast(DType::F32)?.reshape(per_group)?;
        codes.mul(&scales)?.add(&biases)?.reshape(shape)
    }

    /// The codes as `F32 [rows, groups, group_size]`: what they dequantize to under a scale of 1.
    fn unpacked(&self) -> Result<MlxTensor> {
        let op = "dequantize";
        let [rows, groups] = self.scales.shape().dims(op)?;
        let shape = Shape::from([rows, groups, self.spec.group_size]);
        self.codes.derive(op, shape, DType::F32, |dims| {
            let per_group = |v| mlx::broadcast_to(Array::from_f32(v), &dims[..2]);
            mlx::dequantize(
                self.codes.array(),
                per_group(1.0)?,
                &per_group(0.0)?,
                self.spec.group_size as i32,
                i32::from(self.spec.bits),
            )?
            .reshape(dims)
        })
    }
}
