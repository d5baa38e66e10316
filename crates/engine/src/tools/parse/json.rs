//! Calls as JSON objects: `{"name": "add", "arguments": {"a": 1}}`.

use serde_json::Value;

use super::{
    cursor::{Cursor, Read, Stop},
    heads::{Head, Tools},
};

/// Deepest nesting that JSON is read to.
const DEPTH: usize = 128;

/// Follows a JSON array or object to its end, as it comes.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanner {
    /// The brackets that close what is open.
    open: Vec<char>,
    in_string: bool,
    escaped: bool,
}

/// How far a [`Scanner`] came, in bytes of the text it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// Through all of it.
    More,
    /// To the value's end.
    End(usize),
    /// To something that cannot be JSON.
    Wrong(usize),
}

impl Scanner {
    pub fn feed(&mut self, text: &str) -> Scan {
        for (at, letter) in text.char_indices() {
            if self.in_string {
                match letter {
                    _ if self.escaped => self.escaped = false,
                    '\\' => self.escaped = true,
                    '"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match letter {
                '"' => self.in_string = true,
                '{' | '[' if self.open.len() < DEPTH => {
                    self.open.push(if letter == '{' { '}' } else { ']' });
                }
                '}' | ']' if self.open.last() == Some(&letter) => {
                    self.open.pop();
                    if self.open.is_empty() {
                        return Scan::End(at + 1);
                    }
                }
                ',' | ':' | '+' | '-' | '.' => {}
                c if c.is_ascii_alphanumeric() || c.is_ascii_whitespace() => {}
                _ => return Scan::Wrong(at),
            }
        }
        Scan::More
    }
}

/// A call's head, up to where its arguments begin. Keys come in any order, and the arguments may be
/// JSON within a string.
pub(super) fn head(text: &str, tools: &Tools, only_known: bool) -> Read<Head> {
    let cursor = &mut Cursor::new(text);
    let mut name: Option<String> = None;
    let mut arguments: Option<String> = None;
    cursor.expect("{")?;
    loop {
        cursor.space();
        if cursor.skip("}")? {
            break;
        }
        let key = string(cursor)?;
        colon(cursor)?;
        let first = cursor.peek()?;
        match key.as_str() {
            "name" | "tool_name" | "function" if first == '"' => {
                let called = string(cursor)?;
                if called.is_empty() || (only_known && !tools.has(&called)) {
                    return Err(Stop::Wrong);
                }
                name = Some(called);
            }
            "function" if first == '{' => {
                let inner = value(cursor)?;
                if let Ok(Head::Whole {
                    name: n,
                    arguments: a,
                    ..
                }) = whole(inner, tools)
                {
                    if only_known && !tools.has(&n) {
                        return Err(Stop::Wrong);
                    }
                    (name, arguments) = (Some(n), Some(a));
                }
            }
            "arguments" | "parameters" => match &name {
                Some(name) if first == '{' || (first == '[' && !only_known) => {
                    let (name, at) = (name.clone(), cursor.at);
                    return Ok(Head::Open { name, at });
                }
                _ => arguments = Some(plain(value(cursor)?)),
            },
            "type" | "id" | "tool_call_id" | "index" => {
                value(cursor)?;
            }
            _ if only_known => return Err(Stop::Wrong),
            _ => {
                value(cursor)?;
            }
        }
        cursor.space();
        if !cursor.skip(",")? && cursor.peek()? != '}' {
            return Err(Stop::Wrong);
        }
    }
    match (name, arguments) {
        (Some(name), Some(arguments)) => Ok(Head::Whole {
            name,
            arguments,
            end: cursor.at,
        }),
        (Some(name), None) if !only_known => Ok(Head::Whole {
            name,
            arguments: "{}".into(),
            end: cursor.at,
        }),
        _ => Err(Stop::Wrong),
    }
}

/// A whole object as a call, for one inside another: it has come to its end.
fn whole(text: &str, tools: &Tools) -> Read<Head> {
    Ok(match head(text, tools, false)? {
        Head::Open { name, at } => {
            let mut cursor = Cursor::new(text);
            cursor.at = at;
            let arguments = value(&mut cursor)?.to_owned();
            let end = cursor.at;
            Head::Whole {
                name,
                arguments,
                end,
            }
        }
        whole => whole,
    })
}

/// What follows the arguments: more keys, and the object's end. Its length in bytes.
pub(super) fn tail(text: &str) -> Read<usize> {
    let cursor = &mut Cursor::new(text);
    loop {
        cursor.space();
        if cursor.skip("}")? {
            return Ok(cursor.at);
        }
        cursor.expect(",")?;
        cursor.space();
        string(cursor)?;
        colon(cursor)?;
        value(cursor)?;
    }
}

fn colon(cursor: &mut Cursor<'_>) -> Read<()> {
    cursor.space();
    cursor.expect(":")?;
    cursor.space();
    Ok(())
}

/// A string's text.
fn string(cursor: &mut Cursor<'_>) -> Read<String> {
    if cursor.peek()? != '"' {
        return Err(Stop::Wrong);
    }
    serde_json::from_str(value(cursor)?).map_err(|_| Stop::Wrong)
}

/// A value as it is written.
fn value<'t>(cursor: &mut Cursor<'t>) -> Read<&'t str> {
    let start = cursor.at;
    match cursor.peek()? {
        '{' | '[' => match Scanner::default().feed(cursor.rest()) {
            Scan::End(end) => cursor.at += end,
            Scan::More => return Err(Stop::More),
            Scan::Wrong(_) => return Err(Stop::Wrong),
        },
        '"' => {
            cursor.next()?;
            loop {
                match cursor.next()? {
                    '"' => break,
                    '\\' => {
                        cursor.next()?;
                    }
                    _ => {}
                }
            }
        }
        _ => {
            let word = cursor.take_while(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
            // Only what follows says that a number or word is at its end.
            cursor.peek()?;
            serde_json::from_str::<Value>(word).map_err(|_| Stop::Wrong)?;
        }
    }
    Ok(cursor.since(start))
}

/// Arguments out of a string, if they are in one; null for none.
fn plain(arguments: &str) -> String {
    match serde_json::from_str(arguments) {
        Ok(Value::Null) => "{}".into(),
        Ok(Value::String(text)) if matches!(serde_json::from_str(&text), Ok(Value::Object(_))) => {
            text
        }
        _ => arguments.to_owned(),
    }
}
