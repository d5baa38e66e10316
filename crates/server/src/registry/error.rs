//! Why a model cannot be had.

use crate::report;

/// Why a model cannot be had, or not as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("there is no model {asked:?} here; this server has {known} (or leave model out)")]
    Unknown { asked: String, known: String },
    /// The program starts, and its one model is not there yet.
    #[error("the model is not loaded yet ({message}); see /health")]
    Starting { message: String },
    #[error("the engine{of} has stopped by a fault; {remedy}")]
    Stopped { of: String, remedy: &'static str },
    #[error(
        "there is no room for {name:?}: {used}, and all of them are answering; try again later, \
         or start the server with more {limit}"
    )]
    Full {
        name: String,
        used: String,
        limit: &'static str,
    },
    #[error(
        "{name:?} takes {} with its KV caches, more than --models-memory {} allows; start the server \
         with more of it, with less --kv-memory, or quantize the model (--isq)",
        report::bytes(*needed),
        report::bytes(*allowed)
    )]
    TooLarge {
        name: String,
        needed: u64,
        allowed: u64,
    },
    #[error("{name:?} cannot be loaded: {reason}")]
    Failed {
        name: String,
        reason: String,
        /// Whether it may be otherwise when memory is free.
        memory: bool,
    },
    #[error("{name:?} is being loaded; try again when /v1/models says that it is")]
    Loading { name: String },
    #[error("{name:?} is answering {leases} request{}; {remedy}", if *leases == 1 { "" } else { "s" })]
    InUse {
        name: String,
        leases: usize,
        remedy: &'static str,
    },
}

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;
