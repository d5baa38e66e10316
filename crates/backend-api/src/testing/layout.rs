use super::Expect;
use super::nd::{Nd, Rng, assert_same, shapes, upload, views};
use crate::{Backend, DType, Shape, Tensor};

/// Whole numbers that every element type holds.
fn counted(shape: impl Into<Shape>, start: usize) -> Nd {
    let mut next = start;
    Nd::from_fn(shape, |_| {
        next += 1;
        (next % 101) as f64
    })
}

/// Elements of every shape, and of one whose rows are all alike.
fn data() -> Vec<Nd> {
    let alike = Nd::from_fn([3, 2, 4], |i| (i[1] * 4 + i[2]) as f64);
    shapes()
        .into_iter()
        .map(|shape| counted(shape, 0))
        .chain([alike])
        .collect()
}

/// `reshape` and `swap_axes`; `to_bytes` of views is row-major.
pub fn reshapes<B: Backend>(backend: &B, _: &Expect) {
    for dtype in DType::ALL {
        for data in data() {
            let n = data.values.len();
            let rank = data.shape.rank();
            for (view, tensor) in views(backend, &data, dtype) {
                assert_same(view, &tensor, dtype, &data);
                let mut targets = vec![Shape::from([n]), [1, n].into(), [n, 1, 1].into()];
                if n % 2 == 0 && n > 0 {
                    targets.extend([Shape::from([2, n / 2]), [n / 2, 1, 2].into()]);
                }
                for target in targets {
                    let want = Nd::new(target, data.values.clone());
                    let got = tensor.reshape(target).unwrap();
                    assert_same(&format!("reshape of {view}"), &got, dtype, &want);
                }
                for a in 0..rank {
                    for b in 0..rank {
                        let got = tensor.swap_axes(a, b).unwrap();
                        let what = format!("swap_axes({a}, {b}) of {view}");
                        assert_same(&what, &got, dtype, &data.swap_axes(a, b));
                        let back = got.reshape([n]).unwrap();
                        let flat = Nd::new([n], data.swap_axes(a, b).values);
                        assert_same(&format!("reshape of {what}"), &back, dtype, &flat);
                    }
                }
            }
        }
    }
}

/// `broadcast_to`.
pub fn stretches<B: Backend>(backend: &B, _: &Expect) {
    let cases: [(Shape, Shape); 9] = [
        ([].into(), [2, 3].into()),
        ([1].into(), [4].into()),
        ([3].into(), [3].into()),
        ([3].into(), [2, 3].into()),
        ([3, 1].into(), [3, 4].into()),
        ([1, 4].into(), [2, 3, 4].into()),
        ([2, 1, 3].into(), [2, 2, 4, 3].into()),
        ([1, 2].into(), [0, 2].into()),
        ([2, 1].into(), [2, 0].into()),
    ];
    for dtype in DType::ALL {
        for (from, to) in cases {
            let data = counted(from, 3);
            let want = Nd::from_fn(to, |index| data.at(index));
            for (view, tensor) in views(backend, &data, dtype) {
                let got = tensor.broadcast_to(to).unwrap();
                let what = format!("broadcast_to {to} of {view} {from}");
                assert_same(&what, &got, dtype, &want);
            }
        }
    }
}

/// `narrow`.
pub fn slices<B: Backend>(backend: &B, _: &Expect) {
    for dtype in DType::ALL {
        for data in data() {
            for axis in 0..data.shape.rank() {
                let len = data.shape.as_slice()[axis];
                let ranges = [
                    (0, len),
                    (0, 0),
                    (len, 0),
                    (len / 2, len - len / 2),
                    (0, len / 2),
                ];
                for (view, tensor) in views(backend, &data, dtype) {
                    for (start, len) in ranges {
                        let got = tensor.narrow(axis, start, len).unwrap();
                        let what = format!("narrow({axis}, {start}, {len}) of {view}");
                        assert_same(&what, &got, dtype, &slice(&data, axis, start, len));
                        let again = got.narrow(axis, len / 2, len - len / 2).unwrap();
                        let want = slice(&data, axis, start + len / 2, len - len / 2);
                        assert_same(&format!("narrow of {what}"), &again, dtype, &want);
                    }
                }
            }
        }
    }
}

