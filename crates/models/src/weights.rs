//! A model's way to its weights: Hugging Face names in, tensors on the device out, whatever the
//! checkpoint's format.

use biplane_backend::{Backend, DType, Tensor};

use crate::{
    Error, Result,
    gguf_names::GgufFix,
    layers::{Embedding, LayerNorm, Linear, RmsNorm},
    loader::Loader,
    stored::Stored,
};

/// Weights under one prefix of names.
pub struct Weights<'a, B: Backend> {
    loader: &'a Loader<'a, B>,
    prefix: String,
}

/// Rows of a fused projection.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Those of the part.
    pub part: std::ops::Range<usize>,
    /// Rows of the whole.
    pub of: usize,
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

    /// [`Error::Config`] for this checkpoint.
    pub fn config_error(&self, reason: impl Into<String>) -> Error {
        self.loader.source.config_error(reason)
    }

    /// The element type of activations.
    pub fn dtype(&self) -> DType {
        self.loader.dtype
    }

    /// Whether the checkpoint has the tensor `name`.
    ///
    /// # Errors
    /// As [`crate::checkpoint::Checkpoint::tensor`].
    pub fn has(&self, name: &str) -> Result<bool> {
        self.loader.source.has(&self.full(name))
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

    /// A linear layer `in -> out`, with a bias if `bias`.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn linear_biased(
        &self,
        name: &str,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<Linear<B>> {
        let mut linear = self.linear(name, input, output)?;
        if bias {
            linear.bias = Some(self.vector(&format!("{name}.bias"), output)?);
        }
        Ok(linear)
    }

    /// Some rows of a fused projection as a linear layer of their own, without bias.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn linear_rows(&self, name: &str, input: usize, rows: &Rows) -> Result<Linear<B>> {
        let base = self.full(name);
        let stored = self.loader.source.matrix(&base, [rows.of, input])?;
        if rows.part.end > rows.of {
            return Err(self.config_error(format!("{base} has {} rows only", rows.of)));
        }
        let weight = self.loader.load(&base, &stored.rows(rows.part.clone()))?;
        if rows.part.end == rows.of {
            self.release(&base, &stored);
        }
        Ok(Linear { weight, bias: None })
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

    /// An RMSNorm over `len` elements whose weight is one plus the checkpoint's (Gemma's).
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn rms_norm_plus_one(&self, name: &str, len: usize, eps: f32) -> Result<RmsNorm<B>> {
        let full = self.full(format!("{name}.weight"));
        let add = match self.loader.source.find(&full)? {
            // Already there, in the file's own rounding.
            Some((_, GgufFix::PlusOne)) => 0.0,
            _ => 1.0,
        };
        Ok(RmsNorm {
            weight: self.vector_plus(&full, len, add)?,
            eps,
        })
    }

    /// A LayerNorm over `len` elements, with a bias if the checkpoint has one.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn layer_norm(&self, name: &str, len: usize, eps: f32) -> Result<LayerNorm<B>> {
        let bias = format!("{name}.bias");
        Ok(LayerNorm {
            weight: self.vector(&format!("{name}.weight"), len)?,
            bias: match self.has(&bias)? {
                true => Some(self.vector(&bias, len)?),
                false => None,
            },
            eps,
        })
    }

    /// The weights of `heads` norms over `len` elements each, as one tensor `[heads, len]`: the
    /// vectors `NAME.norms.0.weight`, … or, in GGUF files, the rows of one.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn norms_of_heads(&self, name: &str, heads: usize, len: usize) -> Result<B::Tensor> {
        let source = &self.loader.source;
        let whole = self.full(format!("{name}.weight"));
        let mut values = Vec::with_capacity(heads * len);
        match source.f32s(&whole)? {
            Some((raw, all)) if all.len() == heads * len => {
                values = all;
                self.loader.taken(raw.name, raw.bytes.len());
            }
            Some((raw, _)) => return Err(source.unfit(&raw, format!("[{heads}, {len}]"))),
            None => {
                for head in 0..heads {
                    let part = self.full(format!("{name}.norms.{head}.weight"));
                    let (raw, own) = source.f32s(&part)?.ok_or_else(|| source.missing(&part))?;
                    if own.len() != len {
                        return Err(source.unfit(&raw, format!("[{len}]")));
                    }
                    values.extend(own);
                    self.loader.taken(raw.name, raw.bytes.len());
                }
            }
        }
        self.loader
            .count(values.len() * self.dtype().size(), values.len());
        let tensor = self.loader.backend.from_f32s(&values, [heads, len])?;
        Ok(tensor.cast(self.dtype())?)
    }

    /// The weight matrix `name.weight` of the given `[out, in]`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Tensor`], or the backend's.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<B::Matrix> {
        let base = self.full(name);
        let stored = self.loader.source.matrix(&base, shape)?;
        let matrix = self.loader.load(&base, &stored)?;
        self.release(&base, &stored);
        Ok(matrix)
    }

    fn release(&self, base: &str, stored: &Stored<'_>) {
        self.loader.taken(&stored.name, stored.size_in_bytes());
        for part in ["scales", "biases"] {
            if let Ok(Some((raw, _))) = self.loader.source.find(&format!("{base}.{part}")) {
                self.loader.source.checkpoint.release(raw.name);
            }
        }
    }

    /// The vector `name` of `len` elements, in the model's element type.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Tensor`], or the backend's.
    pub fn vector(&self, name: &str, len: usize) -> Result<B::Tensor> {
        self.vector_plus(&self.full(name), len, 0.0)
    }

    fn vector_plus(&self, full: &str, len: usize, add: f32) -> Result<B::Tensor> {
        let source = &self.loader.source;
        let Some((raw, fix)) = source.find(full)? else {
            return Err(source.missing(full));
        };
        let dtype = match raw.kind {
            crate::checkpoint::RawKind::Dense(dtype) if dtype.is_float() => dtype,
            _ => return Err(source.unfit(&raw, format!("f32, f16 or bf16 [{len}]"))),
        };
        if raw.shape != [len] {
            return Err(source.unfit(&raw, format!("f32, f16 or bf16 [{len}]")));
        }
        let bytes = source.undo(fix, &raw)?;
        let mut tensor = self.loader.backend.from_bytes(&bytes, dtype, [len])?;
        if add != 0.0 {
            tensor = tensor.cast(DType::F32)?.affine(1.0, f64::from(add))?;
        }
        self.loader.count(len * self.dtype().size(), len);
        self.loader.taken(raw.name, raw.bytes.len());
        Ok(tensor.cast(self.dtype())?)
    }

    /// The values of the vector `name` on the host, if the checkpoint has it.
    ///
    /// # Errors
    /// [`Error::Tensor`] unless it is of floats.
    pub fn optional_f32s(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let found = self.loader.source.f32s(&self.full(name))?;
        Ok(found.map(|(_, values)| values))
    }

    /// Errors when the checkpoint holds tensors that nobody read and `known_unused` does not know by
    /// their Hugging Face names.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`] with the first few names; [`Error::Request`] for an override of the
    /// quantization that matches nothing.
    pub fn finish(&self, known_unused: impl Fn(&str) -> bool) -> Result<()> {
        self.loader.isq.finish()?;
        self.loader.source.finish(known_unused)
    }
}
