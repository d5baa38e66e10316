use super::attention::attend;
use super::fused::check_fused;
use super::nd::{Nd, Rng, assert_close, download, upload};
use super::{Expect, FLOATS, Plain, tolerance};
use crate::{
    AttentionMask, Backend, DType, Error, Kept, KvFormat, KvSpec, KvType, QuantizedKv, Shape,
    Tensor,
};

/// The forms that a backend keeps.
fn specs<B: Backend>(backend: &B, activations: DType) -> Vec<KvSpec> {
    let spec = |kind| match backend.kv_format(kind, activations) {
        Ok(KvFormat::Quantized(spec)) => Some(spec),
        Ok(KvFormat::Plain(dtype)) => {
            assert_eq!(kind, KvType::Auto, "{kind} is kept in {dtype}");
            None
        }
        Err(Error::Unsupported { instead, .. }) => {
            assert!(kind != KvType::Auto && instead.contains("--kv-type auto"));
            None
        }
        Err(other) => panic!("{kind}: {other}"),
    };
    KvType::ALL.into_iter().filter_map(spec).collect()
}

fn plain<T: Tensor>(kept: &QuantizedKv<T>) -> QuantizedKv<Plain<T>> {
    QuantizedKv {
        codes: Plain(kept.codes.clone()),
        scales: Plain(kept.scales.clone()),
        biases: Plain(kept.biases.clone()),
        spec: kept.spec,
    }
}

/// `quantize_kv` and `dequantize_kv`: every value within half a step of its group by the default, within
/// one and a half by the override (MLX moves edges so that one code is zero); each reads what the other wrote.
pub fn quantized_rows<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(33);
    for dtype in FLOATS {
        for spec in specs(backend, dtype) {
            for shape in [
                Shape::from([64]),
                [3, 32].into(),
                [2, 5, 96].into(),
                [2, 3, 2, 256].into(),
                [2, 0, 64].into(),
            ] {
                let spread = |v: f64| v * v * v + 0.3;
                let x = Nd::random(shape, &mut rng).map(spread).rounded(dtype);
                let what = format!("{} bits of {dtype} {shape}", spec.bits);
                let t = upload(backend, &x, dtype);
                let ours = t
                    .quantize_kv(spec)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                let default = Plain(t.clone())
                    .quantize_kv(spec)
                    .unwrap_or_else(|e| panic!("default of {what}: {e}"));
                let written = QuantizedKv {
                    codes: default.codes.0,
                    scales: default.scales.0,
                    biases: default.biases.0,
                    spec,
                };
                for (by, kept, steps) in [("override", &ours, 1.5), ("default", &written, 0.5)] {
                    assert_eq!(kept.shape("test").unwrap(), shape, "{what}");
                    let read = B::Tensor::dequantize_kv(kept, DType::F32).unwrap();
                    within_steps(
                        &format!("{what} by the {by}"),
                        &x,
                        &download(&read),
                        spec,
                        steps,
                    );
                    let again = Plain::dequantize_kv(&plain(kept), DType::F32).unwrap();
                    assert_close(
                        &format!("{what} by the {by}, read by the default,"),
                        &read,
                        DType::F32,
                        &download(&again),
                        1e-5,
                    );
                }
            }
        }
    }
}

#[track_caller]
fn within_steps(what: &str, x: &Nd, got: &Nd, spec: KvSpec, steps: f64) {
    let rounding = if spec.scales == DType::BF16 {
        1.0 / 256.0
    } else {
        1.0 / 2048.0
    };
    let groups = x.values.chunks(spec.group_size);
    for (x, got) in groups.zip(got.values.chunks(spec.group_size)) {
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let least = x.iter().copied().fold(f64::INFINITY, f64::min);
        let step = (most - least) / f64::from(spec.levels());
        // Scale and bias are rounded.
        let size = most.abs().max(least.abs());
        let allowed = step * (steps + 0.05) + 3.0 * rounding * (size + most - least);
        for (x, got) in x.iter().zip(got) {
            assert!(
                (x - got).abs() <= allowed,
                "{what}: {got} for {x}, {allowed} allowed"
            );
        }
    }
}

