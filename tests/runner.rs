//! Properties of a running model that no golden value shows: batched is solo, chunked is whole, a
//! fork is independent, a refused step changes nothing.

use biplane::{
    BackendKind, KvFormat, KvType, ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want,
};
use biplane_tests::{
    builder, fixture, last_logits, logits, max_difference, on_each_backend, runner, step,
    usual_runner,
};

#[path = "runner/caches.rs"]
mod caches;

use caches::{exported_is_imported, forks_and_truncation, rests};

/// Of every kind of layer: full caches, a window of 16 tokens in most layers, attention beside the
/// feed-forward part.
const MODELS: [&str; 3] = [
    "llama/mlx-4bit",
    "gemma3/mlx-4bit",
    "stablelm-qkln/mlx-4bit",
];

/// Those of [`MODELS`] whose heads are whole groups of quantized keys and values.
const QUANTIZABLE: [&str; 2] = ["gemma3/mlx-4bit", "stablelm-qkln/mlx-4bit"];

/// How alike the same logits must be.
#[derive(Clone, Copy)]
enum How {
    /// Candle's own kernels give a row the same bits in any company.
    Exact,
    /// MLX's kernels choose their order of summation by shape; a code may come out one step off for
    /// that.
    Within(f32),
}

impl How {
    fn of(backend: BackendKind, kv_type: KvType) -> How {
        match (backend, kv_type) {
            (BackendKind::Candle, _) => How::Exact,
            (BackendKind::Mlx, KvType::Auto) => How::Within(1e-4),
            (BackendKind::Mlx, KvType::Q8) => How::Within(0.02),
            (BackendKind::Mlx, KvType::Q4) => How::Within(0.25),
        }
    }
}

fn each_model(backend: BackendKind, check: impl Fn(How, &mut dyn ModelRunner)) {
    let how = How::of(backend, KvType::Auto);
    for name in MODELS {
        println!("{name}");
        check(how, &mut *runner(&fixture(name), backend));
        if backend == BackendKind::Candle {
            println!("{name}, rounded activations");
            check(how, &mut *usual_runner(&fixture(name), backend));
        }
    }
    for (name, kv_type) in QUANTIZABLE.into_iter().zip([KvType::Q8, KvType::Q4]) {
        println!("{name}, {kv_type}");
        check(
            How::of(backend, kv_type),
            &mut *quantized(name, backend, kv_type),
        );
    }
}

fn each_windowed(backend: BackendKind, check: impl Fn(How, &mut dyn ModelRunner)) {
    let name = QUANTIZABLE[0];
    let how = How::of(backend, KvType::Auto);
    check(how, &mut *runner(&fixture(name), backend));
    let kv_type = match backend {
        BackendKind::Candle => KvType::Q4,
        BackendKind::Mlx => KvType::Q8,
    };
    let how = How::of(backend, kv_type);
    check(how, &mut *quantized(name, backend, kv_type));
}

fn quantized(name: &str, backend: BackendKind, kv_type: KvType) -> Box<dyn ModelRunner> {
    let built = builder(&fixture(name), backend)
        .with_kv_type(kv_type)
        .build_runner();
    let runner = built.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(matches!(runner.info().kv_format, KvFormat::Quantized(_)));
    runner
}

fn assert_same(how: How, a: &[f32], b: &[f32]) {
    match how {
        How::Exact => assert_eq!(a, b),
        How::Within(tolerance) => {
            let (difference, at) = max_difference(a, b);
            assert!(
                difference <= tolerance,
                "logit {at} is off by {difference}, {tolerance} allowed"
            );
        }
    }
}

fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 97 + seed * 31 + 5) % 500)
        .collect()
}

fn chunked_is_whole(how: How, r: &mut dyn ModelRunner) {
    let ids = prompt(1, 67);
    let whole = last_logits(r, &ids);
    for chunk in [1, 7, 32, 66] {
        let slot = r.open().unwrap();
        let mut last = SpanOutput::Nothing;
        for part in ids.chunks(chunk) {
            last = step(r, slot, part, Want::LastLogits);
        }
        assert_same(how, &logits(last), &whole);
        assert_eq!(r.len(slot), 67);
        r.close(slot);
    }
}

