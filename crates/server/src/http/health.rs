//! Whether the server lives, and whether it can be asked.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    Shared,
    error::ApiError,
    limits,
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

/// Whether requests are taken: also 503 as soon as the server is told to end.
pub async fn ready(State(app): State<Shared>) -> Response {
    match app.model() {
        Ok(model) => match hangs(model.metrics().silent_for) {
            Some(message) => ApiError::unavailable(message, "engine_silent", 5).into_response(),
            None => Json(json!({"status": "ready"})).into_response(),
        },
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
        Phase::Ready(model) => {
            let silent = model.metrics().silent_for;
            match hangs(silent) {
                Some(message) => (
                    AWAY,
                    json!({"status": "error", "silent_seconds": silent.as_secs(), "message": message}),
                ),
                None if app.is_draining() => (StatusCode::OK, json!({"status": "draining"})),
                None => (StatusCode::OK, json!({"status": "ok"})),
            }
        }
    }
}

/// What is said of an engine that has work and has given no sign of life for too long.
fn hangs(silent: Duration) -> Option<String> {
    (silent >= limits::SILENT).then(|| {
        format!(
            "the engine has work, but no step has begun for {} s; restart the server if it goes on",
            silent.as_secs()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_silent_for_long_hangs() {
        for alive in [Duration::ZERO, limits::SILENT - Duration::from_millis(1)] {
            assert_eq!(hangs(alive), None);
        }
        let said = hangs(limits::SILENT + Duration::from_millis(12_500)).unwrap();
        assert!(said.contains("for 42 s"), "{said}");
    }
}
