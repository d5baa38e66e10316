use std::time::Instant;

use half::{bf16, f16};
use proptest::prelude::*;

use super::golden::{GGUF_PY, MLX};
use super::*;
use crate::{AffineSpec, DType, Error, GgmlKind, PackedLayout, PackedMatrix};

/// Bytes of Knuth's 64-bit linear congruential generator; the golden values below come from the
/// same bytes.
pub(super) fn bytes(mut seed: u64, n: usize) -> Vec<u8> {
    (0..n)
        .map(|_| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .collect()
}

/// FNV-1a, 64 bits.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `n` values in -1 .. 1.
pub(super) fn values(seed: u64, n: usize) -> Vec<f32> {
    bytes(seed, 4 * n)
        .chunks_exact(4)
        .map(|b| {
            let u = u32::from_le_bytes(b.try_into().unwrap());
            (f64::from(u) / 4_294_967_296.0 * 2.0 - 1.0) as f32
        })
        .collect()
}

/// Random blocks whose f16 scales are finite.
fn random_blocks(kind: GgmlKind, seed: u64, n: usize) -> Vec<u8> {
    let size = kind.block_bytes();
    let mut blocks = bytes(seed, n * size);
    let halves: &[usize] = match kind {
        GgmlKind::Q4_0 | GgmlKind::Q5_0 | GgmlKind::Q8_0 => &[0],
        GgmlKind::Q4_1 | GgmlKind::Q5_1 | GgmlKind::Q4K | GgmlKind::Q5K => &[0, 2],
        GgmlKind::Q2K => &[80, 82],
        GgmlKind::Q3K => &[108],
        GgmlKind::Q6K => &[208],
    };
    for block in blocks.chunks_exact_mut(size) {
        for &at in halves {
            block[at + 1] &= 0xbf;
        }
    }
    blocks
}

pub(super) fn dequantized(m: &PackedMatrix<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; m.shape[0] * m.shape[1]];
    dequantize_rows(m, 0..m.shape[0], &mut out).unwrap();
    out
}

pub(super) fn ggml(kind: GgmlKind, shape: [usize; 2], blocks: &[u8]) -> PackedMatrix<'_> {
    PackedMatrix {
        name: "w",
        shape,
        layout: PackedLayout::Ggml { kind, blocks },
    }
}

#[test]
fn ggml_blocks_dequantize_as_gguf_py_does() {
    for (seed, (kind, expected)) in GGUF_PY.into_iter().enumerate() {
        let blocks = random_blocks(kind, seed as u64, 8);
        let m = ggml(kind, [2, 4 * kind.block_len()], &blocks);
        let got = hash(bytemuck::cast_slice(&dequantized(&m)));
        assert_eq!(got, expected, "{}: {got:#x}", kind.name());
    }
}

#[test]
fn scale_times_code_plus_bias_is_exact_for_every_ggml_kind_fused_or_not() {
    for kind in GgmlKind::ALL {
        let blocks = random_blocks(kind, 99, 256);
        let m = ggml(kind, [1, 256 * kind.block_len()], &blocks);
        let mut rows = CanonicalRows::default();
        canonical_rows(&m, 0..1, &mut rows).unwrap();
        let group = kind.spec().group_size;
        for (i, (&q, v)) in rows.codes.iter().zip(dequantized(&m)).enumerate() {
            let (s, b) = (rows.scales[i / group], rows.biases[i / group]);
            assert_eq!(s.mul_add(f32::from(q), b), v, "{} at {i}", kind.name());
            assert_eq!(s * f32::from(q) + b, v, "{} at {i}", kind.name());
        }
    }
}

