//! SentencePiece's scores from the order of merges.

use std::collections::{HashMap, HashSet};

use crate::tokenizer::{
    bpe::{Bpe, Rules},
    gguf::{Kind, merge_scores},
};

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
pub(super) fn scores(tokens: &[String], kinds: &[Kind], merges: &[(&str, &str)]) -> Scores {
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
    let spellings = tokens.iter().map(String::as_str);
    let model = Bpe::scored(spellings, merge_scores(&values, kinds), Rules::default());
    let found = model.as_ref().map(Bpe::merges).unwrap_or_default();
    let exact = found.len() == merges.len()
        && found.iter().zip(merges).all(|(a, b)| made(a).eq(made(b)))
        && found.iter().collect::<HashSet<_>>() == merges.iter().collect();
    Scores { values, exact }
}

fn made<'t>((left, right): &(&'t str, &'t str)) -> impl Iterator<Item = u8> + 't {
    left.bytes().chain(right.bytes())
}
