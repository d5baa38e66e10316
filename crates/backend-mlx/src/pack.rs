//! Checkpoint bytes as [`MlxMatrix`].

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use biplane_backend::repack::{
    CanonicalRows, canonical_rows, dequantize_rows, pack_codes, quantize_rows,
};
use biplane_backend::{
    AffineSpec, DType, Device, Error, PackedLayout, PackedMatrix, Result, Shape, Tensor,
};
use half::{bf16, f16};

use crate::matrix::{Affine, Form};
use crate::{MlxMatrix, MlxTensor, alloc};

const OP: &str = "load_matrix";

/// Elements read at once: few enough to stay in the cache, many enough to forget the loop.
const CHUNK: usize = 1 << 18;

/// The form that groups of 16 are re-quantized to: MLX's smallest group at its widest code.
const WIDEST: AffineSpec = AffineSpec {
    bits: 8,
    group_size: 32,
};

/// See [`biplane_backend::Backend::load_matrix`].
pub(crate) fn load(
    packed: &PackedMatrix<'_>,
    activations: DType,
    device: Device,
) -> Result<MlxMatrix> {
    if !activations.is_float() {
        return Err(Error::DType {
            op: OP,
            got: activations,
            expected: "a floating-point type",
        });
    }
    packed.validate()?;
    let dtype = weight_dtype(activations, device);
    let form = match (packed.layout, packed.spec()) {
        (
            PackedLayout::Dense {
                dtype: at_rest,
                bytes,
            },
            _,
        ) => {
            let shape = Shape::from(packed.shape);
            let w = MlxTensor::from_bytes(OP, bytes, at_rest, shape, device)?;
            Form::Dense(w.cast(activations)?)
        }
        (_, None) => dense(packed, dtype, device)?,
        (_, Some(spec)) if spec.group_size >= 32 => groups(packed, spec, dtype, device)?,
        _ if packed.shape[1].is_multiple_of(WIDEST.group_size) => {
            requantized(packed, dtype, device)?
        }
        _ => dense(packed, dtype, device)?,
    };
    form.compute(OP)?;
    Ok(MlxMatrix::new(packed.shape, form))
}

/// Element type of scales, biases and dequantized weights; see [`MlxMatrix`].
fn weight_dtype(activations: DType, device: Device) -> DType {
    if device.is_cpu() {
        DType::F32
    } else {
        activations
    }
}

/// All values, dequantized.
fn dense(packed: &PackedMatrix<'_>, dtype: DType, device: Device) -> Result<Form> {
    let shape = Shape::from(packed.shape);
    alloc::reserve(alloc::byte_len(shape, DType::F32)?, device)?;
    let mut values = vec![0f32; shape.numel()];
    dequantize_rows(packed, 0..packed.shape[0], &mut values)?;
    let bytes = bytemuck::cast_slice(&values);
    let w = MlxTensor::from_bytes(OP, bytes, DType::F32, shape, device)?;
    Ok(Form::Dense(w.cast(dtype)?))
}

/// Groups that MLX has: its own bytes as they are, GGML's blocks taken apart.
fn groups(
    packed: &PackedMatrix<'_>,
    spec: AffineSpec,
    dtype: DType,
    device: Device,
) -> Result<Form> {
    let [words, scales] = part_shapes(packed.shape, spec);
    let what = match packed.layout {
        PackedLayout::Affine {
            codes,
            scales: s,
            biases: b,
            scale_dtype,
            ..
        } => {
            let part = |bytes, dtype| MlxTensor::from_bytes(OP, bytes, dtype, scales, device);
            let codes = MlxTensor::from_bytes(OP, codes, DType::U32, words, device)?;
            let (s, b) = (part(s, scale_dtype)?, part(b, scale_dtype)?);
            let (scales, biases) = narrow_scales(s, b, dtype, "MLX's affine groups")?;
            return Ok(Form::Affine(Affine {
                codes,
                scales,
                biases,
                spec,
                zero_point: 0,
            }));
        }
        PackedLayout::Ggml { kind, .. } => kind.name(),
        PackedLayout::Dense { .. } => "dense",
    };
    build(
        packed,
        spec,
        packed.zero_point(),
        dtype,
        device,
        what,
        |rows, out| canonical_rows(packed, rows, out),
    )
}