fn slice(data: &Nd, axis: usize, start: usize, len: usize) -> Nd {
    let shape = data.shape.with_dim("slice", axis, len).unwrap();
    Nd::from_fn(shape, |index| {
        let mut from = index.to_vec();
        from[axis] += start;
        data.at(&from)
    })
}

/// `concat`.
pub fn joins<B: Backend>(backend: &B, _: &Expect) {
    for dtype in DType::ALL {
        for shape in shapes() {
            for axis in 0..shape.rank() {
                let lengths = [2, 0, 1, 3];
                let parts: Vec<Nd> = lengths
                    .iter()
                    .map(|&len| counted(shape.with_dim("part", axis, len).unwrap(), 11 * len))
                    .collect();
                let want = Nd::from_fn(shape.with_dim("all", axis, 6).unwrap(), |index| {
                    let mut from = index.to_vec();
                    for (part, len) in parts.iter().zip(lengths) {
                        if from[axis] < len {
                            return part.at(&from);
                        }
                        from[axis] -= len;
                    }
                    unreachable!("the lengths sum to 6")
                });
                // One part is a view each time.
                for (view, first) in views(backend, &parts[0], dtype) {
                    let rest: Vec<B::Tensor> = parts[1..]
                        .iter()
                        .map(|part| upload(backend, part, dtype))
                        .collect();
                    let all = [&first, &rest[0], &rest[1], &rest[2]];
                    let got = B::Tensor::concat(&all, axis).unwrap();
                    assert_same(&format!("concat({axis}) of {view}"), &got, dtype, &want);
                    let alone = B::Tensor::concat(&[&first], axis).unwrap();
                    assert_same(&format!("concat of one {view}"), &alone, dtype, &parts[0]);
                }
            }
        }
    }
}

/// `write_slice`, as a key-value cache uses it: several writes one after the other, from views.
pub fn writes<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(3);
    for dtype in DType::ALL {
        for (shape, axis) in [
            (Shape::from([7]), 0),
            ([5, 3].into(), 0),
            ([3, 7].into(), 1),
            ([2, 8, 3].into(), 1),
            ([2, 3, 5, 2].into(), 2),
        ] {
            let room = shape.as_slice()[axis];
            let mut want = Nd::from_fn(shape, |_| 0.0);
            let mut cache = backend.zeros(shape, dtype).unwrap();
            for (start, len) in [(0, 2), (2, 1), (room - 1, 1), (1, 3), (room, 0), (0, room)] {
                let src = counted(
                    shape.with_dim("src", axis, len).unwrap(),
                    rng.next() as usize % 50,
                );
                for (index, v) in want.values.iter_mut().enumerate() {
                    let inner: usize = shape.as_slice()[axis + 1..].iter().product();
                    let at = index / inner % room;
                    if (start..start + len).contains(&at) {
                        let row = index / inner / room * len + at - start;
                        *v = src.values[row * inner + index % inner];
                    }
                }
                for (view, src) in views(backend, &src, dtype) {
                    cache = cache.write_slice(axis, start, &src).unwrap();
                    let what = format!("write_slice({axis}, {start}) of {view} x {len}");
                    assert_same(&what, &cache, dtype, &want);
                }
            }
            // Onto views too: what lies outside a view is none of its business.
            let whole = counted(shape, 9);
            let one = Nd::from_fn(shape.with_dim("one", axis, 1).unwrap(), |_| 100.0);
            let want = Nd::from_fn(shape, |i| if i[axis] == 1 { 100.0 } else { whole.at(i) });
            let src = upload(backend, &one, dtype);
            for (view, target) in views(backend, &whole, dtype) {
                let got = target.write_slice(axis, 1, &src).unwrap();
                assert_same(&format!("write_slice to {view}"), &got, dtype, &want);
            }
        }
    }
}
