//! Qwen 3 (Yang et al. 2025): Llama with an RMSNorm of every head of q and k.

use serde_json::Value;

use crate::{
    gguf_names::GgufNames,
    llama::{Config, Relative},
    qwen2::optional_window,
};

/// The architecture.
#[derive(Debug)]
pub struct Arch;

impl Relative for Arch {
    fn vary(config: &mut Config, json: &Value) -> Result<(), String> {
        config.variant.qk_norm = true;
        config.variant.window = optional_window(config, json)?;
        Ok(())
    }

    fn gguf_names(_: &Config) -> GgufNames {
        GgufNames::decoder()
            .layer("self_attn.q_norm", "attn_q_norm")
            .layer("self_attn.k_norm", "attn_k_norm")
    }
}
