//! The architectures there are, and how a checkpoint becomes a running model.

use std::path::Path;

use biplane_backend::{Backend, DType};

use crate::{
    Error, Isq, Result, Weights,
    checkpoint::{GgufMetadata, Metadata, Opened},
    config::text_config,
    gguf_config,
    isq::IsqPlan,
    loader::Loader,
    model::{Architecture, Dimensions, Model},
    quantization::Quantization,
    runner::{ModelInfo, ModelRunner, Runner},
    source::Source,
};

/// One line for every architecture: its module, its `model_type`s, its GGUF `general.architecture`s.
macro_rules! architectures {
    ($($module:ident: [$($hf:literal),*], [$($gguf:literal),*];)*) => {
        /// Names of all supported architectures, for errors and help.
        pub const SUPPORTED: &[&str] = &[$($($hf,)*)*];

        fn build<B: Backend>(opened: &Opened, request: &LoadRequest<'_, B>) -> Result<Built<B>> {
            match &opened.metadata {
                Metadata::HuggingFace { config, .. } => match model_type(config) {
                    $($(Some($hf))|* => build_hf::<B, crate::$module::Arch>(opened, config, request),)*
                    other => Err(unsupported(opened.checkpoint.path(), other.unwrap_or("?"))),
                },
                Metadata::Gguf(metadata) => match metadata.architecture()? {
                    $(name if (&[$($gguf),*] as &[&str]).contains(&name) => build_gguf::<B, crate::$module::Arch>(opened, metadata, request),)*
                    other => Err(unsupported(opened.checkpoint.path(), other)),
                },
            }
        }
    };
}

architectures! {
    gemma3: ["gemma3_text", "gemma3"], ["gemma3"];
    llama: ["llama"], ["llama"];
    mistral: ["mistral"], [];
    phi3: ["phi3"], ["phi3"];
    qwen2: ["qwen2"], ["qwen2"];
    qwen3: ["qwen3"], ["qwen3"];
    stablelm: ["stablelm", "stablelm_epoch"], ["stablelm"];
}

/// What to load, and how.
pub struct LoadRequest<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// Element type of activations and KV cache; `None` chooses by [`auto_dtype`].
    pub dtype: Option<DType>,
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
    let built = build(opened, request)?;
    let made_for = built.dimensions.context_length;
    let context_length = request.context_length.unwrap_or(made_for);
    if context_length > made_for {
        return Err(Error::Request(format!(
            "a context of {context_length} tokens is beyond the {made_for} this model was made for; ask for at most that"
        )));
    }
    let info = ModelInfo {
        architecture: match &opened.metadata {
            Metadata::HuggingFace { config, .. } => model_type(config).unwrap_or("?").to_owned(),
            Metadata::Gguf(metadata) => metadata.architecture()?.to_owned(),
        },
        backend: B::NAME,
        device: request.backend.device(),
        dtype: built.dtype,
        vocab_size: built.dimensions.vocab_size,
        hidden_size: built.dimensions.hidden_size,
        layers: built.dimensions.layers,
        context_length,
        parameters: built.parameters,
        weight_bytes: built.weight_bytes,
        caches: built.model.caches(),
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

fn build_hf<B: Backend, A: Architecture>(
    opened: &Opened,
    json: &serde_json::Value,
    request: &LoadRequest<'_, B>,
) -> Result<Built<B>> {
    let error = |reason| Error::Config {
        path: opened.checkpoint.path().join("config.json"),
        reason,
    };
    let text = text_config(json);
    let config = A::config(&text).map_err(error)?;
    let quantization = Quantization::from_config(json).map_err(error)?;
    let stored = ["torch_dtype", "dtype"]
        .iter()
        .find_map(|key| text.get(key)?.as_str());
    let stored = match stored {
        Some("float32") => Some(DType::F32),
        Some("float16") => Some(DType::F16),
        Some("bfloat16") => Some(DType::BF16),
        _ => None,
    };
    let source = Source::hugging_face(&*opened.checkpoint, quantization);
    finish::<B, A>(source, request, config, stored)
}

fn build_gguf<B: Backend, A: Architecture>(
    opened: &Opened,
    metadata: &GgufMetadata,
    request: &LoadRequest<'_, B>,
) -> Result<Built<B>> {
    let mut json = gguf_config::read(metadata)?;
    A::complete_gguf_config(metadata, &mut json)?;
    let config = A::config(&json.into()).map_err(|reason| metadata.config_error(reason))?;
    let source = Source::gguf(&*opened.checkpoint, A::gguf_names(&config));
    finish::<B, A>(source, request, config, None)
}

fn finish<B: Backend, A: Architecture>(
    source: Source<'_>,
    request: &LoadRequest<'_, B>,
    config: A::Config,
    stored: Option<DType>,
) -> Result<Built<B>> {
    let dtype = request
        .dtype
        .unwrap_or_else(|| auto_dtype(request.backend.device(), stored));
    let isq = IsqPlan::new(request.isq.clone());
    let loader = Loader::new(request.backend, source, dtype, &isq, request.progress);
    let dimensions = A::dimensions(&config);
    let model = A::load(config, &Weights::new(&loader))?;
    let (weight_bytes, parameters) = loader.totals();
    Ok(Built {
        model: Box::new(model),
        dimensions,
        dtype,
        weight_bytes,
        parameters,
    })
}
