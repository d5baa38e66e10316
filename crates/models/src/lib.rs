//! Model architectures written once for every backend, the readers of their checkpoints, KV caches,
//! and the step.
//!
//! Nothing here names a backend, and nothing above this crate sees a tensor: [`load`] gives a
//! [`ModelRunner`], which takes token ids and gives logits.

pub mod checkpoint;
mod error;
mod kv_cache;
mod layers;
mod llama;
mod loader;
mod model;
mod quantization;
mod registry;
mod rope_config;
mod runner;
mod step;
mod weights;

pub use error::{Error, Result};
pub use kv_cache::CacheSpec;
pub use layers::{Embedding, Linear, RmsNorm};
pub use loader::{GgufFix, GgufTensor};
pub use model::{Architecture, Dimensions, Model};
pub use quantization::Quantization;
pub use registry::{LoadRequest, SUPPORTED, auto_dtype, load};
pub use runner::{ModelInfo, ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want};
pub use step::Step;
pub use weights::Weights;
