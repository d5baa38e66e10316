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
        let layout = self.layout(calls.len() > 1);
        let one = |call: &ToolCall| {
            let [before, after_name, after] = &layout.call;
            let name = layout.name(&call.name);
            format!("{before}{name}{after_name}{}{after}", call.arguments)
        };
        let calls: Vec<String> = calls.iter().map(one).collect();
        let calls = calls.join(&layout.between);
        format!("{}{calls}{}", layout.begin, layout.end)
    }

    /// How one call is written, or, where that differs, several.
    pub(super) fn layout(self, several: bool) -> Layout {
        let object = |name: &str, arguments: &str| {
            [
                format!("{{\"{name}\": "),
                format!(", \"{arguments}\": "),
                "}".to_owned(),
            ]
        };
        let plain = || object("name", "arguments");
        let layout = |begin: String, call, between: &str, end: String| Layout {
            begin,
            call,
            quoted: true,
            between: between.into(),
            end,
        };
        let bare = |begin: &str, call: [String; 3], between: &str, end: &str| Layout {
            quoted: false,
            ..layout(begin.into(), call, between, end.into())
        };
        let none = String::new;
        match self {
            Self::Llama => layout(none(), object("name", "parameters"), "; ", none()),
            Self::Hermes => {
                let [before, after_name, after] = plain();
                let call = [
                    format!("{HERMES}\n{before}"),
                    after_name,
                    format!("{after}\n{HERMES_END}"),
                ];
                layout(none(), call, "\n", none())
            }
            Self::Mistral => layout(format!("{MISTRAL}["), plain(), ", ", "]".into()),
            Self::MistralArgs => bare("", [MISTRAL.into(), MISTRAL_ARGS.into(), none()], "", ""),
            Self::DeepSeek => {
                let call = [
                    format!("{DEEPSEEK_CALL}function{DEEPSEEK_SEP}"),
                    "\n```json\n".into(),
                    format!("\n```{DEEPSEEK_CALL_END}"),
                ];
                bare(DEEPSEEK, call, "\n", DEEPSEEK_END)
            }
            Self::DeepSeekV31 => {
                let call = [DEEPSEEK_CALL, DEEPSEEK_SEP, DEEPSEEK_CALL_END].map(Into::into);
                bare(DEEPSEEK, call, "", DEEPSEEK_END)
            }
            Self::Phi => layout(format!("{PHI}["), plain(), ", ", format!("]{PHI_END}")),
            Self::Granite => layout(format!("{PHI}["), plain(), ", ", "]".into()),
            Self::Command => layout(
                format!("{COMMAND}["),
                object("tool_name", "parameters"),
                ", ",
                format!("]{COMMAND_END}"),
            ),
            Self::Functionary => bare("", [FUNCTION, ">", FUNCTION_END].map(Into::into), "", ""),
            Self::Gemma | Self::Json if several => layout("[".into(), plain(), ", ", "]".into()),
            Self::Gemma | Self::Json => layout(none(), plain(), "", none()),
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

/// What is written around calls' names and arguments.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub begin: String,
    /// Before a call's name, between that and its arguments, and after those.
    pub call: [String; 3],
    /// Whether a name is a JSON string.
    quoted: bool,
    pub between: String,
    pub end: String,
}

impl Layout {
    pub fn name(&self, name: &str) -> String {
        match self.quoted {
            true => Value::from(name).to_string(),
            false => name.to_owned(),
        }
    }
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
