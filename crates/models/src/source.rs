//! A checkpoint under Hugging Face's names, whatever its format: what loading and converting share.

use std::{borrow::Cow, cell::RefCell, collections::HashSet};

use biplane_backend::{AffineSpec, DType, PackedLayout, PackedMatrix};

use crate::{
    Error, Result,
    checkpoint::{Checkpoint, RawKind, RawTensor},
    gguf_names::{GgufFix, GgufNames},
    quantization::Quantization,
    stored::{Stored, StoredLayout},
};

/// How the checkpoint spells the names that a model asks for.
#[derive(Debug)]
pub(crate) enum Naming {
    HuggingFace(Wrapper),
    Gguf(GgufNames),
}

/// What multimodal checkpoints put around the names of their language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrapper {
    /// Nothing: a text model.
    None,
    /// `language_model.model.…`
    Outside,
    /// `model.language_model.…`, as transformers 5 writes; the head stays `lm_head`.
    Inside,
}

impl Wrapper {
    fn of(checkpoint: &dyn Checkpoint) -> Self {
        let names = checkpoint.names();
        let any = |prefix: &str| names.iter().any(|n| n.starts_with(prefix));
        if any("language_model.model.") {
            Wrapper::Outside
        } else if any("model.language_model.") {
            Wrapper::Inside
        } else {
            Wrapper::None
        }
    }

    fn wrap<'n>(self, name: &'n str) -> Cow<'n, str> {
        match (self, name.strip_prefix("model.")) {
            (Wrapper::None, _) | (Wrapper::Inside, None) => name.into(),
            (Wrapper::Outside, _) => format!("language_model.{name}").into(),
            (Wrapper::Inside, Some(rest)) => format!("model.language_model.{rest}").into(),
        }
    }

    fn unwrap(self, name: &str) -> Option<Cow<'_, str>> {
        match self {
            Wrapper::None => Some(name.into()),
            Wrapper::Outside => name.strip_prefix("language_model.").map(Cow::from),
            Wrapper::Inside => match name.strip_prefix("model.") {
                Some(rest) => rest
                    .strip_prefix("language_model.")
                    .map(|rest| format!("model.{rest}").into()),
                None => Some(name.into()),
            },
        }
    }
}

/// A checkpoint, its names, and what has been read of it.
pub(crate) struct Source<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    naming: Naming,
    quantization: Quantization,
    used: RefCell<HashSet<String>>,
}

impl<'a> Source<'a> {
    pub fn hugging_face(checkpoint: &'a dyn Checkpoint, quantization: Quantization) -> Self {
        let naming = Naming::HuggingFace(Wrapper::of(checkpoint));
        Self::new(checkpoint, naming, quantization)
    }

    pub fn gguf(checkpoint: &'a dyn Checkpoint, names: GgufNames) -> Self {
        Self::new(checkpoint, Naming::Gguf(names), Quantization::default())
    }

    fn new(checkpoint: &'a dyn Checkpoint, naming: Naming, quantization: Quantization) -> Self {
        Source {
            checkpoint,
            naming,
            quantization,
            used: RefCell::default(),
        }
    }

    /// The name in the file and how the tensor differs there, or `None` where the format never holds
    /// it.
    fn locate(&self, name: &str) -> Option<(String, GgufFix)> {
        match &self.naming {
            Naming::HuggingFace(wrapper) => Some((wrapper.wrap(name).into_owned(), GgufFix::Same)),
            Naming::Gguf(names) => names.to_gguf(name),
        }
    }

    /// The Hugging Face name of a tensor of the file, and how it differs; `None` for one that belongs
    /// to no language model, or to none of this architecture.
    pub fn hf_name(&self, name: &str) -> Option<(String, GgufFix)> {
        match &self.naming {
            Naming::HuggingFace(wrapper) => {
                Some((wrapper.unwrap(name)?.into_owned(), GgufFix::Same))
            }
            Naming::Gguf(names) => names.from_gguf(name),
        }
    }

    /// The tensor of a Hugging Face name as it lies in the file.
    pub fn find(&self, name: &str) -> Result<Option<(RawTensor<'a>, GgufFix)>> {
        let Some((name, fix)) = self.locate(name) else {
            return Ok(None);
        };
        Ok(self.raw(&name)?.map(|raw| (raw, fix)))
    }

    pub fn has(&self, name: &str) -> Result<bool> {
        match self.locate(name) {
            Some((name, _)) => Ok(self.checkpoint.tensor(&name)?.is_some()),
            None => Ok(false),
        }
    }

