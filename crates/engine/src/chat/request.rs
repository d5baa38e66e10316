//! What is asked of a model in a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Dry, Error, Message, Request, Result, SamplingParams,
    tools::{ToolCall, ToolChoice, ToolDefinition},
};

/// A conversation to answer.
///
/// ```
/// use biplane::{ChatRequest, Message, Request};
///
/// let request = ChatRequest {
///     generation: Request {
///         max_tokens: Some(64),
///         ..Request::default()
///     },
///     ..ChatRequest::new([Message::new("user", "Why is the sky blue?")])
/// };
/// assert!(request.parallel_tool_calls);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Tools that the model may call. They are only described to it: who asks runs them.
    ///
    /// A strict one holds every answer to a grammar, in which nothing but a right call can be taken for
    /// a call. For formats without marks (`llama`, `gemma`, `json`) text can then neither begin with a
    /// bracket nor have fences of JSON.
    pub tools: Vec<ToolDefinition>,
    /// Which of them.
    pub tool_choice: ToolChoice,
    /// Whether the model may call several at once; otherwise a grammar sees to it that it does not.
    pub parallel_tool_calls: bool,
    /// More variables for the chat template, as `enable_thinking`.
    pub template_variables: Map<String, Value>,
    /// How to generate. Its tokens are empty: the chat template makes them.
    ///
    /// A constraint beside tools that the model may, but need not, call: the answer is either a call
    /// or as the constraint says. Beside tools that it must call it is refused, and so is
    /// [`Constraint::Lark`](crate::Constraint::Lark) beside any.
    pub generation: Request,
    /// The sampling that the checkpoint recommends, with these changes, in place of
    /// [`Request::sampling`].
    pub sampling: Option<SamplingChanges>,
    /// Whether a new answer begins; otherwise the last message, the assistant's, is continued.
    pub add_generation_prompt: bool,
}

impl Default for ChatRequest {
    fn default() -> Self {
        ChatRequest {
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            template_variables: Map::new(),
            generation: Request::default(),
            sampling: None,
            add_generation_prompt: true,
        }
    }
}

impl ChatRequest {
    /// A greedy answer to these messages.
    pub fn new(messages: impl Into<Vec<Message>>) -> Self {
        ChatRequest {
            messages: messages.into(),
            ..ChatRequest::default()
        }
    }

    /// The tools that may be called.
    pub(crate) fn offered(&self) -> Result<Vec<&ToolDefinition>> {
        self.tool_choice.select(&self.tools).map_err(|name| {
            let names: Vec<&str> = self.tools.iter().map(|t| t.name.as_str()).collect();
            Error::Request(format!(
                "tool_choice names the tool {name:?}, which is not among tools ({})",
                names.join(", ")
            ))
        })
    }

    /// Refuses what no model can do.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::Request(text));
        if !self.generation.tokens.is_empty() {
            return refuse(
                "generation.tokens must be empty: the chat template makes the prompt; submit a \
                 Request for a prompt of tokens"
                    .into(),
            );
        }
        if self.generation.prompt_logprobs.is_some() {
            return refuse(
                "generation.prompt_logprobs cannot be had of a conversation; submit the request of \
                 Model::prepare_chat by itself"
                    .into(),
            );
        }
        if self.messages.is_empty() {
            return refuse("messages is empty, at least one is needed".into());
        }
        for (i, message) in self.messages.iter().enumerate() {
            check_message(message, &format!("messages[{i}]"))?;
        }
        for (i, tool) in self.tools.iter().enumerate() {
            check_tool(tool, &format!("tools[{i}]"))?;
            if self.tools.iter().take(i).any(|t| t.name == tool.name) {
                return refuse(format!(
                    "tools[{i}].name {:?} is another tool's already; each needs a name of its own",
                    tool.name
                ));
            }
        }
        let offered = self.offered()?;
        if self.tool_choice.is_required() && offered.is_empty() {
            return refuse("tool_choice demands a call, but there are no tools".into());
        }
        if self.tool_choice.is_required() && self.generation.constraint.is_some() {
            return refuse(
                "tool_choice demands a call, and generation.constraint (the response format) demands \
                 another form: set one of them"
                    .into(),
            );
        }
        if !self.add_generation_prompt {
            let last = self.messages.last();
            let text = last.is_some_and(|m| m.role == "assistant" && m.content.is_string());
            if !text || last.is_some_and(|m| !m.tool_calls.is_empty()) {
                return refuse(
                    "add_generation_prompt is false, which continues the last message: that must be \
                     the assistant's, with content that is a text and without tool_calls"
                        .into(),
                );
            }
        }
        Ok(())
    }
}

