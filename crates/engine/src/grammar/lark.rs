//! Lark grammars: those that are written here, and a look at those of others before they are compiled.

use std::fmt::Write as _;

use serde_json::{Deserializer, Value};

use super::{
    Error, Result,
    compile::{MOST_BYTES, MOST_DEPTH},
    schema,
};
use crate::tokenizer::Tokenizer;

/// Most rules, groups and schemas of a grammar.
const MOST_NODES: usize = 2000;

/// Most bytes once schemas are written out.
const MOST_WRITTEN: usize = 4 * MOST_BYTES;

fn invalid(what: &'static str, reason: impl Into<String>) -> Error {
    Error::Invalid {
        what,
        reason: reason.into(),
    }
}

/// A token by its name as a Lark grammar has to write it: a control token as itself, anything else as
/// text.
///
/// ```text
/// <|tool_call|>, a control token of number 7  →  <[7]>
/// <tool_call>, no control token               →  "<tool_call>"
/// ```
pub fn token(tokenizer: &Tokenizer, name: &str) -> String {
    match tokenizer.id_of(name) {
        Some(id) if tokenizer.is_special(id) => format!("<[{id}]>"),
        _ => quoted(name),
    }
}

/// A text as a Lark literal.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '\0'..='\x1F' | '\x7F' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(super) fn of_choices(choices: &[String]) -> Result<String> {
    if choices.is_empty() || choices.iter().any(String::is_empty) {
        return Err(invalid(
            "list of choices",
            "it must have one or more texts, none of them empty",
        ));
    }
    let choices: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
    Ok(format!("start: CHOICE\nCHOICE: {}", choices.join(" | ")))
}

pub(super) fn of_regex(regex: &str) -> Result<String> {
    // The whole text must match anyway.
    let inner = regex.strip_prefix('^').unwrap_or(regex);
    let inner = match inner.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 0 => rest,
        _ => inner,
    };
    if inner.is_empty() {
        return Err(invalid(
            "regular expression",
            "it is empty; write what the answer should be",
        ));
    }
    Ok(format!("start: /{}/", llguidance::regex_to_lark(inner, "")))
}

/// How deep a regular expression's groups are nested, at most.
pub(super) fn regex_depth(regex: &str) -> usize {
    let (mut depth, mut most, mut escaped) = (0usize, 0, false);
    for c in regex.chars() {
        match c {
            _ if escaped => {}
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        most = most.max(depth);
        escaped = c == '\\' && !escaped;
    }
    most
}

/// Someone's grammar within bounds, its schemas checked and written as the parser takes them.
pub(super) fn prepare(text: &str, tokenizer: &Tokenizer) -> Result<String> {
    if text.len() > MOST_BYTES {
        return Err(large("bytes", text.len(), MOST_BYTES));
    }
    let mut reader = Reader {
        rest: text,
        out: String::new(),
        depth: 0,
        nodes: 0,
        tokenizer,
    };
    while !reader.rest.is_empty() {
        reader.step()?;
    }
    Ok(reader.out)
}

fn large(measure: &'static str, value: usize, most: usize) -> Error {
    Error::TooLarge {
        what: LARK,
        measure,
        value,
        most,
    }
}

const LARK: &str = "Lark grammar";

struct Reader<'a> {
    rest: &'a str,
    out: String,
    depth: usize,
    nodes: usize,
    tokenizer: &'a Tokenizer,
}

impl Reader<'_> {
    /// Copies the next part: a literal, a comment, a schema, or a character.
    fn step(&mut self) -> Result<()> {
        let bytes = self.rest.as_bytes();
        match bytes {
            [b'#', ..] | [b'/', b'/', ..] => self.copy(self.rest.find('\n')),
            [b'"', ..] => self.copy(end_of(bytes, b'"')),
            [b'/', ..] => {
                let end = end_of(bytes, b'/');
                let regex = end.and_then(|end| self.rest.get(..end));
                let depth = regex_depth(regex.unwrap_or(self.rest));
                if depth > MOST_DEPTH {
                    return Err(large("nested groups", depth, MOST_DEPTH));
                }
                self.copy(end);
            }
            [b'<', ..] => self.token()?,
            _ if self.rest.starts_with("%json") => self.schema()?,
            [b'(' | b'[' | b'{', ..] => {
                self.depth += 1;
                self.node()?;
                self.copy(Some(1));
            }
            [b')' | b']' | b'}', ..] => {
                self.depth = self.depth.saturating_sub(1);
                self.copy(Some(1));
            }
            [b':' | b'|', ..] => {
                self.node()?;
                self.copy(Some(1));
            }
            _ => self.copy(self.rest.chars().next().map(char::len_utf8)),
        }
        Ok(())
    }

    fn copy(&mut self, end: Option<usize>) {
        let (part, rest) = end
            .and_then(|end| self.rest.split_at_checked(end))
            .unwrap_or((self.rest, ""));
        self.out.push_str(part);
        self.rest = rest;
    }

    fn node(&mut self) -> Result<()> {
        self.nodes += 1;
        if self.depth > MOST_DEPTH {
            return Err(large("a nesting of", self.depth, MOST_DEPTH));
        }
        match self.nodes > MOST_NODES {
            true => Err(large(
                "rules, alternatives and groups:",
                self.nodes,
                MOST_NODES,
            )),
            false => Ok(()),
        }
    }

    /// `<|name|>` or `<[1-3]>`.
    fn token(&mut self) -> Result<()> {
        let end = self
            .rest
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == '>' || *c == '<' || c.is_whitespace());
        let Some((end, '>')) = end else {
            self.copy(Some(1));
            return Ok(());
        };
        let name = self.rest.get(..=end).unwrap_or_default();
        let known = name.starts_with("<[")
            || self
                .tokenizer
                .id_of(name)
                .is_some_and(|id| self.tokenizer.is_special(id));
        if !known {
            return Err(invalid(
                LARK,
                format!("this model has no control token {name}; write it as text, in quotes"),
            ));
        }
        self.copy(Some(end + 1));
        Ok(())
    }

    fn schema(&mut self) -> Result<()> {
        self.node()?;
        let start = "%json".len();
        let mut stream =
            Deserializer::from_str(self.rest.get(start..).unwrap_or_default()).into_iter::<Value>();
        let value = match stream.next() {
            Some(Ok(value)) => value,
            Some(Err(e)) => return Err(invalid(LARK, format!("after %json: {e}"))),
            None => return Err(invalid(LARK, "nothing comes after %json")),
        };
        let end = start + stream.byte_offset();
        let prepared = schema::prepare(&value)?;
        let _ = write!(self.out, "%json {prepared}");
        if self.out.len() > MOST_WRITTEN {
            return Err(large("bytes of schemas", self.out.len(), MOST_WRITTEN));
        }
        self.rest = self.rest.get(end..).unwrap_or_default();
        Ok(())
    }
}

/// Where a literal ends that begins here and ends with `quote`.
fn end_of(bytes: &[u8], quote: u8) -> Option<usize> {
    let mut escaped = false;
    for (i, &b) in bytes.iter().enumerate().skip(1) {
        if b == quote && !escaped {
            return Some(i + 1);
        }
        escaped = b == b'\\' && !escaped;
    }
    None
}
