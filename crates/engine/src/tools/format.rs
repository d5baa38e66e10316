//! The formats in which models call tools.

use std::{fmt, str::FromStr};

use serde_json::{Value, json};

use super::{ToolCall, markers::*};

/// How a model writes its calls of tools. [`detect`](Self::detect) finds it in the chat template.
///
/// | name | what the model writes |
/// |---|---|
/// | `llama` | `{"name": .., "parameters": {..}}`, after <code>&lt;&#124;python_tag&#124;></code> or as the whole answer |
/// | `hermes` | `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM 3 |
/// | `mistral` | `[TOOL_CALLS][{"name": .., "arguments": {..}}]`: up to Mistral's tokenizer v7 |
/// | `mistral-args` | `[TOOL_CALLS]name[ARGS]{..}`: from v11 on |
/// | `deepseek` | `function`, a separator, the name, and the arguments in a fence: V3 and R1 |
/// | `deepseek-v3.1` | the name, a separator, the arguments |
/// | `phi` | <code>&lt;&#124;tool_call&#124;>[{"name": .., "arguments": {..}}]&lt;&#124;/tool_call&#124;></code>: Phi-4-mini |
/// | `granite` | the same without an end: Granite 3 |
/// | `command` | <code>&lt;&#124;START_ACTION&#124;>[{"tool_name": .., "parameters": {..}}]&lt;&#124;END_ACTION&#124;></code>: Command R7B |
/// | `functionary` | `<function=name>{..}</function>` |
/// | `gemma` | Python in a fence of `tool_code`, or as `json` |
/// | `json` | `{"name": .., "arguments": {..}}` as the whole answer or in a fence: for models that were not trained to call |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolFormat {
    /// Llama 3.
    Llama,
    /// Hermes and Qwen.
    Hermes,
    /// Mistral, a list.
    Mistral,
    /// Mistral, one call after the other.
    MistralArgs,
    /// DeepSeek V3 and R1.
    DeepSeek,
    /// DeepSeek V3.1.
    DeepSeekV31,
    /// Phi-4-mini.
    Phi,
    /// Granite 3.
    Granite,
    /// Command R7B.
    Command,
    /// Functionary 3.1.
    Functionary,
    /// Gemma 3.
    Gemma,
    /// Any model that is told how.
    Json,
}

/// A name that is no [`ToolFormat`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no format of tool calls is called {got:?}; there are {}",
    ToolFormat::names()
)]
pub struct UnknownFormat {
    got: String,
}

impl ToolFormat {
    /// All formats.
    pub const ALL: [Self; 12] = [
        Self::Llama,
        Self::Hermes,
        Self::Mistral,
        Self::MistralArgs,
        Self::DeepSeek,
        Self::DeepSeekV31,
        Self::Phi,
        Self::Granite,
        Self::Command,
        Self::Functionary,
        Self::Gemma,
        Self::Json,
    ];

    /// The format of a model with this chat template. None for a template that speaks of tools in a
    /// format that is not known here; [`Json`](Self::Json) for one that does not speak of tools.
    pub fn detect(template: &str) -> Option<Self> {
        let has = |text: &str| template.contains(text);
        Some(if has(HERMES) && has("<parameter=") || has("<|channel|>") {
            return None;
        } else if has(HERMES) {
            Self::Hermes
        } else if has(MISTRAL) && has(MISTRAL_ARGS) {
            Self::MistralArgs
        } else if has(MISTRAL) {
            Self::Mistral
        } else if has(DEEPSEEK_CALL) && has("```json") {
            Self::DeepSeek
        } else if has(DEEPSEEK_CALL) {
            Self::DeepSeekV31
        } else if has("<|tool|>") {
            Self::Phi
        } else if has(PHI) {
            Self::Granite
        } else if has(COMMAND) {
            Self::Command
        } else if has(FUNCTION) {
            Self::Functionary
        } else if has("<|start_header_id|>") && has("tools") {
            Self::Llama
        } else if has("<start_of_turn>") {
            Self::Gemma
        } else if has("tools") {
            return None;
        } else {
            Self::Json
        })
    }

