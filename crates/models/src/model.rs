//! What an architecture is.

use biplane_backend::Backend;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    CacheSpec, Result, Step, Weights, checkpoint::GgufMetadata, gguf_names::GgufNames,
    layers::Linear,
};

/// A model that runs: its weights on a device, and the forward pass.
pub trait Model<B: Backend> {
    /// What each layer keeps in the KV cache.
    fn caches(&self) -> Vec<CacheSpec>;

    /// What the last block gives for the step's tokens, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Only what the backend reports.
    fn forward(&self, step: &mut Step<'_, B>) -> biplane_backend::Result<B::Tensor>;

    /// The final norm of the rows that are wanted, `[rows, hidden]`.
    ///
    /// # Errors
    /// Only what the backend reports.
    fn norm(&self, x: &B::Tensor) -> biplane_backend::Result<B::Tensor>;

    /// What gives logits `[rows, vocab]` of rows that passed [`Self::norm`].
    fn head(&self) -> &Linear<B>;
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
pub trait Architecture: 'static {
    /// Its configuration, in Hugging Face's terms.
    type Config: Serialize;

    /// The model on a backend.
    type Model<B: Backend>: Model<B> + 'static;

    /// Reads `config.json`; of a multimodal checkpoint its text part.
    ///
    /// # Errors
    /// A reason, to be reported with the file's path.
    fn config(json: &Value) -> Result<Self::Config, String>;

    /// Completes the `config.json` that `gguf_config` reads out of a GGUF header, where the
    /// architecture has keys of its own, or values that GGUF leaves out.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming file and key.
    fn complete_gguf_config(_: &GgufMetadata, _json: &mut Map<String, Value>) -> Result<()> {
        Ok(())
    }

    /// Where GGUF files keep the tensors, and what their converters changed in them.
    fn gguf_names(config: &Self::Config) -> GgufNames;

    /// Sizes for the runner.
    fn dimensions(config: &Self::Config) -> Dimensions;

    /// Brings the weights to the device.
    ///
    /// # Errors
    /// Naming the tensor.
    fn load<B: Backend>(config: Self::Config, weights: &Weights<'_, B>) -> Result<Self::Model<B>>;
}
