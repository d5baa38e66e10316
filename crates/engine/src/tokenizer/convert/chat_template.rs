//! Chat templates between the two formats, with their names where a model has several.

use biplane_models::checkpoint::write::MetadataValue;
use std::path::Path;

use biplane_models::checkpoint::GgufMetadata;
use serde_json::{Value, json};

use crate::{
    Result,
    tokenizer::{
        Error,
        load::{read, read_json},
    },
};

const DEFAULT: &str = "default";
/// The template for all that has none of its own; others' names follow after a dot.
const KEY: &str = "tokenizer.chat_template";
/// The others' names.
const NAMES: &str = "tokenizer.chat_templates";

/// (name, template); the usual one is called `default`.
pub(super) type Templates = Vec<(String, String)>;

/// The templates of a GGUF file.
pub(super) fn from_gguf(metadata: &GgufMetadata) -> Result<Templates> {
    let mut templates = Templates::new();
    if let Some(text) = metadata.optional_str(KEY)? {
        templates.push((DEFAULT.into(), text.into()));
    }
    for name in metadata.optional_array_str(NAMES)?.unwrap_or_default() {
        let text = metadata.str(&format!("{KEY}.{name}"))?;
        templates.push((name.into(), text.into()));
    }
    Ok(templates)
}

/// The templates as `chat_template` in tokenizer_config.json.
pub(super) fn to_json(templates: &Templates) -> Option<Value> {
    match templates.as_slice() {
        [] => None,
        [(name, text)] if name == DEFAULT => Some(json!(text)),
        several => Some(
            several
                .iter()
                .map(|(name, text)| json!({"name": name, "template": text}))
                .collect(),
        ),
    }
}

/// The templates of a directory, found where [`template::find`](crate::template::find) finds them.
pub(super) fn from_dir(dir: &Path) -> Result<Templates, Error> {
    if let Some(text) = read_text(&dir.join("chat_template.jinja"))? {
        let mut templates = vec![(DEFAULT.into(), text)];
        templates.extend(beside(&dir.join("additional_chat_templates"))?);
        return Ok(templates);
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let path = dir.join(file);
        let config = read_json(&path)?.unwrap_or_default();
        match config.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => return Ok(vec![(DEFAULT.into(), text.clone())]),
            Some(listed) => {
                return named(listed)
                    .ok_or_else(|| malformed(&path, "chat_template is neither a text nor a list"));
            }
        }
    }
    Ok(Templates::new())
}

/// The templates as metadata of a GGUF file.
pub(super) fn to_pairs(templates: Templates) -> Vec<(String, MetadataValue)> {
    let mut names = Vec::new();
    let mut pairs = Vec::new();
    for (name, text) in templates {
        let key = match name.as_str() {
            DEFAULT => KEY.to_owned(),
            _ => format!("{KEY}.{name}"),
        };
        if name != DEFAULT {
            names.push(name);
        }
        pairs.push((key, MetadataValue::String(text)));
    }
    if !names.is_empty() {
        pairs.push((NAMES.into(), MetadataValue::Strings(names)));
    }
    pairs
}

fn named(listed: &Value) -> Option<Templates> {
    let entry = |entry: &Value| {
        let text = |key| Some(entry.get(key)?.as_str()?.to_owned());
        Some((text("name")?, text("template")?))
    };
    listed.as_array()?.iter().map(entry).collect()
}

/// The `.jinja` files of a folder, by name.
fn beside(folder: &Path) -> Result<Templates, Error> {
    let io = |source| Error::Io {
        path: folder.to_owned(),
        source,
    };
    if !folder.is_dir() {
        return Ok(Templates::new());
    }
    let mut templates = Templates::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        if path.extension().is_some_and(|e| e == "jinja")
            && let Some(name) = name
            && let Some(text) = read_text(&path)?
        {
            templates.push((name.to_owned(), text));
        }
    }
    templates.sort();
    Ok(templates)
}

fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let utf8 = |bytes| String::from_utf8(bytes).map_err(|_| malformed(path, "not UTF-8"));
    read(path)?.map(utf8).transpose()
}

fn malformed(path: &Path, reason: &str) -> Error {
    Error::Malformed {
        origin: path.display().to_string(),
        reason: reason.into(),
    }
}
