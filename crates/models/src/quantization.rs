//! The `quantization` entry of a config.json, as mlx-lm writes it.

use std::collections::HashMap;

use biplane_backend::AffineSpec;
use serde_json::Value;

/// Which layers are quantized how; empty for a dense checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantization {
    default: Option<AffineSpec>,
    /// `None` for a layer that is said to be dense.
    layers: HashMap<String, Option<AffineSpec>>,
}

impl Quantization {
    /// Reads `quantization`, or `quantization_config` where that is missing.
    ///
    /// # Errors
    /// A reason, for a method or mode that is not MLX's affine one, or for impossible figures.
    pub fn from_config(config: &Value) -> Result<Self, String> {
        let Some(entry) = ["quantization", "quantization_config"]
            .iter()
            .find_map(|key| config.get(key).filter(|v| !v.is_null()))
        else {
            return Ok(Self::default());
        };
        let Some(entry) = entry.as_object() else {
            return Err(format!("`quantization` is {entry}, expected an object"));
        };
        if let Some(method) = entry.get("quant_method").and_then(Value::as_str) {
            return Err(format!(
                "quantized by {method:?}, which is not supported; use the original checkpoint, an mlx-community one or a GGUF file"
            ));
        }
        let default = spec(entry, "quantization")?;
        let mut layers = HashMap::new();
        for (name, value) in entry {
            let layer = match value {
                Value::Bool(false) => None,
                Value::Bool(true) => default,
                Value::Object(own) => spec(own, name)?,
                _ => continue,
            };
            layers.insert(sanitize(name).to_owned(), layer);
        }
        Ok(Quantization { default, layers })
    }

    /// The form of one layer, by its name without `.weight`; `None` where the entry does not say.
    pub fn layer(&self, name: &str) -> Option<AffineSpec> {
        self.layers
            .get(sanitize(name))
            .copied()
            .unwrap_or(self.default)
    }

    /// Whether the checkpoint has no quantized layer.
    pub fn is_dense(&self) -> bool {
        self.default.is_none() && self.layers.values().all(Option::is_none)
    }
}

/// Layers' names without the wrapper that multimodal checkpoints put in front: both spellings occur.
fn sanitize(name: &str) -> &str {
    name.strip_prefix("language_model.").unwrap_or(name)
}

fn spec(entry: &serde_json::Map<String, Value>, name: &str) -> Result<Option<AffineSpec>, String> {
    match entry.get("mode").and_then(Value::as_str) {
        None | Some("affine") => {}
        Some(mode) => {
            return Err(format!(
                "{name}: quantization mode {mode:?} is not supported, only \"affine\" is; use an affine checkpoint of the same model"
            ));
        }
    }
    let (bits, group) = match (entry.get("bits"), entry.get("group_size")) {
        (Some(bits), Some(group)) => (bits, group),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(format!("{name}: bits without a group_size")),
        (None, Some(_)) => return Err(format!("{name}: a group_size without bits")),
    };
    let known = |value: &Value, allowed: &[u64]| value.as_u64().filter(|v| allowed.contains(v));
    let bits = known(bits, &[2, 3, 4, 5, 6, 8])
        .ok_or_else(|| format!("{name}: bits {bits}, expected 2, 3, 4, 5, 6 or 8"))?;
    let group_size = known(group, &[16, 32, 64, 128])
        .ok_or_else(|| format!("{name}: group_size {group}, expected 16, 32, 64 or 128"))?;
    Ok(Some(AffineSpec {
        bits: bits as u8,
        group_size: group_size as usize,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn affine(bits: u8, group_size: usize) -> Option<AffineSpec> {
        Some(AffineSpec { bits, group_size })
    }

    #[test]
    fn overrides_are_objects_or_false() {
        let q = Quantization::from_config(&json!({"quantization": {
            "group_size": 64, "bits": 4, "mode": "affine",
            "model.embed_tokens": {"group_size": 32, "bits": 8},
            "language_model.model.layers.0.mlp.up_proj": false,
        }}))
        .unwrap();
        assert_eq!(q.layer("model.layers.1.mlp.up_proj"), affine(4, 64));
        assert_eq!(q.layer("model.embed_tokens"), affine(8, 32));
        assert_eq!(q.layer("language_model.model.embed_tokens"), affine(8, 32));
        assert_eq!(q.layer("model.layers.0.mlp.up_proj"), None);
        assert!(!q.is_dense());
    }

    #[test]
    fn other_methods_and_impossible_figures_are_named() {
        let error = |v: Value| Quantization::from_config(&v).unwrap_err();
        assert!(error(json!({"quantization_config": {"quant_method": "gptq"}})).contains("gptq"));
        assert!(error(json!({"quantization": {"mode": "mxfp4"}})).contains("mxfp4"));
        assert!(error(json!({"quantization": {"bits": 7, "group_size": 64}})).contains("bits 7"));
        assert!(
            error(json!({"quantization": {"bits": 4, "group_size": 0}})).contains("group_size 0")
        );
        assert!(error(json!({"quantization": 4})).contains("object"));
        assert!(error(json!({"quantization": {"bits": 4}})).contains("without a group_size"));
        let own = json!({"bits": 4, "group_size": 64, "lm_head": {"group_size": 32}});
        assert!(error(json!({"quantization": own})).contains("lm_head: a group_size without"));
        assert!(Quantization::from_config(&json!({})).unwrap().is_dense());
    }
}
