//! Answers held to a form: a JSON Schema, a regular expression, a grammar or a choice.
//!
//! A [`GrammarEngine`] belongs to one tokenizer. It compiles a [`Constraint`] (within limits of size and
//! time, and once for all requests that have the same one) to a [`GrammarState`], which says before every
//! token which ones may come. The parser is llguidance's.
//!
//! Nothing is let through in silence: a keyword that is not supported, a remote reference or a grammar
//! that gets stuck is an [`Error`]. JSON may have white space between its parts, but a bounded amount.
//! What is unbounded by the constraint itself (a string without `maxLength`, a number's digits) is bounded
//! by the request's `max_tokens` only.
//!
//! # Lark grammars
//!
//! [`Constraint::Lark`] takes [llguidance's dialect](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
//! Names in lower case are rules, names in upper case terminals (regular expressions without recursion). A
//! schema stands in a rule as `%json {..}`. A control token stands as `<|name|>`, or by its number as
//! `<[123]>`, and never matches its name as text; [`token`] writes whichever of the two is right for a
//! name. A stop token ends the answer wherever the grammar allows one, and need not be written.
//!
//! The patterns for calls of tools:
//!
//! A call that must come, with a control token or a text in front:
//!
//! ```text
//! start: <|tool_call|> %json {"type": "object"}
//! start: "<tool_call>\n" %json {"type": "object"} "\n</tool_call>"
//! ```
//!
//! Free text or calls, where a *control token* begins a call. A regular expression never matches a
//! control token, so the token ends the text by itself:
//!
//! ```text
//! start: TEXT? call*
//! call: <|tool_call|> %json {"type": "object"}
//! TEXT: /(.|\n)+/
//! ```
//!
//! The same where a *text* begins a call. A rule with `suffix` is the shortest text that ends with it,
//! so that no `<tool_call>` can come without its call; the last text must be free of it, which `~(..)`
//! says:
//!
//! ```text
//! start: call* last
//! call: before "\n" %json {"type": "object"} "\n</tool_call>"
//! before[suffix="<tool_call>"]: /(.|\n)*/
//! last: LAST?
//! LAST: ~(/(.|\n)*/ "<tool_call>" /(.|\n)*/) & /(.|\n)+/
//! ```
//!
//! Text of a control token is not part of an answer's text unless the request has `show_special`: who
//! reads calls looks at the tokens' numbers.

mod cache;
mod compile;
mod lark;
mod schema;
mod state;
#[cfg(test)]
mod tests;
mod vocabulary;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{compile::GrammarEngine, lark::token, state::GrammarState};

type Result<T> = std::result::Result<T, Error>;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// JSON that a JSON Schema holds for; `true` or `{}` for any JSON value.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// Text that a regular expression matches as a whole, in the syntax of Rust's regex crate without
    /// look-around.
    Regex(String),
    /// Text of a grammar; see [the module](self).
    Lark(String),
    /// One of some texts.
    Choice(Vec<String>),
}

impl Constraint {
    fn what(&self) -> &'static str {
        match self {
            Constraint::JsonSchema(_) | Constraint::JsonObject => "JSON schema",
            Constraint::Regex(_) => "regular expression",
            Constraint::Lark(_) => "Lark grammar",
            Constraint::Choice(_) => "list of choices",
        }
    }
}

/// Why an answer cannot be held to a constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More than is compiled here.
    #[error("the {what} has {measure} {value}, at most {most} is allowed; simplify it or split it")]
    TooLarge {
        /// A JSON schema, a regular expression, …
        what: &'static str,
        /// What is too large of it.
        measure: &'static str,
        /// How large it is, or at least is.
        value: usize,
        /// How large it may be.
        most: usize,
    },
    /// It is not what it should be, or has something that is not supported.
    #[error("the {what} cannot be used: {reason}")]
    Invalid {
        /// A JSON schema, a regular expression, …
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It takes too long to compile.
    #[error("the {what} takes more than {seconds} s to compile; simplify it")]
    Deadline {
        /// A JSON schema, a regular expression, …
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// Too many others are being compiled.
    #[error("too many constraints are being compiled; try again later")]
    Busy,
    /// No token goes on, though the grammar is not at its end.
    #[error("the answer cannot go on: no token of the model's vocabulary fits the constraint here")]
    Stuck,
    /// A token that the grammar does not allow.
    #[error("token {id} does not fit the constraint here")]
    Refused {
        /// The token.
        id: u32,
    },
    /// One token's choice costs more than is spent on it.
    #[error("the constraint became too complex at this point of the answer: {reason}")]
    TooComplex {
        /// What ran out.
        reason: String,
    },
    /// The tokenizer's vocabulary cannot be used for constraints.
    #[error("this model's vocabulary cannot be used for constraints: {reason}")]
    Vocabulary {
        /// What is wrong with it.
        reason: String,
    },
    /// A fault in the parser; other requests go on.
    #[error("checking the constraint failed: {reason}")]
    Fault {
        /// What it said.
        reason: String,
    },
}
