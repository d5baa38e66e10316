//! Answers piece by piece, as blocks that begin, grow and end.

use biplane::{ChatEvent, ChatStream, tools::Delta};
use futures::stream::select_all;
use serde_json::{Value, json};

use super::{answer::Head, failure};
use crate::http::{
    error::ApiError,
    sse::{Gone, Sse},
    tool_runs,
};

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    Call(usize),
}

/// Writes the events of an answer.
pub struct Writer {
    head: Head,
    open: Option<Block>,
    index: usize,
    /// Tools that were run on the way, beyond Anthropic's API.
    trace: Vec<Value>,
}

impl Writer {
    pub fn new(head: Head) -> Self {
        Writer {
            head,
            open: None,
            index: 0,
            trace: Vec::new(),
        }
    }

    pub async fn run(mut self, sse: Sse, streams: Vec<ChatStream>) -> Result<(), Gone> {
        let start = json!({"type": "message_start", "message": self.head.message()});
        sse.typed(&start).await?;
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
                    self.close(&sse).await?;
                    let mut end = self.head.end(&reason, &timings);
                    if !self.trace.is_empty() {
                        end["biplane"] = json!({"tool_trace": self.trace});
                    }
                    sse.typed(&end).await?;
                    sse.typed(&json!({"type": "message_stop"})).await?;
                }
                ChatEvent::Failed(error) => {
                    return sse.typed(&failure(&ApiError::from(error))).await;
                }
            }
        }
        Ok(())
    }

    async fn deltas(&mut self, sse: &Sse, deltas: Vec<Delta>) -> Result<(), Gone> {
        for delta in deltas {
            match delta {
                Delta::Content(text) => {
                    let begin = json!({"type": "text", "text": ""});
                    self.open(sse, Block::Text, begin).await?;
                    self.grow(sse, json!({"type": "text_delta", "text": text}))
                        .await?;
                }
                Delta::Reasoning(text) => {
                    let begin = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.open(sse, Block::Thinking, begin).await?;
                    self.grow(sse, json!({"type": "thinking_delta", "thinking": text}))
                        .await?;
                }
                Delta::CallStart { index, id, name } => {
                    let begin = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    self.open(sse, Block::Call(index), begin).await?;
                }
                Delta::CallArguments { json_fragment, .. } => {
                    let part = json!({"type": "input_json_delta", "partial_json": json_fragment});
                    self.grow(sse, part).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins a block, unless it is the one that is open.
    async fn open(&mut self, sse: &Sse, block: Block, begin: Value) -> Result<(), Gone> {
        if self.open == Some(block) {
            return Ok(());
        }
        self.close(sse).await?;
        self.open = Some(block);
        let index = self.index;
        let start = json!({"type": "content_block_start", "index": index, "content_block": begin});
        sse.typed(&start).await
    }

    async fn grow(&self, sse: &Sse, delta: Value) -> Result<(), Gone> {
        let delta = json!({"type": "content_block_delta", "index": self.index, "delta": delta});
        sse.typed(&delta).await
    }

    async fn close(&mut self, sse: &Sse) -> Result<(), Gone> {
        if self.open.take().is_some() {
            let stop = json!({"type": "content_block_stop", "index": self.index});
            self.index += 1;
            sse.typed(&stop).await?;
        }
        Ok(())
    }
}
