//! In-place quantization: matrices are quantized while they are loaded, one at a time.

use std::{cell::RefCell, collections::BTreeSet, fmt, str::FromStr};

use biplane_backend::{AffineSpec, DType, GgmlKind, PackedLayout, PackedMatrix};

use crate::{
    Error, Result,
    requantize::{Form, Quantized, requantize},
};

/// A quantized form to bring weights into: GGML's blocks, or MLX's affine groups (AFQ) of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum IsqType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    AFQ2,
    AFQ3,
    AFQ4,
    AFQ5,
    AFQ6,
    AFQ8,
}

impl IsqType {
    /// Every type.
    pub const ALL: [IsqType; 16] = [
        IsqType::Q4_0,
        IsqType::Q4_1,
        IsqType::Q5_0,
        IsqType::Q5_1,
        IsqType::Q8_0,
        IsqType::Q2K,
        IsqType::Q3K,
        IsqType::Q4K,
        IsqType::Q5K,
        IsqType::Q6K,
        IsqType::AFQ2,
        IsqType::AFQ3,
        IsqType::AFQ4,
        IsqType::AFQ5,
        IsqType::AFQ6,
        IsqType::AFQ8,
    ];

    /// The name: `Q4_0`, `Q4K`, `AFQ4`, …
    pub const fn name(self) -> &'static str {
        match self {
            IsqType::Q4_0 => "Q4_0",
            IsqType::Q4_1 => "Q4_1",
            IsqType::Q5_0 => "Q5_0",
            IsqType::Q5_1 => "Q5_1",
            IsqType::Q8_0 => "Q8_0",
            IsqType::Q2K => "Q2K",
            IsqType::Q3K => "Q3K",
            IsqType::Q4K => "Q4K",
            IsqType::Q5K => "Q5K",
            IsqType::Q6K => "Q6K",
            IsqType::AFQ2 => "AFQ2",
            IsqType::AFQ3 => "AFQ3",
            IsqType::AFQ4 => "AFQ4",
            IsqType::AFQ5 => "AFQ5",
            IsqType::AFQ6 => "AFQ6",
            IsqType::AFQ8 => "AFQ8",
        }
    }

    /// Width of a code.
    pub const fn bits(self) -> u8 {
        match self {
            IsqType::Q2K | IsqType::AFQ2 => 2,
            IsqType::Q3K | IsqType::AFQ3 => 3,
            IsqType::Q4_0 | IsqType::Q4_1 | IsqType::Q4K | IsqType::AFQ4 => 4,
            IsqType::Q5_0 | IsqType::Q5_1 | IsqType::Q5K | IsqType::AFQ5 => 5,
            IsqType::Q6K | IsqType::AFQ6 => 6,
            IsqType::Q8_0 | IsqType::AFQ8 => 8,
        }
    }

    /// GGML's block format, or `None` for MLX's groups.
    pub const fn ggml(self) -> Option<GgmlKind> {
        Some(match self {
            IsqType::Q4_0 => GgmlKind::Q4_0,
            IsqType::Q4_1 => GgmlKind::Q4_1,
            IsqType::Q5_0 => GgmlKind::Q5_0,
            IsqType::Q5_1 => GgmlKind::Q5_1,
            IsqType::Q8_0 => GgmlKind::Q8_0,
            IsqType::Q2K => GgmlKind::Q2K,
            IsqType::Q3K => GgmlKind::Q3K,
            IsqType::Q4K => GgmlKind::Q4K,
            IsqType::Q5K => GgmlKind::Q5K,
            IsqType::Q6K => GgmlKind::Q6K,
            _ => return None,
        })
    }

    /// The type that embeddings and the head get: they bear coarse codes worse than the layers.
    pub const fn for_embeddings(self) -> IsqType {
        match (self.bits(), self.ggml()) {
            (6.., _) => self,
            (_, Some(_)) => IsqType::Q6K,
            (_, None) => IsqType::AFQ6,
        }
    }

    /// The form for rows of `cols`: where they are no whole number of blocks, the next finer type
    /// that they are (llama.cpp's choice); `None` where there is none.
    pub fn form(self, cols: usize, dense: DType) -> Option<Form> {
        let Some(kind) = self.ggml() else {
            let group_size = [64, 32].into_iter().find(|g| cols.is_multiple_of(*g))?;
            let spec = AffineSpec {
                bits: self.bits(),
                group_size,
            };
            return Some(Form::Affine {
                spec,
                scale_dtype: match dense {
                    DType::BF16 => DType::BF16,
                    _ => DType::F16,
                },
            });
        };
        let finer = match kind {
            GgmlKind::Q2K | GgmlKind::Q3K => GgmlKind::Q4_0,
            GgmlKind::Q4K => GgmlKind::Q5_0,
            GgmlKind::Q5K => GgmlKind::Q5_1,
            GgmlKind::Q6K => GgmlKind::Q8_0,
            simple => simple,
        };
        [kind, finer]
            .into_iter()
            .find(|kind| cols.is_multiple_of(kind.block_len()))
            .map(Form::Ggml)
    }
}

