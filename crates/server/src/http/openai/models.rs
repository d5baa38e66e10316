//! `/v1/models`: what is here, and what is loaded of it.

use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
};
use biplane::{IsqType, Model};
use serde_json::{Value, json};

use crate::{
    http::{Shared, error::ApiError, fields::Fields, state::App},
    registry::{Stage, Status},
};

type Result<T> = std::result::Result<T, ApiError>;

/// All models, loaded or not.
pub async fn list(State(app): State<Shared>) -> Result<Json<Value>> {
    app.open()?;
    app.models.refresh().await;
    let entries = app.models.list();
    let entries: Vec<Value> = entries.iter().map(|status| entry(&app, status)).collect();
    Ok(Json(json!({"object": "list", "data": entries})))
}

pub async fn one(
    State(app): State<Shared>,
    id: std::result::Result<Path<String>, PathRejection>,
) -> Result<Json<Value>> {
    let Path(id) = id.map_err(|e| ApiError::bad(format!("the model's name: {e}")))?;
    app.open()?;
    Ok(Json(entry(&app, &app.models.status(&id).await?)))
}

/// `/v1/models/load`
pub async fn load(State(app): State<Shared>, body: Body) -> Result<Json<Value>> {
    app.open()?;
    let name = name(&mut Fields::read(body).await?)?;
    Ok(Json(entry(&app, &app.models.load(&name).await?)))
}

/// `/v1/models/unload`
pub async fn unload(State(app): State<Shared>, body: Body) -> Result<Json<Value>> {
    app.open()?;
    let mut fields = Fields::read(body).await?;
    let name = name(&mut fields)?;
    let drain = fields.bool("drain")?.unwrap_or(false);
    Ok(Json(entry(&app, &app.models.unload(&name, drain).await?)))
}

/// `/v1/models/requantize`
pub async fn requantize(State(app): State<Shared>, body: Body) -> Result<Json<Value>> {
    app.open()?;
    let mut fields = Fields::read(body).await?;
    let name = name(&mut fields)?;
    let isq = fields.text("isq")?;
    let isq = isq.ok_or_else(|| ApiError::field("isq", "missing; a type as Q4K, or none"))?;
    let isq: Option<IsqType> = match isq.as_str() {
        "none" => None,
        isq => {
            let wrong = |e| ApiError::field("isq", format!("{e}, or none for what is stored"));
            Some(isq.parse().map_err(wrong)?)
        }
    };
    let status = app.models.requantize(&name, isq).await?;
    Ok(Json(entry(&app, &status)))
}

/// Which model is meant is said here, also where there is one only.
fn name(fields: &mut Fields) -> Result<String> {
    let name = fields.text("model")?;
    name.ok_or_else(|| ApiError::field("model", "missing; /v1/models has the names"))
}

fn entry(app: &App, status: &Status) -> Value {
    let mut entry = json!({
        "id": status.name,
        "object": "model",
        "created": app.started,
        "owned_by": "biplane",
    });
    let outline = status.outline.as_ref();
    let mut own = json!({
        "state": state(&status.stage),
        "backend": app.models.backend().name(),
        "requests": status.leases,
        "quantization": outline.map(|outline| outline.formats.join(", ")),
        "isq": status.isq.map(IsqType::name),
        "context_length": outline.map(|outline| outline.context_length),
        "weight_bytes": outline.map(|outline| outline.weight_bytes),
    });
    if let Some(outline) = outline {
        entry["max_model_len"] = outline.context_length.into();
    }
    match &status.stage {
        Stage::Loaded { model, .. } => loaded(model, &mut entry, &mut own),
        Stage::Loading {
            progress, message, ..
        } => {
            own["progress"] = json!(progress);
            own["message"] = message.as_str().into();
        }
        Stage::Failed(reason) => own["error"] = reason.as_str().into(),
        Stage::Unloaded | Stage::Unloading => {}
    }
    entry["biplane"] = own;
    entry
}

fn loaded(model: &Model, entry: &mut Value, own: &mut Value) {
    let (info, metrics) = (model.info(), model.metrics());
    // As vLLM calls it; clients cut their prompts by it.
    entry["max_model_len"] = info.context_length.into();
    entry["meta"] = json!({
        "architecture": info.architecture,
        "parameters": info.parameters,
        "backend": info.backend,
        "device": info.device.to_string(),
    });
    own["context_length"] = info.context_length.into();
    own["weight_bytes"] = info.weight_bytes.into();
    own["kv_bytes"] = (metrics.running_bytes + metrics.cached_bytes).into();
    // Not known before the first step.
    let budget = Some(metrics.budget_bytes).filter(|bytes| *bytes > 0);
    own["kv_budget_bytes"] = json!(budget);
}

fn state(stage: &Stage) -> &'static str {
    match stage {
        Stage::Unloaded => "unloaded",
        Stage::Loading { .. } => "loading",
        Stage::Loaded { leaving: false, .. } => "loaded",
        Stage::Loaded { leaving: true, .. } | Stage::Unloading => "unloading",
        Stage::Failed(_) => "failed",
    }
}
