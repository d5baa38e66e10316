//! Answers as Anthropic's API writes them.

use biplane::{ChatFinish, ChatResponse, Timings};
use serde_json::{Value, json};

use crate::http::{id, tool_runs};

/// What an answer begins with.
pub struct Head {
    id: String,
    model: String,
    tokens: usize,
}

impl Head {
    pub fn new(model: &str, tokens: usize) -> Self {
        Head {
            id: id::new("msg_"),
            model: model.to_owned(),
            tokens,
        }
    }

    /// The message without its content.
    pub fn message(&self) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {"input_tokens": self.tokens, "output_tokens": 0},
        })
    }

    pub fn whole(&self, answer: &ChatResponse) -> Value {
        let mut content = Vec::new();
        if let Some(thinking) = &answer.reasoning {
            content.push(json!({"type": "thinking", "thinking": thinking, "signature": ""}));
        }
        if !answer.text.is_empty() {
            content.push(json!({"type": "text", "text": answer.text}));
        }
        for call in &answer.tool_calls {
            // What is no JSON, where the model was cut short, stays to be seen.
            let input = serde_json::from_str(&call.arguments)
                .unwrap_or_else(|_| Value::String(call.arguments.clone()));
            let (id, name) = (&call.id, &call.name);
            content.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
        }
        let mut message = self.message();
        let end = self.end(&answer.finish_reason, &answer.timings);
        message["content"] = content.into();
        message["stop_reason"] = end["delta"]["stop_reason"].clone();
        message["stop_sequence"] = end["delta"]["stop_sequence"].clone();
        message["usage"] = end["usage"].clone();
        if !answer.trace.is_empty() {
            message["biplane"] = json!({"tool_trace": tool_runs::trace(&answer.trace)});
        }
        message
    }

    /// Why it ended, and what it took: `message_delta`.
    pub fn end(&self, finish: &ChatFinish, timings: &Timings) -> Value {
        let (reason, sequence) = match finish {
            ChatFinish::Stop | ChatFinish::Cancelled => ("end_turn", None),
            ChatFinish::StopText(text) => ("stop_sequence", Some(text)),
            ChatFinish::Length => ("max_tokens", None),
            ChatFinish::ToolCalls => ("tool_use", None),
        };
        json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": {
                "input_tokens": timings.prompt_tokens.saturating_sub(timings.cached_tokens),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": timings.cached_tokens,
                "output_tokens": timings.generated_tokens,
            },
        })
    }
}