fn hidden_states_lead_to_the_logits(how: How, r: &mut dyn ModelRunner) {
    let ids = prompt(2, 9);
    let slots = [r.open().unwrap(), r.open().unwrap()];
    let spans = [Want::Hidden, Want::LastLogits].into_iter().zip(slots);
    let spans = spans.map(|(want, slot)| SpanPlan {
        slot,
        tokens: ids.clone(),
        want,
    });
    let plan = StepPlan {
        spans: spans.collect(),
    };
    let [SpanOutput::Hidden(hidden), SpanOutput::Logits(last)] = &r.step(&plan).unwrap()[..] else {
        panic!("expected hidden states and logits");
    };
    assert_eq!(hidden.len(), 9 * r.info().hidden_size);
    assert!(hidden.iter().all(|x| x.is_finite()) && hidden.iter().any(|x| *x != 0.0));
    assert_same(how, last, &last_logits(r, &ids));
    let slot = r.open().unwrap();
    let alone = step(r, slot, &ids, Want::Hidden);
    let SpanOutput::Hidden(alone) = alone else {
        panic!("expected hidden states, got {alone:?}");
    };
    assert_same(how, &alone, hidden);
}

fn bytes_are_foretold(_: How, r: &mut dyn ModelRunner) {
    let slot = r.open().unwrap();
    assert_eq!(r.bytes(slot, 0), 0);
    for n in [3, 300, 1, 250] {
        let foretold = r.bytes(slot, n);
        step(r, slot, &prompt(3, n), Want::Nothing);
        assert_eq!(r.bytes(slot, 0), foretold);
        assert!(foretold > 0 && foretold <= 2 * r.info().kv_bytes(r.len(slot), n));
    }
}

fn batched_is_solo(how: How, r: &mut dyn ModelRunner) {
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| prompt(i, 3 + 5 * i as usize)).collect();
    let solo: Vec<_> = prompts.iter().map(|p| last_logits(r, p)).collect();
    let slots: Vec<_> = prompts.iter().map(|_| r.open().unwrap()).collect();
    let plan = |tokens: &dyn Fn(usize) -> Vec<u32>| StepPlan {
        spans: slots
            .iter()
            .enumerate()
            .map(|(i, &slot)| SpanPlan {
                slot,
                tokens: tokens(i),
                want: Want::LastLogits,
            })
            .collect(),
    };
    let prefill = r.step(&plan(&|i| prompts[i].clone())).unwrap();
    for (got, want) in prefill.into_iter().zip(&solo) {
        assert_same(how, &logits(got), want);
    }
    // And one decode step of all, against each alone.
    let decode = r.step(&plan(&|i| vec![i as u32 + 40])).unwrap();
    for (i, got) in decode.into_iter().enumerate() {
        let mut ids = prompts[i].clone();
        ids.push(i as u32 + 40);
        assert_same(how, &logits(got), &last_logits(r, &ids));
    }
}

/// Sequences of unlike length decode together for longer than a window, while one leaves, one comes,
/// one goes back and one is copied: none notices the others.
fn company_changes(how: How, r: &mut dyn ModelRunner) {
    let mut ids: Vec<Vec<u32>> = (0..5).map(|i| prompt(i, 3 + 9 * i as usize)).collect();
    let mut slots: Vec<SlotId> = Vec::new();
    for ids in &ids {
        let slot = r.open().unwrap();
        step(r, slot, ids, Want::Nothing);
        slots.push(slot);
    }
    let decode =
        |r: &mut dyn ModelRunner, who: &[usize], ids: &mut [Vec<u32>], slots: &[SlotId]| {
            let spans = who.iter().map(|&i| {
                let token = (ids[i].len() as u32 * 7 + i as u32) % 500;
                ids[i].push(token);
                SpanPlan {
                    slot: slots[i],
                    tokens: vec![token],
                    want: Want::LastLogits,
                }
            });
            let plan = StepPlan {
                spans: spans.collect(),
            };
            let got = r.step(&plan).unwrap();
            got.into_iter().map(logits).collect::<Vec<_>>()
        };
    let check = |r: &mut dyn ModelRunner, who: &[usize], got: &[Vec<f32>], ids: &[Vec<u32>]| {
        assert_eq!(who.len(), got.len());
        for (&i, got) in who.iter().zip(got) {
            assert_same(how, got, &last_logits(r, &ids[i]));
        }
    };
    let mut last = Vec::new();
    for who in [
        &[0, 1, 2, 3][..],
        &[3, 1, 0],
        &[4, 3, 0, 1, 2],
        &[2],
        &[0, 4],
    ] {
        for _ in 0..9 {
            last = decode(r, who, &mut ids, &slots);
        }
        for &i in who {
            assert_eq!(r.len(slots[i]), ids[i].len());
        }
        check(r, who, &last, &ids);
    }
    decode(r, &[0, 1, 2, 3], &mut ids, &slots);
    // One goes back, one is copied, one is written out and read again, one is closed.
    let len = ids[1].len() - 5;
    r.truncate(slots[1], len).unwrap();
    ids[1].truncate(len);
    let copied = r.fork(slots[2], ids[2].len() - 3).unwrap();
    let bytes = r.export(slots[3]).unwrap();
    let read = r.import(&bytes, ids[3].len()).unwrap();
    r.close(slots[0]);
    slots[0] = copied;
    ids[0] = ids[2][..ids[2].len() - 3].to_vec();
    slots.push(read);
    ids.push(ids[3].clone());
    for _ in 0..300 {
        last = decode(r, &[5, 0, 1, 2, 3], &mut ids, &slots);
    }
    check(r, &[5, 0, 1, 2, 3], &last, &ids);
    // And with a prompt's chunk beside them.
    let fresh = r.open().unwrap();
    let mut spans: Vec<SpanPlan> = [2, 3]
        .map(|i| SpanPlan {
            slot: slots[i],
            tokens: vec![i as u32],
            want: Want::LastLogits,
        })
        .into();
    let chunk = SpanPlan {
        slot: fresh,
        tokens: prompt(9, 20),
        want: Want::LastLogits,
    };
    spans.insert(1, chunk);
    let got: Vec<_> = r.step(&StepPlan { spans }).unwrap();
    let got: Vec<_> = got.into_iter().map(logits).collect();
    for (i, got) in [(2, &got[0]), (3, &got[2])] {
        ids[i].push(i as u32);
        assert_same(how, got, &last_logits(r, &ids[i]));
    }
    assert_same(how, &got[1], &last_logits(r, &prompt(9, 20)));
}

