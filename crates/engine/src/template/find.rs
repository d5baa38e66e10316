//! Where a model keeps its chat template.

use std::{fs, io, path::Path};

use serde_json::Value;

use super::{Error, Result};
use crate::files;

/// The text of a chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The template, for all that has none of its own.
    pub default: String,
    /// The template for conversations with tools, where the model has two.
    pub tool_use: Option<String>,
    /// Where it comes from, for errors.
    pub origin: String,
}

impl Source {
    fn new(text: String, origin: String) -> Self {
        Self {
            default: text,
            tool_use: None,
            origin,
        }
    }
}

/// A template that the user names: a file, or the template itself.
///
/// # Errors
/// [`Error::Io`] when it is a file's name and the file cannot be read.
pub fn explicit(text_or_path: &str) -> Result<Source> {
    if text_or_path.contains("{%") || text_or_path.contains("{{") {
        return Ok(Source::new(
            text_or_path.to_owned(),
            "the command line".into(),
        ));
    }
    let path = Path::new(text_or_path);
    let text = fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.into(),
        source,
    })?;
    Ok(Source::new(text, text_or_path.to_owned()))
}

/// The template of a model directory: `chat_template.jinja`, else `chat_template.json`, else in
/// `tokenizer_config.json`.
///
/// # Errors
/// [`Error::None`] when there is none.
pub fn find(dir: impl AsRef<Path>) -> Result<Source> {
    let dir = dir.as_ref();
    let path = dir.join("chat_template.jinja");
    if let Some(text) = read(&path)? {
        let mut source = Source::new(text, path.display().to_string());
        source.tool_use = read(&dir.join("additional_chat_templates/tool_use.jinja"))?;
        return Ok(source);
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = dir.join(name);
        let Some(text) = read(&path)? else {
            continue;
        };
        let origin = path.display().to_string();
        let json: Value = serde_json::from_str(&text).map_err(|error| Error::Malformed {
            origin: origin.clone(),
            reason: error.to_string(),
        })?;
        match json.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(value) => return from_json(value, origin),
        }
    }
    Err(Error::None {
        origin: dir.display().to_string(),
    })
}

/// The template of a GGUF file, `tokenizer.chat_template`; `origin` is the file.
///
/// # Errors
/// [`Error::None`] when there is none.
pub fn from_gguf(template: Option<&str>, origin: impl AsRef<Path>) -> Result<Source> {
    let origin = origin.as_ref().display().to_string();
    match template {
        Some(text) => Ok(Source::new(text.to_owned(), origin)),
        None => Err(Error::None { origin }),
    }
}

/// A text, or a list of `{"name": .., "template": ..}`.
fn from_json(value: &Value, origin: String) -> Result<Source> {
    if let Some(text) = value.as_str() {
        return Ok(Source::new(text.to_owned(), origin));
    }
    let named = |name: &str| {
        let entries = value.as_array()?;
        let entry = entries
            .iter()
            .find(|e| e.get("name").and_then(Value::as_str) == Some(name))?;
        entry.get("template")?.as_str().map(str::to_owned)
    };
    let Some(default) = named("default") else {
        return Err(Error::Malformed {
            origin,
            reason: "chat_template is neither a text nor a list with one named \"default\"".into(),
        });
    };
    Ok(Source {
        default,
        tool_use: named("tool_use"),
        origin,
    })
}

fn read(path: &Path) -> Result<Option<String>> {
    let text = |bytes| String::from_utf8(bytes).map_err(io::Error::other);
    files::read(path)
        .and_then(|bytes| bytes.map(text).transpose())
        .map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_template_wins() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let error = find(dir.path()).unwrap_err();
        assert!(matches!(error, Error::None { .. }) && error.to_string().contains("--raw"));

        write("tokenizer_config.json", r#"{"chat_template": null}"#);
        assert!(matches!(find(dir.path()), Err(Error::None { .. })));
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
        );
        let both = find(dir.path()).unwrap();
        assert_eq!(
            (both.default.as_str(), both.tool_use.as_deref()),
            ("d", Some("t"))
        );
        write("chat_template.json", r#"{"chat_template": "j"}"#);
        assert_eq!(find(dir.path()).unwrap().default, "j");
        write("chat_template.jinja", "file");
        assert_eq!(find(dir.path()).unwrap().default, "file");
        assert_eq!(
            explicit("{{ messages }}").unwrap().default,
            "{{ messages }}"
        );
        let path = dir.path().join("chat_template.jinja");
        assert_eq!(explicit(path.to_str().unwrap()).unwrap().default, "file");
        assert!(explicit("no/such/file").is_err());
        assert!(
            from_gguf(None, "m.gguf")
                .unwrap_err()
                .to_string()
                .starts_with("m.gguf")
        );
    }
}
