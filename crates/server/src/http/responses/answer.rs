//! Answers as the Responses API writes them.

use biplane::{ChatFinish, ChatResponse, Message, Timings};
use serde_json::{Map, Value, json};

use super::{read, store::Store};
use crate::http::{id, tool_runs};

/// What an answer begins with.
pub struct Head {
    id: String,
    created: u64,
    model: String,
    echoed: Map<String, Value>,
    /// Where the conversation is kept, and what there is of it.
    keep: Option<(Store, Vec<Message>)>,
}

impl Head {
    pub fn new(
        model: &str,
        echoed: Map<String, Value>,
        keep: Option<(Store, Vec<Message>)>,
    ) -> Self {
        Head {
            id: id::new("resp_"),
            created: id::now(),
            model: model.to_owned(),
            echoed,
            keep,
        }
    }

    /// The response with what there is of its output.
    pub fn response(&self, status: &str, output: Vec<Value>) -> Value {
        let mut response = self.echoed.clone();
        response.insert("id".into(), self.id.as_str().into());
        response.insert("object".into(), "response".into());
        response.insert("created_at".into(), self.created.into());
        response.insert("model".into(), self.model.as_str().into());
        response.insert("status".into(), status.into());
        response.insert("output".into(), output.into());
        for name in ["error", "incomplete_details", "usage"] {
            response.insert(name.into(), Value::Null);
        }
        response.insert("store".into(), self.keep.is_some().into());
        response.into()
    }

    /// The response at its end, which is kept where it may be.
    pub fn ended(
        &self,
        output: Vec<Value>,
        finish: &ChatFinish,
        timings: &Timings,
        trace: Vec<Value>,
    ) -> Value {
        let messages = self.keep.as_ref().map(|(store, messages)| {
            let messages = read::with_output(messages.clone(), &output);
            (store, messages)
        });
        let cut = *finish == ChatFinish::Length;
        let mut response = self.response(status(finish), output);
        if cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let (prompt, generated) = (timings.prompt_tokens, timings.generated_tokens);
        response["usage"] = json!({
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": timings.cached_tokens},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": timings.reasoning_tokens},
            "total_tokens": prompt + generated,
        });
        if !trace.is_empty() {
            response["biplane"] = json!({"tool_trace": trace});
        }
        if let Some((store, messages)) = messages {
            store.keep(&self.id, messages, response.clone());
        }
        response
    }

    pub fn whole(&self, answer: &ChatResponse) -> Value {
        let mut output = Vec::new();
        if let Some(text) = &answer.reasoning {
            output.push(reasoning(&id::new("rs_"), text));
        }
        if !answer.text.is_empty() || answer.tool_calls.is_empty() {
            let status = status(&answer.finish_reason);
            output.push(message(&id::new("msg_"), &answer.text, status));
        }
        for c in &answer.tool_calls {
            output.push(call(
                &id::new("fc_"),
                &c.id,
                &c.name,
                &c.arguments,
                "completed",
            ));
        }
        let trace = tool_runs::trace(&answer.trace);
        self.ended(output, &answer.finish_reason, &answer.timings, trace)
    }
}

pub fn status(finish: &ChatFinish) -> &'static str {
    match finish {
        ChatFinish::Length => "incomplete",
        _ => "completed",
    }
}

pub fn reasoning(id: &str, text: &str) -> Value {
    let content = json!([{"type": "reasoning_text", "text": text}]);
    json!({"type": "reasoning", "id": id, "summary": [], "content": content})
}

pub fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

pub fn message(id: &str, text: &str, status: &str) -> Value {
    let mut message = json!({"type": "message", "id": id, "role": "assistant", "status": status});
    message["content"] = json!([part(text)]);
    message
}

pub fn call(id: &str, call_id: &str, name: &str, arguments: &str, status: &str) -> Value {
    json!({
        "type": "function_call",
        "id": id,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    })
}
