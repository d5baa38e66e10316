//! What a checkpoint says about text: tokenizer, chat template, where answers end, how to sample.

use std::{borrow::Cow, path::Path, sync::Arc};

use biplane_models::checkpoint::{GgufMetadata, Metadata, Opened};
use serde_json::Value;

use crate::{
    Result, SamplingParams,
    template::{self, ChatTemplate},
    tokenizer::{GgufVocab, Tokenizer},
};

/// Everything about text that a checkpoint says.
pub(crate) struct Texts {
    pub tokenizer: Tokenizer,
    pub stop_ids: Vec<u32>,
    pub sampling: SamplingParams,
}

impl Texts {
    pub fn read(opened: &Opened) -> Result<Self> {
        Self::read_with(opened, None)
    }

    /// With another tokenizer than the checkpoint's own: a `tokenizer.json`.
    pub fn read_with(opened: &Opened, tokenizer: Option<&Path>) -> Result<Self> {
        match &opened.metadata {
            Metadata::HuggingFace {
                config,
                generation_config,
                dir,
            } => {
                let tokenizer = match tokenizer {
                    Some(path) => Tokenizer::from_file(path)?,
                    None => Tokenizer::from_dir(dir)?,
                };
                let generation = generation_config.as_ref();
                let eos = [Some(config), generation];
                let eos = eos.iter().flatten().filter_map(|c| c.get("eos_token_id"));
                Ok(Texts {
                    stop_ids: tokenizer.stop_ids(eos)?,
                    sampling: generation.map_or_else(SamplingParams::default, recommended),
                    tokenizer,
                })
            }
            Metadata::Gguf(metadata) => {
                let tokenizer = match tokenizer {
                    Some(path) => Tokenizer::from_file(path)?,
                    None => Tokenizer::from_gguf(gguf_vocab(metadata)?)?,
                };
                Ok(Texts {
                    stop_ids: tokenizer.stop_ids([])?,
                    sampling: SamplingParams::default(),
                    tokenizer,
                })
            }
        }
    }
}

/// What `generation_config.json` recommends; greedy unless it says `do_sample`.
fn recommended(config: &Value) -> SamplingParams {
    let mut sampling = SamplingParams::default();
    if config.get("do_sample").and_then(Value::as_bool) != Some(true) {
        return sampling;
    }
    let number = |key: &str| config.get(key).and_then(Value::as_f64).map(|v| v as f32);
    sampling.temperature = number("temperature").unwrap_or(1.0);
    sampling.top_p = number("top_p").unwrap_or(1.0);
    sampling.min_p = number("min_p").unwrap_or(0.0);
    sampling.top_k = number("top_k").map_or(0, |k| k as usize);
    sampling
}

/// The chat template: the user's, else the model's own. A model without one still completes text, so
/// that the error waits until a conversation is asked for; a broken one of the user's does not.
pub(crate) fn find_template(
    opened: &Opened,
    given: Option<template::Source>,
    tokenizer: &Tokenizer,
) -> Result<Result<ChatTemplate, Arc<template::Error>>> {
    let compile = |source| ChatTemplate::new(source, tokenizer.bos_token(), tokenizer.eos_token());
    if let Some(source) = given {
        return Ok(Ok(compile(source)?));
    }
    let source = match &opened.metadata {
        Metadata::HuggingFace { dir, .. } => template::find(dir),
        Metadata::Gguf(m) => {
            template::from_gguf(m.optional_str("tokenizer.chat_template")?, m.path())
        }
    };
    Ok(source.and_then(compile).map_err(Arc::new))
}

/// Marks the names of control tokens in every text of a message that is ready to be rendered, and in
/// the names of its fields.
pub(crate) fn guard(value: Value, tokenizer: &Tokenizer) -> Result<Value> {
    Ok(match value {
        Value::String(text) => Value::String(tokenizer.guard(&text)?.into_owned()),
        Value::Array(items) => {
            let items = items
                .into_iter()
                .map(|item| guard(item, tokenizer))
                .collect::<Result<_>>()?;
            Value::Array(guard_borders(items, tokenizer)?)
        }
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, field)| {
                let key = tokenizer.guard(&key)?.into_owned();
                Ok((key, guard(field, tokenizer)?))
            })
            .collect::<Result<_>>()?,
        other => other,
    })
}

/// Marks names that begin in one part of a message and end in a later one: templates print parts
/// side by side.
fn guard_borders(mut parts: Vec<Value>, tokenizer: &Tokenizer) -> Result<Vec<Value>> {
    let text_of = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
    let texts: Vec<Option<String>> = parts.iter().map(text_of).collect();
    let joined: String = texts.iter().flatten().map(String::as_str).collect();
    if texts.iter().flatten().count() < 2 {
        return Ok(parts);
    }
    let guarded = tokenizer.guard_more(&joined)?;
    let mut rest = guarded.chars().peekable();
    for (part, text) in parts.iter_mut().zip(texts) {
        let Some(text) = text else { continue };
        let mut own = String::with_capacity(text.len());
        for letter in text.chars() {
            // Marks that are new stand before letters of the text.
            while let Some(mark) = rest.next_if(|&c| c != letter) {
                own.push(mark);
            }
            own.extend(rest.next());
        }
        if let Some(place) = part.get_mut("text") {
            *place = own.into();
        }
    }
    Ok(parts)
}

/// The vocabulary as a GGUF file keeps it.
pub(crate) fn gguf_vocab(m: &GgufMetadata) -> Result<GgufVocab<'_>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    fn strings(list: Vec<&str>) -> Vec<Cow<'_, str>> {
        list.into_iter().map(Cow::Borrowed).collect()
    }
    let id = |name: &str| m.optional_u32(&key(name));
    let flag = |name: &str| m.optional_bool(&key(name));
    Ok(GgufVocab {
        model: m.str(&key("model"))?.to_owned(),
        pre: m.optional_str(&key("pre"))?.map(str::to_owned),
        tokens: strings(m.array_str(&key("tokens"))?),
        scores: m.optional_array_f32(&key("scores"))?.unwrap_or_default(),
        token_types: m
            .optional_array_i32(&key("token_type"))?
            .unwrap_or_default(),
        merges: strings(m.optional_array_str(&key("merges"))?.unwrap_or_default()),
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
    })
}