#[test]
fn affine_groups_are_quantized_packed_and_read_as_mlx_does() {
    for (bits, group_size, expected) in MLX {
        let spec = AffineSpec { bits, group_size };
        let mut rows = CanonicalRows::default();
        let w = values(1000 * u64::from(bits) + group_size as u64, 256);
        quantize_rows(&w, 128, spec, &mut rows).unwrap();
        let mut words = Vec::new();
        pack_codes(&rows.codes, bits, &mut words).unwrap();
        let m = PackedMatrix {
            name: "w",
            shape: [2, 128],
            layout: PackedLayout::Affine {
                codes: bytemuck::cast_slice(&words),
                scales: bytemuck::cast_slice(&rows.scales),
                biases: bytemuck::cast_slice(&rows.biases),
                scale_dtype: DType::F32,
                bits,
                group_size,
            },
        };
        let values = dequantized(&m);
        let got = [
            hash(bytemuck::cast_slice(&words)),
            hash(bytemuck::cast_slice(&rows.scales)),
            hash(bytemuck::cast_slice(&rows.biases)),
            hash(bytemuck::cast_slice(&values)),
        ];
        assert_eq!(got, expected, "{bits} bits, groups of {group_size}");
    }
}

#[test]
fn half_precision_scales_are_read_exactly_and_unaligned() {
    let spec = AffineSpec {
        bits: 4,
        group_size: 32,
    };
    let codes: Vec<u8> = (0..16).collect();
    for (dtype, one, minus_half) in [
        (
            DType::F16,
            f16::ONE.to_le_bytes(),
            f16::from_f32(-0.5).to_le_bytes(),
        ),
        (
            DType::BF16,
            bf16::ONE.to_le_bytes(),
            bf16::from_f32(-0.5).to_le_bytes(),
        ),
    ] {
        // One byte in front puts every slice at an odd address or off its alignment.
        let shifted = |b: &[u8]| [&[7], b].concat();
        let (codes, scales, biases) = (shifted(&codes), shifted(&one), shifted(&minus_half));
        let m = PackedMatrix {
            name: "w",
            shape: [1, 32],
            layout: PackedLayout::Affine {
                codes: &codes[1..],
                scales: &scales[1..],
                biases: &biases[1..],
                scale_dtype: dtype,
                bits: spec.bits,
                group_size: spec.group_size,
            },
        };
        let expected: Vec<f32> = (0..16)
            .flat_map(|b| [b & 15, b >> 4])
            .map(|q| q as f32 - 0.5)
            .collect();
        assert_eq!(dequantized(&m), expected, "{dtype}");
    }
}

#[test]
fn dense_elements_are_read_exactly_and_unaligned() {
    let halves = bytes(5, 2 * 3 * 75 + 1);
    for (dtype, cols) in [(DType::F16, 75), (DType::BF16, 75), (DType::F32, 37)] {
        let data = &halves[1..1 + 3 * cols * dtype.size()];
        let m = PackedMatrix {
            name: "w",
            shape: [3, cols],
            layout: PackedLayout::Dense { dtype, bytes: data },
        };
        let expected: Vec<u32> = data
            .chunks_exact(dtype.size())
            .map(|b| match dtype {
                DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32().to_bits(),
                DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32().to_bits(),
                _ => u32::from_le_bytes(b.try_into().unwrap()),
            })
            .collect();
        let got: Vec<u32> = dequantized(&m).iter().map(|v| v.to_bits()).collect();
        // A signalling NaN may become quiet on the way.
        for (g, e) in got.iter().zip(&expected) {
            let nan = f32::from_bits(*g).is_nan() && f32::from_bits(*e).is_nan();
            assert!(g == e || nan, "{dtype}: {g:#x} is not {e:#x}");
        }
        let mut middle = vec![0.0; cols];
        dequantize_rows(&m, 1..2, &mut middle).unwrap();
        let middle: Vec<u32> = middle.iter().map(|v| v.to_bits()).collect();
        assert_eq!(middle, got[cols..2 * cols]);
    }
}

