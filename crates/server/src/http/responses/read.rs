//! From requests for responses to conversations.

use biplane::{Message, ToolCall};
use serde_json::{Map, Value, json};

use crate::http::{
    error::ApiError,
    fields::{Fields, wrong},
    openai::chat::{self, Ask},
};

type Result<T> = std::result::Result<T, ApiError>;

/// What the chat API calls the same.
const SAME: [&str; 14] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "enable_thinking",
    "chat_template_kwargs",
    "response_format",
];

/// What the answer repeats of its request.
const ECHOED: [&str; 8] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
];

/// Understands a request; also what the answer repeats of it.
pub fn read(mut fields: Fields) -> Result<(Ask, Map<String, Value>)> {
    const SEND: &str = "nothing is stored here; send the whole conversation as input";
    fields.refuse("previous_response_id", SEND)?;
    fields.refuse("conversation", SEND)?;
    fields.refuse("background", "stream the answer")?;
    fields.refuse("prompt", "send instructions and input")?;
    fields.refuse("max_tool_calls", "leave it out")?;
    let mut echoed = Map::new();
    for name in ECHOED {
        echoed.insert(name.into(), fields.peek(name));
    }
    let mut messages = Vec::new();
    if let Some(text) = fields.text("instructions")? {
        messages.push(Message::new("system", text));
    }
    match fields.value("input") {
        Some(Value::String(text)) => messages.push(Message::new("user", text)),
        Some(Value::Array(items)) => {
            for (i, value) in items.into_iter().enumerate() {
                item(&format!("input[{i}]"), value, &mut messages)?;
            }
        }
        Some(other) => return Err(wrong("input", &other, "a text or a list of items")),
        None => return Err(ApiError::field("input", "missing")),
    }
    let mut body = Map::new();
    for name in SAME {
        if let Some(value) = fields.value(name) {
            body.insert(name.into(), value);
        }
    }
    if let Some(most) = fields.value("max_output_tokens") {
        body.insert("max_tokens".into(), most);
    }
    if let Some(format) = fields
        .object("text")?
        .and_then(|mut text| text.remove("format"))
    {
        body.insert("response_format".into(), format);
    }
    if let Some(effort) = fields
        .object("reasoning")?
        .and_then(|mut r| r.remove("effort"))
    {
        body.insert("reasoning_effort".into(), effort);
    }
    Ok((
        chat::read_with(Fields::of(body.into(), "")?, messages)?,
        echoed,
    ))
}

/// Adds an item of the conversation.
fn item(place: &str, value: Value, to: &mut Vec<Message>) -> Result<()> {
    let mut fields = Fields::of(value, place)?;
    let within = |error: ApiError| {
        let param = format!("{place}.{}", error.param.as_deref().unwrap_or_default());
        error.with_param(param)
    };
    let kind = fields.text("type").map_err(within)?;
    match kind.as_deref().unwrap_or("message") {
        "message" => {
            let role = fields.value("role").unwrap_or_default();
            let role = match role.as_str() {
                Some("system" | "developer") => "system",
                Some("user") => "user",
                Some("assistant") => "assistant",
                _ => {
                    let place = format!("{place}.role");
                    return Err(wrong(&place, &role, "system, developer, user or assistant"));
                }
            };
            let content = fields.value("content").unwrap_or_default();
            to.push(Message::new(
                role,
                text(&content, &format!("{place}.content"))?,
            ));
        }
        "function_call" => {
            let call = ToolCall {
                id: fields.text("call_id").map_err(within)?.unwrap_or_default(),
                name: fields.text("name").map_err(within)?.unwrap_or_default(),
                arguments: fields
                    .text("arguments")
                    .map_err(within)?
                    .unwrap_or_default(),
            };
            // Calls that were made together are one message.
            match to.last_mut() {
                Some(last) if last.role == "assistant" => last.tool_calls.push(json!(call)),
                _ => to.push(Message {
                    tool_calls: vec![json!(call)],
                    ..Message::new("assistant", "")
                }),
            }
        }
        "function_call_output" => {
            let output = fields.value("output").unwrap_or_default();
            to.push(Message {
                tool_call_id: fields.text("call_id").map_err(within)?,
                ..Message::new("tool", text(&output, &format!("{place}.output"))?)
            });
        }
        // What was thought earlier is not shown to models again.
        "reasoning" => {}
        other => {
            let expected = "one of message, function_call, function_call_output, reasoning";
            return Err(wrong(&format!("{place}.type"), &other.into(), expected));
        }
    }
    Ok(())
}

/// A text, or parts of text.
fn text(value: &Value, place: &str) -> Result<String> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let part = |part: &Value| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        let is_text = matches!(kind, "input_text" | "output_text" | "text");
        let text = part.get("text").and_then(Value::as_str);
        text.filter(|_| is_text).map(str::to_owned)
    };
    let parts = value.as_array();
    let texts: Option<Vec<String>> = parts.and_then(|list| list.iter().map(part).collect());
    texts
        .map(|texts| texts.concat())
        .ok_or_else(|| wrong(place, value, "a text or a list of parts of text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_with_a_call() {
        let body = json!({
            "instructions": "Be brief.", "max_output_tokens": 5, "reasoning": {"effort": "low"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "null"}}},
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
            "tool_choice": {"type": "function", "name": "f"},
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Go"}]},
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "2", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "42"},
            ],
        });
        let (ask, echoed) = read(Fields::of(body, "").unwrap()).unwrap();
        let chat = ask.chat;
        let roles: Vec<&str> = chat.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(chat.messages[2].tool_calls.len(), 2);
        assert_eq!(chat.tool_choice, biplane::ToolChoice::Named("f".into()));
        assert_eq!(chat.generation.max_tokens, Some(5));
        let schema = biplane::Constraint::JsonSchema(json!({"type": "null"}));
        assert_eq!(chat.generation.constraint, Some(schema));
        assert_eq!(echoed["instructions"], "Be brief.");
    }

    #[test]
    fn what_is_not_stored_cannot_be_continued() {
        let body = json!({"input": "x", "previous_response_id": "resp_1"});
        let error = read(Fields::of(body, "").unwrap()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("previous_response_id"));
    }
}
