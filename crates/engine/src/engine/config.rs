//! How an engine serves.

use std::path::PathBuf;

use biplane_backend::Device;

/// How a model's engine serves many requests.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Most sequences that compute at once.
    pub max_sequences: usize,
    /// Most requests that wait; more are refused with [`crate::Error::Busy`].
    pub max_queue: usize,
    /// Most tokens of a step: bounds its memory, and the time until a cancelled request is gone. 512 on
    /// a processor by default, 4096 on a GPU, which needs more to be busy.
    pub step_tokens: Option<usize>,
    /// Bytes for all KV caches, running ones and kept ones; half of what is free after loading by
    /// default.
    pub kv_memory: Option<usize>,
    /// Engines that share this machine's memory: each takes its part of the default of `kv_memory`.
    pub memory_share: usize,
    /// Keeps what was computed of a request for later ones that begin alike.
    pub prefix_cache: bool,
    /// Most of them kept at once; as many as the memory takes by default.
    pub kept_prefixes: Option<usize>,
    /// A directory that keeps prompts' caches across runs of the program.
    pub prompt_cache: Option<PathBuf>,
    /// Guesses tokens and checks several at once.
    pub speculation: Option<Speculation>,
    /// A file to which every request is written with what it gave, for [`crate::replay`].
    pub record: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_sequences: 64,
            max_queue: 256,
            step_tokens: None,
            kv_memory: None,
            memory_share: 1,
            prefix_cache: true,
            kept_prefixes: None,
            prompt_cache: None,
            speculation: None,
            record: None,
        }
    }
}

impl EngineConfig {
    /// The most tokens of a step on a device.
    pub(super) fn step_tokens_on(&self, device: Device) -> usize {
        let default = if device.is_cpu() { 512 } else { 4096 };
        self.step_tokens.unwrap_or(default).max(1)
    }
}

/// Speculative decoding (Leviathan et al. 2023): guessed tokens are checked in one step. The answer is
/// the same token by token as without, a seeded one too: every token is sampled from the model's own
/// logits, and a guess only says which logits are worth computing ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct Speculation {
    /// Where guesses come from.
    pub from: Guess,
    /// Most tokens guessed at once.
    pub tokens: usize,
}

/// Where guesses come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Guess {
    /// What followed the last few tokens when they came before in the same sequence: free, and good
    /// where answers quote their prompt.
    PromptLookup,
    /// A smaller model of the same vocabulary, by path or Hugging Face id.
    Draft(String),
}
