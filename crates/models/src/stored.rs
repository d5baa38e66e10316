//! A weight matrix in a checkpoint's own form.

use std::{borrow::Cow, ops::Range};

use biplane_backend::{AffineSpec, DType, PackedLayout, PackedMatrix};

/// A weight matrix as the checkpoint stores it, rows in Hugging Face's order.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    /// The name in the file.
    pub name: Cow<'a, str>,
    pub shape: [usize; 2],
    pub(crate) layout: StoredLayout<'a>,
}

#[derive(Debug)]
pub(crate) enum StoredLayout<'a> {
    Dense {
        dtype: DType,
        bytes: Cow<'a, [u8]>,
    },
    Affine {
        codes: &'a [u8],
        scales: &'a [u8],
        biases: &'a [u8],
        scale_dtype: DType,
        spec: AffineSpec,
    },
    Ggml {
        kind: biplane_backend::GgmlKind,
        blocks: Cow<'a, [u8]>,
    },
}

impl Stored<'_> {
    pub fn packed(&self) -> PackedMatrix<'_> {
        PackedMatrix {
            name: &self.name,
            shape: self.shape,
            layout: match &self.layout {
                StoredLayout::Dense { dtype, bytes } => PackedLayout::Dense {
                    dtype: *dtype,
                    bytes,
                },
                StoredLayout::Affine {
                    codes,
                    scales,
                    biases,
                    scale_dtype,
                    spec,
                } => PackedLayout::Affine {
                    codes,
                    scales,
                    biases,
                    scale_dtype: *scale_dtype,
                    bits: spec.bits,
                    group_size: spec.group_size,
                },
                StoredLayout::Ggml { kind, blocks } => PackedLayout::Ggml {
                    kind: *kind,
                    blocks,
                },
            },
        }
    }

    pub fn size_in_bytes(&self) -> usize {
        match &self.layout {
            StoredLayout::Dense { bytes, .. } => bytes.len(),
            StoredLayout::Ggml { blocks, .. } => blocks.len(),
            StoredLayout::Affine {
                codes,
                scales,
                biases,
                ..
            } => codes.len() + scales.len() + biases.len(),
        }
    }

    /// Some rows as a matrix of their own: parts of a fused projection.
    pub fn rows(&self, rows: Range<usize>) -> Stored<'_> {
        let all = self.shape[0].max(1);
        let part = |bytes: &'_ [u8]| {
            let row = bytes.len() / all;
            rows.start * row..rows.end * row
        };
        Stored {
            name: Cow::Borrowed(&self.name),
            shape: [rows.len(), self.shape[1]],
            layout: match &self.layout {
                StoredLayout::Dense { dtype, bytes } => StoredLayout::Dense {
                    dtype: *dtype,
                    bytes: Cow::Borrowed(&bytes[part(bytes)]),
                },
                StoredLayout::Affine {
                    codes,
                    scales,
                    biases,
                    scale_dtype,
                    spec,
                } => StoredLayout::Affine {
                    codes: &codes[part(codes)],
                    scales: &scales[part(scales)],
                    biases: &biases[part(biases)],
                    scale_dtype: *scale_dtype,
                    spec: *spec,
                },
                StoredLayout::Ggml { kind, blocks } => StoredLayout::Ggml {
                    kind: *kind,
                    blocks: Cow::Borrowed(&blocks[part(blocks)]),
                },
            },
        }
    }
}
