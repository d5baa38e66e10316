//! Which tensors are written, in which form.

use std::borrow::Cow;

use biplane_backend::{DType, PackedLayout};

use super::{OutputFormat, exact, form::form};
use crate::{
    Error, Result,
    checkpoint::{RawKind, write::TensorHeader},
    gguf_names::{GgufFix, GgufNames},
    isq::IsqPlan,
    model::Architecture,
    registry::Described,
    requantize::{Form, requantize},
    source::{Source, interleave},
};

/// All tensors to write, in the source's order.
pub(super) struct Plan {
    pub items: Vec<Item>,
}

/// One tensor, or the parts of a quantized matrix.
pub(super) struct Item {
    /// Its name in the new file; of a matrix without `.weight`.
    pub name: String,
    /// Names in the source file.
    pub sources: Vec<String>,
    what: What,
}

enum What {
    /// The matrix with this Hugging Face name.
    Matrix {
        base: String,
        shape: [usize; 2],
        form: Written,
        /// Heads whose rows are interleaved in the new file.
        heads: Option<usize>,
    },
    /// A tensor whose bytes are copied.
    Copy { shape: Vec<usize>, dtype: DType },
    /// The values of vectors with these Hugging Face names, joined.
    Values {
        names: Vec<String>,
        shape: Vec<usize>,
        fix: GgufFix,
    },
    /// Part of a tensor of stacked vectors.
    Part { of: String, row: usize, len: usize },
}

/// The form of a written matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Dense(DType),
    /// The source's values in another layout.
    Exact(Form),
    New(Form),
}

impl Plan {
    pub fn of<A: Architecture>(
        d: &Described<'_, A>,
        output: OutputFormat,
        isq: &IsqPlan,
        tied: bool,
    ) -> Result<Self> {
        let source = &d.source;
        let names = A::gguf_names(&d.config);
        let mut items = Vec::new();
        let mut vision = 0;
        for file_name in source.checkpoint.names() {
            if source.is_vision(file_name) {
                vision += 1;
                continue;
            }
            let part = [".scales", ".biases"]
                .iter()
                .find_map(|s| file_name.strip_suffix(s));
            if let Some(base) = part
                && source
                    .checkpoint
                    .tensor(&format!("{base}.weight"))?
                    .is_some()
            {
                continue;
            }
            let Some((hf, fix)) = source.hf_name(file_name) else {
                return Err(unknown(source, file_name));
            };
            let skipped = hf.ends_with("rotary_emb.inv_freq")
                || hf == "rope_freqs.weight" && output == OutputFormat::Mlx
                || tied && hf.starts_with("lm_head.");
            if skipped {
                continue;
            }
            items.extend(item(source, file_name, &hf, fix, &names, output, isq)?);
        }
        if vision > 0 {
            tracing::warn!(
                "{vision} tensors of the vision part are left out: what is written is the language model"
            );
        }
        Ok(Plan { items })
    }
}

fn unknown(source: &Source<'_>, name: &str) -> Error {
    Error::UnusedTensors {
        path: source.checkpoint.path().to_owned(),
        count: 1,
        first: name.to_owned(),
    }
}