/// `attention_quantized` and `attention_each_quantized` against attention over the same codes' values.
pub fn attentions_over_codes<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(34);
    let masks = [
        AttentionMask::None,
        AttentionMask::Causal,
        AttentionMask::SlidingWindow(3),
    ];
    for dtype in FLOATS {
        for spec in specs(backend, dtype) {
            for (heads, kv_heads, d) in [(4, 2, 64), (3, 3, 32), (8, 1, 256)] {
                for (q_len, kv_len) in [(1, 1), (1, 9), (5, 11), (70, 70), (1, 700)] {
                    let q = Nd::random([heads, q_len, d], &mut rng).rounded(dtype);
                    let mut kept = || {
                        let x = Nd::random([kv_heads, kv_len + 4, d], &mut rng);
                        let x = Kept::of(&upload(backend, &x, dtype), KvFormat::Quantized(spec));
                        match x.and_then(|x| x.narrow(1, 2, kv_len)) {
                            Ok(Kept::Quantized(x)) => x,
                            other => panic!("{other:?}"),
                        }
                    };
                    let (k, v) = (kept(), kept());
                    let values = |x| {
                        let x = B::Tensor::dequantize_kv(x, DType::F32).unwrap();
                        download(&x)
                    };
                    let scale = 1.5 / (d as f32).sqrt();
                    for mask in masks {
                        let want = attend(&q, &values(&k), &values(&v), mask, f64::from(scale));
                        let q = upload(backend, &q, dtype);
                        let default = Plain(q.clone()).attention_quantized(
                            &plain(&k),
                            &plain(&v),
                            mask,
                            scale,
                        );
                        check_fused(
                            &format!(
                                "attention of {q_len} to {kv_len} in {} bits, {mask:?},",
                                spec.bits
                            ),
                            q.attention_quantized(&k, &v, mask, scale),
                            default,
                            dtype,
                            &want,
                            2.0 * tolerance(dtype),
                        );
                    }
                }
            }
        }
    }
}

/// What does not fit is the same error everywhere.
pub fn wrong_codes<B: Backend>(backend: &B, _: &Expect) {
    let spec = KvSpec {
        bits: 8,
        group_size: 32,
        scales: DType::F16,
    };
    let x = backend.zeros([2, 4, 64], DType::F32).unwrap();
    let odd = backend.zeros([2, 48], DType::F32).unwrap();
    assert!(matches!(odd.quantize_kv(spec), Err(Error::Shape { .. })));
    let ids = backend.zeros([2, 64], DType::U32).unwrap();
    assert!(matches!(ids.quantize_kv(spec), Err(Error::DType { .. })));
    let five = KvSpec { bits: 5, ..spec };
    assert!(matches!(x.quantize_kv(five), Err(Error::OutOfRange { .. })));
    let kept = x.quantize_kv(spec).unwrap();
    let q = backend.zeros([4, 3, 32], DType::F32).unwrap();
    let attend = |k: &QuantizedKv<B::Tensor>| {
        let none = AttentionMask::None;
        (
            q.attention_quantized(k, &kept, none, 1.0).map(drop),
            x.attention_quantized(k, &kept, none, 1.0).map(drop),
        )
    };
    assert!(matches!(attend(&kept), (Err(Error::Shape { .. }), Ok(()))));
    let mut wrong = kept.clone();
    wrong.scales = kept.scales.narrow(2, 0, 1).unwrap();
    assert!(matches!(attend(&wrong).1, Err(Error::Shape { .. })));
    wrong.scales = kept.scales.cast(DType::F32).unwrap();
    assert!(matches!(attend(&wrong).1, Err(Error::DType { .. })));
    let (quantized, plain) = (Kept::Quantized(kept), Kept::Plain(x));
    let mixed = Kept::concat(&[&quantized, &plain], 1).map(drop);
    assert!(matches!(mixed, Err(Error::DType { .. })));
    assert!(matches!(
        plain.clone().write_slice(1, 0, &quantized).map(drop),
        Err(Error::DType { .. })
    ));
}
