//! Answers piece by piece.

use biplane::{ChatEvent, ChatStream, Model, Timings, ToolRun, tools::Delta};
use futures::{StreamExt, stream::select_all};
use serde_json::{Value, json};

use super::answer::{self, Head};
use crate::http::{
    error::ApiError,
    sse::{Gone, Sse},
    tool_runs,
};

/// Writes the chunks of a conversation's answers.
pub struct Writer {
    head: Head,
    model: Model,
    include_usage: bool,
    /// Of each answer, what waits for a chunk to go with.
    logprobs: Vec<Vec<Value>>,
}

impl Writer {
    pub fn new(head: Head, model: Model, include_usage: bool) -> Self {
        Writer {
            head,
            model,
            include_usage,
            logprobs: Vec::new(),
        }
    }

    /// Writes all answers to their end.
    pub async fn run(mut self, sse: Sse, streams: Vec<ChatStream>) -> Result<(), Gone> {
        let n = streams.len();
        self.logprobs.resize(n, Vec::new());
        for index in 0..n {
            let role = json!({"role": "assistant", "content": ""});
            sse.data(&self.chunk(index, role, None)).await?;
        }
        let tagged = streams.into_iter().enumerate();
        let mut events = select_all(tagged.map(|(i, s)| s.map(move |event| (i, event)).boxed()));
        let mut ended: Vec<Timings> = Vec::with_capacity(n);
        while let Some((index, event)) = sse.next(&mut events).await? {
            match event {
                ChatEvent::Token {
                    deltas, logprobs, ..
                } => {
                    if let (Some(p), Some(held)) = (logprobs, self.logprobs.get_mut(index)) {
                        held.extend(answer::token_list(&self.model, &[p]));
                    }
                    self.deltas(&sse, index, deltas).await?;
                }
                ChatEvent::Round { deltas } => self.deltas(&sse, index, deltas).await?,
                ChatEvent::ToolResult(run) => {
                    sse.data(&self.chunk(index, result(&run), None)).await?;
                }
                ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                } => {
                    self.deltas(&sse, index, deltas).await?;
                    let reason = answer::finish(&reason);
                    let mut last = self.chunk(index, json!({}), Some(reason));
                    last["timings"] = answer::timings(&timings);
                    sse.data(&last).await?;
                    ended.push(timings);
                }
                ChatEvent::Failed(error) => {
                    sse.data(&ApiError::from(error).body()).await?;
                    return sse.done().await;
                }
            }
        }
        if self.include_usage {
            let mut last = self.head.object(KIND, json!([]));
            last["usage"] = answer::usage(&ended);
            sse.data(&last).await?;
        }
        sse.done().await
    }

    async fn deltas(&mut self, sse: &Sse, index: usize, deltas: Vec<Delta>) -> Result<(), Gone> {
        for delta in deltas {
            sse.data(&self.chunk(index, piece(delta), None)).await?;
        }
        Ok(())
    }

    fn chunk(&mut self, index: usize, delta: Value, reason: Option<&str>) -> Value {
        let held = self.logprobs.get_mut(index).map(std::mem::take);
        let held = held.filter(|list| !list.is_empty());
        let mut chunk = self.head.object(
            KIND,
            json!([{
                "index": index,
                "delta": delta,
                "logprobs": held.map(|list| json!({"content": list, "refusal": null})),
                "finish_reason": reason,
            }]),
        );
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

const KIND: &str = "chat.completion.chunk";

fn piece(delta: Delta) -> Value {
    match delta {
        Delta::Content(text) => json!({"content": text}),
        Delta::Reasoning(text) => json!({"reasoning_content": text}),
        Delta::CallStart { index, id, name } => json!({"tool_calls": [{
            "index": index,
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }]}),
        Delta::CallArguments {
            index,
            json_fragment,
        } => json!({"tool_calls": [{"index": index, "function": {"arguments": json_fragment}}]}),
        // Deltas of a later engine mean nothing to OpenAI's clients.
        _ => json!({}),
    }
}

/// What a tool gave that was run here, beyond OpenAI's API.
fn result(run: &ToolRun) -> Value {
    json!({"biplane": {"tool_result": tool_runs::entry(run)}})
}
