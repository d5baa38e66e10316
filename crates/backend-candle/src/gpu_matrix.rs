//! Weight matrices as candle has them for GPUs: GGML's blocks verbatim, MLX's 4-bit groups as
//! Q4_1 blocks where that is exact, everything else dense.
//!
//! Nothing here depends on the device, so tests run it on the processor.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use biplane_backend::{
    DType, GgmlKind, PackedLayout, PackedMatrix, Result, Shape, Tensor,
    repack::{self, CanonicalRows},
};
use candle_core::{
    Device, Tensor as Inner,
    quantized::{GgmlDType, QStorage, QTensor},
};
use half::{bf16, f16};

use crate::{CandleTensor, bytes, failed, memory};

/// A matrix `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum GpuMatrix {
    /// Elements in the activations' type.
    Dense(CandleTensor),
    /// Quantized blocks, which candle's kernels multiply.
    Blocks(Arc<QTensor>),
}

impl GpuMatrix {
    /// `exact` keeps everything dense: candle's kernels for blocks round activations to 8 bits.
    pub(crate) fn load(
        packed: &PackedMatrix<'_>,
        activations: DType,
        device: &Device,
        exact: bool,
    ) -> Result<Self> {
        packed.validate()?;
        let shape = Shape::from(packed.shape);
        memory::check(shape, activations, device)?;
        let empty = shape.numel() == 0;
        match packed.layout {
            PackedLayout::Dense { dtype, bytes } => {
                let inner = bytes::from_bytes(bytes, dtype, shape, device)?;
                let tensor = CandleTensor::new(inner, shape, dtype);
                return Ok(GpuMatrix::Dense(tensor.cast(activations)?));
            }
            _ if exact => {}
            PackedLayout::Ggml { kind, blocks } if !empty => {
                return Self::from_blocks(ggml_dtype(kind), blocks, shape, device);
            }
            PackedLayout::Affine {
                bits: 4,
                group_size,
                ..
            } if !empty && group_size.is_multiple_of(Q4_1_LEN) => {
                if let Some(blocks) = q4_1_blocks(packed, group_size)? {
                    return Self::from_blocks(GgmlDType::Q4_1, &blocks, shape, device);
                }
                note_dense("4-bit groups with scales that f16 cannot hold", activations);
            }
            PackedLayout::Affine {
                bits, group_size, ..
            } => note_dense(&format!("{bits}-bit groups of {group_size}"), activations),
            PackedLayout::Ggml { .. } => {}
        }
        let bytes = dequantized_bytes(packed, activations)?;
        let inner = bytes::from_bytes(&bytes, activations, shape, device)?;
        Ok(GpuMatrix::Dense(CandleTensor::new(
            inner,
            shape,
            activations,
        )))
    }

    fn from_blocks(dtype: GgmlDType, blocks: &[u8], shape: Shape, device: &Device) -> Result<Self> {
        // candle asserts that blocks are aligned for their f16 scales.
        let mut aligned = memory::reserve::<u16>(blocks.len() / 2)?;
        aligned.extend(
            blocks
                .chunks_exact(2)
                .map(bytemuck::pod_read_unaligned::<u16>),
        );
        let data = bytemuck::cast_slice(&aligned).into();
        QStorage::from_data(data, device, dtype)
            .and_then(|storage| QTensor::new(storage, shape.as_slice()))
            .map(|tensor| GpuMatrix::Blocks(Arc::new(tensor)))
            .map_err(failed("load_matrix"))
    }

    pub(crate) fn size_in_bytes(&self) -> usize {
        match self {
            GpuMatrix::Dense(w) => w.shape().numel() * w.dtype().size(),
            GpuMatrix::Blocks(w) => w.storage_size_in_bytes(),
        }
    }

    /// `x [rows, in]` gives `[rows, out]` in the element type of `x`.
    pub(crate) fn matmul_t(&self, x: &CandleTensor) -> Result<CandleTensor> {
        let op = "matmul_t";
        match self {
            GpuMatrix::Dense(w) => x
                .cast(w.dtype())?
                .matmul(&w.swap_axes(0, 1)?)?
                .cast(x.dtype()),
            GpuMatrix::Blocks(w) => {
                let [rows, _] = x.shape().dims(op)?;
                let wide = x.cast(DType::F32)?;
                let run = || wide.inner.contiguous()?.apply_op1_no_bwd(w.as_ref());
                let (out, _) = w.shape().dims2().map_err(failed(op))?;
                let shape = Shape::from([rows, out]);
                CandleTensor::new(run().map_err(failed(op))?, shape, DType::F32).cast(x.dtype())
            }
        }
    }

    /// Rows whose numbers exist.
    pub(crate) fn take_rows(&self, ids: &CandleTensor) -> Result<CandleTensor> {
        match self {
            GpuMatrix::Dense(w) => w.take_rows(ids),
            GpuMatrix::Blocks(w) => found("take_rows", w.embedding(&ids.inner)),
        }
    }

