//! `/v1/models`

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde_json::{Value, json};

use crate::http::{
    Shared,
    error::ApiError,
    state::{App, Phase},
};

/// The one model that is here.
pub async fn list(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    app.model()?;
    Ok(Json(json!({"object": "list", "data": [entry(&app)]})))
}

pub async fn one(
    State(app): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|e| ApiError::bad(format!("the model's name: {e}")))?;
    app.model()?;
    match id == app.name {
        true => Ok(Json(entry(&app))),
        false => Err(app.no_such_model(&id)),
    }
}

fn entry(app: &App) -> Value {
    let mut entry = json!({
        "id": app.name,
        "object": "model",
        "created": app.started,
        "owned_by": "biplane",
    });
    if let Phase::Ready(model) = app.phase() {
        let info = model.info();
        // As vLLM calls it; clients cut their prompts by it.
        entry["max_model_len"] = info.context_length.into();
        entry["meta"] = json!({
            "architecture": info.architecture,
            "parameters": info.parameters,
            "backend": info.backend,
            "device": info.device.to_string(),
        });
    }
    entry
}
