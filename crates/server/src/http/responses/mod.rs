//! OpenAI's Responses API, over the same conversations.

mod answer;
mod read;
mod store;
mod stream;

use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use biplane::ChatStream;
use futures::future::try_join_all;
use serde_json::{Value, json};

pub use self::store::Store;
use super::{Shared, error::ApiError, fields::Fields, openai::chat, sse};
use crate::registry::Lease;

/// `/v1/responses`
pub async fn handle(State(app): State<Shared>, body: Body) -> Result<Response, ApiError> {
    app.open()?;
    let read::Read {
        ask,
        echoed,
        conversation,
    } = read::read(Fields::read(body).await?, &app.responses)?;
    let Lease { name, model } = app.lease(ask.model.as_deref()).await?;
    let started = chat::start(&model, ask.chat, 1)
        .await
        .map_err(read::named)?;
    let keep = conversation.map(|messages| (app.responses.clone(), messages));
    let head = answer::Head::new(&name, echoed, keep);
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

type Id = Result<Path<String>, PathRejection>;

/// `GET /v1/responses/{id}`: a response as it was given.
pub async fn get(State(app): State<Shared>, id: Id, uri: Uri) -> Result<Json<Value>, ApiError> {
    let id = name(id)?;
    let query = uri.query().unwrap_or_default().split('&');
    let mut asks = query.filter_map(|pair| pair.strip_prefix("stream="));
    if asks.any(|value| value != "false") {
        let message = "not supported; what is kept is whole, ask without it";
        return Err(ApiError::field("stream", message).with_code("unsupported_parameter"));
    }
    let found = app.responses.response(&id);
    found.map(Json).ok_or_else(|| not_found(&id))
}

/// `DELETE /v1/responses/{id}`
pub async fn delete(State(app): State<Shared>, id: Id) -> Result<Json<Value>, ApiError> {
    let id = name(id)?;
    match app.responses.remove(&id) {
        true => Ok(Json(
            json!({"id": id, "object": "response", "deleted": true}),
        )),
        false => Err(not_found(&id)),
    }
}

fn name(id: Id) -> Result<String, ApiError> {
    let Path(id) = id.map_err(|e| ApiError::bad(format!("the response's name: {e}")))?;
    Ok(id)
}

fn not_found(id: &str) -> ApiError {
    let status = StatusCode::NOT_FOUND;
    ApiError::new(status, "invalid_request_error", store::absent(id))
        .with_code("response_not_found")
}
