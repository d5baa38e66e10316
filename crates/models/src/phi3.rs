//! Phi-3 and Phi-4 (Abdin et al. 2024): Llama whose q, k, v and whose gate, up are each one matrix.

use serde_json::Value;

use crate::{
    gguf_names::GgufNames,
    llama::{Config, Relative, SlidingLayers},
    mistral::window,
};

/// The architecture.
#[derive(Debug)]
pub struct Arch;

impl Relative for Arch {
    fn vary(config: &mut Config, json: &Value) -> Result<(), String> {
        config.variant.fused = true;
        config.variant.window = window(json)?.map(|w| (w, SlidingLayers::From(0)));
        Ok(())
    }

    fn gguf_names(_: &Config) -> GgufNames {
        GgufNames::decoder()
            .layer("self_attn.qkv_proj", "attn_qkv")
            .layer("mlp.gate_up_proj", "ffn_up")
    }
}
