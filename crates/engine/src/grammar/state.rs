//! One answer's place in its grammar.

use llguidance::{Matcher, api::StopReason};

use super::{Error, Result};
use crate::sampling::TokenMask;

/// Where an answer is in its grammar, and what may come next.
pub struct GrammarState {
    matcher: Box<Matcher>,
    mask: Option<TokenMask>,
}

impl GrammarState {
    pub(super) fn new(matcher: Matcher) -> Self {
        GrammarState {
            matcher: Box::new(matcher),
            mask: None,
        }
    }

    /// The tokens that may come next: the model's stop tokens among them where the answer may end, and
    /// only they where it must.
    ///
    /// # Errors
    /// [`Error::Stuck`] when none may, [`Error::TooComplex`] when too much is to be computed.
    pub fn mask(&mut self) -> Result<&TokenMask> {
        if self.mask.is_none() {
            let set = self.matcher.compute_mask_or_eos().map_err(failure)?;
            let size = set.len();
            let mut words = set.as_slice().to_vec();
            words.truncate(size.div_ceil(32));
            let mask = TokenMask::from_words(words);
            if mask.count() == 0 && !self.is_finished() {
                return Err(Error::Stuck);
            }
            self.mask = Some(mask);
        }
        self.mask.as_ref().ok_or(Error::Stuck)
    }

    /// The answer goes on with a token.
    ///
    /// # Errors
    /// [`Error::Refused`] for a token that may not come.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        self.mask = None;
        self.matcher
            .consume_token(id)
            .map_err(|error| match failure(error) {
                Error::Fault { .. } => Error::Refused { id },
                other => other,
            })
    }

    /// The tokens that come next without a choice, as the tokenizer itself would make them of the text
    /// that must come. They are not accepted yet; [`mask`](Self::mask) allows nothing else.
    ///
    /// # Errors
    /// [`Error::Fault`].
    pub fn forced(&mut self) -> Result<Vec<u32>> {
        if self.is_finished() {
            return Ok(Vec::new());
        }
        let ids = self.matcher.compute_ff_tokens();
        match self.matcher.get_error() {
            Some(error) => Err(failure(error)),
            None => Ok(ids),
        }
    }

    /// Whether the answer is complete and nothing can follow.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// Whether the answer may end here.
    ///
    /// # Errors
    /// [`Error::Fault`].
    pub fn may_end(&mut self) -> Result<bool> {
        Ok(self.is_finished() || self.matcher.is_accepting().map_err(failure)?)
    }
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarState")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// The parser says by its words only what went wrong.
pub(super) fn failure(error: impl ToString) -> Error {
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default().trim();
    let reason = text.to_owned();
    if text.starts_with(&StopReason::NoExtensionBias.to_string()) {
        Error::Stuck
    } else if text.contains("limit")
        || text.contains("fuel")
        || text.contains("too complex")
        || text.contains("too many")
    {
        Error::TooComplex { reason }
    } else {
        Error::Fault { reason }
    }
}
