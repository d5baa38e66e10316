//! A check of a backend's weight matrices against plain `f32` arithmetic, for a start-up that trusts
//! nobody: wrong kernels for this very processor or GPU, a broken driver.

use crate::{
    AffineSpec, Backend, DType, Error, GgmlKind, PackedLayout, PackedMatrix, Result, Tensor,
    WeightMatrix,
    repack::{self, CanonicalRows},
};

/// `[out, in]` of the matrices: more than one block of everything, and no round number of rows.
const SHAPE: [usize; 2] = [75, 512];

/// Activations of a decode step and of a small prefill chunk.
const ROWS: [usize; 2] = [1, 13];

/// What one form of weights came to.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfCheck {
    /// `Q4_K`, `4 bits, groups of 64`, `bf16`, …
    pub form: String,
    /// The largest error of a product, in units of the products' spread.
    pub error: f32,
    /// What is allowed.
    pub tolerance: f32,
}

/// Multiplies by a matrix of every form and compares with `f32` products of the dequantized values.
///
/// # Errors
/// [`Error::Weight`] naming the form whose products are wrong, or what the backend reports.
pub fn self_check<B: Backend>(backend: &B, activations: DType) -> Result<Vec<SelfCheck>> {
    let values = noise(SHAPE[0] * SHAPE[1]);
    let mut checks = Vec::new();
    for kind in GgmlKind::ALL {
        let mut blocks = Vec::new();
        repack::quantize_ggml(&values, SHAPE[1], kind, &mut blocks)?;
        let layout = PackedLayout::Ggml {
            kind,
            blocks: &blocks,
        };
        checks.push(check(backend, kind.name().into(), layout, activations)?);
    }
    for bits in [2, 3, 4, 5, 6, 8] {
        for group_size in [32, 64, 128] {
            let spec = AffineSpec { bits, group_size };
            let mut rows = CanonicalRows::default();
            repack::quantize_rows(&values, SHAPE[1], spec, &mut rows)?;
            let mut words = Vec::new();
            repack::pack_codes(&rows.codes, bits, &mut words)?;
            let layout = PackedLayout::Affine {
                codes: bytemuck::cast_slice(&words),
                scales: bytemuck::cast_slice(&rows.scales),
                biases: bytemuck::cast_slice(&rows.biases),
                scale_dtype: DType::F32,
                bits,
                group_size,
            };
            let form = format!("{bits} bits, groups of {group_size}");
            checks.push(check(backend, form, layout, activations)?);
        }
    }
    let halves: Vec<half::bf16> = values.iter().copied().map(half::bf16::from_f32).collect();
    for (dtype, bytes) in [
        (DType::F32, bytemuck::cast_slice(&values)),
        (DType::BF16, bytemuck::cast_slice(&halves)),
    ] {
        let layout = PackedLayout::Dense { dtype, bytes };
        checks.push(check(backend, dtype.to_string(), layout, activations)?);
    }
    Ok(checks)
}

fn check<B: Backend>(
    backend: &B,
    form: String,
    layout: PackedLayout<'_>,
    activations: DType,
) -> Result<SelfCheck> {
    let packed = PackedMatrix {
        name: &form,
        shape: SHAPE,
        layout,
    };
    let [out, input] = SHAPE;
    let mut weights = vec![0.0; out * input];
    repack::dequantize_rows(&packed, 0..out, &mut weights)?;
    let matrix = backend.load_matrix(&packed, activations)?;
    // Sums in a half are off by its rounding times the root of the terms; 8-bit re-quantization of
    // forms that a backend does not have by far less than that.
    let tolerance = match activations {
        DType::F32 => 0.03,
        _ => 0.25,
    };
    let mut error = 0f32;
    for rows in ROWS {
        let x = backend
            .from_f32s(&noise(rows * input), [rows, input])?
            .cast(activations)?;
        let rounded = x.to_f32s()?;
        let got = matrix.matmul_t(&x)?.to_f32s()?;
        let want: Vec<f64> = rounded
            .chunks_exact(input)
            .flat_map(|x| weights.chunks_exact(input).map(|w| dot(x, w)))
            .collect();
        let spread = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
        for (got, want) in got.iter().zip(&want) {
            let off = ((f64::from(*got) - want).abs() / spread) as f32;
            error = if off.is_nan() {
                f32::INFINITY
            } else {
                error.max(off)
            };
        }
        if got.len() != want.len() {
            error = f32::INFINITY;
        }
    }
    if error > tolerance {
        return Err(Error::Weight {
            name: form,
            reason: format!(
                "{} multiplies wrongly on {}: off by {error} of the products' spread, {tolerance} is allowed; use another backend or device, and report this",
                B::NAME,
                backend.device()
            ),
        });
    }
    Ok(SelfCheck {
        form,
        error,
        tolerance,
    })
}

fn dot(x: &[f32], w: &[f32]) -> f64 {
    x.iter()
        .zip(w)
        .map(|(x, w)| f64::from(*x) * f64::from(*w))
        .sum()
}

/// Values about -1 to 1 without a pattern that a group would show.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