/// A step that is started before the one in flight is looked at gives the same tokens, in the plan's
/// order, also after the order has changed.
fn ahead_is_after(_: How, r: &mut dyn ModelRunner) {
    let prompts = [prompt(1, 9), prompt(2, 30), prompt(3, 5)];
    let argmax = |slots: &[SlotId], tokens: &[Vec<u32>]| StepPlan {
        spans: slots
            .iter()
            .zip(tokens)
            .map(|(&slot, tokens)| SpanPlan {
                slot,
                tokens: tokens.clone(),
                want: Want::Argmax,
            })
            .collect(),
    };
    let token = |o: &SpanOutput| match o {
        SpanOutput::Token(token) => *token,
        other => panic!("expected a token, got {other:?}"),
    };
    let run = |r: &mut dyn ModelRunner, ahead: bool| {
        let slots: Vec<_> = prompts.iter().map(|_| r.open().unwrap()).collect();
        let first = r.step(&argmax(&slots, &prompts)).unwrap();
        let mut answers = vec![first.iter().map(token).collect::<Vec<_>>()];
        // The sequences change places.
        let (slots, mut next): (Vec<_>, Vec<_>) = [2, 0, 1]
            .map(|i| (slots[i], token(&first[i])))
            .into_iter()
            .unzip();
        for _ in 0..6 {
            let tokens: Vec<_> = next.iter().map(|&t| vec![t]).collect();
            r.launch(&argmax(&slots, &tokens)).unwrap();
            let two = ahead && r.launch_next().unwrap();
            for _ in 0..1 + usize::from(two) {
                next = r.collect().unwrap().iter().map(token).collect();
                answers.push(next.clone());
            }
        }
        slots.into_iter().for_each(|slot| r.close(slot));
        answers
    };
    let (plain, ahead) = (run(r, false), run(r, true));
    assert_eq!(plain, ahead[..plain.len()]);
}

fn prefill_and_decode_share_a_step(how: How, r: &mut dyn ModelRunner) {
    let (a, b) = (prompt(1, 9), prompt(2, 40));
    let decoding = r.open().unwrap();
    step(r, decoding, &a, Want::Nothing);
    let fresh = r.open().unwrap();
    let spans = vec![
        SpanPlan {
            slot: decoding,
            tokens: vec![77],
            want: Want::Argmax,
        },
        SpanPlan {
            slot: fresh,
            tokens: b.clone(),
            want: Want::AllLogits,
        },
    ];
    let out = r.step(&StepPlan { spans }).unwrap();
    let alone = last_logits(r, &[a, vec![77]].concat());
    let best = (0..alone.len())
        .max_by(|&i, &j| alone[i].total_cmp(&alone[j]))
        .unwrap();
    assert_eq!(out[0], SpanOutput::Token(best as u32));
    let all = logits(out[1].clone());
    let vocab = r.info().vocab_size;
    assert_eq!(all.len(), 40 * vocab);
    assert_same(how, &all[39 * vocab..], &last_logits(r, &b));
    assert_same(how, &all[4 * vocab..5 * vocab], &last_logits(r, &b[..5]));
}