    fn raw(&self, name: &str) -> Result<Option<RawTensor<'a>>> {
        let raw = self.checkpoint.tensor(name)?;
        if raw.is_some() {
            self.used.borrow_mut().insert(name.to_owned());
        }
        Ok(raw)
    }

    pub fn missing(&self, name: &str) -> Error {
        Error::MissingTensor {
            path: self.checkpoint.path().to_owned(),
            name: self
                .locate(name)
                .map_or_else(|| name.to_owned(), |(name, _)| name),
        }
    }

    pub fn unfit(&self, raw: &RawTensor<'_>, expected: impl Into<String>) -> Error {
        let kind = match raw.kind {
            RawKind::Dense(dtype) => dtype.name(),
            RawKind::Ggml(kind) => kind.name(),
        };
        Error::Tensor {
            path: self.checkpoint.path().to_owned(),
            name: raw.name.to_owned(),
            expected: expected.into(),
            got: format!("{kind} {:?}", raw.shape),
        }
    }

    pub fn config_error(&self, reason: impl Into<String>) -> Error {
        Error::Config {
            path: self.checkpoint.path().to_owned(),
            reason: reason.into(),
        }
    }

    /// The matrix `base.weight` of the given `[out, in]`.
    pub fn matrix(&self, base: &str, shape: [usize; 2]) -> Result<Stored<'a>> {
        let weight = format!("{base}.weight");
        let Some((raw, fix)) = self.find(&weight)? else {
            return Err(self.missing(&weight));
        };
        if let Some(affine) = self.affine(base, &raw, shape)? {
            return Ok(affine);
        }
        if raw.shape != shape {
            return Err(self.unfit(&raw, format!("{shape:?}")));
        }
        let bytes = self.undo(fix, &raw)?;
        let layout = match raw.kind {
            RawKind::Dense(dtype) if dtype.is_float() => StoredLayout::Dense { dtype, bytes },
            RawKind::Ggml(kind) => StoredLayout::Ggml {
                kind,
                blocks: bytes,
            },
            RawKind::Dense(_) => {
                return Err(self.unfit(
                    &raw,
                    format!("f32, f16 or bf16 {shape:?}, or packed codes with {base}.scales"),
                ));
            }
        };
        Ok(Stored {
            name: Cow::Borrowed(raw.name),
            shape,
            layout,
        })
    }

    /// MLX's affine form of a matrix, if the checkpoint has scales for it.
    fn affine(
        &self,
        base: &str,
        raw: &RawTensor<'a>,
        shape: [usize; 2],
    ) -> Result<Option<Stored<'a>>> {
        if matches!(self.naming, Naming::Gguf(_)) {
            return Ok(None);
        }
        let Some((scales, _)) = self.find(&format!("{base}.scales"))? else {
            return Ok(None);
        };
        let biases_name = format!("{base}.biases");
        let Some((biases, _)) = self.find(&biases_name)? else {
            return Err(self.missing(&biases_name));
        };
        let [out, input] = shape;
        let (RawKind::Dense(DType::U32), RawKind::Dense(scale_dtype)) = (raw.kind, scales.kind)
        else {
            return Err(self.unfit(raw, "u32 words of packed codes"));
        };
        let spec = self.affine_spec(base)?;
        let words = input * usize::from(spec.bits) / 32;
        if raw.shape != [out, words] {
            let expected = format!("u32 {:?} for {} bits", [out, words], spec.bits);
            return Err(self.unfit(raw, expected));
        }
        let groups = [out, input / spec.group_size.max(1)];
        for part in [&scales, &biases] {
            if part.shape != groups || part.kind != scales.kind {
                let size = spec.group_size;
                let expected = format!("{scale_dtype} {groups:?} for groups of {size}");
                return Err(self.unfit(part, expected));
            }
        }
        Ok(Some(Stored {
            name: Cow::Borrowed(raw.name),
            shape,
            layout: StoredLayout::Affine {
                codes: raw.bytes,
                scales: scales.bytes,
                biases: biases.bytes,
                scale_dtype,
                spec,
            },
        }))
    }

    fn affine_spec(&self, base: &str) -> Result<AffineSpec> {
        self.quantization.layer(base).ok_or_else(|| {
            self.config_error(format!(
                "{base} is quantized, but `quantization` does not say with which bits and group size"
            ))
        })
    }

    /// `[out, in]` of the matrix `base.weight`, from the file alone.
    pub fn matrix_shape(&self, base: &str) -> Result<[usize; 2]> {
        let weight = format!("{base}.weight");
        let Some((raw, _)) = self.find(&weight)? else {
            return Err(self.missing(&weight));
        };
        let &[out, width] = raw.shape.as_slice() else {
            return Err(self.unfit(&raw, "a matrix"));
        };
        match raw.kind {
            RawKind::Dense(DType::U32) => {
                let bits = usize::from(self.affine_spec(base)?.bits);
                Ok([out, width * 32 / bits])
            }
            _ => Ok([out, width]),
        }
    }

    /// The values of the vector `name` in f32, in Hugging Face's terms.
    pub fn f32s(&self, name: &str) -> Result<Option<(RawTensor<'a>, Vec<f32>)>> {
        let Some((raw, fix)) = self.find(name)? else {
            return Ok(None);
        };
        let bytes = match fix {
            GgufFix::Interleaved { .. } => self.undo(fix, &raw)?,
            _ => Cow::Borrowed(raw.bytes),
        };
        let RawKind::Dense(dtype) = raw.kind else {
            return Err(self.unfit(&raw, "f32, f16 or bf16 elements"));
        };
        if !dtype.is_float() {
            return Err(self.unfit(&raw, "f32, f16 or bf16 elements"));
        }
        let len = raw.shape.iter().product();
        let mut values = vec![0.0; len];
        let row = PackedMatrix {
            name: raw.name,
            shape: [1, len],
            layout: PackedLayout::Dense {
                dtype,
                bytes: &bytes,
            },
        };
        biplane_backend::repack::dequantize_rows(&row, 0..1, &mut values)?;
        if fix == GgufFix::PlusOne {
            values.iter_mut().for_each(|v| *v -= 1.0);
        }
        Ok(Some((raw, values)))
    }

    /// A matrix's or vector's bytes in Hugging Face's order.
    pub fn undo(&self, fix: GgufFix, raw: &RawTensor<'a>) -> Result<Cow<'a, [u8]>> {
        let rows = raw.shape.first().copied().unwrap_or(0);
        undo(fix, raw.bytes, rows)
            .ok_or_else(|| self.unfit(raw, "rows that divide by the number of heads"))
    }

    /// Errors when the checkpoint holds tensors that nobody read and `known_unused` does not know.
    pub fn finish(&self, known_unused: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.used.borrow();
        let names = self.checkpoint.names();
        let unused: Vec<&str> = names
            .into_iter()
            .filter(|name| !used.contains(*name))
            .filter(|name| self.hf_name(name).is_none_or(|(hf, _)| !known_unused(&hf)))
            .filter(|name| !self.is_vision(name))
            .collect();
        if unused.is_empty() {
            return Ok(());
        }
        Err(Error::UnusedTensors {
            path: self.checkpoint.path().to_owned(),
            count: unused.len(),
            first: unused[..unused.len().min(3)].join(", "),
        })
    }

    /// Whether the tensors lie in a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.naming, Naming::Gguf(_))
    }

    /// Whether a tensor belongs to a multimodal checkpoint's other half.
    pub fn is_vision(&self, name: &str) -> bool {
        let wrapped = matches!(&self.naming, Naming::HuggingFace(w) if *w != Wrapper::None);
        let name = name.strip_prefix("model.").unwrap_or(name);
        wrapped && (name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector."))
    }
}

