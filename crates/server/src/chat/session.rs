//! A conversation under way.

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use biplane::{ChatEvent, ChatFinish, ChatRequest, Message, Model, Request};

use super::{
    command::{Command, HELP, command},
    input::{Input, Lines},
    saved::Saved,
    settings::{NAMES, Settings},
    shown::Shown,
};
use crate::report;

const PROMPT: &str = ">>> ";
const MORE: &str = "... ";
const FENCE: &str = "\"\"\"";

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Whole,
    /// By Ctrl-C, or because nobody reads.
    Stopped,
}

/// A conversation with a model.
pub struct Session {
    model: Model,
    /// The model as it was named.
    name: Option<String>,
    pub system: Option<String>,
    pub settings: Settings,
    pub messages: Vec<Message>,
    /// How often the last message was answered.
    attempts: u64,
    /// No figures after answers.
    pub quiet: bool,
}

/// What came of an answer.
struct Answer {
    text: String,
    turn: Turn,
}

impl Session {
    pub fn new(
        model: Model,
        name: Option<String>,
        settings: Settings,
        system: Option<String>,
    ) -> Self {
        Self {
            model,
            name,
            system,
            settings,
            messages: Vec::new(),
            attempts: 0,
            quiet: false,
        }
    }

    /// Reads and answers until the input ends. What goes wrong with a line is said, and the
    /// conversation goes on.
    pub fn converse(
        &mut self,
        lines: &mut dyn Lines,
        out: &mut dyn Write,
        runtime: &tokio::runtime::Runtime,
    ) -> anyhow::Result<()> {
        loop {
            let Some(text) = next(lines)? else {
                return Ok(());
            };
            if text.trim().is_empty() {
                continue;
            }
            lines.remember(&text);
            let done = match command(&text) {
                Some(Ok(Command::Exit)) => return Ok(()),
                Some(Ok(Command::Regenerate)) => runtime.block_on(self.regenerate(out)).map(drop),
                Some(Ok(command)) => self.obey(command).map(|said| report::note(&said)),
                Some(Err(wrong)) => Err(anyhow::Error::msg(wrong)),
                None => runtime.block_on(self.say(message(&text), out)).map(drop),
            };
            if let Err(error) = done {
                report::note(&format!("{error:#}"));
            }
        }
    }

    /// Says something to the model, and writes the answer as it comes. A message that cannot be
    /// answered is no part of the conversation.
    pub async fn say(&mut self, text: String, out: &mut dyn Write) -> anyhow::Result<Turn> {
        self.messages.push(Message::new("user", text));
        self.attempts = 0;
        let answer = self.answer(out).await;
        if answer
            .as_ref()
            .map_or(true, |answer| answer.text.is_empty())
        {
            self.messages.pop();
        }
        self.keep(answer?)
    }

    /// Answers the last message once more.
    pub async fn regenerate(&mut self, out: &mut dyn Write) -> anyhow::Result<Turn> {
        let Some(old) = self.messages.pop_if(|message| message.role == "assistant") else {
            bail!("there is no answer yet");
        };
        self.attempts += 1;
        let answer = self.answer(out).await;
        if answer
            .as_ref()
            .map_or(true, |answer| answer.text.is_empty())
        {
            self.messages.push(old);
        }
        let (changes, _) = self.settings.sampling().map_err(anyhow::Error::msg)?;
        if self.model.sampling(&changes)?.temperature == 0.0 {
            report::note(
                "at temperature 0 an answer is always the same; /set temperature 0.8 changes that",
            );
        }
        self.keep(answer?)
    }

    fn keep(&mut self, answer: Answer) -> anyhow::Result<Turn> {
        if !answer.text.is_empty() {
            self.messages.push(Message::new("assistant", answer.text));
        }
        Ok(answer.turn)
    }

