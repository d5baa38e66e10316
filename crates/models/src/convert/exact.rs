//! The same values in the other format, where it has them.

use biplane_backend::{
    AffineSpec, DType, GgmlKind, PackedMatrix, Result,
    repack::{CanonicalRows, canonical_rows, pack_codes},
};
use half::f16;

use crate::requantize::{Form, Quantized, narrow};

/// The affine groups that hold a GGML kind's values exactly: none of MLX's are of 16.
pub(super) fn affine_form(kind: GgmlKind) -> Option<Form> {
    let spec = kind.spec();
    let scale_dtype = match kind {
        GgmlKind::Q4_0 | GgmlKind::Q4_1 | GgmlKind::Q5_0 | GgmlKind::Q5_1 | GgmlKind::Q8_0 => {
            DType::F16
        }
        // A product of two scales: more digits than a half has.
        GgmlKind::Q4K | GgmlKind::Q5K => DType::F32,
        GgmlKind::Q2K | GgmlKind::Q3K | GgmlKind::Q6K => return None,
    };
    Some(Form::Affine { spec, scale_dtype })
}

/// The GGML kind that holds an affine form's values exactly, if its scales fit.
pub(super) fn ggml_kind(spec: AffineSpec) -> Option<GgmlKind> {
    match (spec.bits, spec.group_size) {
        (4, 32 | 64 | 128) => Some(GgmlKind::Q4_1),
        (5, 32 | 64 | 128) => Some(GgmlKind::Q5_1),
        _ => None,
    }
}

/// A quantized matrix as affine groups; `None` where a scale does not fit.
pub(super) fn to_affine(m: &PackedMatrix<'_>, form: Form) -> Result<Option<Quantized>> {
    let Form::Affine { spec, scale_dtype } = form else {
        return Ok(None);
    };
    let mut rows = CanonicalRows::default();
    canonical_rows(m, 0..m.shape[0], &mut rows)?;
    let mut words = Vec::new();
    pack_codes(&rows.codes, spec.bits, &mut words)?;
    let halves = |values: &[f32]| {
        let mut rounded = values.to_vec();
        let mut bytes = vec![0; values.len() * scale_dtype.size()];
        narrow(&mut rounded, scale_dtype, &mut bytes);
        (rounded == values).then_some(bytes)
    };
    let (Some(scales), Some(biases)) = (halves(&rows.scales), halves(&rows.biases)) else {
        return Ok(None);
    };
    let codes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    Ok(Some(Quantized::new(form, codes, scales, biases)))
}

/// Affine groups of 4 or 5 bits as Q4_1 or Q5_1 blocks; `None` where a scale does not fit `f16`.
pub(super) fn to_ggml(m: &PackedMatrix<'_>, kind: GgmlKind) -> Result<Option<Quantized>> {
    let Some(spec) = m.spec() else {
        return Ok(None);
    };
    let mut rows = CanonicalRows::default();
    canonical_rows(m, 0..m.shape[0], &mut rows)?;
    let mut blocks = Vec::with_capacity(rows.codes.len() / 32 * kind.block_bytes());
    for (i, codes) in rows.codes.chunks_exact(32).enumerate() {
        let group = i * 32 / spec.group_size;
        for value in [rows.scales[group], rows.biases[group]] {
            let half = f16::from_f32(value);
            if half.to_f32() != value {
                return Ok(None);
            }
            blocks.extend(half.to_le_bytes());
        }
        if kind == GgmlKind::Q5_1 {
            let mask = (0..32).fold(0u32, |mask, i| mask | u32::from(codes[i] >> 4 & 1) << i);
            blocks.extend(mask.to_le_bytes());
        }
        blocks.extend((0..16).map(|i| codes[i] & 15 | codes[i + 16] << 4));
    }
    let none = Vec::new();
    Ok(Some(Quantized::new(
        Form::Ggml(kind),
        blocks,
        none.clone(),
        none,
    )))
}
