//! GGUF's header as a `config.json`, so that every architecture reads its configuration in one form.

use serde_json::{Map, Value, json};

use crate::{Result, checkpoint::GgufMetadata};

/// Integers: Hugging Face's key, and GGUF's after the architecture's name.
pub(crate) const INTEGERS: [(&str, &str); 9] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("sliding_window", "attention.sliding_window"),
    ("vocab_size", "vocab_size"),
];

/// Floating-point numbers, likewise.
pub(crate) const FLOATS: [(&str, &str); 3] = [
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
];

/// What a GGUF header says in the terms of `config.json`.
///
/// # Errors
/// [`crate::Error::Config`] for a value of the wrong type, or for heads of keys and values that
/// differ.
pub(crate) fn read(m: &GgufMetadata) -> Result<Map<String, Value>> {
    let arch = m.architecture()?;
    let key = |name: &str| format!("{arch}.{name}");
    let mut json = Map::new();
    for (hf, gguf) in INTEGERS {
        if let Some(n) = m.optional_usize(&key(gguf))? {
            json.insert(hf.into(), n.into());
        }
    }
    for (hf, gguf) in FLOATS {
        if let Some(x) = m.optional_f32(&key(gguf))? {
            json.insert(hf.into(), json!(f64::from(x)));
        }
    }
    if !json.contains_key("vocab_size") {
        let tokens = m.array_len("tokenizer.ggml.tokens")?;
        json.insert("vocab_size".into(), tokens.into());
    }
    // GGUF has 0 where there is no window.
    if json.get("sliding_window") == Some(&0.into()) {
        json.remove("sliding_window");
    }
    let k = m.optional_usize(&key("attention.key_length"))?;
    let v = m.optional_usize(&key("attention.value_length"))?;
    if let (Some(k), Some(v)) = (k, v)
        && k != v
    {
        return Err(m.config_error(format!(
            "{arch}.attention.key_length is {k} and value_length {v}; heads whose keys and values differ in size are not supported"
        )));
    }
    let size = |name: &str| json.get(name).and_then(Value::as_u64);
    let head_dim = match (k, size("hidden_size"), size("num_attention_heads")) {
        (Some(k), ..) => Some(k),
        (None, Some(hidden), Some(heads)) => hidden.checked_div(heads).map(|d| d as usize),
        _ => None,
    };
    if let (Some(rotary), Some(head_dim)) =
        (m.optional_usize(&key("rope.dimension_count"))?, head_dim)
        && rotary != head_dim
    {
        let factor = rotary as f64 / head_dim.max(1) as f64;
        json.insert("partial_rotary_factor".into(), json!(factor));
    }
    let kind = m.optional_str(&key("rope.scaling.type"))?;
    // The first files have the factor under another key, and no kind.
    let factor = match m.optional_f32(&key("rope.scaling.factor"))? {
        None => m.optional_f32(&key("rope.scale_linear"))?,
        factor => factor,
    };
    let stretched = factor.is_some_and(|factor| factor != 0.0 && factor != 1.0);
    if kind != Some("none") && (kind.is_some() || stretched) {
        if m.has_tensor("rope_freqs.weight") && stretched {
            return Err(m.config_error(
                "rope.scaling.factor and rope_freqs.weight both stretch RoPE; only one of them can be meant",
            ));
        }
        let kind = kind.unwrap_or("linear");
        let scaling = json!({"rope_type": kind, "factor": factor.map(f64::from)});
        json.insert("rope_scaling".into(), scaling);
    }
    json.insert(
        "tie_word_embeddings".into(),
        (!m.has_tensor("output.weight")).into(),
    );
    Ok(json)
}
