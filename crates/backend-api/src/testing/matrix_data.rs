//! Weight matrices as checkpoints hold them, of random bytes with values of about 1.

use half::f16;

use super::nd::{Nd, Rng};
use crate::{DType, GgmlKind, PackedLayout, PackedMatrix, repack};

/// The bytes of a [`PackedMatrix`].
pub(super) struct Packed {
    pub name: String,
    pub shape: [usize; 2],
    bytes: Bytes,
}

enum Bytes {
    Dense(DType, Vec<u8>),
    Affine {
        codes: Vec<u8>,
        scales: Vec<u8>,
        biases: Vec<u8>,
        scale_dtype: DType,
        bits: u8,
        group_size: usize,
    },
    Ggml(GgmlKind, Vec<u8>),
}

impl Packed {
    pub fn dense(dtype: DType, shape: [usize; 2], rng: &mut Rng) -> Self {
        Packed {
            name: format!("dense {dtype} {shape:?}"),
            shape,
            bytes: Bytes::Dense(dtype, Nd::random(shape, rng).to_bytes(dtype)),
        }
    }

    pub fn affine(
        bits: u8,
        group_size: usize,
        scale_dtype: DType,
        shape: [usize; 2],
        rng: &mut Rng,
    ) -> Self {
        let [out, cols] = shape;
        let groups = [out, cols / group_size];
        let step = 2.0 / f64::from((1u32 << bits) - 1);
        let scales = Nd::from_fn(groups, |_| {
            // Either sign, as MLX writes them.
            let sign = if rng.next().is_multiple_of(2) {
                1.0
            } else {
                -1.0
            };
            sign * step * (0.5 + rng.uniform())
        });
        let biases = Nd::random(groups, rng).map(|b| b / 2.0);
        Packed {
            name: format!(
                "MLX {bits} bits, groups of {group_size}, {scale_dtype} scales {shape:?}"
            ),
            shape,
            bytes: Bytes::Affine {
                codes: rng.bytes(out * cols * usize::from(bits) / 8),
                scales: scales.to_bytes(scale_dtype),
                biases: biases.to_bytes(scale_dtype),
                scale_dtype,
                bits,
                group_size,
            },
        }
    }

    pub fn ggml(kind: GgmlKind, shape: [usize; 2], rng: &mut Rng) -> Self {
        let size = kind.block_bytes();
        let mut blocks = rng.bytes(shape[0] * shape[1] / kind.block_len() * size);
        // Where a block has its f16 numbers, and the largest integers that multiply them.
        let halves: &[(usize, f64)] = match kind {
            GgmlKind::Q4_0 => &[(0, 8.0)],
            GgmlKind::Q4_1 => &[(0, 15.0), (2, 1.0)],
            GgmlKind::Q5_0 => &[(0, 16.0)],
            GgmlKind::Q5_1 => &[(0, 31.0), (2, 1.0)],
            GgmlKind::Q8_0 => &[(0, 128.0)],
            GgmlKind::Q2K => &[(80, 45.0), (82, 15.0)],
            GgmlKind::Q3K => &[(108, 128.0)],
            GgmlKind::Q4K => &[(0, 945.0), (2, 63.0)],
            GgmlKind::Q5K => &[(0, 1953.0), (2, 63.0)],
            GgmlKind::Q6K => &[(208, 4096.0)],
        };
        for block in blocks.chunks_exact_mut(size) {
            for &(at, largest) in halves {
                let sign = if rng.next().is_multiple_of(4) {
                    -1.0
                } else {
                    1.0
                };
                let value = sign * (0.5 + rng.uniform()) / largest;
                block[at..at + 2].copy_from_slice(&f16::from_f64(value).to_le_bytes());
            }
        }
        Packed {
            name: format!("{} {shape:?}", kind.name()),
            shape,
            bytes: Bytes::Ggml(kind, blocks),
        }
    }

    pub fn packed(&self) -> PackedMatrix<'_> {
        let layout = match &self.bytes {
            Bytes::Dense(dtype, bytes) => PackedLayout::Dense {
                dtype: *dtype,
                bytes,
            },
            Bytes::Affine {
                codes,
                scales,
                biases,
                scale_dtype,
                bits,
                group_size,
            } => PackedLayout::Affine {
                codes,
                scales,
                biases,
                scale_dtype: *scale_dtype,
                bits: *bits,
                group_size: *group_size,
            },
            Bytes::Ggml(kind, blocks) => PackedLayout::Ggml {
                kind: *kind,
                blocks,
            },
        };
        PackedMatrix {
            name: &self.name,
            shape: self.shape,
            layout,
        }
    }

    /// The values, by [`repack::dequantize_rows`].
    pub fn values(&self) -> Nd {
        let mut values = vec![0.0; self.shape[0] * self.shape[1]];
        repack::dequantize_rows(&self.packed(), 0..self.shape[0], &mut values).unwrap();
        let values = values.into_iter().map(f64::from).collect();
        Nd::new(self.shape, values)
    }
}
