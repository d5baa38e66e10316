//! RoPE as checkpoints describe it: every spelling of theta and scaling, in one place.

use biplane_backend::RopeScaling;
use serde::Deserialize;
use serde_json::Value;

use crate::{Result, checkpoint::GgufMetadata};

/// `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters` that holds both.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RopeConfig {
    rope_theta: Option<f32>,
    #[serde(default)]
    rope_scaling: Option<Value>,
    #[serde(default)]
    rope_parameters: Option<Value>,
}

impl RopeConfig {
    /// Reads `ARCH.rope.*` of a GGUF file.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a kind of scaling that is not known.
    pub fn from_gguf(m: &GgufMetadata, arch: &str) -> Result<Self> {
        let kind = m.optional_str(&format!("{arch}.rope.scaling.type"))?;
        let factor = m.optional_f32(&format!("{arch}.rope.scaling.factor"))?;
        let rope_scaling = match kind {
            None | Some("none") => None,
            Some(kind) => Some(serde_json::json!({"rope_type": kind, "factor": factor})),
        };
        Ok(RopeConfig {
            rope_theta: m.optional_f32(&format!("{arch}.rope.freq_base"))?,
            rope_scaling,
            rope_parameters: None,
        })
    }

    /// The base of the frequencies.
    pub fn theta(&self) -> f32 {
        let nested = self
            .rope_parameters
            .as_ref()
            .and_then(|p| p.get("rope_theta"))
            .and_then(Value::as_f64);
        nested.map(|t| t as f32).or(self.rope_theta).unwrap_or(1e4)
    }

    /// How the frequencies are stretched.
    ///
    /// # Errors
    /// A reason, for a kind that is not supported or a key that is missing.
    pub fn scaling(&self) -> Result<RopeScaling, String> {
        let entry = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        entry.map_or(Ok(RopeScaling::None), parse)
    }
}

fn parse(entry: &Value) -> Result<RopeScaling, String> {
    if entry.is_null() {
        return Ok(RopeScaling::None);
    }
    let kind = entry.get("rope_type").or_else(|| entry.get("type"));
    let number = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_f64)
            .map(|v| v as f32)
            .ok_or_else(|| format!("rope scaling has no number {key:?}"))
    };
    match kind.and_then(Value::as_str) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: number("factor")?,
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        }),
        Some(other) => Err(format!(
            "rope scaling {other:?} is not supported; supported are default, linear and llama3"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: Value) -> RopeConfig {
        RopeConfig::deserialize(value).unwrap()
    }

    #[test]
    fn both_spellings_and_both_places() {
        let old =
            config(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 8}}));
        let new = config(
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0}}),
        );
        assert_eq!(old.theta(), 5e5);
        assert_eq!(new.theta(), 5e5);
        assert_eq!(old.scaling().unwrap(), RopeScaling::Linear { factor: 8.0 });
        assert_eq!(old.scaling(), new.scaling());
        assert_eq!(config(json!({})).theta(), 1e4);
        assert_eq!(
            config(json!({"rope_scaling": null})).scaling().unwrap(),
            RopeScaling::None
        );
    }

    #[test]
    fn unknown_kinds_and_missing_keys_are_named() {
        let error = |v: Value| config(json!({"rope_scaling": v})).scaling().unwrap_err();
        assert!(error(json!({"rope_type": "yarn", "factor": 2})).contains("yarn"));
        assert!(error(json!({"rope_type": "llama3", "factor": 2})).contains("low_freq_factor"));
    }
}
