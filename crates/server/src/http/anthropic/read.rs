//! From Anthropic's requests to conversations.

use biplane::{Message, ToolCall};
use serde_json::{Map, Value, json};

use crate::http::{
    error::ApiError,
    fields::{Fields, wrong},
    openai::chat::{self, Ask},
};

type Result<T> = std::result::Result<T, ApiError>;

/// What the other APIs take under these names, and this one under others or not at all.
const REFUSED: [(&str, &str); 9] = [
    ("mcp_servers", "leave it out"),
    ("container", "leave it out"),
    ("context_management", "leave it out"),
    ("diagnostics", "leave it out"),
    ("stop", "use stop_sequences"),
    ("max_completion_tokens", "use max_tokens"),
    ("logprobs", "use /v1/chat/completions"),
    ("top_logprobs", "use /v1/chat/completions"),
    ("best_of", "leave it out"),
];

/// Understands a request.
pub fn read(mut fields: Fields) -> Result<Ask> {
    for (name, instead) in REFUSED {
        fields.refuse(name, instead)?;
    }
    if fields.count("n")?.is_some_and(|n| n != 1) {
        let error = ApiError::field("n", "not supported; ask once for each answer");
        return Err(error.with_code("unsupported_parameter"));
    }
    let mut messages = Vec::new();
    if let Some(system) = fields.value("system") {
        let told = text(&without_billing(system), "system")?;
        if !told.is_empty() {
            messages.push(Message::new("system", told));
        }
    }
    let list = fields.list("messages")?;
    let list = list.ok_or_else(|| ApiError::field("messages", "missing"))?;
    for (i, value) in list.into_iter().enumerate() {
        message(&format!("messages[{i}]"), value, &mut messages)?;
    }
    let mut body = Map::new();
    if let Some(stops) = fields.texts("stop_sequences")? {
        body.insert("stop".into(), stops.into());
    }
    if let Some(thinking) = fields.object("thinking")? {
        let on = thinking.get("type").is_some_and(|kind| kind != "disabled");
        body.insert("enable_thinking".into(), on.into());
    }
    if let Some(format) = fields.value("output_format") {
        body.insert("response_format".into(), format);
    }
    let mut output = fields.object("output_config")?.unwrap_or_default();
    for (theirs, ours) in [
        ("format", "response_format"),
        ("effort", "reasoning_effort"),
    ] {
        if let Some(value) = output.remove(theirs) {
            body.insert(ours.into(), value);
        }
    }
    tools(&mut fields, &mut body)?;
    // What is called alike, and what all APIs take beyond their own.
    fields.extend(body);
    chat::read_with(fields, messages)
}

/// Without the blocks in which a client notes what it is: they change with every request, and nothing
/// after them could be taken from the cache.
fn without_billing(mut system: Value) -> Value {
    if let Some(blocks) = system.as_array_mut() {
        blocks.retain(|block| {
            let text = block.get("text").and_then(Value::as_str);
            !text.is_some_and(|text| text.starts_with("x-anthropic-billing-header:"))
        });
    }
    system
}

fn tools(fields: &mut Fields, body: &mut Map<String, Value>) -> Result<()> {
    let tools = fields.list("tools")?.unwrap_or_default();
    let tool = |(i, mut tool): (usize, Value)| {
        let place = format!("tools[{i}]");
        let kind = tool.get("type").cloned().unwrap_or("custom".into());
        if kind != "custom" {
            return Err(wrong(&format!("{place}.type"), &kind, "\"custom\""));
        }
        let fields = tool.as_object_mut();
        let fields = fields.ok_or_else(|| ApiError::field(&place, "not an object"))?;
        let parameters = fields.remove("input_schema").unwrap_or_default();
        fields.insert("parameters".into(), parameters);
        fields.remove("type");
        Ok(json!({"type": "function", "function": tool}))
    };
    let tools: Vec<Value> = tools
        .into_iter()
        .enumerate()
        .map(tool)
        .collect::<Result<_>>()?;
    body.insert("tools".into(), tools.into());
    let Some(choice) = fields.object("tool_choice")? else {
        return Ok(());
    };
    let alone = choice.get("disable_parallel_tool_use");
    let alone = alone.and_then(Value::as_bool).unwrap_or(false);
    body.insert("parallel_tool_calls".into(), (!alone).into());
    let kind = choice.get("type").cloned().unwrap_or_default();
    let choice = match kind.as_str() {
        Some("auto") => json!("auto"),
        Some("any") => json!("required"),
        Some("none") => json!("none"),
        Some("tool") => {
            let name = choice.get("name").cloned().unwrap_or_default();
            json!({"type": "function", "function": {"name": name}})
        }
        _ => return Err(wrong("tool_choice.type", &kind, "auto, any, tool or none")),
    };
    body.insert("tool_choice".into(), choice);
    Ok(())
}

