use std::path::PathBuf;

/// Result of reading or running a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a checkpoint or a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it claims to be, or is cut short.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// There is no checkpoint at a path.
    #[error(
        "{path}: no model here: {found}; expected a .gguf file, or a directory with config.json and model.safetensors (or model.safetensors.index.json and its shards), or one with a single .gguf file"
    )]
    NoCheckpoint {
        /// The file or directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A file is sound, but of a variant of its format that is not read.
    #[error("{path}: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which variant, and what to do instead.
        reason: String,
    },
    /// A tensor has an element type or block format that is not supported.
    #[error(
        "{path}: tensor {name} has type {got}, which is not supported; supported are {supported}"
    )]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its type as the format spells it.
        got: String,
        /// The types that are.
        supported: String,
    },
    /// The checkpoint has no tensor of a name the model needs.
    #[error(
        "{path}: tensor {name} is missing; the checkpoint is incomplete or of another architecture"
    )]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        name: String,
    },
    /// A tensor has another shape or element type than the configuration says.
    #[error("{path}: tensor {name}: expected {expected}, got {got}")]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        name: String,
        /// What the model needs.
        expected: String,
        /// What the file holds.
        got: String,
    },
    /// The configuration lacks a key or contradicts itself.
    #[error("{path}: config: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No such architecture here.
    #[error("{path}: architecture {name:?} is not supported; supported are {supported}")]
    Architecture {
        /// The checkpoint.
        path: PathBuf,
        /// What the checkpoint calls itself.
        name: String,
        /// Names of those that are.
        supported: String,
    },
    /// Tensors nobody read: the checkpoint holds something this model does not know.
    #[error(
        "{path}: the model has no use for {count} tensors, among them {first}; the checkpoint is of another architecture or variant"
    )]
    UnusedTensors {
        /// The checkpoint.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first few names.
        first: String,
    },
    /// A checkpoint cannot be written as it is wanted.
    #[error("{path}: {reason}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What is in the way, and what to do instead.
        reason: String,
    },
    /// A request the model cannot serve.
    #[error("{0}")]
    Request(String),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] biplane_backend::Error),
}