pub(crate) fn check_tool(tool: &ToolDefinition, place: &str) -> Result<()> {
    if !tool.has_good_name() {
        return Err(Error::Request(format!(
            "{place}.name is {:?}, expected 1 to 128 letters, digits or _ - . / :",
            tool.name
        )));
    }
    let kind = tool.parameters.get("type");
    let object = tool.parameters.is_object() && kind.is_none_or(|kind| kind == "object");
    if !object {
        return Err(Error::Request(format!(
            "{place}.parameters of {:?} is no schema of an object; expected {{\"type\": \"object\", ..}}",
            tool.name
        )));
    }
    Ok(())
}

fn check_message(message: &Message, place: &str) -> Result<()> {
    match &message.content {
        Value::String(_) | Value::Null => {}
        Value::Array(parts) => {
            for (i, part) in parts.iter().enumerate() {
                check_part(part, &format!("{place}.content[{i}]"))?;
            }
        }
        other => {
            return Err(Error::Request(format!(
                "{place}.content is {}, expected a text, null or a list of parts",
                kind_of(other)
            )));
        }
    }
    for (i, call) in message.tool_calls.iter().enumerate() {
        if let Err(error) = ToolCall::deserialize(call) {
            return Err(Error::Request(format!(
                "{place}.tool_calls[{i}]: {error}; expected {{\"id\": .., \"type\": \"function\", \
                 \"function\": {{\"name\": .., \"arguments\": ..}}}}"
            )));
        }
    }
    Ok(())
}

fn check_part(part: &Value, place: &str) -> Result<()> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind != "text" {
        return Err(Error::Request(format!(
            "{place} is of type {kind:?}, but the model reads text only: expected {{\"type\": \
             \"text\", \"text\": ..}}"
        )));
    }
    if !part.get("text").is_some_and(Value::is_string) {
        return Err(Error::Request(format!(
            "{place}.text is missing or no text"
        )));
    }
    Ok(())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Changes of the sampling that a checkpoint recommends; `None` leaves a value as it is. See
/// [`SamplingParams`] for what they mean, and [`Model::sampling`](crate::Model::sampling) for the outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "SamplingParams has the same fields")]
pub struct SamplingChanges {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// `usize::MAX` for all tokens.
    pub repetition_window: Option<usize>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub dry: Option<Dry>,
    /// Texts that no repetition goes across, beside the sequence breakers of `dry`.
    pub dry_breakers: Option<Vec<String>>,
    pub logit_bias: Option<Vec<(u32, f32)>>,
    pub seed: Option<u64>,
}

impl SamplingChanges {
    /// The parameters with these changes, but for `dry_breakers`, which need a tokenizer:
    /// [`Model::sampling`](crate::Model::sampling) has it.
    pub fn apply(&self, mut to: SamplingParams) -> SamplingParams {
        fn set<T: Clone>(place: &mut T, change: &Option<T>) {
            if let Some(value) = change {
                *place = value.clone();
            }
        }
        set(&mut to.temperature, &self.temperature);
        set(&mut to.top_k, &self.top_k);
        set(&mut to.top_p, &self.top_p);
        set(&mut to.min_p, &self.min_p);
        set(&mut to.typical_p, &self.typical_p);
        set(&mut to.repetition_penalty, &self.repetition_penalty);
        if let Some(window) = self.repetition_window {
            to.repetition_window = (window < usize::MAX).then_some(window);
        }
        set(&mut to.presence_penalty, &self.presence_penalty);
        set(&mut to.frequency_penalty, &self.frequency_penalty);
        if let Some(dry) = &self.dry {
            to.dry = Some(dry.clone());
        }
        set(&mut to.logit_bias, &self.logit_bias);
        to.seed = self.seed.or(to.seed);
        to
    }
}