fn item(
    source: &Source<'_>,
    file_name: &str,
    hf: &str,
    fix: GgufFix,
    names: &GgufNames,
    output: OutputFormat,
    isq: &IsqPlan,
) -> Result<Vec<Item>> {
    let Some(raw) = source.checkpoint.tensor(file_name)? else {
        return Ok(Vec::new());
    };
    let from_gguf = source.is_gguf();
    let one = |name: String, what| {
        vec![Item {
            name,
            sources: vec![file_name.to_owned()],
            what,
        }]
    };
    if let Some(base) = hf.strip_suffix(".weight")
        && raw.shape.len() == 2
        && fix != GgufFix::Stacked
    {
        let shape = source.matrix_shape(base)?;
        let stored = source.matrix(base, shape)?;
        let form = form(source, base, &stored.packed(), output, isq)?;
        let (name, heads) = match output {
            OutputFormat::Mlx if from_gguf => (base.to_owned(), None),
            OutputFormat::Mlx => (file_name.trim_end_matches(".weight").to_owned(), None),
            OutputFormat::Gguf => {
                let (name, fix) = names
                    .to_gguf(hf)
                    .ok_or_else(|| unknown(source, file_name))?;
                let heads = match fix {
                    GgufFix::Interleaved { heads } => Some(heads),
                    _ => None,
                };
                (name.trim_end_matches(".weight").to_owned(), heads)
            }
        };
        let mut items = one(
            name,
            What::Matrix {
                base: base.to_owned(),
                shape,
                form,
                heads,
            },
        );
        for part in ["scales", "biases"] {
            if let Some((raw, _)) = source.find(&format!("{base}.{part}"))? {
                items[0].sources.push(raw.name.to_owned());
            }
        }
        return Ok(items);
    }
    let RawKind::Dense(dtype) = raw.kind else {
        return Err(source.unfit(&raw, "f32, f16 or bf16 elements"));
    };
    let copy = |name: String| {
        one(
            name,
            What::Copy {
                shape: raw.shape.clone(),
                dtype,
            },
        )
    };
    match (output, from_gguf) {
        (OutputFormat::Mlx, false) | (OutputFormat::Gguf, true) => Ok(copy(file_name.to_owned())),
        (OutputFormat::Mlx, true) if fix == GgufFix::Stacked => {
            let &[heads, len] = raw.shape.as_slice() else {
                return Err(source.unfit(&raw, "[heads, head_dim]"));
            };
            let base = hf.trim_end_matches(".weight");
            let part = |row| Item {
                name: format!("{base}.norms.{row}.weight"),
                sources: Vec::new(),
                what: What::Part {
                    of: hf.to_owned(),
                    row,
                    len,
                },
            };
            Ok((0..heads).map(part).collect())
        }
        (OutputFormat::Mlx, true) => Ok(one(
            hf.to_owned(),
            What::Values {
                names: vec![hf.to_owned()],
                shape: raw.shape.clone(),
                fix: GgufFix::Same,
            },
        )),
        (OutputFormat::Gguf, false) => {
            if let Some((base, rest)) = hf.split_once(".norms.") {
                return stacked(source, file_name, base, rest, names);
            }
            let (name, fix) = names
                .to_gguf(hf)
                .ok_or_else(|| unknown(source, file_name))?;
            Ok(one(
                name,
                What::Values {
                    names: vec![hf.to_owned()],
                    shape: raw.shape.clone(),
                    fix,
                },
            ))
        }
    }
}

/// The norms of all heads as one tensor, in the place of the first.
fn stacked(
    source: &Source<'_>,
    file_name: &str,
    base: &str,
    rest: &str,
    names: &GgufNames,
) -> Result<Vec<Item>> {
    if rest != "0.weight" {
        return Ok(Vec::new());
    }
    let whole = names.to_gguf(&format!("{base}.weight"));
    let Some((name, GgufFix::Stacked)) = whole else {
        return Err(unknown(source, file_name));
    };
    let mut parts = Vec::new();
    loop {
        let part = format!("{base}.norms.{}.weight", parts.len());
        if !source.has(&part)? {
            break;
        }
        parts.push(part);
    }
    let len = source
        .f32s(&parts[0])?
        .map_or(0, |(_, values)| values.len());
    Ok(vec![Item {
        name,
        sources: Vec::new(),
        what: What::Values {
            shape: vec![parts.len(), len],
            names: parts,
            fix: GgufFix::Stacked,
        },
    }])
}

impl Item {
    pub fn headers(&self) -> Vec<TensorHeader> {
        let header = |name: String, shape: &[usize], kind| TensorHeader {
            name,
            shape: shape.to_vec(),
            kind,
        };
        match &self.what {
            What::Matrix { shape, form, .. } => {
                let weight = format!("{}.weight", self.name);
                match form {
                    Written::Dense(dtype) => vec![header(weight, shape, RawKind::Dense(*dtype))],
                    Written::Exact(Form::Ggml(kind)) | Written::New(Form::Ggml(kind)) => {
                        vec![header(weight, shape, RawKind::Ggml(*kind))]
                    }
                    Written::Exact(Form::Affine { spec, scale_dtype })
                    | Written::New(Form::Affine { spec, scale_dtype }) => {
                        let [out, input] = *shape;
                        let words = [out, input * usize::from(spec.bits) / 32];
                        let groups = [out, input / spec.group_size];
                        let part = |name| {
                            let name = format!("{}.{name}", self.name);
                            header(name, &groups, RawKind::Dense(*scale_dtype))
                        };
                        vec![
                            header(weight, &words, RawKind::Dense(DType::U32)),
                            part("scales"),
                            part("biases"),
                        ]
                    }
                }
            }
            What::Copy { shape, dtype } => {
                vec![header(self.name.clone(), shape, RawKind::Dense(*dtype))]
            }
            What::Values { shape, .. } => {
                vec![header(self.name.clone(), shape, RawKind::Dense(DType::F32))]
            }
            What::Part { len, .. } => {
                vec![header(
                    self.name.clone(),
                    &[*len],
                    RawKind::Dense(DType::F32),
                )]
            }
        }
    }

