use super::nd::{Nd, Rng, assert_close, assert_same, download, upload, views};
use super::{Expect, FLOATS, Plain, tolerance};
use crate::{Backend, DType, Result, Shape, Tensor};

/// Holds a fused operation to a reference, its default to the same, and the two to each other.
#[track_caller]
pub(super) fn check_fused<T: Tensor>(
    what: &str,
    fused: Result<T>,
    default: Result<Plain<T>>,
    dtype: DType,
    want: &Nd,
    tolerance: f64,
) {
    let fused = fused.unwrap_or_else(|e| panic!("{what}: {e}"));
    let default = default.unwrap_or_else(|e| panic!("default of {what}: {e}"));
    assert_close(what, &fused, dtype, want, tolerance);
    assert_close(
        &format!("default of {what}"),
        &default,
        dtype,
        want,
        tolerance,
    );
    let default = download(&default);
    assert_close(
        &format!("{what}, against its default,"),
        &fused,
        dtype,
        &default,
        tolerance,
    );
}

/// The last axis of every row.
fn rows(data: &Nd) -> impl Iterator<Item = &[f64]> {
    let n = data.shape.last("rows").unwrap();
    data.values.chunks(n.max(1))
}

fn by_row(data: &Nd, f: impl Fn(&[f64]) -> Vec<f64>) -> Nd {
    Nd::new(data.shape, rows(data).flat_map(f).collect())
}

/// `rms_norm` and `layer_norm`.
pub fn norms<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(20);
    for dtype in FLOATS {
        for shape in [
            Shape::from([7]),
            [3, 1].into(),
            [2, 64].into(),
            [0, 8].into(),
            [3, 2, 80].into(),
            [2, 2, 3, 16].into(),
            [2, 1030].into(),
        ] {
            let n = shape.last("norm").unwrap();
            let x = Nd::random(shape, &mut rng).map(|v| v + 0.5).rounded(dtype);
            // Checkpoints may keep norms wider than the activations.
            for weights in [dtype, DType::F32] {
                let w = Nd::random([n], &mut rng).rounded(weights);
                let b = Nd::random([n], &mut rng).rounded(weights);
                let (weight, bias) = (upload(backend, &w, weights), upload(backend, &b, weights));
                let (plain_weight, plain_bias) = (Plain(weight.clone()), Plain(bias.clone()));
                for (view, t) in views(backend, &x, dtype) {
                    let plain = Plain(t.clone());
                    for eps in [1e-5, 0.5] {
                        let want = by_row(&x, |row| rms(row, &w.values, f64::from(eps)));
                        check_fused(
                            &format!("rms_norm of {view}, {weights} weights,"),
                            t.rms_norm(&weight, eps),
                            plain.rms_norm(&plain_weight, eps),
                            dtype,
                            &want,
                            tolerance(dtype),
                        );
                        let zeros = vec![0.0; n];
                        for (b, bias, plain_bias) in [
                            (&b.values, Some(&bias), Some(&plain_bias)),
                            (&zeros, None, None),
                        ] {
                            let want = by_row(&x, |row| layer(row, &w.values, b, f64::from(eps)));
                            check_fused(
                                &format!("layer_norm of {view}, {weights} weights,"),
                                t.layer_norm(&weight, bias, eps),
                                plain.layer_norm(&plain_weight, plain_bias, eps),
                                dtype,
                                &want,
                                tolerance(dtype),
                            );
                        }
                    }
                }
            }
        }
    }
}

fn rms(row: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
    let scaled = row.iter().map(|v| v / (mean + eps).sqrt());
    scaled.zip(weight).map(|(v, w)| v * w).collect()
}

fn layer(row: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
    let scaled = row.iter().map(|v| (v - mean) / (var + eps).sqrt());
    let scaled = scaled.zip(weight).map(|(v, w)| v * w);
    scaled.zip(bias).map(|(v, b)| v + b).collect()
}

/// `softmax`, also of large scores and of scores that are masked out.
pub fn softmaxes<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(21);
    let inf = f64::INFINITY;
    let edges = vec![1e4, 9990.0, -1e4, -inf, 1.0, -inf, 0.0, 2.0];
    for dtype in FLOATS {
        let shapes: [Shape; 6] = [
            [1].into(),
            [5].into(),
            [0, 4].into(),
            [3, 33].into(),
            [2, 3, 1025].into(),
            [2, 2, 2, 3].into(),
        ];
        let random = shapes.into_iter().map(|s| Nd::random(s, &mut rng));
        for x in random.chain([Nd::new([2, 4], edges.clone())]) {
            let x = x.rounded(dtype);
            let want = by_row(&x, |row| {
                let top = row.iter().copied().fold(-inf, f64::max);
                let e: Vec<f64> = row.iter().map(|v| (v - top).exp()).collect();
                let sum: f64 = e.iter().sum();
                e.iter().map(|v| v / sum).collect()
            });
            for (view, t) in views(backend, &x, dtype) {
                let plain = Plain(t.clone()).softmax();
                let what = format!("softmax of {view}");
                check_fused(&what, t.softmax(), plain, dtype, &want, tolerance(dtype));
            }
        }
    }
}

