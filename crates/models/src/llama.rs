//! Llama (Touvron et al. 2023; Grattafiori et al. 2024): Llama 2 and 3, SmolLM2, TinyLlama and their
//! like. RMSNorm, rotary positions, grouped-query attention, SwiGLU. Its [`Variant`]s are the
//! architectures that differ in a bias, a norm or a window: each a file of its own beside this one.

use biplane_backend::{Backend, Gate, RopeAngles, RopeScaling, rope_inv_freqs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    CacheSpec, Error, Result, Step, Weights,
    checkpoint::GgufMetadata,
    config::{from_json, positive, whole_groups},
    gguf_names::{GgufFix, GgufNames},
    layers::{Embedding, Joined, Linear, RmsNorm},
    model::{Architecture, Dimensions, Model},
    rope_config::RopeConfig,
    step::Heads,
    weights::Rows,
};

/// `config.json` of a Llama or one of its variants.
#[derive(Clone, Debug, Deserialize, Serialize)]
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
    pub(crate) tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    #[serde(default = "all")]
    partial_rotary_factor: f32,
    #[serde(flatten)]
    rope: RopeConfig,
    #[serde(skip_deserializing)]
    pub(crate) variant: Variant,
}

fn all() -> f32 {
    1.0
}

/// What sets a variant apart from Llama.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Variant {
    /// q, k and v have a bias, o has none.
    pub qkv_bias: bool,
    /// RMSNorm of every head of q and k.
    pub qk_norm: bool,
    /// q, k and v are one matrix, gate and up another.
    pub fused: bool,
    /// The window of sliding layers, and which they are.
    pub window: Option<(usize, SlidingLayers)>,
}

/// Which layers have a sliding window.
#[derive(Clone, Debug, Serialize)]
pub enum SlidingLayers {
    /// From this one on.
    From(usize),
    /// Those that are marked.
    Marked(Vec<bool>),
}

impl Config {
    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn rotary_dim(&self) -> usize {
        let part = self.rope.partial().unwrap_or(self.partial_rotary_factor);
        (self.head_dim() as f32 * part) as usize
    }

    fn window(&self, layer: usize) -> Option<usize> {
        let (window, layers) = self.variant.window.as_ref()?;
        let slides = match layers {
            SlidingLayers::From(first) => layer >= *first,
            SlidingLayers::Marked(marks) => marks.get(layer).copied().unwrap_or(false),
        };
        slides.then_some(*window)
    }

    /// Number of blocks.
    pub(crate) fn num_layers(&self) -> usize {
        self.num_hidden_layers
    }

    /// Reads and checks what Llama and its variants have in common.
    pub(crate) fn read(json: &Value) -> Result<Self, String> {
        let config: Config = from_json(json)?;
        positive(&[
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("num_key_value_heads", config.kv_heads()),
            ("head_dim", config.head_dim()),
            ("vocab_size", config.vocab_size),
        ])?;
        whole_groups(config.num_attention_heads, config.kv_heads())?;
        if !(config.rms_norm_eps.is_finite() && config.rms_norm_eps >= 0.0) {
            return Err(format!("rms_norm_eps is {}", config.rms_norm_eps));
        }
        if !(config.partial_rotary_factor > 0.0 && config.partial_rotary_factor <= 1.0) {
            return Err(format!(
                "partial_rotary_factor is {}",
                config.partial_rotary_factor
            ));
        }
        match config.hidden_act.as_deref() {
            None | Some("silu" | "swish") => Ok(config),
            Some(other) => Err(format!("hidden_act {other:?}, expected \"silu\"")),
        }
    }
}

struct Attention<B: Backend> {
    qkv_proj: Joined<B, 3>,
    o_proj: Linear<B>,
    norms: Option<[RmsNorm<B>; 2]>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (c.num_attention_heads, c.kv_heads(), c.head_dim());
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let qkv = if c.variant.fused {
            let of = q + 2 * kv;
            let rows = |part| w.linear_rows("qkv_proj", c.hidden_size, &Rows { part, of });
            [rows(0..q)?, rows(q..q + kv)?, rows(q + kv..of)?]
        } else {
            let bias = c.attention_bias || c.variant.qkv_bias;
            let linear = |name, output| w.linear_biased(name, c.hidden_size, output, bias);
            [
                linear("q_proj", q)?,
                linear("k_proj", kv)?,
                linear("v_proj", kv)?,
            ]
        };
        let norm = |name| w.rms_norm(name, head_dim, c.rms_norm_eps);
        Ok(Attention {
            qkv_proj: Joined::new(qkv)?,
            o_proj: w.linear_biased("o_proj", q, c.hidden_size, c.attention_bias)?,
            norms: match c.variant.qk_norm {
                true => Some([norm("q_norm")?, norm("k_norm")?]),
                false => None,
            },
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
        })
    }

    /// Added to `x`.
    fn forward(
        &self,
        x: &B::Tensor,
        norm: &RmsNorm<B>,
        layer: usize,
        rope: &RopeAngles<B::Tensor>,
        step: &mut Step<'_, B>,
    ) -> biplane_backend::Result<B::Tensor> {
        let qkv = self.qkv_proj.project(x, Some(norm))?;
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            norms: self.norms.as_ref(),
            rope,
            scale: self.scale,
        };
        let y = step.attend_projected(layer, qkv, &heads)?;
        self.o_proj.forward_add(&y, x)
    }
}

