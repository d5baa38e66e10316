//! Properties of a running model that no golden value shows: batched is solo, chunked is whole, a
//! fork is independent, a refused step changes nothing.

use biplane::{BackendKind, ModelRunner, SpanOutput, SpanPlan, StepPlan, Want};
use biplane_tests::{fixture, last_logits, logits, max_difference, on_each_backend, runner, step};

fn model(backend: BackendKind) -> Box<dyn ModelRunner> {
    runner(&fixture("llama/mlx-4bit"), backend)
}

/// Candle's own kernels give a row the same bits in any company; MLX's kernels choose their order of
/// summation by shape.
fn assert_same(backend: BackendKind, a: &[f32], b: &[f32]) {
    match backend {
        BackendKind::Candle => assert_eq!(a, b),
        BackendKind::Mlx => {
            let (difference, at) = max_difference(a, b);
            assert!(difference <= 1e-4, "logit {at} is off by {difference}");
        }
    }
}

fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 97 + seed * 31 + 5) % 500)
        .collect()
}

fn chunked_is_whole(backend: BackendKind) {
    let mut r = model(backend);
    let ids = prompt(1, 67);
    let whole = last_logits(&mut *r, &ids);
    for chunk in [1, 7, 32, 66] {
        let slot = r.open().unwrap();
        let mut last = SpanOutput::Nothing;
        for part in ids.chunks(chunk) {
            last = step(&mut *r, slot, part, Want::LastLogits);
        }
        assert_same(backend, &logits(last), &whole);
        assert_eq!(r.len(slot), 67);
        r.close(slot);
    }
}

fn batched_is_solo(backend: BackendKind) {
    let mut r = model(backend);
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| prompt(i, 3 + 5 * i as usize)).collect();
    let solo: Vec<_> = prompts.iter().map(|p| last_logits(&mut *r, p)).collect();
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
        assert_same(backend, &logits(got), want);
    }
    // And one decode step of all, against each alone.
    let decode = r.step(&plan(&|i| vec![i as u32 + 40])).unwrap();
    for (i, got) in decode.into_iter().enumerate() {
        let mut ids = prompts[i].clone();
        ids.push(i as u32 + 40);
        assert_same(backend, &logits(got), &last_logits(&mut *r, &ids));
    }
}

fn prefill_and_decode_share_a_step(backend: BackendKind) {
    let mut r = model(backend);
    let (a, b) = (prompt(1, 9), prompt(2, 40));
    let decoding = r.open().unwrap();
    step(&mut *r, decoding, &a, Want::Nothing);
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
    let alone = last_logits(&mut *r, &[a, vec![77]].concat());
    let best = (0..alone.len())
        .max_by(|&i, &j| alone[i].total_cmp(&alone[j]))
        .unwrap();
    assert_eq!(out[0], SpanOutput::Token(best as u32));
    let all = logits(out[1].clone());
    let vocab = r.info().vocab_size;
    assert_eq!(all.len(), 40 * vocab);
    assert_same(backend, &all[39 * vocab..], &last_logits(&mut *r, &b));
    assert_same(
        backend,
        &all[4 * vocab..5 * vocab],
        &last_logits(&mut *r, &b[..5]),
    );
}

fn forks_and_truncation(backend: BackendKind) {
    let mut r = model(backend);
    let ids = prompt(3, 30);
    let slot = r.open().unwrap();
    step(&mut *r, slot, &ids, Want::Nothing);
    let fork = r.fork(slot, 20).unwrap();
    assert_eq!(r.len(fork), 20);
    // The fork goes its own way; the original does not notice.
    step(&mut *r, fork, &[1, 2, 3], Want::Nothing);
    let continued = logits(step(&mut *r, slot, &[9], Want::LastLogits));
    assert_same(
        backend,
        &continued,
        &last_logits(&mut *r, &[&ids[..], &[9]].concat()),
    );
    let forked = logits(step(&mut *r, fork, &[4], Want::LastLogits));
    assert_same(
        backend,
        &forked,
        &last_logits(&mut *r, &[&ids[..20], &[1, 2, 3, 4]].concat()),
    );
    r.truncate(slot, 10).unwrap();
    let cut = logits(step(&mut *r, slot, &[8], Want::LastLogits));
    assert_same(
        backend,
        &cut,
        &last_logits(&mut *r, &[&ids[..10], &[8]].concat()),
    );
}

fn refused_steps_change_nothing(backend: BackendKind) {
    let mut r = model(backend);
    let ids = prompt(4, 12);
    let slot = r.open().unwrap();
    step(&mut *r, slot, &ids, Want::Nothing);
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
    let next = logits(step(&mut *r, slot, &[6], Want::LastLogits));
    assert_same(
        backend,
        &next,
        &last_logits(&mut *r, &[&ids[..], &[6]].concat()),
    );
}

on_each_backend! {
    chunked => chunked_is_whole;
    batched => batched_is_solo;
    mixed => prefill_and_decode_share_a_step;
    forked => forks_and_truncation;
    refused => refused_steps_change_nothing;
}
