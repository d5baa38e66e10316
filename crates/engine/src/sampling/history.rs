use std::collections::HashMap;

use super::{SamplingParams, dry::Repetitions};

/// The tokens so far, as far as penalties look at them.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// Prompt and output; empty where no penalty needs their order.
    tokens: Vec<u32>,
    counts: HashMap<u32, Counts>,
    repetitions: Option<Repetitions>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// In the repetition penalty's window.
    window: usize,
    output: usize,
}

impl History {
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let dry = params.dry.as_ref().filter(|dry| dry.multiplier > 0.0);
        let mut history = History {
            tokens: Vec::new(),
            counts: HashMap::new(),
            repetitions: dry.map(Repetitions::new),
        };
        for &token in prompt {
            history.push(params, token, false);
        }
        history
    }

    pub fn push(&mut self, params: &SamplingParams, token: u32, is_output: bool) {
        if params.penalizes_repetition() {
            self.counts.entry(token).or_default().window += 1;
            let window = params.repetition_window.unwrap_or(usize::MAX);
            if let Some(left) = self.tokens.len().checked_sub(window)
                && let Some(counts) = self.tokens.get(left).and_then(|t| self.counts.get_mut(t))
            {
                counts.window -= 1;
            }
        }
        if is_output && params.penalizes_output() {
            self.counts.entry(token).or_default().output += 1;
        }
        if self.repetitions.is_some()
            || (params.penalizes_repetition() && params.repetition_window.is_some())
        {
            self.tokens.push(token);
        }
    }

    /// Whether it changes no score.
    pub fn is_idle(&self) -> bool {
        self.counts.is_empty() && self.repetitions.is_none()
    }

    pub fn penalize(&self, params: &SamplingParams, scores: &mut [f32]) {
        for (&id, counts) in &self.counts {
            let Some(score) = scores.get_mut(id as usize) else {
                continue;
            };
            if counts.window > 0 {
                *score = if *score > 0.0 {
                    *score / params.repetition_penalty
                } else {
                    *score * params.repetition_penalty
                };
            }
            if counts.output > 0 {
                *score -= params.presence_penalty + params.frequency_penalty * counts.output as f32;
            }
        }
        if let Some(repetitions) = &self.repetitions {
            repetitions.penalize(&self.tokens, scores);
        }
    }
}
