use super::fused::check_fused;
use super::matrix_data::Packed;
use super::nd::{Nd, Rng, assert_close, download, upload};
use super::{Expect, FLOATS, Plain, tolerance};
use crate::{Around, Backend, DType, Decode, Gate, RopeAngles, Tensor, WeightMatrix};

/// `matmul_t_with`: everything that may surround a product, alone and together, of one and more rows.
pub fn surrounded_products<B: Backend>(backend: &B, expect: &Expect) {
    let mut rng = Rng(60);
    for dtype in FLOATS {
        for (out, cols) in [(38, 64), (130, 1152), (64, 2112), (34, 4224)] {
            let group = [32, 64, 128].into_iter().rfind(|g| cols % g == 0);
            let group = group.unwrap_or(32);
            for matrix in [
                Packed::affine(4, group, dtype, [out, cols], &mut rng),
                Packed::affine(8, 32, dtype, [out, cols], &mut rng),
                Packed::dense(dtype, [out, cols], &mut rng),
            ] {
                let w = backend.load_matrix(&matrix.packed(), dtype).unwrap();
                if dtype == DType::F16 && cols != 1152 {
                    continue;
                }
                // What a backend adds that rounds activations further; outputs are about 1.
                let error = |e: &Expect| (e.matmul)(&matrix.packed(), DType::F32);
                let more = match error(expect) > error(&Expect::default()) {
                    true => 4.0 * error(expect),
                    false => 0.0,
                };
                // Many rows may be multiplied in another way.
                for rows in [1, 7, 17, 33, if cols == 64 { 300 } else { 40 }] {
                    for (norm, bias, gate, norm_after, add) in [
                        (true, false, None, false, false),
                        (false, false, None, false, true),
                        (true, true, Some(Gate::Silu), false, false),
                        (true, false, Some(Gate::GeluTanh), false, true),
                        (false, true, None, true, true),
                    ] {
                        let case = (rows, norm, bias, gate, norm_after, add);
                        check_surrounded(backend, (&matrix.name, more), &w, case, dtype, &mut rng);
                    }
                }
            }
        }
    }
}

