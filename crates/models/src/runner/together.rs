//! Which sequences decode together, and the ways in and out of their [`BatchCache`].

use biplane_backend::{Backend, Result};

use super::{Runner, SlotId, StepPlan};
use crate::kv_batch::{BatchCache, alike};

impl<B: Backend> Runner<B> {
    /// Brings the plan's sequences that decode one token into one batch, as far as they are alike,
    /// and takes all others out of it.
    pub(super) fn gather(&mut self, plan: &StepPlan) -> Result<()> {
        if !self.backend.prefers_batches() {
            return Ok(());
        }
        let decoding = |slot: SlotId, tokens: usize| {
            let cache = self.slots.get(slot.0).and_then(Option::as_ref);
            tokens == 1 && cache.is_some_and(|c| c.len() > 0)
        };
        let asked: Vec<SlotId> = plan
            .spans
            .iter()
            .filter(|span| decoding(span.slot, span.tokens.len()))
            .map(|span| span.slot)
            .collect();
        if self
            .batch
            .as_ref()
            .is_some_and(|b| b.asked.as_ref() == Some(&asked))
        {
            return Ok(());
        }
        let lens: Vec<usize> = asked.iter().map(|slot| self.tokens(*slot)).collect();
        let mut wanted: Vec<SlotId> = alike(&lens)
            .into_iter()
            .filter_map(|i| asked.get(i).copied())
            .collect();
        if wanted.len() < 2 {
            wanted.clear();
        }
        let result = self.regroup(&wanted, asked);
        if result.is_err() {
            // What the batch's sequences hold is not known any more.
            for slot in wanted {
                self.forget(slot);
            }
        }
        result
    }

    /// Makes the batch one of the `wanted` sequences.
    fn regroup(&mut self, wanted: &[SlotId], asked: Vec<SlotId>) -> Result<()> {
        let old = self.batch.take();
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        if let Some(old) = &old {
            for (row, slot) in old.members.iter().enumerate() {
                match slot {
                    Some(slot) if wanted.contains(slot) => kept.push(row),
                    Some(slot) => gone.push((row, *slot)),
                    None => {}
                }
            }
            for (row, slot) in gone {
                self.give_back(old, row, slot)?;
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let stays = |slot: &SlotId| old.as_ref().is_some_and(|old| old.row(*slot).is_some());
        let new: Vec<SlotId> = wanted.iter().copied().filter(|s| !stays(s)).collect();
        let unchanged = old
            .as_ref()
            .is_some_and(|old| new.is_empty() && kept.len() == old.rows());
        let mut batch = match old {
            Some(old) if unchanged => old,
            old => {
                let mut joining: Vec<_> = self
                    .slots
                    .iter_mut()
                    .enumerate()
                    .filter_map(|(i, cache)| Some((SlotId(i), cache.as_mut()?)))
                    .filter(|(slot, _)| new.contains(slot))
                    .collect();
                let old = old.map(|old| (old, kept.as_slice()));
                BatchCache::new(&self.backend, self.info.kv_format, old, &mut joining)?
            }
        };
        batch.asked = Some(asked);
        self.batch = Some(batch);
        Ok(())
    }

    /// Gives a sequence that may be in the batch a cache of its own.
    pub(super) fn alone(&mut self, slot: SlotId) -> Result<()> {
        let Some(mut batch) = self.batch.take() else {
            return Ok(());
        };
        let result = match batch.row(slot) {
            Some(row) => self.give_back(&batch, row, slot),
            None => Ok(()),
        };
        if batch.row(slot).is_some() {
            batch.leave(slot);
        }
        self.batch = Some(batch).filter(|b| b.members.iter().any(Option::is_some));
        if result.is_err() {
            self.forget(slot);
        }
        result
    }

    fn give_back(&mut self, batch: &BatchCache<B>, row: usize, slot: SlotId) -> Result<()> {
        match self.slots.get_mut(slot.0).and_then(Option::as_mut) {
            Some(cache) => batch.give_back(&self.backend, self.info.kv_format, row, cache),
            None => Ok(()),
        }
    }

    fn tokens(&self, slot: SlotId) -> usize {
        let cache = self.slots.get(slot.0).and_then(Option::as_ref);
        cache.map_or(0, |c| c.len())
    }

    fn forget(&mut self, slot: SlotId) {
        if let Some(place) = self.slots.get_mut(slot.0) {
            *place = None;
        }
    }
}
