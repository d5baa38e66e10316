//! Calls as Python: `add(a=1, b=2)`, `print(add(1, 2))`, `brave_search.call(query="x")`.

use serde_json::{Map, Number, Value};

use super::{
    cursor::{Cursor, Read, Stop},
    heads::{Head, Tools},
};

/// Deepest nesting of a literal.
const DEPTH: usize = 64;

/// A whole call of a known tool, or of any with `.call` behind its name.
pub(super) fn call(text: &str, tools: &Tools) -> Read<Head> {
    let cursor = &mut Cursor::new(text);
    let mut spelled = dotted(cursor)?;
    let printed = spelled == "print" && !tools.has("print");
    if printed {
        cursor.expect("(")?;
        cursor.space();
        spelled = dotted(cursor)?;
    }
    let last = spelled.rsplit('.').next().unwrap_or(spelled);
    let name = match spelled.strip_suffix(".call") {
        _ if tools.has(spelled) => spelled,
        Some(builtin) => builtin,
        None if tools.has(last) => last,
        None => return Err(Stop::Wrong),
    };
    cursor.expect("(")?;
    let arguments = arguments(cursor, tools.parameters(name))?;
    if printed {
        cursor.space();
        cursor.expect(")")?;
    }
    Ok(Head::Whole {
        name: name.to_owned(),
        arguments: Value::Object(arguments).to_string(),
        end: cursor.at,
    })
}

/// A name, with dots in it perhaps; what follows it has come.
fn dotted<'t>(cursor: &mut Cursor<'t>) -> Read<&'t str> {
    let name = cursor.take_while(|c| c.is_alphanumeric() || "_.-".contains(c));
    cursor.peek()?;
    let first = name.chars().next().ok_or(Stop::Wrong)?;
    (first.is_alphabetic() || first == '_')
        .then_some(name)
        .ok_or(Stop::Wrong)
}

/// Arguments up to the closing bracket; those without a name are called as the tool's parameters at
/// their places.
fn arguments(cursor: &mut Cursor<'_>, parameters: &[String]) -> Read<Map<String, Value>> {
    let mut arguments = Map::new();
    let mut places = parameters.iter();
    loop {
        cursor.space();
        if cursor.skip(")")? {
            return Ok(arguments);
        }
        let mut named = *cursor;
        let name = named.take_while(|c| c.is_alphanumeric() || c == '_');
        named.space();
        let (name, given) = if named.peek()? == '=' && !name.is_empty() {
            named.next()?;
            named.space();
            *cursor = named;
            (name.to_owned(), literal(cursor, DEPTH)?)
        } else {
            let given = literal(cursor, DEPTH)?;
            (places.next().ok_or(Stop::Wrong)?.clone(), given)
        };
        if arguments.insert(name, given).is_some() {
            return Err(Stop::Wrong);
        }
        cursor.space();
        if !cursor.skip(",")? && cursor.peek()? != ')' {
            return Err(Stop::Wrong);
        }
    }
}

fn literal(cursor: &mut Cursor<'_>, depth: usize) -> Read<Value> {
    let depth = depth.checked_sub(1).ok_or(Stop::Wrong)?;
    match cursor.peek()? {
        '"' | '\'' => string(cursor).map(Value::String),
        '[' => list(cursor, "]", depth),
        '(' => list(cursor, ")", depth),
        '{' => dictionary(cursor, depth),
        c if c.is_ascii_digit() || "+-.".contains(c) => number(cursor),
        _ => {
            let word = cursor.take_while(|c| c.is_alphanumeric() || c == '_');
            cursor.peek()?;
            match word {
                "True" | "true" => Ok(true.into()),
                "False" | "false" => Ok(false.into()),
                "None" | "null" => Ok(Value::Null),
                _ => Err(Stop::Wrong),
            }
        }
    }
}

fn list(cursor: &mut Cursor<'_>, close: &str, depth: usize) -> Read<Value> {
    cursor.next()?;
    let mut items = Vec::new();
    loop {
        cursor.space();
        if cursor.skip(close)? {
            return Ok(Value::Array(items));
        }
        items.push(literal(cursor, depth)?);
        cursor.space();
        if !cursor.skip(",")? && !cursor.rest().starts_with(close) {
            cursor.peek()?;
            return Err(Stop::Wrong);
        }
    }
}

fn dictionary(cursor: &mut Cursor<'_>, depth: usize) -> Read<Value> {
    cursor.next()?;
    let mut fields = Map::new();
    loop {
        cursor.space();
        if cursor.skip("}")? {
            return Ok(Value::Object(fields));
        }
        let key = string(cursor)?;
        cursor.space();
        cursor.expect(":")?;
        cursor.space();
        fields.insert(key, literal(cursor, depth)?);
        cursor.space();
        if !cursor.skip(",")? && cursor.peek()? != '}' {
            return Err(Stop::Wrong);
        }
    }
}

fn number(cursor: &mut Cursor<'_>) -> Read<Value> {
    let text = cursor.take_while(|c| c.is_ascii_alphanumeric() || "+-._".contains(c));
    cursor.peek()?;
    let text = text.replace('_', "");
    if let Ok(integer) = text.parse::<i64>() {
        return Ok(integer.into());
    }
    let number = text.parse().ok().and_then(Number::from_f64);
    number.map(Value::Number).ok_or(Stop::Wrong)
}

fn string(cursor: &mut Cursor<'_>) -> Read<String> {
    let quote = cursor.next()?;
    if quote != '"' && quote != '\'' {
        return Err(Stop::Wrong);
    }
    let long = String::from_iter([quote; 3]);
    let mut close = quote.to_string();
    // Two quotes are an empty string or the beginning of a long one: the next letter tells.
    let mut after = *cursor;
    if after.next()? == quote {
        if after.peek()? != quote {
            *cursor = after;
            return Ok(String::new());
        }
        after.next()?;
        *cursor = after;
        close = long;
    }
    let mut text = String::new();
    loop {
        if cursor.skip(&close)? {
            return Ok(text);
        }
        match cursor.next()? {
            '\\' => escape(cursor, &mut text)?,
            '\n' if close.len() == 1 => return Err(Stop::Wrong),
            letter => text.push(letter),
        }
    }
}

fn escape(cursor: &mut Cursor<'_>, text: &mut String) -> Read<()> {
    let letter = match cursor.next()? {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        '0' => '\0',
        '\n' => return Ok(()),
        'x' => code(cursor, 2)?,
        'u' => code(cursor, 4)?,
        'U' => code(cursor, 8)?,
        same @ ('\\' | '\'' | '"') => same,
        other => {
            text.push('\\');
            other
        }
    };
    text.push(letter);
    Ok(())
}

fn code(cursor: &mut Cursor<'_>, digits: usize) -> Read<char> {
    let mut code = 0;
    for _ in 0..digits {
        code = code * 16 + cursor.next()?.to_digit(16).ok_or(Stop::Wrong)?;
    }
    char::from_u32(code).ok_or(Stop::Wrong)
}
