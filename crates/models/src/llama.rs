//! Llama (Touvron et al. 2023; Grattafiori et al. 2024): Llama 2 and 3, SmolLM2, TinyLlama and their
//! like. RMSNorm, rotary positions, grouped-query attention, SwiGLU.

use biplane_backend::{AttentionMask, Backend, RopeAngles, RopeScaling, Tensor, rope_inv_freqs};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    CacheSpec, Error, Result, Step, Weights,
    checkpoint::GgufMetadata,
    layers::{Embedding, Linear, RmsNorm},
    loader::{GgufFix, GgufTensor},
    model::{Architecture, Dimensions, Model},
    rope_config::RopeConfig,
};

/// `config.json` of a Llama.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f32,
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Config {
    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn checked(self) -> Result<Self, String> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
            ("vocab_size", self.vocab_size),
        ];
        for (key, size) in sizes {
            if size == 0 || size > 1 << 24 {
                return Err(format!("{key} is {size}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            return Err(format!(
                "num_attention_heads {} is no multiple of num_key_value_heads {}",
                self.num_attention_heads,
                self.kv_heads()
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(format!("rms_norm_eps is {}", self.rms_norm_eps));
        }
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => Ok(self),
            Some(other) => Err(format!("hidden_act {other:?}, expected \"silu\"")),
        }
    }
}

struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (c.num_attention_heads, c.kv_heads(), c.head_dim());
        let linear = |name: &str, input, output| {
            if c.attention_bias {
                w.linear_with_bias(name, input, output)
            } else {
                w.linear(name, input, output)
            }
        };
        Ok(Attention {
            q_proj: linear("q_proj", c.hidden_size, heads * head_dim)?,
            k_proj: linear("k_proj", c.hidden_size, kv_heads * head_dim)?,
            v_proj: linear("v_proj", c.hidden_size, kv_heads * head_dim)?,
            o_proj: linear("o_proj", heads * head_dim, c.hidden_size)?,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
        })
    }

    fn forward(
        &self,
        x: &B::Tensor,
        layer: usize,
        rope: &RopeAngles<B::Tensor>,
        step: &mut Step<'_, B>,
    ) -> biplane_backend::Result<B::Tensor> {
        let (n, d) = (step.num_tokens(), self.head_dim);
        let q = self.q_proj.forward(x)?.reshape([n, self.heads, d])?;
        let k = self.k_proj.forward(x)?.reshape([n, self.kv_heads, d])?;
        let v = self.v_proj.forward(x)?.reshape([n, self.kv_heads, d])?;
        let (q, k) = (q.rope(rope)?, k.rope(rope)?);
        let y = step.attend(layer, &q, &k, &v, AttentionMask::Causal, self.scale)?;
        self.o_proj.forward(&y.reshape([n, self.heads * d])?)
    }
}

struct Mlp<B: Backend> {
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let linear = |name: &str, input, output| {
            if c.mlp_bias {
                w.linear_with_bias(name, input, output)
            } else {
                w.linear(name, input, output)
            }
        };
        Ok(Mlp {
            gate_proj: linear("gate_proj", c.hidden_size, c.intermediate_size)?,
            up_proj: linear("up_proj", c.hidden_size, c.intermediate_size)?,
            down_proj: linear("down_proj", c.intermediate_size, c.hidden_size)?,
        })
    }

    fn forward(&self, x: &B::Tensor) -> biplane_backend::Result<B::Tensor> {
        let gate = self.gate_proj.forward(x)?;
        self.down_proj
            .forward(&gate.silu_mul(&self.up_proj.forward(x)?)?)
    }
}

struct Block<B: Backend> {
    input_layernorm: RmsNorm<B>,
    self_attn: Attention<B>,
    post_attention_layernorm: RmsNorm<B>,
    mlp: Mlp<B>,
}

impl<B: Backend> Block<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        Ok(Block {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(c, &w.scope("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(c, &w.scope("mlp"))?,
        })
    }

    fn forward(
        &self,
        x: &B::Tensor,
        layer: usize,
        rope: &RopeAngles<B::Tensor>,
        step: &mut Step<'_, B>,
    ) -> biplane_backend::Result<B::Tensor> {
        let attended =
            self.self_attn
                .forward(&self.input_layernorm.forward(x)?, layer, rope, step)?;
        let x = x.add(&attended)?;
        x.add(
            &self
                .mlp
                .forward(&self.post_attention_layernorm.forward(&x)?)?,
        )
    }
}

/// A Llama on a device.
pub struct Llama<B: Backend> {
    embed_tokens: Embedding<B>,
    layers: Vec<Block<B>>,
    norm: RmsNorm<B>,
    lm_head: Linear<B>,
    inv_freqs: Vec<f32>,
    cache: CacheSpec,
}

impl<B: Backend> Model<B> for Llama<B> {
    fn caches(&self) -> Vec<CacheSpec> {
        vec![self.cache; self.layers.len()]
    }

