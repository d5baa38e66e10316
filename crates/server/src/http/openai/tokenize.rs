//! `/tokenize` and `/detokenize`

use axum::{Json, body::Body, extract::State};
use serde_json::{Value, json};

use crate::http::{Shared, error::ApiError, fields::Fields};

type Result<T> = std::result::Result<T, ApiError>;

/// The tokens of a text: `content`, or `prompt` as vLLM calls it.
pub async fn tokenize(State(app): State<Shared>, body: Body) -> Result<Json<Value>> {
    app.open()?;
    let mut fields = Fields::read(body).await?;
    let named = fields.text("model")?;
    let text = match fields.text("content")? {
        None => fields.text("prompt")?,
        some => some,
    };
    let text = text.ok_or_else(|| ApiError::field("content", "missing"))?;
    let special = match fields.bool("add_special_tokens")? {
        None => fields.bool("add_special")?,
        some => some,
    };
    let model = app.lease(named.as_deref()).await?.model;
    let tokens = match special.unwrap_or(false) {
        true => model.prompt_tokens(&text)?,
        false => model.tokenize(&text)?,
    };
    Ok(Json(json!({
        "tokens": tokens,
        "count": tokens.len(),
        "max_model_len": model.info().context_length,
    })))
}

/// The text of tokens.
pub async fn detokenize(State(app): State<Shared>, body: Body) -> Result<Json<Value>> {
    app.open()?;
    let mut fields = Fields::read(body).await?;
    let named = fields.text("model")?;
    let tokens = fields.tokens("tokens")?;
    let tokens = tokens.ok_or_else(|| ApiError::field("tokens", "missing"))?;
    let model = app.lease(named.as_deref()).await?.model;
    let most = model.tokenizer().vocab_size();
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= most) {
        let message = format!("{id} is not a token; the vocabulary has {most}");
        return Err(ApiError::field("tokens", message));
    }
    let text = model.detokenize(&tokens);
    Ok(Json(json!({"content": text, "prompt": text})))
}
