//! Which form a matrix is written in.

use biplane_backend::{DType, PackedLayout};

use super::{OutputFormat, exact, plan::Written};
use crate::{
    Error, IsqType, Result,
    isq::{Decision, IsqPlan},
    requantize::Form,
    source::Source,
};

/// Refuses a type that the format does not have.
pub(super) fn fits(isq: IsqType, output: OutputFormat) -> Result<(), String> {
    match (output, isq.ggml()) {
        (OutputFormat::Mlx, Some(_)) => Err(format!(
            "MLX directories have no {isq}; use AFQ{} there, or write GGUF",
            isq.bits()
        )),
        (OutputFormat::Gguf, None) => Err(format!(
            "GGUF has no {isq}; use Q4K, Q6K, Q8_0 or another of its types, or write an MLX directory"
        )),
        _ => Ok(()),
    }
}

/// Decides a matrix's form in the new file.
pub(super) fn form(
    source: &Source<'_>,
    base: &str,
    packed: &biplane_backend::PackedMatrix<'_>,
    output: OutputFormat,
    isq: &IsqPlan,
) -> Result<Written> {
    let error = |reason: String| Error::Write {
        path: source.checkpoint.path().to_owned(),
        reason: format!("{base}: {reason}"),
    };
    if let Decision::To(isq) = isq.decide(base, packed) {
        let dense = match packed.layout {
            PackedLayout::Dense { dtype, .. } => dtype,
            PackedLayout::Affine { scale_dtype, .. } => scale_dtype,
            PackedLayout::Ggml { .. } => DType::F16,
        };
        fits(isq, output).map_err(error)?;
        if let Some(form) = isq.form(packed.shape[1], dense) {
            return Ok(Written::New(form));
        }
        tracing::warn!(
            "{base}: rows of {} are no whole number of groups; it stays as it is",
            packed.shape[1]
        );
    }
    match (packed.layout, output) {
        (PackedLayout::Dense { dtype, .. }, _) => Ok(Written::Dense(dtype)),
        (PackedLayout::Ggml { kind, .. }, OutputFormat::Gguf) => Ok(Written::Exact(Form::Ggml(kind))),
        (PackedLayout::Ggml { kind, .. }, OutputFormat::Mlx) => exact::affine_form(kind)
            .map(Written::Exact)
            .ok_or_else(|| {
                error(format!(
                    "MLX has no groups of 16, which {} needs; quantize it anew, as with --isq AFQ6 or --isq-override '*=AFQ6'",
                    kind.name()
                ))
            }),
        (
            PackedLayout::Affine {
                scale_dtype,
                bits,
                group_size,
                ..
            },
            OutputFormat::Mlx,
        ) => Ok(Written::Exact(Form::Affine {
            spec: biplane_backend::AffineSpec { bits, group_size },
            scale_dtype,
        })),
        (PackedLayout::Affine { .. }, OutputFormat::Gguf) => packed
            .spec()
            .and_then(exact::ggml_kind)
            .map(|kind| Written::Exact(Form::Ggml(kind)))
            .ok_or_else(|| {
                error("GGUF has no type with its values; quantize it anew, as with --isq Q8_0 --isq-override '*=Q8_0'".into())
            }),
    }
}