    /// The name, as [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Hermes => "hermes",
            Self::Mistral => "mistral",
            Self::MistralArgs => "mistral-args",
            Self::DeepSeek => "deepseek",
            Self::DeepSeekV31 => "deepseek-v3.1",
            Self::Phi => "phi",
            Self::Granite => "granite",
            Self::Command => "command",
            Self::Functionary => "functionary",
            Self::Gemma => "gemma",
            Self::Json => "json",
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// What a [`ToolParser`](super::ToolParser) must see in the text, although the vocabulary may
    /// have it as control tokens.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Llama => &[PYTHON_TAG],
            Self::Hermes => &[HERMES, HERMES_END],
            Self::Mistral | Self::MistralArgs => &[MISTRAL, MISTRAL_CALL_ID, MISTRAL_ARGS],
            Self::DeepSeek | Self::DeepSeekV31 => &[
                DEEPSEEK,
                DEEPSEEK_CALL,
                DEEPSEEK_SEP,
                DEEPSEEK_CALL_END,
                DEEPSEEK_END,
            ],
            Self::Phi | Self::Granite => &[PHI, PHI_END],
            Self::Command => &[COMMAND, COMMAND_END],
            Self::Functionary => &[FUNCTION_END],
            Self::Gemma | Self::Json => &[],
        }
    }

    /// Whether an answer may hold several calls. Llama 3's templates refuse two at once.
    pub fn is_parallel(self) -> bool {
        !matches!(self, Self::Llama | Self::Functionary)
    }

    /// Calls as the model would have written them, for templates that have no place for them.
    pub fn write(self, calls: &[ToolCall]) -> String {
        let each = |write: &dyn Fn(&ToolCall) -> String, between: &str| {
            calls.iter().map(write).collect::<Vec<_>>().join(between)
        };
        let object = |name: &str, arguments: &str| {
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            move |call: &ToolCall| {
                format!(
                    "{{{name}: {}, {arguments}: {}}}",
                    quoted(&call.name),
                    call.arguments
                )
            }
        };
        let plain = object("\"name\"", "\"arguments\"");
        match self {
            Self::Llama => each(&object("\"name\"", "\"parameters\""), "; "),
            Self::Hermes => each(
                &|call| format!("{HERMES}\n{}\n{HERMES_END}", plain(call)),
                "\n",
            ),
            Self::Mistral => format!("{MISTRAL}[{}]", each(&plain, ", ")),
            Self::MistralArgs => each(
                &|call| format!("{MISTRAL}{}{MISTRAL_ARGS}{}", call.name, call.arguments),
                "",
            ),
            Self::DeepSeek => {
                let one = |call: &ToolCall| {
                    format!(
                        "{DEEPSEEK_CALL}function{DEEPSEEK_SEP}{}\n```json\n{}\n```{DEEPSEEK_CALL_END}",
                        call.name, call.arguments
                    )
                };
                format!("{DEEPSEEK}{}{DEEPSEEK_END}", each(&one, "\n"))
            }
            Self::DeepSeekV31 => {
                let one = |call: &ToolCall| {
                    format!(
                        "{DEEPSEEK_CALL}{}{DEEPSEEK_SEP}{}{DEEPSEEK_CALL_END}",
                        call.name, call.arguments
                    )
                };
                format!("{DEEPSEEK}{}{DEEPSEEK_END}", each(&one, ""))
            }
            Self::Phi => format!("{PHI}[{}]{PHI_END}", each(&plain, ", ")),
            Self::Granite => format!("{PHI}[{}]", each(&plain, ", ")),
            Self::Command => {
                let one = object("\"tool_name\"", "\"parameters\"");
                format!("{COMMAND}[{}]{COMMAND_END}", each(&one, ", "))
            }
            Self::Functionary => each(
                &|call| format!("{FUNCTION}{}>{}{FUNCTION_END}", call.name, call.arguments),
                "",
            ),
            Self::Gemma | Self::Json => match calls {
                [call] => plain(call),
                _ => format!("[{}]", each(&plain, ", ")),
            },
        }
    }

    /// What tells a model of its tools and how to call them, for templates that have no place for
    /// tools; the tools in OpenAI's form.
    pub fn instructions(self, tools: &[Value]) -> String {
        let function = |tool: &Value| tool.get("function").unwrap_or(tool).to_string();
        let functions = tools.iter().map(function).collect::<Vec<_>>().join("\n");
        let example = |name: &str| ToolCall {
            id: String::new(),
            name: name.into(),
            arguments: json!({"parameter": "value"}).to_string(),
        };
        let mut text = format!(
            "You can call these functions:\n{functions}\n\nTo call one, answer with nothing but\n{}",
            self.write(&[example("name")])
        );
        if self.is_parallel() {
            text.push_str("\nand to call several at once with\n");
            text.push_str(&self.write(&[example("name"), example("other_name")]));
        }
        text.push_str("\nIf no function helps, answer without calling any.");
        text
    }
}

fn quoted(name: &str) -> String {
    Value::from(name).to_string()
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ToolFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let known = Self::ALL.into_iter().find(|format| format.name() == name);
        known.ok_or_else(|| UnknownFormat { got: name.into() })
    }
}
