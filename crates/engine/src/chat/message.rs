//! Messages and requests in short.

use serde_json::Value;

use super::{ChatRequest, SamplingChanges};
use crate::{
    Constraint, Message, Request, SamplingParams,
    tools::{ToolCall, ToolChoice, ToolDefinition},
};

/// A message of a conversation, for those that are text only; [`Message`] has all that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatMessage {
    /// What the model is told beforehand.
    System(String),
    /// What the user says.
    User(String),
    /// What the model said.
    Assistant(String),
    /// What a tool gave.
    Tool {
        /// The id of the call that this answers.
        call_id: String,
        /// The result.
        content: String,
    },
}

impl From<ChatMessage> for Message {
    fn from(message: ChatMessage) -> Self {
        match message {
            ChatMessage::System(text) => Message::new("system", text),
            ChatMessage::User(text) => Message::new("user", text),
            ChatMessage::Assistant(text) => Message::new("assistant", text),
            ChatMessage::Tool { call_id, content } => Message {
                tool_call_id: Some(call_id),
                ..Message::new("tool", content)
            },
        }
    }
}

/// A conversation with the sampling that the checkpoint recommends.
impl<M: Into<Message>> From<Vec<M>> for ChatRequest {
    fn from(messages: Vec<M>) -> Self {
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        ChatRequest {
            sampling: Some(SamplingChanges::default()),
            ..ChatRequest::new(messages)
        }
    }
}

/// One message of the user.
impl From<&str> for ChatRequest {
    fn from(text: &str) -> Self {
        vec![Message::new("user", text)].into()
    }
}

/// One message of the user.
impl From<String> for ChatRequest {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<RequestBuilder> for ChatRequest {
    fn from(builder: RequestBuilder) -> Self {
        builder.request
    }
}

/// Makes a [`ChatRequest`] step by step. What is not set is as the checkpoint recommends.
///
/// ```
/// use biplane::{ChatMessage, ChatRequest, RequestBuilder};
///
/// let request: ChatRequest = RequestBuilder::new()
///     .add_message(ChatMessage::User("Name three colours.".to_string()))
///     .set_sampler_temperature(0.7)
///     .set_max_len(100)
///     .enable_thinking(false)
///     .into();
/// assert_eq!(request.generation.max_tokens, Some(100));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RequestBuilder {
    request: ChatRequest,
}

impl Default for RequestBuilder {
    fn default() -> Self {
        Self {
            request: Vec::<Message>::new().into(),
        }
    }
}

