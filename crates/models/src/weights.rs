//! A model's way to its weights: Hugging Face names in, tensors on the device out, whatever the
//! checkpoint's format.

use std::borrow::Cow;

use biplane_backend::{Backend, DType, PackedLayout, PackedMatrix, Tensor};
use half::{bf16, f16};

use crate::{
    Error, Result,
    checkpoint::{RawKind, RawTensor},
    layers::{Embedding, Linear, RmsNorm},
    loader::{GgufFix, GgufTensor, Loader, Naming},
};

/// Weights under one prefix of names.
pub struct Weights<'a, B: Backend> {
    loader: &'a Loader<'a, B>,
    prefix: String,
}

impl<'a, B: Backend> Weights<'a, B> {
    pub(crate) fn new(loader: &'a Loader<'a, B>) -> Self {
        Weights {
            loader,
            prefix: String::new(),
        }
    }

    /// The weights under `name`.
    pub fn scope(&self, name: impl std::fmt::Display) -> Self {
        Weights {
            loader: self.loader,
            prefix: self.full(name),
        }
    }

    fn full(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// The name in the file and what to undo, or `None` where the format never holds it.
    fn locate(&self, name: &str) -> Option<GgufTensor> {
        match &self.loader.naming {
            Naming::HuggingFace => Some(GgufTensor::same(name)),
            Naming::Gguf(locate) => locate(name),
        }
    }

    fn find(&self, name: &str) -> Result<Option<(RawTensor<'a>, GgufFix)>> {
        let Some(GgufTensor { name, fix }) = self.locate(name) else {
            return Ok(None);
        };
        Ok(self.loader.raw(&name)?.map(|raw| (raw, fix)))
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor {
            path: self.loader.source.path().to_owned(),
            name: self
                .locate(name)
                .map_or_else(|| name.to_owned(), |located| located.name),
        }
    }

    /// [`Error::Config`] for this checkpoint.
    pub fn config_error(&self, reason: impl Into<String>) -> Error {
        Error::Config {
            path: self.loader.source.path().to_owned(),
            reason: reason.into(),
        }
    }

    /// Whether the checkpoint has the tensor `name`.
    ///
    /// # Errors
    /// As [`crate::checkpoint::Checkpoint::tensor`].
    pub fn has(&self, name: &str) -> Result<bool> {
        match self.locate(&self.full(name)) {
            Some(located) => Ok(self.loader.source.tensor(&located.name)?.is_some()),
            None => Ok(false),
        }
    }

    /// A linear layer `in -> out` without bias.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Tensor`], or the backend's.
    pub fn linear(&self, name: &str, input: usize, output: usize) -> Result<Linear<B>> {
        Ok(Linear {
            weight: self.matrix(name, [output, input])?,
            bias: None,
        })
    }

    /// A linear layer `in -> out` with a bias.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn linear_with_bias(&self, name: &str, input: usize, output: usize) -> Result<Linear<B>> {
        Ok(Linear {
            weight: self.matrix(name, [output, input])?,
            bias: Some(self.vector(&format!("{name}.bias"), output)?),
        })
    }

