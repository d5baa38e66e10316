//! Beginning sequences: from a kept prefix, from one under way, from disk, or from nothing.

use std::sync::atomic::Ordering::Relaxed;

use biplane_models::SlotId;

use super::{prefix_cache::common, scheduler::Scheduler, sequence::Sequence};
use crate::Result;

/// Fewest tokens in common that are worth waiting for, or copying a cache for.
const WORTH: usize = 16;

/// Layers with a sliding window forget: of long prompts a copy is kept at these distances.
const BRANCH: usize = 512;

/// Where a sequence's cache may begin.
enum Begin {
    /// From nothing, or whatever was found.
    Now,
    /// Another sequence is computing what this one needs.
    Later,
}

impl Scheduler<'_> {
    /// Begins waiting sequences in their order, as far as there is room.
    pub(super) fn admit(&mut self) {
        let mut index = 0;
        while self.running.len() < self.config.max_sequences {
            let Some(sequence) = self.waiting.get(index) else {
                return;
            };
            if self.running.iter().any(|s| s.alone) {
                return;
            }
            if let Begin::Later = self.when(sequence) {
                index += 1;
                continue;
            }
            let tokens = sequence.tokens.len();
            let needed = self.runner.info().kv_bytes(tokens + 1, self.step_tokens);
            let busy = self.running_bytes();
            if !self.running.is_empty() && busy + needed > self.budget {
                return;
            }
            let Some(mut sequence) = self.waiting.remove(index) else {
                return;
            };
            self.counters.queued.fetch_sub(1, Relaxed);
            let begun = if needed > self.budget && self.running.is_empty() {
                Err(self.too_big(tokens, needed))
            } else {
                self.begin(&mut sequence)
            };
            match begun {
                Ok(()) => self.running.push(sequence),
                Err(error) => {
                    sequence.fail(error);
                    self.drop_unbegun(sequence);
                }
            }
        }
    }

    /// Whether a running sequence will soon have computed more of this one's prompt than is there now.
    fn when(&self, sequence: &Sequence) -> Begin {
        if !self.config.prefix_cache || !sequence.shares_prefix() {
            return Begin::Now;
        }
        let limit = sequence.tokens.len() - 1;
        let now = self.cache.find(&*self.runner, &sequence.tokens, limit);
        let now = now.usable.map_or(0, |(_, n)| n);
        let soon = self.running.iter().filter(|s| s.shares_prefix()).any(|s| {
            let shared = common(&s.tokens, &sequence.tokens).min(limit);
            shared > s.computed && shared >= now + WORTH
        });
        match soon {
            true => Begin::Later,
            false => Begin::Now,
        }
    }

    /// Gives a sequence a cache with as much of its prompt as there is somewhere.
    fn begin(&mut self, sequence: &mut Sequence) -> Result<()> {
        let mut begun = None;
        if self.config.prefix_cache && sequence.shares_prefix() {
            begun = self.reuse(sequence);
        }
        let (slot, computed) = match begun {
            Some(begun) => begun,
            None => (self.runner.open()?, 0),
        };
        sequence.slot = Some(slot);
        sequence.computed = computed;
        sequence.start(computed);
        self.counters.update(|m| m.cached_tokens += computed as u64);
        Ok(())
    }

    fn reuse(&mut self, sequence: &mut Sequence) -> Option<(SlotId, usize)> {
        let tokens = &sequence.tokens;
        let limit = tokens.len() - 1;
        let found = self.cache.find(&*self.runner, tokens, limit);
        let kept = found.usable.map_or(0, |(_, n)| n);
        let mut parted = found.common;
        // A sequence under way may have more.
        let mut running = (0, None);
        for other in self.running.iter().filter(|s| s.shares_prefix()) {
            let shared = common(&other.tokens, tokens).min(other.computed);
            parted = parted.max(shared);
            let usable = shared.min(limit);
            if let Some(slot) = other.slot
                && usable > running.0
                && self.runner.can_go_back_to(slot, usable)
            {
                running = (usable, Some(slot));
            }
        }
        let in_memory = kept.max(running.0);
        let stored = match &mut self.store {
            Some(store) => store.load(&mut *self.runner, tokens, limit, in_memory.max(WORTH)),
            None => None,
        };
        let begun = match (stored, found.usable, running) {
            (Some(stored), ..) => Some(stored),
            (None, _, (n, Some(slot))) if n > kept && n >= WORTH => {
                self.copy(slot, n).map(|slot| (slot, n))
            }
            (None, Some((index, n)), _) if n >= WORTH => self.reuse_kept(index, n),
            _ => None,
        };
        let computed = begun.map_or(0, |(_, n)| n);
        sequence.branches = self.branches(sequence, computed, parted.min(limit));
        begun
    }

    /// Takes over a kept prefix that is all of it a part of this sequence; copies another.
    fn reuse_kept(&mut self, index: usize, n: usize) -> Option<(SlotId, usize)> {
        let kept = self.cache.touch(index)?;
        let (slot, whole) = (kept.slot, kept.tokens.len() == n && !kept.branch);
        if whole {
            return Some((self.cache.take(index).slot, n));
        }
        self.copy(slot, n).map(|slot| (slot, n))
    }

    fn copy(&mut self, slot: SlotId, n: usize) -> Option<SlotId> {
        let needed = self.running_bytes() + self.runner.bytes(slot, 0);
        self.evict_to(needed, Some(slot));
        match self.runner.fork(slot, n) {
            Ok(copy) => Some(copy),
            Err(error) => {
                tracing::warn!("a kept prefix cannot be copied: {error}");
                None
            }
        }
    }

    /// Where to keep copies of a sequence whose layers forget: where it parted from others although
    /// nothing could be used, at regular distances, and at the prompt's end.
    fn branches(&self, sequence: &Sequence, computed: usize, parted: usize) -> Vec<usize> {
        if !self.runner.info().is_windowed() {
            return Vec::new();
        }
        let end = sequence.tokens.len();
        let mut at: Vec<usize> = (1..).map(|i| i * BRANCH).take_while(|n| *n < end).collect();
        if parted >= computed + WORTH {
            at.push(parted);
        }
        if end >= WORTH {
            at.push(end);
        }
        at.sort_unstable();
        at.dedup();
        at.retain(|n| *n > computed);
        at
    }
}
