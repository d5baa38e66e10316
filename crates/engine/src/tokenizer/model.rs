//! How words become tokens: our own byte-pair encoding, or one of the tokenizers crate's models.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::value::RawValue;
use tokenizers::{Model as _, ModelWrapper, Result, Token, models::TrainerWrapper};

use super::bpe::Bpe;

/// How words become tokens.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Model {
    Bpe(Bpe),
    /// Unigram, WordPiece, WordLevel, and BPE that marks words' insides or ends or drops merges out.
    Other(ModelWrapper),
}

impl Model {
    /// All tokens, added ones aside.
    pub fn tokens(&self) -> Box<dyn Iterator<Item = (u32, Cow<'_, str>)> + '_> {
        match self {
            Model::Bpe(bpe) => Box::new(bpe.tokens().map(|(id, token)| (id, token.into()))),
            Model::Other(other) => {
                let vocab = other.get_vocab().into_iter();
                Box::new(vocab.map(|(token, id)| (id, token.into())))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?;
        match Bpe::from_json(json).map_err(D::Error::custom)? {
            Some(bpe) => Ok(Model::Bpe(bpe)),
            None => serde_json::from_str(json.get())
                .map(Model::Other)
                .map_err(D::Error::custom),
        }
    }
}

impl tokenizers::Model for Model {
    type Trainer = TrainerWrapper;

    /// Tokens without their spelling, which nobody here looks at.
    fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        match self {
            Model::Bpe(bpe) => {
                let mut start = 0;
                let token = |(id, len)| {
                    let offsets = (start, start + len);
                    start += len;
                    Token::new(id, String::new(), offsets)
                };
                Ok(bpe.encode(word)?.into_iter().map(token).collect())
            }
            Model::Other(other) => other.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Model::Bpe(bpe) => bpe.id(token),
            Model::Other(other) => other.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Model::Bpe(bpe) => bpe.token(id).map(str::to_owned),
            Model::Other(other) => other.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        let tokens = self.tokens();
        tokens.map(|(id, token)| (token.into_owned(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Model::Bpe(bpe) => bpe.len(),
            Model::Other(other) => other.get_vocab_size(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        match self {
            Model::Bpe(_) => Err("this model is written as a part of its tokenizer".into()),
            Model::Other(other) => other.save(folder, prefix),
        }
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Model::Bpe(_) => TrainerWrapper::BpeTrainer(Default::default()),
            Model::Other(other) => other.get_trainer(),
        }
    }
}
