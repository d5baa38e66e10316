//! The Jinja environment that transformers gives to chat templates.

use std::{borrow::Cow, error::Error as _, fmt};

use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};

use super::python;

/// Steps a rendering may take; the longest template over a long conversation needs a hundredth.
const FUEL: u64 = 1_000_000;

/// Depth of macros and loops; each macro counts several.
const RECURSION: usize = 150;

/// The words of a template's `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    // Without delimiters of its own the configuration is always valid.
    if let Ok(syntax) = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
    {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        python::write_str(value, out).map_err(|_| Error::from(ErrorKind::WriteFailure))
    });
    // They write values without end, whatever fuel is left; no template needs them.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment.add_filter("string", |value: &Value| {
        python::str(value).ok_or_else(|| too_large("text"))
    });
    environment.add_filter("tojson", tojson);
    // Python's None cannot be iterated.
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_function("raise_exception", |text: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text.to_owned())
            .with_source(Refusal(text.to_owned())))
    });
    environment
}

/// The words of `raise_exception`, if that is what stopped a rendering.
pub(super) fn refusal(error: &Error) -> Option<String> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Refusal(text)) = cause.downcast_ref() {
            return Some(text.clone());
        }
        source = cause.source();
    }
    None
}

fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<usize>,
    args: Kwargs,
) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(
            ErrorKind::UndefinedError,
            "undefined is no JSON",
        ));
    }
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get::<Option<usize>>("indent")?,
    };
    let ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    args.assert_all_used()?;
    check_size(value, &mut { python::MAX_VALUES }, MAX_JSON_DEPTH)?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("an indent of more than {MAX_INDENT}"),
        ));
    }
    let mut json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    if sorted {
        json.sort_all_objects();
    }
    let text = python::json(&json, indent, ascii);
    state.consume_fuel((text.len() / 64) as u64)?;
    Ok(Value::from(text))
}

/// Values within values within values, …: a template can nest them without end.
const MAX_JSON_DEPTH: usize = 128;
const MAX_INDENT: usize = 16;

fn too_large(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("a value too large for {what}"),
    )
}

/// Errors for a value that is too deep or too large to become JSON.
fn check_size(value: &Value, left: &mut usize, depth: usize) -> Result<(), Error> {
    *left = left.checked_sub(1).ok_or_else(|| too_large("JSON"))?;
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(());
    }
    let depth = depth.checked_sub(1).ok_or_else(|| too_large("JSON"))?;
    for item in value.try_iter()? {
        if is_map {
            check_size(&value.get_item(&item)?, left, depth)?;
        } else {
            check_size(&item, left, depth)?;
        }
    }
    Ok(())
}

/// transformers' `{% generation %}` only marks text for training: an `if` that always holds keeps
/// what the tag's dashes do to the space around it.
pub(super) fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = tag;
        let Some((inside, _)) = tag.split_once("%}") else {
            continue;
        };
        let word = inside.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inside.replacen(word, instead, 1));
        rest = tag.get(inside.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_leave_only_their_dashes() {
        let source = "a {%- generation -%} {{ add_generation_prompt }} {% endgeneration %}{% if generation %}";
        let expected =
            "a {%- if true -%} {{ add_generation_prompt }} {% endif %}{% if generation %}";
        assert_eq!(without_generation_tags(source), expected);
        assert_eq!(
            without_generation_tags("generation {% open"),
            "generation {% open"
        );
    }
}