fn check_surrounded<B: Backend>(
    backend: &B,
    (name, more): (&str, f64),
    w: &B::Matrix,
    (rows, norm, bias, gate, norm_after, add): (usize, bool, bool, Option<Gate>, bool, bool),
    dtype: DType,
    rng: &mut Rng,
) {
    let [out, cols] = w.shape();
    let outputs = gate.map_or(out, |_| out / 2);
    // So that outputs are about 1.
    let small = 2.0 / (cols as f64).sqrt();
    let (of_x, of_norm) = if norm { (1.0, small) } else { (small, 1.0) };
    let x = Nd::random([rows, cols], rng)
        .map(|v| v * of_x)
        .rounded(dtype);
    let weight = Nd::random([cols], rng).map(|v| v * of_norm).rounded(dtype);
    let b = Nd::random([out], rng).rounded(dtype);
    let a = Nd::random([rows, outputs], rng).rounded(dtype);
    let after = Nd::random([outputs], rng).rounded(dtype);
    let values = download(&w.dequantize(DType::F32).unwrap());

    // Values, and the sizes that their errors are relative to: an error of a gate or its factor comes
    // times the other.
    let (mut want, mut sizes) = (Vec::new(), Vec::new());
    for (row, x) in x.values.chunks(cols).enumerate() {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / cols as f64;
        let factor = |i: usize| match norm {
            true => weight.values[i] / (mean + 1e-5).sqrt(),
            false => 1.0,
        };
        let x: Vec<f64> = x.iter().enumerate().map(|(i, v)| v * factor(i)).collect();
        let product = |to: usize| {
            let w = &values.values[to * cols..][..cols];
            let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            sum + if bias { b.values[to] } else { 0.0 }
        };
        for to in 0..outputs {
            let (open, factor) = match gate {
                None => (product(to), 1.0),
                Some(Gate::Silu) => {
                    let gate = product(to);
                    (gate / (1.0 + (-gate).exp()), product(to + outputs))
                }
                Some(Gate::GeluTanh) => {
                    let gate = product(to);
                    let inner =
                        (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                    (0.5 * gate * (1.0 + inner.tanh()), product(to + outputs))
                }
            };
            want.push(open * factor);
            sizes.push(match gate {
                None => 1.0 + open.abs(),
                Some(_) => (1.0 + open.abs()) * (1.0 + factor.abs()),
            });
        }
        let (y, sizes) = (&mut want[row * outputs..], &mut sizes[row * outputs..]);
        if norm_after {
            let mean = y.iter().map(|v| v * v).sum::<f64>() / outputs as f64;
            for ((y, size), w) in y.iter_mut().zip(&mut *sizes).zip(&after.values) {
                let factor = w / (mean + 1e-5).sqrt();
                *y *= factor;
                *size *= factor.abs().max(1.0);
            }
        }
        if add {
            for (to, (y, size)) in y.iter_mut().zip(sizes).enumerate() {
                *y += a.at(&[row, to]);
                *size += a.at(&[row, to]).abs();
            }
        }
    }
    let up = |data: &Nd| upload(backend, data, dtype);
    let (x, weight, b, a, after) = (up(&x), up(&weight), up(&b), up(&a), up(&after));
    let around = Around {
        norm: norm.then_some((&weight, 1e-5)),
        bias: bias.then_some(&b),
        gate,
        norm_after: norm_after.then_some((&after, 1e-5)),
        add: add.then_some(&a),
    };
    let what = format!(
        "matmul_t_with of {rows} rows with {name} for {dtype}, norm {norm}, bias {bias}, {gate:?}, norm after {norm_after}, add {add},"
    );
    let y = w
        .matmul_t_with(&x, &around)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let allowed = match dtype {
        DType::F32 => 1e-4,
        DType::F16 => 4.0 * tolerance(dtype),
        _ => 2.0 * tolerance(dtype),
    };
    let allowed = allowed + more;
    assert_eq!(
        (y.shape(), y.dtype()),
        ([rows, outputs].into(), dtype),
        "{what}"
    );
    let got = download(&y);
    for (i, ((got, want), size)) in got.values.iter().zip(&want).zip(&sizes).enumerate() {
        let allowed = allowed * size;
        assert!(
            (got - want).abs() <= allowed,
            "{what} element {i} is {got}, expected {want} ± {allowed:e}"
        );
    }
}

/// `decode_attention`: two tokens one after the other, of one sequence and of several, in caches that
/// hold anything beyond the end.
pub fn decoded_tokens<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(61);
    for dtype in FLOATS {
        for (heads, kv_heads, d, freqs) in [
            (6, 2, 64, 32),
            (3, 1, 128, 64),
            (4, 1, 256, 128),
            (8, 2, 128, 16),
            (2, 2, 16, 8),
        ] {
            for (rows, one, old, seen) in [
                (1, true, 0, 0),
                (1, true, 5, 2),
                (1, true, 700, 0),
                (1, true, 330, 290),
                (3, false, 9, 0),
                (5, false, 400, 12),
            ] {
                let sizes = [rows, heads, kv_heads, d, freqs];
                let keys = (one, old, seen);
                for (norm, interleaved, masked) in [(false, true, false), (true, false, true)] {
                    let kind = (norm, interleaved, masked && !one);
                    check_decode(backend, sizes, keys, kind, [dtype; 2], &mut rng);
                }
                if dtype == DType::F32 {
                    let kind = (true, false, !one);
                    check_decode(backend, sizes, keys, kind, [dtype, DType::F16], &mut rng);
                }
            }
        }
    }
}

/// What `decode_attention` is called with, but for its tensors.
struct Case {
    norm: bool,
    masked: bool,
    seen: usize,
    end: usize,
    scale: f32,
}

impl Case {
    fn with<'a, T>(
        &self,
        norms: [&'a T; 2],
        rope: &'a RopeAngles<T>,
        mask: &'a T,
    ) -> Decode<'a, T> {
        Decode {
            norms: self.norm.then_some((norms, 1e-5)),
            rope,
            seen: self.seen,
            end: self.end,
            mask: self.masked.then_some(mask),
            scale: self.scale,
        }
    }
}

