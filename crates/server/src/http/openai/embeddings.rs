//! `/v1/embeddings`

use axum::{Json, body::Body, extract::State};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use biplane::{Error, Model, Pooling};
use serde_json::{Value, json};

use crate::{
    http::{Shared, error::ApiError, fields, fields::Fields, limits},
    registry::Lease,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Texts that are computed at once: more would fill the queue.
const AT_ONCE: usize = 32;

pub async fn handle(State(app): State<Shared>, body: Body) -> Result<Json<Value>> {
    app.open()?;
    let mut fields = Fields::read(body).await?;
    let named = fields.text("model")?;
    let Lease { name, model } = app.lease(named.as_deref()).await?;
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
    let reading = model.clone();
    let texts = tokio::task::spawn_blocking(move || inputs(&reading, &mut fields))
        .await
        .map_err(|e| Error::Stopped(format!("reading the texts: {e}")))??;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let mut data = Vec::with_capacity(texts.len());
    for some in texts.chunks(AT_ONCE) {
        for vector in model.embed_tokens(some, pooling).await? {
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
        "model": name,
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

/// The tokens of a text, of texts, or of lists of token ids.
fn inputs(model: &Model, fields: &mut Fields) -> Result<Vec<Vec<u32>>> {
    const NAME: &str = "input";
    const EXPECTED: &str = "a text, a list of token ids, or a list of either";
    let value = fields.value(NAME);
    let value = value.ok_or_else(|| ApiError::field(NAME, "missing"))?;
    let list = match value {
        Value::Array(items) if items.iter().all(|v| v.is_string() || v.is_array()) => items,
        Value::Array(_) | Value::String(_) => vec![value],
        other => return Err(fields::wrong(NAME, &other, EXPECTED)),
    };
    if list.is_empty() || list.len() > limits::TEXTS {
        let n = list.len();
        let message = format!("{n} texts are not allowed, only 1 to {}", limits::TEXTS);
        return Err(ApiError::field(NAME, message));
    }
    let (words, most) = (model.tokenizer().vocab_size(), model.info().context_length);
    let tokens = |(i, value): (usize, Value)| {
        let place = format!("{NAME}[{i}]");
        let tokens = match &value {
            Value::String(text) => model.prompt_tokens(text)?,
            other => fields::tokens(other).ok_or_else(|| fields::wrong(NAME, other, EXPECTED))?,
        };
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= words) {
            let message = format!("{id} is not a token; the vocabulary has {words}");
            return Err(ApiError::field(&place, message));
        }
        match tokens.len() {
            0 => Err(ApiError::field(&place, "the text is empty")),
            n if n > most => {
                let message = format!("{n} tokens, but the context has {most}; split the text");
                Err(ApiError::field(&place, message).with_code("context_length_exceeded"))
            }
            _ => Ok(tokens),
        }
    };
    list.into_iter().enumerate().map(tokens).collect()
}
