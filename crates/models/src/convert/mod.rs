//! Writes a checkpoint in another format, or quantized, one tensor at a time.
//!
//! What is not quantized keeps its exact values, or is an error that says what to ask for instead: no
//! value is rounded silently.

mod config;
mod exact;
mod form;
mod plan;

use std::path::Path;

use biplane_backend::DType;
use serde_json::Value;

use crate::{
    Error, Isq, Result,
    checkpoint::{
        self, Metadata, Opened, RawKind,
        write::{GgufWriter, MetadataValue, SafetensorsWriter, TensorHeader},
    },
    isq::IsqPlan,
    model::Architecture,
    registry::{Described, Names, Visitor, describe, visit},
};
use plan::{Item, Plan};

/// Bytes of a shard: what the hub and mlx-lm use.
const MAX_SHARD_BYTES: usize = 5 << 30;

/// The format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// A directory as mlx-community's: `config.json` and safetensors, MLX's affine groups.
    Mlx,
    /// A GGUF file.
    Gguf,
}

/// What to write, and where to.
pub struct ConvertRequest<'a> {
    /// The format.
    pub output: OutputFormat,
    /// A directory that exists and is empty, or a file that does not exist.
    pub path: &'a Path,
    /// What to quantize.
    pub isq: Isq,
    /// The tokenizer as GGUF has it, where a directory becomes a GGUF file.
    pub tokenizer: Vec<(String, MetadataValue)>,
    /// Told the bytes of weights read so far.
    pub progress: &'a dyn Fn(usize),
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of weights.
    pub weight_bytes: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// Matrices that were quantized anew.
    pub quantized: usize,
}

/// Writes the weights and the configuration of a checkpoint; the files of the tokenizer are the
/// caller's.
///
/// # Errors
/// Whatever is wrong with the source, named; [`Error::Write`] for what the format cannot hold.
pub fn convert(opened: &Opened, request: &ConvertRequest<'_>) -> Result<Converted> {
    visit(opened, Convert { opened, request })
}

struct Convert<'a> {
    opened: &'a Opened,
    request: &'a ConvertRequest<'a>,
}

impl Visitor for Convert<'_> {
    type Output = Converted;

    fn visit<A: Architecture>(self, names: Names) -> Result<Converted> {
        let d = describe::<A>(self.opened, names)?;
        if let Some(isq) = self.request.isq.default {
            // Before a matrix of another type, as embeddings are, is what an error names.
            form::fits(isq, self.request.output).map_err(|reason| self.wrong(reason))?;
        }
        let isq = IsqPlan::new(self.request.isq.clone());
        let config =
            serde_json::to_value(&d.config).map_err(|e| d.source.config_error(e.to_string()))?;
        let tied = config.get("tie_word_embeddings") == Some(&Value::Bool(true));
        let plan = Plan::of::<A>(&d, self.request.output, &isq, tied)?;
        isq.finish()?;
        match self.request.output {
            OutputFormat::Mlx => self.mlx::<A>(&d, &plan),
            OutputFormat::Gguf => self.gguf::<A>(&d, &plan, names, &config),
        }
    }
}

