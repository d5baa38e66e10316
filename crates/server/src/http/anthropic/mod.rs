//! Anthropic's Messages API, over the same conversations.

mod answer;
mod read;
mod stream;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use biplane::{ChatStream, Error};
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::{Shared, error::ApiError, fields::Fields, openai::chat, sse};

/// A failure in Anthropic's shape.
pub struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure(error)
    }
}

impl Failure {
    fn body(&self) -> Value {
        let kind = match self.0.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.0.message}})
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = self.body();
        // The status and its headers are the same.
        let (parts, _) = self.0.into_response().into_parts();
        let mut response = Json(body).into_response();
        *response.status_mut() = parts.status;
        if let Some(after) = parts.headers.get(axum::http::header::RETRY_AFTER) {
            let name = axum::http::header::RETRY_AFTER;
            response.headers_mut().insert(name, after.clone());
        }
        response
    }
}

/// `/v1/messages`
pub async fn messages(State(app): State<Shared>, body: Body) -> Result<Response, Failure> {
    let model = app.model()?;
    let ask = read::read(Fields::read(body).await?)?;
    app.check_name(ask.model.as_deref())?;
    if ask.chat.generation.max_tokens.is_none() {
        return Err(ApiError::field("max_tokens", "missing").into());
    }
    let started = chat::start(&model, ask.chat, 1).await?;
    let head = answer::Head::new(&app.name, started.tokens);
    if ask.stream {
        let writer = stream::Writer::new(head);
        return Ok(sse::respond(|sse| writer.run(sse, started.streams)));
    }
    let answers = try_join_all(started.streams.into_iter().map(ChatStream::collect)).await;
    let answers = answers.map_err(ApiError::from)?;
    let body = answers.first().map(|answer| head.whole(answer));
    Ok(Json(body).into_response())
}

/// `/v1/messages/count_tokens`
pub async fn count_tokens(State(app): State<Shared>, body: Body) -> Result<Response, Failure> {
    let model = app.model()?;
    let ask = read::read(Fields::read(body).await?)?;
    app.check_name(ask.model.as_deref())?;
    let count = move || Ok(model.prepare_chat(ask.chat)?.request.tokens.len());
    let count: Result<usize, ApiError> = tokio::task::spawn_blocking(count)
        .await
        .map_err(|e| ApiError::from(Error::Stopped(format!("preparing the prompt: {e}"))))?;
    Ok(Json(json!({"input_tokens": count?})).into_response())
}
