//! Answers with tools: the model calls, this program runs, and the model goes on with the results.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{ChatEvent, ChatFinish, ChatRequest, ChatResponse, ChatStream, ToolRun};
use crate::{
    Error, Message, Model, Result, Timings,
    tools::{Delta, ParsedAnswer, ToolBox, ToolCall, ToolChoice},
};

/// Events that a reader may leave unread before the model waits for it.
const EVENTS: usize = 64;

/// How tools are run.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolConfig {
    /// Most times that tools are run for one answer. After the last time the model is offered only
    /// tools that are not run here, so that it answers with what it has. With 0 no tool is run: calls
    /// are in [`ChatResponse::tool_calls`].
    pub max_rounds: usize,
    /// How long one call may take. A function that blocks is not ended by it, only given up.
    pub timeout: Duration,
    /// Most calls at once.
    pub parallelism: usize,
    /// What a failed call does.
    pub on_error: OnToolError,
    /// Which tools to call in the first round, for requests that leave it at [`ToolChoice::Auto`].
    pub choice: ToolChoice,
    /// Whether calls that are run here are part of the answer, as all others are. Otherwise only
    /// [`ChatEvent::ToolResult`] tells of them, also of those that are not run after all, and the
    /// answer has the calls that the reader is to run.
    pub show_calls: bool,
}

impl Default for ToolConfig {
    fn default() -> Self {
        ToolConfig {
            max_rounds: 8,
            timeout: Duration::from_secs(30),
            parallelism: 4,
            on_error: OnToolError::ReturnToModel,
            choice: ToolChoice::Auto,
            show_calls: true,
        }
    }
}

/// What a call does that fails, takes too long, or has wrong arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnToolError {
    /// The model reads what went wrong, and may try again.
    #[default]
    ReturnToModel,
    /// The answer fails with [`Error::Tool`].
    Fail,
}

/// Runs tools for a model until it answers.
///
/// A request's own tools and the tool box's are offered together. When the model calls one that is
/// not run here, the answer ends with [`ChatFinish::ToolCalls`], and none of that round's calls is
/// run. A choice that forces a call holds for the first round only.
#[derive(Clone, Debug, Default)]
pub struct ToolLoop {
    /// The tools.
    pub tools: ToolBox,
    /// How they are run.
    pub config: ToolConfig,
}

impl ToolLoop {
    /// A loop over these tools.
    pub fn new(tools: ToolBox, config: ToolConfig) -> Self {
        Self { tools, config }
    }

    /// Starts an answer, on a Tokio runtime with its clock; dropping the stream cancels it. The
    /// stream has all rounds' tokens, a [`ChatEvent::ToolResult`] for each call that was run, and one
    /// end with all rounds' timings. Calls are counted through.
    ///
    /// # Errors
    /// As [`Model::start_chat`].
    pub async fn start(&self, model: &Model, chat: ChatRequest) -> Result<ChatStream> {
        let mut chat = chat;
        if self.config.parallelism == 0 {
            return Err(Error::Request(
                "parallelism of ToolConfig is 0, at least 1 is needed".into(),
            ));
        }
        let own = self.tools.definitions().into_iter();
        let new: Vec<_> = own
            .filter(|tool| chat.tools.iter().all(|t| t.name != tool.name))
            .collect();
        chat.tools.extend(new);
        if chat.tool_choice == ToolChoice::Auto && !chat.tools.is_empty() {
            chat.tool_choice = self.config.choice.clone();
        }
        let first = model.start_chat(chat.clone()).await?;
        if self.tools.is_empty() || chat.tool_choice == ToolChoice::None {
            return Ok(first);
        }
        let (out, events) = mpsc::channel(EVENTS);
        let rounds = Rounds {
            setting: self.clone(),
            model: model.clone(),
            chat,
            out: out.clone(),
            calls: 0,
            said: false,
            total: None,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = out.closed() => {}
                ended = rounds.run(first) => {
                    if let Err(error) = ended {
                        let _ = out.send(ChatEvent::Failed(error)).await;
                    }
                }
            }
        });
        Ok(ChatStream::of_loop(events))
    }

    /// Answers.
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn complete(&self, model: &Model, chat: ChatRequest) -> Result<ChatResponse> {
        self.start(model, chat).await?.collect().await
    }

    async fn run(&self, round: usize, call: ToolCall) -> ToolRun {
        let started = Instant::now();
        let result = tokio::time::timeout(self.config.timeout, self.tools.call(&call)).await;
        let late = || {
            let limit = self.config.timeout.as_secs_f64();
            Err(format!("it did not answer within {limit} s"))
        };
        ToolRun {
            round,
            call,
            result: result.unwrap_or_else(|_| late()),
            duration: started.elapsed(),
        }
    }
}

