//! Steps that are started before the earlier one is looked at.

use super::*;

fn bench(vocabulary: &Vocabulary, runs_ahead: bool) -> Bench<'_> {
    let (mut runner, watch) = FakeRunner::new(Some(64));
    runner.runs_ahead = runs_ahead;
    let scheduler = Scheduler::new(
        Box::new(runner),
        vocabulary,
        EngineConfig::default(),
        Arc::new(Counters::new()),
        usize::MAX / 4,
        None,
        [7; 32],
    );
    Bench {
        scheduler: scheduler.unwrap(),
        watch,
    }
}

#[test]
fn running_ahead_changes_nothing() {
    let vocabulary = vocabulary();
    // Greedy, of unlike lengths; some come to their end by themselves.
    let requests: Vec<_> = (0..40)
        .map(|i| request(i, 5 + 7 * i as usize, 20 + 40 * (i as usize % 4)))
        .collect();
    let mut behind = bench(&vocabulary, false);
    let mut ahead = bench(&vocabulary, true);
    let want = behind.answers(&requests);
    assert_alike(&ahead.answers(&requests), &want);
    let ended = |reason: FinishReason| {
        let end = Some(Ok(reason));
        want.iter().filter(|a| a.end == end).count()
    };
    assert!(ended(FinishReason::Stop) > 5 && ended(FinishReason::Length) > 2);
    assert_eq!(behind.watch.ahead.load(Relaxed), 0);
    assert!(ahead.watch.ahead.load(Relaxed) > 20);
    // What was kept of them serves the next as if nothing had been computed in vain.
    let longer: Vec<_> = requests
        .iter()
        .zip(&want)
        .map(|(request, answer)| {
            let mut next = request.clone();
            next.tokens.extend(&answer.tokens);
            next
        })
        .collect();
    assert_alike(
        &ahead.answers(&longer),
        &solo(&vocabulary, Some(64), &longer),
    );
    ahead.nothing_leaks();
}

#[test]
fn readers_leave_while_steps_are_in_flight() {
    let vocabulary = vocabulary();
    let want = solo(&vocabulary, Some(64), &[endless(1, 300)]);
    let mut bench = bench(&vocabulary, true);
    let mut stays = bench.submit(endless(1, 300));
    let mut answer = Answer::default();
    for i in 2..60 {
        let leaves = bench.submit(endless(i, 200));
        for _ in 0..i % 7 {
            bench.scheduler.tick();
            answer.read(&mut stays);
        }
        drop(leaves);
    }
    while answer.end.is_none() {
        bench.scheduler.tick();
        answer.read(&mut stays);
    }
    assert_eq!(answer.what(), want[0].what());
    bench.nothing_leaks();
}

#[test]
fn a_device_is_at_rest_when_its_engine_is() {
    let vocabulary = vocabulary();
    let mut bench = bench(&vocabulary, true);
    let (jobs, queue) = std::sync::mpsc::channel();
    let (job, mut answer) = bench.job(endless(1, 20));
    jobs.send(job).unwrap();
    let watch = Arc::clone(&bench.watch);
    let reader = std::thread::spawn(move || {
        while answer.blocking_recv().is_some() {}
        let ended = Instant::now();
        // The engine waits for jobs, which may yet come.
        while watch.under_way.load(Relaxed) > 0 && ended.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        let under_way = watch.under_way.load(Relaxed);
        drop(jobs);
        under_way
    });
    bench.scheduler.serve(&queue);
    assert_eq!(reader.join().unwrap(), 0);
    assert!(bench.watch.ahead.load(Relaxed) > 0);
    bench.nothing_leaks();
}
