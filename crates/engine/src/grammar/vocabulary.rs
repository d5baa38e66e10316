//! A tokenizer as the parser sees it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::{Error, Result};
use crate::tokenizer::{Specials, Tokenizer};

/// Longest token in bytes that the trie has room for; longer ones are never chosen.
const LONGEST_TOKEN: usize = 1000;

/// Most tokens and bytes of all tokens that the trie has room for.
const MOST_TOKENS: usize = 1 << 21;

/// Put before a text whose tokens would begin with a space of the tokenizer's own.
const GUARD: &str = "\u{2}";

/// Texts by which it is seen whether tokens of a text's middle can be had.
const PROBES: [&str; 4] = ["\"name\": ", ": true, \"", "name", " \n]"];

pub(super) struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
    guard: Vec<TokenId>,
    canonical: bool,
}

impl Vocabulary {
    /// For logits of `width` tokens; greater ids are never chosen.
    pub fn new(tokenizer: Arc<Tokenizer>, stop_ids: &[u32], width: usize) -> Result<Self> {
        let size = tokenizer.vocab_size().min(width);
        let reason = |reason: &str| Error::Vocabulary {
            reason: reason.into(),
        };
        let words: Vec<Vec<u8>> = (0u32..).take(size).map(|id| word(&tokenizer, id)).collect();
        if size == 0 || size > MOST_TOKENS || words.iter().map(Vec::len).sum::<usize>() > 1 << 28 {
            return Err(reason("it is empty or has more than 2 million tokens"));
        }
        let stops: Vec<TokenId> = stop_ids
            .iter()
            .copied()
            .filter(|&id| (id as usize) < size)
            .collect();
        let first = stops.first().copied().unwrap_or(INVALID_TOKEN);
        let info = TokRxInfo::new(size as u32, first);
        // The trie's own checks are assertions.
        let trie = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&info, &words);
            match stops.is_empty() {
                true => trie,
                false => trie.with_eos_tokens(&stops),
            }
        }))
        .map_err(|_| reason("its tokens make no prefix tree"))?;
        let guard = tokenizer.encode(GUARD, Specials::Plain).unwrap_or_default();
        let mut vocabulary = Vocabulary {
            trie,
            tokenizer,
            guard,
            canonical: true,
        };
        vocabulary.canonical = PROBES
            .iter()
            .all(|probe| vocabulary.encode(probe).is_some());
        Ok(vocabulary)
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens that the tokenizer itself makes of a piece of text, unless their bytes are others.
    fn encode(&self, text: &str) -> Option<Vec<TokenId>> {
        let ids = self.tokenizer.encode(text, Specials::Plain).ok()?;
        if self.spells(&ids, text) {
            return Some(ids);
        }
        let guarded = format!("{GUARD}{text}");
        let ids = self.tokenizer.encode(&guarded, Specials::Plain).ok()?;
        let ids = ids.strip_prefix(self.guard.as_slice())?;
        self.spells(ids, text).then(|| ids.to_vec())
    }

    fn spells(&self, ids: &[TokenId], text: &str) -> bool {
        let mut rest = text.as_bytes();
        for &id in ids {
            let token = self.trie.token(id);
            match rest.strip_prefix(token) {
                Some(left) if !token.is_empty() => rest = left,
                _ => return false,
            }
        }
        rest.is_empty()
    }
}

/// A token's bytes; a control token's are marked so that no text is like it. None for a token that is
/// never chosen.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let marker = TokTrie::SPECIAL_TOKEN_MARKER;
    if bytes.is_empty() || bytes.len() > LONGEST_TOKEN {
        return Vec::new();
    }
    if tokenizer.is_special(id) {
        return [&[marker], bytes].concat();
    }
    // No text has this byte, and the parser would take the token for a control token.
    if bytes.contains(&marker) {
        return Vec::new();
    }
    bytes.to_vec()
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let mut ids = Vec::new();
        for chunk in bytes.utf8_chunks() {
            if !chunk.valid().is_empty() {
                ids.extend(
                    self.encode(chunk.valid())
                        .unwrap_or_else(|| self.trie.greedy_tokenize(chunk.valid().as_bytes())),
                );
            }
            ids.extend(self.trie.greedy_tokenize(chunk.invalid()));
        }
        ids
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}
