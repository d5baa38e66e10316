//! A GGUF file's metadata from Hugging Face's files.

use biplane_models::checkpoint::write::MetadataValue;
use std::{borrow::Cow, collections::HashSet, path::Path};

use serde_json::Value;
use tokenizers::ModelWrapper;

use super::{
    GGUF, chat_template, inconvertible,
    scheme::{Scheme, scheme},
    scores::{Scores, scores},
};
use crate::tokenizer::{
    Error, GgufVocab, Result, Specials, Tokenizer, caught,
    gguf::{Kind, SPACE},
    load::{read_json, special},
    model::Model,
    token_id,
};

/// Tokens that end a turn, as llama.cpp looks for them.
const TURN_ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end|>",
    "<|eot|>",
];

/// The keys `tokenizer.ggml.*` and `tokenizer.chat_template` for the tokenizer of a model directory:
/// from `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, where answers end
/// also from `generation_config.json` and `config.json`.
///
/// `vocab_size` is the rows of the embedding. Rows without a token get an unused one called `[PADn]`;
/// added tokens beyond them, which the model cannot know, are left out with a warning.
///
/// The written vocabulary is read back, and must encode tokens' texts as the original does.
///
/// # Errors
/// Those of [`Tokenizer::from_dir`]; [`Error::Inconvertible`] for what GGUF has no place for: other
/// models than BPE, normalizers, pre-tokenizers without a name there, added tokens that take the
/// spaces beside them.
pub fn gguf_tokenizer_pairs(dir: &Path, vocab_size: usize) -> Result<Vec<(String, MetadataValue)>> {
    let origin = dir.join("tokenizer.json").display().to_string();
    let original = Tokenizer::from_dir(dir)?;
    let vocab = vocab(&origin, dir, &original, vocab_size)?;
    let mut pairs = pairs(vocab);
    pairs.extend(chat_template::to_pairs(chat_template::from_dir(dir)?));
    Ok(pairs)
}

fn vocab(
    origin: &str,
    dir: &Path,
    original: &Tokenizer,
    vocab_size: usize,
) -> Result<GgufVocab<'static>> {
    let bpe = match original.inner.get_model() {
        Model::Bpe(bpe) => bpe,
        Model::Other(ModelWrapper::BPE(_)) => {
            let what = "BPE that marks a word's inside or end, or drops merges out";
            return Err(inconvertible(origin, GGUF, what));
        }
        Model::Other(other) => {
            let model = serde_json::to_value(other).unwrap_or_default();
            let what = format!("a tokenizer model {}, only BPE", model["type"]);
            return Err(inconvertible(origin, GGUF, what));
        }
    };
    let scheme = scheme(origin, &original.inner, &bpe.rules)?;
    let read = |file: &str| Ok(read_json(&dir.join(file))?.unwrap_or_default());
    let (config, map) = (
        read("tokenizer_config.json")?,
        read("special_tokens_map.json")?,
    );
    let id = |key| special(&original.inner, origin, key, &config, &map);

    let unk = match id("unk_token")? {
        Some(id) => Some(id),
        None => {
            let unknown = bpe.rules.unknown.as_deref();
            unknown.and_then(|unk| original.id_of(unk))
        }
    };
    let (tokens, kinds) = tokens(origin, original, vocab_size, unk, &scheme)?;
    let merges = bpe.merges();
    let mut vocab = GgufVocab {
        token_types: kinds.iter().map(|&kind| kind as i32).collect(),
        bos: original.bos,
        unk,
        pad: id("pad_token")?,
        add_bos: Some(original.add_bos),
        ..GgufVocab::default()
    };
    set_ends(
        origin,
        &mut vocab,
        original,
        &[read("generation_config.json")?, read("config.json")?],
    )?;
    vocab.add_eos = Some(adds_eos(origin, original, &vocab, &config)?);

    let mut exact = true;
    match scheme {
        Scheme::ByteLevel { pre } => {
            vocab.model = "gpt2".into();
            vocab.pre = Some(pre.into());
            vocab.add_space_prefix = Some(false);
            vocab.merges = merges
                .iter()
                .map(|(left, right)| format!("{left} {right}").into())
                .collect();
            vocab.tokens = tokens.into_iter().map(Cow::from).collect();
        }
        Scheme::SentencePiece { space_prefix } => {
            vocab.model = "llama".into();
            vocab.pre = Some("default".into());
            vocab.add_space_prefix = Some(space_prefix);
            Scores {
                values: vocab.scores,
                exact,
            } = scores(&tokens, &kinds, &merges);
            let written = tokens
                .into_iter()
                .zip(&kinds)
                .map(|(token, kind)| match kind {
                    // GGUF writes the spaces of user-defined tokens plainly.
                    Kind::UserDefined => token.replace(SPACE, " ").into(),
                    _ => token.into(),
                });
            vocab.tokens = written.collect();
        }
    }
    compare(origin, original, vocab.clone(), &kinds, exact)?;
    Ok(vocab)
}