/// Adds a message; results of tools become messages of their own.
fn message(place: &str, value: Value, to: &mut Vec<Message>) -> Result<()> {
    let mut fields = Fields::of(value, place)?;
    let within = |error: ApiError| error.with_param(format!("{place}.content"));
    let role = fields.value("role").unwrap_or_default();
    let role = match role.as_str() {
        Some(role @ ("user" | "assistant")) => role.to_owned(),
        _ => return Err(wrong(&format!("{place}.role"), &role, "user or assistant")),
    };
    let content = fields.value("content");
    let blocks = match content {
        Some(Value::String(text)) => {
            to.push(Message::new(role, text));
            return Ok(());
        }
        Some(Value::Array(blocks)) => blocks,
        other => {
            let other = other.unwrap_or_default();
            return Err(wrong(
                &format!("{place}.content"),
                &other,
                "a text or a list of blocks",
            ));
        }
    };
    let mut own = Message::new(role, "");
    let mut texts = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let place = format!("{place}.content[{i}]");
        let mut block = Fields::of(block, &place)?;
        let kind = block.text("type").map_err(within)?.unwrap_or_default();
        match kind.as_str() {
            "text" => texts.extend(block.text("text").map_err(within)?),
            "thinking" => own.reasoning_content = block.text("thinking").map_err(within)?,
            "redacted_thinking" => {}
            "tool_use" => {
                let input = block.value("input").unwrap_or_else(|| json!({}));
                let call = ToolCall {
                    id: block.text("id").map_err(within)?.unwrap_or_default(),
                    name: block.text("name").map_err(within)?.unwrap_or_default(),
                    arguments: input.to_string(),
                };
                own.tool_calls.push(json!(call));
            }
            "tool_result" => {
                let content = block.value("content").unwrap_or_else(|| "".into());
                to.push(Message {
                    tool_call_id: block.text("tool_use_id").map_err(within)?,
                    ..Message::new("tool", text(&content, &place)?)
                });
            }
            _ => {
                let expected = "one of text, thinking, tool_use, tool_result";
                let place = format!("{place}.type");
                return Err(wrong(&place, &Value::String(kind), expected));
            }
        }
    }
    if !texts.is_empty() || !own.tool_calls.is_empty() {
        own.content = texts.join("\n").into();
        to.push(own);
    }
    Ok(())
}

