use super::nd::{Nd, Rng, assert_close, assert_same, shapes, upload, views};
use super::{Expect, FLOATS, tolerance};
use crate::{Backend, BinaryOp, DType, Error, ReduceOp, Shape, Tensor, UnaryOp};

fn apply_unary(op: UnaryOp, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Recip => 1.0 / x,
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
    }
}

/// `unary` and `affine`, also where results are infinite or no number.
pub fn unaries<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(10);
    let edges = [
        0.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        100.0,
        -100.0,
    ];
    let edges = Nd::new([edges.len()], edges.to_vec());
    let alike = Nd::from_fn([3, 4], |i| i[1] as f64 - 1.5);
    for dtype in FLOATS {
        let random = shapes().into_iter().map(|s| Nd::random(s, &mut rng));
        for data in random.chain([edges.clone(), alike.clone()]) {
            let data = data.rounded(dtype);
            for (view, x) in views(backend, &data, dtype) {
                for op in UnaryOp::ALL {
                    let want = data.map(|v| apply_unary(op, v));
                    let got = x.unary(op).unwrap();
                    let what = format!("{op:?} of {view}");
                    assert_close(&what, &got, dtype, &want, tolerance(dtype));
                }
                for (mul, add) in [(1.5, -0.25), (1.0 / 768.0, 1e-6), (0.0, 3.0)] {
                    let want = data.map(|v| v * mul + add);
                    let got = x.affine(mul, add).unwrap();
                    let what = format!("affine({mul}, {add}) of {view}");
                    assert_close(&what, &got, dtype, &want, tolerance(dtype));
                }
            }
        }
    }
}

fn apply_binary(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Max => a.max(b),
        BinaryOp::Min => a.min(b),
    }
}

/// `binary`, with broadcasting on both sides.
pub fn binaries<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(11);
    let mut pairs: Vec<(Shape, Shape)> = vec![
        ([2, 3, 4].into(), [4].into()),
        ([4].into(), [2, 3, 4].into()),
        ([2, 3, 4].into(), [2, 3, 1].into()),
        ([2, 3, 4].into(), [3, 1].into()),
        ([3, 1].into(), [1, 4].into()),
        ([2, 1, 4, 1].into(), [3, 1, 5].into()),
        ([].into(), [2, 2].into()),
        ([2, 2].into(), [].into()),
        ([0, 3].into(), [1, 3].into()),
        ([2, 0].into(), [1].into()),
    ];
    pairs.extend(shapes().into_iter().map(|s| (s, s)));
    for dtype in FLOATS {
        for &(a, b) in &pairs {
            let (a, b) = (Nd::random(a, &mut rng), Nd::random(b, &mut rng));
            let (a, b) = (a.rounded(dtype), b.rounded(dtype));
            let lhs = views(backend, &a, dtype);
            let rhs = views(backend, &b, dtype);
            let pairs = (lhs.iter().map(|l| (l, &rhs[0]))).chain(rhs.iter().map(|r| (&lhs[0], r)));
            for ((left, x), (right, y)) in pairs {
                for op in BinaryOp::ALL {
                    check_binary(&format!("{left}, {right}"), (op, dtype), (x, &a), (y, &b));
                }
            }
        }
        let inf = f64::INFINITY;
        let a = Nd::new([5], vec![1.0, 0.0, inf, inf, -inf]);
        let b = Nd::new([5], vec![0.0, 0.0, inf, 0.0, 2.0]);
        let (x, y) = (upload(backend, &a, dtype), upload(backend, &b, dtype));
        for op in BinaryOp::ALL {
            check_binary("edges", (op, dtype), (&x, &a), (&y, &b));
        }
    }
}

fn check_binary<T: Tensor>(
    what: &str,
    (op, dtype): (BinaryOp, DType),
    (x, a): (&T, &Nd),
    (y, b): (&T, &Nd),
) {
    let shape = a.shape.broadcast("binary", &b.shape).unwrap();
    let want = Nd::from_fn(shape, |i| apply_binary(op, a.at(i), b.at(i)));
    let got = x.binary(op, y).unwrap();
    let what = format!("{op:?} of {what} {} {}", a.shape, b.shape);
    assert_close(&what, &got, dtype, &want, tolerance(dtype));
}

