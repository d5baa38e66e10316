use biplane_backend::repack::dequantize_rows;
use biplane_backend::{DType, Error, GgmlKind, PackedLayout};
use half::{bf16, f16};

use super::*;

mod joined;
mod largest;

/// Pseudo-random bytes and numbers.
struct Noise(u32);

impl Noise {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 ^ self.0 >> 15
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.word() >> 8) as u8).collect()
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    fn elements(&mut self, dtype: DType, n: usize) -> Vec<u8> {
        let floats = self.floats(n);
        match dtype {
            DType::F16 => floats
                .iter()
                .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                .collect(),
            DType::BF16 => floats
                .iter()
                .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                .collect(),
            _ => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// A checkpoint's matrix of random values.
#[derive(Clone, Debug)]
enum Source {
    Dense(DType, Vec<u8>),
    Affine {
        bits: u8,
        group_size: usize,
        ty: DType,
        codes: Vec<u8>,
        scales: Vec<u8>,
        biases: Vec<u8>,
    },
    Ggml(GgmlKind, Vec<u8>),
}

struct Case {
    shape: [usize; 2],
    source: Source,
}

impl Case {
    fn dense(ty: DType, rows: usize, cols: usize) -> Case {
        let bytes = Noise(7).elements(ty, rows * cols);
        Case {
            shape: [rows, cols],
            source: Source::Dense(ty, bytes),
        }
    }

    fn affine(bits: u8, group_size: usize, ty: DType, rows: usize, cols: usize) -> Case {
        let mut noise = Noise(u32::from(bits));
        let groups = rows * cols / group_size;
        let source = Source::Affine {
            bits,
            group_size,
            ty,
            codes: noise.bytes(rows * cols * usize::from(bits) / 8),
            scales: noise.elements(ty, groups),
            biases: noise.elements(ty, groups),
        };
        Case {
            shape: [rows, cols],
            source,
        }
    }

    fn ggml(kind: GgmlKind, rows: usize, cols: usize) -> Case {
        let mut noise = Noise(kind.block_bytes() as u32);
        let size = kind.block_bytes();
        let mut blocks = noise.bytes(rows * cols / kind.block_len() * size);
        let halves: &[usize] = match kind {
            GgmlKind::Q4_0 | GgmlKind::Q5_0 | GgmlKind::Q8_0 => &[0],
            GgmlKind::Q4_1 | GgmlKind::Q5_1 | GgmlKind::Q4K | GgmlKind::Q5K => &[0, 2],
            GgmlKind::Q2K => &[80, 82],
            GgmlKind::Q3K => &[108],
            GgmlKind::Q6K => &[208],
        };
        for block in blocks.chunks_mut(size) {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&f16::from_f32(noise.float()).to_le_bytes());
            }
        }
        Case {
            shape: [rows, cols],
            source: Source::Ggml(kind, blocks),
        }
    }

    /// Every format once with odd numbers of rows, and odd shapes of some.
    fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        let floats = [DType::F32, DType::F16, DType::BF16];
        for (i, kind) in GgmlKind::ALL.into_iter().enumerate() {
            let rows = [1, 3, 40, 129][i % 4];
            cases.push(Case::ggml(
                kind,
                rows,
                if kind.block_len() == 32 { 576 } else { 512 },
            ));
        }
        for (i, bits) in [2, 3, 4, 5, 6, 8].into_iter().enumerate() {
            for (j, group) in [16, 32, 64, 128].into_iter().enumerate() {
                cases.push(Case::affine(
                    bits,
                    group,
                    floats[(i + j) % 3],
                    [33, 1, 7, 96][j],
                    640,
                ));
            }
        }
        for ty in floats {
            for (rows, cols) in [(40, 33), (129, 64), (1, 1), (3, 640)] {
                cases.push(Case::dense(ty, rows, cols));
            }
        }
        cases.push(Case::ggml(GgmlKind::Q5_0, 129, 32));
        cases.push(Case::ggml(GgmlKind::Q4_1, 40, 64));
        cases.push(Case::affine(6, 16, DType::BF16, 3, 48));
        cases
    }

    fn packed(&self) -> PackedMatrix<'_> {
        let layout = match &self.source {
            Source::Dense(dtype, bytes) => PackedLayout::Dense {
                dtype: *dtype,
                bytes,
            },
            Source::Ggml(kind, blocks) => PackedLayout::Ggml {
                kind: *kind,
                blocks,
            },
            Source::Affine {
                bits,
                group_size,
                ty,
                codes,
                scales,
                biases,
            } => PackedLayout::Affine {
                codes,
                scales,
                biases,
                scale_dtype: *ty,
                bits: *bits,
                group_size: *group_size,
            },
        };
        PackedMatrix {
            name: "test",
            shape: self.shape,
            layout,
        }
    }

    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape[0] * self.shape[1]];
        dequantize_rows(&self.packed(), 0..self.shape[0], &mut values).unwrap();
        values
    }

    fn name(&self) -> String {
        let kind = match &self.source {
            Source::Dense(ty, _) => format!("{ty}"),
            Source::Ggml(kind, _) => kind.name().into(),
            Source::Affine {
                bits,
                group_size,
                ty,
                ..
            } => format!("{bits} bits, {group_size}, {ty}"),
        };
        format!("{kind} {:?}", self.shape)
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn values_are_the_checkpoints_bit_for_bit() {
    for case in Case::all() {
        let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Exact, &|_| ()).unwrap();
        let matrix = CpuMatrices::one(matrix);
        let want = case.values();
        let mut got = vec![f32::NAN; want.len()];
        matrix.dequantize(&mut got);
        assert_eq!(bits(&got), bits(&want), "{}", case.name());
        let [rows, cols] = case.shape;
        let ids = [rows as u32 - 1, 0, rows as u32 / 2];
        let mut taken = vec![f32::NAN; 3 * cols];
        matrix.take_rows(&ids, &mut taken).unwrap();
        for (id, taken) in ids.iter().zip(taken.chunks(cols)) {
            assert_eq!(
                bits(taken),
                bits(&want[*id as usize * cols..][..cols]),
                "{}",
                case.name()
            );
        }
        assert!(matches!(
            matrix.take_rows(&[0, rows as u32], &mut taken[..2 * cols]),
            Err(Error::OutOfRange { index, limit, .. }) if index == rows && limit == rows
        ));
    }
}

