//! The architectures there are, and how a checkpoint becomes a running model.

use std::path::Path;

use biplane_backend::{Backend, DType};

use crate::{
    Error, Result, Weights,
    checkpoint::{self, Metadata, Opened},
    loader::{Loader, Naming},
    model::{Architecture, Dimensions, Model},
    quantization::Quantization,
    runner::{ModelInfo, ModelRunner, Runner},
};

/// One line for every architecture: its type, its `model_type`s, its GGUF `general.architecture`s.
macro_rules! architectures {
    ($($module:ident::$model:ident: [$($hf:literal),*], [$($gguf:literal),*];)*) => {
        /// Names of all supported architectures, for errors and help.
        pub const SUPPORTED: &[&str] = &[$($($hf,)*)*];

        fn build<B: Backend>(opened: &Opened, request: &LoadRequest<'_, B>) -> Result<Built<B>> {
            match &opened.metadata {
                Metadata::HuggingFace { config, .. } => match model_type(config) {
                    $($(Some($hf))|* => build_hf::<B, crate::$module::$model<B>>(opened, config, request),)*
                    other => Err(unsupported(opened.checkpoint.path(), other.unwrap_or("?"))),
                },
                Metadata::Gguf(metadata) => match metadata.architecture()? {
                    $($($gguf)|* => build_gguf::<B, crate::$module::$model<B>>(opened, metadata, request),)*
                    other => Err(unsupported(opened.checkpoint.path(), other)),
                },
            }
        }
    };
}

architectures! {
    llama::Llama: ["llama"], ["llama"];
}

/// What to load, and how.
pub struct LoadRequest<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// Element type of activations and KV cache; `None` chooses by [`auto_dtype`].
    pub dtype: Option<DType>,
    /// Longest sequence to allow; `None` for what the model was made for.
    pub context_length: Option<usize>,
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
        kv_bytes_per_token: built
            .model
            .caches()
            .iter()
            .map(|c| c.bytes_per_token(built.dtype))
            .sum(),
    };
    Ok(Box::new(Runner::new(
        request.backend.clone(),
        built.model,
        info,
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

fn build_hf<B: Backend, M: Architecture<B>>(
    opened: &Opened,
    value: &serde_json::Value,
    request: &LoadRequest<'_, B>,
) -> Result<Built<B>> {
    let error = |reason| Error::Config {
        path: opened.checkpoint.path().join("config.json"),
        reason,
    };
    let config = M::config_from_hf(value).map_err(error)?;
    let quantization = Quantization::from_config(value).map_err(error)?;
    let stored = ["torch_dtype", "dtype"]
        .iter()
        .find_map(|key| value.get(key)?.as_str());
    let stored = match stored {
        Some("float32") => Some(DType::F32),
        Some("float16") => Some(DType::F16),
        Some("bfloat16") => Some(DType::BF16),
        _ => None,
    };
    finish::<B, M>(
        opened,
        request,
        config,
        Naming::HuggingFace,
        quantization,
        stored,
    )
}

fn build_gguf<B: Backend, M: Architecture<B>>(
    opened: &Opened,
    metadata: &checkpoint::GgufMetadata,
    request: &LoadRequest<'_, B>,
) -> Result<Built<B>> {
    let config = M::config_from_gguf(metadata)?;
    // The names need the configuration (head counts) while it is being consumed: read it once more.
    let naming = M::config_from_gguf(metadata)?;
    let locate = |name: &str| M::gguf_tensor(&naming, name);
    finish::<B, M>(
        opened,
        request,
        config,
        Naming::Gguf(&locate),
        Quantization::default(),
        None,
    )
}

fn finish<B: Backend, M: Architecture<B>>(
    opened: &Opened,
    request: &LoadRequest<'_, B>,
    config: M::Config,
    naming: Naming<'_>,
    quantization: Quantization,
    stored: Option<DType>,
) -> Result<Built<B>> {
    let dtype = request
        .dtype
        .unwrap_or_else(|| auto_dtype(request.backend.device(), stored));
    let loader = Loader::new(
        request.backend,
        &*opened.checkpoint,
        naming,
        quantization,
        dtype,
        request.progress,
    );
    let dimensions = M::dimensions(&config);
    let model = M::load(config, &Weights::new(&loader))?;
    let (weight_bytes, parameters) = loader.totals();
    Ok(Built {
        model: Box::new(model),
        dimensions,
        dtype,
        weight_bytes,
        parameters,
    })
}
