//! Tools: functions that a model may call, the formats it calls them in, and what runs them.

mod arguments;
mod definition;
mod format;
mod function;
mod grammar;
mod id;
mod markers;
mod parse;
mod reasoning;
#[cfg(test)]
mod tests;
mod toolbox;

pub use arguments::Function;
pub(crate) use arguments::{closed_schema_of, schema_of};
pub use definition::{ToolCall, ToolChoice, ToolDefinition};
pub use format::{ToolFormat, UnknownFormat};
pub use function::{Tool, ToolFuture, ToolOutcome};
pub(crate) use grammar::{AnswerForm, Grammar};
pub use parse::{Delta, ParsedAnswer, ToolParser};
pub use reasoning::{Reasoning, ReasoningTags};
pub use toolbox::{CalledFunction, ToolBox, ToolCallback};
