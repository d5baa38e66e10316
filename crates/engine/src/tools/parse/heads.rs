//! Where a call begins, what it calls, and where its arguments are, by format.

use super::{
    cursor::{Cursor, Read, Stop},
    json, python,
};
use crate::tools::{ToolDefinition, markers::*};

/// What the tools are called, and their parameters in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Tools(Vec<(String, Vec<String>)>);

impl Tools {
    pub fn new(tools: &[ToolDefinition]) -> Self {
        let entry = |tool: &ToolDefinition| (tool.name.clone(), tool.parameter_names());
        Self(tools.iter().map(entry).collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(tool, _)| tool == name)
    }

    pub fn parameters(&self, name: &str) -> &[String] {
        let tool = self.0.iter().find(|(tool, _)| tool == name);
        tool.map_or(&[], |(_, parameters)| parameters)
    }
}

/// The beginning of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// A JSON object or array with the arguments begins at this byte.
    Open { name: String, at: usize },
    /// All of the call, up to this byte.
    Whole {
        name: String,
        arguments: String,
        end: usize,
    },
}

/// How one call is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// `{"name": .., "arguments": {..}}`.
    Json,
    /// The same, or a call in Python.
    JsonOrPython,
    /// The same in a list, or `name[ARGS]{..}`.
    Mistral,
    /// ``<｜tool▁call▁begin｜>function<｜tool▁sep｜>name\n```json\n{..}\n```<｜tool▁call▁end｜>``, or
    /// shorter `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{..}<｜tool▁call▁end｜>`.
    DeepSeek,
    /// `name>{..}`, what opens it being `<function=`.
    Function,
}

impl Item {
    /// Reads the beginning of a call. With `only_known`, what calls no known tool is none.
    pub fn head(self, text: &str, tools: &Tools, only_known: bool) -> Read<Head> {
        match self {
            Item::Json => json::head(text, tools, only_known),
            Item::JsonOrPython if text.starts_with('{') => json::head(text, tools, only_known),
            Item::JsonOrPython => python::call(text, tools),
            Item::Mistral if text.starts_with('{') => json::head(text, tools, only_known),
            Item::Mistral => mistral(text),
            Item::DeepSeek => deepseek(text),
            Item::Function => {
                let mut cursor = Cursor::new(text);
                let name = cursor.until(">")?;
                cursor.space();
                open(name, &cursor)
            }
        }
    }

    /// The length of what belongs to a call after its arguments.
    pub fn tail(self, text: &str, object: bool) -> Read<usize> {
        match self {
            _ if object => json::tail(text),
            Item::DeepSeek => {
                let mut cursor = Cursor::new(text);
                cursor.space();
                if cursor.skip("```")? {
                    cursor.space();
                }
                cursor.skip(DEEPSEEK_CALL_END)?;
                Ok(cursor.at)
            }
            _ => Ok(0),
        }
    }

    /// Whether several calls may be in a list.
    pub fn takes_list(self) -> bool {
        matches!(self, Item::Json | Item::JsonOrPython | Item::Mistral)
    }

    /// What ends a call whose arguments are no JSON.
    pub fn end(self) -> Option<&'static str> {
        (self == Item::DeepSeek).then_some(DEEPSEEK_CALL_END)
    }
}

/// A head with a name, at whose end arguments must begin.
fn open(name: &str, cursor: &Cursor<'_>) -> Read<Head> {
    let name = name.trim();
    let named = !name.is_empty() && !name.contains(char::is_whitespace);
    if !named || !matches!(cursor.peek()?, '{' | '[') {
        return Err(Stop::Wrong);
    }
    Ok(Head::Open {
        name: name.to_owned(),
        at: cursor.at,
    })
}

fn mistral(text: &str) -> Read<Head> {
    let mut cursor = Cursor::new(text);
    let name = cursor.take_while(|c| !c.is_whitespace() && !"[{<".contains(c));
    cursor.peek()?;
    cursor.space();
    if cursor.skip(MISTRAL_CALL_ID)? {
        cursor.take_while(char::is_alphanumeric);
        cursor.expect(MISTRAL_ARGS)?;
    } else if cursor.peek()? == '[' {
        cursor.expect(MISTRAL_ARGS)?;
    }
    cursor.space();
    if cursor.peek()? != '{' {
        return Err(Stop::Wrong);
    }
    open(name, &cursor)
}

fn deepseek(text: &str) -> Read<Head> {
    let mut cursor = Cursor::new(text);
    // What opened the block may have been the call itself.
    cursor.skip(DEEPSEEK_CALL)?;
    let kind_or_name = cursor.until(DEEPSEEK_SEP)?;
    cursor.space();
    if matches!(cursor.peek()?, '{' | '[') {
        return open(kind_or_name, &cursor);
    }
    let name = cursor.until("\n")?;
    cursor.space();
    if cursor.skip("```")? {
        cursor.skip("json")?;
        cursor.space();
    }
    open(name, &cursor)
}
