use super::nd::{Nd, Rng, assert_same, round, shapes, upload, views};
use super::{Expect, FLOATS};
use crate::{Backend, DType, Tensor};

/// Bytes come back as they went in, zeros are zeros, on every type and shape.
pub fn round_trips<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(1);
    for dtype in DType::ALL {
        for shape in shapes() {
            let what = format!("{dtype} {shape}");
            let mut bytes = rng.bytes(shape.numel() * dtype.size());
            if dtype.is_float() {
                // Any bits but those of a NaN, which may become quiet.
                let highest = bytes.iter_mut().skip(dtype.size() - 1);
                highest.step_by(dtype.size()).for_each(|b| *b &= 0xbf);
            }
            let tensor = backend.from_bytes(&bytes, dtype, shape).unwrap();
            assert_eq!((tensor.shape(), tensor.dtype()), (shape, dtype), "{what}");
            assert_eq!(tensor.to_bytes().unwrap(), bytes, "from_bytes {what}");
            let like = tensor.from_bytes_like(&bytes, dtype, shape).unwrap();
            assert_eq!(like.to_bytes().unwrap(), bytes, "from_bytes_like {what}");
            backend.eval(&[&tensor, &like]).unwrap();
            backend.async_eval(&[&tensor]).unwrap();

            let zeros = backend.zeros(shape, dtype).unwrap();
            assert_same("zeros", &zeros, dtype, &Nd::from_fn(shape, |_| 0.0));
            let mut each = backend.zeros_each(3, shape, dtype).unwrap();
            assert_eq!(each.len(), 3);
            if shape.rank() > 0 {
                // Each is written by itself, as caches are: one after the other, again and again.
                for part in [&tensor, &zeros, &tensor] {
                    let second = each.remove(1);
                    each.insert(1, second.write_slice(0, 0, part).unwrap());
                }
                assert_eq!(each[1].to_bytes().unwrap(), bytes, "zeros_each {what}");
                each.remove(1);
            }
            for one in &each {
                assert_same("zeros_each", one, dtype, &Nd::from_fn(shape, |_| 0.0));
            }
        }
    }
    let floats = backend.from_f32s(&[1.5, -2.0], [2]).unwrap();
    assert_eq!(floats.to_f32s().unwrap(), [1.5, -2.0]);
    let ints = backend.from_u32s(&[7, u32::MAX], [2]).unwrap();
    assert_eq!(ints.to_u32s().unwrap(), [7, u32::MAX]);
    backend.release_cached().unwrap();
}

/// Casts round to nearest even between floats, truncate to integers, and read views.
pub fn casts<B: Backend>(backend: &B, expect: &Expect) {
    let mut edges = vec![
        0.0,
        -0.0,
        1.0,
        -1.5,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        f64::from(f32::MAX),
        // Ties of bf16 and their neighbours: to even.
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        -(1.0 + 5.0 / 256.0),
        1.0 + 1.0 / 256.0 + 1.0 / 65536.0,
        1.0 + 3.0 / 256.0 - 1.0 / 65536.0,
        // Ties of f16.
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
        2049.0,
        2051.0,
        // Around the largest f16.
        65504.0,
        65519.0,
        65520.0,
        -65536.0,
    ];
    if expect.subnormals {
        // f16's range below the normal, its ties, and below it.
        edges.extend([24, 25, 26].map(|n| f64::from(2f32.powi(-n))));
        edges.extend([1.5 * 2f64.powi(-25), 3.0 * 2f64.powi(-25), 1e-40, -1e-45]);
    }
    for from in FLOATS {
        let data = Nd::new([edges.len()], edges.clone()).rounded(from);
        for to in FLOATS {
            let cast = upload(backend, &data, from).cast(to).unwrap();
            let want = data.map(|v| round(to, v));
            assert_same(&format!("cast {from} to"), &cast, to, &want);
            let signs = |nd: &Nd| {
                let nd = nd.values.iter().filter(|v| !v.is_nan());
                nd.map(|v| v.is_sign_negative()).collect::<Vec<_>>()
            };
            let got = super::nd::download(&cast);
            assert_eq!(signs(&got), signs(&want), "signs of cast {from} to {to}");
        }
    }

    let mut rng = Rng(2);
    for from in DType::ALL {
        for to in DType::ALL {
            for shape in shapes() {
                let signed = |t: DType| t.is_float() || t == DType::I32;
                let low = if signed(from) && signed(to) {
                    -120.0
                } else {
                    0.0
                };
                let data = Nd::from_fn(shape, |_| low + rng.uniform() * (120.0 - low));
                let data = data.rounded(from);
                for (view, tensor) in views(backend, &data, from) {
                    let want = data.map(|v| round(to, v));
                    let what = format!("cast {from} {view} to");
                    assert_same(&what, &tensor.cast(to).unwrap(), to, &want);
                }
            }
        }
    }
}
