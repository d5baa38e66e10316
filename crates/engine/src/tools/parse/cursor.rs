//! Reading forward through text that may not have come to its end yet.

/// Why something cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The text ends too early; more of it may mend that.
    More,
    /// It is something else.
    Wrong,
}

pub(super) type Read<T> = Result<T, Stop>;

/// A place in a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'t> {
    text: &'t str,
    /// In bytes, at a character's beginning.
    pub at: usize,
}

impl<'t> Cursor<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    pub fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    pub fn since(&self, start: usize) -> &'t str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// The next character.
    pub fn peek(&self) -> Read<char> {
        self.rest().chars().next().ok_or(Stop::More)
    }

    pub fn next(&mut self) -> Read<char> {
        let letter = self.peek()?;
        self.at += letter.len_utf8();
        Ok(letter)
    }

    /// Goes over what may stand here or not.
    pub fn skip(&mut self, literal: &str) -> Read<bool> {
        if self.rest().starts_with(literal) {
            self.at += literal.len();
            return Ok(true);
        }
        if literal.starts_with(self.rest()) {
            return Err(Stop::More);
        }
        Ok(false)
    }

    /// Goes over what must stand here.
    pub fn expect(&mut self, literal: &str) -> Read<()> {
        self.skip(literal)?.then_some(()).ok_or(Stop::Wrong)
    }

    pub fn space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    /// Goes over letters as long as they are of a kind; the text's end ends them, too.
    pub fn take_while(&mut self, kind: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !kind(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// The text before `literal`; goes over both.
    pub fn until(&mut self, literal: &str) -> Read<&'t str> {
        let (before, _) = self.rest().split_once(literal).ok_or(Stop::More)?;
        self.at += before.len() + literal.len();
        Ok(before)
    }
}

/// The first of several markers in a text, and where it begins; without one, from where on the text
/// may turn out to be the beginning of one.
pub(super) fn find(text: &str, markers: &[&'static str]) -> Result<(usize, &'static str), usize> {
    let found = markers
        .iter()
        .filter_map(|marker| Some((text.find(marker)?, *marker)))
        .min_by_key(|(at, marker)| (*at, std::cmp::Reverse(marker.len())));
    if let Some(found) = found {
        return Ok(found);
    }
    let longest = markers.iter().map(|m| m.len()).max().unwrap_or(0);
    let from = text.len().saturating_sub(longest.saturating_sub(1));
    let may_begin = |at: &usize| {
        text.get(*at..)
            .is_some_and(|end| markers.iter().any(|marker| marker.starts_with(end)))
    };
    Err((from..text.len()).find(may_begin).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_and_awaited() {
        let markers = ["<tool>", "```json"];
        assert_eq!(find("a<tool>b```json", &markers), Ok((1, "<tool>")));
        assert_eq!(find("a<to", &markers), Err(1));
        assert_eq!(find("é``", &markers), Err(2));
        assert_eq!(find("a<b", &markers), Err(3));
        assert_eq!(find("", &markers), Err(0));
    }
}