impl fmt::Display for IsqType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IsqType {
    type Err = String;

    /// Any case, with or without the underscore: `q4k`, `Q4_K`, `afq4`.
    fn from_str(s: &str) -> Result<Self, String> {
        let plain = |s: &str| s.replace('_', "").to_ascii_uppercase();
        Self::ALL
            .into_iter()
            .find(|t| plain(t.name()) == plain(s))
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|t| t.name()).collect();
                format!(
                    "{s:?} is no quantization type; there are {}",
                    names.join(", ")
                )
            })
    }
}

/// What to quantize, and into which form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isq {
    /// The type of all matrices, but for embeddings and head ([`IsqType::for_embeddings`]); `None`
    /// leaves them as they are.
    pub default: Option<IsqType>,
    /// Exceptions, the last that matches counts.
    pub overrides: Vec<IsqOverride>,
}

/// The type of some matrices: `PATTERN=TYPE`, or `PATTERN=none` to keep them as they are stored.
///
/// A pattern matches whole parts of a Hugging Face name, wherever they stand in it; `*` stands for
/// anything: `lm_head`, `down_proj`, `layers.0`, `layers.*.mlp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsqOverride {
    /// The pattern.
    pub pattern: String,
    /// The type; `None` keeps a matrix as it is stored.
    pub isq: Option<IsqType>,
}

impl FromStr for IsqOverride {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (pattern, name) = s
            .split_once('=')
            .ok_or_else(|| format!("{s:?}: expected PATTERN=TYPE, as lm_head=Q8_0"))?;
        if pattern.is_empty() {
            return Err(format!("{s:?}: the pattern is empty"));
        }
        Ok(IsqOverride {
            pattern: pattern.to_owned(),
            isq: match name {
                "none" => None,
                name => Some(name.parse()?),
            },
        })
    }
}

impl IsqOverride {
    /// Whether the pattern matches the name of a matrix (without `.weight`).
    pub fn matches(&self, name: &str) -> bool {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(i, _)| i + 1));
        starts.into_iter().any(|start| {
            let rest = &name[start..];
            let ends = rest.match_indices('.').map(|(i, _)| i);
            ends.chain([rest.len()])
                .any(|end| glob(&self.pattern, &rest[..end]))
        })
    }
}

/// Whether `pattern`, in which `*` stands for anything, is all of `text`.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            let ends = text.char_indices().map(|(i, _)| i).chain([text.len()]);
            ends.into_iter().any(|i| glob(rest, &text[i..]))
        }),
    }
}

/// [`Isq`] at work: remembers which overrides were of use.
#[derive(Debug, Default)]
pub(crate) struct IsqPlan {
    isq: Isq,
    matched: RefCell<BTreeSet<usize>>,
}

/// What happens to one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Keep,
    To(IsqType),
}

impl IsqPlan {
    pub fn new(isq: Isq) -> Self {
        IsqPlan {
            isq,
            matched: RefCell::default(),
        }
    }

    /// What happens to the matrix `base` that is stored as `packed`.
    pub fn decide(&self, base: &str, packed: &PackedMatrix<'_>) -> Decision {
        let matching = self.isq.overrides.iter().enumerate();
        let mut chosen = None;
        for (i, exception) in matching.filter(|(_, o)| o.matches(base)) {
            self.matched.borrow_mut().insert(i);
            chosen = Some(exception.isq);
        }
        let to = match (chosen, self.isq.default) {
            (Some(explicit), _) => explicit,
            (None, None) => None,
            (None, Some(default)) => {
                let last = base.rsplit('.').next().unwrap_or(base);
                let isq = match last {
                    "embed_tokens" | "lm_head" => default.for_embeddings(),
                    _ => default,
                };
                // Finer codes would not bring back what a coarse form has lost.
                let stored = packed.spec().map_or(16, |spec| spec.bits);
                (isq.bits() < stored).then_some(isq)
            }
        };
        to.map_or(Decision::Keep, Decision::To)
    }

