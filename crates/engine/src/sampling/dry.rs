//! DRY, "don't repeat yourself" (p-e-w, 2024): the longer the text's end has been there before, the less
//! likely is the token that came after it then.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::params::within;
use crate::{
    Result,
    tokenizer::{Specials, Tokenizer},
};

/// How to penalize the token that would make a repeated sequence longer: `multiplier · base ^ (length -
/// allowed_length)` is taken from its logit, for sequences of at least `allowed_length` tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dry {
    /// The penalty at the allowed length; 0 for none.
    pub multiplier: f32,
    /// How much the penalty grows with each token of length.
    pub base: f32,
    /// The longest repetition without a penalty, and 1.
    pub allowed_length: usize,
    /// How many of the last tokens, of prompt and output, are looked at; `None` for all.
    pub range: Option<usize>,
    /// Sequences of tokens that no repetition goes across, as those of line breaks; see
    /// [`Dry::tokens_with`].
    pub sequence_breakers: Vec<Vec<u32>>,
}

impl Default for Dry {
    fn default() -> Self {
        Dry {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            range: None,
            sequence_breakers: Vec::new(),
        }
    }
}

impl Dry {
    /// The tokens that have `text` in them, as sequence breakers. `vocabulary` is all tokens' ids and bytes.
    pub fn tokens_with<'a>(
        text: &str,
        vocabulary: impl IntoIterator<Item = (u32, &'a [u8])>,
    ) -> Vec<Vec<u32>> {
        let text = text.as_bytes();
        vocabulary
            .into_iter()
            .filter(|(_, bytes)| {
                !text.is_empty() && bytes.windows(text.len()).any(|part| part == text)
            })
            .map(|(id, _)| vec![id])
            .collect()
    }

    /// The sequence breakers that `text` means to a model: each token with all of it inside, and its own
    /// tokens where they are several.
    pub(crate) fn breakers(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Vec<u32>>> {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let vocabulary = ids.filter_map(|id| Some((id, tokenizer.token_bytes(id)?)));
        let mut breakers = Self::tokens_with(text, vocabulary);
        let own = tokenizer.encode(text, Specials::Plain)?;
        if own.len() > 1 {
            breakers.push(own);
        }
        Ok(breakers)
    }

    pub(super) fn validate(&self) -> std::result::Result<(), String> {
        within("dry_multiplier", self.multiplier, 0.0..=100.0)?;
        within("dry_base", self.base, 1.0..=100.0)?;
        if self.allowed_length == 0 {
            return Err("dry_allowed_length is 0, expected at least 1".into());
        }
        if self.sequence_breakers.iter().any(Vec::is_empty) {
            return Err("dry_sequence_breakers: one has no tokens".into());
        }
        Ok(())
    }
}

/// A [`Dry`] that is ready to look at histories.
#[derive(Clone, Debug)]
pub(super) struct Repetitions {
    dry: Dry,
    /// Breakers of one token.
    single: HashSet<u32>,
    /// Breakers of several, backwards.
    several: Vec<Vec<u32>>,
}

impl Repetitions {
    pub fn new(dry: &Dry) -> Self {
        let mut several = dry.sequence_breakers.clone();
        let single = several
            .extract_if(.., |breaker| breaker.len() == 1)
            .flatten()
            .collect();
        several.iter_mut().for_each(|breaker| breaker.reverse());
        Repetitions {
            dry: dry.clone(),
            single,
            several,
        }
    }

    /// Takes the penalties from `scores`. Costs a few nanoseconds for each token of the history in range.
    pub fn penalize(&self, history: &[u32], scores: &mut [f32]) {
        let range = self.dry.range.unwrap_or(usize::MAX);
        let backwards: Vec<u32> = history.iter().rev().take(range).copied().collect();
        let limit = self.unbroken(&backwards);
        if limit < self.dry.allowed_length {
            return;
        }
        let mut longest = HashMap::<u32, usize>::new();
        // Where the end's tokens are found again, backwards from `i`, the token before them came next.
        let again = common_prefixes(&backwards);
        for (next, length) in backwards.iter().zip(again.iter().skip(1)) {
            let length = (*length).min(limit);
            if length >= self.dry.allowed_length {
                let known = longest.entry(*next).or_default();
                *known = length.max(*known);
            }
        }
        for (id, length) in longest {
            if let Some(score) = scores.get_mut(id as usize) {
                *score -= self.penalty(length);
            }
        }
    }

    fn penalty(&self, length: usize) -> f32 {
        let mut penalty = self.dry.multiplier;
        for _ in self.dry.allowed_length..length {
            if self.dry.base == 1.0 || penalty > 1e30 {
                break;
            }
            penalty *= self.dry.base;
        }
        penalty
    }

