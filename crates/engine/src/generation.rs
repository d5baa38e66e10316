//! What is asked of a model, and what it gives.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    Error, Result,
    grammar::Constraint,
    sampling::{SamplingParams, TokenLogprobs},
    stop::StopStrings,
};

/// Most alternatives whose log probabilities a request may ask for.
const MOST_LOGPROBS: usize = 20;

/// Most stop texts of a request.
const MOST_STOPS: usize = 16;

/// A request for text after a prompt of tokens.
///
/// ```
/// use biplane::{Request, SamplingParams};
///
/// let request = Request {
///     max_tokens: Some(64),
///     stop: vec!["\n\n".into()],
///     ..Request::new(vec![1, 2, 3])
/// };
/// assert!(request.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Most tokens to generate; `None` for what the context leaves.
    pub max_tokens: Option<usize>,
    /// Goes on past the model's end-of-turn tokens.
    pub ignore_eos: bool,
    /// Texts that end the answer, and are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// What the answer must be; checked token by token.
    pub constraint: Option<Constraint>,
    /// Gives each token's log probability, and those of as many of the most likely ones.
    pub logprobs: Option<usize>,
    /// The same for the prompt's tokens, in [`Event::Prompt`]. The prompt is computed anew for it.
    pub prompt_logprobs: Option<usize>,
    /// Whether control tokens are written out in the text.
    pub show_special: bool,
    /// Control tokens that are written out even without [`show_special`](Self::show_special).
    pub shown_tokens: Vec<u32>,
    /// Whether the answer goes on with the prompt's text, where the prompt ends with text: a space at its
    /// beginning counts then. Tokenizers of SentencePiece's kind drop it from a text of its own.
    pub continues: bool,
    /// Whether what is computed of this request may serve others that begin alike.
    pub keep_prefix: bool,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            tokens: Vec::new(),
            sampling: SamplingParams::default(),
            max_tokens: None,
            ignore_eos: false,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            show_special: false,
            shown_tokens: Vec::new(),
            continues: false,
            keep_prefix: true,
        }
    }
}

impl Request {
    /// A greedy continuation of `tokens` until the model ends it.
    pub fn new(tokens: Vec<u32>) -> Self {
        Request {
            tokens,
            continues: true,
            ..Request::default()
        }
    }

    /// Refuses what no engine can do.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, its value and what it may be.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: usize, most: usize| match value > most {
            true => Err(Error::Request(format!(
                "{name} is {value}, at most {most} is allowed"
            ))),
            false => Ok(()),
        };
        self.sampling.validate().map_err(Error::Request)?;
        check("logprobs", self.logprobs.unwrap_or(0), MOST_LOGPROBS)?;
        check(
            "prompt_logprobs",
            self.prompt_logprobs.unwrap_or(0),
            MOST_LOGPROBS,
        )?;
        check("the number of stop texts", self.stop.len(), MOST_STOPS)?;
        StopStrings::new(self.stop.clone()).map_err(Error::Request)?;
        Ok(())
    }

    /// The request of the `n`th of several answers to the same prompt: a seed counts up, so that they
    /// differ.
    pub fn choice(&self, n: u64) -> Self {
        let mut request = self.clone();
        if let Some(seed) = &mut request.sampling.seed {
            *seed = seed.wrapping_add(n);
        }
        request
    }
}

/// Why generation ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said it was done, or all that its constraint allows is written.
    Stop,
    /// One of the request's stop texts came.
    StopText(String),
    /// The limit of tokens, or the end of the context, was reached.
    Length,
    /// Nobody listens any more.
    #[default]
    Cancelled,
}

/// How long a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were computed for an earlier request.
    pub cached_tokens: usize,
    /// Tokens generated, a final stop token included.
    pub generated_tokens: usize,
    /// Those of them that are a conversation's reasoning, with the mark before it.
    pub reasoning_tokens: usize,
    /// From submission to the first token.
    pub time_to_first_token: Duration,
    /// From the beginning of the prompt's computation to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Timings {
    /// Computed prompt tokens a second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(
            self.prompt_tokens.saturating_sub(self.cached_tokens),
            self.prefill,
        )
    }

    /// Tokens a second after the first.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }

    /// Of two answers one after the other.
    pub(crate) fn and(self, later: Timings) -> Timings {
        Timings {
            prompt_tokens: self.prompt_tokens + later.prompt_tokens,
            cached_tokens: self.cached_tokens + later.cached_tokens,
            generated_tokens: self.generated_tokens + later.generated_tokens,
            reasoning_tokens: self.reasoning_tokens + later.reasoning_tokens,
            time_to_first_token: self.time_to_first_token,
            prefill: self.prefill + later.prefill,
            decode: self.decode + later.decode,
        }
    }

    /// Tokens a second after the first; of the prompt where there is only one.
    pub(crate) fn tokens_per_second(&self) -> f64 {
        match self.decode_tokens_per_second() {
            0.0 => self.prompt_tokens_per_second(),
            rate => rate,
        }
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
    /// The prompt's log probabilities, where [`Request::prompt_logprobs`] asks: one for each token
    /// after the first.
    Prompt(Vec<TokenLogprobs>),
    /// A token, and the text that is certain with it: empty while a character is half done, or while
    /// it may be the beginning of a stop text.
    Token {
        /// The token.
        id: u32,
        /// Whole characters only.
        text: String,
        /// Where [`Request::logprobs`] asks.
        logprobs: Option<TokenLogprobs>,
    },
    /// The end; nothing comes after.
    Done {
        /// Text that was held back until now.
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
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// The text, without stop tokens.
    pub text: String,
    /// The tokens, a final stop token included.
    pub tokens: Vec<u32>,
    /// Of the tokens, where [`Request::logprobs`] asks.
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's tokens after the first, where [`Request::prompt_logprobs`] asks.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens a second after the first; of the prompt where there is only one.
    pub tokens_per_second: f64,
    /// How long it took.
    pub timings: Timings,
}

impl Response {
    /// Gathers a request's events.
    ///
    /// # Errors
    /// What the request failed with, or [`Error::Stopped`].
    pub async fn collect(mut events: mpsc::Receiver<Event>) -> Result<Response> {
        let mut response = Response::default();
        while let Some(event) = events.recv().await {
            match event {
                Event::Prompt(logprobs) => response.prompt_logprobs = logprobs,
                Event::Token { id, text, logprobs } => {
                    response.text.push_str(&text);
                    response.tokens.push(id);
                    response.logprobs.extend(logprobs);
                }
                Event::Done {
                    text,
                    reason,
                    timings,
                } => {
                    response.text.push_str(&text);
                    response.finish_reason = reason;
                    response.timings = timings;
                    response.tokens_per_second = timings.tokens_per_second();
                    return Ok(response);
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Err(Error::Stopped("its thread ended during the request".into()))
    }
}