#[test]
fn products_equal_the_sums_of_the_values() {
    for case in Case::all() {
        let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Exact, &|_| ()).unwrap();
        let values = case.values();
        let [out_len, in_len] = case.shape;
        for rows in [1, 2, 3, 4, 11] {
            let x = Noise(rows as u32).floats(rows * in_len);
            for &isa in Isa::available() {
                let mut out = vec![f32::NAN; rows * out_len];
                matrix.matmul_t_with(isa, &x, rows, &mut out);
                for (i, &got) in out.iter().enumerate() {
                    let x = &x[i / out_len * in_len..][..in_len];
                    let w = &values[i % out_len * in_len..][..in_len];
                    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let want: f64 = terms.clone().sum();
                    // Codes that count from 0 sum up to larger numbers than the values do.
                    let size = terms.map(f64::abs).sum::<f64>().max(1.0);
                    let error = (f64::from(got) - want).abs() / size;
                    assert!(
                        error < 2e-6,
                        "{isa:?} {}, {rows} rows: {got} {want}",
                        case.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others_of_its_batch() {
    for case in Case::all() {
        let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Exact, &|_| ()).unwrap();
        let [out_len, in_len] = case.shape;
        let x = Noise(5).floats(160 * in_len);
        for &isa in Isa::available() {
            let alone: Vec<f32> = x
                .chunks(in_len)
                .flat_map(|x| {
                    let mut out = vec![0.0; out_len];
                    matrix.matmul_t_with(isa, x, 1, &mut out);
                    out
                })
                .collect();
            for rows in (2..9).chain([31, 64, 72, 73, 160]) {
                let mut out = vec![f32::NAN; rows * out_len];
                matrix.matmul_t_with(isa, &x[..rows * in_len], rows, &mut out);
                let alone = &alone[..rows * out_len];
                assert!(
                    bits(&out) == bits(alone),
                    "{isa:?} {}, {rows} rows",
                    case.name()
                );
            }
        }
    }
}

/// `x` as the integer products see it: rounded in blocks of 16 or 32.
fn rounded(x: &[f32], block: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for x in x.chunks(block) {
        let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
        let codes = x.iter().map(|x| (x * (127.0 / largest)).round_ties_even());
        out.extend(codes.map(|q| q * (largest / 127.0)));
    }
    out
}

#[test]
fn rounded_products_are_the_same_everywhere_and_right() {
    for case in Case::all() {
        let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Rounded, &|_| ()).unwrap();
        let values = case.values();
        let [out_len, in_len] = case.shape;
        if matrix.inner.layout.scaling.is_none() {
            continue;
        }
        let x = Noise(3).floats(17 * in_len);
        let seen = rounded(&x, matrix.inner.layout.block());
        let mut want = vec![f32::NAN; 17 * out_len];
        for (row, x) in x.chunks(in_len).enumerate() {
            let out = &mut want[row * out_len..][..out_len];
            matrix.matmul_t_with(Isa::Portable, x, 1, out);
        }
        for (i, &got) in want.iter().enumerate() {
            let x = &seen[i / out_len * in_len..][..in_len];
            let w = &values[i % out_len * in_len..][..in_len];
            let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let sum: f64 = terms.clone().sum();
            // Codes that count from 0 sum up to larger numbers than the values do.
            let size = terms.map(f64::abs).sum::<f64>().max(1.0);
            let error = (f64::from(got) - sum).abs() / size;
            assert!(error < 2e-6, "{}: {got} {sum}", case.name());
        }
        for &isa in Isa::available() {
            for rows in 1..=17 {
                let mut out = vec![f32::NAN; rows * out_len];
                matrix.matmul_t_with(isa, &x[..rows * in_len], rows, &mut out);
                assert!(
                    bits(&out) == bits(&want[..rows * out_len]),
                    "{isa:?} {}, {rows} rows",
                    case.name()
                );
            }
        }
    }
}

#[test]
fn many_rounded_rows_are_the_same_as_one() {
    let case = Case::ggml(GgmlKind::Q5_1, 40, 2048);
    let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Rounded, &|_| ()).unwrap();
    let x = Noise(9).floats(300 * 2048);
    for &isa in Isa::available() {
        let mut out = vec![f32::NAN; 300 * 40];
        matrix.matmul_t_with(isa, &x, 300, &mut out);
        for (x, out) in x.chunks(2048).zip(out.chunks(40)) {
            let mut alone = vec![f32::NAN; 40];
            matrix.matmul_t_with(isa, x, 1, &mut alone);
            assert!(bits(out) == bits(&alone), "{isa:?}");
        }
    }
}

#[test]
fn activations_that_are_not_finite_give_no_number() {
    let case = Case::ggml(GgmlKind::Q8_0, 40, 64);
    let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Rounded, &|_| ()).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        for &isa in Isa::available() {
            let mut x = vec![1.0; 3 * 64];
            x[64 + 40] = bad;
            let mut out = vec![0.0; 3 * 40];
            matrix.matmul_t_with(isa, &x, 3, &mut out);
            let nan = |row: usize| out[row * 40..][..40].iter().filter(|x| x.is_nan()).count();
            assert_eq!([nan(0), nan(1), nan(2)], [0, 40, 0], "{isa:?}");
        }
    }
}

