//! `/v1/embeddings`

use axum::{Json, body::Body, extract::State};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use biplane::{Model, Pooling};
use serde_json::{Value, json};

use crate::http::{Shared, error::ApiError, fields::Fields, limits};

type Result<T> = std::result::Result<T, ApiError>;

/// Texts that are computed at once: more would fill the queue.
const AT_ONCE: usize = 32;

pub async fn handle(State(app): State<Shared>, body: Body) -> Result<Json<Value>> {
    let model = app.model()?;
    let mut fields = Fields::read(body).await?;
    app.check_name(fields.text("model")?.as_deref())?;
    fields.refuse("dimensions", "the vectors have the model's own width")?;
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let message = format!("{other:?} is not float or base64");
            return Err(ApiError::field("encoding_format", message));
        }
    };
    let pooling = pooling(&mut fields)?;
    let texts = fields.texts("input")?;
    let texts = texts.ok_or_else(|| ApiError::field("input", "missing"))?;
    if texts.is_empty() || texts.len() > limits::TEXTS {
        let n = texts.len();
        let message = format!("{n} texts are not allowed, only 1 to {}", limits::TEXTS);
        return Err(ApiError::field("input", message));
    }
    let tokens = count(&model, &texts)?;
    let mut data = Vec::with_capacity(texts.len());
    for some in texts.chunks(AT_ONCE) {
        for vector in model.embed(some, pooling).await? {
            let embedding = match base64 {
                true => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                    BASE64_STANDARD.encode(bytes).into()
                }
                false => json!(vector),
            };
            let index = data.len();
            data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
        }
    }
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": app.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })))
}

/// Beyond OpenAI's API.
fn pooling(fields: &mut Fields) -> Result<Pooling> {
    match fields.text("pooling")?.as_deref() {
        None | Some("mean") => Ok(Pooling::Mean),
        Some("last") => Ok(Pooling::Last),
        Some(other) => {
            let message = format!("{other:?} is not mean or last");
            Err(ApiError::field("pooling", message))
        }
    }
}

fn count(model: &Model, texts: &[String]) -> Result<usize> {
    let most = model.info().context_length;
    let mut all = 0;
    for (i, text) in texts.iter().enumerate() {
        let tokens = model.prompt_tokens(text)?.len();
        let name = format!("input[{i}]");
        if tokens == 0 {
            return Err(ApiError::field(&name, "the text is empty"));
        }
        if tokens > most {
            let message = format!("{tokens} tokens, but the context has {most}; split the text");
            return Err(ApiError::field(&name, message).with_code("context_length_exceeded"));
        }
        all += tokens;
    }
    Ok(all)
}
