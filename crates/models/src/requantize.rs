//! Any stored matrix into any quantized form, rows in parallel.

use std::sync::Mutex;

use biplane_backend::{
    AffineSpec, DType, GgmlKind, PackedLayout, PackedMatrix,
    repack::{CanonicalRows, dequantize_rows, pack_codes, quantize_ggml, quantize_rows},
};
use half::{bf16, f16};

use crate::{Error, Result};

/// Values that a thread holds in `f32` at a time.
const VALUES: usize = 1 << 16;

/// A quantized form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// GGML's blocks.
    Ggml(GgmlKind),
    /// MLX's affine groups.
    Affine {
        /// Bits and group size.
        spec: AffineSpec,
        /// Element type of scales and biases.
        scale_dtype: DType,
    },
}

/// The bytes of a matrix in a [`Form`].
#[derive(Debug)]
pub(crate) struct Quantized {
    form: Form,
    /// Blocks, or codes.
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl Quantized {
    pub fn new(form: Form, codes: Vec<u8>, scales: Vec<u8>, biases: Vec<u8>) -> Self {
        Quantized {
            form,
            codes,
            scales,
            biases,
        }
    }

    /// The bytes of each tensor that a file keeps: blocks, or codes, scales and biases.
    pub fn into_parts(self) -> Vec<Vec<u8>> {
        match self.form {
            Form::Ggml(_) => vec![self.codes],
            Form::Affine { .. } => vec![self.codes, self.scales, self.biases],
        }
    }

    pub fn packed<'a>(&'a self, name: &'a str, shape: [usize; 2]) -> PackedMatrix<'a> {
        let layout = match self.form {
            Form::Ggml(kind) => PackedLayout::Ggml {
                kind,
                blocks: &self.codes,
            },
            Form::Affine { spec, scale_dtype } => PackedLayout::Affine {
                codes: &self.codes,
                scales: &self.scales,
                biases: &self.biases,
                scale_dtype,
                bits: spec.bits,
                group_size: spec.group_size,
            },
        };
        PackedMatrix {
            name,
            shape,
            layout,
        }
    }
}

/// Bytes of a row: codes or blocks, and scales (as many of biases).
fn row_bytes(form: Form, cols: usize) -> (usize, usize) {
    match form {
        Form::Ggml(kind) => (cols / kind.block_len() * kind.block_bytes(), 0),
        Form::Affine { spec, scale_dtype } => (
            cols * usize::from(spec.bits) / 8,
            cols / spec.group_size * scale_dtype.size(),
        ),
    }
}

/// Brings a matrix into a form.
///
/// # Errors
/// [`Error::Backend`] naming the matrix, for malformed bytes or values that the form cannot hold.
pub(crate) fn requantize(m: &PackedMatrix<'_>, form: Form) -> Result<Quantized> {
    m.validate()?;
    let [rows, cols] = m.shape;
    let (code_bytes, scale_bytes) = row_bytes(form, cols);
    let mut out = Quantized {
        form,
        codes: vec![0; rows * code_bytes],
        scales: vec![0; rows * scale_bytes],
        biases: vec![0; rows * scale_bytes],
    };
    let chunk = (VALUES / cols.max(1)).max(1);
    // Chunks of nothing are not allowed, nor needed: forms without scales get empty slices.
    let mut scales = out.scales.chunks_mut((chunk * scale_bytes).max(1));
    let mut biases = out.biases.chunks_mut((chunk * scale_bytes).max(1));
    let codes = out.codes.chunks_mut((chunk * code_bytes).max(1));
    let parts = codes.enumerate().map(|(i, codes)| Part {
        rows: i * chunk..rows.min((i + 1) * chunk),
        codes,
        scales: scales.next().unwrap_or_default(),
        biases: biases.next().unwrap_or_default(),
    });
    let parts = Mutex::new(parts);
    let failure = Mutex::new(None);
    let work = || {
        let mut buffers = Buffers::default();
        loop {
            // The lock is not held while the part is worked on.
            let part = match parts.lock() {
                Ok(mut parts) => parts.next(),
                Err(_) => None,
            };
            let Some(part) = part else { break };
            if let Err(error) = buffers.fill(m, form, part) {
                if let Ok(mut slot) = failure.lock() {
                    slot.get_or_insert(error);
                }
                break;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner() {
        Ok(None) => {}
        Ok(Some(error)) => return Err(error),
        Err(_) => return Err(Error::Request("a thread failed while quantizing".into())),
    }
    Ok(out)
}

struct Part<'a> {
    rows: std::ops::Range<usize>,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    biases: &'a mut [u8],
}

/// Room that a thread keeps from part to part.
#[derive(Default)]
struct Buffers {
    values: Vec<f32>,
    rows: CanonicalRows,
    blocks: Vec<u8>,
    words: Vec<u32>,
}

impl Buffers {
    fn fill(&mut self, m: &PackedMatrix<'_>, form: Form, part: Part<'_>) -> Result<()> {
        let cols = m.shape[1];
        self.values.resize(part.rows.len() * cols, 0.0);
        dequantize_rows(m, part.rows, &mut self.values)?;
        let named = |error| match error {
            biplane_backend::Error::Weight { reason, .. } => biplane_backend::Error::Weight {
                name: m.name.into(),
                reason,
            },
            other => other,
        };
        match form {
            Form::Ggml(kind) => {
                self.blocks.clear();
                quantize_ggml(&self.values, cols, kind, &mut self.blocks).map_err(named)?;
                part.codes.copy_from_slice(&self.blocks);
            }
            Form::Affine { spec, scale_dtype } => {
                quantize_rows(&self.values, cols, spec, &mut self.rows).map_err(named)?;
                let rows = &mut self.rows;
                narrow(&mut rows.scales, scale_dtype, part.scales);
                narrow(&mut rows.biases, scale_dtype, part.biases);
                if rows
                    .scales
                    .iter()
                    .chain(&rows.biases)
                    .any(|x| !x.is_finite())
                {
                    return Err(named(biplane_backend::Error::Weight {
                        name: m.name.into(),
                        reason: format!("its scales do not fit {scale_dtype}"),
                    })
                    .into());
                }
                nearest_codes(&self.values, spec, rows);
                self.words.clear();
                pack_codes(&rows.codes, spec.bits, &mut self.words)?;
                let bytes = part.codes.chunks_exact_mut(4);
                for (bytes, word) in bytes.zip(&self.words) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

/// Rounds values to an element type, in place and into bytes.
pub(crate) fn narrow(values: &mut [f32], dtype: DType, bytes: &mut [u8]) {
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact_mut(dtype.size())) {
        match dtype {
            DType::F16 => {
                let half = f16::from_f32(*value);
                bytes.copy_from_slice(&half.to_le_bytes());
                *value = half.to_f32();
            }
            DType::BF16 => {
                let half = bf16::from_f32(*value);
                bytes.copy_from_slice(&half.to_le_bytes());
                *value = half.to_f32();
            }
            _ => bytes.copy_from_slice(&value.to_le_bytes()),
        }
    }
}

/// Chooses the codes anew for scales and biases that were rounded.
fn nearest_codes(values: &[f32], spec: AffineSpec, rows: &mut CanonicalRows) {
    let top = ((1u32 << spec.bits) - 1) as f32;
    let groups = values
        .chunks_exact(spec.group_size)
        .zip(rows.codes.chunks_exact_mut(spec.group_size));
    for ((values, codes), (&scale, &bias)) in groups.zip(rows.scales.iter().zip(&rows.biases)) {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for (code, &value) in codes.iter_mut().zip(values) {
            *code = ((value - bias) * inverse).round_ties_even().clamp(0.0, top) as u8;
        }
    }
}
