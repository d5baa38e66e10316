//! Conversations: messages, tools and a choice among them in; text, reasoning and calls of tools out.

mod ask;
mod message;
mod prompt;
mod reader;
mod request;
mod response;
mod stream;
mod submit;
#[cfg(test)]
mod tests;
mod tool_loop;

/// Prompts without a model.
pub(crate) mod prompter {
    pub(crate) use super::prompt::render;
}

pub use message::{ChatMessage, RequestBuilder};
pub(crate) use request::check_tool;
pub use request::{ChatRequest, SamplingChanges};
pub use response::{ChatFinish, ChatResponse, ToolRun};
pub use stream::{ChatEvent, ChatStream};
pub use submit::PreparedChat;
pub use tool_loop::{OnToolError, ToolConfig, ToolLoop};
