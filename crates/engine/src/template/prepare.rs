//! Puts messages into the form that a template can take.

use serde_json::{Value, json};

use super::{ChatTemplate, Options};

/// What a template renders by itself; found out by rendering small conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Takes {
    /// Content that is a list of parts.
    pub parts: bool,
    /// Content that is null beside calls of tools.
    pub null: bool,
    /// A system's message at the beginning.
    pub system: bool,
    /// Tools.
    pub tools: bool,
    /// The assistant's calls of tools.
    pub calls: bool,
    /// Messages of tools.
    pub results: bool,
    /// Calls' ids, which it writes out: a tool's message must have one.
    pub ids: bool,
}

impl Default for Takes {
    fn default() -> Self {
        Self {
            parts: true,
            null: true,
            system: true,
            tools: false,
            calls: false,
            results: false,
            ids: false,
        }
    }
}

const PROBE: &str = "probe4711";
const PROBE_TOOL: &str = "tool4711";
/// As long as Mistral's templates demand.
const PROBE_ID: &str = "abcdefgh1";

pub(super) fn probe(template: &ChatTemplate) -> Takes {
    let plain = Options::default();
    let tool = json!({"type": "function", "function": {
        "name": PROBE_TOOL,
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}},
    }});
    let with_tools = Options {
        tools: Some(vec![tool]),
        ..Options::default()
    };
    let user = |content: Value| json!({"role": "user", "content": content});
    let parts = [user(json!([{"type": "text", "text": PROBE}]))];
    let call =
        json!({"id": PROBE_ID, "type": "function", "function": {"name": PROBE, "arguments": {}}});
    let calling =
        |content: Value| json!({"role": "assistant", "content": content, "tool_calls": [call]});
    let null = [user("?".into()), calling(Value::Null)];
    let calls = [user("?".into()), calling("".into())];
    let result = json!({"role": "tool", "content": PROBE, "name": "f", "tool_call_id": PROBE_ID});
    let other =
        json!({"id": PROBE_ID, "type": "function", "function": {"name": "f", "arguments": {}}});
    let results = [
        user("?".into()),
        json!({"role": "assistant", "content": "", "tool_calls": [other]}),
        result,
    ];
    let system = [
        json!({"role": "system", "content": PROBE}),
        user("?".into()),
    ];
    let render = |messages: &[Value], options: &Options| template.render_as_is(messages, options);
    let shows = |messages: &[Value], options: &Options, what: &str| {
        render(messages, options).is_ok_and(|text| text.contains(what))
    };
    Takes {
        // A template that knows nothing of parts fails, or prints the list with its brackets.
        parts: render(&parts, &plain)
            .is_ok_and(|text| text.contains(PROBE) && !text.contains("'type'")),
        null: render(&null, &plain).is_ok_and(|text| !text.contains("None")),
        system: shows(&system, &plain, PROBE),
        tools: shows(&[user("?".into())], &with_tools, PROBE_TOOL),
        calls: shows(&calls, &with_tools, PROBE),
        results: shows(&results, &with_tools, PROBE),
        ids: shows(&results, &with_tools, PROBE_ID),
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
