//! What a checkpoint says about its model, before any weight is read.

use std::collections::BTreeMap;

use biplane_backend::DType;

use crate::{
    Quantization, Result,
    checkpoint::{Metadata, Opened, RawKind, RawTensor},
    model::{Architecture, Dimensions},
    registry::{Names, Visitor, describe, visit},
};

/// What a checkpoint says about its model.
#[derive(Clone, Debug)]
pub struct About {
    /// The architecture by its first name.
    pub architecture: &'static str,
    /// Its sizes.
    pub dimensions: Dimensions,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of all tensors.
    pub weight_bytes: usize,
    /// Bytes of tensors by their element or block format.
    pub formats: BTreeMap<String, usize>,
}

/// Reads a checkpoint's configuration and counts its tensors.
///
/// # Errors
/// As [`crate::load`] for a configuration that cannot be used.
pub fn about(opened: &Opened) -> Result<About> {
    visit(opened, Look(opened))
}

struct Look<'a>(&'a Opened);

impl Visitor for Look<'_> {
    type Output = About;

    fn visit<A: Architecture>(self, names: Names) -> Result<About> {
        let opened = self.0;
        let described = describe::<A>(opened, names)?;
        let quantization = match &opened.metadata {
            Metadata::HuggingFace { config, .. } => {
                Quantization::from_config(config).unwrap_or_default()
            }
            Metadata::Gguf(_) => Quantization::default(),
        };
        let mut about = About {
            architecture: names.hf.first().copied().unwrap_or("?"),
            dimensions: A::dimensions(&described.config),
            parameters: 0,
            weight_bytes: opened.checkpoint.size_in_bytes(),
            formats: BTreeMap::new(),
        };
        for name in opened.checkpoint.names() {
            // What is of another type is no weight: it counts as bytes only.
            if let Ok(Some(tensor)) = opened.checkpoint.tensor(name) {
                let (format, parameters) = count(&tensor, &quantization);
                *about.formats.entry(format).or_default() += tensor.bytes.len();
                about.parameters += parameters;
            }
        }
        Ok(about)
    }
}

/// A tensor's format, and how many parameters it has.
fn count(tensor: &RawTensor<'_>, quantization: &Quantization) -> (String, usize) {
    let elements: usize = tensor.shape.iter().product();
    let part = |end| tensor.name.strip_suffix(end);
    let packed = part(".weight").and_then(|base| quantization.layer(base));
    match tensor.kind {
        RawKind::Ggml(kind) => (kind.name().to_owned(), elements),
        RawKind::Dense(DType::U32) if packed.is_some() => {
            let bits = packed.map_or(32, |spec| usize::from(spec.bits.max(1)));
            (format!("affine {bits} bits"), elements * 32 / bits)
        }
        // Scales and biases of groups are no parameters.
        RawKind::Dense(dtype) => {
            let group = part(".scales").or_else(|| part(".biases"));
            let of_group = group.is_some_and(|base| quantization.layer(base).is_some());
            let parameters = if of_group { 0 } else { elements };
            (dtype.name().to_owned(), parameters)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::open;

    #[test]
    fn every_format_of_a_model_has_as_many_parameters() {
        let of = |name: &str| {
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/");
            about(&open(format!("{root}{name}").as_ref()).unwrap()).unwrap()
        };
        let (dense, packed) = (of("hf"), of("mlx-4bit"));
        assert_eq!(dense.architecture, "llama");
        assert_eq!(dense.parameters, packed.parameters);
        assert!(packed.weight_bytes < dense.weight_bytes);
        assert!(packed.formats.contains_key("affine 4 bits"), "{packed:?}");
        let bytes: usize = packed.formats.values().sum();
        assert_eq!(bytes, packed.weight_bytes);
    }
}
