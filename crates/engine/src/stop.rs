//! Stop strings: where a text ends before its end, found while it comes in pieces.

use std::sync::Arc;

/// Strings at which a text ends. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
}

/// A string and its failure table (Knuth, Morris and Pratt 1977).
#[derive(Debug)]
struct Pattern {
    bytes: Box<[u8]>,
    /// For each number of bytes that match, less one: how many still match when the next does not.
    shorter: Box<[usize]>,
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes().into_boxed_slice();
        let mut pattern = Pattern {
            shorter: vec![0; bytes.len()].into(),
            bytes,
        };
        let mut matched = 0;
        for i in 1..pattern.bytes.len() {
            if let Some(&byte) = pattern.bytes.get(i) {
                matched = pattern.advance(matched, byte);
            }
            if let Some(place) = pattern.shorter.get_mut(i) {
                *place = matched;
            }
        }
        pattern
    }

    /// How many bytes match after `byte`, when `matched`, not all, did before.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        loop {
            if self.bytes.get(matched) == Some(&byte) {
                return matched + 1;
            }
            match matched
                .checked_sub(1)
                .and_then(|last| self.shorter.get(last))
            {
                Some(&fewer) => matched = fewer,
                None => return 0,
            }
        }
    }
}

impl StopStrings {
    /// # Errors
    /// Which of the strings is empty.
    pub fn new(strings: Vec<String>) -> Result<Self, String> {
        if let Some(i) = strings.iter().position(String::is_empty) {
            return Err(format!(
                "stop string {i} is empty, which would end every text before its start; leave it out"
            ));
        }
        Ok(StopStrings {
            patterns: strings.into_iter().map(Pattern::new).collect(),
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

/// What became of a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text before any stop string, with nothing in it that may still become one.
    pub emit: String,
    /// The position of the stop string that ended the text.
    pub stopped: Option<usize>,
}

/// Looks for stop strings in a text that comes in pieces. Where the text ends does not depend on the pieces.
///
/// The stop string that is whole first ends the text; of those whole at the same place the longest, and
/// of equals the first.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    strings: StopStrings,
    /// How many bytes at the text's end are the start of each string.
    matched: Vec<usize>,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher at the start of a text.
    pub fn new(strings: &StopStrings) -> Self {
        StopMatcher {
            matched: vec![0; strings.patterns.len()],
            strings: strings.clone(),
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes the next piece. After a stop nothing is emitted any more.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped.is_some() {
            return StopOutcome {
                emit: String::new(),
                stopped: self.stopped,
            };
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            let mut found: Option<(usize, usize)> = None;
            for (which, (pattern, matched)) in self
                .strings
                .patterns
                .iter()
                .zip(&mut self.matched)
                .enumerate()
            {
                *matched = pattern.advance(*matched, byte);
                let longest = found.map_or(0, |(_, length)| length);
                if *matched == pattern.bytes.len() && *matched > longest {
                    found = Some((which, *matched));
                }
            }
            if let Some((which, length)) = found {
                self.stopped = Some(which);
                // All of the string is held: its start was held back while it could become one.
                self.held.truncate(before + i + 1 - length);
                return StopOutcome {
                    emit: std::mem::take(&mut self.held),
                    stopped: self.stopped,
                };
            }
        }
        let pending = self.matched.iter().max().copied().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - pending);
        StopOutcome {
            emit: std::mem::replace(&mut self.held, rest),
            stopped: None,
        }
    }

    /// At the text's end: what was held back, and is no stop string after all.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(strings: &[&str]) -> StopMatcher {
        let strings = strings.iter().map(|s| (*s).to_owned()).collect();
        StopMatcher::new(&StopStrings::new(strings).unwrap())
    }

    fn run(strings: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = matcher(strings);
        let mut text = String::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            text += &outcome.emit;
            if outcome.stopped.is_some() {
                assert_eq!(matcher.push("more").emit, "");
                assert_eq!(matcher.finish(), "");
                return (text, outcome.stopped);
            }
        }
        (text + &matcher.finish(), None)
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut m = matcher(&["\nUser:", "###"]);
        let mut emit = |text: &str| m.push(text).emit;
        assert_eq!(emit("Hello"), "Hello");
        assert_eq!(emit(" there\nUs"), " there");
        assert_eq!(emit("ing it\n"), "\nUsing it");
        assert_eq!(emit("\n#"), "\n\n");
        assert_eq!(emit("# 2"), "## 2");
        assert_eq!(emit("##"), "");
        assert_eq!(m.finish(), "##");
    }

    #[test]
    fn the_first_whole_string_ends_the_text() {
        let text = |strings: &[&str], text: &str| run(strings, &[text]);
        assert_eq!(text(&["b", "abc"], "xabc"), ("xa".into(), Some(0)));
        assert_eq!(text(&["bc", "abc"], "xabc"), ("x".into(), Some(1)));
        assert_eq!(text(&["z", "a", "a"], "ba"), ("b".into(), Some(1)));
        assert_eq!(text(&["aab"], "aaab"), ("a".into(), Some(0)));
        assert_eq!(text(&["abcabd"], "abcabcabd"), ("abc".into(), Some(0)));
        assert_eq!(text(&[], "abc"), ("abc".into(), None));
        assert_eq!(text(&["é€"], "aé€🙂"), ("a".into(), Some(0)));
        // Bytes in common, but no character.
        assert_eq!(text(&["🙂"], "🙃"), ("🙃".into(), None));
    }

    #[test]
    fn empty_strings_are_refused() {
        let error = StopStrings::new(vec!["a".into(), String::new()]).unwrap_err();
        assert!(error.contains("stop string 1"), "{error}");
        assert!(StopStrings::new(Vec::new()).unwrap().is_empty());
    }

    /// The same by looking at each beginning of the whole text.
    fn plain(strings: &[String], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ends = strings
                .iter()
                .enumerate()
                .filter(|(_, s)| text[..end].ends_with(s.as_str()));
            if let Some((which, s)) = ends.min_by_key(|(i, s)| (usize::MAX - s.len(), *i)) {
                return (text[..end - s.len()].to_owned(), Some(which));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            strings in proptest::collection::vec("[ab€🙂]{1,5}", 0..4),
            text in "[ab€🙂c]{0,40}",
            sizes in proptest::collection::vec(0usize..4, 40),
        ) {
            let letters: Vec<char> = text.chars().collect();
            let mut rest = letters.as_slice();
            let mut pieces = Vec::new();
            for size in sizes {
                let (piece, after) = rest.split_at(size.min(rest.len()));
                pieces.push(piece.iter().collect::<String>());
                rest = after;
            }
            pieces.push(rest.iter().collect());
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let refs: Vec<&str> = strings.iter().map(String::as_str).collect();
            let want = plain(&strings, &text);
            prop_assert_eq!(run(&refs, &pieces), want.clone());
            prop_assert_eq!(run(&refs, &[&text]), want);
        }
    }
}