/// Spellings as in tokenizer.json, and kinds, of `vocab_size` tokens.
fn tokens(
    origin: &str,
    original: &Tokenizer,
    vocab_size: usize,
    unk: Option<u32>,
    scheme: &Scheme,
) -> Result<(Vec<String>, Vec<Kind>)> {
    let sentence_piece = matches!(scheme, Scheme::SentencePiece { .. });
    let mut tokens: Vec<Option<(String, Kind)>> = vec![None; vocab_size];
    let bytes: HashSet<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut missing = bytes.len();
    for (token, id) in original.inner.get_vocab(false) {
        let kind = match sentence_piece && bytes.contains(&token) {
            true => {
                missing = missing.saturating_sub(1);
                Kind::Byte
            }
            false => Kind::Normal,
        };
        let added = original
            .parsing
            .get_added_tokens_decoder()
            .contains_key(&id);
        match tokens.get_mut(id as usize) {
            Some(place) => *place = Some((token, kind)),
            None if added => {}
            None => {
                let what = format!("token {id}, {token:?}, for an embedding of {vocab_size} rows");
                return Err(inconvertible(origin, GGUF, what));
            }
        }
    }
    if sentence_piece && missing > 0 {
        let what = format!("a vocabulary where {missing} of the 256 byte tokens are missing");
        return Err(inconvertible(origin, GGUF, what));
    }
    for (&id, token) in original.parsing.get_added_tokens_decoder() {
        let name = &token.content;
        if token.lstrip || token.rstrip || token.single_word {
            let what = format!("added token {name:?} with lstrip, rstrip or single_word");
            return Err(inconvertible(origin, GGUF, what));
        }
        let kind = match token.special {
            true if sentence_piece && unk == Some(id) => Kind::Unknown,
            true => Kind::Control,
            false => Kind::UserDefined,
        };
        match tokens.get_mut(id as usize) {
            Some(place) => *place = Some((name.clone(), kind)),
            None => tracing::warn!(
                "{origin}: token {id}, {name:?}, is beyond the embedding's {vocab_size} rows: left out"
            ),
        }
    }
    let padded = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), Kind::Unused)));
    Ok(padded.unzip())
}