fn refused_steps_change_nothing(how: How, r: &mut dyn ModelRunner) {
    let ids = prompt(4, 12);
    let slot = r.open().unwrap();
    step(r, slot, &ids, Want::Nothing);
    let context = r.info().context_length;
    let vocab = r.info().vocab_size as u32;
    let closed = r.open().unwrap();
    r.close(closed);
    let span = |slot, tokens: Vec<u32>| SpanPlan {
        slot,
        tokens,
        want: Want::LastLogits,
    };
    let bad: Vec<(Vec<SpanPlan>, &str)> = vec![
        (vec![], "without tokens"),
        (vec![span(slot, vec![])], "without tokens"),
        (vec![span(slot, vec![vocab])], "vocabulary"),
        (vec![span(slot, vec![1; context])], "context"),
        (vec![span(slot, vec![1]), span(slot, vec![2])], "twice"),
        (vec![span(slot, vec![1]), span(closed, vec![2])], "closed"),
    ];
    for (spans, word) in bad {
        let error = r.step(&StepPlan { spans }).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_eq!(r.len(slot), 12);
    }
    assert!(r.collect().is_err());
    let next = logits(step(r, slot, &[6], Want::LastLogits));
    assert_same(how, &next, &last_logits(r, &[&ids[..], &[6]].concat()));
}

/// Far beyond the window, where sliding layers have moved their tokens several times.
fn windows_slide(how: How, r: &mut dyn ModelRunner) {
    assert!(r.info().is_windowed());
    let ids = prompt(5, 900);
    let whole = last_logits(r, &ids);
    for chunk in [7, 64, 333] {
        let slot = r.open().unwrap();
        let mut last = SpanOutput::Nothing;
        for part in ids.chunks(chunk) {
            last = step(r, slot, part, Want::LastLogits);
        }
        assert_same(how, &logits(last), &whole);
        // The last few tokens can be taken back, by cutting and by branching off.
        for len in [899, 870, 840] {
            let next = logits(step_of_fork(r, slot, len, 3));
            let alone = last_logits(r, &[&ids[..len], &[3]].concat());
            assert_same(how, &next, &alone);
        }
        r.truncate(slot, 850).unwrap();
        let next = logits(step(r, slot, &[4], Want::LastLogits));
        assert_same(how, &next, &last_logits(r, &[&ids[..850], &[4]].concat()));
        // What the window has dropped is gone, and saying so changes nothing.
        assert!(!r.can_go_back_to(slot, 100));
        assert!(
            r.truncate(slot, 100)
                .unwrap_err()
                .to_string()
                .contains("window")
        );
        assert!(r.fork(slot, 100).is_err());
        assert_eq!(r.len(slot), 851);
        r.close(slot);
    }
    // Memory stops growing: only the global layer of eight keeps everything.
    let info = r.info();
    let grown = info.kv_bytes(100_000, 64) - info.kv_bytes(50_000, 64);
    assert_eq!(
        grown,
        (100_096 - 50_176) * info.caches[5].bytes_per_token(info.kv_format)
    );
}

fn step_of_fork(r: &mut dyn ModelRunner, slot: SlotId, len: usize, token: u32) -> SpanOutput {
    let fork = r.fork(slot, len).unwrap();
    let output = step(r, fork, &[token], Want::LastLogits);
    r.close(fork);
    output
}

on_each_backend! {
    chunked => |b| each_model(b, chunked_is_whole);
    batched => |b| each_model(b, batched_is_solo);
    company => |b| each_model(b, company_changes);
    ahead => |b| each_model(b, ahead_is_after);
    mixed => |b| each_model(b, prefill_and_decode_share_a_step);
    forked => |b| each_model(b, forks_and_truncation);
    resting => |b| each_model(b, rests);
    refused => |b| each_model(b, refused_steps_change_nothing);
    exported => |b| each_model(b, exported_is_imported);
    hidden => |b| each_model(b, hidden_states_lead_to_the_logits);
    bytes => |b| each_model(b, bytes_are_foretold);
    sliding => |b| each_windowed(b, windows_slide);
}
