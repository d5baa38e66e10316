//! Gemma 3 (Gemma Team 2025), the text model: sliding and global layers with a RoPE base each, norms
//! of q and k, norms before and after attention and feed-forward part, scaled embeddings.

use biplane_backend::{Backend, DType, Gate, RopeAngles, RopeScaling, Tensor, rope_inv_freqs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    CacheSpec, Result, Step, Weights,
    checkpoint::GgufMetadata,
    config::{from_json, only, positive, sliding_layers, whole_groups},
    gguf_names::{GgufFix, GgufNames},
    layers::{Embedding, Joined, Linear, RmsNorm},
    model::{Architecture, Dimensions, Model},
    rope_config::RopeConfig,
    step::Heads,
};

/// `config.json` of a Gemma 3; checkpoints leave out what has the default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    rms_norm_eps: f32,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
    query_pre_attn_scalar: f32,
    sliding_window: usize,
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: usize,
    rope_local_base_freq: f32,
    #[serde(flatten)]
    rope: RopeConfig,
    #[serde(skip_deserializing)]
    slides: Vec<bool>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            vocab_size: 262_208,
            rms_norm_eps: 1e-6,
            max_position_embeddings: 131_072,
            tie_word_embeddings: true,
            query_pre_attn_scalar: 256.0,
            sliding_window: 4096,
            sliding_window_pattern: 6,
            rope_local_base_freq: 10_000.0,
            rope: RopeConfig::default(),
            slides: Vec::new(),
        }
    }
}

impl Config {
    fn checked(mut self, json: &Value) -> Result<Self, String> {
        positive(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("sliding_window", self.sliding_window),
            ("sliding_window_pattern", self.sliding_window_pattern),
        ])?;
        whole_groups(self.num_attention_heads, self.num_key_value_heads)?;
        for (key, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("query_pre_attn_scalar", self.query_pre_attn_scalar),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{key} is {value}"));
            }
        }
        only(json, "hidden_activation", &[json!("gelu_pytorch_tanh")])?;
        only(json, "attention_bias", &[json!(false)])?;
        only(json, "attn_logit_softcapping", &[])?;
        only(json, "final_logit_softcapping", &[])?;
        only(json, "use_bidirectional_attention", &[json!(false)])?;
        let pattern = self.sliding_window_pattern;
        self.slides = match sliding_layers(json, self.num_hidden_layers)? {
            Some(listed) => listed,
            None => (1..=self.num_hidden_layers)
                .map(|layer| !layer.is_multiple_of(pattern))
                .collect(),
        };
        Ok(self)
    }

    /// Inverse frequencies of global and of sliding layers.
    fn inv_freqs(&self) -> Result<[Vec<f32>; 2], String> {
        let both = self.rope.of_layers("full_attention");
        let global = both.as_ref().unwrap_or(&self.rope);
        let local = self.rope.of_layers("sliding_attention");
        let freqs = |theta, scaling: &RopeScaling| {
            rope_inv_freqs(self.head_dim, theta, scaling).map_err(|e| e.to_string())
        };
        let (base, scaling) = match &local {
            Some(local) => (local.theta(), local.scaling()?),
            None => (None, RopeScaling::None),
        };
        Ok([
            freqs(global.theta().unwrap_or(1e6), &global.scaling()?)?,
            freqs(base.unwrap_or(self.rope_local_base_freq), &scaling)?,
        ])
    }
}

struct Attention<B: Backend> {
    qkv_proj: Joined<B, 3>,
    o_proj: Linear<B>,
    /// Of query and of key heads.
    norms: [RmsNorm<B>; 2],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let (heads, kv_heads, head_dim) =
            (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let norm = |name| w.rms_norm_plus_one(name, head_dim, c.rms_norm_eps);
        Ok(Attention {
            qkv_proj: Joined::new([
                w.linear("q_proj", c.hidden_size, heads * head_dim)?,
                w.linear("k_proj", c.hidden_size, kv_heads * head_dim)?,
                w.linear("v_proj", c.hidden_size, kv_heads * head_dim)?,
            ])?,
            o_proj: w.linear("o_proj", heads * head_dim, c.hidden_size)?,
            norms: [norm("q_norm")?, norm("k_norm")?],
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / c.query_pre_attn_scalar.sqrt(),
        })
    }

