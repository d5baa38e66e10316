//! The one implementation of [`ModelRunner`].

use std::collections::VecDeque;

use biplane_backend::{Backend, MemoryStats, Tensor};

use super::{ModelInfo, ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want};
use crate::{Error, Model, Result, Step, kv_cache::SequenceCache, step::Span};

/// Output of a step in flight.
struct Pending<T> {
    logits: Option<T>,
    /// The most likely tokens of all logit rows, when every span wants just those.
    tokens: Option<T>,
    hidden: Option<T>,
    /// What each span wants, and of how many rows.
    wants: Vec<(Want, usize)>,
    slots: Vec<SlotId>,
}

impl<T: Tensor> Pending<T> {
    /// Waits; gives one output a span.
    fn outputs(&self, info: &ModelInfo) -> Result<Vec<SpanOutput>> {
        let floats = |t: &Option<T>| t.as_ref().map_or(Ok(Vec::new()), Tensor::to_f32s);
        let tokens = self
            .tokens
            .as_ref()
            .map_or(Ok(Vec::new()), Tensor::to_u32s)?;
        let (logits, hidden) = (floats(&self.logits)?, floats(&self.hidden)?);
        let mut tokens = tokens.into_iter();
        let mut logits = Rows::new(&logits, info.vocab_size);
        let mut hidden = Rows::new(&hidden, info.hidden_size);
        let one = |&(want, rows): &(Want, usize)| {
            Ok(match want {
                Want::Nothing => SpanOutput::Nothing,
                Want::Argmax => SpanOutput::Token(match tokens.next() {
                    Some(token) => token,
                    None => argmax(logits.take(1)?),
                }),
                Want::LastLogits | Want::AllLogits => {
                    SpanOutput::Logits(logits.take(rows)?.to_vec())
                }
                Want::Hidden => SpanOutput::Hidden(hidden.take(rows)?.to_vec()),
            })
        };
        self.wants.iter().map(one).collect()
    }
}

/// Rows that are handed out in order.
struct Rows<'a> {
    left: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    fn new(left: &'a [f32], width: usize) -> Self {
        Rows { left, width }
    }

    fn take(&mut self, rows: usize) -> Result<&'a [f32]> {
        let n = rows * self.width;
        let (part, left) = self.left.split_at_checked(n).ok_or_else(|| {
            Error::Request(format!(
                "the model gave {} numbers for {rows} rows of {}",
                self.left.len(),
                self.width
            ))
        })?;
        self.left = left;
        Ok(part)
    }
}

/// The one implementation of [`ModelRunner`], for any model on any backend.
pub(crate) struct Runner<B: Backend> {
    backend: B,
    model: Box<dyn Model<B>>,
    info: ModelInfo,
    eager: bool,
    slots: Vec<Option<SequenceCache<B>>>,
    /// In their order; at most two.
    pending: VecDeque<Pending<B::Tensor>>,
}

