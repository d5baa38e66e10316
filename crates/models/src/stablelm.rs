//! StableLM (Bellagente et al. 2024): StableLM 2, StableLM 3B, stable-code. LayerNorm, rotary positions
//! on a part of each head, SwiGLU; the 12B model has norms of q's and k's heads and computes attention
//! and feed-forward part side by side.

use biplane_backend::{Backend, RopeAngles, Tensor, rope_inv_freqs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    CacheSpec, Result, Step, Weights,
    checkpoint::GgufMetadata,
    config::{from_json, only, positive, whole_groups},
    gguf_names::{GgufFix, GgufNames},
    layers::{Embedding, Joined, LayerNorm, Linear},
    model::{Architecture, Dimensions, Model},
    rope_config::RopeConfig,
};

/// `config.json` of a StableLM; the first checkpoints spell some keys otherwise.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    #[serde(alias = "norm_eps")]
    layer_norm_eps: f32,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
    use_qkv_bias: bool,
    qk_layernorm: bool,
    use_parallel_residual: bool,
    #[serde(alias = "rope_pct")]
    partial_rotary_factor: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hidden_size: 2560,
            intermediate_size: 6912,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            vocab_size: 50_304,
            layer_norm_eps: 1e-5,
            max_position_embeddings: 4096,
            tie_word_embeddings: false,
            use_qkv_bias: false,
            qk_layernorm: false,
            use_parallel_residual: false,
            partial_rotary_factor: 0.25,
            rope: RopeConfig::default(),
        }
    }
}

impl Config {
    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn rotary_dim(&self) -> usize {
        let part = self.rope.partial().unwrap_or(self.partial_rotary_factor);
        (self.head_dim() as f32 * part) as usize
    }

    fn checked(self, json: &Value) -> Result<Self, String> {
        positive(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("vocab_size", self.vocab_size),
        ])?;
        whole_groups(self.num_attention_heads, self.num_key_value_heads)?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            return Err(format!("layer_norm_eps is {}", self.layer_norm_eps));
        }
        let rotary = self.rotary_dim();
        if rotary == 0 || rotary > self.head_dim() || !rotary.is_multiple_of(2) {
            return Err(format!(
                "partial_rotary_factor {} of heads of {} elements",
                self.partial_rotary_factor,
                self.head_dim()
            ));
        }
        only(json, "hidden_act", &[json!("silu"), json!("swish")])?;
        only(json, "rotary_scaling_factor", &[json!(1.0), json!(1)])?;
        Ok(self)
    }
}

/// LayerNorm of every head, each with its own weight.
struct HeadNorm<B: Backend> {
    /// Ones: the weights differ from head to head.
    norm: LayerNorm<B>,
    /// `[heads, head_dim]`
    weight: B::Tensor,
}

impl<B: Backend> HeadNorm<B> {
    fn load(c: &Config, w: &Weights<'_, B>, name: &str, heads: usize) -> Result<Self> {
        let weight = w.norms_of_heads(name, heads, c.head_dim())?;
        let ones = weight.narrow(0, 0, 1)?.reshape([c.head_dim()])?;
        Ok(HeadNorm {
            norm: LayerNorm {
                weight: ones.affine(0.0, 1.0)?,
                bias: None,
                eps: c.layer_norm_eps,
            },
            weight,
        })
    }

    fn forward(&self, x: &B::Tensor) -> biplane_backend::Result<B::Tensor> {
        self.norm.forward(x)?.mul(&self.weight)
    }
}

struct Attention<B: Backend> {
    qkv_proj: Joined<B, 3>,
    o_proj: Linear<B>,
    norms: Option<[HeadNorm<B>; 2]>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl<B: Backend> Attention<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let (heads, kv_heads, head_dim) =
            (c.num_attention_heads, c.num_key_value_heads, c.head_dim());
        let linear =
            |name, heads| w.linear_biased(name, c.hidden_size, heads * head_dim, c.use_qkv_bias);
        Ok(Attention {
            qkv_proj: Joined::new([
                linear("q_proj", heads)?,
                linear("k_proj", kv_heads)?,
                linear("v_proj", kv_heads)?,
            ])?,
            o_proj: w.linear("o_proj", c.hidden_size, c.hidden_size)?,
            norms: match c.qk_layernorm {
                true => Some([
                    HeadNorm::load(c, w, "q_layernorm", heads)?,
                    HeadNorm::load(c, w, "k_layernorm", kv_heads)?,
                ]),
                false => None,
            },
            heads,
            kv_heads,
            head_dim,
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
        let [q, k, v] = self.qkv_proj.forward(x)?;
        let mut q = q.reshape([n, self.heads, d])?;
        let mut k = k.reshape([n, self.kv_heads, d])?;
        let v = v.reshape([n, self.kv_heads, d])?;
        if let Some([q_norm, k_norm]) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let scale = 1.0 / (d as f32).sqrt();
        let y = step.attend(layer, &q.rope(rope)?, &k.rope(rope)?, &v, scale)?;
        self.o_proj.forward(&y.reshape([n, self.heads * d])?)
    }
}

struct Mlp<B: Backend> {
    gate_up_proj: Joined<B, 2>,
    down_proj: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        Ok(Mlp {
            gate_up_proj: Joined::new([
                w.linear("gate_proj", c.hidden_size, c.intermediate_size)?,
                w.linear("up_proj", c.hidden_size, c.intermediate_size)?,
            ])?,
            down_proj: w.linear("down_proj", c.intermediate_size, c.hidden_size)?,
        })
    }

    fn forward(&self, x: &B::Tensor) -> biplane_backend::Result<B::Tensor> {
        let [gate, up] = self.gate_up_proj.forward(x)?;
        self.down_proj.forward(&gate.silu_mul(&up)?)
    }
}

