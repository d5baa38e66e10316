//! Mistral (Jiang et al. 2023): Llama with a sliding window in the first versions. GGUF files call it
//! `llama`.

use serde_json::Value;

use crate::{
    gguf_names::GgufNames,
    llama::{self, Config, Relative, SlidingLayers},
};

/// The architecture.
#[derive(Debug)]
pub struct Arch;

impl Relative for Arch {
    fn vary(config: &mut Config, json: &Value) -> Result<(), String> {
        config.variant.window = window(json)?.map(|w| (w, SlidingLayers::From(0)));
        Ok(())
    }

    fn gguf_names(c: &Config) -> GgufNames {
        llama::gguf_names(c)
    }
}

/// `sliding_window`, where it is a number.
pub(crate) fn window(json: &Value) -> Result<Option<usize>, String> {
    match json.get("sliding_window") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().filter(|w| *w > 0) {
            Some(window) => Ok(Some(window as usize)),
            None => Err(format!(
                "sliding_window is {value}, expected a positive number"
            )),
        },
    }
}
