//! Names of tensors in GGUF files, in both directions.

/// What a GGUF file's tensor differs by from the Hugging Face checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufFix {
    /// Nothing.
    Same,
    /// The two rotary halves of each head's rows are interleaved (Llama's q and k).
    Interleaved {
        /// Number of heads among the rows.
        heads: usize,
    },
    /// One is added to every element (Gemma's norms).
    PlusOne,
    /// The vectors `NAME.norms.0.weight`, … are the rows of one tensor `NAME.weight` (StableLM's norms
    /// of heads).
    Stacked,
}

/// Where GGUF files keep an architecture's tensors.
#[derive(Clone, Debug)]
pub struct GgufNames {
    pairs: Vec<Pair>,
}

#[derive(Clone, Debug)]
struct Pair {
    /// Without `model.layers.N.` and without `.weight` or `.bias`.
    hf: &'static str,
    gguf: &'static str,
    in_layer: bool,
    fix: GgufFix,
}

const HF_LAYERS: &str = "model.layers.";
const GGUF_LAYERS: &str = "blk.";

impl GgufNames {
    /// What nearly every decoder has: embedding, final norm, head; q, k, v, o; gate, up, down; a norm
    /// before attention and one before the feed-forward part.
    pub fn decoder() -> Self {
        let names = GgufNames { pairs: Vec::new() };
        names
            .whole("model.embed_tokens", "token_embd")
            .whole("model.norm", "output_norm")
            .whole("lm_head", "output")
            .whole("rope_freqs", "rope_freqs")
            .layer("self_attn.q_proj", "attn_q")
            .layer("self_attn.k_proj", "attn_k")
            .layer("self_attn.v_proj", "attn_v")
            .layer("self_attn.o_proj", "attn_output")
            .layer("mlp.gate_proj", "ffn_gate")
            .layer("mlp.up_proj", "ffn_up")
            .layer("mlp.down_proj", "ffn_down")
            .layer("input_layernorm", "attn_norm")
            .layer("post_attention_layernorm", "ffn_norm")
    }

    /// A tensor outside the layers.
    pub fn whole(self, hf: &'static str, gguf: &'static str) -> Self {
        self.with(hf, gguf, false)
    }

    /// A tensor of every layer, its Hugging Face name without `model.layers.N.`; takes the place of
    /// an earlier one of that name.
    pub fn layer(self, hf: &'static str, gguf: &'static str) -> Self {
        self.with(hf, gguf, true)
    }

    fn with(mut self, hf: &'static str, gguf: &'static str, in_layer: bool) -> Self {
        self.pairs.retain(|p| p.hf != hf);
        self.pairs.push(Pair {
            hf,
            gguf,
            in_layer,
            fix: GgufFix::Same,
        });
        self
    }

    /// The tensors whose Hugging Face name `matches` differ by `fix`.
    pub fn fix(mut self, fix: GgufFix, matches: impl Fn(&str) -> bool) -> Self {
        for pair in &mut self.pairs {
            if matches(pair.hf) {
                pair.fix = fix;
            }
        }
        self
    }

    /// The name in a GGUF file of the tensor with this full Hugging Face name.
    pub fn to_gguf(&self, hf: &str) -> Option<(String, GgufFix)> {
        let name = Name::parse(hf, HF_LAYERS)?;
        let pair = self.find(|p| p.hf == name.stem && p.in_layer == name.layer.is_some())?;
        Some((name.with(GGUF_LAYERS, pair.gguf), pair.fix))
    }

    /// The full Hugging Face name of a GGUF file's tensor.
    pub fn from_gguf(&self, gguf: &str) -> Option<(String, GgufFix)> {
        let name = Name::parse(gguf, GGUF_LAYERS)?;
        let pair = self.find(|p| p.gguf == name.stem && p.in_layer == name.layer.is_some())?;
        Some((name.with(HF_LAYERS, pair.hf), pair.fix))
    }

    fn find(&self, matches: impl Fn(&Pair) -> bool) -> Option<&Pair> {
        self.pairs.iter().find(|pair| matches(pair))
    }
}

/// A tensor's name in its parts: `LAYERS` `layer` `.` `stem` `.` `kind`, outside of layers only the
/// last two.
struct Name<'a> {
    layer: Option<&'a str>,
    stem: &'a str,
    kind: &'a str,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str, layers: &str) -> Option<Self> {
        let (stem, kind) = name.rsplit_once('.')?;
        let (layer, stem) = match stem.strip_prefix(layers) {
            Some(rest) => {
                let (layer, stem) = rest.split_once('.')?;
                (Some(layer), stem)
            }
            None => (None, stem),
        };
        Some(Name { layer, stem, kind })
    }

    /// The same layer and kind under another stem.
    fn with(&self, layers: &str, stem: &str) -> String {
        match self.layer {
            Some(layer) => format!("{layers}{layer}.{stem}.{}", self.kind),
            None => format!("{stem}.{}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let names = GgufNames::decoder()
            .layer("post_attention_layernorm", "post_attention_norm")
            .fix(GgufFix::PlusOne, |hf| hf.ends_with("norm"));
        for (hf, gguf, fix) in [
            (
                "model.embed_tokens.weight",
                "token_embd.weight",
                GgufFix::Same,
            ),
            ("model.norm.weight", "output_norm.weight", GgufFix::PlusOne),
            (
                "model.layers.31.self_attn.q_proj.bias",
                "blk.31.attn_q.bias",
                GgufFix::Same,
            ),
            (
                "model.layers.0.post_attention_layernorm.weight",
                "blk.0.post_attention_norm.weight",
                GgufFix::PlusOne,
            ),
        ] {
            assert_eq!(names.to_gguf(hf), Some((gguf.to_owned(), fix)));
            assert_eq!(names.from_gguf(gguf), Some((hf.to_owned(), fix)));
        }
        for unknown in ["", "model", "model.layers.0", "model.layers.0.norm.weight"] {
            assert_eq!(names.to_gguf(unknown), None);
        }
        assert_eq!(names.from_gguf("blk.0.ffn_norm.weight"), None);
    }
}
