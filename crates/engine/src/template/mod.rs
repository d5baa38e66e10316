//! Chat templates: a model's Jinja template turns messages into the text that it was trained on,
//! byte for byte as transformers renders it.

mod calendar;
mod environment;
mod find;
mod prepare;
mod python;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::SystemTime};

use minijinja::{Environment, Value as Jinja, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{
    find::{Source, explicit, find, from_gguf},
    prepare::Takes,
};
use crate::tools::{ReasoningTags, ToolFormat};

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model has no chat template.
    #[error(
        "{origin} has no chat template, as base models do; give the prompt as plain text (--raw, \
         or /v1/completions of a server) or name a template file (--chat-template)"
    )]
    None {
        /// The model's directory or file.
        origin: String,
    },
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The template is no valid Jinja, or the file around it no valid JSON.
    #[error("chat template of {origin}: {reason}")]
    Malformed {
        /// The model's directory or file.
        origin: String,
        /// What is wrong and where.
        reason: String,
    },
    /// The template refuses these messages, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The template fails on these messages, or does not come to an end.
    #[error("the chat template cannot render these messages: {0}")]
    Render(String),
}

/// One message of a conversation. Templates see these names; any other shape that serializes to an
/// object does as well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// A text, null, or a list of parts such as `{"type": "text", "text": ".."}`.
    #[serde(default)]
    pub content: Value,
    /// The assistant's thinking, where the template wants it apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of tools: `{"id": .., "type": "function", "function": {"name": .., "arguments": ..}}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// The call that a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The tool's or the speaker's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Value::String(text.into()),
            ..Self::default()
        }
    }
}

/// What a rendering depends on besides the messages.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Functions the model may call, in OpenAI's form; none is not the same as an empty list.
    pub tools: Option<Vec<Value>>,
    /// Whether to end with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// More variables of the template, as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// The time that the template sees, in UTC; none for the local time of now.
    pub now: Option<SystemTime>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    has_tool_use: bool,
    bos_token: Option<String>,
    eos_token: Option<String>,
    takes: Takes,
    tool_format: Option<ToolFormat>,
    reasoning: Option<ReasoningTags>,
}

const DEFAULT: &str = "chat template";
const TOOL_USE: &str = "chat template for tools";

impl ChatTemplate {
    /// Compiles a template. The tokens' names are what the tokenizer says; without one the variable
    /// is undefined.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is no valid Jinja.
    pub fn new(source: Source, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self> {
        let mut environment = environment::new();
        // What speaks of tools says how they are called.
        let telling = source.tool_use.as_ref().unwrap_or(&source.default);
        let tool_format = ToolFormat::detect(telling);
        let reasoning =
            ReasoningTags::detect(telling).or_else(|| ReasoningTags::detect(&source.default));
        let mut add = |name, text: String| {
            let text = environment::without_generation_tags(&text).into_owned();
            environment
                .add_template_owned(name, text)
                .map_err(|error| Error::Malformed {
                    origin: source.origin.clone(),
                    reason: error.to_string(),
                })
        };
        add(DEFAULT, source.default)?;
        let has_tool_use = source.tool_use.is_some();
        if let Some(text) = source.tool_use {
            add(TOOL_USE, text)?;
        }
        let mut template = Self {
            environment,
            has_tool_use,
            bos_token: bos_token.map(Into::into),
            eos_token: eos_token.map(Into::into),
            takes: Takes::default(),
            tool_format,
            reasoning,
        };
        template.takes = prepare::probe(&template);
        Ok(template)
    }

    /// What the template can render by itself.
    pub fn takes(&self) -> Takes {
        self.takes
    }

    /// How a model with this template calls tools, as [`ToolFormat::detect`] says.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// What a model with this template writes around its thoughts.
    pub fn reasoning(&self) -> Option<ReasoningTags> {
        self.reasoning
    }

    /// The prompt for these messages. What the template cannot take is put into the form that it
    /// can: parts of content are joined to one text, null content becomes an empty text; calls'
    /// arguments that come as JSON text become objects.
    ///
    /// # Errors
    /// [`Error::Refused`] with the template's own words, [`Error::Render`] for what else fails:
    /// a template that does not end is stopped.
    pub fn render<M: Serialize>(&self, messages: &[M], options: &Options) -> Result<String> {
        self.render_as_is(&self.prepare(messages)?, options)
    }

    /// The messages in the form that the template can take, as [`render`](Self::render) makes it:
    /// what is to be done to every text must be done between this and
    /// [`render_as_is`](Self::render_as_is).
    ///
    /// # Errors
    /// [`Error::Render`] for what does not serialize.
    pub fn prepare<M: Serialize>(&self, messages: &[M]) -> Result<Vec<Value>> {
        let mut messages = values(messages)?;
        prepare::prepare(&mut messages, self.takes);
        Ok(messages)
    }

    /// As [`render`](Self::render), the messages left as they are.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_as_is<M: Serialize>(&self, messages: &[M], options: &Options) -> Result<String> {
        let messages = values(messages)?;
        let name = match &options.tools {
            Some(tools) if self.has_tool_use && !tools.is_empty() => TOOL_USE,
            _ => DEFAULT,
        };
        let mut variables: Vec<(&str, Jinja)> = Vec::new();
        for (name, token) in [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
        ] {
            if let Some(token) = token {
                variables.push((name, Jinja::from(token.as_str())));
            }
        }
        let now = options.now;
        variables.extend([
            ("messages", Jinja::from(Serde(&messages))),
            ("tools", Jinja::from(Serde(&options.tools))),
            ("documents", Jinja::from(())),
            (
                "add_generation_prompt",
                Jinja::from(options.add_generation_prompt),
            ),
            (
                "strftime_now",
                Jinja::from_function(move |format: &str| calendar::Moment::of(now).format(format)),
            ),
        ]);
        for (name, value) in &options.variables {
            variables.push((name, Jinja::from(Serde(value))));
        }
        let context = Jinja::from_pairs(variables);
        let rendered = self
            .environment
            .get_template(name)
            .and_then(|t| t.render(context));
        rendered.map_err(|error| {
            environment::refusal(&error)
                .map_or_else(|| Error::Render(error.to_string()), Error::Refused)
        })
    }
}

fn values<M: Serialize>(messages: &[M]) -> Result<Vec<Value>> {
    let value = |message| serde_json::to_value(message);
    messages
        .iter()
        .map(value)
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Render(e.to_string()))
}
