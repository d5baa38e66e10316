//! The erasure boundary: one virtual call a step, never one an operation. Everything above sees token
//! ids, logits on the host, and `dyn ModelRunner`.

use biplane_backend::{Backend, DType, Device, MemoryStats, Tensor};

use crate::{CacheSpec, Error, Model, Result, Step, kv_cache::SequenceCache, step::Span};

/// What is known of a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The checkpoint's name for its architecture.
    pub architecture: String,
    /// The backend's name.
    pub backend: &'static str,
    /// The device in use.
    pub device: Device,
    /// Element type of activations and KV cache.
    pub dtype: DType,
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
    /// Most bytes of KV cache for a sequence of `tokens` that grows by at most `chunk` a step: layers
    /// with a sliding window stop growing.
    pub fn kv_bytes(&self, tokens: usize, chunk: usize) -> usize {
        self.caches
            .iter()
            .map(|c| c.bytes(tokens, chunk, self.dtype))
            .sum()
    }
}

/// A handle of one sequence's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(usize);

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

    /// Whether [`Self::truncate`] and [`Self::fork`] can go back to `len` tokens: a sliding window
    /// keeps the last few tokens beyond itself, and forgets the rest.
    fn can_go_back_to(&self, slot: SlotId, len: usize) -> bool;

    /// Forgets all but the first `len` tokens of a sequence.
    ///
    /// # Errors
    /// [`Error::Request`] for a closed slot, or when a sliding window has dropped what is needed.
    fn truncate(&mut self, slot: SlotId, len: usize) -> Result<()>;

    /// A new sequence that begins with the first `len` tokens of another, and shares nothing with it.
    ///
    /// # Errors
    /// As [`Self::truncate`], or the backend's.
    fn fork(&mut self, slot: SlotId, len: usize) -> Result<SlotId>;

    /// Starts a step. One step at a time: [`Self::collect`] comes next.
    ///
    /// # Errors
    /// [`Error::Request`] for a plan that cannot be; nothing has changed then. After a backend's
    /// error the sequences of the step are closed: what their caches hold is not known any more.
    fn launch(&mut self, plan: &StepPlan) -> Result<()>;

    /// Waits for the step; gives one output a span, in the plan's order. The only synchronisation.
    ///
    /// # Errors
    /// As [`Self::launch`].
    fn collect(&mut self) -> Result<Vec<SpanOutput>>;

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

/// Output of a step in flight.
struct Pending<T> {
    logits: Option<T>,
    /// The most likely tokens of all logit rows, when every span wants just those.
    tokens: Option<T>,
    wants: Vec<(Want, usize)>,
    slots: Vec<SlotId>,
}

impl<T: Tensor> Pending<T> {
    /// Waits; gives one output a span.
    fn outputs(&self, vocab: usize) -> Result<Vec<SpanOutput>> {
        let tokens = match &self.tokens {
            Some(tokens) => tokens.to_u32s()?,
            None => Vec::new(),
        };
        let logits = match &self.logits {
            Some(logits) => logits.to_f32s()?,
            None => Vec::new(),
        };
        let (mut row, mut outputs) = (0, Vec::with_capacity(self.wants.len()));
        for &(want, rows) in &self.wants {
            let part = logits.get(row * vocab..(row + rows) * vocab);
            outputs.push(match (want, tokens.get(row), part) {
                (Want::Nothing, ..) => SpanOutput::Nothing,
                (Want::Argmax, Some(token), _) => SpanOutput::Token(*token),
                (Want::Argmax, None, Some(part)) => SpanOutput::Token(argmax(part)),
                (Want::LastLogits | Want::AllLogits, _, Some(part)) => {
                    SpanOutput::Logits(part.to_vec())
                }
                (_, _, None) => {
                    return Err(Error::Request(format!(
                        "the model gave {} logits for {} rows of {vocab}",
                        logits.len(),
                        row + rows
                    )));
                }
            });
            row += rows;
        }
        Ok(outputs)
    }
}

/// The one implementation of [`ModelRunner`], for any model on any backend.
pub(crate) struct Runner<B: Backend> {
    backend: B,
    model: Box<dyn Model<B>>,
    info: ModelInfo,
    eager: bool,
    slots: Vec<Option<SequenceCache<B>>>,
    pending: Option<Pending<B::Tensor>>,
}

impl<B: Backend> Runner<B> {
    pub fn new(backend: B, model: Box<dyn Model<B>>, info: ModelInfo, eager: bool) -> Self {
        Runner {
            backend,
            model,
            info,
            eager,
            slots: Vec::new(),
            pending: None,
        }
    }

    fn insert(&mut self, cache: SequenceCache<B>) -> SlotId {
        match self.slots.iter().position(Option::is_none) {
            Some(free) => {
                self.slots[free] = Some(cache);
                SlotId(free)
            }
            None => {
                self.slots.push(Some(cache));
                SlotId(self.slots.len() - 1)
            }
        }
    }

