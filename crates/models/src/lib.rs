//! Model architectures written once for every backend, the readers of their checkpoints, KV caches,
//! and the step.
//!
//! Nothing here names a backend, and nothing above this crate sees a tensor: [`load`] gives a
//! [`ModelRunner`], which takes token ids and gives logits.

mod about;
mod angles;
pub mod checkpoint;
mod config;
mod convert;
mod error;
mod gemma3;
mod gguf_config;
mod gguf_names;
mod isq;
mod kv_batch;
mod kv_cache;
mod layers;
mod llama;
mod loader;
mod mistral;
mod model;
mod phi3;
mod quantization;
mod qwen2;
mod qwen3;
mod registry;
mod requantize;
mod rope_config;
mod runner;
mod source;
mod stablelm;
mod step;
mod stored;
mod weights;

pub use about::{About, about};
pub use convert::{ConvertRequest, Converted, OutputFormat, convert};
pub use error::{Error, Result};
pub use gguf_names::{GgufFix, GgufNames};
pub use isq::{Isq, IsqOverride, IsqType};
pub use kv_cache::CacheSpec;
pub use layers::{Embedding, Joined, LayerNorm, Linear, RmsNorm};
pub use model::{Architecture, Dimensions, Model};
pub use quantization::Quantization;
pub use registry::{LoadRequest, SUPPORTED, auto_dtype, check_config, load};
pub use requantize::Form;
pub use runner::{ModelInfo, ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want};
pub use step::Step;
pub use weights::{Rows, Weights};
