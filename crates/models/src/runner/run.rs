//! The one implementation of [`ModelRunner`].

use std::{cell::RefCell, collections::VecDeque, time::Instant};

use biplane_backend::{Backend, MemoryStats, Tensor};

use super::{
    ModelInfo, ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want,
    pending::{Pending, Wanted},
};
use crate::{
    Error, Model, Result, Step, angles::AngleBlocks, kv_batch::BatchCache, kv_cache::SequenceCache,
    step::Span,
};

/// The one implementation of [`ModelRunner`], for any model on any backend.
pub(crate) struct Runner<B: Backend> {
    pub(super) backend: B,
    model: Box<dyn Model<B>>,
    pub(super) info: ModelInfo,
    eager: bool,
    angles: RefCell<AngleBlocks<B>>,
    pub(super) slots: Vec<Option<SequenceCache<B>>>,
    /// The caches of the sequences that decode together.
    pub(super) batch: Option<BatchCache<B>>,
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
            angles: RefCell::default(),
            slots: Vec::new(),
            batch: None,
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
    /// `chosen` are token ids that only the device knows, in place of the plan's, and the sequences
    /// they belong to.
    fn run(
        &mut self,
        plan: &StepPlan,
        chosen: Option<(B::Tensor, Vec<SlotId>)>,
    ) -> biplane_backend::Result<Pending<B::Tensor>> {
        let start = Instant::now();
        self.gather(plan)?;
        let batch = self.batch.take();
        let together = batch.as_ref().map_or(0, BatchCache::rows);
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut spans = Vec::new();
        let (mut logit_rows, mut hidden_rows) = (Vec::new(), Vec::new());
        let mut caches = Vec::new();
        let mut wanted = Vec::new();
        for place in in_order(plan, batch.as_ref()) {
            let Some(plan) = plan.spans.get(place) else {
                continue;
            };
            let Some(mut cache) = self.slots[plan.slot.0].take() else {
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
            wanted.push(Wanted {
                slot: plan.slot,
                want: plan.want,
                rows,
                place,
            });
            positions.extend((cache.len()..cache.len() + len).map(|p| p as u32));
            ids.extend_from_slice(&plan.tokens);
            if caches.len() >= together {
                cache.reserve(&self.backend, len, self.info.kv_format)?;
                spans.push(Span {
                    cache: caches.len(),
                    start,
                    len,
                });
            }
            caches.push(cache);
        }
        let mut step = Step {
            backend: &self.backend,
            dtype: self.info.dtype,
            kv_format: self.info.kv_format,
            ids: match chosen {
                Some((chosen, of)) => self.reordered(chosen, &of, &wanted)?,
                None => self.backend.from_u32s(&ids, [ids.len()])?,
            },
            positions,
            angles: &self.angles,
            spans,
            batch,
            caches,
            eager: self.eager,
        };
        let x = self.model.forward(&mut step)?;
        let (mut caches, batch) = (step.caches, step.batch);
        let hidden = self.normed_rows(&x, &hidden_rows)?;
        let only_tokens = !wanted
            .iter()
            .any(|span| matches!(span.want, Want::LastLogits | Want::AllLogits));
        let (logits, tokens) = match self.normed_rows(&x, &logit_rows)? {
            Some(x) if only_tokens => (None, Some(self.model.head().argmax(&x)?)),
            Some(x) => (Some(self.model.head().forward(&x)?), None),
            None => (None, None),
        };
        for (cache, span) in caches.iter_mut().zip(&wanted) {
            cache.advance(plan.spans.get(span.place).map_or(0, |s| s.tokens.len()));
        }
        let mut pending: Vec<&B::Tensor> = caches.iter().flat_map(SequenceCache::tensors).collect();
        pending.extend(batch.iter().flat_map(BatchCache::tensors));
        pending.extend([&logits, &tokens, &hidden].into_iter().flatten());
        let described = start.elapsed();
        self.backend.async_eval(&pending)?;
        tracing::trace!(tokens = ids.len(), ?described, all = ?start.elapsed(), "step");
        if let Some(batch) = &batch {
            batch.note(&mut caches);
        }
        self.batch = batch;
        for (cache, span) in caches.into_iter().zip(&wanted) {
            self.slots[span.slot.0] = Some(cache);
        }
        Ok(Pending {
            logits,
            tokens,
            hidden,
            spans: wanted,
        })
    }

    /// Chosen tokens of the sequences `of` in the order of the next step's rows.
    fn reordered(
        &self,
        chosen: B::Tensor,
        of: &[SlotId],
        wanted: &[Wanted],
    ) -> biplane_backend::Result<B::Tensor> {
        let place = |w: &Wanted| of.iter().position(|slot| *slot == w.slot);
        let order: Vec<u32> = wanted.iter().filter_map(place).map(|i| i as u32).collect();
        if order.iter().copied().eq(0..of.len() as u32) {
            return Ok(chosen);
        }
        let n = order.len();
        let order = self.backend.from_u32s(&order, [n])?;
        chosen
            .reshape([of.len(), 1])?
            .take_rows(&order)?
            .reshape([n])
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

    /// The step in which every sequence of the one in flight goes on with the token it chooses; these
    /// tokens and whose they are.
    #[allow(clippy::type_complexity)]
    fn next_plan(&self) -> Option<(StepPlan, (B::Tensor, Vec<SlotId>))> {
        let [pending] = self.pending.as_slices().0 else {
            return None;
        };
        let chosen = pending.tokens.clone()?;
        let goes_on = |span: &Wanted| {
            span.want == Want::Argmax
                && self
                    .slot(span.slot)
                    .is_ok_and(|cache| cache.len() < self.info.context_length)
        };
        if !pending.spans.iter().all(goes_on) || !self.backend.computes_beside() {
            return None;
        }
        let of: Vec<SlotId> = pending.spans.iter().map(|span| span.slot).collect();
        let mut spans = pending.spans.clone();
        spans.sort_by_key(|span| span.place);
        let span = |span: &Wanted| SpanPlan {
            slot: span.slot,
            tokens: vec![0],
            want: Want::Argmax,
        };
        let spans = spans.iter().map(span).collect();
        Some((StepPlan { spans }, (chosen, of)))
    }

    /// Closes the sequences of all steps in flight.
    fn give_up(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            pending.spans.iter().for_each(|span| self.close(span.slot));
        }
    }
}

/// The plan's spans in the order of the step's rows: those of the batch first.
fn in_order<B: Backend>(plan: &StepPlan, batch: Option<&BatchCache<B>>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..plan.spans.len()).collect();
    if let Some(batch) = batch {
        let row = |&place: &usize| {
            let slot = plan.spans.get(place).map(|span| span.slot);
            slot.and_then(|slot| batch.row(slot)).unwrap_or(usize::MAX)
        };
        order.sort_by_key(row);
    }
    order
}

