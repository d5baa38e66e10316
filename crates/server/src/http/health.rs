//! Whether the server lives, and whether it can be asked.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    Shared,
    state::{App, Phase},
};

/// The state, with how far loading has come.
pub async fn health(State(app): State<Shared>) -> Response {
    let (status, body) = state(&app);
    let mut response = (status, Json(body)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = HeaderValue::from_static("2");
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

/// The same, also 503 as soon as the server is told to end.
pub async fn ready(State(app): State<Shared>) -> Response {
    match app.model() {
        Ok(_) => Json(json!({"status": "ready"})).into_response(),
        Err(error) => error.into_response(),
    }
}

fn state(app: &App) -> (StatusCode, Value) {
    const AWAY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match app.phase() {
        Phase::Loading { progress, message } => (
            AWAY,
            json!({"status": "loading", "progress": progress, "message": message}),
        ),
        Phase::Ready(model) if !model.is_loaded() => (
            AWAY,
            json!({"status": "error", "message": "the engine has stopped by a fault; restart the server"}),
        ),
        Phase::Ready(_) if app.is_draining() => (StatusCode::OK, json!({"status": "draining"})),
        Phase::Ready(_) => (StatusCode::OK, json!({"status": "ok"})),
    }
}