struct Block<B: Backend> {
    input_layernorm: LayerNorm<B>,
    self_attn: Attention<B>,
    /// `None` where attention and feed-forward part see the same normalized input.
    post_attention_layernorm: Option<LayerNorm<B>>,
    mlp: Mlp<B>,
}

impl<B: Backend> Block<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let norm = |name| w.layer_norm(name, c.hidden_size, c.layer_norm_eps);
        Ok(Block {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(c, &w.scope("self_attn"))?,
            post_attention_layernorm: match c.use_parallel_residual {
                true => None,
                false => Some(norm("post_attention_layernorm")?),
            },
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
        let normed = self.input_layernorm.forward(x)?;
        let attended = x.add(&self.self_attn.forward(&normed, layer, rope, step)?)?;
        match &self.post_attention_layernorm {
            Some(norm) => attended.add(&self.mlp.forward(&norm.forward(&attended)?)?),
            None => attended.add(&self.mlp.forward(&normed)?),
        }
    }
}

/// A StableLM on a device.
pub struct StableLm<B: Backend> {
    embed_tokens: Embedding<B>,
    layers: Vec<Block<B>>,
    norm: LayerNorm<B>,
    lm_head: Linear<B>,
    inv_freqs: Vec<f32>,
    cache: CacheSpec,
}

impl<B: Backend> Model<B> for StableLm<B> {
    fn caches(&self) -> Vec<CacheSpec> {
        vec![self.cache; self.layers.len()]
    }

    fn forward(&self, step: &mut Step<'_, B>) -> biplane_backend::Result<B::Tensor> {
        let rope = step.rope(&self.inv_freqs, false)?;
        let mut x = self.embed_tokens.forward(step.ids())?;
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward(&x, layer, &rope, step)?;
            step.layer_done(&x)?;
        }
        Ok(x)
    }

    fn norm(&self, x: &B::Tensor) -> biplane_backend::Result<B::Tensor> {
        self.norm.forward(x)
    }

    fn head(&self) -> &Linear<B> {
        &self.lm_head
    }
}

/// The architecture.
#[derive(Debug)]
pub struct Arch;

impl Architecture for Arch {
    type Config = Config;
    type Model<B: Backend> = StableLm<B>;

    fn config(json: &Value) -> Result<Config, String> {
        from_json::<Config>(json)?.checked(json)
    }

    fn complete_gguf_config(m: &GgufMetadata, json: &mut Map<String, Value>) -> Result<()> {
        for (key, tensor) in [
            ("use_qkv_bias", "blk.0.attn_q.bias"),
            ("qk_layernorm", "blk.0.attn_q_norm.weight"),
        ] {
            json.insert(key.into(), m.has_tensor(tensor).into());
        }
        // Some files have no key for it, or a wrong one: a missing norm decides, as in llama.cpp.
        let parallel = !m.has_tensor("blk.0.ffn_norm.weight");
        json.insert("use_parallel_residual".into(), parallel.into());
        // A rotary part as large as a head is left out above; here the default is a quarter.
        json.entry("partial_rotary_factor").or_insert(json!(1.0));
        Ok(())
    }

    fn gguf_names(_: &Config) -> GgufNames {
        GgufNames::decoder()
            .layer("self_attn.q_layernorm", "attn_q_norm")
            .layer("self_attn.k_layernorm", "attn_k_norm")
            .fix(GgufFix::Stacked, |hf| {
                hf.ends_with("q_layernorm") || hf.ends_with("k_layernorm")
            })
    }

    fn dimensions(c: &Config) -> Dimensions {
        Dimensions {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            layers: c.num_hidden_layers,
            context_length: c.max_position_embeddings,
        }
    }

    fn load<B: Backend>(c: Config, w: &Weights<'_, B>) -> Result<StableLm<B>> {
        let scaling = c.rope.scaling().map_err(|reason| w.config_error(reason))?;
        let inv_freqs = rope_inv_freqs(c.rotary_dim(), c.rope.theta().unwrap_or(1e4), &scaling)?;
        let model = w.scope("model");
        let embed_tokens = model.embedding("embed_tokens", c.vocab_size, c.hidden_size)?;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(&c, &model.scope("layers").scope(i)))
            .collect::<Result<_>>()?;
        let lm_head = if c.tie_word_embeddings {
            embed_tokens.as_head()
        } else {
            w.linear("lm_head", c.hidden_size, c.vocab_size)?
        };
        let norm = model.layer_norm("norm", c.hidden_size, c.layer_norm_eps)?;
        w.finish(|name| {
            name.ends_with("rotary_emb.inv_freq")
                || (c.tie_word_embeddings && name.starts_with("lm_head."))
        })?;
        Ok(StableLm {
            embed_tokens,
            layers,
            norm,
            lm_head,
            inv_freqs,
            cache: CacheSpec {
                kv_heads: c.num_key_value_heads,
                head_dim: c.head_dim(),
                window: None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_checkpoints_spell_keys_otherwise() {
        let old = Arch::config(&json!({"rope_pct": 0.5, "norm_eps": 1e-6})).unwrap();
        assert_eq!((old.rotary_dim(), old.layer_norm_eps), (40, 1e-6));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value) in [
            ("partial_rotary_factor", json!(1.5)),
            ("partial_rotary_factor", json!(0.0)),
            ("hidden_act", json!("gelu")),
            ("rotary_scaling_factor", json!(2.0)),
            ("num_attention_heads", json!(7)),
            ("layer_norm_eps", json!(0.0)),
        ] {
            let error = Arch::config(&json!({key: value})).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
