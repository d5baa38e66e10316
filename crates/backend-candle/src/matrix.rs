//! Weight matrices: our packed form on the processor, candle's on a GPU.

use std::{ops::Range, sync::Arc};

use biplane_backend::{
    Around, DType, Error, PackedMatrix, Result, Shape, Tensor, WeightMatrix,
    defaults::{self, require_float},
};
use candle_core::Device;

use crate::{
    CandleTensor,
    cpu::{self, Arithmetic, CpuMatrix},
    fused::{Floats, made, numbers, output, row_major},
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
    Cpu(Arc<CpuMatrix>),
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
            Form::Cpu(Arc::new(CpuMatrix::pack(packed, arithmetic, taken)?))
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
                output(op, shape, |out| m.matmul_t(&wide, rows, out))?.cast(x.dtype())
            }
            Form::Gpu(m) => m.matmul_t(&x.reshape([rows, input])?)?.reshape(shape),
        }
    }

    fn matmul_t_each(matrices: &[&Self], x: &CandleTensor) -> Result<Vec<CandleTensor>> {
        let op = "matmul_t_each";
        let ours = |m: &&Self| match &m.form {
            Form::Cpu(own) if Some(&m.shape[1]) == x.shape().as_slice().last() => Some(own.clone()),
            _ => None,
        };
        let own: Option<Vec<_>> = matrices.iter().map(ours).collect();
        let (Some(own), true, true) = (own, x.is_cpu_f32(), x.shape().numel() > 0) else {
            return matrices.iter().map(|m| m.matmul_t(x)).collect();
        };
        let last = x.shape().rank() - 1;
        let rows = x.shape().numel() / x.shape().last(op)?;
        let x_rows = row_major(op, x)?;
        let x_rows = Floats::all(op, &x_rows)?;
        let mut outs = Vec::with_capacity(own.len());
        for m in &own {
            let shape = x.shape().with_dim(op, last, m.shape()[0])?;
            memory::check(shape, DType::F32, x.inner.device())?;
            outs.push((shape, vec![0.0; shape.numel()]));
        }
        let slices = outs.iter_mut().map(|(_, out)| out.as_mut_slice());
        let mut each: Vec<_> = own.iter().map(|m| &**m).zip(slices).collect();
        CpuMatrix::matmul_t_each(&mut each, &x_rows, rows);
        let made = outs.into_iter().map(|(shape, out)| made(op, shape, out));
        made.collect()
    }

    fn matmul_t_with(
        &self,
        x: &CandleTensor,
        around: &Around<'_, CandleTensor>,
    ) -> Result<CandleTensor> {
        let op = "matmul_t_with";
        let (Form::Cpu(m), true, Some(add)) = (&self.form, x.is_cpu_f32(), around.add) else {
            return defaults::matmul_t_with(self, x, around);
        };
        if x.shape().as_slice().last() != Some(&self.shape[1]) {
            return defaults::matmul_t_with(self, x, around);
        }
        // A residual is added where the product is: one tensor less, and they are small ones.
        let shape = x
            .shape()
            .with_dim(op, x.shape().rank().saturating_sub(1), self.shape[0])?;
        let alone = around.norm.is_none() && around.bias.is_none() && around.gate.is_none();
        let fits = add.shape() == shape && add.is_cpu_f32();
        if !alone || !fits || x.shape().numel() == 0 {
            return defaults::matmul_t_with(self, x, around);
        }
        let (rows, to) = (row_major(op, x)?, row_major(op, add)?);
        let (rows, to) = (Floats::all(op, &rows)?, Floats::all(op, &to)?);
        output(op, shape, |out| {
            m.matmul_t(&rows, rows.len() / self.shape[1], out);
            cpu::for_chunks(out, |first, out| {
                out.iter_mut()
                    .zip(&to[first..])
                    .for_each(|(out, to)| *out += to);
            });
        })
    }

    fn argmax_t(&self, x: &CandleTensor) -> Result<CandleTensor> {
        let op = "argmax_t";
        match &self.form {
            Form::Cpu(m) if x.is_cpu_f32() && x.shape() == Shape::from([1, self.shape[1]]) => {
                let row = row_major(op, x)?;
                let place = m.largest(&Floats::all(op, &row)?);
                numbers(op, Shape::from([1]), vec![place as u32])
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