#[test]
fn quantizing_keeps_zero_and_the_far_edge_and_rounds_the_rest_to_half_a_scale() {
    let spec = AffineSpec {
        bits: 8,
        group_size: 16,
    };
    let mut w = values(3, 64);
    w[5] = 0.0;
    w[20] = -3.0;
    w[48..].fill(0.25);
    let mut rows = CanonicalRows::default();
    quantize_rows(&w, 32, spec, &mut rows).unwrap();
    let mut back = vec![0.0; 64];
    rows.dequantize(16, 0, &mut back).unwrap();
    assert_eq!(back[20], -3.0);
    assert!(back[5].abs() < 1e-6 && back[48..].iter().all(|&v| v == 0.25));
    for (i, (b, v)) in back.iter().zip(&w).enumerate() {
        // Moving the scale can clip the near edge by another half.
        let step = rows.scales[i / 16].abs();
        assert!((b - v).abs() <= step * 1.001, "{b} for {v}, scale {step}");
    }
}

#[test]
fn what_cannot_be_quantized_is_refused() {
    let spec = |bits, group_size| AffineSpec { bits, group_size };
    let mut rows = CanonicalRows::default();
    let ok = vec![0.0; 64];
    for (values, cols, spec) in [
        (&ok[..], 64, spec(7, 32)),
        (&ok[..], 64, spec(8, 33)),
        (&ok[..], 0, spec(8, 32)),
        (&ok[..], 16, spec(8, 32)),
        (&ok[..33], 32, spec(8, 32)),
        (&[f32::NAN; 32][..], 32, spec(8, 32)),
        (&[f32::INFINITY; 32][..], 32, spec(8, 32)),
        (
            &[[f32::MAX; 16], [f32::MIN; 16]].concat()[..],
            32,
            spec(8, 32),
        ),
    ] {
        let refused = quantize_rows(values, cols, spec, &mut rows);
        assert!(matches!(refused, Err(Error::Weight { .. })), "{refused:?}");
    }
    assert!(pack_codes(&[4; 32], 2, &mut Vec::new()).is_err());
    assert!(pack_codes(&[0; 31], 2, &mut Vec::new()).is_err());
    assert!(pack_codes(&[0; 32], 7, &mut Vec::new()).is_err());
    assert!(unpack_codes(&[0; 4], 7, 1, &mut Vec::new()).is_err());
    assert!(unpack_codes(&[0; 4], 3, 11, &mut Vec::new()).is_err());
    assert!(unpack_codes(&[0; 4], 8, usize::MAX, &mut Vec::new()).is_err());
}

#[test]
fn errors_name_the_matrix_and_the_figures() {
    let blocks = [0; 17];
    let m = ggml(GgmlKind::Q4_0, [1, 32], &blocks);
    let message = m.validate().unwrap_err().to_string();
    for part in ["weight w", "18", "17", "Q4_0", "[1, 32]"] {
        assert!(message.contains(part), "{message} lacks {part}");
    }
    let blocks = [0; 36];
    let m = ggml(GgmlKind::Q4_0, [2, 32], &blocks);
    assert!(matches!(
        dequantize_rows(&m, 1..3, &mut [0.0; 64]),
        Err(Error::OutOfRange {
            index: 3,
            limit: 2,
            ..
        })
    ));
    assert!(matches!(
        dequantize_rows(&m, 0..1, &mut [0.0; 31]),
        Err(Error::Bytes {
            expected: 128,
            got: 124,
            ..
        })
    ));
    let dense = PackedMatrix {
        name: "w",
        shape: [2, 3],
        layout: PackedLayout::Dense {
            dtype: DType::F32,
            bytes: &[0; 24],
        },
    };
    assert!(canonical_rows(&dense, 0..1, &mut CanonicalRows::default()).is_err());
}

/// Lengths, shapes and forms a hostile file may claim.
type Figures = ([usize; 2], u8, usize, usize, usize);

fn hostile() -> impl Strategy<Value = Figures> {
    let length =
        || prop_oneof![0usize..600, Just(usize::MAX), Just(1 << 40), Just(1 << 62)].boxed();
    (
        [
            length(),
            prop_oneof![length(), (0usize..20).prop_map(|n| 32 * n).boxed()].boxed(),
        ],
        0u8..10,
        prop_oneof![
            Just(16usize),
            Just(32),
            Just(64),
            Just(0),
            Just(48),
            Just(usize::MAX)
        ],
        0usize..2000,
        0usize..200,
    )
}

