//! `/v1/completions`

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use biplane::{Error, Event, FinishReason, Model, Request, Timings};
use futures::{StreamExt, stream::select_all};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{answer, chat::too_long, legacy::Logprobs, parse};
use crate::{
    http::{
        Shared,
        error::ApiError,
        fields::{self, Fields},
        limits,
        sse::{self, Gone, Sse},
    },
    registry::Lease,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Tokens of an answer where the request does not say, as in OpenAI's API.
const MAX_TOKENS: usize = 16;

struct Ask {
    prompts: Vec<Vec<u32>>,
    /// All but the prompt.
    request: Request,
    n: usize,
    echo: bool,
    stream: bool,
    include_usage: bool,
}

pub async fn handle(State(app): State<Shared>, body: Body) -> Result<Response> {
    app.open()?;
    let mut fields = Fields::read(body).await?;
    let named = fields.text("model")?;
    let Lease { name, model } = app.lease(named.as_deref()).await?;
    let reading = model.clone();
    let (ask, receivers) = tokio::task::spawn_blocking(move || {
        let ask = read(&reading, fields)?;
        let receivers = submit(&reading, &ask)?;
        Ok::<_, ApiError>((ask, receivers))
    })
    .await
    .map_err(|e| Error::Stopped(format!("preparing the prompt: {e}")))??;
    let writer = Writer {
        head: answer::Head::new("cmpl-", &name),
        choices: choices(&model, &ask),
        per_prompt: ask.n,
        include_usage: ask.include_usage,
        timings: Vec::new(),
        model,
    };
    if ask.stream {
        return Ok(sse::respond(|sse| writer.stream(sse, receivers)));
    }
    Ok(Json(writer.whole(receivers).await?).into_response())
}

fn read(model: &Model, mut fields: Fields) -> Result<Ask> {
    parse::refuse(&fields)?;
    fields.refuse(
        "suffix",
        "write the whole prompt, with the model's own marks for infilling",
    )?;
    let n = parse::choices(&mut fields)?;
    if fields.count("best_of")?.is_some_and(|best| best > n) {
        let message = "not supported beyond n; ask for n answers and choose";
        return Err(ApiError::field("best_of", message).with_code("unsupported_parameter"));
    }
    let echo = fields.bool("echo")?.unwrap_or(false);
    let logprobs = match fields.value("logprobs") {
        None | Some(Value::Bool(false)) => None,
        Some(value) => {
            let n = fields::whole(&value).and_then(|n| usize::try_from(n).ok());
            Some(n.ok_or_else(|| fields::wrong("logprobs", &value, "a whole number from 0"))?)
        }
    };
    let changes = parse::sampling(&mut fields)?;
    let mut request = Request {
        sampling: model.sampling(&changes)?,
        max_tokens: Some(fields.count("max_tokens")?.unwrap_or(MAX_TOKENS)),
        constraint: parse::form(&mut fields)?,
        logprobs,
        prompt_logprobs: logprobs.filter(|_| echo),
        continues: true,
        ..Request::default()
    };
    parse::ends(&mut fields, &mut request)?;
    let (stream, include_usage) = parse::streaming(&mut fields)?;
    Ok(Ask {
        prompts: prompts(model, &mut fields)?,
        request,
        n,
        echo,
        stream,
        include_usage,
    })
}

/// A text, texts, token ids, or lists of them.
fn prompts(model: &Model, fields: &mut Fields) -> Result<Vec<Vec<u32>>> {
    const NAME: &str = "prompt";
    let value = fields.value(NAME);
    let value = value.ok_or_else(|| ApiError::field(NAME, "missing"))?;
    let list = match &value {
        Value::Array(items) if items.iter().all(|v| v.is_string() || v.is_array()) => items.clone(),
        _ => vec![value],
    };
    if list.is_empty() || list.len() > limits::PROMPTS {
        let n = list.len();
        let message = format!("{n} prompts are not allowed, only 1 to {}", limits::PROMPTS);
        return Err(ApiError::field(NAME, message));
    }
    let (words, most) = (model.tokenizer().vocab_size(), model.info().context_length);
    let prompt = |value: &Value| {
        let tokens = match value {
            Value::String(text) => model.prompt_tokens(text)?,
            other => fields::tokens(other).ok_or_else(|| {
                fields::wrong(
                    NAME,
                    other,
                    "a text, a list of token ids, or a list of either",
                )
            })?,
        };
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= words) {
            let message = format!("{id} is not a token; the vocabulary has {words}");
            return Err(ApiError::field(NAME, message));
        }
        match tokens.len() {
            0 => Err(ApiError::field(NAME, "the prompt is empty")),
            n if n >= most => Err(too_long(n, most).with_param(NAME)),
            _ => Ok(tokens),
        }
    };
    list.iter().map(prompt).collect()
}

/// Starts all answers: `n` to the first prompt, then `n` to the second, …
fn submit(model: &Model, ask: &Ask) -> Result<Vec<mpsc::Receiver<Event>>> {
    let mut receivers = Vec::new();
    for prompt in &ask.prompts {
        let request = Request {
            tokens: prompt.clone(),
            ..ask.request.clone()
        };
        for i in 0..ask.n {
            receivers.push(model.submit(request.choice(i as u64))?);
        }
    }
    Ok(receivers)
}

/// One answer in the making.
#[derive(Default)]
struct Choice {
    /// What is to be shown before the answer, until it is.
    echo: Option<String>,
    prompt: Vec<u32>,
    logprobs: Option<Logprobs>,
    text: String,
    reason: Option<&'static str>,
}

