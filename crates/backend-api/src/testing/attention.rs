use super::fused::check_fused;
use super::nd::{Nd, Rng, upload, views};
use super::{Expect, FLOATS, Plain, tolerance};
use crate::{AttentionMask, Backend, DType, RopeAngles, Tensor};

/// `rope`: both pairings, whole and part of a head, one and many tokens, any positions.
pub fn rotations<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(30);
    let positions: [&[u32]; 5] = [&[0], &[37], &[0, 1, 2, 3, 4], &[900, 3, 3, 41], &[]];
    for dtype in FLOATS {
        for (heads, d, freqs) in [(1, 2, 1), (3, 16, 8), (2, 80, 10), (2, 64, 32), (5, 8, 3)] {
            let inv_freqs: Vec<f32> = (0..freqs)
                .map(|i| 10000f32.powf(-(i as f32) / freqs as f32))
                .collect();
            for positions in positions {
                let n = positions.len();
                let x = Nd::random([n, heads, d], &mut rng).rounded(dtype);
                let last = positions.iter().max().map_or(0.0, |&p| f64::from(p));
                // The angle may be off by one rounding step of its own.
                let tolerance = tolerance(dtype) + 2.0 * last * f64::from(f32::EPSILON);
                for interleaved in [false, true] {
                    // A view of those of more tokens, as a decode step's are.
                    let more = [&[5], positions, &[6]].concat();
                    let angles = RopeAngles::new(backend, &more, &inv_freqs, interleaved)
                        .and_then(|all| all.narrow(1, n))
                        .unwrap();
                    let plain_angles = Plain::angles(&angles);
                    let want = turned(&x, positions, &inv_freqs, interleaved);
                    for (view, t) in views(backend, &x, dtype) {
                        check_fused(
                            &format!("rope of {view}, {freqs} freqs, interleaved {interleaved},"),
                            t.rope(&angles),
                            Plain(t.clone()).rope(&plain_angles),
                            dtype,
                            &want,
                            tolerance,
                        );
                    }
                }
            }
        }
    }
}

fn turned(x: &Nd, positions: &[u32], inv_freqs: &[f32], interleaved: bool) -> Nd {
    let f = inv_freqs.len();
    Nd::from_fn(x.shape, |i| {
        let (token, head, at) = (i[0], i[1], i[2]);
        if at >= 2 * f {
            return x.at(i);
        }
        let (pair, second, partner) = if interleaved {
            (at / 2, at % 2 == 1, at ^ 1)
        } else {
            (at % f, at >= f, (at + f) % (2 * f))
        };
        let angle = f64::from(positions[token] as f32 * inv_freqs[pair]);
        let partner = x.at(&[token, head, partner]);
        let sin = if second { angle.sin() } else { -angle.sin() };
        x.at(i) * angle.cos() + partner * sin
    })
}

/// What `attention` is called with.
struct Case {
    heads: usize,
    kv_heads: usize,
    d: usize,
    q_len: usize,
    kv_len: usize,
    mask: AttentionMask,
    dtype: DType,
}

/// `attention`: head groups, head sizes, lengths, masks, and operands as a model's step brings
/// them: queries with axes swapped, keys and values narrowed out of a cache.
pub fn attentions<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(31);
    let masks = [
        AttentionMask::None,
        AttentionMask::Causal,
        AttentionMask::SlidingWindow(1),
        AttentionMask::SlidingWindow(3),
        AttentionMask::SlidingWindow(1000),
    ];
    let lengths = [(1, 1), (1, 7), (5, 5), (5, 11)];
    let mut check = |(heads, kv_heads), d, (q_len, kv_len), mask, dtype| {
        let case = Case {
            heads,
            kv_heads,
            d,
            q_len,
            kv_len,
            mask,
            dtype,
        };
        check_attention(backend, &case, &mut rng);
    };
    for mask in masks {
        for lengths in lengths {
            for d in [16, 64, 80, 128, 256] {
                check((4, 2), d, lengths, mask, DType::F32);
            }
            for heads in [(3, 3), (8, 1), (6, 2)] {
                for dtype in FLOATS {
                    check(heads, 64, lengths, mask, dtype);
                }
            }
        }
    }
    // Longer than any tile.
    for mask in [AttentionMask::Causal, AttentionMask::SlidingWindow(100)] {
        for lengths in [(1, 1030), (40, 300), (70, 70)] {
            check((2, 1), 64, lengths, mask, DType::F32);
            check((2, 1), 64, lengths, mask, DType::BF16);
        }
    }
}

fn check_attention<B: Backend>(backend: &B, case: &Case, rng: &mut Rng) {
    let dtype = case.dtype;
    let kv_shape = [case.kv_heads, case.kv_len, case.d];
    let q = Nd::random([case.heads, case.q_len, case.d], rng).rounded(dtype);
    let k = Nd::random(kv_shape, rng).rounded(dtype);
    let v = Nd::random(kv_shape, rng).rounded(dtype);
    // Not the usual 1 / sqrt(d): Gemma has its own.
    let scale = 1.5 / (case.d as f32).sqrt();
    let want = attend(&q, &k, &v, case.mask, f64::from(scale));

    let up = |data: &Nd| upload(backend, data, dtype);
    let swapped = |data: &Nd| up(&data.swap_axes(0, 1)).swap_axes(0, 1).unwrap();
    // What lies beyond in a cache must not be seen: NaN would show.
    let cached = |data: &Nd| {
        let cache = up(&data.padded(1, 0, 9, f64::NAN));
        cache.narrow(1, 0, case.kv_len).unwrap()
    };
    for (operands, q, k, v) in [
        ("contiguous operands", up(&q), up(&k), up(&v)),
        ("swapped operands", swapped(&q), swapped(&k), swapped(&v)),
        (
            "swapped queries and a cache",
            swapped(&q),
            cached(&k),
            cached(&v),
        ),
    ] {
        let plain =
            Plain(q.clone()).attention(&Plain(k.clone()), &Plain(v.clone()), case.mask, scale);
        check_fused(
            &format!(
                "attention of {operands}, {} heads on {}, {} of {} positions, {:?},",
                case.heads, case.kv_heads, case.q_len, case.kv_len, case.mask
            ),
            q.attention(&k, &v, case.mask, scale),
            plain,
            dtype,
            &want,
            tolerance(dtype),
        );
    }
}