    fn forward(&self, step: &mut Step<'_, B>) -> biplane_backend::Result<B::Tensor> {
        let rope = step.rope(&self.inv_freqs, false)?;
        let mut x = self.embed_tokens.forward(step.ids())?;
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward(&x, layer, &rope, step)?;
        }
        self.lm_head
            .forward(&self.norm.forward(&step.logit_rows(&x)?)?)
    }
}

impl<B: Backend> Architecture<B> for Llama<B> {
    type Config = Config;

    fn config_from_hf(config: &Value) -> Result<Config, String> {
        Config::deserialize(config)
            .map_err(|e| e.to_string())?
            .checked()
    }

    fn config_from_gguf(m: &GgufMetadata) -> Result<Config> {
        let size = |key: &str| m.usize(&format!("llama.{key}"));
        let optional = |key: &str| m.optional_usize(&format!("llama.{key}"));
        let hidden_size = size("embedding_length")?;
        let num_attention_heads = size("attention.head_count")?;
        let head_dim = optional("attention.key_length")?;
        let full = head_dim.unwrap_or(hidden_size / num_attention_heads.max(1));
        if let Some(rotary) = optional("rope.dimension_count")?
            && rotary != full
        {
            return Err(m.config_error(format!(
                "llama.rope.dimension_count is {rotary}, but heads have {full} elements; partial rotary embedding is not Llama's"
            )));
        }
        Config {
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            num_hidden_layers: size("block_count")?,
            num_attention_heads,
            num_key_value_heads: optional("attention.head_count_kv")?,
            head_dim,
            vocab_size: match optional("vocab_size")? {
                Some(n) => n,
                None => m.array_len("tokenizer.ggml.tokens")?,
            },
            rms_norm_eps: m.f32("llama.attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: optional("context_length")?,
            tie_word_embeddings: !m.has_tensor("output.weight"),
            attention_bias: m.has_tensor("blk.0.attn_q.bias"),
            mlp_bias: m.has_tensor("blk.0.ffn_gate.bias"),
            hidden_act: None,
            rope: RopeConfig::from_gguf(m, "llama")?,
        }
        .checked()
        .map_err(|reason| m.config_error(reason))
    }

    fn gguf_tensor(config: &Config, name: &str) -> Option<GgufTensor> {
        match name {
            "model.embed_tokens.weight" => return Some(GgufTensor::same("token_embd.weight")),
            "model.norm.weight" => return Some(GgufTensor::same("output_norm.weight")),
            "lm_head.weight" => return Some(GgufTensor::same("output.weight")),
            "rope_freqs" => return Some(GgufTensor::same("rope_freqs.weight")),
            _ => {}
        }
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let heads = |heads| GgufFix::Interleaved { heads };
        let (part, fix) = match part {
            "self_attn.q_proj" => ("attn_q", heads(config.num_attention_heads)),
            "self_attn.k_proj" => ("attn_k", heads(config.kv_heads())),
            "self_attn.v_proj" => ("attn_v", GgufFix::Same),
            "self_attn.o_proj" => ("attn_output", GgufFix::Same),
            "mlp.gate_proj" => ("ffn_gate", GgufFix::Same),
            "mlp.up_proj" => ("ffn_up", GgufFix::Same),
            "mlp.down_proj" => ("ffn_down", GgufFix::Same),
            "input_layernorm" => ("attn_norm", GgufFix::Same),
            "post_attention_layernorm" => ("ffn_norm", GgufFix::Same),
            _ => return None,
        };
        Some(GgufTensor {
            name: format!("blk.{layer}.{part}.{kind}"),
            fix,
        })
    }

    fn dimensions(c: &Config) -> Dimensions {
        Dimensions {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            layers: c.num_hidden_layers,
            context_length: c.max_position_embeddings.unwrap_or(2048),
        }
    }

    fn load(c: Config, w: &Weights<'_, B>) -> Result<Self> {
        let scaling = match w.optional_f32s("rope_freqs")? {
            Some(divisors) => RopeScaling::PerFrequency(divisors),
            None => c.rope.scaling().map_err(|reason| w.config_error(reason))?,
        };
        let inv_freqs = rope_inv_freqs(c.head_dim(), c.rope.theta(), &scaling)?;
        let model = w.scope("model");
        let embed_tokens = model.embedding("embed_tokens", c.vocab_size, c.hidden_size)?;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(&c, &model.scope("layers").scope(i)))
            .collect::<Result<_, Error>>()?;
        let lm_head = if c.tie_word_embeddings {
            embed_tokens.as_head()
        } else {
            w.linear("lm_head", c.hidden_size, c.vocab_size)?
        };
        let norm = model.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?;
        w.finish(|name| {
            name.ends_with("rotary_emb.inv_freq")
                || (c.tie_word_embeddings && name.starts_with("lm_head."))
        })?;
        Ok(Llama {
            embed_tokens,
            layers,
            norm,
            lm_head,
            inv_freqs,
            cache: CacheSpec {
                kv_heads: c.kv_heads(),
                head_dim: c.head_dim(),
            },
        })
    }
}