    pub(crate) fn dequantize(&self) -> Result<CandleTensor> {
        match self {
            GpuMatrix::Dense(w) => Ok(w.clone()),
            GpuMatrix::Blocks(w) => found("dequantize", w.dequantize(&w.device())),
        }
    }
}

/// A matrix of `f32` that candle made.
fn found(op: &'static str, result: candle_core::Result<Inner>) -> Result<CandleTensor> {
    let inner = result.map_err(failed(op))?;
    let shape = Shape::new(inner.dims())?;
    Ok(CandleTensor::new(inner, shape, DType::F32))
}

fn ggml_dtype(kind: GgmlKind) -> GgmlDType {
    match kind {
        GgmlKind::Q4_0 => GgmlDType::Q4_0,
        GgmlKind::Q4_1 => GgmlDType::Q4_1,
        GgmlKind::Q5_0 => GgmlDType::Q5_0,
        GgmlKind::Q5_1 => GgmlDType::Q5_1,
        GgmlKind::Q8_0 => GgmlDType::Q8_0,
        GgmlKind::Q2K => GgmlDType::Q2K,
        GgmlKind::Q3K => GgmlDType::Q3K,
        GgmlKind::Q4K => GgmlDType::Q4K,
        GgmlKind::Q5K => GgmlDType::Q5K,
        GgmlKind::Q6K => GgmlDType::Q6K,
    }
}

/// Elements of a Q4_1 block.
const Q4_1_LEN: usize = GgmlKind::Q4_1.block_len();

/// 4-bit groups as Q4_1 blocks (`w = d · q + m`, both f16), or `None` where a scale or bias is no
/// f16: then values would change.
fn q4_1_blocks(packed: &PackedMatrix<'_>, group_size: usize) -> Result<Option<Vec<u8>>> {
    let [out, _] = packed.shape;
    let mut rows = CanonicalRows::default();
    let mut blocks = Vec::new();
    for range in row_chunks(packed.shape) {
        repack::canonical_rows(packed, range, &mut rows)?;
        if blocks.is_empty() {
            let len = out * packed.shape[1] / Q4_1_LEN * GgmlKind::Q4_1.block_bytes();
            blocks = memory::reserve(len)?;
        }
        let groups = rows.scales.iter().zip(&rows.biases);
        for ((scale, bias), group) in groups.zip(rows.codes.chunks_exact(group_size)) {
            let (Some(d), Some(m)) = (exact_f16(*scale), exact_f16(*bias)) else {
                return Ok(None);
            };
            for codes in group.chunks_exact(Q4_1_LEN) {
                blocks.extend(d.to_le_bytes());
                blocks.extend(m.to_le_bytes());
                let (low, high) = codes.split_at(Q4_1_LEN / 2);
                blocks.extend(low.iter().zip(high).map(|(l, h)| l | (h << 4)));
            }
        }
    }
    Ok(Some(blocks))
}

fn exact_f16(x: f32) -> Option<f16> {
    let half = f16::from_f32(x);
    (half.to_f32() == x).then_some(half)
}

/// A matrix's values in `dtype`, converted a few rows at a time.
fn dequantized_bytes(packed: &PackedMatrix<'_>, dtype: DType) -> Result<Vec<u8>> {
    let [out, input] = packed.shape;
    let mut bytes = memory::reserve(out * input * dtype.size())?;
    let mut values = Vec::new();
    for range in row_chunks(packed.shape) {
        values.resize(range.len() * input, 0.0f32);
        repack::dequantize_rows(packed, range, &mut values)?;
        match dtype {
            DType::F16 => bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            DType::BF16 => {
                bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
            }
            _ => bytes.extend(values.iter().flat_map(|&v| v.to_le_bytes())),
        }
    }
    Ok(bytes)
}

/// Ranges of rows that cover a matrix, each about a megabyte of `f32`.
fn row_chunks([out, input]: [usize; 2]) -> impl Iterator<Item = Range<usize>> {
    let step = ((1 << 18) / input.max(1)).max(1);
    (0..out)
        .step_by(step)
        .map(move |start| start..out.min(start + step))
}

