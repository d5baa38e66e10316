//! Whether the server lives, and whether it can be asked.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Shared, error::ApiError, limits, state::App};
use crate::registry::Stage;

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
    let (status, body) = state(&app);
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    match app.open() {
        Err(error) => error.into_response(),
        Ok(()) if status == StatusCode::OK => Json(json!({"status": "ready"})).into_response(),
        Ok(()) => match text("status") {
            "loading" => {
                let message = format!(
                    "the model is not loaded yet ({}); see /health",
                    text("message")
                );
                ApiError::unavailable(message, "loading", 2).into_response()
            }
            _ if body.get("silent_seconds").is_some() => {
                ApiError::unavailable(text("message"), "engine_silent", 5).into_response()
            }
            _ => ApiError::unavailable(text("message"), "engine_stopped", 60).into_response(),
        },
    }
}

/// Of all models: the first that is not well says it.
fn state(app: &App) -> (StatusCode, Value) {
    const AWAY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    let of = match app.models.is_alone() {
        true => |_: &str| String::new(),
        false => |name: &str| format!(" of {name:?}"),
    };
    for status in app.models.list() {
        let of = of(&status.name);
        match status.stage {
            Stage::Loading {
                progress,
                message,
                at_start: true,
            } => {
                let body = json!({"status": "loading", "progress": progress, "message": message});
                return (AWAY, body);
            }
            Stage::Loaded { model, .. } if !model.is_loaded() => {
                let message = format!("the engine{of} has stopped by a fault; restart the server");
                return (AWAY, json!({"status": "error", "message": message}));
            }
            Stage::Loaded { model, .. } => {
                let silent = model.metrics().silent_for;
                if let Some(message) = hangs(&of, silent) {
                    let seconds = silent.as_secs();
                    let body =
                        json!({"status": "error", "silent_seconds": seconds, "message": message});
                    return (AWAY, body);
                }
            }
            _ => {}
        }
    }
    match app.is_draining() {
        true => (StatusCode::OK, json!({"status": "draining"})),
        false => (StatusCode::OK, json!({"status": "ok"})),
    }
}

/// What is said of an engine that has work and has given no sign of life for too long.
fn hangs(of: &str, silent: Duration) -> Option<String> {
    (silent >= limits::SILENT).then(|| {
        format!(
            "the engine{of} has work, but no step has begun for {} s; restart the server if it goes on",
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
            assert_eq!(hangs("", alive), None);
        }
        let said = hangs("", limits::SILENT + Duration::from_millis(12_500)).unwrap();
        assert!(said.contains("for 42 s"), "{said}");
    }
}