/// A text, or blocks of text.
fn text(value: &Value, place: &str) -> Result<String> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let block = |block: &Value| {
        let is_text = block.get("type").is_none_or(|kind| kind == "text");
        let text = block.get("text").and_then(Value::as_str);
        text.filter(|_| is_text).map(str::to_owned)
    };
    let blocks = value.as_array();
    let texts: Option<Vec<String>> = blocks.and_then(|list| list.iter().map(block).collect());
    let texts = texts.ok_or_else(|| wrong(place, value, "a text or a list of blocks of text"))?;
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(value: Value) -> Result<Ask> {
        read(Fields::of(value, "").unwrap())
    }

    #[test]
    fn a_conversation_with_tools() {
        let got = ask(json!({
            "max_tokens": 9, "stop_sequences": ["x"], "system": [{"type": "text", "text": "Be brief."}],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "thinking": {"type": "disabled"},
            "messages": [
                {"role": "user", "content": "Go"},
                {"role": "assistant", "content": [
                    {"type": "text", "text": "Well"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "42"},
                    {"type": "text", "text": "And?"}]},
            ],
        }));
        let chat = got.unwrap().chat;
        let roles: Vec<&str> = chat.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        let call = &chat.messages[2].tool_calls[0];
        assert_eq!(call["function"]["arguments"], "{\"a\":1}");
        assert_eq!(chat.messages[3].tool_call_id.as_deref(), Some("1"));
        assert_eq!(chat.tools[0].name, "f");
        assert_eq!(chat.tool_choice, biplane::ToolChoice::Required);
        assert!(!chat.parallel_tool_calls);
        assert_eq!(chat.generation.stop, ["x"]);
        assert_eq!(chat.template_variables["enable_thinking"], json!(false));
    }

    #[test]
    fn sampling_is_as_in_the_other_apis() {
        let with = |more: Value| {
            let mut body =
                json!({"max_tokens": 1, "messages": [{"role": "user", "content": "Go"}]});
            let fields = body.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            ask(body)
        };
        let chat = with(json!({
            "top_k": 3, "min_p": 0.25, "typical_p": 0.5, "seed": 7, "presence_penalty": 0.5,
            "frequency_penalty": 0.75, "repetition_penalty": 1.5, "logit_bias": {"9": -5},
            "dry_multiplier": 0.8, "stop_token_ids": [4], "ignore_eos": true,
            "response_format": {"type": "choice", "choice": ["a"]},
        }));
        let chat = chat.unwrap().chat;
        let sampling = chat.sampling.unwrap();
        assert_eq!(sampling.top_k, Some(3));
        assert_eq!(sampling.min_p, Some(0.25));
        assert_eq!(sampling.typical_p, Some(0.5));
        assert_eq!(sampling.seed, Some(7));
        assert_eq!(sampling.presence_penalty, Some(0.5));
        assert_eq!(sampling.frequency_penalty, Some(0.75));
        assert_eq!(sampling.repetition_penalty, Some(1.5));
        assert_eq!(sampling.logit_bias, Some(vec![(9, -5.0)]));
        assert_eq!(sampling.dry.unwrap().multiplier, 0.8);
        assert_eq!(chat.generation.stop_tokens, [4]);
        assert!(chat.generation.ignore_eos);
        let form = biplane::Constraint::Choice(vec!["a".into()]);
        assert_eq!(chat.generation.constraint, Some(form));
        for (name, value) in [
            ("guided_regex", json!("a")),
            ("grammar", json!("a")),
            ("mirostat", json!(2)),
            ("n", json!(2)),
            ("stop", json!("a")),
            ("logprobs", json!(true)),
            ("min_p", json!("a")),
        ] {
            let error = with(json!({name: value})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
        }
    }

    #[test]
    fn what_changes_with_every_request_does_not_reach_the_prompt() {
        let with = |blocks: Value| {
            let user = json!([{"role": "user", "content": "Go"}]);
            let body = json!({"max_tokens": 1, "system": blocks, "messages": user});
            ask(body).unwrap().chat.messages
        };
        let rest = json!({"type": "text", "text": "Be brief."});
        let note =
            |n| json!({"type": "text", "text": format!("x-anthropic-billing-header: cch={n};")});
        assert_eq!(with(json!([note(1), rest])), with(json!([rest])));
        assert_eq!(with(json!([note(1)])).len(), 1);
    }

    #[test]
    fn the_form_of_the_answer() {
        let schema = json!({"type": "null"});
        let format = json!({"type": "json_schema", "schema": schema});
        for more in [
            json!({"output_config": {"format": format, "effort": "low"}}),
            json!({"output_format": format}),
        ] {
            let mut body = json!({"max_tokens": 1, "messages": []});
            let fields = body.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            let got = ask(body).unwrap().chat.generation.constraint;
            assert_eq!(got, Some(biplane::Constraint::JsonSchema(schema.clone())));
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (message, param) in [
            (
                json!({"role": "system", "content": "x"}),
                "messages[0].role",
            ),
            (json!({"role": "user"}), "messages[0].content"),
            (
                json!({"role": "user", "content": [{"type": "image"}]}),
                "messages[0].content[0].type",
            ),
        ] {
            let error = ask(json!({"max_tokens": 1, "messages": [message]})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
