//! Memory that runs out, readers that leave or wait, faults, and what is refused.

use super::*;

#[test]
fn memory_that_runs_out_is_given_back_and_computed_again() {
    let vocabulary = vocabulary();
    let requests: Vec<_> = (0..8).map(|i| seeded(i, 200, 200)).collect();
    let want = solo(&vocabulary, None, &requests);
    let mut bench = Bench::new(
        &vocabulary,
        None,
        EngineConfig {
            // Room for not quite three of them.
            kv_memory: Some(1100 * fake::BYTES_PER_TOKEN),
            ..EngineConfig::default()
        },
    );
    assert_alike(&bench.answers(&requests), &want);
    let metrics = bench.scheduler.counters.read();
    assert!(metrics.preemptions > 0);
    assert!(bench.watch.most_bytes.load(Relaxed) <= 1100 * fake::BYTES_PER_TOKEN);
    bench.nothing_leaks();
    let long = Request {
        tokens: prompt(1, 900),
        ..endless(1, 500)
    };
    let error = bench.answers(&[long])[0].end.clone();
    assert!(matches!(error, Some(Err(e)) if e.contains("KV cache") && e.contains("--kv-memory")));
}

#[test]
fn a_thousand_cancelled_streams_leave_nothing() {
    let vocabulary = vocabulary();
    for window in [None, Some(64)] {
        let mut bench = Bench::new(&vocabulary, window, EngineConfig::default());
        let mut readers = Vec::new();
        let mut random = 1u64;
        for i in 0..1000 {
            readers.push(bench.submit(seeded(i, 20 + (i as usize * 7) % 900, 40)));
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            for _ in 0..(random >> 33) % 3 {
                bench.scheduler.tick();
            }
            // One of those before leaves, at whatever it is.
            let leaves = (random >> 40) as usize % readers.len();
            readers.swap_remove(leaves);
        }
        drop(readers);
        bench.nothing_leaks();
        let metrics = bench.scheduler.counters.read();
        assert_eq!(metrics.finished, 1000);
        assert!(metrics.cancelled > 200, "{}", metrics.cancelled);
    }
}

#[test]
fn a_slow_reader_stalls_nobody() {
    let vocabulary = vocabulary();
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    let mut slow = bench.submit(endless(1, 500));
    let quick = bench.answers(&[endless(2, 300)]);
    assert_eq!(quick[0].tokens.len(), 300);
    let mut answer = Answer::default();
    // It waits with a full channel, and goes on when its reader does.
    assert_eq!(bench.scheduler.running.len(), 1);
    while answer.end.is_none() {
        answer.read(&mut slow);
        bench.scheduler.tick();
    }
    let want = solo(&vocabulary, None, &[endless(1, 500)]);
    assert_alike(&[answer], &want);
}

#[test]
fn a_fault_is_one_requests_own() {
    let vocabulary = vocabulary();
    for trap in [fake::PANIC, fake::FAIL] {
        let mut requests: Vec<_> = (0..6).map(|i| seeded(i, 30, 20)).collect();
        let want = solo(&vocabulary, None, &requests);
        requests[3].tokens.push(trap);
        let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
        let mut answers = bench.answers(&requests);
        let failed = answers.remove(3);
        assert!(matches!(failed.end, Some(Err(_))), "{failed:?}");
        let want: Vec<_> = (0..6)
            .filter(|i| *i != 3)
            .map(|i| want[i].clone())
            .collect();
        assert_alike(&answers, &want);
        // And the engine goes on.
        assert!(matches!(
            bench.answers(&[request(9, 5, 5)])[0].end,
            Some(Ok(_))
        ));
        bench.nothing_leaks();
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let vocabulary = vocabulary();
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    let end = |bench: &mut Bench<'_>, r: Request| bench.answers(&[r])[0].end.clone().unwrap();
    let refused = |end: Result<FinishReason, String>, what: &str| {
        assert!(matches!(&end, Err(e) if e.contains(what)), "{end:?}");
    };
    refused(end(&mut bench, request(1, 0, 1)), "no tokens");
    refused(
        end(&mut bench, request(1, fake::CONTEXT, 1)),
        "context of 2048",
    );
    let mut r = request(1, 5, 5);
    r.logprobs = Some(21);
    refused(end(&mut bench, r), "logprobs");
    let mut r = request(1, 5, 5);
    r.stop = vec!["a".into(); 17];
    refused(end(&mut bench, r), "stop texts");
    let mut r = request(1, 5, 5);
    r.sampling.temperature = f32::NAN;
    refused(end(&mut bench, r), "temperature");
    assert_eq!(end(&mut bench, request(1, 5, 0)), Ok(FinishReason::Length));
    // As far as the context goes, and not further.
    let long = &bench.answers(&[Request {
        ignore_eos: true,
        max_tokens: None,
        ..request(1, 2000, 0)
    }])[0];
    assert_eq!(
        (long.tokens.len(), &long.end),
        (48, &Some(Ok(FinishReason::Length)))
    );
    bench.nothing_leaks();
}

#[test]
fn too_many_waiting_are_told_so() {
    let error = Error::Busy { queued: 256 };
    assert!(error.to_string().contains("256 requests wait"));
}