/// `silu_mul` and `gelu_tanh_mul`, also far from 0.
pub fn gated_products<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(22);
    for dtype in FLOATS {
        for shape in [
            Shape::from([9]),
            [0, 4].into(),
            [3, 65].into(),
            [2, 3, 8].into(),
        ] {
            let wide = Nd::random(shape, &mut rng).map(|v| v * 60.0);
            let up = Nd::random(shape, &mut rng).rounded(dtype);
            for x in [Nd::random(shape, &mut rng), wide] {
                let x = x.rounded(dtype);
                let ups = views(backend, &up, dtype);
                for (i, (view, t)) in views(backend, &x, dtype).iter().enumerate() {
                    let u = &ups[(i + 1) % ups.len()].1;
                    let (plain, plain_up) = (Plain(t.clone()), Plain(u.clone()));
                    let gated =
                        |f: &dyn Fn(f64) -> f64| Nd::from_fn(shape, |i| f(x.at(i)) * up.at(i));
                    check_fused(
                        &format!("silu_mul of {view}"),
                        t.silu_mul(u),
                        plain.silu_mul(&plain_up),
                        dtype,
                        &gated(&|x| x / (1.0 + (-x).exp())),
                        tolerance(dtype),
                    );
                    let root = (2.0 / std::f64::consts::PI).sqrt();
                    check_fused(
                        &format!("gelu_tanh_mul of {view}"),
                        t.gelu_tanh_mul(u),
                        plain.gelu_tanh_mul(&plain_up),
                        dtype,
                        &gated(&|x| 0.5 * x * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh())),
                        tolerance(dtype),
                    );
                }
            }
        }
    }
}

/// `argmax` and `top_k`: exact, the lowest position first among equals, NaN last.
pub fn largest_elements<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(23);
    let inf = f64::INFINITY;
    let with_nan = Nd::new(
        [2, 4],
        vec![1.0, f64::NAN, inf, -inf, f64::NAN, -1.0, -inf, -1.0],
    );
    for dtype in FLOATS {
        let mut all = vec![with_nan.clone()];
        for shape in [
            Shape::from([1]),
            [6].into(),
            [3, 40].into(),
            [2, 3, 1000].into(),
        ] {
            all.push(Nd::random(shape, &mut rng));
            all.push(Nd::from_fn(shape, |_| (rng.next() % 3) as f64));
        }
        for x in all {
            let x = x.rounded(dtype);
            let n = x.shape.last("top").unwrap();
            let order: Vec<Vec<usize>> = rows(&x).map(falling).collect();
            for (view, t) in views(backend, &x, dtype) {
                let plain = Plain(t.clone());
                let outer = &x.shape.as_slice()[..x.shape.rank() - 1];
                if !x.values.iter().any(|v| v.is_nan()) {
                    let first = order.iter().map(|o| o[0] as f64).collect();
                    let want = Nd::new(Shape::new(outer).unwrap(), first);
                    let what = format!("argmax of {view}");
                    let (fused, default) = (t.argmax(), plain.argmax());
                    check_fused(&what, fused, default, DType::U32, &want, 0.0);
                }
                for k in [0, 1, n.min(3), n] {
                    let shape = x.shape.with_dim("top", x.shape.rank() - 1, k).unwrap();
                    let taken = || order.iter().map(|o| &o[..k]).zip(rows(&x));
                    let values = taken().flat_map(|(o, row)| o.iter().map(|&i| row[i]));
                    let at = taken().flat_map(|(o, _)| o.iter().map(|&i| i as f64));
                    let values = Nd::new(shape, values.collect());
                    let at = Nd::new(shape, at.collect());
                    let (got, got_at) = t.top_k(k).unwrap();
                    assert_same(&format!("top_k({k}) of {view}"), &got, dtype, &values);
                    let what = format!("positions of top_k({k}) of {view}");
                    assert_same(&what, &got_at, DType::U32, &at);
                    let (got, got_at) = plain.top_k(k).unwrap();
                    assert_same("default of top_k", &got, dtype, &values);
                    assert_same("default of top_k's positions", &got_at, DType::U32, &at);
                }
            }
        }
    }
}

/// Positions by falling value, NaN last; the sort is stable.
fn falling(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| {
        let nan = row[a].is_nan().cmp(&row[b].is_nan());
        nan.then(
            row[b]
                .partial_cmp(&row[a])
                .unwrap_or(std::cmp::Ordering::Equal),
        )
    });
    order
}
