//! The model of a tokenizer.json.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
    ser::SerializeStruct,
};
use serde_json::value::RawValue;

use super::{Bpe, Rules};
use crate::tokenizer::pieces::SPARE_IDS;

/// What is read of a tokenizer.json's model; its two large parts are looked at later.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    #[serde(borrow)]
    continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(borrow)]
    end_of_word_suffix: Option<Cow<'a, str>>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
}

impl Bpe {
    /// Reads a tokenizer.json's `model`, or gives `None` for one of another type, or one that drops merges
    /// out or marks the inside or the end of words.
    ///
    /// # Errors
    /// What is wrong with one that this should be.
    pub fn from_json(model: &RawValue) -> Result<Option<Self>, serde_json::Error> {
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(model.get()) else {
            return Ok(None);
        };
        let marks = [
            &fields.continuing_subword_prefix,
            &fields.end_of_word_suffix,
        ];
        let (Some("BPE"), Some(vocab), Some(merges)) =
            (fields.kind.as_deref(), fields.vocab, fields.merges)
        else {
            return Ok(None);
        };
        let marked = marks.into_iter().flatten().any(|mark| !mark.is_empty());
        if marked || fields.dropout.is_some_and(|p| p != 0.0) {
            return Ok(None);
        }
        let vocab: Vocab = serde_json::from_str(vocab.get())?;
        let merges: Pairs = serde_json::from_str(merges.get())?;
        let rules = Rules {
            unknown: fields.unk_token,
            fuse_unknown: fields.fuse_unk.unwrap_or(false),
            byte_fallback: fields.byte_fallback.unwrap_or(false),
            whole_words: fields.ignore_merges.unwrap_or(false),
        };
        let tokens = vocab.by_id().map_err(Error::custom)?;
        Bpe::listed(tokens, merges.iter(), rules)
            .map(Some)
            .map_err(Error::custom)
    }
}

/// Texts in one run.
#[derive(Default)]
struct Texts {
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    fn get(&self, at: usize) -> &str {
        let end = |at: usize| self.ends.get(at).copied().unwrap_or_default();
        let start = at.checked_sub(1).map_or(0, end);
        self.text.get(start..end(at)).unwrap_or_default()
    }
}

/// Spellings in the order of the file, and their ids.
#[derive(Default)]
struct Vocab {
    tokens: Texts,
    ids: Vec<u32>,
}

impl Vocab {
    /// Spellings by id.
    fn by_id(&self) -> Result<impl Iterator<Item = Option<&str>> + Clone, String> {
        let greatest = self.ids.iter().max().map_or(0, |&id| id as usize);
        if greatest > self.ids.len().saturating_mul(2).saturating_add(SPARE_IDS) {
            let count = self.ids.len();
            return Err(format!(
                "token id {greatest} is far beyond its {count} tokens"
            ));
        }
        let mut places = vec![u32::MAX; greatest + 1];
        for (place, &id) in (0..).zip(&self.ids) {
            match places.get_mut(id as usize) {
                Some(free) if *free == u32::MAX => *free = place,
                _ => return Err(format!("two tokens have id {id}")),
            }
        }
        let token = |place| (place != u32::MAX).then(|| self.tokens.get(place as usize));
        Ok((0..places.len()).map(move |id| token(places[id])))
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocab;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vocab::default();
                while map.next_key_seed(Push(&mut vocab.tokens))?.is_some() {
                    vocab.ids.push(map.next_value()?);
                }
                Ok(vocab)
            }
        }
        deserializer.deserialize_map(Tokens)
    }
}

/// Merges: each two texts of a run, or one with a space between the two.
#[derive(Default)]
struct Pairs {
    parts: Texts,
}

impl Pairs {
    fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        (0..self.parts.ends.len() / 2).map(|i| (self.parts.get(2 * i), self.parts.get(2 * i + 1)))
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Pairs, A::Error> {
                let mut pairs = Pairs::default();
                while seq.next_element_seed(Pair(&mut pairs.parts))?.is_some() {}
                Ok(pairs)
            }
        }
        deserializer.deserialize_seq(All)
    }
}

/// Appends one text.
struct Push<'t>(&'t mut Texts);

impl<'de> DeserializeSeed<'de> for Push<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Push<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a token")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push(text);
        Ok(())
    }
}

/// Appends a merge's two parts.
struct Pair<'t>(&'t mut Texts);

impl<'de> DeserializeSeed<'de> for Pair<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pair<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("two tokens, in a list or with a space between them")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if text.starts_with("#version") {
            return Ok(());
        }
        let parts = text.split_once(' ').filter(|(_, b)| !b.contains(' '));
        let (left, right) =
            parts.ok_or_else(|| E::custom(format!("{text:?} is not two tokens")))?;
        self.0.push(left);
        self.0.push(right);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for i in 0..2 {
            if seq.next_element_seed(Push(self.0))?.is_none() {
                return Err(A::Error::invalid_length(i, &"two tokens"));
            }
        }
        match seq.next_element::<serde::de::IgnoredAny>()? {
            None => Ok(()),
            Some(_) => Err(A::Error::invalid_length(3, &"two tokens")),
        }
    }
}

impl Serialize for Bpe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Vocab<'a>(&'a Bpe);
        impl Serialize for Vocab<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.tokens().map(|(id, token)| (token, id)))
            }
        }
        let mut model = serializer.serialize_struct("BPE", 10)?;
        model.serialize_field("type", "BPE")?;
        model.serialize_field("dropout", &None::<f32>)?;
        model.serialize_field("unk_token", &self.rules.unknown)?;
        model.serialize_field("continuing_subword_prefix", &None::<&str>)?;
        model.serialize_field("end_of_word_suffix", &None::<&str>)?;
        model.serialize_field("fuse_unk", &self.rules.fuse_unknown)?;
        model.serialize_field("byte_fallback", &self.rules.byte_fallback)?;
        model.serialize_field("ignore_merges", &self.rules.whole_words)?;
        model.serialize_field("vocab", &Vocab(self))?;
        model.serialize_field("merges", &self.merges())?;
        model.end()
    }
}