fn choices(model: &Model, ask: &Ask) -> Vec<Choice> {
    let choice = |prompt: &Vec<u32>| Choice {
        echo: ask.echo.then(|| model.detokenize(prompt)),
        prompt: prompt.clone(),
        logprobs: ask.request.logprobs.map(|_| Logprobs::default()),
        ..Choice::default()
    };
    let each = ask.prompts.iter();
    each.flat_map(|prompt| (0..ask.n).map(move |_| choice(prompt)))
        .collect()
}

impl Choice {
    /// Takes an event in; the timings come with the last.
    fn take(&mut self, model: &Model, event: Event) -> Result<Option<Timings>> {
        match event {
            Event::Prompt(list) => {
                if let Some(logprobs) = &mut self.logprobs {
                    logprobs.prompt(model, &self.prompt, &list);
                }
            }
            Event::Token {
                text, logprobs: p, ..
            } => {
                self.begin();
                if let (Some(logprobs), Some(p)) = (&mut self.logprobs, p) {
                    logprobs.push(model, &p);
                }
                self.text.push_str(&text);
            }
            Event::Done {
                text,
                reason,
                timings,
            } => {
                self.begin();
                self.text.push_str(&text);
                self.reason = Some(match reason {
                    FinishReason::Length => "length",
                    _ => "stop",
                });
                return Ok(Some(timings));
            }
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(None)
    }

    fn begin(&mut self) {
        if let Some(echo) = self.echo.take() {
            self.text.push_str(&echo);
        }
    }

    /// What has come since the last time.
    fn piece(&mut self, index: usize) -> Value {
        let logprobs = self.logprobs.as_mut().map(Logprobs::take);
        json!({
            "index": index,
            "text": std::mem::take(&mut self.text),
            "logprobs": logprobs.unwrap_or_default(),
            "finish_reason": self.reason,
        })
    }
}

struct Writer {
    head: answer::Head,
    model: Model,
    choices: Vec<Choice>,
    per_prompt: usize,
    include_usage: bool,
    timings: Vec<Option<Timings>>,
}

const KIND: &str = "text_completion";

impl Writer {
    async fn whole(mut self, receivers: Vec<mpsc::Receiver<Event>>) -> Result<Value> {
        let mut events = events(receivers);
        while let Some((index, event)) = events.next().await {
            self.take(index, event)?;
        }
        let pieces = self.choices.iter_mut().enumerate();
        let pieces: Vec<Value> = pieces.map(|(i, choice)| choice.piece(i)).collect();
        if self.choices.iter().any(|choice| choice.reason.is_none()) {
            return Err(Error::Stopped("its thread ended during the request".into()).into());
        }
        let mut body = self.head.object(KIND, pieces.into());
        body["usage"] = self.usage();
        let first = self.timings.iter().flatten().next();
        body["timings"] = first.map_or(Value::Null, answer::timings);
        Ok(body)
    }

    async fn stream(
        mut self,
        sse: Sse,
        receivers: Vec<mpsc::Receiver<Event>>,
    ) -> std::result::Result<(), Gone> {
        let mut events = events(receivers);
        while let Some((index, event)) = sse.next(&mut events).await? {
            if let Err(error) = self.take(index, event) {
                sse.data(&error.body()).await?;
                return sse.done().await;
            }
            let Some(choice) = self.choices.get_mut(index) else {
                continue;
            };
            let waits = choice.text.is_empty() && choice.reason.is_none();
            if !waits {
                let piece = choice.piece(index);
                let mut chunk = self.head.object(KIND, json!([piece]));
                if self.include_usage {
                    chunk["usage"] = Value::Null;
                }
                sse.data(&chunk).await?;
            }
        }
        if self.choices.iter().any(|choice| choice.reason.is_none()) {
            let error = Error::Stopped("its thread ended during the request".into());
            sse.data(&ApiError::from(error).body()).await?;
        } else if self.include_usage {
            let mut last = self.head.object(KIND, json!([]));
            last["usage"] = self.usage();
            sse.data(&last).await?;
        }
        sse.done().await
    }

    fn take(&mut self, index: usize, event: Event) -> Result<()> {
        self.timings.resize(self.choices.len(), None);
        let Some(choice) = self.choices.get_mut(index) else {
            return Ok(());
        };
        let timings = choice.take(&self.model, event)?;
        if let (Some(place), Some(timings)) = (self.timings.get_mut(index), timings) {
            *place = Some(timings);
        }
        Ok(())
    }

    /// Each prompt counts once.
    fn usage(&self) -> Value {
        let all: Vec<Timings> = self.timings.iter().copied().flatten().collect();
        let prompts = all.iter().step_by(self.per_prompt);
        let (mut prompt, mut cached) = (0, 0);
        for timings in prompts {
            prompt += timings.prompt_tokens;
            cached += timings.cached_tokens;
        }
        let generated: usize = all.iter().map(|t| t.generated_tokens).sum();
        answer::usage_of(prompt, cached, generated)
    }
}

fn events(
    receivers: Vec<mpsc::Receiver<Event>>,
) -> impl futures::Stream<Item = (usize, Event)> + Unpin {
    let stream = |(i, receiver): (usize, mpsc::Receiver<Event>)| {
        futures::stream::unfold(receiver, move |mut receiver| async move {
            let event = receiver.recv().await?;
            Some(((i, event), receiver))
        })
        .boxed()
    };
    select_all(receivers.into_iter().enumerate().map(stream))
}
