//! OpenAI's Responses API, over the same conversations.

mod answer;
mod read;
mod store;
mod stream;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use biplane::ChatStream;
use futures::future::try_join_all;

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