impl RequestBuilder {
    /// A conversation without messages yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A conversation that begins with a message of the user.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self::new().add_message(Message::new("user", text))
    }

    /// Adds a message.
    pub fn add_message(self, message: impl Into<Message>) -> Self {
        self.with(|r| r.messages.push(message.into()))
    }

    /// Adds what the assistant said and called.
    pub fn add_calls(self, text: impl Into<String>, calls: &[ToolCall]) -> Self {
        let value = |call: &ToolCall| serde_json::to_value(call).unwrap_or_default();
        self.add_message(Message {
            tool_calls: calls.iter().map(value).collect(),
            ..Message::new("assistant", text)
        })
    }

    /// Adds the result of a call.
    pub fn add_tool_message(self, call_id: impl Into<String>, content: impl Into<String>) -> Self {
        self.add_message(ChatMessage::Tool {
            call_id: call_id.into(),
            content: content.into(),
        })
    }

    /// The tools that the model may call.
    pub fn set_tools(self, tools: Vec<ToolDefinition>) -> Self {
        self.with(|r| r.tools = tools)
    }

    /// Which of them.
    pub fn set_tool_choice(self, choice: ToolChoice) -> Self {
        self.with(|r| r.tool_choice = choice)
    }

    /// Whether the model may call several at once.
    pub fn set_parallel_tool_calls(self, parallel: bool) -> Self {
        self.with(|r| r.parallel_tool_calls = parallel)
    }

    /// All of the sampling, in place of what the checkpoint recommends.
    pub fn set_sampler(mut self, sampling: SamplingParams) -> Self {
        self.request.sampling = None;
        self.generation(|g| g.sampling = sampling)
    }

    /// The most likely token always.
    pub fn set_deterministic_sampler(self) -> Self {
        self.set_sampler(SamplingParams::default())
    }

    /// [`SamplingParams::temperature`].
    pub fn set_sampler_temperature(self, temperature: f32) -> Self {
        self.change(
            |s| s.temperature = Some(temperature),
            |s| s.temperature = temperature,
        )
    }

    /// [`SamplingParams::top_k`].
    pub fn set_sampler_topk(self, k: usize) -> Self {
        self.change(|s| s.top_k = Some(k), |s| s.top_k = k)
    }

    /// [`SamplingParams::top_p`].
    pub fn set_sampler_topp(self, p: f32) -> Self {
        self.change(|s| s.top_p = Some(p), |s| s.top_p = p)
    }

    /// [`SamplingParams::min_p`].
    pub fn set_sampler_minp(self, p: f32) -> Self {
        self.change(|s| s.min_p = Some(p), |s| s.min_p = p)
    }

    /// [`SamplingParams::repetition_penalty`].
    pub fn set_sampler_repetition_penalty(self, penalty: f32) -> Self {
        self.change(
            |s| s.repetition_penalty = Some(penalty),
            |s| s.repetition_penalty = penalty,
        )
    }

    /// [`SamplingParams::frequency_penalty`].
    pub fn set_sampler_frequency_penalty(self, penalty: f32) -> Self {
        self.change(
            |s| s.frequency_penalty = Some(penalty),
            |s| s.frequency_penalty = penalty,
        )
    }

    /// [`SamplingParams::presence_penalty`].
    pub fn set_sampler_presence_penalty(self, penalty: f32) -> Self {
        self.change(
            |s| s.presence_penalty = Some(penalty),
            |s| s.presence_penalty = penalty,
        )
    }

    /// [`SamplingParams::logit_bias`].
    pub fn set_sampler_logits_bias(self, biases: Vec<(u32, f32)>) -> Self {
        let same = biases.clone();
        self.change(|s| s.logit_bias = Some(same), |s| s.logit_bias = biases)
    }

    /// [`SamplingParams::seed`].
    pub fn set_seed(self, seed: u64) -> Self {
        self.change(|s| s.seed = Some(seed), |s| s.seed = Some(seed))
    }

    /// Most tokens of the answer.
    pub fn set_max_len(self, tokens: usize) -> Self {
        self.generation(|g| g.max_tokens = Some(tokens))
    }

    /// Texts that end the answer.
    pub fn set_stop(self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let texts = texts.into_iter().map(Into::into).collect();
        self.generation(|g| g.stop = texts)
    }

    /// Tokens that end the answer, besides the model's own.
    pub fn set_stop_tokens(self, tokens: Vec<u32>) -> Self {
        self.generation(|g| g.stop_tokens = tokens)
    }

    /// What the answer must be.
    pub fn set_constraint(self, constraint: Constraint) -> Self {
        self.generation(|g| g.constraint = Some(constraint))
    }

    /// Gives each token's log probability, and those of the `top` most likely ones.
    pub fn return_logprobs(self, top: usize) -> Self {
        self.generation(|g| g.logprobs = Some(top))
    }

    /// Whether the model thinks aloud first, for the models whose template has this choice.
    pub fn enable_thinking(self, enable: bool) -> Self {
        self.set_template_variable("enable_thinking", enable)
    }

    /// A variable of the chat template.
    pub fn set_template_variable(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.with(|r| {
            r.template_variables.insert(name.into(), value.into());
        })
    }

    /// Continues the last message, the assistant's.
    pub fn continue_last_message(self) -> Self {
        self.with(|r| r.add_generation_prompt = false)
    }

    /// The request.
    pub fn build(self) -> ChatRequest {
        self.request
    }

    fn with(mut self, f: impl FnOnce(&mut ChatRequest)) -> Self {
        f(&mut self.request);
        self
    }

    fn generation(mut self, f: impl FnOnce(&mut Request)) -> Self {
        f(&mut self.request.generation);
        self
    }

    fn change(
        mut self,
        recommended: impl FnOnce(&mut SamplingChanges),
        own: impl FnOnce(&mut SamplingParams),
    ) -> Self {
        match &mut self.request.sampling {
            Some(changes) => recommended(changes),
            None => own(&mut self.request.generation.sampling),
        }
        self
    }
}
