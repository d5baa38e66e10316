//! Text to token ids and back, from a `tokenizer.json` or from a GGUF file's own vocabulary.
//!
//! Encoding is the tokenizers crate's, with a byte-pair encoding of our own (`bpe`) in it; decoding is a
//! table of each token's bytes, so that a stream of tokens costs the same per token however long it gets.

mod bpe;
pub mod convert;
mod detokenizer;
mod gguf;
mod guard;
mod load;
mod model;
mod pieces;
mod pre_tokenizer;
#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use serde_json::Value;
use tokenizers::{
    AddedVocabulary, DecoderWrapper, Model as _, NormalizerWrapper, OffsetType,
    PostProcessorWrapper, PreTokenizer as _, PreTokenizerWrapper, TokenizerImpl,
};

pub(crate) use self::guard::MARK;
pub use self::{detokenizer::Detokenizer, gguf::GgufVocab};
use self::{model::Model, pieces::Pieces};

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model directory has no `tokenizer.json`.
    #[error(
        "{dir}: no tokenizer.json; take it from the model's repository, or write it with \
         transformers' AutoTokenizer.from_pretrained(..).save_pretrained(..)"
    )]
    Missing {
        /// The model's directory.
        dir: PathBuf,
    },
    /// A tokenizer is not what it claims to be.
    #[error("{origin}: {reason}")]
    Malformed {
        /// The file, or the metadata key of a GGUF file.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A kind of tokenizer that is not read here.
    #[error("{origin}: {what} is not supported; supported are {supported}")]
    Unsupported {
        /// The file, or the metadata key of a GGUF file.
        origin: String,
        /// What the tokenizer asks for.
        what: String,
        /// What can be had instead.
        supported: String,
    },
    /// A tokenizer, or a part of it, that the other format has no place for.
    #[error("{origin}: {format} cannot hold {what}; keep the model in its original format")]
    Inconvertible {
        /// The file that is being converted.
        origin: String,
        /// What it has.
        what: String,
        /// The format it should become.
        format: &'static str,
    },
    /// The tokenizer failed on a text.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

/// What becomes of control tokens' names (`<|im_end|>`) in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// They are control tokens: for text that a program wrote, as a chat template's output.
    Parse,
    /// They are text like any other: for text that a user wrote.
    Plain,
    /// As `Parse`, but not where [`Tokenizer::guard`] marked them: for a chat template's output with
    /// users' text inside.
    Guarded,
}

/// All parts of a tokenizer, with our own model.
type Inner = TokenizerImpl<
    Model,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A model's tokenizer.
pub struct Tokenizer {
    /// Takes control tokens' names for text.
    inner: Inner,
    /// The same added tokens, control tokens' names recognised.
    parsing: AddedVocabulary,
    pieces: Arc<Pieces>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// More ids that end a turn, besides `eos`.
    ends: Vec<u32>,
    add_bos: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("add_bos", &self.add_bos)
            .finish_non_exhaustive()
    }
}

/// Names under which models end a turn or a document. They stop generation where the vocabulary
/// marks them as control tokens, whatever the configuration forgot to say.
const END_NAMES: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<|return|>",
    "<|call|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_role|>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    "</s>",
    "<eos>",
];

impl Tokenizer {
    fn new(mut inner: Inner, pieces: Pieces) -> Self {
        let parsing = inner.get_added_vocabulary().clone();
        inner.set_encode_special_tokens(true);
        Self {
            inner,
            parsing,
            pieces: Arc::new(pieces),
            bos: None,
            eos: None,
            ends: Vec::new(),
            add_bos: false,
        }
    }

    /// Token ids of `text`, without a beginning-of-sequence token.
    ///
    /// # Errors
    /// [`Error::Encode`] when the tokenizer's own rules fail on the text.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        caught(|| {
            let added = match specials {
                Specials::Plain => self.inner.get_added_vocabulary(),
                Specials::Parse | Specials::Guarded => &self.parsing,
            };
            let mut parts = added.extract_and_normalize(self.inner.get_normalizer(), text);
            if specials == Specials::Guarded && text.contains(MARK) {
                parts.normalize(|part| {
                    part.filter(|c| c != MARK);
                    Ok(())
                })?;
            }
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut parts)?;
            }
            let model = self.inner.get_model();
            parts.tokenize(|part| model.tokenize(part.get()))?;
            let encoding = parts.into_encoding(None, 0, OffsetType::None)?;
            Ok(encoding.get_ids().to_vec())
        })
        .map_err(Error::Encode)
    }

    /// As [`encode`](Self::encode), with a beginning-of-sequence token in front where the model
    /// wants one and the text does not begin with it already.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_bos(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, specials)?;
        if let Some(bos) = self.bos.filter(|_| self.add_bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    /// With `skip_special`, control tokens are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special);
        let mut text = String::new();
        for &id in ids {
            detokenizer.push_to(id, &mut text);
        }
        detokenizer.finish_to(&mut text);
        text
    }

    /// A decoder for tokens that come one at a time.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces), skip_special)
    }

    /// The bytes that a token stands for, or none for an id outside the vocabulary. A
    /// control token's are its name.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.bytes(id)
    }

    /// Whether the vocabulary marks the token as a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The greatest id and 1; a model's output may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token as the tokenizer names it; see [`stop_ids`](Self::stop_ids).
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model wants prompts to begin with [`bos`](Self::bos).
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The beginning-of-sequence token's name, for chat templates.
    pub fn bos_token(&self) -> Option<&str> {
        self.name(self.bos)
    }

    /// The end-of-sequence token's name, for chat templates.
    pub fn eos_token(&self) -> Option<&str> {
        self.name(self.eos)
    }

    fn name(&self, id: Option<u32>) -> Option<&str> {
        std::str::from_utf8(self.pieces.bytes(id?)?).ok()
    }

    /// All ids at which generation ends, sorted: the tokenizer's own, those in `eos_token_ids` (the
    /// values of `eos_token_id` in config.json and generation_config.json: a number, a list or
    /// null), and the control tokens that are known to end a turn.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a value that is no token id.
    pub fn stop_ids<'a>(
        &self,
        eos_token_ids: impl IntoIterator<Item = &'a Value>,
    ) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self
            .eos
            .into_iter()
            .chain(self.ends.iter().copied())
            .collect();
        for value in eos_token_ids {
            match value {
                Value::Null => {}
                Value::Array(list) => {
                    for item in list {
                        ids.push(token_id(item)?);
                    }
                }
                one => ids.push(token_id(one)?),
            }
        }
        // In the harmony format <|end|> ends a message, and an answer may have several.
        let harmony = self.special_id("<|return|>").is_some();
        ids.extend(
            END_NAMES
                .iter()
                .filter(|name| !(harmony && **name == "<|end|>"))
                .filter_map(|name| self.special_id(name)),
        );
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn special_id(&self, token: &str) -> Option<u32> {
        self.id_of(token).filter(|&id| self.is_special(id))
    }
}

fn token_id(value: &Value) -> Result<u32> {
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| Error::Malformed {
            origin: "eos_token_id".into(),
            reason: format!("expected token ids, got {value}"),
        })
}

/// Runs the tokenizers crate, which panics on some hostile vocabularies and patterns.
fn caught<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => other.downcast::<&str>().map_or_else(
                |_| "the tokenizer contradicts itself".into(),
                |text| (*text).to_owned(),
            ),
        }),
    }
}
