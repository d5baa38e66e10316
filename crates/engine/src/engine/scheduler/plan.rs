//! What a step computes, within the memory that caches may take.

use std::sync::atomic::Ordering::Relaxed;

use super::{DECODING, LEAST_CHUNK, Part, STEP_TIME, Scheduler};
use crate::{
    Error,
    engine::{
        guess::{Guesser, Guesses},
        sequence::Sequence,
    },
};

impl Scheduler<'_> {
    /// What the next step computes: answers first, then prompts in their order.
    fn plan(&self, guesses: &Guesses) -> Vec<Part> {
        let all = self.step_tokens;
        let whole = |index: usize, s: &Sequence, limit| Part {
            index,
            tokens: s.chunk(limit),
            guessed: Vec::new(),
        };
        if let Some((index, s)) = self.running.iter().enumerate().find(|(_, s)| s.alone) {
            return match s.waits_for_reader() {
                true => Vec::new(),
                false => vec![whole(index, s, all)],
            };
        }
        let (answers, prompts): (Vec<_>, Vec<_>) = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.waits_for_reader())
            .partition(|(_, s)| s.decodes(DECODING));
        let mut parts: Vec<Part> = answers
            .into_iter()
            .map(|(index, s)| Part {
                guessed: guesses.get(&s.id).cloned().unwrap_or_default(),
                ..whole(index, s, DECODING)
            })
            .collect();
        let mut left = match parts.is_empty() {
            true => all,
            false => self.chunk_beside_answers(),
        };
        let piece = (all / 16).max(1);
        let mut planned = 0;
        for (index, s) in prompts {
            let limit = prompt_limit(s.pending().len(), left, planned, piece);
            if limit == 0 {
                break;
            }
            let part = whole(index, s, limit);
            left -= part.tokens;
            planned += part.tokens;
            parts.push(part);
        }
        parts
    }

    /// Prompt tokens that fit a step which answers wait for.
    fn chunk_beside_answers(&self) -> usize {
        match self.pace {
            Some(pace) => ((STEP_TIME / pace) as usize)
                .clamp(LEAST_CHUNK.min(self.step_tokens), self.step_tokens),
            None => LEAST_CHUNK.min(self.step_tokens),
        }
    }

    /// A plan whose caches fit the budget: kept prefixes go first, then the sequence that began last
    /// gives its memory back, to be computed again when there is room.
    pub(super) fn affordable_plan(&mut self, guesses: &Guesses) -> Vec<Part> {
        loop {
            let parts = self.plan(guesses);
            let growth: usize = parts.iter().map(|part| self.growth(part)).sum();
            let needed = self.running_bytes() + growth;
            self.evict_to(needed, None);
            if needed <= self.budget || parts.is_empty() {
                return parts;
            }
            let Some(mut last) = self.running.pop() else {
                return Vec::new();
            };
            if self.running.is_empty() {
                let tokens = last.tokens.len();
                let error = self.too_big(tokens, needed);
                self.finish(last, |s| s.fail(error));
                continue;
            }
            self.close(&mut last);
            self.counters.queued.fetch_add(1, Relaxed);
            self.counters.update(|m| m.preemptions += 1);
            self.waiting.push_front(last);
        }
    }

    fn growth(&self, part: &Part) -> usize {
        let slot = self.running.get(part.index).and_then(|s| s.slot);
        slot.map_or(0, |slot| {
            let added = part.tokens + part.guessed.len();
            self.runner.bytes(slot, added) - self.runner.bytes(slot, 0)
        })
    }

    /// Bytes of running sequences' caches, a draft model's among them.
    pub fn running_bytes(&self) -> usize {
        let slots = self.running.iter().filter_map(|s| s.slot);
        let guesses = self.guesser.as_ref().map_or(0, Guesser::bytes);
        slots.map(|slot| self.runner.bytes(slot, 0)).sum::<usize>() + guesses
    }

    /// Lets kept prefixes go until `needed` bytes fit beside them.
    pub fn evict_to(&mut self, needed: usize, except: Option<biplane_models::SlotId>) {
        while needed + self.cache.bytes() > self.budget
            && self.cache.evict(&mut *self.runner, except)
        {}
    }

    pub fn too_big(&self, tokens: usize, needed: usize) -> Error {
        Error::Request(format!(
            "{tokens} tokens need {} MiB of KV cache, {} MiB are allowed; allow more (--kv-memory), keep keys and values smaller (--kv-type q8), or shorten the prompt",
            needed.div_ceil(1 << 20),
            self.budget >> 20
        ))
    }
}

/// Tokens that a step with room for `left` takes of a prompt with `pending` ones, after `planned` of other
/// prompts. GPUs' libraries plan attention anew for each length, so prompts are cut at multiples of
/// `piece`, and not at all for less in a step that has enough to do.
fn prompt_limit(pending: usize, left: usize, planned: usize, piece: usize) -> usize {
    match pending > left {
        true if left >= piece => left - left % piece,
        true if planned >= piece => 0,
        _ => left,
    }
}

#[cfg(test)]
mod tests {
    use super::prompt_limit;

    #[test]
    fn prompts_are_cut_at_few_lengths() {
        assert_eq!(prompt_limit(512, 4096, 0, 256), 4096);
        assert_eq!(prompt_limit(512, 700, 3396, 256), 700);
        assert_eq!(prompt_limit(5000, 4096, 0, 256), 4096);
        assert_eq!(prompt_limit(5000, 1000, 0, 256), 768);
        assert_eq!(prompt_limit(512, 211, 1536, 256), 0);
        // Short steps go on all the same.
        assert_eq!(prompt_limit(512, 100, 0, 256), 100);
        assert_eq!(prompt_limit(512, 100, 90, 256), 100);
        assert_eq!(prompt_limit(3, 2, 0, 1), 2);
        assert_eq!(prompt_limit(3, 0, 0, 1), 0);
    }
}
