//! The architectures there are, and how a checkpoint becomes a running model.

use std::path::{Path, PathBuf};

use biplane_backend::{Backend, DType, KvType};

use crate::{
    Error, Isq, Result, Weights,
    checkpoint::{Checkpoint, Metadata, Opened, RawTensor},
    config::{only, text_config},
    gguf_config,
    isq::IsqPlan,
    loader::Loader,
    model::{Architecture, Dimensions, Model},
    quantization::Quantization,
    runner::{ModelInfo, ModelRunner, Runner},
    source::Source,
};

/// Something to do with a checkpoint once its architecture is known.
pub(crate) trait Visitor {
    type Output;

    fn visit<A: Architecture>(self, names: Names) -> Result<Self::Output>;
}

/// What an architecture is called, the name to write first.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub hf: &'static [&'static str],
    pub gguf: &'static [&'static str],
}

/// One line for every architecture: its module, its `model_type`s, its GGUF `general.architecture`s.
macro_rules! architectures {
    ($($module:ident: [$($hf:literal),*], [$($gguf:literal),*];)*) => {
        /// Names of all supported architectures, for errors and help.
        pub const SUPPORTED: &[&str] = &[$($($hf,)*)*];

        /// Does something with a checkpoint's architecture.
        pub(crate) fn visit<V: Visitor>(opened: &Opened, visitor: V) -> Result<V::Output> {
            let (gguf, name) = match &opened.metadata {
                Metadata::HuggingFace { config, .. } => (false, model_type(config).unwrap_or("?")),
                Metadata::Gguf(metadata) => (true, metadata.architecture()?),
            };
            $(
                let names = Names { hf: &[$($hf),*], gguf: &[$($gguf),*] };
                let own = if gguf { names.gguf } else { names.hf };
                if own.contains(&name) {
                    return visitor.visit::<crate::$module::Arch>(names);
                }
            )*
            Err(unsupported(opened.checkpoint.path(), name))
        }
    };
}

// The first that has a file's name reads it: `llama` is what GGUF calls Mistral too.
architectures! {
    gemma3: ["gemma3_text", "gemma3"], ["gemma3"];
    llama: ["llama"], ["llama"];
    mistral: ["mistral"], ["llama"];
    phi3: ["phi3"], ["phi3"];
    qwen2: ["qwen2"], ["qwen2"];
    qwen3: ["qwen3"], ["qwen3"];
    stablelm: ["stablelm", "stablelm_epoch"], ["stablelm"];
}

/// What to load, and how.
pub struct LoadRequest<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// Element type of activations; `None` chooses by [`auto_dtype`].
    pub dtype: Option<DType>,
    /// How keys and values are to be kept.
    pub kv_type: KvType,
    /// Longest sequence to allow; `None` for what the model was made for.
    pub context_length: Option<usize>,
    /// What to quantize on the way.
    pub isq: Isq,
    /// Whether a lazy backend computes layer by layer: slower, and errors come where they arise.
    pub eager: bool,
    /// Told the bytes of weights read so far.
    pub progress: &'a dyn Fn(usize),
}

/// The element type of activations where the user does not choose: the checkpoint's on a GPU, `F32`
/// on a processor, where half precision is slower, and in MLX's quantized product inaccurate.
pub fn auto_dtype(device: biplane_backend::Device, checkpoint: Option<DType>) -> DType {
    match checkpoint {
        _ if device.is_cpu() => DType::F32,
        Some(dtype) if dtype.is_float() => dtype,
        _ => DType::BF16,
    }
}

struct Built<B: Backend> {
    model: Box<dyn Model<B>>,
    dimensions: Dimensions,
    dtype: DType,
    weight_bytes: usize,
    parameters: usize,
}

/// Brings a checkpoint's model to a backend's device.
///
/// # Errors
/// Whatever is wrong with the files, named; or the backend's.
pub fn load<B: Backend>(
    opened: &Opened,
    request: &LoadRequest<'_, B>,
) -> Result<Box<dyn ModelRunner>> {
    let built = visit(opened, Load { opened, request })?;
    let made_for = built.dimensions.context_length;
    let context_length = request.context_length.unwrap_or(made_for);
    let caches = built.model.caches();
    let kv_format = request.backend.kv_format(request.kv_type, built.dtype)?;
    for cache in &caches {
        kv_format.check(B::NAME, cache.head_dim)?;
    }
    let info = ModelInfo {
        architecture: match &opened.metadata {
            Metadata::HuggingFace { config, .. } => model_type(config).unwrap_or("?").to_owned(),
            Metadata::Gguf(metadata) => metadata.architecture()?.to_owned(),
        },
        backend: B::NAME,
        device: request.backend.device(),
        dtype: built.dtype,
        kv_format,
        vocab_size: built.dimensions.vocab_size,
        hidden_size: built.dimensions.hidden_size,
        layers: built.dimensions.layers,
        context_length,
        parameters: built.parameters,
        weight_bytes: built.weight_bytes,
        caches,
    };
    Ok(Box::new(Runner::new(
        request.backend.clone(),
        built.model,
        info,
        request.eager,
    )))
}