/// `select`.
pub fn selections<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(12);
    for dtype in FLOATS.into_iter().chain([DType::U32]) {
        for (mask, shape) in [
            (Shape::from([5]), Shape::from([5])),
            ([].into(), [3].into()),
            ([2, 3].into(), [2, 3].into()),
            ([3].into(), [2, 3].into()),
            ([2, 1].into(), [2, 3].into()),
            ([3, 4].into(), [2, 3, 4].into()),
            ([1, 1, 4].into(), [2, 3, 4].into()),
            ([0, 2].into(), [0, 2].into()),
        ] {
            // Anything but 0 is true.
            let mask = Nd::from_fn(mask, |_| [0.0, 1.0, 2.0, 255.0][rng.next() as usize % 4]);
            let a = Nd::from_fn(shape, |_| (rng.next() % 50) as f64);
            let b = Nd::from_fn(shape, |_| 50.0 + (rng.next() % 50) as f64);
            let want = Nd::from_fn(shape, |i| if mask.at(i) != 0.0 { a.at(i) } else { b.at(i) });
            let masks = views(backend, &mask, DType::U8);
            let trues = views(backend, &a, dtype);
            let falses = views(backend, &b, dtype);
            let longest = masks.len().max(trues.len());
            for i in 0..longest {
                let (m, t, f) = (
                    &masks[i % masks.len()],
                    &trues[i % trues.len()],
                    &falses[(i + 1) % falses.len()],
                );
                let got = B::Tensor::select(&m.1, &t.1, &f.1).unwrap();
                let what = format!("select {} {}, {}, {}", mask.shape, m.0, t.0, f.0);
                assert_same(&what, &got, dtype, &want);
            }
        }
    }
}

/// `matmul`: plain, in batches, and with one right-hand side for a batch.
pub fn matmuls<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(13);
    for dtype in FLOATS {
        for (a, b) in [
            (Shape::from([2, 3]), Shape::from([3, 4])),
            ([1, 1].into(), [1, 1].into()),
            ([1, 64].into(), [64, 5].into()),
            ([33, 65].into(), [65, 17].into()),
            ([0, 3].into(), [3, 2].into()),
            ([2, 0].into(), [0, 3].into()),
            ([2, 3].into(), [3, 0].into()),
            ([3, 5, 4].into(), [3, 4, 6].into()),
            ([1, 5, 4].into(), [1, 4, 1].into()),
            ([2, 3, 1, 4].into(), [2, 3, 4, 7].into()),
            ([3, 5, 4].into(), [4, 6].into()),
            ([2, 3, 5, 4].into(), [4, 6].into()),
            ([0, 2, 4].into(), [4, 6].into()),
        ] {
            let k = a.last("k").unwrap();
            // So that the products sum to about 1 whatever the length.
            let scale = 1.0 / (k.max(1) as f64).sqrt();
            let a = Nd::random(a, &mut rng).map(|v| v * scale).rounded(dtype);
            let b = Nd::random(b, &mut rng).rounded(dtype);
            let lhs = views(backend, &a, dtype);
            let rhs = views(backend, &b, dtype);
            let rank = a.shape.rank();
            let n = b.shape.last("n").unwrap();
            let shape = a.shape.with_dim("out", rank - 1, n).unwrap();
            let want = Nd::from_fn(shape, |i| {
                let (mut left, mut right) = (i.to_vec(), i.to_vec());
                (0..k)
                    .map(|j| {
                        left[rank - 1] = j;
                        right[rank - 2] = j;
                        a.at(&left) * b.at(&right)
                    })
                    .sum()
            });
            let pairs = (lhs.iter().map(|l| (l, &rhs[0]))).chain(rhs.iter().map(|r| (&lhs[0], r)));
            for ((left, x), (right, y)) in pairs {
                let got = x.matmul(y).unwrap();
                let what = format!("matmul of {left} {}, {right} {}", a.shape, b.shape);
                assert_close(&what, &got, dtype, &want, tolerance(dtype));
            }
        }
    }
}

