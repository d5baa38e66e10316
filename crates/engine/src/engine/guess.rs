//! Guessing tokens ahead, for the model to check several in one step.

use std::collections::HashMap;

use biplane_models::{ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want};

use super::{prefix_cache::common, sequence::Sequence};
use crate::{Error, Result};

/// Guessed tokens by sequence.
pub(super) type Guesses = HashMap<u64, Vec<u32>>;

/// More answers than this fill a step by themselves: a guess would cost what it saves.
const MOST_SEQUENCES: usize = 4;

/// Longest and shortest ends of a sequence that are looked for earlier in it.
const GRAMS: std::ops::RangeInclusive<usize> = 2..=4;

/// Tokens of a draft's step.
const CHUNK: usize = 512;

pub(super) struct Guesser {
    tokens: usize,
    draft: Option<Draft>,
}

/// A smaller model, and its own caches of the sequences.
struct Draft {
    runner: Box<dyn ModelRunner>,
    fed: HashMap<u64, (SlotId, Vec<u32>)>,
}

impl Guesser {
    /// Guesses what followed the same tokens earlier in the sequence.
    pub fn prompt_lookup(tokens: usize) -> Self {
        Guesser {
            tokens,
            draft: None,
        }
    }

    /// Guesses what a smaller model of the same vocabulary says.
    pub fn draft(tokens: usize, runner: Box<dyn ModelRunner>) -> Self {
        Guesser {
            tokens,
            draft: Some(Draft {
                runner,
                fed: HashMap::new(),
            }),
        }
    }

    /// The smaller model.
    pub fn runner(&mut self) -> Option<&mut dyn ModelRunner> {
        Some(&mut *self.draft.as_mut()?.runner)
    }

    /// Guesses for the sequences that decode.
    pub fn guess(&mut self, running: &[Sequence], context: usize) -> Guesses {
        let decoding: Vec<_> = running.iter().filter(|s| s.decodes(1)).collect();
        if decoding.len() > MOST_SEQUENCES || running.iter().any(|s| s.alone) {
            return Guesses::new();
        }
        let wanted = decoding.into_iter().filter_map(|s| {
            let room = context.saturating_sub(s.tokens.len() + 1);
            let n = self.tokens.min(s.guessable()).min(room);
            (n > 0 && !s.waits_for_reader()).then_some((s, n))
        });
        match &mut self.draft {
            None => wanted
                .map(|(s, n)| (s.id, lookup(&s.tokens, n)))
                .filter(|(_, guess)| !guess.is_empty())
                .collect(),
            Some(draft) => {
                let wanted: Vec<_> = wanted.collect();
                draft.guess(&wanted).unwrap_or_else(|error| {
                    tracing::warn!("the draft model fails: {error}");
                    draft.forget_all();
                    Guesses::new()
                })
            }
        }
    }

    /// A sequence has ended.
    pub fn forget(&mut self, id: u64) {
        if let Some(draft) = &mut self.draft
            && let Some((slot, _)) = draft.fed.remove(&id)
        {
            draft.runner.close(slot);
        }
    }

    /// Bytes of the draft's caches.
    pub fn bytes(&self) -> usize {
        let Some(draft) = &self.draft else { return 0 };
        let slots = draft.fed.values();
        slots.map(|(slot, _)| draft.runner.bytes(*slot, 0)).sum()
    }
}

/// At most `n` tokens that followed the sequence's last few where they came before, the longest such
/// end and its latest place first (Saxena 2023).
fn lookup(tokens: &[u32], n: usize) -> Vec<u32> {
    for gram in GRAMS.rev() {
        let Some(before) = tokens.len().checked_sub(gram) else {
            continue;
        };
        let end = tokens.get(before..);
        let found = (0..before).rev().find(|&i| tokens.get(i..i + gram) == end);
        if let Some(i) = found {
            let after = tokens.get(i + gram..).unwrap_or_default();
            return after.iter().take(n).copied().collect();
        }
    }
    Vec::new()
}

impl Draft {
    fn guess(&mut self, wanted: &[(&Sequence, usize)]) -> Result<Guesses> {
        let mut guesses = Guesses::new();
        for (s, _) in wanted {
            self.catch_up(s)?;
        }
        let most = wanted.iter().map(|(_, n)| *n).max().unwrap_or(0);
        for i in 0..most {
            let mut plan = StepPlan::default();
            let mut ids = Vec::new();
            for (s, _) in wanted.iter().filter(|(_, n)| i < *n) {
                let Some((slot, fed)) = self.fed.get_mut(&s.id) else {
                    continue;
                };
                let mut tokens = s.tokens.get(fed.len()..).unwrap_or_default().to_vec();
                if let Some(guess) = guesses.get(&s.id).and_then(|g: &Vec<u32>| g.last()) {
                    tokens = vec![*guess];
                }
                fed.extend_from_slice(&tokens);
                plan.spans.push(SpanPlan {
                    slot: *slot,
                    tokens,
                    want: Want::Argmax,
                });
                ids.push(s.id);
            }
            for (id, output) in ids.into_iter().zip(self.runner.step(&plan)?) {
                if let SpanOutput::Token(token) = output {
                    guesses.entry(id).or_default().push(token);
                }
            }
        }
        Ok(guesses)
    }

    /// Brings the draft's cache of a sequence to where a few tokens are left to compute.
    fn catch_up(&mut self, s: &Sequence) -> Result<()> {
        let (slot, mut fed) = match self.fed.remove(&s.id) {
            Some(known) => known,
            None => (self.runner.open()?, Vec::new()),
        };
        // At least one token is left: its logits are the first guess.
        let same = common(&fed, &s.tokens).min(s.tokens.len().saturating_sub(1));
        let slot = if self.runner.can_go_back_to(slot, same) {
            self.runner.truncate(slot, same)?;
            fed.truncate(same);
            slot
        } else {
            self.runner.close(slot);
            fed.clear();
            self.runner.open()?
        };
        while s.tokens.len() - fed.len() > CHUNK {
            let tokens: Vec<u32> = s
                .tokens
                .iter()
                .skip(fed.len())
                .take(CHUNK)
                .copied()
                .collect();
            fed.extend_from_slice(&tokens);
            let spans = vec![SpanPlan {
                slot,
                tokens,
                want: Want::Nothing,
            }];
            self.runner.step(&StepPlan { spans })?;
        }
        self.fed.insert(s.id, (slot, fed));
        Ok(())
    }

    fn forget_all(&mut self) {
        for (_, (slot, _)) in self.fed.drain() {
            self.runner.close(slot);
        }
    }
}

/// Refuses a draft of another vocabulary.
pub(super) fn check_draft(draft: &dyn ModelRunner, model: &dyn ModelRunner) -> Result<()> {
    let (draft, model) = (draft.info().vocab_size, model.info().vocab_size);
    if draft != model {
        return Err(Error::Unsupported(format!(
            "the draft model has {draft} tokens, the model {model}; a draft must be of the same family"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::lookup;

    #[test]
    fn looks_up_the_latest_longest_match() {
        assert_eq!(lookup(&[1, 2, 3, 9, 1, 2, 3], 2), [9, 1]);
        assert_eq!(lookup(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8]);
        assert_eq!(lookup(&[5, 1, 2, 7, 5, 6, 1, 2, 8, 5, 1, 2], 2), [7, 5]);
        assert!(lookup(&[1, 2, 3], 4).is_empty());
        assert!(lookup(&[], 4).is_empty());
    }
}