/// Groups of 16, which MLX has not.
fn requantized(packed: &PackedMatrix<'_>, dtype: DType, device: Device) -> Result<Form> {
    let what = match packed.layout {
        PackedLayout::Ggml { kind, .. } => kind.name().to_owned(),
        _ => "MLX's affine groups of 16".to_owned(),
    };
    say_once(format!(
        "{what}: re-quantized to 8 bits in groups of 32: MLX has no groups of 16"
    ));
    let cols = packed.shape[1];
    let mut values = Vec::new();
    build(packed, WIDEST, 0, dtype, device, &what, |rows, out| {
        values.resize(rows.len() * cols, 0.0);
        dequantize_rows(packed, rows, &mut values)?;
        quantize_rows(&values, cols, WIDEST, out)
    })
    .map_err(|e| match e {
        Error::Weight { reason, .. } => Error::Weight {
            name: packed.name.into(),
            reason,
        },
        other => other,
    })
}

/// Packs the canonical rows that `read` gives.
fn build(
    packed: &PackedMatrix<'_>,
    spec: AffineSpec,
    zero_point: u8,
    dtype: DType,
    device: Device,
    what: &str,
    mut read: impl FnMut(Range<usize>, &mut CanonicalRows) -> Result<()>,
) -> Result<Form> {
    let [rows, cols] = packed.shape;
    let [words_shape, scales_shape] = part_shapes(packed.shape, spec);
    alloc::reserve(alloc::byte_len(words_shape, DType::U32)?, device)?;
    let mut words: Vec<u32> = Vec::with_capacity(words_shape.numel());
    let mut scales: Vec<f32> = Vec::with_capacity(scales_shape.numel());
    let mut biases: Vec<f32> = Vec::with_capacity(scales_shape.numel());
    let (mut chunk, mut packed_chunk) = (CanonicalRows::default(), Vec::new());
    let step = (CHUNK / cols).max(1);
    for start in (0..rows).step_by(step) {
        read(start..rows.min(start + step), &mut chunk)?;
        pack_codes(&chunk.codes, spec.bits, &mut packed_chunk)?;
        words.extend_from_slice(&packed_chunk);
        scales.extend_from_slice(&chunk.scales);
        biases.extend_from_slice(&chunk.biases);
    }
    let part = |values: &[f32]| {
        let bytes = bytemuck::cast_slice(values);
        MlxTensor::from_bytes(OP, bytes, DType::F32, scales_shape, device)
    };
    let (scales, biases) = narrow_scales(part(&scales)?, part(&biases)?, dtype, what)?;
    let bytes = bytemuck::cast_slice(&words);
    Ok(Form::Affine(Affine {
        codes: MlxTensor::from_bytes(OP, bytes, DType::U32, words_shape, device)?,
        scales,
        biases,
        spec,
        zero_point,
    }))
}

/// Shapes of the packed codes and of scales and biases.
fn part_shapes([rows, cols]: [usize; 2], spec: AffineSpec) -> [Shape; 2] {
    // Whole words: a group is at least 32 codes.
    let words = cols / 32 * usize::from(spec.bits);
    [
        Shape::from([rows, words]),
        Shape::from([rows, cols / spec.group_size]),
    ]
}