    /// Added to `x`.
    fn forward(
        &self,
        x: &B::Tensor,
        [before, after]: [&RmsNorm<B>; 2],
        layer: usize,
        rope: &RopeAngles<B::Tensor>,
        step: &mut Step<'_, B>,
    ) -> biplane_backend::Result<B::Tensor> {
        let qkv = self.qkv_proj.project(x, Some(before))?;
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            norms: Some(&self.norms),
            rope,
            scale: self.scale,
        };
        let y = step.attend_projected(layer, qkv, &heads)?;
        self.o_proj.forward_norm_add(&y, after, x)
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

    /// Added to `x`.
    fn forward(
        &self,
        x: &B::Tensor,
        [before, after]: [&RmsNorm<B>; 2],
    ) -> biplane_backend::Result<B::Tensor> {
        let y = self.gate_up_proj.forward_gated(x, before, Gate::GeluTanh)?;
        self.down_proj.forward_norm_add(&y, after, x)
    }
}

struct Block<B: Backend> {
    input_layernorm: RmsNorm<B>,
    self_attn: Attention<B>,
    post_attention_layernorm: RmsNorm<B>,
    pre_feedforward_layernorm: RmsNorm<B>,
    mlp: Mlp<B>,
    post_feedforward_layernorm: RmsNorm<B>,
}

