use super::*;
use crate::cpu::Codes;
use crate::cpu::quantize::{Quantized, quantize};
use half::f16;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Floats,
    Halves,
    /// In so many bits.
    Codes(usize),
}

/// Heads' keys and values head-major with spare capacity, queries token-major: as the cache and a
/// projection give them.
struct Case {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    capacity: usize,
    form: Form,
}

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

impl Case {
    fn new(heads: usize, kv_heads: usize, q_len: usize, kv_len: usize, head_dim: usize) -> Case {
        let capacity = kv_len + 3;
        let mut k = noise(kv_heads * capacity * head_dim, 2);
        // What lies beyond the keys must not be read into a result.
        for head in k.chunks_mut(capacity * head_dim) {
            head[kv_len * head_dim..].fill(f32::NAN);
        }
        Case {
            shape: AttentionShape {
                heads,
                kv_heads,
                q_len,
                kv_len,
                head_dim,
            },
            q: noise(q_len * heads * head_dim, 1),
            k,
            v: noise(kv_heads * capacity * head_dim, 3),
            capacity,
            form: Form::Floats,
        }
    }

    /// Keys and values rounded to what `f16` holds.
    fn rounded(mut self) -> Case {
        for x in self.k.iter_mut().chain(&mut self.v) {
            *x = f16::from_f32(*x).to_f32();
        }
        self
    }

    /// Attention of queries `from ..` of the last `to` positions, as a chunked prefill would call it.
    fn run(&self, isa: Isa, mask: AttentionMask, from: usize, to: usize) -> Vec<f32> {
        let AttentionShape {
            heads,
            q_len,
            kv_len,
            head_dim,
            ..
        } = self.shape;
        let token = heads * head_dim;
        let shape = AttentionShape {
            q_len: to - from,
            kv_len: kv_len - q_len + to,
            ..self.shape
        };
        let q = Strided {
            data: &self.q[from * token..],
            head_stride: head_dim,
            token_stride: token,
        };
        let cached = |data| Strided {
            data,
            head_stride: self.capacity * head_dim,
            token_stride: head_dim,
        };
        let mut out = vec![f32::NAN; (to - from) * token];
        if let Form::Codes(bits) = self.form {
            // The room beyond the keys has NaN: it must not be looked at.
            let (k, v) = (quantize(&self.k, bits), quantize(&self.v, bits));
            let kept = |q| codes_of(q, bits, self.capacity, head_dim);
            attention_with(isa, q, kept(&k), kept(&v), shape, mask, 0.3, &mut out);
            return out;
        }
        if self.form == Form::Halves {
            let halves = |x: &[f32]| x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
            let (k, v) = (halves(&self.k), halves(&self.v));
            let cached = |data| {
                Kept::F16(Strided {
                    data,
                    head_stride: self.capacity * head_dim,
                    token_stride: head_dim,
                })
            };
            let (k, v) = (cached(&k), cached(&v));
            attention_with(isa, q, k, v, shape, mask, 0.3, &mut out);
            return out;
        }
        attention_with(
            isa,
            q,
            Kept::F32(cached(&self.k)),
            Kept::F32(cached(&self.v)),
            shape,
            mask,
            0.3,
            &mut out,
        );
        out
    }

    fn reference(&self, mask: AttentionMask) -> Vec<f64> {
        let AttentionShape {
            heads,
            kv_heads,
            q_len,
            kv_len,
            head_dim,
        } = self.shape;
        let mut out = vec![0.0; q_len * heads * head_dim];
        for (i, out) in out.chunks_mut(head_dim).enumerate() {
            let (token, head) = (i / heads, i % heads);
            let q = &self.q[i * head_dim..][..head_dim];
            let row = |x: &[f32], j: usize, d: usize| {
                f64::from(x[(head / (heads / kv_heads) * self.capacity + j) * head_dim + d])
            };
            let mut sum = 0.0;
            for j in mask.visible(token, q_len, kv_len) {
                let dot: f64 = (0..head_dim)
                    .map(|d| f64::from(q[d]) * row(&self.k, j, d))
                    .sum();
                let p = (dot * f64::from(0.3f32)).exp();
                sum += p;
                for (d, out) in out.iter_mut().enumerate() {
                    *out += p * row(&self.v, j, d);
                }
            }
            out.iter_mut().for_each(|x| *x /= sum);
        }
        out
    }
}