/// One answer in the making.
struct Rounds {
    setting: ToolLoop,
    model: Model,
    chat: ChatRequest,
    out: mpsc::Sender<ChatEvent>,
    /// Calls that the rounds before gave to the reader.
    calls: usize,
    /// Whether content was given in the rounds before.
    said: bool,
    total: Option<Timings>,
}

/// What a round ended with.
struct Round {
    answer: ParsedAnswer,
    /// Of its calls, how many the reader was given.
    shown: usize,
    deltas: Vec<Delta>,
    reason: ChatFinish,
    timings: Timings,
}

impl Rounds {
    async fn run(mut self, first: ChatStream) -> Result<()> {
        let mut stream = first;
        for round in 0.. {
            let Round {
                answer,
                shown,
                deltas,
                reason,
                timings,
            } = self.listen(stream).await?;
            let total = match self.total {
                Some(before) => before.and(timings),
                None => timings,
            };
            self.total = Some(total);
            let runs = reason == ChatFinish::ToolCalls
                && round < self.setting.config.max_rounds
                && answer.calls.iter().all(|call| self.is_run_here(&call.name));
            if !runs {
                let reason = match reason {
                    ChatFinish::ToolCalls if !self.setting.config.show_calls => {
                        self.give_up(round, answer, shown).await?
                    }
                    other => other,
                };
                return self
                    .send(ChatEvent::Done {
                        deltas,
                        reason,
                        timings: total,
                    })
                    .await;
            }
            self.send(ChatEvent::Round { deltas }).await?;
            self.calls += shown;
            self.said |= !answer.content.is_empty();
            self.call(round, answer).await?;
            stream = self.model.start_chat(self.chat.clone()).await?;
        }
        Ok(())
    }

    /// Whether a call can be answered: a name that is no tool's at all is a mistake of the model's.
    fn is_run_here(&self, name: &str) -> bool {
        self.setting.tools.has(name) || self.chat.tools.iter().all(|t| t.name != name)
    }

    /// Says which calls of the last round are not run and not given to the reader either; why the
    /// answer ends.
    async fn give_up(&self, round: usize, last: ParsedAnswer, shown: usize) -> Result<ChatFinish> {
        let reason = match shown {
            0 => format!(
                "it was not run: tools were run {} times for this answer, which is the most",
                self.setting.config.max_rounds
            ),
            _ => "it was not run: the answer has other calls, whose results are to be given first"
                .into(),
        };
        for call in last.calls {
            if self.is_run_here(&call.name) {
                let run = ToolRun {
                    round,
                    call,
                    result: Err(reason.clone()),
                    duration: Duration::ZERO,
                };
                self.send(ChatEvent::ToolResult(run)).await?;
            }
        }
        Ok(match shown {
            0 => ChatFinish::Stop,
            _ => ChatFinish::ToolCalls,
        })
    }

