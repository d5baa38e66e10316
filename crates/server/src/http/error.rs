//! Failures in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use biplane::{Error, grammar};
use serde_json::{Value, json};

use crate::registry;

/// What a request is answered with when it cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds after which it is worth another try.
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// The request is wrong.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong; the message follows its name.
    pub fn field(name: &str, message: impl std::fmt::Display) -> Self {
        Self::bad(format!("{name}: {message}")).with_param(name)
    }

    /// The server cannot answer now.
    pub fn unavailable(message: impl Into<String>, code: &'static str, retry_after: u32) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        error.code = Some(code);
        error.retry_after = Some(retry_after);
        error
    }

    /// The server failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The body, also as an event of a stream.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match &error {
            Error::Busy { .. } | Error::Grammar(grammar::Error::Busy) => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let mut busy = Self::new(status, "rate_limit_error", message);
                busy.code = Some("queue_full");
                busy.retry_after = Some(1);
                busy
            }
            Error::Grammar(
                grammar::Error::Stuck
                | grammar::Error::Refused { .. }
                | grammar::Error::Fault { .. },
            ) => Self::internal(message),
            Error::Grammar(_) => Self::bad(message).with_param("response_format"),
            Error::Request(_) => match param_of(&message) {
                Some(param) => Self::bad(message).with_param(param),
                None => Self::bad(message),
            },
            Error::Unsupported(_) | Error::Tokenizer(_) => Self::bad(message),
            Error::Template(_) => Self::bad(message).with_param("messages"),
            Error::Stopped(_) => Self::unavailable(message, "engine_stopped", 5),
            _ => Self::internal(message),
        }
    }
}

impl From<registry::Error> for ApiError {
    fn from(error: registry::Error) -> Self {
        use registry::Error;
        let message = error.to_string();
        let request = |status, code| {
            let error = Self::new(status, "invalid_request_error", message.clone());
            error.with_param("model").with_code(code)
        };
        match error {
            Error::Unknown { .. } => request(StatusCode::NOT_FOUND, "model_not_found"),
            Error::InUse { .. } => request(StatusCode::CONFLICT, "model_in_use"),
            Error::Loading { .. } => {
                let mut error = request(StatusCode::CONFLICT, "model_loading");
                error.retry_after = Some(2);
                error
            }
            Error::Starting { .. } => Self::unavailable(message, "loading", 2),
            Error::Stopped { .. } => Self::unavailable(message, "engine_stopped", 60),
            Error::Full { .. } => Self::unavailable(message, "models_in_use", 5),
            Error::Failed { memory: true, .. } => {
                Self::unavailable(message, "insufficient_memory", 10)
            }
            Error::Failed { .. } => Self::internal(message).with_code("model_load_failed"),
            Error::TooLarge { .. } => Self::internal(message).with_code("model_too_large"),
        }
    }
}

/// The field that a message of the engine begins with, as `messages[2].content`.
fn param_of(message: &str) -> Option<String> {
    const KNOWN: [&str; 21] = [
        "messages",
        "tools",
        "tool_choice",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "dry_multiplier",
        "dry_base",
        "dry_allowed_length",
        "dry_sequence_breakers",
        "logit_bias",
        "logprobs",
        "seed",
        "stop",
        "max_tokens",
        "add_generation_prompt",
    ];
    let word = message.split([' ', ':', ',']).next()?;
    let root = word.split(['[', '.']).next()?;
    KNOWN.contains(&root).then(|| word.to_owned())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        // Other APIs write the same in another shape.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_named() {
        let error = |text: &str| ApiError::from(Error::Request(text.into()));
        let param = |text| error(text).param;
        assert_eq!(
            param("messages[1].content is a number"),
            Some("messages[1].content".into())
        );
        assert_eq!(param("top_p is 2, at most"), Some("top_p".into()));
        assert_eq!(param("the prompt is empty"), None);
        assert_eq!(error("x").status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn too_many_requests_are_told_when_to_come_back() {
        let response = ApiError::from(Error::Busy { queued: 3 }).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