    /// The matrix in its new form, or `None` where it stays as it is.
    pub fn quantize(&self, base: &str, packed: &PackedMatrix<'_>) -> Result<Option<Quantized>> {
        let Decision::To(isq) = self.decide(base, packed) else {
            return Ok(None);
        };
        let dense = match packed.layout {
            PackedLayout::Dense { dtype, .. } => dtype,
            PackedLayout::Affine { scale_dtype, .. } => scale_dtype,
            PackedLayout::Ggml { .. } => DType::F16,
        };
        let Some(form) = isq.form(packed.shape[1], dense) else {
            tracing::warn!(
                "{base}: rows of {} are no whole number of groups; it stays as it is",
                packed.shape[1]
            );
            return Ok(None);
        };
        if let (Some(wanted), Form::Ggml(kind)) = (isq.ggml(), form)
            && wanted != kind
        {
            tracing::info!(
                "{base}: rows of {} are no multiple of {}; {} instead of {}",
                packed.shape[1],
                wanted.block_len(),
                kind.name(),
                wanted.name()
            );
        }
        requantize(packed, form).map(Some)
    }

    /// Errors for an override that matched nothing.
    pub fn finish(&self) -> Result<()> {
        let matched = self.matched.borrow();
        match (0..self.isq.overrides.len()).find(|i| !matched.contains(i)) {
            None => Ok(()),
            Some(i) => Err(Error::Request(format!(
                "the quantization override {:?} matches no weight of this model; names are as model.layers.0.self_attn.q_proj",
                self.isq.overrides[i].pattern
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_parts() {
        let o = |pattern: &str| IsqOverride {
            pattern: pattern.into(),
            isq: None,
        };
        let name = "model.layers.10.mlp.down_proj";
        for yes in [
            "down_proj",
            "layers.10",
            "layers.*.mlp",
            "mlp",
            "model.*",
            "*.down_proj",
            "layers.1*",
            name,
        ] {
            assert!(o(yes).matches(name), "{yes}");
        }
        for no in ["down", "layers.1", "proj", "lm_head", "", "mlp.*.x"] {
            assert!(!o(no).matches(name), "{no}");
        }
    }

    #[test]
    fn types_and_overrides_parse() {
        for t in IsqType::ALL {
            assert_eq!(t.name().parse(), Ok(t));
            assert_eq!(t.name().to_lowercase().parse(), Ok(t));
        }
        assert_eq!("Q4_K".parse(), Ok(IsqType::Q4K));
        assert!("Q9".parse::<IsqType>().unwrap_err().contains("AFQ4"));
        let o: IsqOverride = "lm_head=Q8_0".parse().unwrap();
        assert_eq!(
            (o.pattern.as_str(), o.isq),
            ("lm_head", Some(IsqType::Q8_0))
        );
        assert_eq!("x=none".parse::<IsqOverride>().unwrap().isq, None);
        assert!("lm_head".parse::<IsqOverride>().is_err());
        assert!("=Q8_0".parse::<IsqOverride>().is_err());
    }

    #[test]
    fn rows_that_do_not_divide_get_a_finer_type() {
        let form = |t: IsqType, cols| t.form(cols, DType::BF16);
        assert_eq!(form(IsqType::Q4K, 256), Some(Form::Ggml(GgmlKind::Q4K)));
        assert_eq!(form(IsqType::Q4K, 576), Some(Form::Ggml(GgmlKind::Q5_0)));
        assert_eq!(form(IsqType::Q8_0, 48), None);
        let Some(Form::Affine { spec, scale_dtype }) = form(IsqType::AFQ4, 96) else {
            panic!("expected groups");
        };
        assert_eq!((spec.bits, spec.group_size), (4, 32));
        assert_eq!(scale_dtype, DType::BF16);
    }
}
