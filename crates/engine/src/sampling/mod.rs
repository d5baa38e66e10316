//! Choosing the next token from logits, on the host: the same numbers choose the same token on every
//! backend.

mod dry;
mod filters;
mod history;
mod logprobs;
mod mask;
mod math;
mod params;
#[cfg(test)]
mod tests;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

pub use self::{
    dry::Dry,
    logprobs::{TokenLogprobs, logprobs},
    mask::TokenMask,
    params::SamplingParams,
};
use self::{filters::Filters, history::History, params::BAN};

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Where they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// A sampler of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    history: History,
    /// The scores that penalties, biases and a mask make of the logits.
    scores: Vec<f32>,
    filters: Filters,
}

impl Sampler {
    /// A sampler for the text after `prompt`; without a seed the system's randomness seeds it.
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        Sampler {
            rng: ChaCha8Rng::seed_from_u64(params.seed.unwrap_or_else(entropy)),
            history: History::new(params, prompt),
            params: params.clone(),
            scores: Vec::new(),
            filters: Filters::default(),
        }
    }

    /// The next token for `logits [vocab]`, among those that `mask` allows. `logprobs` asks for the
    /// token's logarithm and those of so many of the most likely ones, see [`logprobs`].
    ///
    /// `None` when no token is left that is allowed and whose logit is a number: NaN is never chosen, and
    /// infinity counts as the largest number.
    ///
    /// One random number is drawn, none when greedy, so that what is drawn for a position does not depend
    /// on how its tokens were computed. The token is not in the history yet: see [`accept`](Self::accept).
    pub fn sample(
        &mut self,
        logits: &[f32],
        mask: Option<&TokenMask>,
        logprobs: Option<usize>,
    ) -> Option<Choice> {
        let params = &self.params;
        let mut scores = logits;
        if !self.history.is_idle() || !params.logit_bias.is_empty() || mask.is_some() {
            self.scores.clear();
            self.scores.extend_from_slice(logits);
            self.history.penalize(params, &mut self.scores);
            bias(&params.logit_bias, &mut self.scores);
            if let Some(mask) = mask {
                mask.apply(&mut self.scores);
            }
            scores = &self.scores;
        }
        let (best, max) = math::largest(scores)?;
        let token = if params.is_greedy() {
            best
        } else {
            let uniform = uniform(&mut self.rng);
            self.filters.choose(params, scores, max, uniform)?
        };
        Some(Choice {
            token,
            logprobs: logprobs.map(|top| self::logprobs(logits, token, top)),
        })
    }

    /// Notes a token of the output, chosen here or otherwise, for the penalties of later ones. Draws no
    /// random number.
    pub fn accept(&mut self, token: u32) {
        self.history.push(&self.params, token, true);
    }
}

fn bias(biases: &[(u32, f32)], scores: &mut [f32]) {
    for &(id, bias) in biases {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = if bias > BAN {
                *score + bias
            } else {
                f32::NEG_INFINITY
            };
        }
    }
}

/// A number in `[0, 1)` of 53 random bits.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A seed from the randomness that std's hash maps take from the system.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
