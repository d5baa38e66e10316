//! Tools: functions that a model may call, the formats it calls them in, and what runs them.

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

pub use definition::{ToolCall, ToolChoice, ToolDefinition};
pub use format::{ToolFormat, UnknownFormat};
pub(crate) use function::schema_of;
pub use function::{Function, Tool, ToolFuture, ToolOutcome};
pub(crate) use grammar::{AnswerForm, Grammar};
pub use parse::{Delta, ParsedAnswer, ToolParser};
pub use reasoning::{Reasoning, ReasoningTags};
pub use toolbox::{CalledFunction, ToolBox, ToolCallback};
