//! Weight matrices: our packed form on the processor, candle's on a GPU.

use std::ops::Range;

use biplane_backend::{
    Around, DType, Error, PackedMatrix, Result, Shape, Tensor, WeightMatrix,
    defaults::{self, require_float},
};
use candle_core::{Device, Tensor as Inner};

use crate::{
    CandleTensor,
    cpu::{self, Arithmetic, CpuMatrices, CpuMatrix},
    fused::{Floats, numbers, output, row_major},
    gpu_matrix::GpuMatrix,
    memory,
    primitives::check_ids,
};

/// A weight matrix `[out, in]` on a device.
#[derive(Clone, Debug)]
pub struct CandleMatrix {
    shape: [usize; 2],
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Cpu(CpuMatrices),
    Gpu(GpuMatrix),
}

impl CandleMatrix {
    pub(crate) fn load(
        packed: &PackedMatrix<'_>,
        activations: DType,
        device: &Device,
        arithmetic: Arithmetic,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<Self> {
        if !activations.is_float() {
            return Err(Error::DType {
                op: "load_matrix",
                got: activations,
                expected: "a floating-point type",
            });
        }
        let form = if device.is_cpu() {
            Form::Cpu(CpuMatrices::one(CpuMatrix::pack(
                packed, arithmetic, taken,
            )?))
        } else {
            let exact = arithmetic == Arithmetic::Exact;
            Form::Gpu(GpuMatrix::load(packed, activations, device, exact)?)
        };
        Ok(CandleMatrix {
            shape: packed.shape,
            form,
        })
    }
}

fn float_dtype(op: &'static str, dtype: DType) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(Error::DType {
        op,
        got: dtype,
        expected: "a floating-point type",
    })
}

impl CandleMatrix {
    /// The shape of [`WeightMatrix::matmul_t_with`]'s result, where all operands are right and our kernels
    /// can read them: what is not is for the default, which refuses it or does it otherwise.
    fn result_of(&self, x: &CandleTensor, around: &Around<'_, CandleTensor>) -> Option<Shape> {
        let [outputs, cols] = self.shape;
        let is = |t: Option<&CandleTensor>, shape: Shape| {
            t.is_none_or(|t| t.is_cpu_f32() && t.shape() == shape)
        };
        let width = match around.gate {
            Some(_) if !outputs.is_multiple_of(2) => return None,
            Some(_) => outputs / 2,
            None => outputs,
        };
        let last = x.shape().rank().checked_sub(1)?;
        let shape = x.shape().with_dim("matmul_t_with", last, width).ok()?;
        let fits = x.is_cpu_f32()
            && x.shape().as_slice().last() == Some(&cols)
            && x.shape().numel() > 0
            && is(around.norm.map(|(w, _)| w), Shape::from([cols]))
            && is(around.bias, Shape::from([outputs]))
            && is(around.norm_after.map(|(w, _)| w), Shape::from([width]))
            && is(around.add, shape);
        fits.then_some(shape)
    }
}

impl WeightMatrix for CandleMatrix {
    type Tensor = CandleTensor;

    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn size_in_bytes(&self) -> usize {
        match &self.form {
            Form::Cpu(m) => m.size_in_bytes(),
            Form::Gpu(m) => m.size_in_bytes(),
        }
    }

    fn matmul_t(&self, x: &CandleTensor) -> Result<CandleTensor> {
        let op = "matmul_t";
        require_float(op, x)?;
        let [out, input] = self.shape;
        if x.shape().last(op)? != input {
            return Err(Error::Shape {
                op,
                lhs: x.shape(),
                rhs: Shape::from(self.shape),
            });
        }
        let shape = x.shape().with_dim(op, x.shape().rank() - 1, out)?;
        memory::check(shape, x.dtype(), x.inner.device())?;
        if shape.numel() == 0 || input == 0 {
            return x.zeros_like(shape, x.dtype());
        }
        let rows = x.shape().numel() / input;
        match &self.form {
            Form::Cpu(m) => {
                let wide = row_major(op, &x.cast(DType::F32)?)?;
                let wide = Floats::all(op, &wide)?;
                output(op, shape, |out| {
                    m.matmul_t(&wide, &cpu::Around::default(), out)
                })?
                .cast(x.dtype())
            }
            Form::Gpu(m) => m.matmul_t(&x.reshape([rows, input])?)?.reshape(shape),
        }
    }

