use super::Expect;
use super::nd::{Nd, Rng, assert_same, upload};
use crate::{
    AttentionMask, Backend, BinaryOp, DType, Error, ReduceOp, RopeAngles, Shape, Tensor, UnaryOp,
};

/// The call must give this kind of error.
macro_rules! refused {
    ($kind:ident, $call:expr) => {
        match $call {
            Err($crate::Error::$kind { .. }) => {}
            Err(other) => panic!(
                "{}: expected Error::{}, got: {other:?}",
                stringify!($call),
                stringify!($kind)
            ),
            Ok(_) => panic!(
                "{}: expected Error::{}, but it succeeded",
                stringify!($call),
                stringify!($kind)
            ),
        }
    };
}
pub(super) use refused;

/// The backend computes as before whatever was refused.
pub(super) fn still_works<B: Backend>(backend: &B) {
    let a = Nd::random([2, 3], &mut Rng(40)).rounded(DType::F32);
    let x = upload(backend, &a, DType::F32);
    let sum = x.add(&x).unwrap();
    assert_same("add after errors", &sum, DType::F32, &a.map(|v| 2.0 * v));
    let eye = Nd::from_fn([3, 3], |i| f64::from(u8::from(i[0] == i[1])));
    let product = x.matmul(&upload(backend, &eye, DType::F32)).unwrap();
    assert_same("matmul after errors", &product, DType::F32, &a);
}

/// Wrong arguments of every primitive give the documented errors.
pub fn wrong_arguments<B: Backend>(backend: &B, _: &Expect) {
    let f = |shape: Shape| backend.zeros(shape, DType::F32).unwrap();
    let t = |shape: Shape, dtype| backend.zeros(shape, dtype).unwrap();
    let x = &f([2, 3].into());
    let ids = &t([2].into(), DType::U32);
    let half = &t([2, 3].into(), DType::F16);

    for bytes in [0, 23, 25] {
        refused!(
            Bytes,
            backend.from_bytes(&vec![0; bytes], DType::F32, [2, 3])
        );
        refused!(
            Bytes,
            x.from_bytes_like(&vec![0; bytes], DType::F32, [2, 3])
        );
    }
    refused!(Bytes, backend.from_f32s(&[0.0; 5], [2, 3]));
    refused!(Bytes, backend.from_u32s(&[0; 5], [2, 3]));
    refused!(DType, x.to_u32s());

    refused!(Shape, x.reshape([7]));
    refused!(Shape, x.reshape([]));
    refused!(Axis, x.swap_axes(0, 2));
    refused!(Axis, x.swap_axes(usize::MAX, 0));
    refused!(Axis, f([].into()).swap_axes(0, 0));
    refused!(Shape, x.broadcast_to([2, 4]));
    refused!(Shape, x.broadcast_to([3]));
    refused!(Shape, x.broadcast_to([3, 2]));
    refused!(Shape, x.broadcast_to([1, 3]));

    refused!(OutOfRange, B::Tensor::concat(&[], 0));
    refused!(Axis, B::Tensor::concat(&[x, x], 2));
    refused!(Axis, B::Tensor::concat(&[x], 2));
    refused!(Shape, B::Tensor::concat(&[x, &f([2, 4].into())], 0));
    refused!(Shape, B::Tensor::concat(&[x, &f([3].into())], 0));
    refused!(DType, B::Tensor::concat(&[x, half], 0));

    refused!(Axis, x.narrow(2, 0, 0));
    refused!(OutOfRange, x.narrow(1, 0, 4));
    refused!(OutOfRange, x.narrow(1, 3, 1));
    refused!(OutOfRange, x.narrow(1, 4, 0));
    refused!(OutOfRange, x.narrow(1, usize::MAX, usize::MAX));

    refused!(Axis, x.clone().write_slice(2, 0, x));
    refused!(OutOfRange, x.clone().write_slice(0, 1, x));
    refused!(OutOfRange, x.clone().write_slice(0, usize::MAX, x));
    refused!(Shape, x.clone().write_slice(0, 0, &f([1, 2].into())));
    refused!(Shape, x.clone().write_slice(0, 0, &f([3].into())));
    refused!(DType, x.clone().write_slice(0, 0, half));

    for dtype in [DType::U32, DType::I32, DType::U8] {
        let int = &t([2, 3].into(), dtype);
        for op in UnaryOp::ALL {
            refused!(DType, int.unary(op));
        }
        for op in BinaryOp::ALL {
            refused!(DType, int.binary(op, int));
            refused!(DType, x.binary(op, int));
        }
        for op in ReduceOp::ALL {
            refused!(DType, int.reduce(op, 0));
        }
        refused!(DType, int.affine(1.0, 0.0));
        refused!(DType, int.matmul(&t([3, 2].into(), dtype)));
    }
    for op in BinaryOp::ALL {
        refused!(DType, x.binary(op, half));
        refused!(Shape, x.binary(op, &f([2].into())));
        refused!(Shape, x.binary(op, &f([4, 2, 4].into())));
    }

    refused!(Rank, x.matmul(&f([3].into())));
    refused!(Rank, f([3].into()).matmul(x));
    refused!(Rank, f([].into()).matmul(&f([].into())));
    refused!(Shape, x.matmul(x));
    refused!(Shape, f([2, 2, 3].into()).matmul(&f([3, 3, 2].into())));
    refused!(Shape, f([2, 2, 3].into()).matmul(&f([1, 3, 2].into())));
    refused!(Shape, x.matmul(&f([2, 3, 4].into())));
    refused!(DType, x.matmul(&t([3, 2].into(), DType::F16)));

    let mask = &t([2, 3].into(), DType::U8);
    refused!(DType, B::Tensor::select(x, x, x));
    refused!(DType, B::Tensor::select(mask, x, half));
    refused!(Shape, B::Tensor::select(mask, x, &f([2, 4].into())));
    refused!(Shape, B::Tensor::select(&t([2].into(), DType::U8), x, x));

    for op in ReduceOp::ALL {
        refused!(Axis, x.reduce(op, 2));
        refused!(Axis, f([].into()).reduce(op, 0));
    }

    refused!(Rank, f([3].into()).take_rows(ids));
    refused!(Rank, f([1, 2, 3].into()).take_rows(ids));
    refused!(Rank, x.take_rows(&t([2, 1].into(), DType::U32)));
    refused!(Rank, x.take_rows(&t([].into(), DType::U32)));
    for dtype in [DType::I32, DType::U8, DType::F32] {
        refused!(DType, x.take_rows(&t([2].into(), dtype)));
    }
    for id in [2, 3, i32::MAX as u32, 1 << 31, u32::MAX] {
        let ids = backend.from_u32s(&[0, id], [2]).unwrap();
        // A lazy backend may look at the numbers only when the rows are read.
        refused!(
            OutOfRange,
            x.take_rows(&ids).and_then(|rows| rows.to_bytes())
        );
    }
    let none = backend.zeros([0, 3], DType::F32).unwrap();
    refused!(
        OutOfRange,
        none.take_rows(ids).and_then(|rows| rows.to_bytes())
    );
    still_works(backend);
}

