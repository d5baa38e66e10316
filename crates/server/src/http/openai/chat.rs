//! `/v1/chat/completions`

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use biplane::{ChatRequest, ChatStream, Error, Message, Model, PreparedChat, Request};
use futures::future::try_join_all;
use serde_json::{Map, Value};

use super::{answer, parse, stream, tools};
use crate::{
    http::{
        Shared,
        error::ApiError,
        fields::{Fields, wrong},
        limits, sse, tool_runs,
    },
    registry::Lease,
};

type Result<T> = std::result::Result<T, ApiError>;

/// A request, understood.
#[derive(Debug)]
pub struct Ask {
    pub chat: ChatRequest,
    pub model: Option<String>,
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
}

pub async fn handle(State(app): State<Shared>, body: Body) -> Result<Response> {
    app.open()?;
    let ask = read(Fields::read(body).await?)?;
    let Lease { name, model } = app.lease(ask.model.as_deref()).await?;
    let wants_logprobs = ask.chat.generation.logprobs.is_some();
    let streams = start(&model, ask.chat, ask.n).await?.streams;
    let head = answer::Head::new("chatcmpl-", &name);
    if ask.stream {
        let writer = stream::Writer::new(head, model, ask.include_usage);
        return Ok(sse::respond(|sse| writer.run(sse, streams)));
    }
    let answers = try_join_all(streams.into_iter().map(ChatStream::collect)).await?;
    let body = answer::whole(&head, &model, &answers, wants_logprobs);
    Ok(Json(body).into_response())
}

/// Answers that have begun.
pub struct Started {
    pub streams: Vec<ChatStream>,
    /// Of the prompt.
    pub tokens: usize,
}

/// Starts `n` answers to a conversation, away from the threads that serve.
pub async fn start(model: &Model, chat: ChatRequest, n: usize) -> Result<Started> {
    if let Some(tools) = tool_runs::of(model, &chat) {
        return tool_runs::start(&tools, model, chat, n).await;
    }
    let model = model.clone();
    let start = move || {
        let prepared = model.prepare_chat(chat)?;
        let tokens = fits(&model, &prepared)?;
        let submit = |i| Ok(model.submit_prepared(&prepared, i as u64)?);
        let streams = (0..n).map(submit).collect::<Result<_>>()?;
        Ok(Started { streams, tokens })
    };
    tokio::task::spawn_blocking(start)
        .await
        .map_err(|e| Error::Stopped(format!("preparing the prompt: {e}")))?
}

/// A prompt's tokens, where the context has room for an answer.
pub fn fits(model: &Model, prepared: &PreparedChat) -> Result<usize> {
    let (tokens, most) = (prepared.request.tokens.len(), model.info().context_length);
    match tokens < most {
        true => Ok(tokens),
        false => Err(too_long(tokens, most)),
    }
}

pub fn too_long(tokens: usize, most: usize) -> ApiError {
    ApiError::bad(format!(
        "the prompt has {tokens} tokens, but the context has {most}, the answer included; shorten it, \
         or start the server with a larger --ctx"
    ))
    .with_param("messages")
    .with_code("context_length_exceeded")
}

/// Understands a request.
pub fn read(mut fields: Fields) -> Result<Ask> {
    let messages = fields.list("messages")?;
    let messages = messages.ok_or_else(|| ApiError::field("messages", "missing"))?;
    let messages = messages.into_iter().enumerate();
    let messages = messages
        .map(|(i, m)| message(i, m))
        .collect::<Result<_>>()?;
    read_with(fields, messages)
}

