//! Tokenizers from a GGUF file's metadata.

use std::borrow::Cow;

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence, strip::Strip},
    normalizers::{Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{
    Error, Inner, Result, Tokenizer,
    bpe::{Bpe, Rules},
    caught,
    model::Model,
    pieces::{PieceRules, Pieces},
    pre_tokenizer,
};

/// SentencePiece's letter for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// What a GGUF file's metadata says of its vocabulary: the keys `tokenizer.ggml.*`.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab<'a> {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece's BPE).
    pub model: String,
    /// `pre`: how byte-level BPE cuts a text into words.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<Cow<'a, str>>,
    /// `scores`, one a token; only the kind `llama` has them.
    pub scores: Vec<f32>,
    /// `token_type`, one a token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    /// Empty means all are normal.
    pub token_types: Vec<i32>,
    /// `merges` as `left right`, in order; only the kind `gpt2` has them.
    pub merges: Vec<Cow<'a, str>>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: the end of a turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: the end of a message after which the model waits for a tool.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: whether a text is read as if a space stood before it.
    pub add_space_prefix: Option<bool>,
}

/// GGUF's kinds of tokens, with its numbers for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    fn of(value: i32) -> Option<Self> {
        Some(match value {
            // 0 is "undefined": old writers left it for ordinary tokens.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

fn malformed(key: &str, reason: String) -> Error {
    Error::Malformed {
        origin: format!("tokenizer.ggml.{key}"),
        reason,
    }
}

impl Tokenizer {
    /// A tokenizer from a GGUF file's vocabulary.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the metadata contradicts itself, [`Error::Unsupported`] for a kind
    /// or a pre-tokenizer that is not known.
    pub fn from_gguf(vocab: GgufVocab<'_>) -> Result<Self> {
        let kinds = kinds(&vocab)?;
        for (key, id) in [
            ("bos_token_id", vocab.bos),
            ("eos_token_id", vocab.eos),
            ("eot_token_id", vocab.eot),
            ("eom_token_id", vocab.eom),
            ("unknown_token_id", vocab.unk),
            ("padding_token_id", vocab.pad),
        ] {
            if id.is_some_and(|id| id as usize >= vocab.tokens.len()) {
                let reason = format!("beyond the {} tokens", vocab.tokens.len());
                return Err(malformed(key, reason));
            }
        }
        let (inner, rules) = match vocab.model.as_str() {
            "gpt2" => byte_level(&vocab, &kinds)?,
            "llama" => sentence_piece(&vocab, &kinds)?,
            other => {
                return Err(Error::Unsupported {
                    origin: "tokenizer.ggml.model".into(),
                    what: format!("{other:?}"),
                    supported: "gpt2 and llama; or give a directory with a tokenizer.json".into(),
                });
            }
        };
        let default_bos = match vocab.model.as_str() {
            "llama" => true,
            _ => matches!(
                vocab.pre.as_deref(),
                Some("llama-bpe" | "llama3" | "llama-v3" | "tekken")
            ),
        };
        let tokens = (0u32..)
            .zip(vocab.tokens)
            .zip(&kinds)
            .map(|((id, token), kind)| (id, token, matches!(kind, Kind::Control | Kind::Unknown)));
        let pieces = Pieces::new("tokenizer.ggml.tokens", &rules, tokens)?;
        let mut tokenizer = Self::new(inner, pieces);
        tokenizer.bos = vocab.bos;
        tokenizer.eos = vocab.eos;
        tokenizer
            .ends
            .extend(vocab.eot.into_iter().chain(vocab.eom));
        tokenizer.add_bos = vocab.add_bos.unwrap_or(default_bos) && vocab.bos.is_some();
        Ok(tokenizer)
    }
}

pub(super) fn kinds(vocab: &GgufVocab<'_>) -> Result<Vec<Kind>> {
    let count = vocab.tokens.len();
    if count == 0 || u32::try_from(count).is_err() {
        return Err(malformed("tokens", format!("{count} tokens")));
    }
    if vocab.token_types.is_empty() {
        return Ok(vec![Kind::Normal; count]);
    }
    if vocab.token_types.len() != count {
        let reason = format!("{} types for {count} tokens", vocab.token_types.len());
        return Err(malformed("token_type", reason));
    }
    let kind = |&value: &i32| {
        Kind::of(value).ok_or_else(|| malformed("token_type", format!("no such type: {value}")))
    };
    vocab.token_types.iter().map(kind).collect()
}

/// Tokens that are searched for in the text before it is cut into words.
fn added<'a>(
    tokens: impl Iterator<Item = &'a str>,
    kinds: &[Kind],
) -> impl Iterator<Item = AddedToken> {
    tokens
        .zip(kinds)
        .filter(|(_, kind)| matches!(kind, Kind::Unknown | Kind::Control | Kind::UserDefined))
        .map(|(token, kind)| {
            let special = matches!(kind, Kind::Control | Kind::Unknown);
            AddedToken::from(token, special).normalized(false)
        })
}

type Built = (Inner, PieceRules);

fn byte_level(vocab: &GgufVocab<'_>, kinds: &[Kind]) -> Result<Built> {
    let (pre_tokenizer, whole_words) = pre_tokenizer::byte_level(vocab.pre.as_deref())?;
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for merge in &vocab.merges {
        // A space is never part of a byte-level token, so the first one parts the two.
        let pair = merge.split_once(' ');
        merges
            .push(pair.ok_or_else(|| malformed("merges", format!("{merge:?} is not two tokens")))?);
    }
    let tokens = vocab.tokens.iter().map(|token| &**token);
    let rules = Rules {
        whole_words,
        ..Rules::default()
    };
    let model = Bpe::listed(tokens.clone().map(Some), merges.into_iter(), rules)
        .map_err(|reason| malformed("merges", reason))?;
    let inner = caught(|| {
        let mut inner = Inner::new(Model::Bpe(model));
        inner.with_pre_tokenizer(Some(pre_tokenizer));
        inner.with_decoder(Some(ByteLevel::default()));
        inner.add_tokens(added(tokens, kinds))?;
        Ok(inner)
    })
    .map_err(|reason| malformed("tokens", reason))?;
    Ok((
        inner,
        PieceRules {
            byte_level: true,
            ..PieceRules::default()
        },
    ))
}

fn sentence_piece(vocab: &GgufVocab<'_>, kinds: &[Kind]) -> Result<Built> {
    if vocab.scores.len() != vocab.tokens.len() {
        let (scores, tokens) = (vocab.scores.len(), vocab.tokens.len());
        return Err(malformed(
            "scores",
            format!("{scores} scores for {tokens} tokens"),
        ));
    }
    // GGUF writes the spaces of user-defined tokens (runs of spaces) plainly.
    let tokens: Vec<Cow<'_, str>> = vocab
        .tokens
        .iter()
        .zip(kinds)
        .map(|(token, kind)| match kind {
            Kind::UserDefined if token.contains(' ') => token.replace(' ', SPACE).into(),
            _ => Cow::Borrowed(&**token),
        })
        .collect();
    let spellings = tokens.iter().map(|token| &**token);
    let unknown = vocab
        .unk
        .map(|id| id as usize)
        .or_else(|| kinds.iter().position(|kind| *kind == Kind::Unknown));
    let rules = Rules {
        unknown: unknown.and_then(|id| Some(tokens.get(id)?.clone().into_owned())),
        fuse_unknown: true,
        ..Rules::default()
    };
    let mut model = Bpe::scored(spellings.clone(), merge_scores(&vocab.scores, kinds), rules)
        .map_err(|reason| malformed("tokens", reason))?;
    let byte_fallback = kinds.contains(&Kind::Byte)
        && (0..=255u8).all(|byte| model.id(&format!("<0x{byte:02X}>")).is_some());
    model.rules.byte_fallback = byte_fallback;
    let prefix = vocab.add_space_prefix.unwrap_or(true);

    let inner = caught(|| {
        let mut inner = Inner::new(Model::Bpe(model));
        let spaces: NormalizerWrapper = Replace::new(" ", SPACE)?.into();
        inner.with_normalizer(Some(match prefix {
            true => Normalizers::new(vec![Prepend::new(SPACE.to_owned()).into(), spaces]).into(),
            false => spaces,
        }))?;
        let mut steps: Vec<DecoderWrapper> = vec![
            Replace::new(SPACE, " ")?.into(),
            ByteFallback::default().into(),
            Fuse::default().into(),
        ];
        if prefix {
            steps.push(Strip::new(' ', 1, 0).into());
        }
        inner.with_decoder(Some(Sequence::new(steps)));
        inner.add_tokens(added(spellings, kinds))?;
        Ok(inner)
    })
    .map_err(|reason| malformed("tokens", reason))?;
    let rules = PieceRules {
        replace: vec![(SPACE.to_owned(), " ".to_owned())],
        byte_fallback,
        strip_left: prefix.then_some((b' ', 1)),
        ..PieceRules::default()
    };
    Ok((inner, rules))
}

/// By what each token is merged before others. SentencePiece keeps no merges: every split of a token into
/// two tokens is one; user-defined tokens score 0. Control tokens and bytes are never the outcome of a
/// merge, or users' text could spell them.
pub(super) fn merge_scores(scores: &[f32], kinds: &[Kind]) -> impl Iterator<Item = Option<f32>> {
    scores.iter().zip(kinds).map(|(&score, kind)| match kind {
        Kind::Normal => Some(score),
        Kind::UserDefined => Some(0.0),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> GgufVocab<'static> {
        GgufVocab {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens: ["a", "b", "ab", "<|im_end|>"].map(Cow::from).to_vec(),
            token_types: vec![1, 1, 1, 3],
            merges: vec!["a b".into()],
            eos: Some(3),
            ..GgufVocab::default()
        }
    }

    #[test]
    fn contradictions_are_errors_that_name_the_key() {
        type Spoil = fn(&mut GgufVocab<'_>);
        let cases: [(&str, Spoil); 6] = [
            ("tokenizer.ggml.tokens", |v| v.tokens.clear()),
            ("tokenizer.ggml.token_type", |v| v.token_types.truncate(2)),
            ("tokenizer.ggml.eos_token_id", |v| v.eos = Some(4)),
            ("tokenizer.ggml.merges", |v| v.merges = vec!["a c".into()]),
            ("tokenizer.ggml.merges", |v| v.merges = vec!["b a".into()]),
            ("tokenizer.ggml.scores", |v| v.model = "llama".into()),
        ];
        Tokenizer::from_gguf(tiny()).unwrap();
        for (key, spoil) in cases {
            let mut vocab = tiny();
            spoil(&mut vocab);
            let error = Tokenizer::from_gguf(vocab).unwrap_err().to_string();
            assert!(error.starts_with(key), "{key}: {error}");
        }
    }

    #[test]
    fn a_space_before_the_text_is_added_and_taken_away() {
        let mut vocab = GgufVocab {
            model: "llama".into(),
            tokens: ["<unk>", "<s>", "\u{2581}", "a", "\u{2581}a"]
                .map(Cow::from)
                .to_vec(),
            scores: vec![0.0, 0.0, -1.0, -2.0, -3.0],
            token_types: vec![2, 3, 1, 1, 1],
            bos: Some(1),
            unk: Some(0),
            ..GgufVocab::default()
        };
        for (prefix, ids) in [(None, vec![1, 4, 4]), (Some(false), vec![1, 3, 4])] {
            vocab.add_space_prefix = prefix;
            let tokenizer = Tokenizer::from_gguf(vocab.clone()).unwrap();
            let got = tokenizer
                .encode_with_bos("a a", crate::tokenizer::Specials::Plain)
                .unwrap();
            assert_eq!(got, ids);
            assert_eq!(tokenizer.decode(&got, true), "a a");
        }
    }

    #[test]
    fn users_text_never_merges_into_a_control_token() {
        let vocab = GgufVocab {
            model: "llama".into(),
            tokens: ["<unk>", "<", "s>", "s", ">", "<s>"]
                .map(Cow::from)
                .to_vec(),
            scores: vec![0.0, -1.0, -2.0, -3.0, -4.0, 0.0],
            token_types: vec![2, 1, 1, 1, 1, 3],
            add_space_prefix: Some(false),
            ..GgufVocab::default()
        };
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        let encode = |how| tokenizer.encode("<s>", how).unwrap();
        assert_eq!(encode(crate::tokenizer::Specials::Plain), [1, 2]);
        assert_eq!(encode(crate::tokenizer::Specials::Parse), [5]);
    }
}
