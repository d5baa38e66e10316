//! Byte-pair encoding over compact tables: a vocabulary takes a tenth of what hash maps of strings take, and
//! is there ten times sooner. Results are those of the tokenizers crate's model of the same name.

mod json;
mod merges;
mod spellings;
mod table;
#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::BinaryHeap};

use self::{
    merges::{Merges, Rank},
    spellings::Spellings,
};

/// A byte-pair encoding.
#[derive(Clone, Debug)]
pub(super) struct Bpe {
    spellings: Spellings,
    merges: Merges,
    pub rules: Rules,
}

/// How letters become tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    /// Stands for letters without a token.
    pub unknown: Option<String>,
    /// One unknown token for several such letters in a row.
    pub fuse_unknown: bool,
    /// Letters without a token become tokens `<0xNN>` of their bytes where there are such.
    pub byte_fallback: bool,
    /// A word that is a token is that token, whatever the merges say.
    pub whole_words: bool,
}

/// One token of a text on the way: a list within a vector.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Bytes of the text; 0 once it is merged into the one before it.
    len: usize,
    before: usize,
    after: usize,
}

/// No symbol.
const NONE: usize = usize::MAX;

impl Bpe {
    /// From spellings by id and pairs of them that merge.
    ///
    /// # Errors
    /// A sentence, as all of this module's.
    pub fn listed<'t>(
        tokens: impl Iterator<Item = Option<&'t str>> + Clone,
        merges: impl ExactSizeIterator<Item = (&'t str, &'t str)>,
        rules: Rules,
    ) -> Result<Self, String> {
        let spellings = Spellings::new(tokens)?;
        let merges = Merges::listed(&spellings, merges)?;
        Ok(Bpe {
            spellings,
            merges,
            rules,
        })
    }

    /// From spellings by id and scores, `None` for a token that no merge has to do with.
    pub fn scored<'t>(
        tokens: impl Iterator<Item = &'t str> + Clone,
        scores: impl Iterator<Item = Option<f32>>,
        rules: Rules,
    ) -> Result<Self, String> {
        Ok(Bpe {
            spellings: Spellings::new(tokens.map(Some))?,
            merges: Merges::scored(scores),
            rules,
        })
    }

    /// Number of tokens with different spellings.
    pub fn len(&self) -> usize {
        self.spellings.len()
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.spellings.id(token)
    }

    /// A token's spelling; of two tokens spelled alike only the first has one.
    pub fn token(&self, id: u32) -> Option<&str> {
        let token = self.spellings.of(id);
        (self.id(token) == Some(id)).then_some(token)
    }

    /// All tokens, in the order of their ids.
    pub fn tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.spellings.iter()
    }

    /// All merges, the first to be done first.
    pub fn merges(&self) -> Vec<(&str, &str)> {
        let list = self.merges.list(&self.spellings);
        let spelling = |id| self.spellings.of(id);
        list.into_iter()
            .map(|(left, right)| (spelling(left), spelling(right)))
            .collect()
    }

    /// The tokens of a word, each with its bytes' number.
    ///
    /// # Errors
    /// Where a letter without a token meets an unknown token that does not exist.
    pub fn encode(&self, word: &str) -> Result<Vec<(u32, usize)>, String> {
        if self.rules.whole_words
            && let Some(id) = self.id(word)
        {
            return Ok(vec![(id, word.len())]);
        }
        let mut symbols = self.letters(word)?;
        self.merge(&mut symbols);
        symbols.retain(|symbol| symbol.len > 0);
        Ok(symbols.into_iter().map(|s| (s.id, s.len)).collect())
    }

    fn letters(&self, word: &str) -> Result<Vec<Symbol>, String> {
        let mut symbols = Vec::with_capacity(word.len());
        let push = |symbols: &mut Vec<Symbol>, (id, len)| {
            let at = symbols.len();
            if let Some(last) = symbols.last_mut() {
                last.after = at;
            }
            symbols.push(Symbol {
                id,
                len,
                before: at.checked_sub(1).unwrap_or(NONE),
                after: NONE,
            });
        };
        let mut unknown: Option<(u32, usize)> = None;
        for (at, letter) in word.char_indices() {
            let letter = &word[at..at + letter.len_utf8()];
            if let Some(id) = self.id(letter) {
                if let Some(unknown) = unknown.take() {
                    push(&mut symbols, unknown);
                }
                push(&mut symbols, (id, letter.len()));
                continue;
            }
            if let Some(bytes) = self.bytes(letter) {
                for id in bytes {
                    push(&mut symbols, (id, 1));
                }
                continue;
            }
            let Some(name) = &self.rules.unknown else {
                continue;
            };
            unknown = match unknown {
                Some((id, len)) if self.rules.fuse_unknown => Some((id, len + letter.len())),
                other => {
                    if let Some(other) = other {
                        push(&mut symbols, other);
                    }
                    let missing = || format!("the unknown token {name:?} is no token");
                    Some((self.id(name).ok_or_else(missing)?, letter.len()))
                }
            };
        }
        if let Some(unknown) = unknown {
            push(&mut symbols, unknown);
        }
        Ok(symbols)
    }

    /// Tokens of a letter's bytes, if that is how it is to be written and all are there.
    fn bytes(&self, letter: &str) -> Option<Vec<u32>> {
        if !self.rules.byte_fallback {
            return None;
        }
        let id = |byte| self.id(&format!("<0x{byte:02X}>"));
        letter.bytes().map(id).collect()
    }

    /// Merges until nothing does: the lowest rank first, of equal ones the first in the text.
    fn merge(&self, symbols: &mut [Symbol]) {
        let mut room = String::new();
        let mut find = |left: &Symbol, right: &Symbol| {
            self.merges
                .find(&self.spellings, left.id, right.id, &mut room)
        };
        let mut queue: BinaryHeap<Reverse<(Rank, usize, u32)>> = symbols
            .windows(2)
            .enumerate()
            .filter_map(|(at, pair)| {
                let (rank, id) = find(&pair[0], &pair[1])?;
                Some(Reverse((rank, at, id)))
            })
            .collect();
        while let Some(Reverse((_, at, id))) = queue.pop() {
            let left = symbols[at];
            if left.len == 0 || left.after == NONE {
                continue;
            }
            // One of the two may have been merged otherwise meanwhile.
            let right = symbols[left.after];
            if find(&left, &right).is_none_or(|(_, now)| now != id) {
                continue;
            }
            symbols[left.after].len = 0;
            if right.after != NONE {
                symbols[right.after].before = at;
            }
            let merged = Symbol {
                id,
                len: left.len + right.len,
                before: left.before,
                after: right.after,
            };
            symbols[at] = merged;
            if merged.before != NONE
                && let Some((rank, id)) = find(&symbols[merged.before], &merged)
            {
                queue.push(Reverse((rank, merged.before, id)));
            }
            if merged.after != NONE
                && let Some((rank, id)) = find(&merged, &symbols[merged.after])
            {
                queue.push(Reverse((rank, at, id)));
            }
        }
    }
}