    fn matmul_t_with(
        &self,
        x: &CandleTensor,
        around: &Around<'_, CandleTensor>,
    ) -> Result<CandleTensor> {
        let op = "matmul_t_with";
        let (Form::Cpu(m), Some(shape)) = (&self.form, self.result_of(x, around)) else {
            return defaults::matmul_t_with(self, x, around);
        };
        let x = row_major(op, x)?;
        let x = Floats::all(op, &x)?;
        // What the shapes' checks have seen to be there and in the processor's memory.
        let row_major = |t: Option<&CandleTensor>| t.map(|t| row_major(op, t)).transpose();
        let [norm, bias, norm_after, add] = [
            row_major(around.norm.map(|(weight, _)| weight))?,
            row_major(around.bias)?,
            row_major(around.norm_after.map(|(weight, _)| weight))?,
            row_major(around.add)?,
        ];
        fn floats(t: &Option<Inner>) -> Result<Option<Floats<'_>>> {
            t.as_ref()
                .map(|t| Floats::all("matmul_t_with", t))
                .transpose()
        }
        let (norm, bias) = (floats(&norm)?, floats(&bias)?);
        let (norm_after, add) = (floats(&norm_after)?, floats(&add)?);
        let with = cpu::Around {
            norm: norm.as_deref().zip(around.norm.map(|(_, eps)| eps)),
            bias: bias.as_deref(),
            gate: around.gate,
            norm_after: norm_after
                .as_deref()
                .zip(around.norm_after.map(|(_, eps)| eps)),
            add: add.as_deref(),
        };
        output(op, shape, |out| m.matmul_t(&x, &with, out))
    }

    fn join(matrices: &[&Self]) -> Result<Option<Self>> {
        let parts: Option<Vec<_>> = matrices
            .iter()
            .map(|m| match &m.form {
                Form::Cpu(parts) => Some(parts),
                Form::Gpu(_) => None,
            })
            .collect();
        let joined = parts.and_then(|parts| CpuMatrices::join(&parts));
        Ok(joined.map(|joined| CandleMatrix {
            shape: joined.shape(),
            form: Form::Cpu(joined),
        }))
    }

    fn argmax_t(&self, x: &CandleTensor) -> Result<CandleTensor> {
        let op = "argmax_t";
        match &self.form {
            Form::Cpu(m) if x.is_cpu_f32() && x.shape() == Shape::from([1, self.shape[1]]) => {
                let row = row_major(op, x)?;
                match m.largest(&Floats::all(op, &row)?) {
                    Some(place) => numbers(op, Shape::from([1]), vec![place as u32]),
                    None => self.matmul_t(x)?.argmax(),
                }
            }
            _ => self.matmul_t(x)?.argmax(),
        }
    }

    fn take_rows(&self, ids: &CandleTensor, dtype: DType) -> Result<CandleTensor> {
        let op = "take_rows";
        float_dtype(op, dtype)?;
        let [out, input] = self.shape;
        let numbers = check_ids(op, ids, out)?;
        let shape = Shape::from([numbers.len(), input]);
        memory::check(shape, dtype, ids.inner.device())?;
        if shape.numel() == 0 {
            return ids.zeros_like(shape, dtype);
        }
        match &self.form {
            Form::Cpu(m) => {
                let mut taken = Ok(());
                let rows = output(op, shape, |out| taken = m.take_rows(&numbers, out))?;
                taken?;
                rows.cast(dtype)
            }
            Form::Gpu(m) => m.take_rows(ids)?.cast(dtype),
        }
    }

    fn dequantize(&self, dtype: DType) -> Result<CandleTensor> {
        let op = "dequantize";
        float_dtype(op, dtype)?;
        let shape = Shape::from(self.shape);
        match &self.form {
            Form::Cpu(m) => output(op, shape, |out| m.dequantize(out))?.cast(dtype),
            Form::Gpu(m) => m.dequantize()?.cast(dtype),
        }
    }
}