impl<B: Backend> Runner<B> {
    pub fn new(backend: B, model: Box<dyn Model<B>>, info: ModelInfo, eager: bool) -> Self {
        Runner {
            backend,
            model,
            info,
            eager,
            slots: Vec::new(),
            pending: VecDeque::new(),
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
        if !self.pending.is_empty() {
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
    ///
    /// `chosen` are token ids that only the device knows, in place of the plan's.
    fn run(
        &mut self,
        plan: &StepPlan,
        chosen: Option<B::Tensor>,
    ) -> biplane_backend::Result<Pending<B::Tensor>> {
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut spans = Vec::new();
        let (mut logit_rows, mut hidden_rows) = (Vec::new(), Vec::new());
        let mut caches = Vec::new();
        let mut wants = Vec::new();
        for plan in &plan.spans {
            let Some(cache) = self.slots[plan.slot.0].take() else {
                continue;
            };
            let (start, len) = (ids.len(), plan.tokens.len());
            let last = (start + len - 1) as u32;
            let all = start as u32..=last;
            let rows = match plan.want {
                Want::Nothing => 0,
                Want::Argmax | Want::LastLogits => 1,
                Want::AllLogits | Want::Hidden => len,
            };
            match plan.want {
                Want::Hidden => hidden_rows.extend(all),
                _ => logit_rows.extend(all.skip(len - rows)),
            }
            wants.push((plan.want, rows));
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
            ids: match chosen {
                Some(chosen) => chosen,
                None => self.backend.from_u32s(&ids, [ids.len()])?,
            },
            positions,
            spans,
            caches,
            eager: self.eager,
        };
        let x = self.model.forward(&mut step)?;
        let mut caches = step.caches;
        let hidden = self.normed_rows(&x, &hidden_rows)?;
        let mut logits = match self.normed_rows(&x, &logit_rows)? {
            Some(x) => Some(self.model.head(&x)?),
            None => None,
        };
        for (cache, span) in caches.iter_mut().zip(&plan.spans) {
            cache.advance(span.tokens.len());
        }
        let only_tokens = !wants
            .iter()
            .any(|(want, _)| matches!(want, Want::LastLogits | Want::AllLogits));
        let tokens = match &logits {
            Some(logits) if only_tokens => Some(logits.argmax()?),
            _ => None,
        };
        logits = logits.filter(|_| !only_tokens);
        let mut pending: Vec<&B::Tensor> = caches.iter().flat_map(SequenceCache::tensors).collect();
        pending.extend([&logits, &tokens, &hidden].into_iter().flatten());
        self.backend.async_eval(&pending)?;
        self.put_back(plan, caches);
        Ok(Pending {
            logits,
            tokens,
            hidden,
            wants,
            slots: plan.spans.iter().map(|span| span.slot).collect(),
        })
    }

    /// Of `x [tokens, hidden]` the wanted rows, after the final norm.
    fn normed_rows(
        &self,
        x: &B::Tensor,
        rows: &[u32],
    ) -> biplane_backend::Result<Option<B::Tensor>> {
        let x = match rows {
            [] => return Ok(None),
            rows if rows.len() == x.shape().dim("rows", 0)? => x.clone(),
            [row] => x.narrow(0, *row as usize, 1)?,
            rows => x.take_rows(&self.backend.from_u32s(rows, [rows.len()])?)?,
        };
        self.model.norm(&x).map(Some)
    }

    /// The step in which every sequence of the one in flight goes on with the token it chooses.
    fn next_plan(&self) -> Option<(StepPlan, B::Tensor)> {
        let [pending] = self.pending.as_slices().0 else {
            return None;
        };
        let chosen = pending.tokens.clone()?;
        let goes_on = |slot: &SlotId| {
            self.slot(*slot)
                .is_ok_and(|cache| cache.len() < self.info.context_length)
        };
        let all = pending.wants.iter().all(|(want, _)| *want == Want::Argmax)
            && pending.slots.iter().all(goes_on);
        if !all || !self.backend.computes_beside() {
            return None;
        }
        let span = |&slot: &SlotId| SpanPlan {
            slot,
            tokens: vec![0],
            want: Want::Argmax,
        };
        let spans = pending.slots.iter().map(span).collect();
        Some((StepPlan { spans }, chosen))
    }

    /// Closes the sequences of all steps in flight.
    fn give_up(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            pending.slots.iter().for_each(|slot| self.close(*slot));
        }
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

    fn bytes(&self, slot: SlotId, added: usize) -> usize {
        self.slot(slot)
            .map_or(0, |cache| cache.bytes(added, self.info.cache_dtype))
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
        let copy = cache.fork(&self.backend, len, self.info.cache_dtype)?;
        Ok(self.insert(copy))
    }

    fn export(&mut self, slot: SlotId) -> Result<Vec<u8>> {
        Ok(self.slot(slot)?.export()?)
    }

    fn import(&mut self, bytes: &[u8], len: usize) -> Result<SlotId> {
        let info = &self.info;
        let cache =
            SequenceCache::import(&self.backend, &info.caches, bytes, len, info.cache_dtype)?;
        Ok(self.insert(cache))
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        self.check(plan)?;
        let pending = self.run(plan, None)?;
        self.pending.push_back(pending);
        Ok(())
    }

    fn launch_next(&mut self) -> Result<bool> {
        let Some((plan, chosen)) = self.next_plan() else {
            return Ok(false);
        };
        match self.run(&plan, Some(chosen)) {
            Ok(pending) => {
                self.pending.push_back(pending);
                Ok(true)
            }
            Err(error) => {
                self.give_up();
                Err(error.into())
            }
        }
    }

    fn collect(&mut self) -> Result<Vec<SpanOutput>> {
        let Some(pending) = self.pending.pop_front() else {
            return Err(Error::Request("no step is in flight".into()));
        };
        let outputs = pending.outputs(&self.info);
        if outputs.is_err() {
            self.pending.push_front(pending);
            self.give_up();
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