    /// Passes one answer on, and keeps it.
    async fn listen(&self, mut stream: ChatStream) -> Result<Round> {
        let mut answer = ParsedAnswer::default();
        let mut said = !self.said;
        // What the reader knows this round's calls by; nothing where they are not shown.
        let mut places: Vec<Option<usize>> = Vec::new();
        let mut shown = 0;
        let mut pass = |mut deltas: Vec<Delta>| {
            deltas.retain_mut(|delta| {
                answer.push(delta.clone());
                match delta {
                    Delta::CallStart { index, name, .. } => {
                        let show = self.setting.config.show_calls || !self.is_run_here(name);
                        let place = show.then_some(self.calls + shown);
                        shown += usize::from(show);
                        places.resize((*index).max(places.len()), None);
                        places.insert(*index, place);
                        *index = place.unwrap_or_default();
                        return show;
                    }
                    Delta::CallArguments { index, .. } => {
                        let place = places.get(*index).copied().flatten();
                        *index = place.unwrap_or_default();
                        return place.is_some();
                    }
                    // What is said in two rounds is two paragraphs.
                    Delta::Content(text) if !std::mem::replace(&mut said, true) => {
                        text.insert_str(0, "\n\n");
                    }
                    _ => {}
                }
                true
            });
            deltas
        };
        loop {
            match stream.next().await {
                Some(ChatEvent::Token {
                    id,
                    deltas,
                    logprobs,
                }) => {
                    let deltas = pass(deltas);
                    self.send(ChatEvent::Token {
                        id,
                        deltas,
                        logprobs,
                    })
                    .await?;
                }
                Some(ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                }) => {
                    let deltas = pass(deltas);
                    return Ok(Round {
                        answer,
                        shown,
                        deltas,
                        reason,
                        timings,
                    });
                }
                Some(ChatEvent::Failed(error)) => return Err(error),
                Some(ChatEvent::Round { .. } | ChatEvent::ToolResult(_)) => {}
                None => return Err(Error::Stopped("an answer had no end".into())),
            }
        }
    }

    /// Runs a round's calls, and adds them and their results to the conversation.
    async fn call(&mut self, round: usize, answer: ParsedAnswer) -> Result<()> {
        let mut tool_calls = Vec::new();
        for call in &answer.calls {
            let value = serde_json::to_value(call);
            tool_calls.push(value.map_err(|e| Error::Request(format!("tool_calls: {e}")))?);
        }
        self.chat.messages.push(Message {
            role: "assistant".into(),
            content: Value::String(answer.content),
            reasoning_content: Some(answer.reasoning).filter(|text| !text.is_empty()),
            tool_calls,
            ..Message::default()
        });
        let setting = &self.setting;
        let running = answer
            .calls
            .into_iter()
            .map(|call| setting.run(round, call));
        let mut runs = stream::iter(running).buffered(setting.config.parallelism);
        let mut results = Vec::new();
        while let Some(run) = runs.next().await {
            let text = match &run.result {
                Ok(text) => text.clone(),
                Err(reason) if setting.config.on_error == OnToolError::Fail => {
                    return Err(Error::Tool {
                        name: run.call.name,
                        reason: reason.clone(),
                    });
                }
                Err(reason) => format!("Error: {reason}"),
            };
            results.push(Message {
                tool_call_id: Some(run.call.id.clone()),
                name: Some(run.call.name.clone()),
                ..Message::new("tool", text)
            });
            self.send(ChatEvent::ToolResult(run)).await?;
        }
        drop(runs);
        self.chat.messages.extend(results);
        // What had to be called has been; an answer that was begun for the model is over.
        self.chat.add_generation_prompt = true;
        self.chat.tool_choice = match std::mem::take(&mut self.chat.tool_choice) {
            ToolChoice::Required | ToolChoice::Named(_) => ToolChoice::Auto,
            ToolChoice::Allowed { names, .. } => ToolChoice::Allowed {
                names,
                required: false,
            },
            other => other,
        };
        if round + 1 >= self.setting.config.max_rounds {
            self.offer_no_more();
        }
        Ok(())
    }

    /// Takes the tools that are run here from the choice.
    fn offer_no_more(&mut self) {
        let Ok(chosen) = self.chat.tool_choice.select(&self.chat.tools) else {
            // A choice that names no tool: the next round says so.
            return;
        };
        let names: Vec<_> = chosen
            .iter()
            .filter(|tool| !self.setting.tools.has(&tool.name))
            .map(|tool| tool.name.clone())
            .collect();
        self.chat.tool_choice = match names.is_empty() {
            true => ToolChoice::None,
            false => ToolChoice::Allowed {
                names,
                required: false,
            },
        };
    }

    async fn send(&self, event: ChatEvent) -> Result<()> {
        let sent = self.out.send(event).await;
        sent.map_err(|_| Error::Stopped("nobody listens any more".into()))
    }
}

#[cfg(test)]
#[path = "tests/tool_loop.rs"]
mod tests;
