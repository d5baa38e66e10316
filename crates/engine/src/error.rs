use std::{path::PathBuf, sync::Arc};

use crate::memory::readable;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when a model is loaded or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint or the model.
    #[error(transparent)]
    Model(#[from] biplane_models::Error),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] biplane_backend::Error),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::Error),
    /// The chat template.
    #[error(transparent)]
    Template(Arc<crate::template::Error>),
    /// Finding or downloading a model.
    #[error(transparent)]
    Hub(#[from] crate::hub::Error),
    /// A request that cannot be served as it is.
    #[error("{0}")]
    Request(String),
    /// Something this build or machine cannot do.
    #[error("{0}")]
    Unsupported(String),
    /// Too many requests wait already.
    #[error("{queued} requests wait already; try again later")]
    Busy {
        /// How many.
        queued: usize,
    },
    /// What is asked for does not fit the memory.
    #[error("{what} take {}, {} are there for them; {remedy}", readable(*needed), readable(*available))]
    Memory {
        /// What does not fit.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// What can be done.
        remedy: &'static str,
    },
    /// A constraint that no answer can be held to.
    #[error(transparent)]
    Grammar(#[from] crate::grammar::Error),
    /// A tool failed, where [`OnToolError::Fail`](crate::OnToolError::Fail) says that this ends the
    /// answer.
    #[error("the tool {name:?} failed: {reason}")]
    Tool {
        /// Its name.
        name: String,
        /// What it said.
        reason: String,
    },
    /// MCP servers.
    #[cfg(feature = "mcp")]
    #[error(transparent)]
    Mcp(#[from] crate::mcp::McpError),
    /// The engine's thread is gone.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Logits or hidden states that are not numbers.
    pub(crate) fn broken_numbers() -> Self {
        Error::Request(
            "the model's results are no numbers: its weights are broken, or too large for this element type; try --dtype f32"
                .into(),
        )
    }
}

impl From<crate::template::Error> for Error {
    fn from(error: crate::template::Error) -> Self {
        Error::Template(Arc::new(error))
    }
}