impl<B: Backend> Block<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let norm = |name| w.rms_norm_plus_one(name, c.hidden_size, c.rms_norm_eps);
        Ok(Block {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(c, &w.scope("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp::load(c, &w.scope("mlp"))?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }

    fn forward(
        &self,
        x: &B::Tensor,
        layer: usize,
        rope: &RopeAngles<B::Tensor>,
        step: &mut Step<'_, B>,
    ) -> biplane_backend::Result<B::Tensor> {
        let norms = [&self.input_layernorm, &self.post_attention_layernorm];
        let x = self.self_attn.forward(x, norms, layer, rope, step)?;
        let norms = [
            &self.pre_feedforward_layernorm,
            &self.post_feedforward_layernorm,
        ];
        self.mlp.forward(&x, norms)
    }
}

/// A Gemma 3 on a device.
pub struct Gemma3<B: Backend> {
    embed_tokens: Embedding<B>,
    layers: Vec<Block<B>>,
    norm: RmsNorm<B>,
    lm_head: Linear<B>,
    /// Of global and of sliding layers.
    inv_freqs: [Vec<f32>; 2],
    caches: Vec<CacheSpec>,
    embedding_scale: f64,
}

impl<B: Backend> Model<B> for Gemma3<B> {
    fn caches(&self) -> Vec<CacheSpec> {
        self.caches.clone()
    }

    fn forward(&self, step: &mut Step<'_, B>) -> biplane_backend::Result<B::Tensor> {
        let [global, local] = &self.inv_freqs;
        let (global, local) = (step.rope(global, false)?, step.rope(local, false)?);
        let mut x = self
            .embed_tokens
            .forward(step.ids())?
            .affine(self.embedding_scale, 0.0)?;
        for (layer, (block, cache)) in self.layers.iter().zip(&self.caches).enumerate() {
            let rope = if cache.window.is_some() {
                &local
            } else {
                &global
            };
            x = block.forward(&x, layer, rope, step)?;
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
    type Model<B: Backend> = Gemma3<B>;

    fn config(json: &Value) -> Result<Config, String> {
        from_json::<Config>(json)?.checked(json)
    }

    fn complete_gguf_config(m: &GgufMetadata, json: &mut Map<String, Value>) -> Result<()> {
        // GGUF has no key for the scalar. It is the head's size in all but the 27B model, whose
        // 62 layers llama.cpp knows it by.
        let number = |json: &Map<String, Value>, key: &str| json.get(key).and_then(Value::as_u64);
        let scalar = match number(json, "num_hidden_layers") {
            Some(62) => number(json, "hidden_size")
                .zip(number(json, "num_attention_heads"))
                .and_then(|(hidden, heads)| hidden.checked_div(heads)),
            _ => number(json, "head_dim"),
        };
        if let Some(scalar) = scalar {
            json.insert("query_pre_attn_scalar".into(), scalar.into());
        }
        if let Some(pattern) = m.optional_usize("gemma3.attention.sliding_window_pattern")? {
            json.insert("sliding_window_pattern".into(), pattern.into());
        }
        if let Some(base) = m.optional_f32("gemma3.rope.freq_base_swa")? {
            json.insert("rope_local_base_freq".into(), json!(f64::from(base)));
        }
        Ok(())
    }

    fn gguf_names(_: &Config) -> GgufNames {
        GgufNames::decoder()
            .layer("self_attn.q_norm", "attn_q_norm")
            .layer("self_attn.k_norm", "attn_k_norm")
            .layer("post_attention_layernorm", "post_attention_norm")
            .layer("pre_feedforward_layernorm", "ffn_norm")
            .layer("post_feedforward_layernorm", "post_ffw_norm")
            .fix(GgufFix::PlusOne, |hf| hf.ends_with("norm"))
    }

    fn dimensions(c: &Config) -> Dimensions {
        Dimensions {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            layers: c.num_hidden_layers,
            context_length: c.max_position_embeddings,
        }
    }

    fn load<B: Backend>(c: Config, w: &Weights<'_, B>) -> Result<Gemma3<B>> {
        let inv_freqs = c.inv_freqs().map_err(|reason| w.config_error(reason))?;
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
        let norm = model.rms_norm_plus_one("norm", c.hidden_size, c.rms_norm_eps)?;
        w.finish(|name| {
            name.ends_with("rotary_emb.inv_freq")
                || (c.tie_word_embeddings && name.starts_with("lm_head."))
        })?;
        let cache = |slides: &bool| CacheSpec {
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            window: slides.then_some(c.sliding_window),
        };
        Ok(Gemma3 {
            embed_tokens,
            layers,
            norm,
            lm_head,
            inv_freqs,
            caches: c.slides.iter().map(cache).collect(),
            embedding_scale: rounded((c.hidden_size as f32).sqrt(), w.dtype()),
        })
    }
}

/// A factor as an element of the type: the reference multiplies by that.
fn rounded(x: f32, dtype: DType) -> f64 {
    f64::from(match dtype {
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
        DType::F16 => half::f16::from_f32(x).to_f32(),
        _ => x,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Value) -> Result<Config, String> {
        Arch::config(&json)
    }

    #[test]
    fn every_sixth_layer_is_global_unless_listed() {
        let c = config(json!({"num_hidden_layers": 8})).unwrap();
        let global: Vec<_> = (0..8).filter(|&i| !c.slides[i]).collect();
        assert_eq!(global, [5]);
        let kinds = json!(["full_attention", "sliding_attention"]);
        let c = config(json!({"num_hidden_layers": 2, "layer_types": kinds})).unwrap();
        assert_eq!(c.slides, [false, true]);
    }

    #[test]
    fn both_spellings_of_the_bases_are_one() {
        let old = config(json!({
            "rope_theta": 1e6, "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }));
        let new = config(json!({"rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        }}));
        let (old, new) = (old.unwrap().inv_freqs(), new.unwrap().inv_freqs());
        assert_eq!(old, new);
        let [global, local] = old.unwrap();
        assert_eq!((global[0], local[0]), (1.0 / 8.0, 1.0));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value) in [
            ("final_logit_softcapping", json!(30.0)),
            ("hidden_activation", json!("relu")),
            ("query_pre_attn_scalar", json!(0)),
            ("sliding_window", json!(0)),
            ("num_key_value_heads", json!(3)),
        ] {
            assert!(
                config(json!({key: value})).unwrap_err().contains(key),
                "{key}"
            );
        }
    }
}