/// `reduce`; the lowest position wins among equals.
pub fn reductions<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(14);
    let shapes = shapes()
        .into_iter()
        .chain([[2, 1000].into(), [1000, 2].into()]);
    for dtype in FLOATS {
        for shape in shapes.clone() {
            let few = Nd::from_fn(shape, |_| (rng.next() % 4) as f64 / 4.0 - 0.75);
            for data in [Nd::random(shape, &mut rng), few] {
                for axis in 0..shape.rank() {
                    let len = shape.as_slice()[axis];
                    // So that the sum stays small whatever the length.
                    let data = data.map(|v| v / len.max(1) as f64).rounded(dtype);
                    for (view, x) in views(backend, &data, dtype) {
                        check_reductions(view, &x, &data, axis, dtype);
                    }
                }
            }
        }
    }
}

fn check_reductions<T: Tensor>(view: &str, x: &T, data: &Nd, axis: usize, dtype: DType) {
    let shape = data.shape;
    let len = shape.as_slice()[axis];
    let kept = shape.with_dim("reduce", axis, 1).unwrap();
    let lane = |index: &[usize]| -> Vec<f64> {
        let mut from = index.to_vec();
        (0..len)
            .map(|i| {
                from[axis] = i;
                data.at(&from)
            })
            .collect()
    };
    let what = |op: &str| format!("{op} over axis {axis} of {view}");
    // A long sum in half precision depends on the order too much to be held to anything.
    if dtype == DType::F32 || len < 100 {
        let want = Nd::from_fn(kept, |i| lane(i).iter().sum());
        let got = x.reduce(ReduceOp::Sum, axis).unwrap();
        assert_close(&what("sum"), &got, dtype, &want, tolerance(dtype));
    }
    if len == 0 {
        for op in [ReduceOp::Max, ReduceOp::ArgMax] {
            let got = x.reduce(op, axis);
            assert!(
                matches!(got, Err(Error::OutOfRange { .. })),
                "{op:?} of an axis of length 0 gave {got:?}"
            );
        }
        return;
    }
    let top = |lane: &[f64]| lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let want = Nd::from_fn(kept, |i| top(&lane(i)));
    let got = x.reduce(ReduceOp::Max, axis).unwrap();
    assert_same(&what("max"), &got, dtype, &want);
    let want = Nd::from_fn(kept, |i| {
        let lane = lane(i);
        let top = top(&lane);
        lane.iter().position(|&v| v == top).unwrap() as f64
    });
    let got = x.reduce(ReduceOp::ArgMax, axis).unwrap();
    assert_same(&what("argmax"), &got, DType::U32, &want);
}

/// `take_rows`, with numbers from the host and from the device.
pub fn row_lookups<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(15);
    for dtype in FLOATS {
        let table = Nd::random([6, 5], &mut rng).rounded(dtype);
        for (view, rows) in views(backend, &table, dtype) {
            for ids in [&[0u32][..], &[5, 0, 5, 3], &[]] {
                let want = Nd::from_fn([ids.len(), 5], |i| table.at(&[ids[i[0]] as usize, i[1]]));
                let numbers = Nd::new([ids.len()], ids.iter().map(|&i| f64::from(i)).collect());
                for (ids_view, ids) in views(backend, &numbers, DType::U32) {
                    let got = rows.take_rows(&ids).unwrap();
                    let what = format!("take_rows of {view} by {ids_view} ids");
                    assert_same(&what, &got, dtype, &want);
                }
            }
            // Numbers that only the device knows.
            let wanted = [4usize, 1, 9];
            let scores = Nd::from_fn([3, 10], |i| f64::from(u8::from(i[1] == wanted[i[0]])));
            let best = upload(backend, &scores, dtype).argmax().unwrap();
            let fine = best.narrow(0, 0, 2).unwrap();
            let want = Nd::from_fn([2, 5], |i| table.at(&[wanted[i[0]], i[1]]));
            let got = rows.take_rows(&fine).unwrap();
            assert_same(
                &format!("take_rows of {view} by argmax"),
                &got,
                dtype,
                &want,
            );
            let beyond = rows.take_rows(&best).and_then(|t| t.to_bytes());
            assert!(
                matches!(beyond, Err(Error::OutOfRange { .. })),
                "take_rows of row 9 of 6, computed on the device, gave {beyond:?}"
            );
        }
    }
}
