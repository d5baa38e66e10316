//! Keeps control tokens' names in users' text from becoming control tokens once a chat template has
//! mixed that text with its own.

use std::borrow::Cow;

use tokenizers::{NormalizerWrapper, OffsetReferential, OffsetType};

use super::{Error, Result, Tokenizer, caught};

/// A noncharacter, which Unicode sets aside for a program's own use.
pub(crate) const MARK: char = '\u{FDD0}';

/// Names that overlap are met one pass after the other.
const PASSES: usize = 16;

impl Tokenizer {
    /// Marks the control tokens' names in a user's text, so that
    /// [`Specials::Guarded`](super::Specials::Guarded) takes them for text. Apply it to each text
    /// before the chat template renders it; names may also span parts that the template puts side by
    /// side. The mark is U+FDD0; one in the text itself becomes U+FFFD.
    ///
    /// # Errors
    /// [`Error::Encode`] when the tokenizer's own rules fail on the text.
    pub fn guard<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        match text.contains(MARK) {
            true => {
                let clean = text.replace(MARK, "\u{FFFD}");
                Ok(Cow::Owned(self.guard_more(&clean)?.into_owned()))
            }
            false => self.guard_more(text),
        }
    }

    /// As [`Self::guard`], for a text that may be marked already.
    pub(crate) fn guard_more<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        let mut text = Cow::Borrowed(text);
        for _ in 0..PASSES {
            let places = caught(|| Ok(self.mark_places(&text))).map_err(Error::Encode)?;
            if places.is_empty() {
                return Ok(text);
            }
            let mut marked = String::with_capacity(text.len() + places.len() * MARK.len_utf8());
            let mut done = 0;
            for place in places {
                marked.push_str(text.get(done..place).unwrap_or_default());
                marked.push(MARK);
                done = place;
            }
            marked.push_str(text.get(done..).unwrap_or_default());
            text = Cow::Owned(marked);
        }
        Err(Error::Encode(
            "its control tokens' names overlap too often".into(),
        ))
    }

    /// Where, in bytes, the names of control tokens can be broken: after each one's first letter.
    fn mark_places(&self, text: &str) -> Vec<usize> {
        // A name may be searched for in normalized text: look at both.
        let plain = self
            .parsing
            .extract_and_normalize(None::<&NormalizerWrapper>, text);
        let normalized = self
            .parsing
            .extract_and_normalize(self.inner.get_normalizer(), text);
        let mut places = Vec::new();
        for parts in [plain, normalized] {
            for (_, (start, end), tokens) in
                parts.get_splits(OffsetReferential::Original, OffsetType::Byte)
            {
                let is_special = tokens.as_ref().and_then(|t| t.first());
                if !is_special.is_some_and(|token| self.pieces.is_special(token.id)) {
                    continue;
                }
                let name = text.get(start..end).unwrap_or_default();
                let spaces = name.len() - name.trim_start().len();
                let mut letters = name.trim().chars();
                if let Some(first) = letters.next()
                    && letters.next().is_some()
                {
                    places.push(start + spaces + first.len_utf8());
                }
            }
        }
        places.sort_unstable();
        places.dedup();
        places
    }
}