    fn slot(&self, slot: SlotId) -> Result<&SequenceCache<B>> {
        self.slots
            .get(slot.0)
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::Request(format!("sequence {} is closed", slot.0)))
    }

    /// The sequence, if it can be cut after `len` tokens.
    fn reachable(&self, slot: SlotId, len: usize) -> Result<&SequenceCache<B>> {
        let cache = self.slot(slot)?;
        if cache.can_go_back_to(len) {
            return Ok(cache);
        }
        Err(Error::Request(format!(
            "sequence {} of {} tokens cannot go back to {len}: its layers with a sliding window hold only the last tokens",
            slot.0,
            cache.len()
        )))
    }

    /// Refuses what cannot be computed, before anything changes.
    fn check(&self, plan: &StepPlan) -> Result<()> {
        if self.pending.is_some() {
            return Err(Error::Request("a step is in flight already".into()));
        }
        if plan.spans.is_empty() {
            return Err(Error::Request("a step without tokens".into()));
        }
        for (i, span) in plan.spans.iter().enumerate() {
            let total = self.slot(span.slot)?.len() + span.tokens.len();
            if span.tokens.is_empty() {
                return Err(Error::Request("a span without tokens".into()));
            }
            if plan.spans[..i].iter().any(|other| other.slot == span.slot) {
                return Err(Error::Request(format!(
                    "sequence {} twice in a step",
                    span.slot.0
                )));
            }
            if total > self.info.context_length {
                return Err(Error::Request(format!(
                    "{total} tokens do not fit the context of {}; shorten the prompt or ask for fewer tokens",
                    self.info.context_length
                )));
            }
            let vocab = self.info.vocab_size;
            if let Some(id) = span.tokens.iter().find(|&&id| id as usize >= vocab) {
                return Err(Error::Request(format!(
                    "token {id} is beyond the vocabulary of {vocab}; the tokenizer does not belong to this model"
                )));
            }
        }
        Ok(())
    }

    /// The step itself. The caches are taken out of their slots, and come back only when all went
    /// well: after an error a lazy backend's tensors may hold anything.
    fn run(&mut self, plan: &StepPlan) -> biplane_backend::Result<Pending<B::Tensor>> {
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut spans = Vec::new();
        let mut logit_rows = Vec::new();
        let mut caches = Vec::new();
        let mut wants = Vec::new();
        for plan in &plan.spans {
            let Some(cache) = self.slots[plan.slot.0].take() else {
                continue;
            };
            let (start, len) = (ids.len(), plan.tokens.len());
            let last = (start + len - 1) as u32;
            let before = logit_rows.len();
            match plan.want {
                Want::Nothing => {}
                Want::Argmax | Want::LastLogits => logit_rows.push(last),
                Want::AllLogits => logit_rows.extend(start as u32..=last),
            }
            wants.push((plan.want, logit_rows.len() - before));
            positions.extend((cache.len()..cache.len() + len).map(|p| p as u32));
            ids.extend_from_slice(&plan.tokens);
            spans.push(Span {
                cache: caches.len(),
                start,
                len,
            });
            caches.push(cache);
        }
        let mut step = Step {
            backend: &self.backend,
            dtype: self.info.dtype,
            ids: self.backend.from_u32s(&ids, [ids.len()])?,
            positions,
            spans,
            caches,
            logit_rows,
            eager: self.eager,
        };
        let logits = self.model.forward(&mut step)?;
        let (wanted, mut caches) = (!step.logit_rows.is_empty(), step.caches);
        for (cache, span) in caches.iter_mut().zip(&plan.spans) {
            cache.advance(span.tokens.len());
        }
        let only_tokens = wants
            .iter()
            .all(|(want, _)| matches!(want, Want::Argmax | Want::Nothing));
        let tokens = match wanted && only_tokens {
            true => Some(logits.argmax()?),
            false => None,
        };
        let mut pending: Vec<&B::Tensor> = caches.iter().flat_map(SequenceCache::tensors).collect();
        if wanted {
            pending.push(tokens.as_ref().unwrap_or(&logits));
        }
        self.backend.async_eval(&pending)?;
        self.put_back(plan, caches);
        Ok(Pending {
            logits: (wanted && tokens.is_none()).then_some(logits),
            tokens,
            wants,
            slots: plan.spans.iter().map(|span| span.slot).collect(),
        })
    }

    fn put_back(&mut self, plan: &StepPlan, caches: Vec<SequenceCache<B>>) {
        for (span, cache) in plan.spans.iter().zip(caches) {
            self.slots[span.slot.0] = Some(cache);
        }
    }
}

impl<B: Backend> ModelRunner for Runner<B> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn open(&mut self) -> Result<SlotId> {
        let cache = SequenceCache::new(&self.info.caches);
        Ok(self.insert(cache))
    }

    fn close(&mut self, slot: SlotId) {
        if let Some(place) = self.slots.get_mut(slot.0) {
            *place = None;
        }
    }

    fn len(&self, slot: SlotId) -> usize {
        self.slot(slot).map_or(0, SequenceCache::len)
    }

    fn can_go_back_to(&self, slot: SlotId, len: usize) -> bool {
        self.slot(slot).is_ok_and(|cache| cache.can_go_back_to(len))
    }

    fn truncate(&mut self, slot: SlotId, len: usize) -> Result<()> {
        self.reachable(slot, len)?;
        if let Some(Some(cache)) = self.slots.get_mut(slot.0) {
            cache.truncate(len);
        }
        Ok(())
    }

    fn fork(&mut self, slot: SlotId, len: usize) -> Result<SlotId> {
        let cache = self.reachable(slot, len)?;
        let copy = cache.fork(&self.backend, len, self.info.dtype)?;
        Ok(self.insert(copy))
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        self.check(plan)?;
        self.pending = Some(self.run(plan)?);
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<SpanOutput>> {
        let Some(pending) = self.pending.take() else {
            return Err(Error::Request("no step is in flight".into()));
        };
        let outputs = pending.outputs(self.info.vocab_size);
        if outputs.is_err() {
            pending.slots.iter().for_each(|slot| self.close(*slot));
        }
        outputs
    }

    fn memory(&self) -> MemoryStats {
        self.backend.memory()
    }
}

/// Position of the largest value, the lowest among equals; NaN is never it.
fn argmax(values: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (i, v) in values.iter().enumerate() {
        if *v > best.0 {
            best = (*v, i as u32);
        }
    }
    best.1
}
