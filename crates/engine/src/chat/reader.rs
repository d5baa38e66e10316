//! From a model's text to what it means.

use crate::{
    Event, FinishReason,
    tools::{Delta, ToolParser},
};

use super::{ChatEvent, ChatFinish};

/// Understands one answer's events.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    parser: Option<ToolParser>,
    hidden: Hidden,
    has_calls: bool,
    /// Tokens since the last that was understood, and those of reasoning.
    unread: usize,
    thought: usize,
}

impl Reader {
    /// `markers` are names of control tokens that the parser sees: they are not for the reader.
    pub fn new(parser: ToolParser, markers: Vec<String>) -> Self {
        Self {
            parser: Some(parser),
            hidden: Hidden {
                names: markers,
                held: String::new(),
            },
            has_calls: false,
            unread: 0,
            thought: 0,
        }
    }

    /// What an event means; none for events that mean nothing here.
    pub fn read(&mut self, event: Event) -> Option<ChatEvent> {
        Some(match event {
            Event::Prompt(_) => return None,
            Event::Token { id, text, logprobs } => {
                self.unread += 1;
                let deltas = self.feed(&text);
                self.count(&deltas);
                ChatEvent::Token {
                    id,
                    deltas,
                    logprobs,
                }
            }
            Event::Done {
                text,
                reason,
                mut timings,
            } => {
                let mut deltas = self.feed(&text);
                // A stop text within a marker has cut it: what is left of it is for no one.
                let rest = self.parser.take().map(ToolParser::finish);
                deltas.extend(self.deltas(rest.unwrap_or_default()));
                self.hidden.flush(&mut deltas);
                self.count(&deltas);
                timings.reasoning_tokens = self.thought;
                ChatEvent::Done {
                    deltas,
                    reason: self.finish(reason),
                    timings,
                }
            }
            Event::Failed(error) => ChatEvent::Failed(error),
        })
    }

    fn finish(&self, reason: FinishReason) -> ChatFinish {
        ChatFinish::new(reason, self.has_calls)
    }

    /// Counts the tokens that reasoning came with: also those of its beginning, which gave nothing yet.
    fn count(&mut self, deltas: &[Delta]) {
        if deltas.is_empty() {
            return;
        }
        let unread = std::mem::take(&mut self.unread);
        if deltas
            .iter()
            .any(|delta| matches!(delta, Delta::Reasoning(_)))
        {
            self.thought += unread;
        }
    }

    fn feed(&mut self, text: &str) -> Vec<Delta> {
        let deltas = self.parser.as_mut().map(|parser| parser.feed(text));
        self.deltas(deltas.unwrap_or_default())
    }

    fn deltas(&mut self, deltas: Vec<Delta>) -> Vec<Delta> {
        let mut shown = Vec::with_capacity(deltas.len());
        for delta in deltas {
            match delta {
                Delta::Content(text) => {
                    let text = self.hidden.without(&text);
                    if !text.is_empty() {
                        shown.push(Delta::Content(text));
                    }
                }
                other => {
                    self.has_calls |= matches!(other, Delta::CallStart { .. });
                    self.hidden.flush(&mut shown);
                    shown.push(other);
                }
            }
        }
        shown
    }
}

/// Leaves control tokens' names out of content that comes in pieces.
#[derive(Clone, Debug)]
struct Hidden {
    names: Vec<String>,
    /// What may be the beginning of a name.
    held: String,
}

impl Hidden {
    fn without(&mut self, text: &str) -> String {
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        for name in &self.names {
            if all.contains(name) {
                all = all.replace(name, "");
            }
        }
        let may_begin = |at: &usize| {
            let end = all.get(*at..).unwrap_or_default();
            self.names.iter().any(|name| name.starts_with(end))
        };
        let at = all.char_indices().map(|(at, _)| at).find(may_begin);
        self.held = all.split_off(at.unwrap_or(all.len()));
        all
    }

    fn flush(&mut self, deltas: &mut Vec<Delta>) {
        if !self.held.is_empty() {
            deltas.push(Delta::Content(std::mem::take(&mut self.held)));
        }
    }
}
