//! The HTTP server: OpenAI's API over models, and the page.

mod anthropic;
mod error;
mod fields;
mod health;
mod id;
mod limits;
mod listen;
pub mod mcp;
mod metrics;
mod openai;
mod openapi;
mod page;
mod responses;
mod security;
mod sse;
mod state;
mod tool_runs;

use axum::{
    Router, middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower_http::catch_panic::CatchPanicLayer;

use self::error::ApiError;
pub use self::{
    listen::{serve, stopped},
    mcp::Mcp,
    security::Security,
    state::{App, Shared},
};

/// All routes.
pub fn router(app: Shared) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(openai::chat::handle))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/embeddings", post(openai::embeddings::handle))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/responses", post(responses::handle))
        .route(
            "/v1/responses/{id}",
            get(responses::get).delete(responses::delete),
        )
        .route("/tokenize", post(openai::tokenize::tokenize))
        .route("/detokenize", post(openai::tokenize::detokenize))
        .route("/metrics", get(metrics::handle))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/load", post(openai::models::load))
        .route("/v1/models/unload", post(openai::models::unload))
        .route("/v1/models/requantize", post(openai::models::requantize))
        .route("/v1/models/{*id}", get(openai::models::one))
        .route("/v1/mcp/servers", get(mcp::servers))
        .route_service("/mcp", mcp::service(&app))
        .layer(middleware::from_fn_with_state(app.clone(), security::key));
    let open = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/openapi.json", get(openapi::handle));
    page::routes(open)
        .merge(guarded)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), security::place))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(anthropic::shape))
        .layer(middleware::from_fn(id::request))
        .with_state(app)
}

async fn not_found(uri: axum::http::Uri) -> ApiError {
    let message = format!("there is nothing at {}; see /openapi.json", uri.path());
    let status = axum::http::StatusCode::NOT_FOUND;
    ApiError::new(status, "invalid_request_error", message).with_code("not_found")
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let message = format!(
        "{method} is not allowed at {}; see /openapi.json",
        uri.path()
    );
    let status = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    ApiError::new(status, "invalid_request_error", message).with_code("method_not_allowed")
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("the server failed at this request; others go on").into_response()
}