    /// How many tokens there are after the last breaker.
    fn unbroken(&self, backwards: &[u32]) -> usize {
        let is_broken = |&i: &usize| {
            let rest = backwards.get(i..).unwrap_or_default();
            rest.first().is_some_and(|id| self.single.contains(id))
                || self.several.iter().any(|b| rest.starts_with(b))
        };
        (0..backwards.len())
            .find(is_broken)
            .unwrap_or(backwards.len())
    }
}

/// For each position, how many of the tokens from there are those from the start (the Z function).
fn common_prefixes(tokens: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; tokens.len()];
    // The stretch known to repeat the start that reaches furthest.
    let (mut start, mut end) = (0, 0);
    for i in 1..tokens.len() {
        let mut length = match lengths.get(i - start) {
            Some(known) if i < end => (end - i).min(*known),
            _ => 0,
        };
        while tokens
            .get(i + length)
            .is_some_and(|t| Some(t) == tokens.get(length))
        {
            length += 1;
        }
        if i + length > end {
            (start, end) = (i, i + length);
        }
        if let Some(place) = lengths.get_mut(i) {
            *place = length;
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_prefixes_are_those_found_one_by_one() {
        for seed in 0..200u32 {
            let tokens: Vec<u32> = (0..seed % 40)
                .map(|i| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 7 & 1)
                .collect();
            let plain: Vec<usize> = (0..tokens.len())
                .map(|i| {
                    let both = tokens.iter().zip(&tokens[i..]);
                    if i == 0 {
                        0
                    } else {
                        both.take_while(|(a, b)| a == b).count()
                    }
                })
                .collect();
            assert_eq!(common_prefixes(&tokens), plain, "{tokens:?}");
        }
    }

    #[test]
    fn the_token_that_came_next_is_penalized_by_the_length() {
        let dry = Dry {
            multiplier: 1.0,
            base: 2.0,
            ..Dry::default()
        };
        let penalties = |dry: &Dry, history: &[u32]| {
            let mut scores = vec![0.0; 10];
            Repetitions::new(dry).penalize(history, &mut scores);
            scores
                .iter()
                .enumerate()
                .filter(|(_, s)| **s != 0.0)
                .map(|(i, s)| (i, -s))
                .collect::<Vec<_>>()
        };
        // 1 2 3 was followed by 4; 2 3 too by 5.
        let history = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3];
        assert_eq!(penalties(&dry, &history), [(4, 2.0), (5, 1.0)]);
        let short = Dry {
            range: Some(6),
            ..dry.clone()
        };
        assert_eq!(penalties(&short, &history), [(5, 1.0)]);
        let strict = Dry {
            allowed_length: 3,
            ..dry.clone()
        };
        assert_eq!(penalties(&strict, &history), [(4, 1.0)]);
        let broken = |breakers: &[&[u32]]| Dry {
            sequence_breakers: breakers.iter().map(|b| b.to_vec()).collect(),
            ..dry.clone()
        };
        // What is left of the end has two tokens, then one.
        assert_eq!(penalties(&broken(&[&[1]]), &history), [(4, 1.0), (5, 1.0)]);
        assert_eq!(
            penalties(&broken(&[&[5, 1]]), &history),
            [(4, 1.0), (5, 1.0)]
        );
        assert_eq!(penalties(&broken(&[&[2]]), &history), []);
        assert_eq!(penalties(&broken(&[&[1, 2]]), &history), []);
        assert_eq!(
            penalties(&broken(&[&[7], &[3, 1]]), &history),
            [(4, 2.0), (5, 1.0)]
        );
    }

    #[test]
    fn endless_repetition_stays_a_number() {
        let mut scores = vec![0.0; 2];
        let dry = Dry {
            base: 100.0,
            ..Dry::default()
        };
        Repetitions::new(&dry).penalize(&[1; 5000], &mut scores);
        assert!(scores[1].is_finite() && scores[1] < -1e29, "{scores:?}");
        let flat = Dry {
            base: 1.0,
            ..Dry::default()
        };
        let mut scores = vec![0.0; 2];
        Repetitions::new(&flat).penalize(&[1; 5000], &mut scores);
        assert_eq!(scores, [0.0, -0.8]);
    }

    #[test]
    fn breakers_are_all_tokens_with_the_text() {
        let tokens: [(u32, &[u8]); 3] = [(0, b"a"), (1, b".\n"), (2, b"\n\n")];
        assert_eq!(Dry::tokens_with("\n", tokens), [[1], [2]]);
        assert!(Dry::tokens_with("", tokens).is_empty());
    }
}
