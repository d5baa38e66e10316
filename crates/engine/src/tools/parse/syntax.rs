//! How each format marks its calls.

use super::heads::Item;
use crate::tools::{ToolFormat, markers::*};

/// Opens and closes code in Markdown.
pub(super) const FENCE: &str = "```";

/// A format of calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syntax {
    /// What opens a block of calls.
    pub openers: &'static [&'static str],
    /// What closes a block that no fence opened.
    pub close: Option<&'static str>,
    /// Whether an answer may begin with calls that nothing marks.
    pub bare: bool,
    pub item: Item,
}

impl Syntax {
    /// No calls.
    pub const NONE: Self = Self {
        openers: &[],
        close: None,
        bare: false,
        item: Item::Json,
    };

    pub fn of(format: ToolFormat) -> Self {
        let marked = |openers, close, item| Self {
            openers,
            close,
            bare: false,
            item,
        };
        let bare = |openers, item| Self {
            openers,
            close: None,
            bare: true,
            item,
        };
        match format {
            ToolFormat::Llama => bare(&[PYTHON_TAG], Item::JsonOrPython),
            ToolFormat::Gemma => bare(
                &["```tool_code", "```tool_call", "```json"],
                Item::JsonOrPython,
            ),
            ToolFormat::Json => bare(&["```tool_call", "```json"], Item::Json),
            ToolFormat::Hermes => marked(&[HERMES], Some(HERMES_END), Item::Json),
            ToolFormat::Mistral | ToolFormat::MistralArgs => {
                marked(&[MISTRAL], None, Item::Mistral)
            }
            ToolFormat::DeepSeek | ToolFormat::DeepSeekV31 => marked(
                &[DEEPSEEK, DEEPSEEK_CALL],
                Some(DEEPSEEK_END),
                Item::DeepSeek,
            ),
            ToolFormat::Phi => marked(&[PHI, "functools"], Some(PHI_END), Item::Json),
            ToolFormat::Granite => marked(&[PHI], None, Item::Json),
            ToolFormat::Command => marked(&[COMMAND], Some(COMMAND_END), Item::Json),
            ToolFormat::Functionary => marked(&[FUNCTION], Some(FUNCTION_END), Item::Function),
        }
    }
}
