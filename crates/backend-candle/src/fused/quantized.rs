//! Quantized keys and values.

use biplane_backend::{
    AttentionMask, DType, KvSpec, QuantizedKv, Result, Shape, Tensor, defaults::AttentionDims,
};
use candle_core::{Device, Tensor as Inner};
use half::f16;

use super::{Floats, attention_shape, output, row_major, strided, unit_stride};
use crate::{
    CandleTensor,
    cpu::{self, Codes, Kept},
    failed,
};

/// As [`super::attention`]; `k` and `v` satisfy [`codes_serve`].
pub(crate) fn attention_quantized(
    q: &CandleTensor,
    k: &QuantizedKv<CandleTensor>,
    v: &QuantizedKv<CandleTensor>,
    dims: AttentionDims,
    mask: AttentionMask,
    scale: f32,
) -> Result<CandleTensor> {
    let op = "attention";
    let q = unit_stride(op, q)?;
    let q_floats = Floats::from_start(op, &q)?;
    let (k, v) = (CodeViews::of(op, k)?, CodeViews::of(op, v)?);
    let (k, v) = (k.borrowed(op)?, v.borrowed(op)?);
    let by_token = Shape::from([dims.q_len, dims.heads, dims.head_dim]);
    output(op, by_token, |out| {
        cpu::attention(
            strided(&q_floats, &q, [0, 1]),
            k.kept(),
            v.kept(),
            attention_shape(dims),
            mask,
            scale,
            out,
        );
    })?
    .swap_axes(0, 1)
}

/// Whether our kernels read codes of this form.
pub(crate) fn codes_serve(spec: KvSpec) -> bool {
    spec.group_size == Codes::GROUP && spec.scales == DType::F16 && matches!(spec.bits, 4 | 8)
}

/// Whole groups of floats in codes of a form that [`codes_serve`].
pub(crate) fn quantize_kv(
    x: &CandleTensor,
    shape: Shape,
    spec: KvSpec,
) -> Result<QuantizedKv<CandleTensor>> {
    let op = "quantize_kv";
    let rows = row_major(op, x)?;
    let rows = Floats::all(op, &rows)?;
    let quantized = cpu::quantize(&rows, spec.bits.into());
    let last = shape.rank() - 1;
    let head_dim = shape.last(op)?;
    let groups = shape.with_dim(op, last, head_dim / spec.group_size)?;
    let halves = |values| {
        let inner = Inner::from_vec(values, groups.as_slice(), &Device::Cpu);
        Ok(CandleTensor::new(
            inner.map_err(failed(op))?,
            groups,
            DType::F16,
        ))
    };
    let shape = shape.with_dim(op, last, spec.code_bytes(head_dim))?;
    let codes = Inner::from_vec(quantized.codes, shape.as_slice(), &Device::Cpu);
    Ok(QuantizedKv {
        codes: CandleTensor::new(codes.map_err(failed(op))?, shape, DType::U8),
        scales: halves(quantized.scales)?,
        biases: halves(quantized.biases)?,
        spec,
    })
}

/// Views of codes with unit strides.
struct CodeViews {
    codes: Inner,
    scales: Inner,
    biases: Inner,
    bits: usize,
}

impl CodeViews {
    fn of(op: &'static str, kept: &QuantizedKv<CandleTensor>) -> Result<Self> {
        Ok(CodeViews {
            codes: unit_stride(op, &kept.codes)?,
            scales: unit_stride(op, &kept.scales)?,
            biases: unit_stride(op, &kept.biases)?,
            bits: kept.spec.bits.into(),
        })
    }

    fn borrowed(&self, op: &'static str) -> Result<BorrowedCodes<'_>> {
        Ok(BorrowedCodes {
            views: self,
            codes: Floats::from_start(op, &self.codes)?,
            scales: Floats::from_start(op, &self.scales)?,
            biases: Floats::from_start(op, &self.biases)?,
        })
    }
}

/// Codes while their storages are borrowed.
struct BorrowedCodes<'a> {
    views: &'a CodeViews,
    codes: Floats<'a, u8>,
    scales: Floats<'a, f16>,
    biases: Floats<'a, f16>,
}

impl BorrowedCodes<'_> {
    fn kept(&self) -> Kept<'_> {
        Kept::Codes(Codes {
            bits: self.views.bits,
            codes: strided(&self.codes, &self.views.codes, [0, 1]),
            scales: strided(&self.scales, &self.views.scales, [0, 1]),
            biases: strided(&self.biases, &self.views.biases, [0, 1]),
        })
    }
}
