use std::sync::Arc;

use super::pieces::Pieces;

/// Turns tokens into text one at a time. What it gives, put together, is exactly
/// [`Tokenizer::decode`](super::Tokenizer::decode) of all the tokens.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    skip_special: bool,
    /// Control tokens that are not skipped.
    shown: Vec<u32>,
    /// Letters that may still be dropped, as long as nothing has been given.
    strip_left: Option<(u8, usize)>,
    /// The beginning of a character whose other bytes have not come yet: at most 3 bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(pieces: Arc<Pieces>, skip_special: bool) -> Self {
        let strip_left = pieces.strip_left();
        Self {
            pieces,
            skip_special,
            shown: Vec::new(),
            strip_left,
            pending: Vec::new(),
        }
    }

    /// Gives these control tokens' names even where it leaves out others'.
    pub fn showing(mut self, tokens: Vec<u32>) -> Self {
        self.shown = tokens;
        self
    }

    /// The tokens go on with a text: nothing is dropped at their beginning.
    pub fn continuing(mut self) -> Self {
        self.strip_left = None;
        self
    }

    /// Takes the next token and gives the text that is now certain, never half a character; none
    /// when there is no more text yet. Ids outside the vocabulary stand for no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut text = String::new();
        self.push_to(id, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Gives what is left: U+FFFD for a character that never became whole.
    pub fn finish(mut self) -> Option<String> {
        let mut text = String::new();
        self.finish_to(&mut text);
        (!text.is_empty()).then_some(text)
    }

    /// As [`Self::finish`], and ready for another text.
    pub(crate) fn take_rest(&mut self) -> String {
        let mut text = String::new();
        self.finish_to(&mut text);
        text
    }

    pub(super) fn push_to(&mut self, id: u32, text: &mut String) {
        if self.skip_special && self.pieces.is_special(id) && !self.shown.contains(&id) {
            return;
        }
        let mut bytes = self.pieces.bytes(id).unwrap_or_default();
        if let Some((letter, left)) = &mut self.strip_left {
            while *left > 0
                && let Some((first, rest)) = bytes.split_first()
                && first == letter
            {
                bytes = rest;
                *left -= 1;
            }
            if bytes.is_empty() {
                return;
            }
            self.strip_left = None;
        }
        if self.pending.is_empty() {
            push_lossy(bytes, text, &mut self.pending);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            push_lossy(&joined, text, &mut self.pending);
        }
    }

    pub(super) fn finish_to(&mut self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.pending)));
    }
}

/// Appends `bytes` to `text`, with U+FFFD for what can be no character, and to `pending` what may
/// still become one.
fn push_lossy(bytes: &[u8], text: &mut String, pending: &mut Vec<u8>) {
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(bad) = error.error_len() else {
                    pending.extend_from_slice(after);
                    return;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = after.get(bad..).unwrap_or_default();
            }
        }
    }
}
