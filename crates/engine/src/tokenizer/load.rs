//! Tokenizers from a model directory in Hugging Face's layout.

use std::{borrow::Cow, path::Path};

use serde_json::Value;
use tokenizers::AddedToken;

use super::{
    Error, Inner, Result, Tokenizer, caught,
    pieces::{PieceRules, Pieces},
};
use crate::files;

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` and `special_tokens_map.json` where they
    /// are.
    ///
    /// # Errors
    /// [`Error::Missing`] without a `tokenizer.json`, [`Error::Malformed`] or
    /// [`Error::Unsupported`] for one that cannot be used.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        match read(&path)? {
            Some(bytes) => Self::from_parts(&path, &bytes, dir),
            None => Err(Error::Missing {
                dir: dir.to_owned(),
            }),
        }
    }

    /// As [`from_dir`](Self::from_dir), of a `tokenizer.json` by any name.
    ///
    /// # Errors
    /// As there, or [`Error::Io`] when there is no such file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_parts(path, &bytes, path.parent().unwrap_or(Path::new("")))
    }

    fn from_parts(path: &Path, json: &[u8], dir: &Path) -> Result<Self> {
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let map = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        Self::from_json(&path.display().to_string(), json, &config, &map)
    }

    /// `origin` names the file in errors; `config` is tokenizer_config.json, `map`
    /// special_tokens_map.json, either null when there is none.
    fn from_json(origin: &str, json: &[u8], config: &Value, map: &Value) -> Result<Self> {
        let malformed = |reason| Error::Malformed {
            origin: origin.to_owned(),
            reason,
        };
        let mut inner = caught(|| Ok(serde_json::from_slice::<Inner>(json)?)).map_err(malformed)?;
        caught(|| add_missing(&mut inner, config)).map_err(malformed)?;
        let decoder = serde_json::to_value(inner.get_decoder())
            .map_err(|error| malformed(error.to_string()))?;
        let rules = PieceRules::from_decoder(origin, &decoder)?;
        let pieces = Pieces::new(origin, &rules, tokens(&inner))?;

        let bos = special(&inner, origin, "bos_token", config, map)?;
        let eos = special(&inner, origin, "eos_token", config, map)?;
        let asked = config.get("add_bos_token").and_then(Value::as_bool);
        let add_bos = match (asked, bos) {
            (_, None) => false,
            (Some(asked), Some(_)) => asked,
            (None, Some(bos)) => {
                caught(|| Ok(inner.encode("a", true)?.get_ids().first() == Some(&bos)))
                    .map_err(malformed)?
            }
        };
        let mut tokenizer = Self::new(inner, pieces);
        tokenizer.bos = bos;
        tokenizer.eos = eos;
        tokenizer.add_bos = add_bos;
        Ok(tokenizer)
    }
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    files::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::Malformed {
            origin: path.display().to_string(),
            reason: error.to_string(),
        })
}

/// All tokens as (id, spelling for decoding, control token).
fn tokens(inner: &Inner) -> impl Iterator<Item = (u32, Cow<'_, str>, bool)> {
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let own = inner.get_model().tokens();
    let own = own.filter(|(id, _)| !added.contains_key(id));
    own.map(|(id, token)| (id, token, false))
        .chain(added.iter().map(|(&id, token)| {
            let spelling = inner
                .id_to_token(id)
                .unwrap_or_else(|| token.content.clone());
            (id, Cow::Owned(spelling), token.special)
        }))
}

/// Adds the tokens that only tokenizer_config.json's `added_tokens_decoder` knows.
fn add_missing(inner: &mut Inner, config: &Value) -> tokenizers::Result<()> {
    let Some(listed) = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object)
    else {
        return Ok(());
    };
    let mut missing: Vec<(u32, AddedToken)> = Vec::new();
    for (id, entry) in listed {
        let id: u32 = id
            .parse()
            .map_err(|_| format!("added token id {id:?} is no number"))?;
        let Some(content) = entry.get("content").and_then(Value::as_str) else {
            return Err(format!("added token {id} in tokenizer_config.json has no content").into());
        };
        if inner.token_to_id(content).is_some() || content.is_empty() {
            continue;
        }
        let flag = |key| entry.get(key).and_then(Value::as_bool).unwrap_or(false);
        let token = AddedToken::from(content, flag("special"))
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .normalized(flag("normalized"));
        missing.push((id, token));
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        let content = token.content.clone();
        inner.add_tokens([token])?;
        if inner.token_to_id(&content) != Some(id) {
            return Err(format!(
                "added token {content:?} of tokenizer_config.json should have id {id}, but \
                 tokenizer.json leaves no such id"
            )
            .into());
        }
    }
    Ok(())
}

/// The id of `bos_token` or `eos_token`: a string, or an object with `content`.
pub(super) fn special(
    inner: &Inner,
    origin: &str,
    key: &str,
    config: &Value,
    map: &Value,
) -> Result<Option<u32>> {
    // An explicit null in tokenizer_config.json means that there is none.
    let value = config
        .get(key)
        .or_else(|| map.get(key))
        .unwrap_or(&Value::Null);
    let Some(token) = value.as_str().or_else(|| value.get("content")?.as_str()) else {
        return Ok(None);
    };
    inner
        .token_to_id(token)
        .map(Some)
        .ok_or_else(|| Error::Malformed {
            origin: origin.to_owned(),
            reason: format!("{key} {token:?} is not in the vocabulary"),
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tokenizer::Specials;

    fn bpe() -> Value {
        json!({
            "version": "1.0",
            "added_tokens": [{
                "id": 2, "content": "<|im_end|>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true
            }],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
        })
    }

    fn load(json: &Value, config: Value) -> Result<Tokenizer> {
        Tokenizer::from_json("t", json.to_string().as_bytes(), &config, &Value::Null)
    }

    #[test]
    fn tokens_only_the_config_knows_are_added() {
        let entry = |content: &str| json!({"content": content, "special": true});
        let config = json!({"added_tokens_decoder": {"3": entry("<s>"), "4": entry("<x>")}, "bos_token": {"content": "<s>"}, "add_bos_token": true});
        let tokenizer = load(&bpe(), config).unwrap();
        assert_eq!(
            tokenizer.encode_with_bos("a<x>b", Specials::Parse).unwrap(),
            [3, 0, 4, 1]
        );
        assert_eq!(tokenizer.bos_token(), Some("<s>"));
        let config = json!({"added_tokens_decoder": {"9": entry("<s>")}});
        assert!(
            load(&bpe(), config)
                .unwrap_err()
                .to_string()
                .contains("id 9")
        );
    }

    #[test]
    fn hostile_files_are_errors() {
        let mut none = bpe();
        none["decoder"] = Value::Null;
        assert!(matches!(
            load(&none, Value::Null),
            Err(Error::Unsupported { .. })
        ));
        // This one panics inside the crate: the merge is longer than any token.
        let mut merge = bpe();
        merge["model"]["merges"] = json!([["a", "b"]]);
        assert!(matches!(
            load(&merge, Value::Null),
            Err(Error::Malformed { .. })
        ));
        let mut far = bpe();
        far["model"]["vocab"]["b"] = json!(4_000_000_000u32);
        assert!(matches!(
            load(&far, Value::Null),
            Err(Error::Malformed { .. })
        ));
        let missing = load(&bpe(), json!({"bos_token": "<nope>"})).unwrap_err();
        assert!(missing.to_string().contains("<nope>"), "{missing}");
        assert!(Tokenizer::from_json("t", b"[1", &Value::Null, &Value::Null).is_err());
    }

    #[test]
    fn stop_ids_are_the_union_and_known_names() {
        let tokenizer = load(&bpe(), json!({"eos_token": "b"})).unwrap();
        let stops = tokenizer
            .stop_ids([&json!([7, 1]), &Value::Null, &json!(5)])
            .unwrap();
        assert_eq!(stops, [1, 2, 5, 7]);
        assert!(tokenizer.stop_ids([&json!("</s>")]).is_err());
    }
}
