//! What a model thinks before it answers.

/// What a model writes around its thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    /// Before them.
    pub open: &'static str,
    /// After them.
    pub close: &'static str,
}

impl ReasoningTags {
    const ALL: [Self; 3] = [
        Self {
            open: "<think>",
            close: "</think>",
        },
        Self {
            open: "[THINK]",
            close: "[/THINK]",
        },
        Self {
            open: "<|START_THINKING|>",
            close: "<|END_THINKING|>",
        },
    ];

    /// The tags of a model with this chat template; none for a model that does not think aloud.
    pub fn detect(template: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|tags| template.contains(tags.close))
    }
}

/// Whether an answer contains reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reasoning {
    /// It does not, or the prompt ended it already.
    #[default]
    None,
    /// It may begin with some.
    Possible(ReasoningTags),
    /// The prompt has begun it: the answer starts within.
    Begun(ReasoningTags),
}

impl Reasoning {
    /// For an answer after this prompt.
    ///
    /// ```
    /// use biplane::tools::{Reasoning, ReasoningTags};
    /// let tags = ReasoningTags::detect("..<think>..</think>..").unwrap();
    /// let after = |prompt| Reasoning::after(Some(tags), prompt);
    /// assert_eq!(after("<｜Assistant｜><think>\n"), Reasoning::Begun(tags));
    /// assert_eq!(after("<｜Assistant｜>"), Reasoning::Possible(tags));
    /// assert_eq!(after("<think>\n\n</think>\n\n"), Reasoning::None);
    /// ```
    pub fn after(tags: Option<ReasoningTags>, prompt: &str) -> Self {
        let Some(tags) = tags else {
            return Self::None;
        };
        let prompt = prompt.trim_end();
        if prompt.ends_with(tags.open) {
            Self::Begun(tags)
        } else if prompt.ends_with(tags.close) {
            Self::None
        } else {
            Self::Possible(tags)
        }
    }
}