const MASKS: [AttentionMask; 4] = [
    AttentionMask::None,
    AttentionMask::Causal,
    AttentionMask::SlidingWindow(5),
    AttentionMask::SlidingWindow(90),
];

#[test]
fn equals_the_definition() {
    for (heads, kv_heads, q_len, kv_len, d) in [
        (9, 3, 1, 200, 64),
        (4, 1, 37, 150, 32),
        (3, 3, 5, 5, 80),
        (6, 2, 70, 131, 13),
        (2, 1, 1, 1, 4),
        (8, 2, 29, 97, 104),
    ] {
        let case = Case::new(heads, kv_heads, q_len, kv_len, d);
        for mask in MASKS {
            let want = case.reference(mask);
            for &isa in Isa::available() {
                let got = case.run(isa, mask, 0, q_len);
                for (got, want) in got.iter().zip(&want) {
                    let diff = (f64::from(*got) - want).abs();
                    assert!(
                        diff < 3e-6,
                        "{isa:?} {:?} {mask:?}: {got} {want}",
                        case.shape
                    );
                }
            }
        }
    }
}

#[test]
fn a_query_does_not_depend_on_the_others_of_its_call() {
    let (q_len, heads, d) = (67, 6, 40);
    for form in [Form::Floats, Form::Halves] {
        let mut case = Case::new(heads, 2, q_len, 150, d);
        case.form = form;
        for &isa in Isa::available() {
            for mask in &MASKS[1..] {
                let whole = case.run(isa, *mask, 0, q_len);
                for chunk in [1, 2, 5, 33] {
                    let mut parts = Vec::new();
                    for from in (0..q_len).step_by(chunk) {
                        parts.extend(case.run(isa, *mask, from, q_len.min(from + chunk)));
                    }
                    assert!(
                        parts == whole,
                        "{isa:?} {form:?} {mask:?} in chunks of {chunk}"
                    );
                }
            }
        }
    }
}

#[test]
fn halves_give_what_floats_of_their_values_give() {
    for (heads, kv_heads, q_len, kv_len, d) in [
        (9, 3, 1, 300, 64),
        (4, 1, 1, 333, 256),
        (2, 1, 2, 70, 13),
        (4, 1, 37, 150, 256),
        (6, 2, 20, 131, 13),
    ] {
        let mut case = Case::new(heads, kv_heads, q_len, kv_len, d).rounded();
        for &isa in Isa::available() {
            for mask in MASKS {
                case.form = Form::Floats;
                let floats = case.run(isa, mask, 0, q_len);
                case.form = Form::Halves;
                let halves = case.run(isa, mask, 0, q_len);
                assert!(halves == floats, "{isa:?} {:?} {mask:?}", case.shape);
            }
        }
    }
}

fn codes_of(q: &Quantized, bits: usize, capacity: usize, head_dim: usize) -> Kept<'_> {
    fn cached<T>(data: &[T], capacity: usize, row: usize) -> Strided<'_, T> {
        Strided {
            data,
            head_stride: capacity * row,
            token_stride: row,
        }
    }
    let groups = head_dim / Codes::GROUP;
    Kept::Codes(Codes {
        bits,
        codes: cached(&q.codes, capacity, head_dim * bits / 8),
        scales: cached(&q.scales, capacity, groups),
        biases: cached(&q.biases, capacity, groups),
    })
}

