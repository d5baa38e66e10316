//! What the architectures' configurations have in common.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The configuration of a model's text part: of a multimodal checkpoint its `text_config`, to which
/// keys that stand only outside are added.
pub(crate) fn text_config(json: &Value) -> Value {
    let (Some(all), Some(Value::Object(text))) = (json.as_object(), json.get("text_config")) else {
        return json.clone();
    };
    let mut merged = text.clone();
    for (key, value) in all {
        if key != "text_config" && key != "vision_config" && !merged.contains_key(key) {
            merged.insert(key.clone(), value.clone());
        }
    }
    Value::Object(merged)
}

/// Reads a configuration; says which key is wrong.
pub(crate) fn from_json<T: DeserializeOwned>(json: &Value) -> Result<T, String> {
    T::deserialize(json).map_err(|e| e.to_string())
}

/// Sizes must be positive, and small enough that their products do not overflow.
pub(crate) fn positive(sizes: &[(&str, usize)]) -> Result<(), String> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 24) {
        Some((key, size)) => Err(format!("{key} is {size}")),
        None => Ok(()),
    }
}

/// Grouped-query attention needs whole groups.
pub(crate) fn whole_groups(heads: usize, kv_heads: usize) -> Result<(), String> {
    if heads.is_multiple_of(kv_heads.max(1)) {
        return Ok(());
    }
    Err(format!(
        "num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
    ))
}

/// `key` must be missing, null or one of the given values: others mean something that is not here.
pub(crate) fn only(json: &Value, key: &str, allowed: &[Value]) -> Result<(), String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if allowed.contains(value) => Ok(()),
        Some(value) => Err(format!("{key} is {value}, which is not supported")),
    }
}

/// Which layers slide, by `layer_types` where the checkpoint lists them.
pub(crate) fn sliding_layers(json: &Value, layers: usize) -> Result<Option<Vec<bool>>, String> {
    let Some(types) = json.get("layer_types").filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let kinds = types
        .as_array()
        .ok_or_else(|| format!("layer_types is {types}, expected an array"))?;
    if kinds.len() != layers {
        return Err(format!(
            "layer_types has {} entries for num_hidden_layers {layers}",
            kinds.len()
        ));
    }
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(format!(
            "layer_types has {kind}, expected \"full_attention\" or \"sliding_attention\""
        )),
    };
    kinds.iter().map(slides).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_text_part_inherits_from_outside() {
        let all = json!({
            "model_type": "gemma3", "vocab_size": 5, "eos_token_id": 1, "vision_config": {"a": 1},
            "text_config": {"model_type": "gemma3_text", "vocab_size": 7},
        });
        assert_eq!(
            text_config(&all),
            json!({"model_type": "gemma3_text", "vocab_size": 7, "eos_token_id": 1})
        );
        let flat = json!({"model_type": "llama"});
        assert_eq!(text_config(&flat), flat);
    }

    #[test]
    fn layer_types_are_checked() {
        let kinds = |v: Value| sliding_layers(&json!({"layer_types": v}), 2);
        assert_eq!(kinds(Value::Null), Ok(None));
        assert_eq!(
            kinds(json!(["sliding_attention", "full_attention"])),
            Ok(Some(vec![true, false]))
        );
        assert!(
            kinds(json!(["full_attention"]))
                .unwrap_err()
                .contains("1 entries")
        );
        assert!(
            kinds(json!(["x", "full_attention"]))
                .unwrap_err()
                .contains("\"x\"")
        );
        assert!(kinds(json!(3)).unwrap_err().contains("array"));
    }
}
