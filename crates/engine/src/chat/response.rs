//! What a conversation gives.

use std::time::Duration;

use crate::{FinishReason, Timings, TokenLogprobs, tools::ToolCall};

/// Why an answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ChatFinish {
    /// The model said it was done, or all that its constraint allows is written.
    Stop,
    /// One of the request's stop texts came.
    StopText(String),
    /// The limit of tokens, or the end of the context, was reached.
    Length,
    /// The model waits for the results of its calls.
    ToolCalls,
    /// Nobody listens any more.
    #[default]
    Cancelled,
}

impl ChatFinish {
    pub(super) fn new(reason: FinishReason, has_calls: bool) -> Self {
        match reason {
            FinishReason::Stop if has_calls => Self::ToolCalls,
            FinishReason::Stop => Self::Stop,
            FinishReason::StopText(text) => Self::StopText(text),
            FinishReason::Length => Self::Length,
            FinishReason::Cancelled => Self::Cancelled,
        }
    }
}

/// A finished answer.
#[derive(Clone, Debug, Default)]
pub struct ChatResponse {
    /// The text for the reader.
    pub text: String,
    /// What the model thought before it.
    pub reasoning: Option<String>,
    /// The calls that the model waits for.
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended.
    pub finish_reason: ChatFinish,
    /// The tokens, a final stop token included.
    pub tokens: Vec<u32>,
    /// Of the tokens, where the request asks.
    pub logprobs: Vec<TokenLogprobs>,
    /// How long it took.
    pub timings: Timings,
    /// Tokens a second after the first; of the prompt where there is only one.
    pub tokens_per_second: f64,
    /// The tools that were run on the way, in order.
    pub trace: Vec<ToolRun>,
}

/// A tool that was run on the way to an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolRun {
    /// The round, from 0: the answer whose call this is.
    pub round: usize,
    /// The call.
    pub call: ToolCall,
    /// What the model was given: the result, or what went wrong.
    pub result: Result<String, String>,
    /// How long it took.
    pub duration: Duration,
}
