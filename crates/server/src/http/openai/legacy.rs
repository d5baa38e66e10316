//! Log probabilities as `/v1/completions` writes them.

use biplane::{Model, TokenLogprobs};
use serde_json::{Map, Value, json};

/// Lists of equal length.
#[derive(Debug, Default)]
pub struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    /// Characters of all tokens so far.
    offset: usize,
}

impl Logprobs {
    /// Adds the prompt: nothing is known of its first token.
    pub fn prompt(&mut self, model: &Model, prompt: &[u32], list: &[TokenLogprobs]) {
        if let Some(&first) = prompt.first() {
            self.token(text(model, first), None, Value::Null);
        }
        list.iter().for_each(|p| self.push(model, p));
    }

    /// Adds a token.
    pub fn push(&mut self, model: &Model, p: &TokenLogprobs) {
        let top = p.top.iter().map(|&(id, p)| (text(model, id), json!(p)));
        let top: Map<String, Value> = top.collect();
        self.token(text(model, p.token), Some(p.logprob), top.into());
    }

    fn token(&mut self, text: String, logprob: Option<f32>, top: Value) {
        self.text_offset.push(self.offset);
        self.offset += text.chars().count();
        self.tokens.push(text);
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
    }

    /// What has come since the last time.
    pub fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.token_logprobs),
            "top_logprobs": std::mem::take(&mut self.top_logprobs),
            "text_offset": std::mem::take(&mut self.text_offset),
        })
    }
}

/// A token's text; bytes that are no character by themselves as OpenAI writes them.
fn text(model: &Model, id: u32) -> String {
    let bytes = model.tokenizer().token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let hex: String = bytes.iter().map(|b| format!("\\x{b:02x}")).collect();
            format!("bytes:{hex}")
        }
    }
}