pub(super) fn attend(q: &Nd, k: &Nd, v: &Nd, mask: AttentionMask, scale: f64) -> Nd {
    let [heads, q_len, d] = q.shape.dims("q").unwrap();
    let [kv_heads, kv_len, _] = k.shape.dims("k").unwrap();
    let row = |t: &Nd, head: usize, len: usize, at: usize| {
        let start = (head * len + at) * d;
        t.values[start..start + d].to_vec()
    };
    let mut out = Vec::with_capacity(q.values.len());
    for h in 0..heads {
        let kv = h / (heads / kv_heads);
        for i in 0..q_len {
            let query = row(q, h, q_len, i);
            let position = kv_len - q_len + i;
            let seen: Vec<usize> = (0..kv_len)
                .filter(|&j| match mask {
                    AttentionMask::None => true,
                    AttentionMask::Causal => j <= position,
                    AttentionMask::SlidingWindow(w) => j <= position && j + w > position,
                })
                .collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|&j| {
                    let key = row(k, kv, kv_len, j);
                    query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() * scale
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            let mut y = vec![0.0; d];
            for (&j, score) in seen.iter().zip(&scores) {
                let weight = (score - top).exp() / sum;
                for (y, value) in y.iter_mut().zip(row(v, kv, kv_len, j)) {
                    *y += weight * value;
                }
            }
            out.extend(y);
        }
    }
    Nd::new(q.shape, out)
}

/// `attention_each`: each row is what `attention` gives with the keys that its mask lets through.
pub fn attentions_of_rows<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(32);
    for (heads, kv_heads) in [(4, 2), (3, 3), (8, 1)] {
        for (rows, kv_len, d) in [(1, 1, 16), (1, 9, 64), (3, 7, 128), (5, 40, 256)] {
            for dtype in FLOATS {
                for hidden in [None, Some(0), Some(3)] {
                    // The first keys of a row, fewer than there are.
                    let hidden = hidden.map(|by| move |row: usize| (row * by).min(kv_len - 1));
                    check_rows(
                        backend,
                        [rows, heads, kv_heads, kv_len, d],
                        dtype,
                        hidden,
                        &mut rng,
                    );
                }
            }
        }
    }
}

fn check_rows<B: Backend>(
    backend: &B,
    [rows, heads, kv_heads, kv_len, d]: [usize; 5],
    dtype: DType,
    hidden: Option<impl Fn(usize) -> usize>,
    rng: &mut Rng,
) {
    let kv_shape = [rows, kv_heads, kv_len, d];
    let q = Nd::random([rows, heads, d], rng).rounded(dtype);
    let k = Nd::random(kv_shape, rng).rounded(dtype);
    let v = Nd::random(kv_shape, rng).rounded(dtype);
    let scale = 1.5 / (d as f32).sqrt();
    let first = |row: usize| hidden.as_ref().map_or(0, |f| f(row));
    let mut want = Vec::new();
    for row in 0..rows {
        let one = |t: &Nd, heads, len, from: usize| {
            Nd::from_fn([heads, len - from, d], |i| match t.shape.rank() {
                3 => t.at(&[row, i[0], i[2]]),
                _ => t.at(&[row, i[0], from + i[1], i[2]]),
            })
        };
        let (k, v) = (
            one(&k, kv_heads, kv_len, first(row)),
            one(&v, kv_heads, kv_len, first(row)),
        );
        let q = one(&q, heads, 1, 0);
        want.extend(attend(&q, &k, &v, AttentionMask::None, f64::from(scale)).values);
    }
    let want = Nd::new(q.shape, want);
    let up = |data: &Nd| upload(backend, data, dtype);
    let cached = |data: &Nd| {
        let cache = up(&data.padded(2, 2, 9, f64::NAN));
        cache.narrow(2, 2, kv_len).unwrap()
    };
    let mask = hidden.as_ref().map(|_| {
        let hide = |i: &[usize]| {
            if i[1] < first(i[0]) {
                f64::NEG_INFINITY
            } else {
                0.0
            }
        };
        up(&Nd::from_fn([rows, kv_len + 4], hide))
            .narrow(1, 0, kv_len)
            .unwrap()
    });
    let q = up(&q);
    for (operands, k, v) in [
        ("contiguous operands", up(&k), up(&v)),
        ("a cache", cached(&k), cached(&v)),
    ] {
        let plain_mask = mask.clone().map(Plain);
        let plain = Plain(q.clone()).attention_each(
            &Plain(k.clone()),
            &Plain(v.clone()),
            plain_mask.as_ref(),
            scale,
        );
        check_fused(
            &format!(
                "attention_each of {operands}, {rows} rows, {heads} heads on {kv_heads}, {kv_len} positions, mask {},",
                mask.is_some()
            ),
            q.attention_each(&k, &v, mask.as_ref(), scale),
            plain,
            dtype,
            &want,
            tolerance(dtype),
        );
    }
}