impl<B: Backend> Drop for Runner<B> {
    /// What it has started ends before its thread and, maybe, the process do.
    fn drop(&mut self) {
        if let Err(error) = self.backend.synchronize() {
            tracing::debug!("{error}");
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
        if let Some(batch) = &mut self.batch {
            batch.leave(slot);
        }
        if let Some(place) = self.slots.get_mut(slot.0) {
            *place = None;
        }
    }

    fn len(&self, slot: SlotId) -> usize {
        self.slot(slot).map_or(0, SequenceCache::len)
    }

    fn bytes(&self, slot: SlotId, added: usize) -> usize {
        self.slot(slot)
            .map_or(0, |cache| cache.bytes(added, self.info.kv_format))
    }

    fn can_go_back_to(&self, slot: SlotId, len: usize) -> bool {
        self.slot(slot).is_ok_and(|cache| cache.can_go_back_to(len))
    }

    fn truncate(&mut self, slot: SlotId, len: usize) -> Result<()> {
        self.reachable(slot, len)?;
        self.alone(slot)?;
        if let Some(Some(cache)) = self.slots.get_mut(slot.0) {
            cache.truncate(len);
        }
        Ok(())
    }

    fn rest(&mut self, slot: SlotId) -> Result<()> {
        self.slot(slot)?;
        self.alone(slot)?;
        if let Some(Some(cache)) = self.slots.get_mut(slot.0) {
            cache.shrink(&self.backend, self.info.kv_format)?;
        }
        Ok(())
    }

    fn fork(&mut self, slot: SlotId, len: usize) -> Result<SlotId> {
        self.reachable(slot, len)?;
        self.alone(slot)?;
        let cache = self.slot(slot)?;
        let copy = cache.fork(&self.backend, len, self.info.kv_format)?;
        Ok(self.insert(copy))
    }

    fn export(&mut self, slot: SlotId) -> Result<Vec<u8>> {
        self.slot(slot)?;
        self.alone(slot)?;
        Ok(self.slot(slot)?.export(self.info.kv_format)?)
    }

    fn import(&mut self, bytes: &[u8], len: usize) -> Result<SlotId> {
        let info = &self.info;
        let cache = SequenceCache::import(&self.backend, &info.caches, bytes, len, info.kv_format)?;
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

    fn warm_up(&mut self, most: usize) -> Result<()> {
        self.compile(most)
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

    fn synchronize(&mut self) -> Result<()> {
        Ok(self.backend.synchronize()?)
    }

    fn memory(&self) -> MemoryStats {
        self.backend.memory()
    }
}