proptest! {
    #[test]
    fn packing_loses_nothing(
        bits in prop::sample::select(vec![2u8, 3, 4, 5, 6, 8]),
        sixteens in 0usize..40,
        seed: u64,
    ) {
        // Odd widths need 32 codes to fill words.
        let n = if bits % 2 == 0 { 16 * sixteens } else { 32 * sixteens };
        let mask = ((1u16 << bits) - 1) as u8;
        let codes: Vec<u8> = bytes(seed, n).iter().map(|b| b & mask).collect();
        let mut words = Vec::new();
        pack_codes(&codes, bits, &mut words).unwrap();
        prop_assert_eq!(words.len() * 32, n * usize::from(bits));
        let packed: &[u8] = bytemuck::cast_slice(&words);
        let mut back = vec![9; 3];
        unpack_codes(packed, bits, n, &mut back).unwrap();
        prop_assert_eq!(&back, &codes);
        // Any shorter run too.
        let part = n - n / 3;
        unpack_codes(packed, bits, part, &mut back).unwrap();
        prop_assert_eq!(&back[..], &codes[..part]);
    }

    #[test]
    fn canonical_rows_give_the_dequantized_values(
        kind in prop::sample::select(GgmlKind::ALL.to_vec()),
        seed: u64,
        range in (0usize..4, 0usize..4),
    ) {
        let blocks = random_blocks(kind, seed, 6);
        let cols = 2 * kind.block_len();
        let m = ggml(kind, [3, cols], &blocks);
        let all = dequantized(&m);
        let mut rows = CanonicalRows::default();
        let range = range.0..range.1;
        let read = canonical_rows(&m, range.clone(), &mut rows);
        prop_assert_eq!(read.is_ok(), range.start <= range.end && range.end <= 3);
        if read.is_ok() {
            prop_assert!(rows.codes.iter().all(|&q| u32::from(q) >> kind.spec().bits == 0));
            let mut part = vec![0.0; range.len() * cols];
            rows.dequantize(kind.spec().group_size, kind.zero_point(), &mut part).unwrap();
            prop_assert_eq!(&part[..], &all[range.start * cols..range.end * cols]);
        }
    }

    #[test]
    fn hostile_figures_are_errors(
        (shape, bits, group_size, long, short) in hostile(),
        dtype in prop::sample::select(DType::ALL.to_vec()),
        kind in prop::sample::select(GgmlKind::ALL.to_vec()),
    ) {
        let (long, short) = (vec![0; long], vec![0; short]);
        for layout in [
            PackedLayout::Dense { dtype, bytes: &long },
            PackedLayout::Ggml { kind, blocks: &long },
            PackedLayout::Affine {
                codes: &long, scales: &short, biases: &short, scale_dtype: dtype, bits, group_size,
            },
        ] {
            let m = PackedMatrix { name: "w", shape, layout };
            let valid = m.validate();
            let read = dequantize_rows(&m, 0..1, &mut [0.0; 64]);
            if valid.is_err() {
                let refused = matches!(read, Err(Error::Weight { .. }));
                prop_assert!(refused);
            } else {
                prop_assert!(shape[0] * shape[1] <= 8 * 2000);
                prop_assert_eq!(read.is_ok(), shape[1] == 64);
            }
        }
    }
}

/// Not a benchmark: only catches a reader that became many times too slow to load models with.
#[test]
fn reading_is_fast_enough_to_load_models() {
    let (rows, cols) = (64, 16 * 1024);
    for kind in GgmlKind::ALL {
        let blocks = random_blocks(kind, 1, rows * cols / kind.block_len());
        let m = ggml(kind, [rows, cols], &blocks);
        let mut out = CanonicalRows::default();
        let start = Instant::now();
        canonical_rows(&m, 0..rows, &mut out).unwrap();
        let per_weight = start.elapsed().as_secs_f64() / (rows * cols) as f64 * 1e9;
        println!("{}: {per_weight:.2} ns per weight", kind.name());
        assert!(per_weight < 100.0, "{}: {per_weight:.1} ns", kind.name());
    }
}
