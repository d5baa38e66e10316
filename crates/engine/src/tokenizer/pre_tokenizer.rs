//! How byte-level BPE vocabularies in GGUF files cut a text into words, by `tokenizer.ggml.pre`.

use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::{Error, Result};

/// What [`Digits`] cuts out, one by one.
pub(super) const DIGIT: &str = r"\p{N}";
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const PUNCTUATION_FALCON: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";

/// Cuts applied one after the other.
pub(super) enum Cuts {
    /// GPT-2's, as the byte-level pre-tokenizer has it.
    Gpt2,
    /// Single digits, then GPT-2's.
    DigitsGpt2,
    /// These patterns; what lies between two matches is a word too.
    Patterns(&'static [&'static str]),
}

impl Cuts {
    /// The same cuts as patterns only.
    pub fn patterns(&self) -> &'static [&'static str] {
        match self {
            Self::Gpt2 => &[GPT2],
            Self::DigitsGpt2 => &[DIGIT, GPT2],
            Self::Patterns(patterns) => patterns,
        }
    }
}

/// Names in `tokenizer.ggml.pre`, the cuts they mean, and whether a word that is itself a token is
/// taken whole before any merge.
pub(super) const KINDS: &[(&[&str], Cuts, bool)] = &[
    (
        &["default"],
        Cuts::Patterns(&[PUNCTUATION, GPT2, r"\p{N}+", THREE_DIGITS]),
        false,
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        Cuts::Patterns(&[LLAMA3]),
        true,
    ),
    (&["dbrx", "smaug-bpe"], Cuts::Patterns(&[LLAMA3]), false),
    (
        &["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"],
        Cuts::Gpt2,
        false,
    ),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        Cuts::DigitsGpt2,
        false,
    ),
    (
        &[
            "qwen2",
            "stablelm2",
            "deepseek-r1-qwen",
            "megrez",
            "hunyuan",
        ],
        Cuts::Patterns(&[QWEN2]),
        false,
    ),
    (&["tekken"], Cuts::Patterns(&[TEKKEN]), true),
    (&["gpt-4o", "llama4"], Cuts::Patterns(&[GPT4O]), false),
    (
        &["falcon"],
        Cuts::Patterns(&[PUNCTUATION_FALCON, GPT2, THREE_DIGITS]),
        false,
    ),
];

/// The pre-tokenizer of that name, and whether the model takes whole words first. No name means an
/// old file: which cuts its model was trained with is not known.
pub(super) fn byte_level(name: Option<&str>) -> Result<(PreTokenizerWrapper, bool)> {
    let name = name.unwrap_or_else(|| {
        tracing::warn!(
            "the GGUF file does not name its pre-tokenizer: texts may be cut otherwise than the model learnt; use a newer conversion of it"
        );
        "default"
    });
    let Some((_, cuts, whole_words)) = KINDS.iter().find(|(names, ..)| names.contains(&name))
    else {
        let known: Vec<&str> = KINDS
            .iter()
            .flat_map(|(names, ..)| *names)
            .copied()
            .collect();
        return Err(Error::Unsupported {
            origin: "tokenizer.ggml.pre".into(),
            what: format!("pre-tokenizer {name:?}"),
            supported: known.join(", "),
        });
    };
    let bytes = |use_regex| ByteLevel::new(false, true, use_regex).into();
    let steps = match cuts {
        Cuts::Gpt2 => vec![bytes(true)],
        Cuts::DigitsGpt2 => vec![Digits::new(true).into(), bytes(true)],
        Cuts::Patterns(patterns) => {
            let mut steps = Vec::with_capacity(patterns.len() + 1);
            for pattern in *patterns {
                let split = Split::new(
                    SplitPattern::Regex((*pattern).to_owned()),
                    SplitDelimiterBehavior::Isolated,
                    false,
                );
                steps.push(
                    split
                        .map_err(|error| Error::Encode(error.to_string()))?
                        .into(),
                );
            }
            steps.push(bytes(false));
            steps
        }
    };
    Ok((Sequence::new(steps).into(), *whole_words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles_and_an_unknown_name_lists_the_known() {
        for name in KINDS.iter().flat_map(|(names, ..)| *names) {
            byte_level(Some(name)).unwrap();
        }
        let error = byte_level(Some("klingon")).unwrap_err().to_string();
        assert!(
            error.contains("klingon") && error.contains("stablelm2"),
            "{error}"
        );
    }
}
