//! The largest output alone, of matrices whose low bits lie apart.

use super::*;

const KIND: GgmlKind = GgmlKind::Q8_0;
/// Enough for low bits to lie apart, the last panel not being full.
const ROWS: usize = 16_384 + 7;
const BLOCK_BYTES: usize = KIND.block_bytes();

/// A matrix's blocks, and where those of a row are.
fn blocks(case: &mut Case) -> (&mut Vec<u8>, impl Fn(usize) -> Range<usize> + use<>) {
    let row = case.shape[1] / KIND.block_len() * BLOCK_BYTES;
    match &mut case.source {
        Source::Ggml(_, blocks) => (blocks, move |i| i * row..(i + 1) * row),
        other => panic!("{other:?}"),
    }
}

fn pack(case: &Case) -> CpuMatrix {
    CpuMatrix::pack(&case.packed(), Arithmetic::Rounded, &|_| {}).unwrap()
}

/// What the whole product says.
fn want(matrix: &CpuMatrix, isa: Isa, x: &[f32]) -> usize {
    let mut out = vec![0.0; matrix.shape()[0]];
    matrix.matmul_t_with(isa, x, 1, &mut out);
    crate::cpu::argmax(&out)
}

/// What looking for it says, without recourse to the whole product.
fn searched(matrix: &CpuMatrix, isa: Isa, x: &[f32]) -> Option<usize> {
    let panels = matrix.inner.layout.panels();
    matrix.search(isa, x, &mut vec![f32::NAN; panels * (PANEL + 1)])
}

#[test]
fn what_lies_apart_changes_no_value_and_no_bit_of_a_product() {
    for cols in [32, 64, 640] {
        let mut case = Case::ggml(KIND, ROWS, cols);
        let matrix = pack(&case);
        assert!(matrix.inner.layout.apart);
        let mut values = vec![0.0; ROWS * cols];
        CpuMatrices::one(matrix.clone()).dequantize(&mut values);
        assert!(bits(&values) == bits(&case.values()), "{cols}");
        let (blocks, row) = blocks(&mut case);
        blocks.truncate(row(40).start);
        case.shape[0] = 40;
        let few = pack(&case);
        assert!(!few.inner.layout.apart);
        let mut noise = Noise(3);
        for &isa in Isa::available() {
            for tokens in [1, 2, 3, 7] {
                let x = noise.floats(tokens * cols);
                let (mut all, mut some) = (vec![0.0; tokens * ROWS], vec![0.0; tokens * 40]);
                matrix.matmul_t_with(isa, &x, tokens, &mut all);
                few.matmul_t_with(isa, &x, tokens, &mut some);
                for (all, some) in all.chunks(ROWS).zip(some.chunks(40)) {
                    assert_eq!(bits(&all[..40]), bits(some), "{cols} {}", isa.name());
                }
            }
        }
    }
}

#[test]
fn the_largest_output_is_where_the_whole_product_has_it() {
    for cols in [32, 64, 640] {
        let mut case = Case::ggml(KIND, ROWS, cols);
        // The same row in several panels: the first of them wins.
        let (blocks, row) = blocks(&mut case);
        for block in blocks[row(9000)].chunks_mut(BLOCK_BYTES) {
            block[..2].copy_from_slice(&f16::from_f32(4.0).to_le_bytes()); // others' are 1 at most
        }
        for copy in [12, ROWS - 2] {
            let from = row(9000);
            blocks.copy_within(from, row(copy).start);
        }
        let matrix = pack(&case);
        let row_of = |row| {
            let mut x = vec![0.0; cols];
            matrix.row(row, &mut x);
            x
        };
        for &isa in Isa::available() {
            for row in [0, 31, 5000, 9000, ROWS - 2, ROWS - 1] {
                for size in [1.0, 1e-29, 1e15] {
                    let x: Vec<f32> = row_of(row).iter().map(|x| x * size).collect();
                    let (got, want) = (searched(&matrix, isa, &x), want(&matrix, isa, &x));
                    assert_eq!(got, Some(want), "{cols} {row} {size} {}", isa.name());
                    if row == 9000 && size == 1.0 {
                        assert_eq!(want, 12, "{cols} {}", isa.name());
                    }
                }
            }
        }
        assert!(matrix.inner.searches.next(), "none was in vain");
        // All alike: the whole product decides. And what is not finite, or too large for a bound.
        let mut noise = Noise(3);
        let mut xs = vec![vec![0.0; cols], vec![1e-31; cols]];
        for odd in [f32::NAN, f32::INFINITY, 1e25] {
            let mut x = noise.floats(cols);
            x[5] = odd;
            assert_eq!(searched(&matrix, Isa::get(), &x), None, "{odd}");
            xs.push(x);
        }
        xs.extend((0..20).map(|_| noise.floats(cols)));
        for x in &xs {
            assert_eq!(matrix.largest(x), want(&matrix, Isa::get(), x), "{cols}");
        }
    }
}

#[test]
fn a_row_with_a_scale_that_is_not_finite_has_no_bound() {
    for scale in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        let mut case = Case::ggml(KIND, ROWS, 32);
        let (blocks, row) = blocks(&mut case);
        // By its high bits alone its output is less than nothing.
        let row = &mut blocks[row(70)];
        row.fill(0);
        row[..2].copy_from_slice(&scale.to_le_bytes());
        (row[2], row[3]) = (-1i8 as u8, 7);
        let matrix = pack(&case);
        assert!(!matrix.has_bounds());
        let mut x = vec![0.0; 32];
        (x[0], x[1]) = (2.0, 1.0);
        for &isa in Isa::available() {
            let want = want(&matrix, isa, &x);
            assert_eq!(matrix.largest_with(isa, &x), want, "{scale}");
            assert!(scale != f16::INFINITY || want == 70);
        }
    }
}
