//! One parser for what a model answers: text, reasoning and calls of tools, as it comes.

mod cursor;
mod heads;
mod json;
mod parser;
mod python;
mod syntax;

pub use parser::ToolParser;

use super::ToolCall;

/// A piece of an answer. Pieces of one kind that follow each other belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delta {
    /// Text for the reader.
    Content(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call begins.
    CallStart {
        /// Its place among the answer's calls, from 0.
        index: usize,
        /// Nine letters and digits, different for each call.
        id: String,
        /// What is called; not always a tool that exists.
        name: String,
    },
    /// More of a call's arguments. Together they are a JSON object, unless the model made a mistake
    /// or was stopped: then they are what it wrote.
    CallArguments {
        /// The call's place among the answer's calls.
        index: usize,
        /// A part of a JSON text.
        json_fragment: String,
    },
}

/// An answer put together from its [`Delta`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedAnswer {
    /// Text for the reader.
    pub content: String,
    /// What the model thought before.
    pub reasoning: String,
    /// The calls, in the model's order.
    pub calls: Vec<ToolCall>,
}

impl ParsedAnswer {
    /// Adds a piece.
    pub fn push(&mut self, delta: Delta) {
        match delta {
            Delta::Content(text) => self.content.push_str(&text),
            Delta::Reasoning(text) => self.reasoning.push_str(&text),
            Delta::CallStart { id, name, .. } => self.calls.push(ToolCall {
                id,
                name,
                arguments: String::new(),
            }),
            Delta::CallArguments {
                index,
                json_fragment,
            } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&json_fragment);
                }
            }
        }
    }
}