    async fn answer(&self, out: &mut dyn Write) -> anyhow::Result<Answer> {
        let (changes, max_tokens) = self.settings.sampling().map_err(anyhow::Error::msg)?;
        let system = self
            .system
            .as_ref()
            .map(|text| Message::new("system", text.as_str()));
        let messages: Vec<Message> = system.into_iter().chain(self.messages.clone()).collect();
        let prepared = self.model.prepare_chat(ChatRequest {
            generation: Request {
                max_tokens,
                ..Request::default()
            },
            sampling: Some(changes),
            ..ChatRequest::new(messages)
        })?;
        let mut stream = self.model.submit_prepared(&prepared, self.attempts)?;
        let mut shown = Shown::new(out);
        let (start, mut first, mut tokens) = (Instant::now(), None, 0usize);
        let (turn, figures) = loop {
            let event = tokio::select! {
                event = stream.next() => event,
                stop = tokio::signal::ctrl_c() => {
                    stop.context("Ctrl-C")?;
                    break (Turn::Stopped, None);
                }
            };
            let deltas = match event {
                Some(ChatEvent::Token { deltas, .. }) => {
                    first.get_or_insert_with(|| start.elapsed());
                    tokens += 1;
                    deltas
                }
                Some(ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                }) => {
                    if !shown.all(deltas)? {
                        break (Turn::Stopped, None);
                    }
                    let turn = match reason {
                        ChatFinish::Cancelled => Turn::Stopped,
                        _ => Turn::Whole,
                    };
                    break (turn, Some((reason, timings)));
                }
                Some(ChatEvent::Failed(error)) => return Err(error.into()),
                Some(_) => continue,
                None => bail!("the engine stopped without an answer"),
            };
            if !shown.all(deltas)? {
                break (Turn::Stopped, None);
            }
        };
        // Nothing more is computed of it.
        drop(stream);
        let text = shown.end()?;
        if !self.quiet {
            report::note(&match figures {
                Some((reason, timings)) => footer(
                    timings.generated_tokens,
                    timings.decode_tokens_per_second(),
                    Some(timings.time_to_first_token),
                    if reason == ChatFinish::Length {
                        " (cut at the limit)"
                    } else {
                        ""
                    },
                ),
                None => {
                    let decoding = start.elapsed().saturating_sub(first.unwrap_or_default());
                    let speed = tokens.saturating_sub(1) as f64 / decoding.as_secs_f64().max(1e-9);
                    footer(tokens, speed, first, " (stopped)")
                }
            });
        }
        Ok(Answer { text, turn })
    }

    /// Does what a command says; gives what is to be said of it.
    pub fn obey(&mut self, command: Command) -> anyhow::Result<String> {
        Ok(match command {
            Command::Help => HELP.to_owned(),
            Command::Clear => {
                self.messages.clear();
                "a new conversation begins".to_owned()
            }
            Command::System(None) => match &self.system {
                Some(text) => text.clone(),
                None => "there is no system message".to_owned(),
            },
            Command::System(Some(text)) => {
                self.system = Some(text).filter(|text| !text.is_empty());
                "the system message is changed; /clear begins anew with it".to_owned()
            }
            Command::Set(name, _) if name.is_empty() => self.listed(),
            Command::Set(name, value) => {
                self.settings
                    .set(&name, &value)
                    .map_err(anyhow::Error::msg)?;
                format!("{name} is {value}")
            }
            Command::Show => {
                let info = self.model.info();
                format!(
                    "model    {} ({}, {:.1}M parameters, {} tokens of context)\nruns     {} on {}\nsystem   {}\ntalk     {} messages\n{}",
                    self.name.as_deref().unwrap_or("starter"),
                    info.architecture,
                    info.parameters as f64 / 1e6,
                    info.context_length,
                    info.backend,
                    info.device,
                    self.system.as_deref().unwrap_or("none"),
                    self.messages.len(),
                    self.listed()
                )
            }
            Command::Save(file) => {
                self.save(&file)?;
                format!("written to {}", file.display())
            }
            Command::Load(file) => {
                self.load(&file)?;
                format!("{} messages from {}", self.messages.len(), file.display())
            }
            Command::Regenerate | Command::Exit => String::new(),
        })
    }

    fn listed(&self) -> String {
        let value = |name: &str| {
            let found = self.settings.all().find(|(own, _)| *own == name);
            found.map_or("default", |(_, value)| value).to_owned()
        };
        let lines = NAMES.map(|name| format!("{name:18} {}", value(name)));
        lines.join("\n")
    }

    fn save(&self, file: &Path) -> anyhow::Result<()> {
        let settings = self.settings.all();
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let saved = Saved {
            biplane_chat: 1,
            model: self.name.clone(),
            system: self.system.clone(),
            settings: settings.collect(),
            messages: self.messages.clone(),
        };
        saved.write(file)
    }

    /// Takes up a conversation from a file, or changes nothing.
    pub fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        let saved = Saved::read(file)?;
        let mut settings = Settings::default();
        for (name, value) in &saved.settings {
            let set = settings.set(name, value).map_err(anyhow::Error::msg);
            set.with_context(|| file.display().to_string())?;
        }
        self.settings = settings;
        self.system = saved.system;
        self.messages = saved.messages;
        Ok(())
    }
}

/// The next message or command, of many lines between fences; none at the end.
fn next(lines: &mut dyn Lines) -> anyhow::Result<Option<String>> {
    let mut text = match lines.line(PROMPT)? {
        Input::Line(line) => line,
        Input::Interrupted => {
            report::note("(Ctrl-D or /exit leaves)");
            return Ok(Some(String::new()));
        }
        Input::End => return Ok(None),
    };
    let Some(begun) = text.trim_start().strip_prefix(FENCE) else {
        return Ok(Some(text));
    };
    text = begun.to_owned();
    while !text.trim_end().ends_with(FENCE) {
        match lines.line(MORE)? {
            Input::Line(line) => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&line);
            }
            Input::Interrupted => return Ok(Some(String::new())),
            Input::End => return Ok(None),
        }
    }
    let text = text.trim_end();
    let text = text.strip_suffix(FENCE).unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    // Between fences everything is a message.
    Ok(Some(match text.starts_with('/') {
        true => format!("/{text}"),
        false => text.to_owned(),
    }))
}

/// A message as it was meant: two slashes at the beginning are one.
fn message(text: &str) -> String {
    match text.strip_prefix("//") {
        Some(rest) => format!("/{rest}"),
        None => text.to_owned(),
    }
}

fn footer(tokens: usize, speed: f64, first: Option<Duration>, end: &str) -> String {
    let first = first.map_or_else(String::new, |first| {
        format!(" · first token {:.0} ms", first.as_secs_f64() * 1e3)
    });
    format!("[{tokens} tokens{end} · {speed:.1} tok/s{first}]")
}
