//! Ends: of sequences, of what failed, and what is kept of them.

use super::Part;
use super::Scheduler;
use crate::{
    Error,
    engine::{guarded, sequence::Sequence},
};

impl Scheduler<'_> {
    /// A step failed. Alone, a sequence is to blame; of several, each is tried again alone.
    pub fn recover(&mut self, parts: &[Part], error: Error) {
        tracing::warn!("a step of {} sequences failed: {error}", parts.len());
        // What else is in flight is of the same sequences.
        self.ahead = None;
        while guarded(|| Ok(self.runner.collect()?)).is_ok() {}
        if let [part] = parts {
            let sequence = self.running.remove(part.index);
            self.finish(sequence, |s| {
                s.computed = 0;
                s.fail(error);
            });
            return;
        }
        for part in parts {
            if let Some(s) = self.running.get_mut(part.index) {
                s.alone = true;
            }
            self.reopen(part.index);
        }
    }

    /// Begins a running sequence's computation anew.
    pub(super) fn reopen(&mut self, index: usize) {
        let Some(s) = self.running.get_mut(index) else {
            return;
        };
        if let Some(slot) = s.slot.take() {
            self.runner.close(slot);
        }
        s.computed = 0;
        match self.runner.open() {
            Ok(slot) => s.slot = Some(slot),
            Err(error) => {
                let sequence = self.running.remove(index);
                self.finish(sequence, |s| s.fail(error.into()));
            }
        }
    }

    /// Copies the cache of a sequence that has come to where others part from it.
    pub(super) fn branch_at_its_end(&mut self, index: usize) {
        let Some(s) = self.running.get_mut(index) else {
            return;
        };
        let Some(slot) = s.slot.filter(|_| s.branches.first() == Some(&s.computed)) else {
            return;
        };
        s.branches.remove(0);
        let at_prompt_end = s.branches.is_empty();
        let tokens = s.tokens.get(..s.computed).unwrap_or_default().to_vec();
        let needed = self.running_bytes() + self.runner.bytes(slot, 0);
        self.evict_to(needed, None);
        if needed <= self.budget
            && let Ok(copy) = self.runner.fork(slot, tokens.len())
        {
            // The only copy from which the prompt can be had again once the answer is long.
            if at_prompt_end && let Some(store) = &mut self.store {
                store.save(&mut *self.runner, copy, &tokens);
            }
            self.cache.keep(&mut *self.runner, copy, tokens, true);
            self.trim_kept();
        }
    }

    /// The end of a sequence: its cache is kept for others, its last events go their way.
    pub(super) fn finish(&mut self, mut sequence: Sequence, last: impl FnOnce(&mut Sequence)) {
        last(&mut sequence);
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&sequence);
        }
        sequence.flush();
        if let Some(guesser) = &mut self.guesser {
            guesser.forget(sequence.id);
        }
        let keep = self.config.prefix_cache && sequence.shares_prefix() && sequence.computed > 0;
        let slot = sequence.slot.take();
        // Of what was computed ahead nobody knows.
        let whole = slot.is_some_and(|slot| {
            self.runner.len(slot) <= sequence.computed
                || self.runner.truncate(slot, sequence.computed).is_ok()
        });
        match slot {
            Some(slot) if keep && whole => {
                let mut tokens = std::mem::take(&mut sequence.tokens);
                tokens.truncate(sequence.computed);
                if let Some(store) = &mut self.store
                    && !self.runner.info().is_windowed()
                {
                    store.save(&mut *self.runner, slot, &tokens);
                }
                self.cache.keep(&mut *self.runner, slot, tokens, false);
                self.trim_kept();
            }
            Some(slot) => self.runner.close(slot),
            None => {}
        }
        self.draining.extend(sequence.into_outbox());
    }

    /// Lets go of what is kept beyond the most that may be.
    fn trim_kept(&mut self) {
        let most = self.config.kept_prefixes.unwrap_or(usize::MAX);
        while self.cache.len() > most && self.cache.evict(&mut *self.runner, None) {}
    }

    /// Lets a sequence go that never began.
    pub fn drop_unbegun(&mut self, sequence: Sequence) {
        self.finish(sequence, |_| {});
    }

    pub(super) fn close(&mut self, sequence: &mut Sequence) {
        if let Some(slot) = sequence.slot.take() {
            self.runner.close(slot);
        }
        sequence.computed = 0;
    }
}
