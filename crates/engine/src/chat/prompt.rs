//! From a conversation to the prompt that the model was trained on.

use serde::Deserialize;
use serde_json::Value;

use super::ChatRequest;
use crate::{
    Error, Message, Result,
    template::{ChatTemplate, Options},
    texts::guard,
    tokenizer::Tokenizer,
    tools::{Reasoning, ToolCall, ToolDefinition, ToolFormat},
};

/// What makes prompts.
pub(super) struct Prompter<'m> {
    pub template: &'m ChatTemplate,
    pub tokenizer: &'m Tokenizer,
    pub format: Option<ToolFormat>,
}

/// What the template writes of a conversation to its end, users' text marked as [`Tokenizer::guard`]
/// does.
pub(crate) fn render(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    format: Option<ToolFormat>,
    request: &ChatRequest,
) -> Result<String> {
    // Nothing is continued here, so that the last message may be anyone's.
    ChatRequest {
        add_generation_prompt: true,
        ..request.clone()
    }
    .validate()?;
    let prompter = Prompter {
        template,
        tokenizer,
        format,
    };
    let (text, _) = prompter.rendered(request, &request.offered()?)?;
    Ok(text)
}

impl Prompter<'_> {
    /// Whether the template describes tools and writes calls in this format by itself.
    fn is_native(&self) -> bool {
        self.template.takes().tools
            && self.format == self.template.tool_format()
            && !matches!(self.format, Some(ToolFormat::Json | ToolFormat::Gemma))
    }

    /// The prompt, users' text marked as [`Tokenizer::guard`] does.
    pub fn prompt(&self, request: &ChatRequest, offered: &[&ToolDefinition]) -> Result<String> {
        let (text, messages) = self.rendered(request, offered)?;
        if request.add_generation_prompt {
            return Ok(text);
        }
        let content = messages.last().and_then(|m| m.get("content")?.as_str());
        continued(text, content.unwrap_or_default())
    }

    /// What the template writes, marked as well, and the messages as it saw them.
    pub fn rendered(
        &self,
        request: &ChatRequest,
        offered: &[&ToolDefinition],
    ) -> Result<(String, Vec<Value>)> {
        let takes = self.template.takes();
        let native = self.is_native();
        let mut messages = request.messages.clone();
        let speaks_of_tools = |m: &Message| m.role == "tool" || !m.tool_calls.is_empty();
        if messages.iter().any(speaks_of_tools) {
            messages = match native && takes.calls && takes.results {
                true => self.one_by_one(messages)?,
                false => in_text(messages, self.format.unwrap_or(ToolFormat::Json))?,
            };
        }
        let mut tools = Vec::new();
        for tool in offered {
            let tool = serde_json::to_value(tool);
            tools.push(tool.map_err(|e| Error::Request(format!("tools: {e}")))?);
        }
        let mut options = Options {
            add_generation_prompt: request.add_generation_prompt,
            ..Options::default()
        };
        if !tools.is_empty() {
            match (native, self.format) {
                (true, _) => options.tools = Some(self.guard_all(tools)?),
                (false, Some(format)) => {
                    instruct(&mut messages, &format.instructions(&tools), takes.system);
                }
                (false, None) => return Err(unknown_format()),
            }
        }
        for (name, value) in &request.template_variables {
            let value = guard(value.clone(), self.tokenizer)?;
            options.variables.insert(name.clone(), value);
        }
        // In the template's own form first: what is decoded or joined later would not be guarded.
        let messages = self.guard_all(self.template.prepare(&messages)?)?;
        let text = self.template.render_as_is(&messages, &options)?;
        Ok((text, messages))
    }

    /// How an answer after this prompt begins.
    pub fn reasoning(&self, request: &ChatRequest, prompt: &str) -> Reasoning {
        let tags = self.template.reasoning();
        if request.add_generation_prompt {
            return Reasoning::after(tags, prompt);
        }
        let begun = request.messages.last().and_then(|m| m.content.as_str());
        let begun = begun.unwrap_or_default();
        match tags {
            Some(tags) if begun.rfind(tags.open) > begun.rfind(tags.close) => {
                Reasoning::Begun(tags)
            }
            _ => Reasoning::None,
        }
    }

    fn guard_all(&self, values: Vec<Value>) -> Result<Vec<Value>> {
        let guard = |value| guard(value, self.tokenizer);
        values.into_iter().map(guard).collect()
    }

    /// For templates that write tools' messages by themselves: with the ids that they need, and with
    /// one call at a time where they take no more.
    fn one_by_one(&self, messages: Vec<Message>) -> Result<Vec<Message>> {
        if self.template.takes().ids {
            let missing = |m: &Message| m.role == "tool" && m.tool_call_id.is_none();
            if let Some(i) = messages.iter().position(missing) {
                return Err(Error::Request(format!(
                    "messages[{i}].tool_call_id is missing: this model's chat template writes out \
                     which call a tool's message answers"
                )));
            }
        }
        if self.format.is_none_or(ToolFormat::is_parallel) {
            return Ok(messages);
        }
        let mut messages = std::collections::VecDeque::from(messages);
        let mut out = Vec::new();
        while let Some(mut message) = messages.pop_front() {
            if message.tool_calls.len() < 2 {
                out.push(message);
                continue;
            }
            let results = messages.iter().take_while(|m| m.role == "tool").count();
            let mut results: Vec<Message> = messages.drain(..results).collect();
            for call in std::mem::take(&mut message.tool_calls) {
                let id = call.get("id").and_then(Value::as_str).map(str::to_owned);
                let answers = |m: &Message| id.is_none() || m.tool_call_id == id;
                let result = results.iter().position(answers);
                out.push(Message {
                    tool_calls: vec![call],
                    ..message.clone()
                });
                out.extend(result.map(|at| results.remove(at)));
                message.content = Value::String(String::new());
            }
            out.extend(results);
        }
        Ok(out)
    }
}