fn check_decode<B: Backend>(
    backend: &B,
    [rows, heads, kv_heads, d, freqs]: [usize; 5],
    (one, old, seen): (bool, usize, usize),
    (norm, interleaved, masked): (bool, bool, bool),
    [dtype, kept]: [DType; 2],
    rng: &mut Rng,
) {
    let capacity = old + 7;
    let cache_shape = match one {
        true => vec![kv_heads, capacity, d],
        false => vec![rows, kv_heads, capacity, d],
    };
    let cache_shape = crate::Shape::new(&cache_shape).unwrap();
    let inv_freqs: Vec<f32> = (0..freqs)
        .map(|i| 10000f32.powf(-(i as f32) / freqs as f32))
        .collect();
    let weights = [0, 1].map(|_| Nd::random([d], rng).map(|v| v + 0.5).rounded(dtype));
    let start = [0, 1].map(|_| Nd::random(cache_shape, rng).rounded(kept));
    // The reference computes in f32, from the same rounded numbers.
    let exact = |data: &Nd| Plain(upload(backend, data, DType::F32));
    let up = |data: &Nd| upload(backend, data, dtype);
    let cache = |data: &Nd| upload(backend, data, kept);
    let mut caches = (cache(&start[0]), cache(&start[1]));
    let mut plain = (Plain(cache(&start[0])), Plain(cache(&start[1])));
    let mut want_caches = (exact(&start[0]), exact(&start[1]));
    let before = [&start[0], &start[1]].map(|data| download(&cache(data)));
    for end in [old, old + 1] {
        let what = format!(
            "decode_attention of {rows} rows (rank {}), {heads} heads on {kv_heads} of {d}, keys {seen}..={end}, \
             kept as {kept}, norm {norm}, interleaved {interleaved}, masked {masked},",
            cache_shape.rank()
        );
        let positions: Vec<u32> = (0..rows).map(|row| (end + 3 * row) as u32).collect();
        let more = [&[5], &positions[..]].concat();
        let rope = RopeAngles::new(backend, &more, &inv_freqs, interleaved)
            .and_then(|all| all.narrow(1, rows))
            .unwrap();
        let plain_rope = Plain::angles(&rope);
        let width = (heads + 2 * kv_heads) * d;
        let qkv = Nd::random([rows, width], rng).rounded(dtype);
        let hide = |i: &[usize]| match i[1] < (2 * i[0]).min(end - seen) {
            true => f64::NEG_INFINITY,
            false => 0.0,
        };
        let mask = Nd::from_fn([rows, end + 1 - seen], hide);
        let [q_weight, k_weight] = [&weights[0], &weights[1]].map(up);
        let [plain_q, plain_k] = [&weights[0], &weights[1]].map(|w| Plain(up(w)));
        let [exact_q, exact_k] = [&weights[0], &weights[1]].map(exact);
        let (given_mask, plain_mask, exact_mask) = (up(&mask), Plain(up(&mask)), exact(&mask));
        let scale = 1.5 / (d as f32).sqrt();
        let case = Case {
            norm,
            masked,
            seen,
            end,
            scale,
        };
        let (y, new) = up(&qkv)
            .decode_attention(
                caches,
                &case.with([&q_weight, &k_weight], &rope, &given_mask),
            )
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let (default, new_plain) = Plain(up(&qkv))
            .decode_attention(
                plain,
                &case.with([&plain_q, &plain_k], &plain_rope, &plain_mask),
            )
            .unwrap();
        let (want, new_want) = exact(&qkv)
            .decode_attention(
                want_caches,
                &case.with([&exact_q, &exact_k], &plain_rope, &exact_mask),
            )
            .unwrap();
        // Angles of both are made in f32.
        let allowed = tolerance(dtype) + 2.0 * (end + 20) as f64 * f64::from(f32::EPSILON);
        // What was rounded on the way to the caches.
        let allowed = allowed.max(tolerance(kept));
        check_fused(&what, Ok(y), Ok(default), dtype, &download(&want), allowed);
        (caches, plain, want_caches) = (new, new_plain, new_want);
        for (t, want, before) in [
            (&caches.0, &want_caches.0, &before[0]),
            (&caches.1, &want_caches.1, &before[1]),
        ] {
            let axis = cache_shape.rank() - 2;
            let written = t.narrow(axis, old, end + 1 - old).unwrap();
            let want = want.narrow(axis, old, end + 1 - old).unwrap();
            let cache = format!("the cache after {what}");
            assert_close(&cache, &written, kept, &download(&want), 2.0 * allowed);
            let got = download(t);
            let kept = |at: usize| !(old..=end).contains(&(at / d % capacity));
            let pairs = got.values.iter().zip(&before.values).enumerate();
            let changed = pairs.filter(|(at, (a, b))| kept(*at) && a != b).count();
            assert_eq!(changed, 0, "{cache} elsewhere");
        }
    }
}
