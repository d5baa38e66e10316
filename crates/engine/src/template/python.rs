//! Values written as Python writes them.

use std::fmt::{self, Write};

use minijinja::{Value, value::ValueKind};
use serde_json::Value as Json;

/// Deepest nesting of lists and objects that is written; JSON itself is read to 128.
const DEPTH: usize = 200;

/// A value that occurs in itself many times is small in memory and has no end as text.
pub(super) const MAX_VALUES: usize = 1_000_000;

/// `str(value)`; none for a value that is too large.
pub(super) fn str(value: &Value) -> Option<String> {
    let mut text = String::new();
    write_str(value, &mut text).ok()?;
    Some(text)
}

/// `str(value)`; undefined is nothing, as Jinja prints it. Fails for a value that is too large.
pub(super) fn write_str(value: &Value, out: &mut (impl Write + ?Sized)) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => out.write_str(value.as_str().unwrap_or_default()),
        _ => write_repr(value, out, DEPTH, &mut { MAX_VALUES }),
    }
}

fn write_repr(
    value: &Value,
    out: &mut (impl Write + ?Sized),
    depth: usize,
    left: &mut usize,
) -> fmt::Result {
    *left = left.checked_sub(1).ok_or(fmt::Error)?;
    let depth = depth.checked_sub(1).ok_or(fmt::Error)?;
    match value.kind() {
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&float(number)),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::String => out.write_str(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Seq => {
            out.write_char('[')?;
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.write_str(", ")?;
                }
                write_repr(&item, out, depth, left)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.write_str(", ")?;
                }
                write_repr(&key, out, depth, left)?;
                out.write_str(": ")?;
                write_repr(&value.get_item(&key).unwrap_or_default(), out, depth, left)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// `repr` of a string.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `repr` of a float: the shortest digits that read back as the same number.
fn float(number: f64) -> String {
    let size = number.abs();
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{number:?}");
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `json.dumps(value, indent=indent, ensure_ascii=ascii)`.
pub(super) fn json(value: &Json, indent: Option<usize>, ascii: bool) -> String {
    let mut out = String::new();
    write_json(value, indent, ascii, 0, &mut out);
    out
}

fn write_json(value: &Json, indent: Option<usize>, ascii: bool, level: usize, out: &mut String) {
    let item = |first: bool, level: usize, out: &mut String| match indent {
        Some(width) => {
            out.push_str(if first { "\n" } else { ",\n" });
            out.extend(std::iter::repeat_n(' ', width * level));
        }
        None if !first => out.push_str(", "),
        None => {}
    };
    let close = |empty: bool, bracket: char, out: &mut String| {
        if let Some(width) = indent
            && !empty
        {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * level));
        }
        out.push(bracket);
    };
    match value {
        Json::Array(list) => {
            out.push('[');
            for (i, value) in list.iter().enumerate() {
                item(i == 0, level + 1, out);
                write_json(value, indent, ascii, level + 1, out);
            }
            close(list.is_empty(), ']', out);
        }
        Json::Object(map) => {
            out.push('{');
            for (i, (key, value)) in map.iter().enumerate() {
                item(i == 0, level + 1, out);
                write_json_text(key, ascii, out);
                out.push_str(": ");
                write_json(value, indent, ascii, level + 1, out);
            }
            close(map.is_empty(), '}', out);
        }
        Json::String(text) => write_json_text(text, ascii, out),
        Json::Number(number) if number.is_f64() => {
            out.push_str(&number.as_f64().map_or_else(|| number.to_string(), float));
        }
        other => out.push_str(&other.to_string()),
    }
}

fn write_json_text(text: &str, ascii: bool, out: &mut String) {
    let text = Json::from(text).to_string();
    if !ascii {
        out.push_str(&text);
        return;
    }
    for letter in text.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_look_as_in_python() {
        let value =
            json!({"a": [1, 2.0, null, true, "it's", "a\n\"b'"], "b": {}, "c": 1e20, "d": 1e-5});
        assert_eq!(
            str(&Value::from(minijinja::value::Serde(&value))).unwrap(),
            r#"{'a': [1, 2.0, None, True, "it's", 'a\n"b\''], 'b': {}, 'c': 1e+20, 'd': 1e-05}"#
        );
        assert_eq!(
            json(&value, None, false),
            r#"{"a": [1, 2.0, null, true, "it's", "a\n\"b'"], "b": {}, "c": 1e+20, "d": 1e-05}"#
        );
        assert_eq!(
            json(&json!({"k": ["é", []]}), Some(2), false),
            "{\n  \"k\": [\n    \"é\",\n    []\n  ]\n}"
        );
        assert_eq!(json(&json!("é🌍"), None, true), r#""\u00e9\ud83c\udf0d""#);
    }
}