pub(super) fn unknown_format() -> Error {
    Error::Request(
        "tools: the format in which this model calls tools is not known; choose one with \
         ModelBuilder::with_tool_format, and the model is told how to use it"
            .into(),
    )
}

/// Calls as text of the assistant, and results as text of the user.
fn in_text(messages: Vec<Message>, format: ToolFormat) -> Result<Vec<Message>> {
    let mut called: Vec<ToolCall> = Vec::new();
    let mut out: Vec<Message> = Vec::new();
    // Whether the last message is of results: templates want user and assistant in turns.
    let mut results = false;
    for (i, mut message) in messages.into_iter().enumerate() {
        if !message.tool_calls.is_empty() {
            let calls: Result<Vec<ToolCall>, _> = message
                .tool_calls
                .iter()
                .map(ToolCall::deserialize)
                .collect();
            let calls =
                calls.map_err(|e| Error::Request(format!("messages[{i}].tool_calls: {e}")))?;
            let text = joined(&text_of(&message.content), &format.write(&calls), "\n");
            message.content = text.into();
            message.tool_calls.clear();
            called.extend(calls);
        }
        let is_result = message.role == "tool";
        if is_result {
            let id = message.tool_call_id.take();
            let call = called
                .iter()
                .rev()
                .find(|call| Some(&call.id) == id.as_ref());
            let name = call.map(|call| call.name.clone()).or(message.name.take());
            let of = name.map_or_else(String::new, |name| format!(" of {name}"));
            let text = format!("Result{of}:\n{}", text_of(&message.content));
            message = Message::new("user", text);
        }
        match out.last_mut() {
            Some(last) if results && message.role == "user" => {
                let text = joined(&text_of(&last.content), &text_of(&message.content), "\n\n");
                last.content = text.into();
            }
            _ => out.push(message),
        }
        results = is_result;
    }
    Ok(out)
}

/// Puts instructions where the template has a place for them.
fn instruct(messages: &mut Vec<Message>, instructions: &str, takes_system: bool) {
    let role = if takes_system { "system" } else { "user" };
    match messages.iter_mut().find(|m| m.role == role) {
        Some(message) if takes_system => {
            let text = joined(&text_of(&message.content), instructions, "\n\n");
            message.content = text.into();
        }
        Some(message) => {
            let text = joined(instructions, &text_of(&message.content), "\n\n");
            message.content = text.into();
        }
        None => messages.insert(0, Message::new(role, instructions)),
    }
}

/// The prompt up to the end of the last message's text.
fn continued(mut prompt: String, content: &str) -> Result<String> {
    let content = content.trim();
    match prompt.rfind(content) {
        Some(at) if !content.is_empty() => {
            prompt.truncate(at + content.len());
            Ok(prompt)
        }
        _ => Err(Error::Request(
            "the last message cannot be continued: the chat template changes its content, or it is \
             empty; set add_generation_prompt"
                .into(),
        )),
    }
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let text = |part: &Value| Some(part.get("text")?.as_str()?.to_owned());
            parts.iter().filter_map(text).collect()
        }
        _ => String::new(),
    }
}

fn joined(first: &str, second: &str, between: &str) -> String {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second.to_owned(),
        (_, true) => first.to_owned(),
        _ => format!("{first}{between}{second}"),
    }
}