#[test]
fn packed_matrices_are_no_larger_than_their_files() {
    for kind in [
        GgmlKind::Q4_0,
        GgmlKind::Q4_1,
        GgmlKind::Q5_0,
        GgmlKind::Q5_1,
        GgmlKind::Q8_0,
    ] {
        let case = Case::ggml(kind, 64, 576);
        let Source::Ggml(_, blocks) = &case.source else {
            unreachable!()
        };
        let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Exact, &|_| ()).unwrap();
        assert_eq!(matrix.size_in_bytes(), blocks.len(), "{}", kind.name());
    }
    // Of the K kinds scales and minima stay bytes; the file has those of some in 4 or 6 bits.
    for (kind, bits_of_256) in [
        (GgmlKind::Q2K, 256 * 2 + 2 * (16 * 8 + 16)),
        (GgmlKind::Q4K, 256 * 4 + 2 * (8 * 8 + 16)),
        (GgmlKind::Q5K, 256 * 5 + 2 * (8 * 8 + 16)),
        (GgmlKind::Q6K, 256 * 6 + 16 * 8 + 16),
    ] {
        let case = Case::ggml(kind, 64, 512);
        let matrix = CpuMatrix::pack(&case.packed(), Arithmetic::Exact, &|_| ()).unwrap();
        let bytes = 64 * 2 * bits_of_256 / 8;
        assert_eq!(matrix.size_in_bytes(), bytes, "{}", kind.name());
    }
    let bf16 = CpuMatrix::pack(
        &Case::dense(DType::BF16, 64, 64).packed(),
        Arithmetic::Exact,
        &|_| (),
    )
    .unwrap();
    assert_eq!(bf16.size_in_bytes(), 64 * 64 * 2);
}

#[test]
fn every_row_is_taken_once() {
    // More than one piece of the largest size, pieces for the threads, one.
    for (rows, cols) in [(40_001, 64), (1000, 64), (1, 64)] {
        let case = Case::dense(DType::F32, rows, cols);
        let taken = std::sync::Mutex::new(Vec::new());
        let note = |rows| taken.lock().unwrap().push(rows);
        CpuMatrix::pack(&case.packed(), Arithmetic::Exact, &note).unwrap();
        let mut taken = taken.into_inner().unwrap();
        taken.sort_by_key(|rows: &std::ops::Range<usize>| rows.start);
        let mut next = 0;
        for part in taken {
            assert!(
                part.start == next && part.end > next,
                "{part:?} after {next}"
            );
            assert!(part.len() * cols * 4 <= 3 << 20, "{part:?}");
            next = part.end;
        }
        assert_eq!(next, rows);
    }
}

#[test]
fn malformed_matrices_are_errors() {
    let case = Case::ggml(GgmlKind::Q4_0, 4, 64);
    let mut packed = case.packed();
    packed.shape = [5, 64];
    assert!(matches!(
        CpuMatrix::pack(&packed, Arithmetic::Exact, &|_| ()),
        Err(Error::Weight { .. })
    ));
    packed.shape = [usize::MAX, usize::MAX];
    assert!(matches!(
        CpuMatrix::pack(&packed, Arithmetic::Exact, &|_| ()),
        Err(Error::Weight { .. })
    ));
    packed.layout = PackedLayout::Dense {
        dtype: DType::U32,
        bytes: &[0; 16],
    };
    packed.shape = [2, 2];
    assert!(matches!(
        CpuMatrix::pack(&packed, Arithmetic::Exact, &|_| ()),
        Err(Error::Weight { .. })
    ));
}
