//! Which of GGUF's kinds of vocabulary a tokenizer.json is.

use serde::Serialize;
use serde_json::Value;

use super::{GGUF, inconvertible};
use crate::tokenizer::{
    Inner, Result,
    bpe::Rules,
    gguf::SPACE,
    pre_tokenizer::{DIGIT, GPT2, KINDS},
};

/// GGUF's kinds of vocabulary.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `gpt2`: words cut by the pre-tokenizer called `pre`, letters that stand for bytes.
    ByteLevel { pre: &'static str },
    /// `llama`: no words, spaces as `▁`, tokens for single bytes.
    SentencePiece { space_prefix: bool },
}

/// Finds out which kind of vocabulary the tokenizer's rules make.
///
/// # Errors
/// [`Error::Inconvertible`](crate::tokenizer::Error::Inconvertible) when a rule is none of GGUF's.
pub(super) fn scheme(origin: &str, inner: &Inner, rules: &Rules) -> Result<Scheme> {
    let refuse = |what: String| Err(inconvertible(origin, GGUF, what));
    let normalizers = steps(inner.get_normalizer(), "normalizers");
    let cuts = steps(inner.get_pre_tokenizer(), "pretokenizers");
    if cuts.iter().any(|cut| kind(cut) == "ByteLevel") {
        for step in &normalizers {
            if kind(step) != "NFC" {
                return refuse(format!("the normalizer {step}"));
            }
            tracing::warn!(
                "{origin}: GGUF has no normalizer NFC; texts are taken to be in that form"
            );
        }
        let pre = pre(origin, &cuts, rules.whole_words)?;
        return Ok(Scheme::ByteLevel { pre });
    }
    if !rules.byte_fallback {
        return refuse("a BPE model that is neither byte-level nor falls back to bytes".into());
    }
    if rules.whole_words {
        return refuse("ignore_merges without a byte-level pre-tokenizer".into());
    }
    space_prefix(origin, &normalizers, &cuts)
        .map(|space_prefix| Scheme::SentencePiece { space_prefix })
}

/// Whether SentencePiece's rules put a space before a text; they turn spaces into `▁`, either as
/// normalizers or as the pre-tokenizer Metaspace.
fn space_prefix(origin: &str, normalizers: &[Value], cuts: &[Value]) -> Result<bool> {
    let refuse =
        |part: &str, step: &Value| Err(inconvertible(origin, GGUF, format!("the {part} {step}")));
    let [prepends @ .., replace] = normalizers else {
        let [metaspace] = cuts else {
            let cuts = Value::from(cuts);
            return refuse("pre-tokenizer", &cuts);
        };
        let field = |key: &str| metaspace.get(key).and_then(Value::as_str);
        let whole = metaspace.get("split") == Some(&Value::Bool(false));
        if kind(metaspace) != "Metaspace" || field("replacement") != Some(SPACE) || !whole {
            return refuse("pre-tokenizer", metaspace);
        }
        let prefix = field("prepend_scheme") != Some("never");
        if prefix {
            tracing::warn!(
                "{origin}: in GGUF a space goes before every text, also before one that begins \
                 with a space or follows a control token"
            );
        }
        return Ok(prefix);
    };
    let replaces = replace.pointer("/pattern/String") == Some(&Value::from(" "))
        && replace.get("content") == Some(&Value::from(SPACE));
    if kind(replace) != "Replace" || !replaces {
        return refuse("normalizer", replace);
    }
    for cut in cuts {
        // No space is left to split at.
        let at_spaces = cut.pointer("/pattern/String") == Some(&Value::from(" "));
        if kind(cut) != "Split" || !at_spaces {
            return refuse("pre-tokenizer", cut);
        }
    }
    match prepends {
        [] => Ok(false),
        [one] if kind(one) == "Prepend" && one.get("prepend") == Some(&Value::from(SPACE)) => {
            Ok(true)
        }
        [other, ..] => refuse("normalizer", other),
    }
}

/// The name of a byte-level pre-tokenizer. Names that mean the same cuts are one to every reader;
/// it gets the first.
fn pre(origin: &str, steps: &[Value], whole_words: bool) -> Result<&'static str> {
    let mut patterns: Vec<&str> = Vec::new();
    let mut done = false;
    for step in steps {
        let unknown = || inconvertible(origin, GGUF, format!("the pre-tokenizer step {step}"));
        let flag = |key: &str| step.get(key).and_then(Value::as_bool).unwrap_or(false);
        match (kind(step), done) {
            ("Digits", false) if flag("individual_digits") => patterns.push(DIGIT),
            ("Split", false) => {
                let regex = step.pointer("/pattern/Regex").and_then(Value::as_str);
                let behavior = step.get("behavior").and_then(Value::as_str);
                // The patterns that have names match every letter, so that nothing is removed.
                let known = matches!(
                    (behavior, flag("invert")),
                    (Some("Isolated"), _) | (Some("Removed"), true)
                );
                patterns.push(regex.filter(|_| known).ok_or_else(unknown)?);
            }
            ("ByteLevel", false) if !flag("add_prefix_space") => {
                if flag("use_regex") {
                    patterns.push(GPT2);
                }
                done = true;
            }
            _ => return Err(unknown()),
        }
    }
    let named = KINDS
        .iter()
        .find(|(_, cuts, whole)| *whole == whole_words && cuts.patterns() == patterns);
    if let Some(([name, ..], ..)) = named {
        return Ok(name);
    }
    let known: Vec<&str> = KINDS
        .iter()
        .filter_map(|(names, ..)| names.first())
        .copied()
        .collect();
    let what = format!(
        "a pre-tokenizer with the patterns {patterns:?} and ignore_merges {whole_words}; those with \
         a name are {}",
        known.join(", ")
    );
    Err(inconvertible(origin, GGUF, what))
}

/// The steps of a normalizer or pre-tokenizer, sequences flattened.
fn steps(part: Option<&impl Serialize>, key: &str) -> Vec<Value> {
    fn flatten(value: Value, key: &str, out: &mut Vec<Value>) {
        match value.get(key) {
            Some(Value::Array(inner)) => {
                for step in inner {
                    flatten(step.clone(), key, out);
                }
            }
            _ => out.push(value),
        }
    }
    let mut out = Vec::new();
    if let Some(value) = part.and_then(|part| serde_json::to_value(part).ok()) {
        flatten(value, key, &mut out);
    }
    out
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}