    /// An embedding table `[vocab, hidden]`.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn embedding(&self, name: &str, vocab: usize, hidden: usize) -> Result<Embedding<B>> {
        Ok(Embedding {
            table: self.matrix(name, [vocab, hidden])?,
            dtype: self.loader.dtype,
        })
    }

    /// An RMSNorm over `len` elements.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn rms_norm(&self, name: &str, len: usize, eps: f32) -> Result<RmsNorm<B>> {
        Ok(RmsNorm {
            weight: self.vector(&format!("{name}.weight"), len)?,
            eps,
        })
    }

    /// The weight matrix `name.weight` of the given `[out, in]`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Tensor`], or the backend's.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<B::Matrix> {
        let base = self.full(name);
        let weight_name = format!("{base}.weight");
        let Some((raw, fix)) = self.find(&weight_name)? else {
            return Err(self.missing(&weight_name));
        };
        let scales_name = format!("{base}.scales");
        let matrix = match self.affine(&base, &raw, shape)? {
            Some(packed) => self
                .loader
                .backend
                .load_matrix(&packed, self.loader.dtype)?,
            None => {
                if raw.shape != shape {
                    return Err(self.loader.unfit(&raw, format!("{shape:?}")));
                }
                let bytes = undo(fix, &raw, shape[0])
                    .ok_or_else(|| self.loader.unfit(&raw, "rows that divide by heads".into()))?;
                let layout = match raw.kind {
                    RawKind::Dense(dtype) if dtype.is_float() => PackedLayout::Dense {
                        dtype,
                        bytes: &bytes,
                    },
                    RawKind::Ggml(kind) => PackedLayout::Ggml {
                        kind,
                        blocks: &bytes,
                    },
                    RawKind::Dense(_) => {
                        return Err(self.loader.unfit(
                            &raw,
                            format!(
                                "f32, f16 or bf16 {shape:?}, or packed codes with {scales_name}"
                            ),
                        ));
                    }
                };
                let packed = PackedMatrix {
                    name: &weight_name,
                    shape,
                    layout,
                };
                self.loader
                    .backend
                    .load_matrix(&packed, self.loader.dtype)?
            }
        };
        let held = biplane_backend::WeightMatrix::size_in_bytes(&matrix);
        self.loader.taken(raw.name, held, shape[0] * shape[1]);
        Ok(matrix)
    }

    /// MLX's affine form of a matrix, if the checkpoint has scales for it.
    fn affine(
        &self,
        base: &str,
        raw: &RawTensor<'a>,
        shape: [usize; 2],
    ) -> Result<Option<PackedMatrix<'a>>> {
        if !matches!(self.loader.naming, Naming::HuggingFace) {
            return Ok(None);
        }
        let Some(scales) = self.loader.raw(&format!("{base}.scales"))? else {
            return Ok(None);
        };
        let biases_name = format!("{base}.biases");
        let biases = self
            .loader
            .raw(&biases_name)?
            .ok_or_else(|| self.missing(&biases_name))?;
        let [out, input] = shape;
        let (RawKind::Dense(DType::U32), RawKind::Dense(scale_dtype)) = (raw.kind, scales.kind)
        else {
            return Err(self.loader.unfit(raw, "u32 words of packed codes".into()));
        };
        let spec = self
            .loader
            .quantization
            .layer(base)
            .ok_or_else(|| {
                self.config_error(format!(
                    "{base} is quantized, but `quantization` does not say with which bits and group size"
                ))
            })?;
        let words = input * usize::from(spec.bits) / 32;
        if raw.shape != [out, words] {
            return Err(self.loader.unfit(
                raw,
                format!("u32 {:?} for {} bits", [out, words], spec.bits),
            ));
        }
        let groups = [out, input / spec.group_size.max(1)];
        for part in [&scales, &biases] {
            if part.shape != groups || part.kind != scales.kind {
                return Err(self.loader.unfit(
                    part,
                    format!("{scale_dtype} {groups:?} for groups of {}", spec.group_size),
                ));
            }
        }
        Ok(Some(PackedMatrix {
            name: raw.name,
            shape,
            layout: PackedLayout::Affine {
                codes: raw.bytes,
                scales: scales.bytes,
                biases: biases.bytes,
                scale_dtype,
                bits: spec.bits,
                group_size: spec.group_size,
            },
        }))
    }

    /// The vector `name` of `len` elements, in the model's element type.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Tensor`], or the backend's.
    pub fn vector(&self, name: &str, len: usize) -> Result<B::Tensor> {
        let full = self.full(name);
        let Some((raw, fix)) = self.find(&full)? else {
            return Err(self.missing(&full));
        };
        let RawKind::Dense(dtype) = raw.kind else {
            return Err(self.loader.unfit(&raw, format!("a dense vector [{len}]")));
        };
        if raw.shape != [len] || !dtype.is_float() {
            return Err(self.loader.unfit(&raw, format!("f32, f16 or bf16 [{len}]")));
        }
        let bytes = undo(fix, &raw, len).ok_or_else(|| {
            self.loader
                .unfit(&raw, "elements that divide by heads".into())
        })?;
        let tensor = self
            .loader
            .backend
            .from_bytes(&bytes, dtype, [len])?
            .cast(self.loader.dtype)?;
        self.loader
            .taken(raw.name, len * self.loader.dtype.size(), len);
        Ok(tensor)
    }

    /// The values of the vector `name` on the host, if the checkpoint has it.
    ///
    /// # Errors
    /// [`Error::Tensor`] unless it is a dense float vector.
    pub fn optional_f32s(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some((raw, _)) = self.find(&self.full(name))? else {
            return Ok(None);
        };
        let values = match raw.kind {
            RawKind::Dense(DType::F32) => raw
                .bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            RawKind::Dense(DType::F16) => raw
                .bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            RawKind::Dense(DType::BF16) => raw
                .bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            _ => return Err(self.loader.unfit(&raw, "a float vector".into())),
        };
        Ok(Some(values))
    }

    /// Errors when the checkpoint holds tensors that nobody read and `known_unused` does not know.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`] with the first few names.
    pub fn finish(&self, known_unused: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.loader.used.borrow();
        let unused: Vec<&str> = self
            .loader
            .source
            .names()
            .into_iter()
            .filter(|name| !used.contains(*name) && !known_unused(name))
            .collect();
        if unused.is_empty() {
            return Ok(());
        }
        Err(Error::UnusedTensors {
            path: self.loader.source.path().to_owned(),
            count: unused.len(),
            first: unused
                .iter()
                .take(3)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        })
    }
}

/// Undoes a converter's change to `rows` rows; `None` when they do not divide as it says.
fn undo<'a>(fix: GgufFix, raw: &RawTensor<'a>, rows: usize) -> Option<Cow<'a, [u8]>> {
    let GgufFix::Interleaved { heads } = fix else {
        return Some(Cow::Borrowed(raw.bytes));
    };
    if rows == 0 || heads == 0 || !rows.is_multiple_of(2 * heads) {
        return None;
    }
    let row = raw.bytes.len() / rows;
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(raw.bytes.len());
    for head in raw.bytes.chunks_exact(2 * half * row) {
        for parity in 0..2 {
            for i in 0..half {
                let at = (2 * i + parity) * row;
                out.extend_from_slice(&head[at..at + row]);
            }
        }
    }
    Some(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_become_halves_again() {
        let raw = RawTensor {
            name: "q",
            shape: vec![8, 1],
            kind: RawKind::Dense(DType::U8),
            bytes: &[0, 2, 1, 3, 4, 6, 5, 7],
        };
        let fix = GgufFix::Interleaved { heads: 2 };
        assert_eq!(&*undo(fix, &raw, 8).unwrap(), &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(undo(GgufFix::Interleaved { heads: 3 }, &raw, 8).is_none());
        assert!(undo(GgufFix::Interleaved { heads: 0 }, &raw, 8).is_none());
    }
}
