//! Which model, and on what: flags that most verbs share.

use biplane::{BackendKind, DType, Device, IsqOverride, IsqType, KvType, ModelBuilder};
use clap::Args;

/// Which model, and on what.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// A GGUF file, a directory, or a Hugging Face id (`org/name`, `org/name:Q4_K_M`,
    /// `org/name@revision`); without it the small starter model.
    #[arg(short, long, env = "BIPLANE_MODEL")]
    pub model: Option<String>,

    #[command(flatten)]
    pub load: LoadArgs,
}

/// The engine of a verb that takes one.
#[derive(Clone, Copy, Debug, Args)]
pub struct BackendArg {
    /// Which engine computes; the first in this build by default.
    #[arg(long, env = "BIPLANE_BACKEND", value_parser = backend)]
    backend: Option<BackendKind>,
}

impl BackendArg {
    /// What is asked for, else what this build has first.
    pub fn kind(self) -> biplane::Result<BackendKind> {
        self.backend.map_or_else(BackendKind::default_here, Ok)
    }
}

/// On what a model computes, and how it is loaded.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = device, env = "BIPLANE_DEVICE")]
    pub device: Device,

    /// Element type of activations: the checkpoint's on a GPU and f32 on a CPU when `auto`.
    #[arg(long, default_value = "auto", value_parser = dtype, env = "BIPLANE_DTYPE")]
    pub dtype: AutoDType,

    /// How keys and values are kept: auto (f16 on candle's processor, as activations elsewhere), q8 in a
    /// little more than half of f16's memory, q4 in a third; llama.cpp's q8_0, q4_0 and mlx-lm's 8, 4
    /// too.
    #[arg(long, default_value = "auto", value_name = "TYPE", value_parser = kv_type, env = "BIPLANE_KV_TYPE")]
    pub kv_type: KvType,

    /// Threads that compute on the processor; its physical cores by default.
    #[arg(long, env = "BIPLANE_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Longest sequence in tokens; what the model was made for by default.
    #[arg(long, env = "BIPLANE_CTX", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,

    #[command(flatten)]
    pub isq: IsqArgs,

    /// Multiply quantized weights in the activations' own type; otherwise candle's processor rounds
    /// activations to 8 bits there, several times faster.
    #[arg(long)]
    pub exact: bool,

    /// Check every quantized kernel against plain f32 arithmetic before loading.
    #[arg(long)]
    pub self_check: bool,
}

/// Quantization of weights.
#[derive(Clone, Debug, Args)]
pub struct IsqArgs {
    /// Quantize the weights while they are loaded: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K,
    /// Q6K (GGML's blocks), AFQ2, AFQ3, AFQ4, AFQ5, AFQ6, AFQ8 (MLX's groups). Embeddings and head get
    /// at least 6 bits; what is stored as coarsely already stays as it is.
    #[arg(long, value_name = "TYPE", env = "BIPLANE_ISQ")]
    pub isq: Option<IsqType>,

    /// Another type for some weights, as lm_head=Q8_0, layers.0=none or 'layers.*.mlp=Q6K'; may be
    /// given several times, the last that matches counts.
    #[arg(long, value_name = "PATTERN=TYPE")]
    pub isq_override: Vec<IsqOverride>,
}

impl IsqArgs {
    /// Hands these to a builder.
    pub fn apply(&self, mut builder: ModelBuilder) -> ModelBuilder {
        if let Some(isq) = self.isq {
            builder = builder.with_isq(isq);
        }
        for exception in &self.isq_override {
            builder = builder.with_isq_override(exception.clone());
        }
        builder
    }
}

impl ModelArgs {
    /// The builder for these arguments on one backend.
    pub fn builder(&self, backend: BackendKind) -> ModelBuilder {
        self.load.builder(self.model.as_deref(), backend)
    }
}

impl LoadArgs {
    /// The builder of a model for these arguments on one backend.
    pub fn builder(&self, model: Option<&str>, backend: BackendKind) -> ModelBuilder {
        if let Some(threads) = self.threads {
            biplane::set_threads(usize::from(threads));
        }
        let mut builder = builder_of(model)
            .with_backend(backend)
            .with_device(self.device)
            .with_kv_type(self.kv_type);
        if let AutoDType(Some(dtype)) = self.dtype {
            builder = builder.with_dtype(dtype);
        }
        if let Some(ctx) = self.ctx {
            builder = builder.with_context_length(ctx as usize);
        }
        self.isq
            .apply(builder)
            .with_self_check(self.self_check)
            .with_exact(self.exact)
    }
}

/// `auto` or an element type.
#[derive(Clone, Copy, Debug)]
pub struct AutoDType(pub Option<DType>);

/// The model of a name: none, and `starter`, are the starter model.
pub fn builder_of(model: Option<&str>) -> ModelBuilder {
    match model {
        None => ModelBuilder::starter(),
        Some(STARTER) if !std::path::Path::new(STARTER).exists() => ModelBuilder::starter(),
        Some(model) => ModelBuilder::new(model),
    }
}

/// What the starter model is called.
pub const STARTER: &str = "starter";

pub fn backend(s: &str) -> Result<BackendKind, String> {
    s.parse().map_err(|e: biplane::Error| e.to_string())
}

fn device(s: &str) -> Result<Device, String> {
    match s {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "gpu" => Ok(Device::Gpu),
        "metal" => Ok(Device::Metal),
        "cuda" => Ok(Device::Cuda(0)),
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(Device::Cuda)
            .ok_or_else(|| "expected auto, cpu, gpu, cuda, cuda:N or metal".into()),
    }
}

fn kv_type(s: &str) -> Result<KvType, String> {
    s.parse()
}

fn dtype(s: &str) -> Result<AutoDType, String> {
    let floats = || DType::ALL.into_iter().filter(|d| d.is_float());
    match s {
        "auto" => Ok(AutoDType(None)),
        name => floats()
            .find(|d| d.name() == name)
            .map(|d| AutoDType(Some(d)))
            .ok_or_else(|| "expected auto, f32, f16 or bf16".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_dtypes_parse() {
        assert_eq!(device("cuda:1"), Ok(Device::Cuda(1)));
        assert_eq!(device("gpu"), Ok(Device::Gpu));
        assert!(device("tpu").is_err());
        assert!(dtype("u32").is_err());
        assert!(matches!(dtype("bf16"), Ok(AutoDType(Some(DType::BF16)))));
    }
}
