//! What becomes of a sequence's keys and values besides steps.

use super::*;

pub(crate) fn exported_is_imported(how: How, r: &mut dyn ModelRunner) {
    let slot = r.open().unwrap();
    step(r, slot, &prompt(1, 47), Want::Nothing);
    let bytes = r.export(slot).unwrap();
    let copy = r.import(&bytes, 47).unwrap();
    assert_eq!(r.len(copy), 47);
    let next = |r: &mut dyn ModelRunner, slot| logits(step(r, slot, &[7, 8], Want::LastLogits));
    assert_same(how, &next(r, copy), &next(r, slot));
    for (bytes, len) in [
        (&bytes[..bytes.len() - 1], 47),
        (&bytes[..9], 47),
        (&[bytes.as_slice(), &[0]].concat()[..], 47),
        (&bytes[..], 48),
    ] {
        let error = r.import(bytes, len).unwrap_err().to_string();
        assert!(error.contains("stored KV cache"), "{error}");
    }
}

pub(crate) fn forks_and_truncation(how: How, r: &mut dyn ModelRunner) {
    let ids = prompt(3, 30);
    let slot = r.open().unwrap();
    step(r, slot, &ids, Want::Nothing);
    let fork = r.fork(slot, 20).unwrap();
    assert_eq!(r.len(fork), 20);
    // The fork goes its own way; the original does not notice.
    step(r, fork, &[1, 2, 3], Want::Nothing);
    let continued = logits(step(r, slot, &[9], Want::LastLogits));
    assert_same(how, &continued, &last_logits(r, &[&ids[..], &[9]].concat()));
    let forked = logits(step(r, fork, &[4], Want::LastLogits));
    assert_same(
        how,
        &forked,
        &last_logits(r, &[&ids[..20], &[1, 2, 3, 4]].concat()),
    );
    r.truncate(slot, 10).unwrap();
    let cut = logits(step(r, slot, &[8], Want::LastLogits));
    assert_same(how, &cut, &last_logits(r, &[&ids[..10], &[8]].concat()));
}

/// A sequence that rests, from a batch or alone, holds little more than its tokens and goes on as before.
pub(crate) fn rests(how: How, r: &mut dyn ModelRunner) {
    let slots = [r.open().unwrap(), r.open().unwrap()];
    let prompts = [prompt(5, 11), prompt(6, 37)];
    for (slot, ids) in slots.iter().zip(&prompts) {
        step(r, *slot, ids, Want::Nothing);
    }
    let span = |slot| SpanPlan {
        slot,
        tokens: vec![7],
        want: Want::LastLogits,
    };
    let plan = StepPlan {
        spans: slots.map(span).to_vec(),
    };
    r.step(&plan).unwrap();
    for (slot, ids) in slots.into_iter().zip(&prompts) {
        let before = r.bytes(slot, 0);
        r.rest(slot).unwrap();
        let info = r.info();
        let room = (ids.len() + 1).next_multiple_of(32);
        let most: usize = info
            .caches
            .iter()
            .map(|c| 2 * room * c.bytes_per_token(info.kv_format))
            .sum();
        assert!(
            r.bytes(slot, 0) <= most.min(before),
            "{} of {before}",
            r.bytes(slot, 0)
        );
        assert_eq!(r.len(slot), ids.len() + 1);
        let mut ids = ids.clone();
        ids.push(7);
        let continued = logits(step(r, slot, &[9], Want::LastLogits));
        ids.push(9);
        assert_same(how, &continued, &last_logits(r, &ids));
    }
    let closed = slots[0];
    r.close(closed);
    assert!(r.rest(closed).is_err());
}