/// Wrong arguments of every fused operation give the documented errors.
pub fn wrong_fused_arguments<B: Backend>(backend: &B, _: &Expect) {
    let f = |shape: Shape| backend.zeros(shape, DType::F32).unwrap();
    let t = |shape: Shape, dtype| backend.zeros(shape, dtype).unwrap();
    let x = &f([2, 3].into());
    let scalar = &f([].into());
    let weight = &f([3].into());
    let ints = &t([2, 3].into(), DType::I32);
    let int_weight = &t([3].into(), DType::U32);

    for bad in [f([2].into()), f([1, 3].into()), f([].into())] {
        refused!(Shape, x.rms_norm(&bad, 1e-5));
        refused!(Shape, x.layer_norm(&bad, None, 1e-5));
        refused!(Shape, x.layer_norm(weight, Some(&bad), 1e-5));
    }
    refused!(Rank, scalar.rms_norm(weight, 1e-5));
    refused!(Rank, scalar.layer_norm(weight, None, 1e-5));
    refused!(DType, ints.rms_norm(weight, 1e-5));
    refused!(DType, x.rms_norm(int_weight, 1e-5));
    refused!(DType, ints.layer_norm(weight, None, 1e-5));
    refused!(DType, x.layer_norm(weight, Some(int_weight), 1e-5));

    for interleaved in [false, true] {
        let angles = RopeAngles::new(backend, &[1, 2], &[1.0, 0.1], interleaved).unwrap();
        refused!(Rank, x.rope(&angles));
        refused!(Shape, f([3, 1, 4].into()).rope(&angles));
        refused!(Shape, f([2, 1, 3].into()).rope(&angles));
        refused!(DType, t([2, 1, 4].into(), DType::I32).rope(&angles));
    }

    let q = &f([4, 2, 8].into());
    let kv = &f([2, 5, 8].into());
    let none = AttentionMask::None;
    for mask in [none, AttentionMask::Causal, AttentionMask::SlidingWindow(2)] {
        refused!(Rank, x.attention(kv, kv, mask, 1.0));
        refused!(Rank, q.attention(x, x, mask, 1.0));
        for bad in [[3, 5, 8], [0, 5, 8], [2, 1, 8], [2, 5, 7]] {
            let bad = f(bad.into());
            refused!(Shape, q.attention(&bad, &bad, mask, 1.0));
        }
        refused!(Shape, q.attention(kv, &f([2, 4, 8].into()), mask, 1.0));
        let half = &t([2, 5, 8].into(), DType::F16);
        refused!(DType, q.attention(half, kv, mask, 1.0));
        refused!(DType, q.attention(kv, half, mask, 1.0));
        let int = &t([2, 5, 8].into(), DType::U32);
        refused!(DType, int.attention(int, int, mask, 1.0));
    }
    refused!(
        Shape,
        q.attention(kv, kv, AttentionMask::SlidingWindow(0), 1.0)
    );
    let no_size = f([2, 5, 0].into());
    refused!(Shape, no_size.attention(&no_size, &no_size, none, 1.0));

    let q = &f([2, 4, 8].into());
    let kv = &f([2, 2, 5, 8].into());
    refused!(Rank, x.attention_each(kv, kv, None, 1.0));
    refused!(Rank, q.attention_each(q, q, None, 1.0));
    for bad in [[1, 2, 5, 8], [2, 3, 5, 8], [2, 2, 0, 8], [2, 2, 5, 7]] {
        let bad = f(bad.into());
        refused!(Shape, q.attention_each(&bad, &bad, None, 1.0));
        refused!(Shape, q.attention_each(kv, &bad, None, 1.0));
    }
    for bad in [f([2, 4].into()), f([1, 5].into()), f([5].into())] {
        refused!(Shape, q.attention_each(kv, kv, Some(&bad), 1.0));
    }
    let half = &t([2, 2, 5, 8].into(), DType::F16);
    refused!(DType, q.attention_each(half, kv, None, 1.0));
    refused!(DType, q.attention_each(kv, half, None, 1.0));
    let half = &t([2, 5].into(), DType::F16);
    refused!(DType, q.attention_each(kv, kv, Some(half), 1.0));

    let half = &t([2, 3].into(), DType::F16);
    for other in [ints, half] {
        refused!(DType, x.silu_mul(other));
        refused!(DType, x.gelu_tanh_mul(other));
    }
    refused!(DType, ints.silu_mul(ints));
    refused!(DType, ints.gelu_tanh_mul(ints));
    refused!(Shape, x.silu_mul(&f([2, 4].into())));
    refused!(Shape, x.gelu_tanh_mul(&f([2, 4].into())));

    refused!(Rank, scalar.softmax());
    refused!(DType, ints.softmax());
    refused!(Rank, scalar.argmax());
    refused!(DType, ints.argmax());
    refused!(OutOfRange, f([2, 0].into()).argmax());
    refused!(Rank, scalar.top_k(0));
    refused!(DType, ints.top_k(1));
    refused!(OutOfRange, x.top_k(4));
    refused!(OutOfRange, x.top_k(usize::MAX));
    still_works(backend);
}