/// Sets the tokens at which answers end. GGUF has one for a text, one for a turn and one for a
/// message; readers know more by their names.
fn set_ends(
    origin: &str,
    vocab: &mut GgufVocab<'_>,
    original: &Tokenizer,
    configs: &[Value],
) -> Result<()> {
    let listed = configs
        .iter()
        .filter_map(|config| config.get("eos_token_id"));
    let listed: Vec<&Value> = listed
        .flat_map(|ids| {
            ids.as_array()
                .map_or(std::slice::from_ref(ids), Vec::as_slice)
        })
        .collect();
    let by_name = original.stop_ids([])?;
    let mut ends = Vec::new();
    for id in listed.into_iter().filter(|id| !id.is_null()) {
        let id = token_id(id)?;
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    vocab.eos = original.eos.or(ends.first().copied());
    ends.retain(|id| Some(*id) != vocab.eos);
    let named = |id: u32, names: &[&str]| {
        original
            .inner
            .id_to_token(id)
            .is_some_and(|name| names.contains(&name.as_str()))
    };
    vocab.eom = ends.iter().copied().find(|&id| named(id, &["<|eom_id|>"]));
    let unknown: Vec<u32> = ends
        .iter()
        .copied()
        .filter(|id| !by_name.contains(id))
        .collect();
    vocab.eot = match unknown.as_slice() {
        [] => ends.iter().copied().find(|&id| named(id, TURN_ENDS)),
        [one] => Some(*one),
        several => {
            let what =
                format!("more than one further end of an answer, as eos_token_id has: {several:?}");
            return Err(inconvertible(origin, GGUF, what));
        }
    };
    Ok(())
}

/// Whether the end-of-sequence token goes after every text; other tokens around it are refused.
fn adds_eos(
    origin: &str,
    original: &Tokenizer,
    vocab: &GgufVocab<'_>,
    config: &Value,
) -> Result<bool> {
    let encode = |special| {
        caught(|| Ok(original.inner.encode("a", special)?.get_ids().to_vec()))
            .map_err(Error::Encode)
    };
    let (plain, whole) = (encode(false)?, encode(true)?);
    let mut rest = whole.as_slice();
    if let Some(bos) = original.bos
        && let Some(after) = rest.strip_prefix(&[bos])
        && plain.first() != Some(&bos)
    {
        rest = after;
    }
    let asked = config.get("add_eos_token").and_then(Value::as_bool);
    if rest == plain {
        return Ok(asked.unwrap_or(false));
    }
    let ended = vocab
        .eos
        .is_some_and(|eos| rest.strip_suffix(&[eos]) == Some(plain.as_slice()));
    if !ended {
        let what = "a post_processor that puts other tokens around a text than its begin and end";
        return Err(inconvertible(origin, GGUF, what));
    }
    Ok(asked.unwrap_or(true))
}

/// Letters of all sorts.
const SAMPLE: &str = "I'll say:  \"Größe\" (1234.5)\n\n\tif x >= 10 { 你好 🌍 }\r\n don't";

/// Reads the vocabulary back and encodes the text of every added token, and of all tokens unless
/// the merges are exactly the original's.
fn compare(
    origin: &str,
    original: &Tokenizer,
    vocab: GgufVocab<'_>,
    kinds: &[Kind],
    exact: bool,
) -> Result<()> {
    let prefix = vocab.model == "llama" && vocab.add_space_prefix == Some(true);
    let written = Tokenizer::from_gguf(vocab)?;
    let same = |text: &str| {
        let encode = |tokenizer: &Tokenizer| tokenizer.encode(text, Specials::Parse);
        match encode(original)? == encode(&written)? {
            true => Ok(()),
            false => Err(inconvertible(
                origin,
                GGUF,
                format!("how it tokenizes {text:?}"),
            )),
        }
    };
    same(SAMPLE)?;
    for (id, kind) in (0u32..).zip(kinds) {
        match kind {
            Kind::Control | Kind::Unknown | Kind::UserDefined => {
                same(&original.inner.id_to_token(id).unwrap_or_default())?;
            }
            Kind::Normal if !exact => {
                let bytes = original.token_bytes(id).unwrap_or_default();
                let text = std::str::from_utf8(bytes).unwrap_or_default();
                // Metaspace puts no space before a space, GGUF does.
                same(if prefix { text.trim_start() } else { text })?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn pairs(vocab: GgufVocab<'_>) -> Vec<(String, MetadataValue)> {
    let list = |items: Vec<Cow<'_, str>>| {
        let owned = items.into_iter().map(Cow::into_owned).collect::<Vec<_>>();
        (!owned.is_empty()).then_some(MetadataValue::Strings(owned))
    };
    let id = |id: Option<u32>| id.map(MetadataValue::U32);
    let flag = |flag: Option<bool>| flag.map(MetadataValue::Bool);
    let scores = (!vocab.scores.is_empty()).then_some(MetadataValue::F32s(vocab.scores));
    [
        ("model", Some(MetadataValue::String(vocab.model))),
        ("pre", vocab.pre.map(MetadataValue::String)),
        ("tokens", list(vocab.tokens)),
        ("scores", scores),
        ("token_type", Some(MetadataValue::I32s(vocab.token_types))),
        ("merges", list(vocab.merges)),
        ("bos_token_id", id(vocab.bos)),
        ("eos_token_id", id(vocab.eos)),
        ("eot_token_id", id(vocab.eot)),
        ("eom_token_id", id(vocab.eom)),
        ("unknown_token_id", id(vocab.unk)),
        ("padding_token_id", id(vocab.pad)),
        ("add_bos_token", flag(vocab.add_bos)),
        ("add_eos_token", flag(vocab.add_eos)),
        ("add_space_prefix", flag(vocab.add_space_prefix)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((format!("tokenizer.ggml.{key}"), value?)))
    .collect()
}
