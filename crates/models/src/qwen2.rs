//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases in q, k and v.

use serde_json::Value;

use crate::{
    config::sliding_layers,
    llama::{Config, Relative, SlidingLayers},
    mistral::window,
};

/// The architecture.
#[derive(Debug)]
pub struct Arch;

impl Relative for Arch {
    fn vary(config: &mut Config, json: &Value) -> Result<(), String> {
        config.variant.qkv_bias = true;
        config.variant.window = optional_window(config, json)?;
        Ok(())
    }
}

/// Qwen's window is there only if `use_sliding_window` says so, from layer `max_window_layers` on or
/// in the layers that `layer_types` lists.
pub(crate) fn optional_window(
    config: &Config,
    json: &Value,
) -> Result<Option<(usize, SlidingLayers)>, String> {
    if json.get("use_sliding_window") != Some(&Value::Bool(true)) {
        return Ok(None);
    }
    let Some(window) = window(json)? else {
        return Ok(None);
    };
    if let Some(marks) = sliding_layers(json, config.num_layers())? {
        return Ok(Some((window, SlidingLayers::Marked(marks))));
    }
    let first = match json.get("max_window_layers") {
        None | Some(Value::Null) => 28,
        Some(value) => value
            .as_u64()
            .ok_or_else(|| format!("max_window_layers is {value}, expected a number"))?,
    };
    Ok(Some((window, SlidingLayers::From(first as usize))))
}
