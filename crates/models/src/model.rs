//! What an architecture is.

use biplane_backend::Backend;
use serde_json::Value;

use crate::{CacheSpec, Result, Step, Weights, checkpoint::GgufMetadata, loader::GgufTensor};

/// A model that runs: its weights on a device, and the forward pass.
pub trait Model<B: Backend> {
    /// What each layer keeps in the KV cache.
    fn caches(&self) -> Vec<CacheSpec>;

    /// Logits `[rows, vocab]` of the rows that the step wants.
    ///
    /// # Errors
    /// Only what the backend reports.
    fn forward(&self, step: &mut Step<'_, B>) -> biplane_backend::Result<B::Tensor>;
}

/// What the runner needs to know of a configuration, whatever the architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Longest sequence the model was made for, in tokens.
    pub context_length: usize,
}

/// An architecture: one file in this crate and one line in the registry.
pub trait Architecture<B: Backend>: Model<B> + Sized + 'static {
    /// Its configuration, in Hugging Face's terms.
    type Config;

    /// Reads `config.json`.
    ///
    /// # Errors
    /// A reason, to be reported with the file's path.
    fn config_from_hf(config: &Value) -> Result<Self::Config, String>;

    /// Reads the same from GGUF metadata.
    ///
    /// # Errors
    /// [`crate::Error::Config`] or [`crate::Error::Malformed`] naming file and key.
    fn config_from_gguf(metadata: &GgufMetadata) -> Result<Self::Config>;

    /// Where a GGUF file keeps the tensor of a Hugging Face name, or `None` where it never does.
    fn gguf_tensor(config: &Self::Config, name: &str) -> Option<GgufTensor>;

    /// Sizes for the runner.
    fn dimensions(config: &Self::Config) -> Dimensions;

    /// Brings the weights to the device.
    ///
    /// # Errors
    /// Naming the tensor.
    fn load(config: Self::Config, weights: &Weights<'_, B>) -> Result<Self>;
}