struct Mlp<B: Backend> {
    gate_up_proj: Joined<B, 2>,
    down_proj: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let gate_up = if c.variant.fused {
            let of = 2 * inner;
            let rows = |part| w.linear_rows("gate_up_proj", hidden, &Rows { part, of });
            [rows(0..inner)?, rows(inner..of)?]
        } else {
            let linear = |name| w.linear_biased(name, hidden, inner, c.mlp_bias);
            [linear("gate_proj")?, linear("up_proj")?]
        };
        Ok(Mlp {
            gate_up_proj: Joined::new(gate_up)?,
            down_proj: w.linear_biased("down_proj", inner, hidden, c.mlp_bias)?,
        })
    }

    /// Added to `x`.
    fn forward(&self, x: &B::Tensor, norm: &RmsNorm<B>) -> biplane_backend::Result<B::Tensor> {
        let y = self.gate_up_proj.forward_gated(x, norm, Gate::Silu)?;
        self.down_proj.forward_add(&y, x)
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
        let x = self
            .self_attn
            .forward(x, &self.input_layernorm, layer, rope, step)?;
        self.mlp.forward(&x, &self.post_attention_layernorm)
    }
}

/// A Llama or one of its variants on a device.
pub struct Llama<B: Backend> {
    embed_tokens: Embedding<B>,
    layers: Vec<Block<B>>,
    norm: RmsNorm<B>,
    lm_head: Linear<B>,
    inv_freqs: Vec<f32>,
    caches: Vec<CacheSpec>,
}

impl<B: Backend> Model<B> for Llama<B> {
    fn caches(&self) -> Vec<CacheSpec> {
        self.caches.clone()
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

impl<B: Backend> Llama<B> {
    /// Brings a Llama's or a variant's weights to the device.
    pub(crate) fn load(c: &Config, w: &Weights<'_, B>) -> Result<Self> {
        let scaling = match w.optional_f32s("rope_freqs.weight")? {
            Some(divisors) => RopeScaling::PerFrequency(divisors),
            None => c.rope.scaling().map_err(|reason| w.config_error(reason))?,
        };
        let inv_freqs = rope_inv_freqs(c.rotary_dim(), c.rope.theta().unwrap_or(1e4), &scaling)?;
        let model = w.scope("model");
        let embed_tokens = model.embedding("embed_tokens", c.vocab_size, c.hidden_size)?;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(c, &model.scope("layers").scope(i)))
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
        let cache = |layer| CacheSpec {
            kv_heads: c.kv_heads(),
            head_dim: c.head_dim(),
            window: c.window(layer),
        };
        Ok(Llama {
            embed_tokens,
            layers,
            norm,
            lm_head,
            inv_freqs,
            caches: (0..c.num_hidden_layers).map(cache).collect(),
        })
    }
}

/// The architecture.
#[derive(Debug)]
pub struct Arch;

impl Architecture for Arch {
    type Config = Config;
    type Model<B: Backend> = Llama<B>;

    fn config(json: &Value) -> Result<Config, String> {
        Config::read(json)
    }

    fn complete_gguf_config(m: &GgufMetadata, json: &mut Map<String, Value>) -> Result<()> {
        json.insert(
            "attention_bias".into(),
            m.has_tensor("blk.0.attn_q.bias").into(),
        );
        json.insert(
            "mlp_bias".into(),
            m.has_tensor("blk.0.ffn_gate.bias").into(),
        );
        Ok(())
    }

    fn gguf_names(c: &Config) -> GgufNames {
        gguf_names(c)
    }

    fn dimensions(c: &Config) -> Dimensions {
        dimensions(c)
    }

    fn load<B: Backend>(c: Config, w: &Weights<'_, B>) -> Result<Llama<B>> {
        Llama::load(&c, w)
    }
}

/// Names of GGUF's `llama`.
pub(crate) fn gguf_names(c: &Config) -> GgufNames {
    let interleaved = |heads| GgufFix::Interleaved { heads };
    GgufNames::decoder()
        .fix(interleaved(c.num_attention_heads), |hf| {
            hf == "self_attn.q_proj"
        })
        .fix(interleaved(c.kv_heads()), |hf| hf == "self_attn.k_proj")
}

/// An architecture whose parts are Llama's.
pub(crate) trait Relative: 'static {
    /// Sets the variant, from keys that Llama does not have.
    fn vary(config: &mut Config, json: &Value) -> Result<(), String>;

    /// As [`Architecture::gguf_names`].
    fn gguf_names(_: &Config) -> GgufNames {
        GgufNames::decoder()
    }
}

impl<R: Relative> Architecture for R {
    type Config = Config;
    type Model<B: Backend> = Llama<B>;

    fn config(json: &Value) -> Result<Config, String> {
        let mut config = Config::read(json)?;
        R::vary(&mut config, json)?;
        Ok(config)
    }

    fn gguf_names(c: &Config) -> GgufNames {
        R::gguf_names(c)
    }

    fn dimensions(c: &Config) -> Dimensions {
        dimensions(c)
    }

    fn load<B: Backend>(c: Config, w: &Weights<'_, B>) -> Result<Llama<B>> {
        Llama::load(&c, w)
    }
}

fn dimensions(c: &Config) -> Dimensions {
    Dimensions {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        layers: c.num_hidden_layers,
        context_length: c.max_position_embeddings.unwrap_or(2048),
    }
}