impl Convert<'_> {
    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Write {
            path: self.request.path.to_owned(),
            reason: reason.into(),
        }
    }

    fn mlx<A: Architecture>(&self, d: &Described<'_, A>, plan: &Plan) -> Result<Converted> {
        let headers = plan.items.iter().flat_map(Item::headers).collect();
        let dir = self.request.path;
        let mut writer = SafetensorsWriter::create(dir, headers, MAX_SHARD_BYTES)?;
        let done = self.each(d, plan, |bytes| writer.write(bytes))?;
        writer.finish()?;
        let mut json = d.json.clone();
        if matches!(self.opened.metadata, Metadata::Gguf(_)) {
            config::complete_for_hf(&mut json, &d.source)?;
        }
        config::set_quantization(&mut json, plan);
        let path = dir.join("config.json");
        std::fs::write(&path, format!("{json:#}\n"))
            .map_err(|source| Error::Io { path, source })?;
        // What was written must be readable, as the same model.
        let written = checkpoint::open(dir)?;
        visit(&written, SameConfig::<A>::of(d, self.request.path))?;
        Ok(done)
    }

    fn gguf<A: Architecture>(
        &self,
        d: &Described<'_, A>,
        plan: &Plan,
        names: Names,
        config: &Value,
    ) -> Result<Converted> {
        let Some(arch) = names.gguf.first() else {
            return Err(self.wrong(format!(
                "GGUF has no architecture for {}; write an MLX directory instead",
                names.hf.first().unwrap_or(&"this model")
            )));
        };
        let (mut metadata, mut extra) = (Vec::new(), Vec::new());
        match &self.opened.metadata {
            Metadata::Gguf(m) => metadata = m.pairs()?,
            Metadata::HuggingFace { .. } => {
                let name = self.opened.checkpoint.path().file_name();
                let name =
                    name.map_or_else(|| (*arch).into(), |n| n.to_string_lossy().into_owned());
                metadata.push((
                    "general.architecture".into(),
                    MetadataValue::String((*arch).into()),
                ));
                metadata.push(("general.name".into(), MetadataValue::String(name)));
                metadata
                    .extend(config::to_gguf(arch, config).map_err(|e| d.source.config_error(e))?);
                metadata.extend(self.request.tokenizer.iter().cloned());
                extra = config::rope_freqs(config).map_err(|e| d.source.config_error(e))?;
            }
        }
        if let Some(file_type) = self.request.isq.default.and_then(config::file_type) {
            metadata.retain(|(key, _)| key != "general.file_type");
            metadata.push(("general.file_type".into(), MetadataValue::U32(file_type)));
        }
        let mut headers: Vec<_> = plan.items.iter().flat_map(Item::headers).collect();
        if !extra.is_empty() {
            headers.push(TensorHeader {
                name: "rope_freqs.weight".into(),
                shape: vec![extra.len()],
                kind: RawKind::Dense(DType::F32),
            });
        }
        let mut writer = GgufWriter::create(self.request.path, &metadata, headers)?;
        let done = self.each(d, plan, |bytes| writer.write(bytes))?;
        if !extra.is_empty() {
            writer.write(bytemuck::cast_slice(&extra))?;
        }
        writer.finish()?;
        let written = checkpoint::open(self.request.path)?;
        visit(&written, SameConfig::<A>::of(d, self.request.path))?;
        Ok(done)
    }

    /// Hands over the bytes of every planned tensor.
    fn each<A: Architecture>(
        &self,
        d: &Described<'_, A>,
        plan: &Plan,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Converted> {
        let mut done = Converted::default();
        let mut read = 0;
        for item in &plan.items {
            for bytes in item.bytes(&d.source)? {
                done.weight_bytes += bytes.len();
                write(&bytes)?;
            }
            done.parameters += item.parameters();
            done.quantized += usize::from(item.is_requantized());
            for name in &item.sources {
                if let Ok(Some(raw)) = d.source.checkpoint.tensor(name) {
                    read += raw.bytes.len();
                }
                d.source.checkpoint.release(name);
            }
            (self.request.progress)(read);
        }
        Ok(done)
    }
}

/// A written checkpoint must describe the same model: a format may have no place for a key.
struct SameConfig<'a, A: Architecture> {
    expected: Value,
    path: &'a Path,
    architecture: std::marker::PhantomData<A>,
}

impl<'a, A: Architecture> SameConfig<'a, A> {
    fn of(d: &Described<'_, A>, path: &'a Path) -> Self {
        SameConfig {
            expected: serde_json::to_value(&d.config).unwrap_or_default(),
            path,
            architecture: std::marker::PhantomData,
        }
    }
}

/// The visitor sees the written file's architecture, whose configuration is compared as JSON.
impl<A: Architecture> Visitor for SameConfig<'_, A> {
    type Output = ();

    fn visit<W: Architecture>(self, names: Names) -> Result<()> {
        let written = checkpoint::open(self.path)?;
        let d = describe::<W>(&written, names)?;
        let got = serde_json::to_value(&d.config).unwrap_or_default();
        match config::difference(&self.expected, &got) {
            None => Ok(()),
            Some(what) => Err(Error::Write {
                path: self.path.to_owned(),
                reason: format!("the format cannot hold this model's configuration: {what}"),
            }),
        }
    }
}