/// Understands a request whose messages are known already.
pub fn read_with(mut fields: Fields, messages: Vec<Message>) -> Result<Ask> {
    parse::refuse(&fields)?;
    fields.refuse("functions", "use tools")?;
    fields.refuse("function_call", "use tool_choice")?;
    modalities(&mut fields)?;
    let mut generation = Request {
        max_tokens: match fields.count("max_completion_tokens")? {
            None => fields.count("max_tokens")?,
            most => most,
        },
        constraint: parse::form(&mut fields)?,
        logprobs: logprobs(&mut fields)?,
        ..Request::default()
    };
    if generation.max_tokens == Some(0) {
        return Err(ApiError::field(
            "max_tokens",
            "0 is not allowed, at least 1 is",
        ));
    }
    parse::ends(&mut fields, &mut generation)?;
    let (stream, include_usage) = parse::streaming(&mut fields)?;
    let continues = fields.bool("continue_final_message")?.unwrap_or(false);
    let begins = fields.bool("add_generation_prompt")?;
    Ok(Ask {
        chat: ChatRequest {
            messages,
            tools: tools::definitions(&mut fields)?,
            tool_choice: tools::choice(&mut fields)?,
            parallel_tool_calls: fields.bool("parallel_tool_calls")?.unwrap_or(true),
            template_variables: variables(&mut fields)?,
            sampling: Some(parse::sampling(&mut fields)?),
            add_generation_prompt: begins.unwrap_or(!continues),
            generation,
        },
        model: fields.text("model")?,
        n: parse::choices(&mut fields)?,
        stream,
        include_usage,
    })
}

fn modalities(fields: &mut Fields) -> Result<()> {
    let modalities = fields.texts("modalities")?.unwrap_or_default();
    match modalities.iter().find(|name| *name != "text") {
        Some(other) => Err(ApiError::field(
            "modalities",
            format!("{other:?} is not supported; the model writes text only"),
        )
        .with_code("unsupported_parameter")),
        None => Ok(()),
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    match (wanted, fields.count("top_logprobs")?) {
        (_, Some(top)) if top > limits::LOGPROBS => Err(ApiError::field(
            "top_logprobs",
            format!("{top} is not allowed, at most {} is", limits::LOGPROBS),
        )),
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::field(
            "top_logprobs",
            "set logprobs to true as well",
        )),
    }
}

/// Variables of the chat template.
fn variables(fields: &mut Fields) -> Result<Map<String, Value>> {
    let mut variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(thinking) = fields.bool("enable_thinking")? {
        variables.insert("enable_thinking".into(), thinking.into());
    }
    if let Some(effort) = fields.text("reasoning_effort")? {
        variables.insert("reasoning_effort".into(), effort.into());
    }
    Ok(variables)
}

fn message(i: usize, value: Value) -> Result<Message> {
    const ROLES: &str = "one of system, developer, user, assistant, tool";
    let place = |name: &str| format!("messages[{i}].{name}");
    let mut fields = Fields::of(value, &format!("messages[{i}]"))?;
    let within = |error: ApiError| {
        let param = place(error.param.as_deref().unwrap_or_default());
        ApiError {
            message: format!("messages[{i}].{}", error.message),
            param: Some(param),
            ..error
        }
    };
    fields
        .refuse("function_call", "use tool_calls")
        .map_err(within)?;
    fields
        .refuse("audio", "the model reads text only")
        .map_err(within)?;
    let role = fields.text("role").map_err(within)?;
    let role = role.ok_or_else(|| ApiError::field(&place("role"), "missing"))?;
    let role = match role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => "tool",
        _ => return Err(wrong(&place("role"), &Value::String(role), ROLES)),
    };
    let reasoning = match fields.text("reasoning_content").map_err(within)? {
        None => fields.text("reasoning").map_err(within)?,
        some => some,
    };
    let message = Message {
        role: role.into(),
        content: fields.value("content").unwrap_or_default(),
        reasoning_content: reasoning,
        tool_calls: fields
            .list("tool_calls")
            .map_err(within)?
            .unwrap_or_default(),
        tool_call_id: fields.text("tool_call_id").map_err(within)?,
        name: fields.text("name").map_err(within)?,
    };
    let silent = message.content.is_null() && message.tool_calls.is_empty();
    match (silent, role) {
        (true, "system" | "user" | "tool") => Err(ApiError::field(&place("content"), "missing")),
        _ => Ok(message),
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
