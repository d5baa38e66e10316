//! The erasure boundary: one virtual call a step, never one an operation. Everything above sees token
//! ids, logits on the host, and `dyn ModelRunner`.

mod pending;
mod run;
mod together;
mod warm_up;

use biplane_backend::{DType, Device, KvFormat, MemoryStats};

use crate::{CacheSpec, Result};

pub(crate) use run::Runner;

/// What is known of a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The checkpoint's name for its architecture.
    pub architecture: String,
    /// The backend's name.
    pub backend: &'static str,
    /// The device in use.
    pub device: Device,
    /// Element type of activations.
    pub dtype: DType,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Longest sequence allowed, in tokens.
    pub context_length: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of weights on the device.
    pub weight_bytes: usize,
    /// What each layer keeps of a sequence.
    pub caches: Vec<CacheSpec>,
}

impl ModelInfo {
    /// Whether some layer has a sliding window, and forgets what is older.
    pub fn is_windowed(&self) -> bool {
        self.caches.iter().any(|c| c.window.is_some())
    }

    /// Most bytes of KV cache for a sequence of `tokens` that grows by at most `chunk` a step: layers
    /// with a sliding window stop growing.
    pub fn kv_bytes(&self, tokens: usize, chunk: usize) -> usize {
        self.caches
            .iter()
            .map(|c| c.bytes(tokens, chunk, self.kv_format))
            .sum()
    }
}

/// A handle of one sequence's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(usize);

impl SlotId {
    /// The `index`th handle of a runner: for those who implement [`ModelRunner`].
    pub fn from_index(index: usize) -> Self {
        SlotId(index)
    }
}

/// What a step should give for a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing: a prefill chunk that is not the prompt's last.
    Nothing,
    /// The most likely token after the last one, chosen on the device.
    Argmax,
    /// The logits after the last token.
    LastLogits,
    /// The logits after every token of the span.
    AllLogits,
    /// The hidden states of every token of the span, after the final norm: what embeddings are made of.
    Hidden,
}

/// One sequence's part of a step.
#[derive(Clone, Debug)]
pub struct SpanPlan {
    /// The sequence.
    pub slot: SlotId,
    /// Its next tokens: a prefill chunk, or one decoded token.
    pub tokens: Vec<u32>,
    /// What to give.
    pub want: Want,
}

/// One forward pass: spans of different sequences.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// At most one span a sequence.
    pub spans: Vec<SpanPlan>,
}

/// What a step gave for a span.
#[derive(Clone, Debug, PartialEq)]
pub enum SpanOutput {
    /// Nothing was wanted.
    Nothing,
    /// The most likely token.
    Token(u32),
    /// Logits `[rows, vocab]`, row-major.
    Logits(Vec<f32>),
    /// Hidden states `[rows, hidden]`, row-major.
    Hidden(Vec<f32>),
}

/// A model that runs steps. Created, used and dropped on one thread.
pub trait ModelRunner {
    /// What is known of the model.
    fn info(&self) -> &ModelInfo;

    /// A new empty sequence.
    ///
    /// # Errors
    /// Only what the backend reports.
    fn open(&mut self) -> Result<SlotId>;

    /// Forgets a sequence and frees its cache.
    fn close(&mut self, slot: SlotId);

    /// Tokens a sequence holds; 0 for a closed one.
    fn len(&self, slot: SlotId) -> usize;

    /// Bytes of cache that a sequence holds once `added` tokens are added in one step; with 0, what it
    /// holds now.
    fn bytes(&self, slot: SlotId, added: usize) -> usize;

    /// Whether [`Self::truncate`] and [`Self::fork`] can go back to `len` tokens: a sliding window
    /// keeps the last few tokens beyond itself, and forgets the rest.
    fn can_go_back_to(&self, slot: SlotId, len: usize) -> bool;

    /// Forgets all but the first `len` tokens of a sequence.
    ///
    /// # Errors
    /// [`crate::Error::Request`] for a closed slot, or when a sliding window has dropped what is needed.
    fn truncate(&mut self, slot: SlotId, len: usize) -> Result<()>;

    /// Gives back most of the memory that a sequence has for tokens to come: it will not go on soon.
    ///
    /// # Errors
    /// [`crate::Error::Request`] for a closed slot, or the backend's.
    fn rest(&mut self, _slot: SlotId) -> Result<()> {
        Ok(())
    }

    /// A new sequence that begins with the first `len` tokens of another, and shares nothing with it.
    ///
    /// # Errors
    /// As [`Self::truncate`], or the backend's.
    fn fork(&mut self, slot: SlotId, len: usize) -> Result<SlotId>;

    /// A sequence's cache as bytes of the host, for [`Self::import`] into the same model on the same
    /// backend with the same format of keys and values.
    ///
    /// # Errors
    /// [`crate::Error::Request`] for a closed slot, or the backend's.
    fn export(&mut self, slot: SlotId) -> Result<Vec<u8>>;

    /// A sequence of `len` tokens from the bytes of [`Self::export`].
    ///
    /// # Errors
    /// [`crate::Error::Request`] for bytes of another format, length or shape, or the backend's.
    fn import(&mut self, bytes: &[u8], len: usize) -> Result<SlotId>;

    /// Starts a step. One step at a time: [`Self::collect`] comes next.
    ///
    /// # Errors
    /// [`crate::Error::Request`] for a plan that cannot be; nothing has changed then. After a backend's
    /// error the sequences of the step are closed: what their caches hold is not known any more.
    fn launch(&mut self, plan: &StepPlan) -> Result<()>;

    /// Starts the step after the one in flight before that one's results are known: every sequence of it
    /// goes on with the token that is being chosen on the device ([`Want::Argmax`]). Gives `false`, and
    /// does nothing, where that cannot be or gains nothing. Two steps are in flight then, to be
    /// collected in their order; who does not want a token that follows takes it back with
    /// [`Self::truncate`].
    ///
    /// # Errors
    /// What the backend reports; both steps' sequences are closed then.
    fn launch_next(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Has the backend compile what steps of up to `most` sequences need, so that no answer waits for it.
    ///
    /// # Errors
    /// What the backend reports.
    fn warm_up(&mut self, _most: usize) -> Result<()> {
        Ok(())
    }

    /// Waits for the step; gives one output a span, in the plan's order. The only synchronisation
    /// of a step.
    ///
    /// # Errors
    /// As [`Self::launch`].
    fn collect(&mut self) -> Result<Vec<SpanOutput>>;

    /// Waits until nothing of any step is under way on the device, also of steps that nobody collects.
    ///
    /// # Errors
    /// What the backend reports.
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    /// What the device's allocator holds.
    fn memory(&self) -> MemoryStats;

    /// A step whose result is waited for.
    ///
    /// # Errors
    /// As [`Self::launch`] and [`Self::collect`].
    fn step(&mut self, plan: &StepPlan) -> Result<Vec<SpanOutput>> {
        self.launch(plan)?;
        self.collect()
    }
}
