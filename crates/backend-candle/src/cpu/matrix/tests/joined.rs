use biplane_backend::Gate;

use super::*;
use crate::cpu::{gelu_tanh_mul, rms_norm};

/// Two matrices of a format each, the second of another one unless `alike`.
fn pair(arithmetic: Arithmetic, alike: bool, rows: usize) -> CpuMatrices {
    let pack = |kind| {
        let case = Case::ggml(kind, rows, 256);
        CpuMatrices::one(CpuMatrix::pack(&case.packed(), arithmetic, &|_| ()).unwrap())
    };
    let second = match alike {
        true => GgmlKind::Q4_1,
        false => GgmlKind::Q6K,
    };
    CpuMatrices::join(&[&pack(GgmlKind::Q4_1), &pack(second)]).unwrap()
}

/// Everything around the products one after the other.
fn one_by_one(parts: &CpuMatrices, x: &[f32], around: &Around<'_>) -> Vec<f32> {
    let mut x = x.to_vec();
    if let Some((weight, eps)) = around.norm {
        rms_norm(&x.clone(), weight, eps, &mut x);
    }
    let mut y = Vec::new();
    for part in &*parts.parts {
        let mut out = vec![f32::NAN; part.shape()[0]];
        part.matmul_t_with(Isa::get(), &x, 1, &mut out);
        y.extend(out);
    }
    if let Some(bias) = around.bias {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    if around.gate.is_some() {
        let (gate, up) = y.split_at(y.len() / 2);
        let mut out = vec![f32::NAN; up.len()];
        gelu_tanh_mul(gate, up, &mut out);
        y = out;
    }
    if let Some((weight, eps)) = around.norm_after {
        rms_norm(&y.clone(), weight, eps, &mut y);
    }
    if let Some(add) = around.add {
        y.iter_mut().zip(add).for_each(|(y, x)| *y += x);
    }
    y
}

#[test]
fn what_is_done_around_products_changes_no_bit_for_any_number_of_rows() {
    let mut noise = Noise(17);
    for (arithmetic, alike, outputs) in [
        (Arithmetic::Rounded, true, 40),
        (Arithmetic::Rounded, true, 700),
        (Arithmetic::Rounded, false, 300),
        (Arithmetic::Exact, true, 40),
    ] {
        let parts = pair(arithmetic, alike, outputs);
        let (weight, biases) = (noise.floats(256), noise.floats(2 * outputs));
        for (norm, bias, gate, after, add) in [
            (true, false, false, false, false),
            (true, false, true, false, false),
            (false, true, true, true, false),
            (true, true, false, false, true),
            (true, false, true, true, true),
        ] {
            let width = if gate { outputs } else { 2 * outputs };
            let after_weight = noise.floats(width);
            for rows in [1, 2, 7, 600] {
                let (x, residual) = (noise.floats(rows * 256), noise.floats(rows * width));
                let around = |rows: Range<usize>| Around {
                    norm: norm.then_some((weight.as_slice(), 0.3)),
                    bias: bias.then_some(biases.as_slice()),
                    gate: gate.then_some(Gate::GeluTanh),
                    norm_after: after.then_some((after_weight.as_slice(), 0.3)),
                    add: add.then_some(&residual[rows.start * width..rows.end * width]),
                };
                let mut out = vec![f32::NAN; rows * width];
                parts.matmul_t(&x, &around(0..rows), &mut out);
                for (row, out) in out.chunks(width).enumerate() {
                    let want = one_by_one(&parts, &x[row * 256..][..256], &around(row..row + 1));
                    let what = (arithmetic, alike, outputs, gate, rows, row);
                    assert_eq!(bits(out), bits(&want), "{what:?}");
                }
            }
        }
    }
}

#[test]
fn matrices_of_other_widths_are_not_joined() {
    let one = pair(Arithmetic::Rounded, true, 40);
    let case = Case::dense(DType::F32, 40, 64);
    let other = CpuMatrix::pack(&case.packed(), Arithmetic::Rounded, &|_| ()).unwrap();
    assert!(CpuMatrices::join(&[&one, &CpuMatrices::one(other)]).is_none());
    assert!(CpuMatrices::join(&[]).is_none());
}
