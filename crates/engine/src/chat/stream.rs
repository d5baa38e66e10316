//! An answer as it comes.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;
use tokio::sync::mpsc;

use super::{ChatFinish, ChatResponse, ToolRun, reader::Reader};
use crate::{
    Error, Event, Result, Timings, TokenLogprobs,
    tools::{Delta, ParsedAnswer, ToolCall},
};

/// What an answer in the making sends.
#[derive(Debug)]
pub enum ChatEvent {
    /// A token, and what is certain with it: often nothing, as within a call's name.
    Token {
        /// The token.
        id: u32,
        /// Text, reasoning, and parts of calls.
        deltas: Vec<Delta>,
        /// Where the request asks.
        logprobs: Option<TokenLogprobs>,
    },
    /// An answer is over that calls tools, which are run now: only where
    /// [`ToolLoop`](super::ToolLoop) runs them.
    Round {
        /// What was held back until now.
        deltas: Vec<Delta>,
    },
    /// A tool was run, and the model goes on: only where [`ToolLoop`](super::ToolLoop) runs tools.
    ToolResult(ToolRun),
    /// The end; nothing comes after.
    Done {
        /// What was held back until now.
        deltas: Vec<Delta>,
        /// Why.
        reason: ChatFinish,
        /// How long it took.
        timings: Timings,
    },
    /// The request failed; nothing comes after.
    Failed(Error),
}

/// An answer as it comes. Dropping it cancels the request.
#[derive(Debug)]
pub struct ChatStream {
    source: Source,
    ended: bool,
}

#[derive(Debug)]
enum Source {
    /// The engine's events, and what understands them.
    Engine(mpsc::Receiver<Event>, Box<Reader>),
    /// Several answers with tools between them.
    Loop(mpsc::Receiver<ChatEvent>),
}

impl Source {
    /// The next event, or that there is none any more; an event may mean nothing.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Option<ChatEvent>>> {
        match self {
            Self::Engine(events, reader) => events
                .poll_recv(context)
                .map(|event| event.map(|event| reader.read(event))),
            Self::Loop(events) => events.poll_recv(context).map(|event| event.map(Some)),
        }
    }
}

impl ChatStream {
    pub(super) fn new(events: mpsc::Receiver<Event>, reader: Reader) -> Self {
        Self {
            source: Source::Engine(events, Box::new(reader)),
            ended: false,
        }
    }

    pub(super) fn of_loop(events: mpsc::Receiver<ChatEvent>) -> Self {
        Self {
            source: Source::Loop(events),
            ended: false,
        }
    }

    /// The next event; none after the last.
    pub async fn next(&mut self) -> Option<ChatEvent> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// Gathers all events.
    ///
    /// # Errors
    /// What the request failed with.
    pub async fn collect(mut self) -> Result<ChatResponse> {
        let mut response = ChatResponse::default();
        let mut answer = ParsedAnswer::default();
        while let Some(event) = self.next().await {
            match event {
                ChatEvent::Token {
                    id,
                    deltas,
                    logprobs,
                } => {
                    response.tokens.push(id);
                    response.logprobs.extend(logprobs);
                    deltas.into_iter().for_each(|delta| answer.push(delta));
                }
                ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                } => {
                    deltas.into_iter().for_each(|delta| answer.push(delta));
                    response.finish_reason = reason;
                    response.timings = timings;
                }
                ChatEvent::Round { deltas } => {
                    deltas.into_iter().for_each(|delta| answer.push(delta));
                }
                ChatEvent::ToolResult(run) => response.trace.push(run),
                ChatEvent::Failed(error) => return Err(error),
            }
        }
        response.tokens_per_second = response.timings.tokens_per_second();
        response.text = answer.content;
        response.reasoning = Some(answer.reasoning).filter(|text| !text.is_empty());
        let ran = |call: &ToolCall| response.trace.iter().any(|run| run.call.id == call.id);
        response.tool_calls = answer.calls.into_iter().filter(|call| !ran(call)).collect();
        Ok(response)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<ChatEvent>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let Poll::Ready(event) = self.source.poll(context) else {
                return Poll::Pending;
            };
            let event = event.unwrap_or_else(|| {
                Some(ChatEvent::Failed(Error::Stopped(
                    "its thread ended during the request".into(),
                )))
            });
            if let Some(event) = event {
                self.ended = matches!(event, ChatEvent::Done { .. } | ChatEvent::Failed(_));
                return Poll::Ready(Some(event));
            }
        }
    }
}

impl Stream for ChatStream {
    type Item = ChatEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ChatEvent>> {
        self.poll(context)
    }
}