/// Puts `rows` interleaved rows in order; `None` when they do not divide as the fix says.
fn undo(fix: GgufFix, bytes: &[u8], rows: usize) -> Option<Cow<'_, [u8]>> {
    match fix {
        GgufFix::Interleaved { heads } => {
            permute(bytes, rows, heads, |i, half| 2 * (i % half) + i / half).map(Cow::Owned)
        }
        _ => Some(Cow::Borrowed(bytes)),
    }
}

/// Interleaves rows as GGUF's converters do: undone by [`undo`].
pub(crate) fn interleave(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    permute(bytes, rows, heads, |i, half| i % 2 * half + i / 2)
}

/// Puts row `from(i, half)` of each head at `i`; `half` is half of a head's rows.
fn permute(
    bytes: &[u8],
    rows: usize,
    heads: usize,
    from: impl Fn(usize, usize) -> usize,
) -> Option<Vec<u8>> {
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) || bytes.len() < rows {
        return None;
    }
    let row = bytes.len() / rows;
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(2 * half * row) {
        for i in 0..2 * half {
            let at = from(i, half) * row;
            out.extend_from_slice(&head[at..at + row]);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_become_halves_again() {
        let rows = [0, 2, 1, 3, 4, 6, 5, 7];
        let fix = GgufFix::Interleaved { heads: 2 };
        let ordered = undo(fix, &rows, 8).unwrap();
        assert_eq!(&*ordered, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(interleave(&ordered, 8, 2).unwrap(), rows);
        assert!(undo(GgufFix::Interleaved { heads: 3 }, &rows, 8).is_none());
        assert!(undo(GgufFix::Interleaved { heads: 0 }, &rows, 8).is_none());
        // A file may hold rows without elements.
        assert!(undo(fix, &[], 8).is_none());
    }

    #[test]
    fn wrapped_names_go_both_ways() {
        for (wrapper, full) in [
            (Wrapper::None, "model.norm.weight"),
            (Wrapper::Outside, "language_model.model.norm.weight"),
            (Wrapper::Inside, "model.language_model.norm.weight"),
        ] {
            assert_eq!(wrapper.wrap("model.norm.weight"), full);
            assert_eq!(wrapper.unwrap(full).unwrap(), "model.norm.weight");
        }
        assert_eq!(Wrapper::Inside.wrap("lm_head.weight"), "lm_head.weight");
        assert_eq!(Wrapper::Outside.unwrap("vision_tower.x"), None);
        assert_eq!(Wrapper::Inside.unwrap("model.vision_tower.x"), None);
    }
}
