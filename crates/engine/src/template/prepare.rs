//! Puts messages into the form that a template can take.

use serde_json::{Value, json};

use super::{ChatTemplate, Options};

/// Forms of content that a template renders by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Takes {
    parts: bool,
    null: bool,
}

impl Default for Takes {
    fn default() -> Self {
        Self {
            parts: true,
            null: true,
        }
    }
}

const PROBE: &str = "probe4711";

/// Finds out by rendering a small conversation.
pub(super) fn probe(template: &ChatTemplate) -> Takes {
    let options = Options::default();
    let parts = [json!({"role": "user", "content": [{"type": "text", "text": PROBE}]})];
    let call = json!({"id": "abcdefgh1", "type": "function", "function": {"name": PROBE, "arguments": {}}});
    let null = [
        json!({"role": "user", "content": "?"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
    ];
    Takes {
        // A template that knows nothing of parts fails, or prints the list with its brackets.
        parts: template
            .render_as_is(&parts, &options)
            .is_ok_and(|text| text.contains(PROBE) && !text.contains("'type'")),
        null: template
            .render_as_is(&null, &options)
            .is_ok_and(|text| !text.contains("None")),
    }
}

pub(super) fn prepare(messages: &mut [Value], takes: Takes) {
    for message in messages {
        let Some(message) = message.as_object_mut() else {
            continue;
        };
        if let Some(content) = message.get_mut("content") {
            match content {
                Value::Array(parts) if !takes.parts => {
                    if let Some(text) = joined(parts) {
                        *content = text.into();
                    }
                }
                Value::Null if !takes.null => *content = "".into(),
                _ => {}
            }
        }
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let Some(arguments) = call.pointer_mut("/function/arguments") else {
                continue;
            };
            if let Some(text) = arguments.as_str()
                && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
            {
                *arguments = object;
            }
        }
    }
}

/// The text of parts, if all are text: an image must not vanish without a word.
fn joined(parts: &[Value]) -> Option<String> {
    parts
        .iter()
        .map(|part| part.get("text")?.as_str())
        .collect()
}
