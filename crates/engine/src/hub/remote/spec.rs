//! How a model on the hub is named: `org/name[@revision][:quant]`.

/// A model on the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spec<'a> {
    /// `org/name`.
    pub id: &'a str,
    /// Branch, tag or commit hash; `None` is the default branch.
    pub revision: Option<&'a str>,
    /// Part of a GGUF file's name.
    pub quant: Option<&'a str>,
}

/// No name on the hub is longer.
const LONGEST: usize = 96;

impl<'a> Spec<'a> {
    /// `None` where the text is no model's name: its parts become file names in the cache, so that
    /// only letters, digits and `-_.` may be in them.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (text, quant) = match text.split_once(':') {
            Some((text, quant)) => (text, Some(quant)),
            None => (text, None),
        };
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (org, name) = id.split_once('/')?;
        let parts = [Some(org), Some(name), revision, quant];
        // A file of such a name is meant, not a repository.
        let file = [".gguf", ".safetensors", ".json"]
            .iter()
            .any(|end| name.ends_with(end));
        (!file && parts.into_iter().flatten().all(is_word)).then_some(Self {
            id,
            revision,
            quant,
        })
    }

    /// The revision that is asked for.
    pub(super) fn revision(&self) -> &'a str {
        self.revision.unwrap_or("main")
    }
}

fn is_word(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=LONGEST).contains(&part.len())
        && part.chars().all(plain)
        && !part.starts_with(['.', '-'])
        && !part.contains("..")
}

/// A full commit hash, which always means the same files.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_hex(revision)
}

/// Lower-case hexadecimal digits only.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let parse = |text| Spec::parse(text).map(|s| (s.id, s.revision, s.quant));
        assert_eq!(parse("a/b"), Some(("a/b", None, None)));
        assert_eq!(
            parse("a-1/b.c_d@v1.0:Q4_K_M"),
            Some(("a-1/b.c_d", Some("v1.0"), Some("Q4_K_M")))
        );
        assert_eq!(parse("a/b:q8_0"), Some(("a/b", None, Some("q8_0"))));
    }

    #[test]
    fn what_could_leave_the_cache_is_no_name() {
        for text in [
            "",
            "a",
            "a/",
            "/a",
            "../x",
            "a/..",
            "./x",
            "a/b/c",
            "a/b@",
            "a/b:",
            "a/b@../..",
            "a/b@x/y",
            "a/b:../x",
            "a/b@x@y",
            "a/b:x:y",
            "a\\b/c",
            "a/b c",
            "é/b",
            "a/b%2f",
            "-a/b",
            "C:\\a/b",
            "a/.b",
            "a/b..c",
            "a/model.gguf",
        ] {
            assert_eq!(Spec::parse(text), None, "{text}");
        }
        assert_eq!(Spec::parse(&format!("a/{}", "b".repeat(97))), None);
    }
}