/// Shapes that no memory holds are errors, at once and without an attempt to allocate.
pub fn absurd_shapes<B: Backend>(backend: &B, _: &Expect) {
    let x = backend.zeros([1], DType::F32).unwrap();
    let absurd: [Shape; 6] = [
        [usize::MAX].into(),
        [1 << 60].into(),
        [usize::MAX, 2].into(),
        [1 << 40, 1 << 40].into(),
        [1 << 32, 1 << 32].into(),
        [1 << 20, 1 << 20, 1 << 20, 1 << 4].into(),
    ];
    let start = std::time::Instant::now();
    for shape in absurd {
        for dtype in DType::ALL {
            let zeros = backend.zeros(shape, dtype);
            assert!(
                matches!(zeros, Err(Error::OutOfMemory { .. } | Error::Shape { .. })),
                "zeros of {dtype} {shape} gave {zeros:?}"
            );
            for bytes in [&[][..], &[0; 4]] {
                let made = backend.from_bytes(bytes, dtype, shape);
                let like = x.from_bytes_like(bytes, dtype, shape);
                for got in [made, like] {
                    assert!(
                        matches!(got, Err(Error::Bytes { .. } | Error::OutOfMemory { .. })),
                        "{} bytes for {dtype} {shape} gave {got:?}",
                        bytes.len()
                    );
                }
            }
        }
        refused!(Shape, x.reshape(shape));
        // A view of that size may be possible; it must only not bring the process down.
        drop(x.broadcast_to(shape));
    }
    // No elements, but an axis that no library counts.
    drop(backend.zeros([0, usize::MAX], DType::F32));
    let seconds = start.elapsed().as_secs();
    assert!(seconds < 10, "refusing absurd shapes took {seconds} s");
    still_works(backend);
}
