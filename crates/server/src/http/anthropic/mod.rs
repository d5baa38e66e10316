//! Anthropic's Messages API, over the same conversations.

mod answer;
mod read;
mod stream;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use biplane::{ChatStream, Error};
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::{Shared, error::ApiError, fields::Fields, id::RequestId, openai::chat, sse};
use crate::registry::Lease;

type Result<T> = std::result::Result<T, ApiError>;

/// A failure in Anthropic's shape.
fn failure(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}

/// Gives what fails at Anthropic's paths, wherever it fails, Anthropic's shape.
pub async fn shape(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path != "/v1/messages" && !path.starts_with("/v1/messages/") {
        return next.run(request).await;
    }
    let id = request.extensions().get::<RequestId>().cloned();
    let mut response = next.run(request).await;
    if let Some(RequestId(id)) = &id {
        let name = HeaderName::from_static("request-id");
        response.headers_mut().insert(name, id.clone());
    }
    let Some(error) = response.extensions_mut().remove::<ApiError>() else {
        return response;
    };
    let mut body = failure(&error);
    body["request_id"] = id
        .and_then(|RequestId(id)| id.to_str().ok().map(str::to_owned))
        .into();
    *response.body_mut() = Body::from(body.to_string());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// `/v1/messages`
pub async fn messages(State(app): State<Shared>, body: Body) -> Result<Response> {
    app.open()?;
    let ask = read::read(Fields::read(body).await?)?;
    if ask.chat.generation.max_tokens.is_none() {
        return Err(ApiError::field("max_tokens", "missing"));
    }
    let Lease { name, model } = app.lease(ask.model.as_deref()).await?;
    let started = chat::start(&model, ask.chat, 1).await?;
    let head = answer::Head::new(&name, started.tokens);
    if ask.stream {
        let writer = stream::Writer::new(head);
        return Ok(sse::respond(async move |sse| {
            let written = writer.run(sse, started.streams).await;
            drop(model);
            written
        }));
    }
    let answers = try_join_all(started.streams.into_iter().map(ChatStream::collect)).await?;
    let body = answers.first().map(|answer| head.whole(answer));
    Ok(Json(body).into_response())
}

/// `/v1/messages/count_tokens`
pub async fn count_tokens(State(app): State<Shared>, body: Body) -> Result<Response> {
    app.open()?;
    let ask = read::read(Fields::read(body).await?)?;
    let model = app.lease(ask.model.as_deref()).await?.model;
    let count = move || Ok(model.prepare_chat(ask.chat)?.request.tokens.len());
    let count: Result<usize> = tokio::task::spawn_blocking(count)
        .await
        .map_err(|e| ApiError::from(Error::Stopped(format!("preparing the prompt: {e}"))))?;
    Ok(Json(json!({"input_tokens": count?})).into_response())
}