/// Scales and biases in the wanted element type, or in `f32` where they would overflow it.
fn narrow_scales(
    scales: MlxTensor,
    biases: MlxTensor,
    dtype: DType,
    what: &str,
) -> Result<(MlxTensor, MlxTensor)> {
    let mut dtype = dtype;
    if dtype != DType::F32 && dtype != scales.dtype() {
        let mut values = scales.to_f32s()?;
        values.extend(biases.to_f32s()?);
        if values
            .iter()
            .any(|&v| v.is_finite() && !rounded(v, dtype).is_finite())
        {
            say_once(format!("{what}: scales exceed {dtype} and stay in f32"));
            dtype = DType::F32;
        } else if values.iter().any(|&v| rounded(v, dtype) != v) {
            say_once(format!("{what}: scales are rounded to {dtype}"));
        }
    }
    Ok((scales.cast(dtype)?, biases.cast(dtype)?))
}

fn rounded(v: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(v).to_f32(),
        DType::BF16 => bf16::from_f32(v).to_f32(),
        _ => v,
    }
}

/// Logs a message the first time it comes up in the process.
fn say_once(message: String) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&message) {
        tracing::info!("{message}");
        said.insert(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MlxBackend;
    use biplane_backend::{Backend, GgmlKind, WeightMatrix};

    const CPU: Device = Device::Cpu;

    /// Bytes of no pattern.
    fn noise(n: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    /// Blocks whose f16 scales are small numbers and whose codes are noise.
    fn blocks(kind: GgmlKind, count: usize) -> Vec<u8> {
        let mut bytes = noise(count * kind.block_bytes());
        let scale_at: &[usize] = match kind {
            GgmlKind::Q4_0 | GgmlKind::Q5_0 | GgmlKind::Q8_0 => &[0],
            GgmlKind::Q4_1 | GgmlKind::Q5_1 | GgmlKind::Q4K | GgmlKind::Q5K => &[0, 2],
            GgmlKind::Q2K => &[80, 82],
            GgmlKind::Q3K => &[108],
            GgmlKind::Q6K => &[208],
        };
        for (i, block) in bytes.chunks_mut(kind.block_bytes()).enumerate() {
            for &at in scale_at {
                let scale = f16::from_f32(0.01 * (i % 7 + 1) as f32);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }

    /// Checks values, rows and product against the values of the reference; gives the matrix.
    fn check(packed: &PackedMatrix<'_>, relative: f32) -> MlxMatrix {
        let backend = MlxBackend::new(CPU).unwrap();
        let w = backend.load_matrix(packed, DType::BF16).unwrap();
        let [rows, cols] = packed.shape;
        let mut want = vec![0f32; rows * cols];
        dequantize_rows(packed, 0..rows, &mut want).unwrap();
        let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        let got = w.dequantize(DType::F32).unwrap().to_f32s().unwrap();
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() <= relative * largest, "{a}, expected {b}");
        }
        let ids = backend.from_u32s(&[2, 0, 2], [3]).unwrap();
        let taken = w.take_rows(&ids, DType::F32).unwrap().to_f32s().unwrap();
        for (row, id) in taken.chunks(cols).zip([2, 0, 2]) {
            assert_eq!(row, &got[id * cols..][..cols]);
        }
        let x: Vec<f32> = (0..2 * cols).map(|i| (i as f32 * 0.7).cos()).collect();
        let x = backend.from_f32s(&x, [2, 1, cols]).unwrap();
        let y = w.matmul_t(&x).unwrap();
        assert_eq!(y.shape(), Shape::from([2, 1, rows]));
        let dense = backend.from_f32s(&got, [rows, cols]).unwrap();
        let want = x.matmul(&dense.swap_axes(0, 1).unwrap()).unwrap();
        for (a, b) in y.to_f32s().unwrap().iter().zip(want.to_f32s().unwrap()) {
            assert!(
                (a - b).abs() <= 1e-4 * largest * cols as f32,
                "{a}, expected {b}"
            );
        }
        w
    }

    #[test]
    fn ggml_kinds_keep_their_values_or_are_requantized() {
        for kind in GgmlKind::ALL {
            let (rows, cols) = (5, 512);
            let blocks = blocks(kind, rows * cols / kind.block_len());
            let packed = PackedMatrix {
                name: kind.name(),
                shape: [rows, cols],
                layout: PackedLayout::Ggml {
                    kind,
                    blocks: &blocks,
                },
            };
            let exact = kind.spec().group_size == 32;
            let w = check(&packed, if exact { 0.0 } else { 0.01 });
            let spec = if exact { kind.spec() } else { WIDEST };
            assert_eq!(w.spec(), Some(spec), "{kind:?}");
        }
    }

    #[test]
    fn affine_groups_are_taken_as_they_are() {
        for bits in [2u8, 3, 4, 5, 6, 8] {
            for (group_size, cols) in [(16, 96), (16, 80), (32, 96), (64, 192), (128, 256)] {
                let rows = 3;
                // 80 columns of 3 or 5 bits are no whole words.
                if !(cols * usize::from(bits)).is_multiple_of(32) {
                    continue;
                }
                let codes = noise(rows * cols * usize::from(bits) / 8);
                let scales: Vec<u8> = (0..rows * cols / group_size)
                    .flat_map(|i| bf16::from_f32(0.1 + i as f32 / 64.0).to_le_bytes())
                    .collect();
                let packed = PackedMatrix {
                    name: "w",
                    shape: [rows, cols],
                    layout: PackedLayout::Affine {
                        codes: &codes,
                        scales: &scales,
                        biases: &scales,
                        scale_dtype: DType::BF16,
                        bits,
                        group_size,
                    },
                };
                let (relative, spec) = match (group_size, cols) {
                    (16, 80) => (0.0, None),
                    (16, _) => (0.01, Some(WIDEST)),
                    _ => (0.0, packed.spec()),
                };
                assert_eq!(check(&packed, relative).spec(), spec);
            }
        }
    }

    #[test]
    fn no_rows_give_no_rows() {
        let backend = MlxBackend::new(CPU).unwrap();
        let codes = noise(4 * 32);
        let scales = [0u8; 4 * 4];
        let layout = PackedLayout::Affine {
            codes: &codes,
            scales: &scales,
            biases: &scales,
            scale_dtype: DType::F16,
            bits: 4,
            group_size: 32,
        };
        let packed = PackedMatrix {
            name: "w",
            shape: [4, 64],
            layout,
        };
        let w = backend.load_matrix(&packed, DType::F32).unwrap();
        assert_eq!(w.size_in_bytes(), 4 * 32 + 2 * 4 * 2 * 4);
        let y = w
            .matmul_t(&backend.zeros([0, 64], DType::BF16).unwrap())
            .unwrap();
        assert_eq!((y.shape(), y.dtype()), ([0, 4].into(), DType::BF16));
        assert!(y.to_bytes().unwrap().is_empty());
        let none = backend.from_u32s(&[], [0]).unwrap();
        let rows = w.take_rows(&none, DType::F16).unwrap();
        assert_eq!((rows.shape(), rows.dtype()), ([0, 64].into(), DType::F16));
        assert!(matches!(
            w.matmul_t(&backend.zeros([1, 63], DType::F32).unwrap()),
            Err(Error::Shape { op: "matmul_t", .. })
        ));
    }

    /// What a GPU does with scales, run here on the CPU.
    #[test]
    fn scales_that_overflow_f16_stay_wide() {
        let backend = MlxBackend::new(CPU).unwrap();
        let scales = |v| backend.from_f32s(&[v, 1.0], [1, 2]).unwrap();
        for (value, dtype, want) in [
            (1e6, DType::F16, DType::F32),
            (0.1, DType::F16, DType::F16),
            (1e6, DType::BF16, DType::BF16),
        ] {
            let (s, b) = narrow_scales(scales(value), scales(0.0), dtype, "test").unwrap();
            assert_eq!((s.dtype(), b.dtype()), (want, want));
        }
    }
}
