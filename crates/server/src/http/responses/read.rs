//! From requests for responses to conversations.

use biplane::{Message, ToolCall};
use serde_json::{Map, Value, json};

use super::store::Store;
use crate::http::{
    error::ApiError,
    fields::{Fields, wrong},
    openai::chat::{self, Ask},
};

type Result<T> = std::result::Result<T, ApiError>;

/// What the chat API calls the same.
const SAME: [&str; 29] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "repeat_penalty",
    "repetition_window",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "logit_bias",
    "stop_token_ids",
    "ignore_eos",
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
const ECHOED: [&str; 11] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
];

/// What cannot be honoured, and what to do instead.
const REFUSED: [(&str, &str); 8] = [
    ("conversation", "use previous_response_id"),
    ("background", "stream the answer"),
    ("prompt", "send instructions and input"),
    ("max_tool_calls", "leave it out"),
    (
        "context_management",
        "cut the conversation before sending it",
    ),
    ("moderation", "leave it out"),
    ("top_logprobs", LOGPROBS),
    ("logprobs", LOGPROBS),
];

const LOGPROBS: &str = "use /v1/chat/completions for log probabilities";

/// A request, understood.
#[derive(Debug)]
pub struct Read {
    pub ask: Ask,
    /// What the answer repeats.
    pub echoed: Map<String, Value>,
    /// What a later request continues, where it may.
    pub conversation: Option<Vec<Message>>,
}

/// Understands a request.
pub fn read(mut fields: Fields, store: &Store) -> Result<Read> {
    let mut refused = REFUSED.iter();
    refused.try_for_each(|(name, instead)| fields.refuse(name, instead))?;
    if let Some(other) = fields.text("truncation")?.filter(|kind| kind != "disabled") {
        let message = format!("{other:?} is not supported; cut the conversation before sending it");
        return Err(ApiError::field("truncation", message).with_code("unsupported_parameter"));
    }
    let include = fields.texts("include")?.unwrap_or_default();
    if include
        .iter()
        .any(|name| name == "message.output_text.logprobs")
    {
        let message = format!("message.output_text.logprobs is not supported; {LOGPROBS}");
        return Err(ApiError::field("include", message).with_code("unsupported_parameter"));
    }
    let mut echoed = Map::new();
    for name in ECHOED {
        echoed.insert(name.into(), fields.peek(name));
    }
    // Clients count on these.
    for (name, default) in [
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
    ] {
        if let Some(value) = echoed.get_mut(name).filter(|value| value.is_null()) {
            *value = default;
        }
    }
    let mut messages = match fields.text("previous_response_id")? {
        Some(id) => store.find(&id)?,
        None => Vec::new(),
    };
    // Instructions hold for one response; those of earlier ones are not part of the conversation.
    let instructions = fields.text("instructions")?;
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
    let mut text = fields.object("text")?.unwrap_or_default();
    for (theirs, ours) in [("format", "response_format"), ("verbosity", "verbosity")] {
        if let Some(value) = text.remove(theirs) {
            body.insert(ours.into(), value);
        }
    }
    if let Some(effort) = fields
        .object("reasoning")?
        .and_then(|mut r| r.remove("effort"))
    {
        body.insert("reasoning_effort".into(), effort);
    }
    let conversation = fields.bool("store")?.unwrap_or(true);
    let conversation = conversation.then(|| messages.clone());
    if let Some(text) = instructions {
        messages.insert(0, Message::new("system", text));
    }
    Ok(Read {
        ask: chat::read_with(Fields::of(body.into(), "")?, messages).map_err(named)?,
        echoed,
        conversation,
    })
}

/// An error of the conversation in this API's words.
pub fn named(mut error: ApiError) -> ApiError {
    let Some(param) = &error.param else {
        return error;
    };
    for (theirs, ours) in [
        ("max_tokens", "max_output_tokens"),
        ("messages", "input"),
        ("response_format", "text.format"),
        ("reasoning_effort", "reasoning.effort"),
        ("verbosity", "text.verbosity"),
    ] {
        if let Some(rest) = param.strip_prefix(theirs) {
            let place = format!("{ours}{rest}");
            if let Some(rest) = error.message.strip_prefix(theirs) {
                error.message = format!("{ours}{rest}");
            }
            error.param = Some(place);
            return error;
        }
    }
    error
}

/// A conversation with what answered it.
pub fn with_output(mut messages: Vec<Message>, output: &[Value]) -> Vec<Message> {
    // Apart from what came before: a call joins the assistant's message before it.
    let mut answer = Vec::new();
    for value in output {
        // Runs of tools are for the reader; the answer after them says what matters.
        let _ = item("output", value.clone(), &mut answer);
    }
    messages.extend(answer);
    messages
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
        let Read {
            ask,
            echoed,
            conversation,
        } = read(Fields::of(body, "").unwrap(), &Store::default()).unwrap();
        let chat = ask.chat;
        assert_eq!(conversation.as_deref(), chat.messages.get(1..));
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
    fn errors_name_the_fields_of_this_api() {
        for (body, param) in [
            (json!({"max_output_tokens": -1}), "max_output_tokens"),
            (
                json!({"text": {"format": {"type": "xml"}}}),
                "text.format.type",
            ),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
            (json!({"temperature": "hot"}), "temperature"),
        ] {
            let mut body = body;
            body["input"] = "x".into();
            let error = read(Fields::of(body, "").unwrap(), &Store::default()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.starts_with(param), "{}", error.message);
        }
    }

    #[test]
    fn what_was_kept_is_continued() {
        let store = Store::default();
        let read = |more: Value| {
            let mut body = json!({"input": "x"});
            let fields = body.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            read(Fields::of(body, "").unwrap(), &store)
        };
        let next = json!({"previous_response_id": "resp_1", "instructions": "Be brief."});
        let error = read(next.clone()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("previous_response_id"));
        let output = [
            json!({"type": "reasoning", "summary": []}),
            json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "y"}]}),
            json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}),
        ];
        store.keep(
            "resp_1",
            with_output(vec![Message::new("user", "w")], &output),
            Value::Null,
        );
        let messages = read(next).unwrap().ask.chat.messages;
        let roles: Vec<&str> = messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert_eq!(messages[2].content, "y");
        assert_eq!(messages[2].tool_calls.len(), 1);
        assert!(
            read(json!({"store": false}))
                .unwrap()
                .conversation
                .is_none()
        );
    }
}
