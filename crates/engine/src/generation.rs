//! What is asked of a model, and what it gives.

use std::time::Duration;

use crate::{Error, sampling::SamplingParams};

/// A request for text after a prompt of tokens.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Most tokens to generate; `None` for what the context leaves.
    pub max_tokens: Option<usize>,
    /// Goes on past the model's end-of-turn tokens.
    pub ignore_eos: bool,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said it was done.
    Stop,
    /// The limit of tokens, or the end of the context, was reached.
    Length,
    /// Nobody listens any more.
    Cancelled,
}

/// How long a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, a final stop token included.
    pub generated_tokens: usize,
    /// From the start of the prompt's computation to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens, self.time_to_first_token)
    }

    /// Tokens a second after the first.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() {
        return 0.0;
    }
    tokens as f64 / time.as_secs_f64()
}

/// What a running request sends.
#[derive(Debug)]
pub enum Event {
    /// A token, and the text that is complete with it: empty while a character is half done.
    Token {
        /// The token.
        id: u32,
        /// Whole characters only.
        text: String,
    },
    /// The end; nothing comes after.
    Done {
        /// Text that the last tokens left unfinished.
        text: String,
        /// Why.
        reason: FinishReason,
        /// How long it took.
        timings: Timings,
    },
    /// The request failed; nothing comes after.
    Failed(Error),
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The text, without stop tokens.
    pub text: String,
    /// The tokens, a final stop token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens a second after the first; of the prompt where there is only one.
    pub tokens_per_second: f64,
    /// How long it took.
    pub timings: Timings,
}