fn model_type(config: &serde_json::Value) -> Option<&str> {
    config.get("model_type").and_then(|v| v.as_str())
}

fn unsupported(path: &Path, name: &str) -> Error {
    Error::Architecture {
        path: path.to_owned(),
        name: name.to_owned(),
        supported: SUPPORTED.join(", "),
    }
}

/// A checkpoint's configuration and tensors, in Hugging Face's terms.
pub(crate) struct Described<'a, A: Architecture> {
    /// `config.json`, or what a GGUF header says in its terms; of a multimodal checkpoint all of it.
    pub json: serde_json::Value,
    pub config: A::Config,
    pub source: Source<'a>,
    /// The element type that the checkpoint says its dense tensors have.
    pub dtype: Option<DType>,
}

/// Reads a checkpoint's configuration.
pub(crate) fn describe<A: Architecture>(opened: &Opened, names: Names) -> Result<Described<'_, A>> {
    let checkpoint = &*opened.checkpoint;
    match &opened.metadata {
        Metadata::HuggingFace { config: json, .. } => {
            let error = |reason| Error::Config {
                path: checkpoint.path().join("config.json"),
                reason,
            };
            let text = text_config(json);
            // mlx-lm's name for the other pairing of RoPE, which no published checkpoint has.
            only(&text, "rope_traditional", &[false.into()]).map_err(error)?;
            let config = A::config(&text).map_err(error)?;
            let quantization = Quantization::from_config(json).map_err(error)?;
            let stored = ["torch_dtype", "dtype"]
                .iter()
                .find_map(|key| text.get(key)?.as_str());
            Ok(Described {
                json: json.clone(),
                config,
                source: Source::hugging_face(checkpoint, quantization),
                dtype: match stored {
                    Some("float32") => Some(DType::F32),
                    Some("float16") => Some(DType::F16),
                    Some("bfloat16") => Some(DType::BF16),
                    _ => None,
                },
            })
        }
        Metadata::Gguf(metadata) => {
            let mut json = gguf_config::read(metadata)?;
            A::complete_gguf_config(metadata, &mut json)?;
            if let Some(name) = names.hf.first() {
                json.insert("model_type".into(), (*name).into());
            }
            let json = json.into();
            let config = A::config(&json).map_err(|reason| metadata.config_error(reason))?;
            Ok(Described {
                source: Source::gguf(checkpoint, A::gguf_names(&config)),
                dtype: None,
                json,
                config,
            })
        }
    }
}

/// Whether a `config.json` is of a model that can be loaded, before there are any weights.
///
/// # Errors
/// As [`load`], for what is wrong with the configuration; `dir` is where it lies.
pub fn check_config(dir: &Path, config: &serde_json::Value) -> Result<()> {
    struct Check<'a>(&'a Opened);
    impl Visitor for Check<'_> {
        type Output = ();

        fn visit<A: Architecture>(self, names: Names) -> Result<()> {
            describe::<A>(self.0, names).map(|_| ())
        }
    }
    let opened = Opened {
        checkpoint: Box::new(NoTensors(dir.to_owned())),
        metadata: Metadata::HuggingFace {
            config: config.clone(),
            generation_config: None,
            dir: dir.to_owned(),
        },
    };
    visit(&opened, Check(&opened))
}

/// A checkpoint whose weights are still to come.
struct NoTensors(PathBuf);

impl Checkpoint for NoTensors {
    fn path(&self) -> &Path {
        &self.0
    }

    fn names(&self) -> Vec<&str> {
        Vec::new()
    }

    fn size_in_bytes(&self) -> usize {
        0
    }

    fn tensor(&self, _: &str) -> Result<Option<RawTensor<'_>>> {
        Ok(None)
    }
}

struct Load<'a, 'b, B: Backend> {
    opened: &'a Opened,
    request: &'a LoadRequest<'b, B>,
}

impl<B: Backend> Visitor for Load<'_, '_, B> {
    type Output = Built<B>;

    fn visit<A: Architecture>(self, names: Names) -> Result<Built<B>> {
        let request = self.request;
        let described = describe::<A>(self.opened, names)?;
        let dtype = request
            .dtype
            .unwrap_or_else(|| auto_dtype(request.backend.device(), described.dtype));
        let isq = IsqPlan::new(request.isq.clone());
        let loader = Loader::new(
            request.backend,
            described.source,
            dtype,
            &isq,
            request.progress,
        );
        let dimensions = A::dimensions(&described.config);
        let made_for = dimensions.context_length;
        if let Some(asked) = request.context_length.filter(|asked| *asked > made_for) {
            return Err(Error::Request(format!(
                "a context of {asked} tokens is beyond the {made_for} this model was made for; ask for at most that"
            )));
        }
        let model = A::load(described.config, &Weights::new(&loader))?;
        let (weight_bytes, parameters) = loader.totals();
        Ok(Built {
            model: Box::new(model),
            dimensions,
            dtype,
            weight_bytes,
            parameters,
        })
    }
}
