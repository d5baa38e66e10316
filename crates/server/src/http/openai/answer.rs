//! Answers as OpenAI's API writes them.

use biplane::{ChatFinish, ChatResponse, Model, Timings, TokenLogprobs};
use serde_json::{Value, json};

use crate::http::{id, tool_runs};

/// What all pieces of an answer have in common.
#[derive(Clone, Debug)]
pub struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
}

impl Head {
    pub fn new(prefix: &str, model: &str) -> Self {
        Head {
            id: id::new(prefix),
            created: id::now(),
            model: model.to_owned(),
        }
    }

    pub fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// The whole answer to a conversation.
pub fn whole(head: &Head, model: &Model, answers: &[ChatResponse], logprobs: bool) -> Value {
    let choice = |(i, answer): (usize, &ChatResponse)| {
        let mut message = json!({"role": "assistant", "content": answer.text, "refusal": null});
        if let Some(reasoning) = &answer.reasoning {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        if !answer.tool_calls.is_empty() {
            if answer.text.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = json!(answer.tool_calls);
        }
        if !answer.trace.is_empty() {
            message["biplane"] = json!({"tool_trace": tool_runs::trace(&answer.trace)});
        }
        let list = logprobs.then(|| token_list(model, &answer.logprobs));
        json!({
            "index": i,
            "message": message,
            "logprobs": list.map(|list| json!({"content": list, "refusal": null})),
            "finish_reason": finish(&answer.finish_reason),
        })
    };
    let choices = answers.iter().enumerate().map(choice).collect();
    let mut body = head.object("chat.completion", choices);
    let all: Vec<Timings> = answers.iter().map(|answer| answer.timings).collect();
    body["usage"] = usage(&all);
    body["timings"] = all.first().map_or(Value::Null, timings);
    body
}

pub fn finish(reason: &ChatFinish) -> &'static str {
    match reason {
        ChatFinish::Stop | ChatFinish::StopText(_) | ChatFinish::Cancelled => "stop",
        ChatFinish::Length => "length",
        ChatFinish::ToolCalls => "tool_calls",
    }
}

/// Tokens of several answers to one prompt, which counts once.
pub fn usage(answers: &[Timings]) -> Value {
    let most = |of: fn(&Timings) -> usize| answers.iter().map(of).max().unwrap_or(0);
    let prompt = most(|t| t.prompt_tokens);
    let generated: usize = answers.iter().map(|t| t.generated_tokens).sum();
    let cached = answers.first().map_or(0, |t| t.cached_tokens);
    let mut usage = usage_of(prompt, cached, generated);
    let reasoning: usize = answers.iter().map(|t| t.reasoning_tokens).sum();
    usage["completion_tokens_details"] = json!({"reasoning_tokens": reasoning});
    usage
}

pub fn usage_of(prompt: usize, cached: usize, generated: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// How long it took, beyond OpenAI's API.
pub fn timings(t: &Timings) -> Value {
    json!({
        "prompt_n": t.prompt_tokens.saturating_sub(t.cached_tokens),
        "cached_n": t.cached_tokens,
        "prompt_per_second": t.prompt_tokens_per_second(),
        "predicted_n": t.generated_tokens,
        "predicted_per_second": t.decode_tokens_per_second(),
        "time_to_first_token_ms": t.time_to_first_token.as_secs_f64() * 1e3,
    })
}

/// Log probabilities of the tokens that are part of an answer.
pub fn token_list(model: &Model, list: &[TokenLogprobs]) -> Vec<Value> {
    let tokenizer = model.tokenizer();
    let one = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        json!({
            "token": String::from_utf8_lossy(bytes),
            "logprob": logprob,
            "bytes": bytes,
        })
    };
    let shown = list.iter().filter(|t| !tokenizer.is_special(t.token));
    let entry = |t: &TokenLogprobs| {
        let mut entry = one(t.token, t.logprob);
        entry["top_logprobs"] = t.top.iter().map(|&(id, p)| one(id, p)).collect();
        entry
    };
    shown.map(entry).collect()
}
