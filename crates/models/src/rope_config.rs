//! RoPE as checkpoints describe it: every spelling of theta and scaling, in one place.

use biplane_backend::RopeScaling;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters` that holds both.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct RopeConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_parameters: Option<Value>,
}

impl RopeConfig {
    /// The parameters of one kind of layers, where `rope_parameters` tells them apart.
    pub fn of_layers(&self, kind: &str) -> Option<RopeConfig> {
        let own = self.rope_parameters.as_ref()?.get(kind)?;
        Some(RopeConfig {
            rope_parameters: Some(own.clone()),
            ..RopeConfig::default()
        })
    }

    /// The base of the frequencies, where the checkpoint gives one; 10,000 is usual.
    pub fn theta(&self) -> Option<f32> {
        let nested = self
            .rope_parameters
            .as_ref()
            .and_then(|p| p.get("rope_theta"))
            .and_then(Value::as_f64);
        nested.map(|t| t as f32).or(self.rope_theta)
    }

    /// The fraction of each head that turns, where `rope_parameters` says so.
    pub fn partial(&self) -> Option<f32> {
        let partial = self
            .rope_parameters
            .as_ref()?
            .get("partial_rotary_factor")?;
        partial.as_f64().map(|f| f as f32)
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
        assert_eq!(old.theta(), Some(5e5));
        assert_eq!(new.theta(), Some(5e5));
        assert_eq!(old.scaling().unwrap(), RopeScaling::Linear { factor: 8.0 });
        assert_eq!(old.scaling(), new.scaling());
        assert_eq!(config(json!({})).theta(), None);
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
