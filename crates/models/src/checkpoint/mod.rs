//! Readers of checkpoints: Hugging Face and mlx-community directories, GGUF files.
//!
//! Everything is memory-mapped; a tensor's bytes are borrowed from the map and given back to the
//! system once a backend has taken them.

mod cursor;
mod gguf;
mod gguf_metadata;
mod map;
mod mapped;
mod open;
mod safetensors;
pub mod write;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use biplane_backend::{DType, GgmlKind};

use crate::Result;

pub use gguf_metadata::GgufMetadata;
pub use open::open;

/// A checkpoint with its files checked and mapped; no weight has been read yet.
pub struct Opened {
    /// The tensors.
    pub checkpoint: Box<dyn Checkpoint>,
    /// What the files say about the model.
    pub metadata: Metadata,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("path", &self.checkpoint.path())
            .finish_non_exhaustive()
    }
}

/// What a checkpoint says about its model, in its own terms.
#[derive(Debug)]
pub enum Metadata {
    /// A Hugging Face or mlx-community directory.
    HuggingFace {
        /// `config.json`, an object.
        config: serde_json::Value,
        /// `generation_config.json`, an object, where there is one.
        generation_config: Option<serde_json::Value>,
        /// The directory; the tokenizer's files lie beside the weights.
        dir: PathBuf,
    },
    /// A GGUF file.
    Gguf(GgufMetadata),
}

/// Where a model's tensors come from. Knows nothing of backends or architectures.
pub trait Checkpoint: Send + Sync {
    /// The file or directory, for errors.
    fn path(&self) -> &Path;

    /// Names of all tensors, as the file spells them, in file order.
    fn names(&self) -> Vec<&str>;

    /// Bytes of all tensors together.
    fn size_in_bytes(&self) -> usize;

    /// One tensor, or `None` when there is none of that name.
    ///
    /// # Errors
    /// [`crate::Error::TensorType`] for an element type that is no weight.
    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>>;

    /// The tensor's pages are not needed any more: lets the system drop them from memory.
    fn release(&self, _name: &str) {}

    /// As [`Checkpoint::release`], for a part of a tensor's bytes.
    fn release_bytes(&self, _bytes: &[u8]) {}
}

/// A tensor's bytes in a checkpoint. Lengths are checked: `bytes` is what `shape` and `kind` need.
#[derive(Clone, Debug)]
pub struct RawTensor<'a> {
    /// The name as the file spells it.
    pub name: &'a str,
    /// Axes, outermost first (GGUF's reversed).
    pub shape: Vec<usize>,
    /// The element or block format.
    pub kind: RawKind,
    /// The bytes; nothing is assumed about alignment.
    pub bytes: &'a [u8],
}

/// Element or block format of a [`RawTensor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawKind {
    /// Plain elements.
    Dense(DType),
    /// GGML's blocks.
    Ggml(GgmlKind),
}
