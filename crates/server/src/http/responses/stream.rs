//! Answers piece by piece, as items that begin, grow and end.

use biplane::{ChatEvent, ChatStream, tools::Delta};
use futures::stream::select_all;
use serde_json::{Value, json};

use super::answer::{self, Head};
use crate::http::{
    error::ApiError,
    id,
    sse::{Gone, Sse},
    tool_runs,
};

/// An item in the making.
struct Item {
    id: String,
    kind: Kind,
    text: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    Call { id: String, name: String },
}

/// Writes the events of an answer.
pub struct Writer {
    head: Head,
    open: Option<Item>,
    output: Vec<Value>,
    number: u64,
    /// Tools that were run on the way, beyond OpenAI's API.
    trace: Vec<Value>,
}

impl Writer {
    pub fn new(head: Head) -> Self {
        Writer {
            head,
            open: None,
            output: Vec::new(),
            number: 0,
            trace: Vec::new(),
        }
    }

    pub async fn run(mut self, sse: Sse, streams: Vec<ChatStream>) -> Result<(), Gone> {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.head.response("in_progress", Vec::new());
            self.send(&sse, kind, json!({"response": response})).await?;
        }
        let mut events = select_all(streams);
        while let Some(event) = sse.next(&mut events).await? {
            match event {
                ChatEvent::Token { deltas, .. } | ChatEvent::Round { deltas } => {
                    self.deltas(&sse, deltas).await?;
                }
                ChatEvent::ToolResult(run) => self.trace.push(tool_runs::entry(&run)),
                ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                } => {
                    self.deltas(&sse, deltas).await?;
                    if self.open.is_none() && self.output.is_empty() {
                        self.begin(&sse, Kind::Message).await?;
                    }
                    let status = answer::status(&reason);
                    self.end(&sse, status).await?;
                    let output = std::mem::take(&mut self.output);
                    let trace = std::mem::take(&mut self.trace);
                    let response = self.head.ended(output, &reason, &timings, trace);
                    let kind = format!("response.{status}");
                    self.send(&sse, &kind, json!({"response": response}))
                        .await?;
                }
                ChatEvent::Failed(error) => {
                    let error = ApiError::from(error);
                    let output = std::mem::take(&mut self.output);
                    let mut response = self.head.response("failed", output);
                    let code = error.code.unwrap_or("server_error");
                    response["error"] = json!({"code": code, "message": error.message});
                    let failed = json!({"response": response});
                    self.send(&sse, "response.failed", failed).await?;
                }
            }
        }
        Ok(())
    }

    async fn deltas(&mut self, sse: &Sse, deltas: Vec<Delta>) -> Result<(), Gone> {
        for delta in deltas {
            match delta {
                Delta::Content(text) => {
                    self.begin(sse, Kind::Message).await?;
                    self.grow(sse, &text).await?;
                }
                Delta::Reasoning(text) => {
                    self.begin(sse, Kind::Reasoning).await?;
                    self.grow(sse, &text).await?;
                }
                Delta::CallStart { id, name, .. } => {
                    self.begin(sse, Kind::Call { id, name }).await?;
                }
                Delta::CallArguments { json_fragment, .. } => {
                    self.grow(sse, &json_fragment).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins an item, unless it is the one that is open.
    async fn begin(&mut self, sse: &Sse, kind: Kind) -> Result<(), Gone> {
        if self.open.as_ref().is_some_and(|item| item.kind == kind) {
            return Ok(());
        }
        self.end(sse, "completed").await?;
        let prefix = match kind {
            Kind::Message => "msg_",
            Kind::Reasoning => "rs_",
            Kind::Call { .. } => "fc_",
        };
        let item = Item {
            id: id::new(prefix),
            kind,
            text: String::new(),
        };
        let mut begun = item.value("in_progress");
        if let Some(content) = begun.get_mut("content") {
            *content = json!([]);
        }
        self.place(sse, "response.output_item.added", json!({"item": begun}))
            .await?;
        if item.kind == Kind::Message {
            let part = json!({"item_id": item.id, "content_index": 0, "part": answer::part("")});
            self.place(sse, "response.content_part.added", part).await?;
        }
        self.open = Some(item);
        Ok(())
    }

    async fn grow(&mut self, sse: &Sse, text: &str) -> Result<(), Gone> {
        let Some(item) = &mut self.open else {
            return Ok(());
        };
        item.text.push_str(text);
        let kind = format!("{}.delta", item.event());
        let mut event = json!({"item_id": item.id, "delta": text});
        if !matches!(item.kind, Kind::Call { .. }) {
            event["content_index"] = 0.into();
        }
        self.place(sse, &kind, event).await
    }

    async fn end(&mut self, sse: &Sse, status: &str) -> Result<(), Gone> {
        let Some(item) = self.open.take() else {
            return Ok(());
        };
        let kind = format!("{}.done", item.event());
        let mut event = json!({"item_id": item.id});
        match item.kind {
            Kind::Call { .. } => event["arguments"] = item.text.as_str().into(),
            _ => {
                event["text"] = item.text.as_str().into();
                event["content_index"] = 0.into();
            }
        }
        self.place(sse, &kind, event).await?;
        if item.kind == Kind::Message {
            let part = answer::part(&item.text);
            let part = json!({"item_id": item.id, "content_index": 0, "part": part});
            self.place(sse, "response.content_part.done", part).await?;
        }
        let whole = item.value(status);
        self.place(sse, "response.output_item.done", json!({"item": whole}))
            .await?;
        self.output.push(whole);
        Ok(())
    }

    /// Sends an event of the item that comes next in the output.
    async fn place(&mut self, sse: &Sse, kind: &str, mut event: Value) -> Result<(), Gone> {
        event["output_index"] = self.output.len().into();
        self.send(sse, kind, event).await
    }

    async fn send(&mut self, sse: &Sse, kind: &str, mut event: Value) -> Result<(), Gone> {
        event["type"] = kind.into();
        event["sequence_number"] = self.number.into();
        self.number += 1;
        sse.typed(&event).await
    }
}

impl Item {
    fn value(&self, status: &str) -> Value {
        match &self.kind {
            Kind::Message => answer::message(&self.id, &self.text, status),
            Kind::Reasoning => answer::reasoning(&self.id, &self.text),
            Kind::Call { id, name } => answer::call(&self.id, id, name, &self.text, status),
        }
    }

    /// What its events' names begin with.
    fn event(&self) -> &'static str {
        match self.kind {
            Kind::Message => "response.output_text",
            Kind::Reasoning => "response.reasoning_text",
            Kind::Call { .. } => "response.function_call_arguments",
        }
    }
}