/// Says once for each format that it takes more memory than the checkpoint.
fn note_dense(format: &str, activations: DType) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.insert(format.to_owned()) {
        tracing::info!("candle has no GPU kernel for {format}: kept as {activations}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CandleBackend;
    use biplane_backend::Backend;

    const SHAPE: [usize; 2] = [6, 512];

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
    }

    fn tensor(values: &[f32], shape: [usize; 2]) -> CandleTensor {
        let backend = CandleBackend::new(biplane_backend::Device::Cpu).unwrap();
        backend.from_f32s(values, shape).unwrap()
    }

    /// Loads it as for a GPU, and holds values and product to the format's own values.
    fn check(packed: &PackedMatrix<'_>) -> GpuMatrix {
        let [out, input] = packed.shape;
        let matrix = GpuMatrix::load(packed, DType::F32, &Device::Cpu, false).unwrap();
        let mut values = vec![0.0; out * input];
        repack::dequantize_rows(packed, 0..out, &mut values).unwrap();
        let got = matrix.dequantize().unwrap();
        assert_eq!(got.shape(), Shape::from(packed.shape));
        for (got, want) in got.to_f32s().unwrap().iter().zip(&values) {
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{got} {want}");
        }

        let ids = CandleBackend::new(biplane_backend::Device::Cpu)
            .unwrap()
            .from_u32s(&[5, 0, 5], [3])
            .unwrap();
        let rows = matrix.take_rows(&ids).unwrap().to_f32s().unwrap();
        assert_eq!(rows.len(), 3 * input);
        for (got, want) in rows[input..].iter().zip(&values[..input]) {
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{got} {want}");
        }

        let x = wave(2 * input);
        let got = matrix.matmul_t(&tensor(&x, [2, input])).unwrap();
        assert_eq!(got.shape(), Shape::from([2, out]));
        for (i, got) in got.to_f32s().unwrap().iter().enumerate() {
            let (x, w) = (&x[i / out * input..], &values[i % out * input..]);
            let products = x.iter().zip(&w[..input]).map(|(x, w)| x * w);
            let (want, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + f32::abs(p)));
            assert!((got - want).abs() <= 0.01 * size, "{got} {want} of {size}");
        }
        matrix
    }

    #[test]
    fn ggml_blocks_are_kept() {
        let dense = tensor(&wave(SHAPE[0] * SHAPE[1]), SHAPE);
        for kind in GgmlKind::ALL {
            let made = QTensor::quantize(&dense.inner, ggml_dtype(kind)).unwrap();
            // An odd address, as a file's map may have.
            let mut bytes = vec![0];
            bytes.extend_from_slice(&made.data().unwrap());
            let matrix = check(&PackedMatrix {
                name: kind.name(),
                shape: SHAPE,
                layout: PackedLayout::Ggml {
                    kind,
                    blocks: &bytes[1..],
                },
            });
            assert!(matches!(matrix, GpuMatrix::Blocks(_)));
            assert_eq!(matrix.size_in_bytes(), bytes.len() - 1);
            let packed = &PackedMatrix {
                name: kind.name(),
                shape: SHAPE,
                layout: PackedLayout::Ggml {
                    kind,
                    blocks: &bytes[1..],
                },
            };
            let exact = GpuMatrix::load(packed, DType::F32, &Device::Cpu, true).unwrap();
            assert!(matches!(exact, GpuMatrix::Dense(_)));
            let values = |m: &GpuMatrix| m.dequantize().unwrap().to_f32s().unwrap();
            assert_eq!(values(&exact), values(&matrix));
        }
    }

    fn affine(bits: u8, group_size: usize, scale: f32) -> GpuMatrix {
        let [out, input] = SHAPE;
        let codes: Vec<u8> = (0..out * input * usize::from(bits) / 8)
            .map(|i| (i * 7919 % 251) as u8)
            .collect();
        let groups = out * input / group_size;
        let bytes = |x: f32| x.to_le_bytes().repeat(groups);
        check(&PackedMatrix {
            name: "w",
            shape: SHAPE,
            layout: PackedLayout::Affine {
                codes: &codes,
                scales: &bytes(scale),
                biases: &bytes(-0.75),
                scale_dtype: DType::F32,
                bits,
                group_size,
            },
        })
    }

    #[test]
    fn four_bit_groups_become_blocks_where_that_is_exact() {
        assert!(matches!(affine(4, 32, 0.125), GpuMatrix::Blocks(_)));
        assert!(matches!(affine(4, 64, 0.125), GpuMatrix::Blocks(_)));
        assert!(matches!(affine(4, 64, 0.1), GpuMatrix::Dense(_)));
        assert!(matches!(affine(6, 64, 0.125), GpuMatrix::Dense(_)));
        assert!(matches!(affine(8, 128, 0.125), GpuMatrix::Dense(_)));
    }

    #[test]
    fn dense_matrices_take_the_activations_type() {
        let values = wave(SHAPE[0] * SHAPE[1]);
        let packed = PackedMatrix {
            name: "w",
            shape: SHAPE,
            layout: PackedLayout::Dense {
                dtype: DType::F32,
                bytes: bytemuck::cast_slice(&values),
            },
        };
        check(&packed);
        let narrow = GpuMatrix::load(&packed, DType::BF16, &Device::Cpu, false).unwrap();
        assert_eq!(narrow.size_in_bytes(), 2 * values.len());
        assert_eq!(narrow.dequantize().unwrap().dtype(), DType::BF16);
    }
}