#[test]
fn codes_give_what_floats_of_their_values_give() {
    for (heads, kv_heads, q_len, kv_len, d) in [
        (9, 3, 1, 300, 64),
        (4, 1, 37, 150, 256),
        (6, 2, 20, 131, 96),
        (4, 4, 1, 90, 32),
    ] {
        for bits in [4, 8] {
            let mut case = Case::new(heads, kv_heads, q_len, kv_len, d);
            case.form = Form::Codes(bits);
            let mut floats = Case::new(heads, kv_heads, q_len, kv_len, d);
            for x in [&mut floats.k, &mut floats.v] {
                let q = quantize(x, bits);
                for (i, x) in x.iter_mut().enumerate() {
                    let code = match bits {
                        4 => q.codes[i / 2] >> (i % 2 * 4) & 15,
                        _ => q.codes[i],
                    };
                    let group = i / Codes::GROUP;
                    *x = q.scales[group].to_f32() * f32::from(code) + q.biases[group].to_f32();
                }
            }
            for &isa in Isa::available() {
                for mask in MASKS {
                    let got = case.run(isa, mask, 0, q_len);
                    let want = floats.run(isa, mask, 0, q_len);
                    for (got, want) in got.iter().zip(&want) {
                        // A value is rounded once here and twice there.
                        assert!(
                            (got - want).abs() < 1e-5,
                            "{isa:?} {bits} {mask:?}: {got} {want}"
                        );
                    }
                    for chunk in [1, 2, 5] {
                        let mut parts = Vec::new();
                        for from in (0..q_len).step_by(chunk) {
                            parts.extend(case.run(isa, mask, from, q_len.min(from + chunk)));
                        }
                        assert!(
                            mask == AttentionMask::None || parts == got,
                            "{isa:?} {bits} {mask:?} in chunks of {chunk}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_split_among_threads_changes_nothing() {
    for (heads, kv_heads, q_len, kv_len, d) in [
        (9, 3, 1, 700, 64),
        (4, 1, 1, 1030, 256),
        (4, 2, 3, 333, 104),
        (3, 1, 4, 260, 13),
        (7, 7, 1, 520, 16),
        (16, 8, 2, 300, 32),
    ] {
        let mut case = Case::new(heads, kv_heads, q_len, kv_len, d).rounded();
        let forms = [Form::Floats, Form::Halves, Form::Codes(8), Form::Codes(4)];
        for (&isa, form) in Isa::available()
            .iter()
            .flat_map(|isa| forms.map(|form| (isa, form)))
        {
            if matches!(form, Form::Codes(_)) && !d.is_multiple_of(Codes::GROUP) {
                continue;
            }
            case.form = form;
            for mask in MASKS {
                pool::set_threads(1);
                let alone = case.run(isa, mask, 0, q_len);
                for threads in [2, 3, 5] {
                    pool::set_threads(threads);
                    let shared = case.run(isa, mask, 0, q_len);
                    assert!(
                        shared == alone,
                        "{isa:?} {:?} {mask:?} {threads}",
                        case.shape
                    );
                }
            }
        }
    }
}

#[test]
fn later_keys_do_not_leak_into_earlier_queries() {
    let mut case = Case::new(2, 1, 12, 40, 16);
    let clean = case.run(Isa::get(), AttentionMask::Causal, 0, 11);
    case.v[39 * 16..40 * 16].fill(f32::NAN);
    case.k[39 * 16..40 * 16].fill(f32::INFINITY);
    let all = case.run(Isa::get(), AttentionMask::Causal, 0, 12);
    assert_eq!(all[..clean.len()], clean);
}

#[test]
fn a_share_of_heads_goes_on_after_others_panic_and_beside_callers() {
    pool::set_threads(3);
    let case = Case::new(10, 5, 1, 600, 32).rounded();
    let want = case.run(Isa::get(), AttentionMask::None, 0, 1);
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let (case, want) = (&case, &want);
            scope.spawn(move || {
                for round in 0..200 {
                    if caller == 0 {
                        pool::set_threads(1 + round % 6);
                    }
                    if caller == 1 && round % 20 == 0 {
                        let bad = || pool::parallel_for(9, |i| assert!(i != 4));
                        assert!(std::panic::catch_unwind(bad).is_err());
                    }
                    let got = case.run(Isa::get(), AttentionMask::None, 0, 1);
                    assert!(got == *want, "{caller} {round}");
                }
            });
        }
    });
}