    /// Of a matrix, the affine groups it is written in.
    pub fn affine(&self) -> Option<Option<biplane_backend::AffineSpec>> {
        match &self.what {
            What::Matrix { form, .. } => Some(match form {
                Written::Exact(Form::Affine { spec, .. })
                | Written::New(Form::Affine { spec, .. }) => Some(*spec),
                _ => None,
            }),
            _ => None,
        }
    }

    pub fn parameters(&self) -> usize {
        match &self.what {
            What::Matrix { shape, .. } => shape[0] * shape[1],
            What::Copy { shape, .. } | What::Values { shape, .. } => shape.iter().product(),
            What::Part { len, .. } => *len,
        }
    }

    pub fn is_requantized(&self) -> bool {
        matches!(
            self.what,
            What::Matrix {
                form: Written::New(_),
                ..
            }
        )
    }

    /// The bytes of each of [`Self::headers`].
    pub fn bytes<'a>(&self, source: &Source<'a>) -> Result<Vec<Cow<'a, [u8]>>> {
        match &self.what {
            What::Matrix {
                base,
                shape,
                form,
                heads,
            } => {
                let stored = source.matrix(base, *shape)?;
                let packed = stored.packed();
                let parts = match form {
                    Written::Dense(_) => match packed.layout {
                        PackedLayout::Dense { bytes, .. } => vec![bytes.to_vec()],
                        _ => Vec::new(),
                    },
                    Written::New(form) => requantize(&packed, *form)?.into_parts(),
                    Written::Exact(form) => match (packed.layout, form) {
                        (PackedLayout::Ggml { blocks, .. }, Form::Ggml(_)) => vec![blocks.to_vec()],
                        (
                            PackedLayout::Affine {
                                codes,
                                scales,
                                biases,
                                ..
                            },
                            Form::Affine { .. },
                        ) => vec![codes.to_vec(), scales.to_vec(), biases.to_vec()],
                        (_, Form::Affine { .. }) => exact::to_affine(&packed, *form)?
                            .ok_or_else(|| unfit_scale(source, base))?
                            .into_parts(),
                        (_, Form::Ggml(kind)) => exact::to_ggml(&packed, *kind)?
                            .ok_or_else(|| unfit_scale(source, base))?
                            .into_parts(),
                    },
                };
                let parts = parts.into_iter().map(|part| match heads {
                    None => Ok(part),
                    Some(heads) => interleave(&part, shape[0], *heads).ok_or_else(|| {
                        source.config_error(format!(
                            "{base}: {} rows do not divide by {heads} heads",
                            shape[0]
                        ))
                    }),
                });
                parts.map(|part| Ok(Cow::Owned(part?))).collect()
            }
            What::Copy { .. } => {
                let name = &self.sources[0];
                match source.checkpoint.tensor(name)? {
                    Some(raw) => Ok(vec![Cow::Borrowed(raw.bytes)]),
                    None => Err(source.missing(name)),
                }
            }
            What::Values { names, fix, shape } => {
                let mut values = Vec::new();
                for name in names {
                    let (_, own) = source.f32s(name)?.ok_or_else(|| source.missing(name))?;
                    values.extend(own);
                }
                if *fix == GgufFix::PlusOne {
                    values.iter_mut().for_each(|v| *v += 1.0);
                }
                let mut bytes: Vec<u8> = bytemuck::cast_slice(&values).to_vec();
                if let GgufFix::Interleaved { heads } = fix {
                    bytes = interleave(&bytes, shape[0], *heads).ok_or_else(|| {
                        source.config_error(format!(
                            "{}: rows do not divide by {heads} heads",
                            self.name
                        ))
                    })?;
                }
                Ok(vec![Cow::Owned(bytes)])
            }
            What::Part { of, row, len } => {
                let (_, values) = source.f32s(of)?.ok_or_else(|| source.missing(of))?;
                let part = values
                    .get(row * len..(row + 1) * len)
                    .ok_or_else(|| source.missing(of))?;
                Ok(vec![Cow::Owned(bytemuck::cast_slice(part).to_vec())])
            }
        }
    }
}

fn unfit_scale(source: &Source<'_>, base: &str) -> Error {
    Error::Write {
        path: source.checkpoint.path().to_owned(),
        reason: format!(
            "{base}: its scales do not fit the other format's exactly; quantize it anew, with --isq-override '*=TYPE'"
        ),
    }
}
