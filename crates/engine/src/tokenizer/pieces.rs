//! The bytes of each token, as the tokenizer's decoder would make them.

use std::borrow::Cow;

use serde_json::Value;

use super::{Error, Result};

/// Ids may be sparse (padded vocabularies), but not so sparse that a small file asks for a large table.
pub(super) const SPARE_IDS: usize = 1 << 17;

/// How a token's spelling becomes bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PieceRules {
    /// GPT-2's alphabet: each letter stands for one byte.
    pub byte_level: bool,
    /// Literal replacements in order, as `▁` by a space.
    pub replace: Vec<(String, String)>,
    /// `<0x0A>` is a byte.
    pub byte_fallback: bool,
    /// An ASCII letter, and how many of it are dropped at the beginning of a whole text.
    pub strip_left: Option<(u8, usize)>,
}

impl PieceRules {
    /// Reads a tokenizer.json's `decoder`.
    pub fn from_decoder(origin: &str, decoder: &Value) -> Result<Self> {
        let mut rules = Self::default();
        let mut fused = false;
        rules.read(origin, decoder, &mut fused)?;
        Ok(rules)
    }

    fn read(&mut self, origin: &str, step: &Value, fused: &mut bool) -> Result<()> {
        let unsupported = || Error::Unsupported {
            origin: origin.to_owned(),
            what: format!("decoder {step}"),
            supported: "ByteLevel, Metaspace, and Replace of a string, ByteFallback, Fuse, Strip \
                        at the start, or a Sequence of them"
                .into(),
        };
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        match text("type").unwrap_or_default() {
            "Sequence" => {
                let steps = step.get("decoders").and_then(Value::as_array);
                for inner in steps.ok_or_else(unsupported)? {
                    self.read(origin, inner, fused)?;
                }
            }
            "ByteLevel" => {
                self.byte_level = true;
                *fused = true;
            }
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => *fused = true,
            "Replace" => {
                let pattern = step.pointer("/pattern/String").and_then(Value::as_str);
                let pattern = pattern.filter(|p| !p.is_empty()).ok_or_else(unsupported)?;
                let content = text("content").ok_or_else(unsupported)?;
                self.replace.push((pattern.to_owned(), content.to_owned()));
            }
            "Metaspace" => {
                let replacement = text("replacement").filter(|r| !r.is_empty());
                let replacement = replacement.ok_or_else(unsupported)?;
                self.replace.push((replacement.to_owned(), " ".to_owned()));
                if text("prepend_scheme") != Some("never") {
                    self.strip_left = Some((b' ', 1));
                }
            }
            // Before Fuse it would work on each token, after it on the text: only that is met.
            "Strip" if *fused && step.get("stop").and_then(Value::as_u64) == Some(0) => {
                let letter = match text("content").map(str::as_bytes) {
                    Some([letter]) if letter.is_ascii() => *letter,
                    _ => return Err(unsupported()),
                };
                let start = step
                    .get("start")
                    .and_then(Value::as_u64)
                    .ok_or_else(unsupported)?;
                self.strip_left = Some((letter, usize::try_from(start).unwrap_or(usize::MAX)));
            }
            _ => return Err(unsupported()),
        }
        Ok(())
    }

    fn write(&self, token: &str, out: &mut Vec<u8>) {
        if self.byte_level {
            let start = out.len();
            for letter in token.chars() {
                let Some(byte) = byte_of(letter) else {
                    // An added token with letters outside the alphabet stands for itself.
                    out.truncate(start);
                    out.extend_from_slice(token.as_bytes());
                    return;
                };
                out.push(byte);
            }
            return;
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            out.push(byte);
            return;
        }
        let mut text = Cow::Borrowed(token);
        for (pattern, content) in &self.replace {
            if text.contains(pattern) {
                text = text.replace(pattern, content).into();
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// The byte of `<0xNN>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The byte that a letter of GPT-2's byte alphabet stands for: printable Latin-1 is itself, the
/// other 68 bytes follow from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The bytes of all tokens in one run.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where the one before it ends.
    ends: Vec<usize>,
    special: Vec<bool>,
    strip_left: Option<(u8, usize)>,
}

impl Pieces {
    /// `tokens` are (id, spelling, control token); ids without a token stand for no bytes.
    pub fn new<'t>(
        origin: &str,
        rules: &PieceRules,
        tokens: impl IntoIterator<Item = (u32, Cow<'t, str>, bool)>,
    ) -> Result<Self> {
        let mut tokens: Vec<_> = tokens.into_iter().collect();
        tokens.sort_by_key(|(id, ..)| *id);
        let greatest = tokens.last().map_or(0, |(id, ..)| *id as usize);
        if greatest > tokens.len().saturating_mul(2).saturating_add(SPARE_IDS) {
            return Err(Error::Malformed {
                origin: origin.to_owned(),
                reason: format!(
                    "token id {greatest} is far beyond its {} tokens",
                    tokens.len()
                ),
            });
        }
        let mut pieces = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(greatest + 1),
            special: Vec::with_capacity(greatest + 1),
            strip_left: rules.strip_left,
        };
        for (id, token, special) in tokens {
            let id = id as usize;
            if pieces.ends.len() > id {
                return Err(Error::Malformed {
                    origin: origin.to_owned(),
                    reason: format!("two tokens have id {id}, one is {token:?}"),
                });
            }
            pieces.ends.resize(id, pieces.bytes.len());
            pieces.special.resize(id, false);
            rules.write(&token, &mut pieces.bytes);
            pieces.ends.push(pieces.bytes.len());
            pieces.special.push(special);
        }
        Ok(pieces)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = match id.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..end)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub fn strip_left(&self) -> Option<(u8, usize)> {
        self.strip_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let letters = (0..0x200).filter_map(char::from_u32);
        let mut bytes: Vec<u8> = letters.filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn fallback_bytes_are_two_digits() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        for other in ["<0xA>", "<0x+A>", "<0xAG>", "0x0A"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }

    #[test]
    fn an_id_far_beyond_the_vocabulary_is_refused() {
        let tokens = [(0, "a".into(), false), (u32::MAX, "b".into(), false)];
        let error = Pieces::new("t", &PieceRules::default(), tokens).unwrap_err();
        assert!(error.to_string().contains("4294967295"), "{error}");
    }
}
