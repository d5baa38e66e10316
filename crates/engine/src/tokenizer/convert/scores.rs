//! SentencePiece's scores from the order of merges.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::Merges;

use crate::tokenizer::gguf::{Kind, ids, merges_by_score};

/// What llama.cpp's converter gives to tokens that no text is merged into.
const NO_SCORE: f32 = -1000.0;

/// Scores by which a reader of GGUF finds the merges again.
pub(super) struct Scores {
    /// One a token: the earlier its first merge, the greater.
    pub values: Vec<f32>,
    /// Whether the merges that the scores stand for are `merges`, in the order of what they make.
    pub exact: bool,
}

/// Scores of `tokens`, spelled as in tokenizer.json: what the merge of rank `r` makes scores `-r`,
/// letters less than that.
pub(super) fn scores(tokens: &[String], kinds: &[Kind], merges: &Merges) -> Scores {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let values: Vec<f32> = tokens
        .iter()
        .zip(kinds)
        .map(|(token, kind)| match kind {
            Kind::Normal | Kind::UserDefined => {
                let rank = ranks.get(token).copied().unwrap_or(merges.len());
                -(rank as f32)
            }
            _ => NO_SCORE,
        })
        .collect();
    let found = merges_by_score(tokens, &values, kinds, &ids(tokens));
    let exact = found.len() == merges.len()
        && found.iter().zip(merges).all(|(a, b)| made(a).eq(made(b)))
        && found.iter().collect::<HashSet<_>>() == merges.iter().collect();
    Scores { values, exact }
}

fn made((left, right): &(String, String)) -> impl Iterator<Item = u8> {
    left.bytes().chain(right.bytes())
}
