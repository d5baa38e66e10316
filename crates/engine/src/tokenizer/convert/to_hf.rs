//! Hugging Face's files from a GGUF file's metadata.

use std::{fs, path::Path};

use biplane_models::checkpoint::GgufMetadata;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokenizers::PostProcessorWrapper;

use super::{HUGGING_FACE, chat_template, inconvertible};
use crate::{
    Result, texts,
    tokenizer::{Error, GgufVocab, Tokenizer, gguf::Kind},
};

/// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
/// `generation_config.json` to `dir`, which must exist; files of these names are replaced.
///
/// The vocabulary tokenizes as the GGUF file's does here. Chat templates go to
/// `tokenizer_config.json`, where every version of transformers and mlx-lm looks for them.
/// `generation_config.json` names all tokens at which answers end, of which GGUF has only some.
/// Unused tokens that pad the vocabulary's end are left out, as they are in tokenizer.json files.
///
/// # Errors
/// [`crate::Error::Tokenizer`] for a vocabulary that cannot be read, or that has two tokens spelled
/// alike; [`crate::Error::Model`] for metadata of the wrong type; the former with
/// [`Error::Io`] for a file that cannot be written.
pub fn write_hf_files(metadata: &GgufMetadata, dir: &Path) -> Result<()> {
    let mut vocab = texts::gguf_vocab(metadata)?;
    drop_padding(&mut vocab);
    let (unk, pad, eos, add_eos) = (vocab.unk, vocab.pad, vocab.eos, vocab.add_eos);
    let count = vocab.tokens.len();
    let tokenizer = Tokenizer::from_gguf(vocab)?;
    if tokenizer.inner.get_vocab_size(true) != count {
        let what = "two tokens with the same spelling, as the vocabulary has";
        let origin = metadata.path().display().to_string();
        return Err(inconvertible(&origin, HUGGING_FACE, what).into());
    }
    let add_eos = add_eos == Some(true) && eos.is_some();

    let mut names = Map::new();
    for (key, id) in [("bos_token", tokenizer.bos), ("eos_token", eos)] {
        names.extend(name(&tokenizer, id).map(|name| (key.to_owned(), name)));
    }
    for (key, id) in [("unk_token", unk), ("pad_token", pad)] {
        let Some(id) = id else { continue };
        // transformers would search texts for it, and so cut words that it is a part of.
        if !is_added(&tokenizer, id) {
            tracing::warn!("{key} {id} is an ordinary token: left out of tokenizer_config.json");
            continue;
        }
        names.extend(name(&tokenizer, Some(id)).map(|name| (key.to_owned(), name)));
    }
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.extend(names.clone());
    config.insert("add_bos_token".into(), json!(tokenizer.add_bos));
    config.insert("add_eos_token".into(), json!(add_eos));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    let context = format!("{}.context_length", metadata.architecture()?);
    if let Some(length) = metadata.optional_u64(&context)? {
        config.insert("model_max_length".into(), json!(length));
    }
    if let Some(templates) = chat_template::to_json(&chat_template::from_gguf(metadata)?) {
        config.insert("chat_template".into(), templates);
    }
    let generation = generation_config(&tokenizer, eos, pad)?;

    let mut inner = tokenizer.inner.clone();
    let bos = tokenizer.bos.filter(|_| tokenizer.add_bos);
    inner.with_post_processor(around(&tokenizer, bos, eos.filter(|_| add_eos))?);
    write(&dir.join("tokenizer.json"), &inner)?;
    write(&dir.join("tokenizer_config.json"), &config)?;
    write(&dir.join("special_tokens_map.json"), &names)?;
    write(&dir.join("generation_config.json"), &generation)
}

/// Takes away the unused tokens `[PADn]` that fill a vocabulary up to the rows of the embedding.
pub(super) fn drop_padding(vocab: &mut GgufVocab<'_>) {
    let named = [vocab.bos, vocab.eos, vocab.eot, vocab.unk, vocab.pad];
    let is_padding = |id: usize, token: &str| {
        vocab.token_types.get(id) == Some(&(Kind::Unused as i32))
            && token == format!("[PAD{id}]")
            && !named.iter().flatten().any(|&named| named as usize == id)
    };
    let tokens = vocab.tokens.iter().enumerate().rev();
    let padding = tokens.take_while(|(id, token)| is_padding(*id, token));
    let kept = vocab.tokens.len() - padding.count();
    vocab.tokens.truncate(kept);
    vocab.token_types.truncate(kept);
    vocab.scores.truncate(kept);
}

/// A token's spelling in tokenizer.json.
fn name(tokenizer: &Tokenizer, id: Option<u32>) -> Option<Value> {
    tokenizer.inner.id_to_token(id?).map(Value::String)
}

fn is_added(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer
        .parsing
        .get_added_tokens_decoder()
        .contains_key(&id)
}

/// Beginning-of-sequence and padding ids, and all ids at which generation ends, the tokenizer's
/// own first: transformers takes that one for padding where there is no other.
fn generation_config(
    tokenizer: &Tokenizer,
    eos: Option<u32>,
    pad: Option<u32>,
) -> Result<Map<String, Value>> {
    let mut ends = tokenizer.stop_ids([])?;
    ends.sort_by_key(|&id| Some(id) != eos);
    let ends = match ends.as_slice() {
        [] => None,
        [one] => Some(json!(one)),
        several => Some(json!(several)),
    };
    let bos = tokenizer.bos.map(Value::from);
    Ok([
        ("bos_token_id", bos),
        ("eos_token_id", ends),
        ("pad_token_id", pad.map(Value::from)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    .collect())
}

/// Puts `bos` before each text and `eos` after it; none for neither.
fn around(
    tokenizer: &Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
) -> Result<Option<PostProcessorWrapper>> {
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let mut special = Map::new();
    let mut piece = |id: Option<u32>, type_id: u32| {
        let token = name(tokenizer, id)?;
        let key = token.as_str()?.to_owned();
        special.insert(key, json!({"id": token, "ids": [id], "tokens": [token]}));
        Some(json!({"SpecialToken": {"id": token, "type_id": type_id}}))
    };
    let mut text = |letter: &str, type_id: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": letter, "type_id": type_id}});
        let parts = [piece(bos, type_id), Some(text), piece(eos, type_id)];
        parts.into_iter().flatten().collect()
    };
    let first = text("A", 0);
    let pair = [first.clone(), text("B", 1)].concat();
    let template = json!({
        "type": "TemplateProcessing",
        "single": first,
        "pair": pair,
        "special_tokens": special,
    });
    let template = serde_json::from_value(template).map_err(|error| Error::Malformed {
        origin: "tokenizer.ggml.bos_token_id".into(),
        reason: error.to_string(),
    })?;
    Ok(Some(template))
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_string_pretty(value).map_err(|error| io(error.into()))?;
    Ok(fs::write(path, text + "\n").map_err(io)?)
}
