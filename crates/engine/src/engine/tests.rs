//! The engine over a model that is a hash of its tokens: what depends on who else is served, or on
//! what is kept, would show at once.

mod ahead;
mod constraints;
mod fake;
mod prefixes;
mod trouble;

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};

use self::fake::{FakeRunner, Watch};
use super::{
    EngineConfig, Vocabulary, guess::Guesser, metrics::Counters, outbox, scheduler::Scheduler,
    sequence::Job,
};
use crate::{
    Error, Event, FinishReason, Pooling, Request, SamplingParams, Timings, tokenizer::Tokenizer,
};

struct Bench<'a> {
    scheduler: Scheduler<'a>,
    watch: Arc<Watch>,
}

fn vocabulary() -> Vocabulary {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/hf");
    Vocabulary {
        tokenizer: Arc::new(Tokenizer::from_dir(Path::new(dir)).unwrap()),
        stop_ids: HashSet::from([fake::STOP]),
    }
}

impl<'a> Bench<'a> {
    fn new(vocabulary: &'a Vocabulary, window: Option<usize>, config: EngineConfig) -> Self {
        Self::guessing(vocabulary, window, config, None)
    }

    fn guessing(
        vocabulary: &'a Vocabulary,
        window: Option<usize>,
        config: EngineConfig,
        guesser: Option<Guesser>,
    ) -> Self {
        let (runner, watch) = FakeRunner::new(window);
        let budget = config.kv_memory.unwrap_or(usize::MAX / 4);
        let counters = Arc::new(Counters::new());
        let scheduler = Scheduler::new(
            Box::new(runner),
            vocabulary,
            config,
            counters,
            budget,
            guesser,
            [7; 32],
        );
        Bench {
            scheduler: scheduler.unwrap(),
            watch,
        }
    }

    fn submit(&mut self, request: Request) -> mpsc::Receiver<Event> {
        let (job, receiver) = self.job(request);
        self.scheduler.take(job);
        receiver
    }

    fn job(&self, request: Request) -> (Job, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(outbox::EVENTS);
        let grammar = request.constraint.as_ref().map(constraints::state);
        self.scheduler.counters.queued.fetch_add(1, Relaxed);
        let job = Job::Answer {
            request: Box::new(request),
            grammar,
            events,
            submitted: Instant::now(),
        };
        (job, receiver)
    }

    fn run(&mut self) {
        let mut idle = 0;
        while idle < 3 {
            idle = if self.scheduler.tick() { 0 } else { idle + 1 };
        }
    }

    /// All requests at once; their answers, read as they come.
    fn answers(&mut self, requests: &[Request]) -> Vec<Answer> {
        let mut readers: Vec<_> = requests.iter().map(|r| self.submit(r.clone())).collect();
        let mut answers = vec![Answer::default(); requests.len()];
        for _ in 0..100_000 {
            self.scheduler.tick();
            for (reader, answer) in readers.iter_mut().zip(&mut answers) {
                answer.read(reader);
            }
            if answers.iter().all(|a| a.end.is_some()) {
                return answers;
            }
        }
        panic!("no end: {answers:?}");
    }

    fn nothing_leaks(&mut self) {
        self.run();
        let metrics = self.scheduler.counters.read();
        assert_eq!(
            (metrics.queued, metrics.running, metrics.running_bytes),
            (0, 0, 0)
        );
        assert_eq!(self.watch.open.load(Relaxed), metrics.cached_prefixes);
        while self
            .scheduler
            .cache
            .evict(&mut *self.scheduler.runner, None)
        {}
        assert_eq!(self.watch.open.load(Relaxed), 0);
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    end: Option<Result<FinishReason, String>>,
    timings: Timings,
}

impl Answer {
    fn read(&mut self, reader: &mut mpsc::Receiver<Event>) {
        while let Ok(event) = reader.try_recv() {
            assert!(self.end.is_none(), "an event after the end: {event:?}");
            match event {
                Event::Prompt(_) => {}
                Event::Token { id, text, .. } => {
                    self.tokens.push(id);
                    self.text.push_str(&text);
                }
                Event::Done {
                    text,
                    reason,
                    timings,
                } => {
                    self.text.push_str(&text);
                    self.timings = timings;
                    self.end = Some(Ok(reason));
                }
                Event::Failed(error) => self.end = Some(Err(error.to_string())),
            }
        }
    }

    fn what(&self) -> (&[u32], &str, &Option<Result<FinishReason, String>>) {
        (&self.tokens, &self.text, &self.end)
    }
}

fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 31 + seed * 17) % 300 + 3)
        .collect()
}

fn request(seed: u32, n: usize, generate: usize) -> Request {
    Request {
        max_tokens: Some(generate),
        ..Request::new(prompt(seed, n))
    }
}

fn endless(seed: u32, generate: usize) -> Request {
    Request {
        ignore_eos: true,
        ..request(seed, 10, generate)
    }
}

fn seeded(seed: u32, n: usize, generate: usize) -> Request {
    Request {
        sampling: SamplingParams {
            temperature: 1.0,
            seed: Some(seed.into()),
            ..SamplingParams::default()
        },
        ..request(seed, n, generate)
    }
}

/// Requests of all lengths, greedy and seeded, some with a common beginning.
fn many() -> Vec<Request> {
    (0..24)
        .map(|i| match i % 3 {
            0 => request(i, 5 + 37 * i as usize, 20),
            1 => seeded(i, 9 + 11 * i as usize, 30),
            _ => {
                let mut r = seeded(i, 40, 12);
                r.tokens.splice(0..0, prompt(99, 700));
                r
            }
        })
        .collect()
}

fn solo(vocabulary: &Vocabulary, window: Option<usize>, requests: &[Request]) -> Vec<Answer> {
    let config = EngineConfig {
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let alone = |r: &Request| {
        let answer =
            Bench::new(vocabulary, window, config.clone()).answers(std::slice::from_ref(r));
        answer.into_iter().next().unwrap()
    };
    requests.iter().map(alone).collect()
}

fn assert_alike(a: &[Answer], b: &[Answer]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.what(), b.what(), "request {i}");
    }
}

#[test]
fn guesses_change_nothing_but_the_steps() {
    let vocabulary = vocabulary();
    let requests = many();
    for window in [None, Some(64)] {
        let want = solo(&vocabulary, window, &requests);
        let config = EngineConfig {
            max_sequences: 3,
            ..EngineConfig::default()
        };
        for right in [0, 50, 100] {
            let (draft, _) = FakeRunner::right(window, right);
            let guesser = Guesser::draft(5, Box::new(draft));
            let mut bench = Bench::guessing(&vocabulary, window, config.clone(), Some(guesser));
            assert_alike(&bench.answers(&requests), &want);
            let metrics = bench.scheduler.counters.read();
            assert!(metrics.guessed_tokens > 0);
            if right == 100 {
                assert!(metrics.accepted_tokens > 0);
            }
            bench.nothing_leaks();
        }
        let guesser = Guesser::prompt_lookup(4);
        let mut bench = Bench::guessing(&vocabulary, window, config, Some(guesser));
        assert_alike(&bench.answers(&requests), &want);
        bench.nothing_leaks();
    }
}

#[test]
fn embeddings_share_the_engine() {
    let vocabulary = vocabulary();
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    let stream = bench.submit(request(1, 10, 30));
    let mut vectors = Vec::new();
    for (n, pooling) in [
        (1300, Pooling::Mean),
        (3, Pooling::Last),
        (0, Pooling::Mean),
    ] {
        let (reply, receiver) = oneshot::channel();
        bench.scheduler.counters.queued.fetch_add(1, Relaxed);
        bench.scheduler.take(Job::Embed {
            tokens: prompt(4, n),
            pooling,
            reply,
        });
        vectors.push(receiver);
    }
    bench.run();
    drop(stream);
    let [mean, last, none] = vectors.try_into().unwrap();
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let mean = {
        let mut mean = mean;
        mean.try_recv().unwrap().unwrap()
    };
    assert!((norm(&mean) - 1.0).abs() < 1e-5);
    // The fake's hidden state is [token, 1].
    let tokens = prompt(4, 1300);
    let average = tokens.iter().sum::<u32>() as f32 / 1300.0;
    assert!((mean[0] / mean[1] - average).abs() < 1e-2);
    let last = {
        let mut last = last;
        last.try_recv().unwrap().unwrap()
    };
    assert!((last[0] / last[1] - prompt(4, 3)[2] as f32).abs() < 1e-2);
    let error = {
        let mut none = none;
        none.try_recv().unwrap().unwrap_err()
    };
    assert!(error.to_string().contains("no tokens"));
    bench.nothing_leaks();
}

#[test]
fn prompts_have_log_probabilities_too() {
    let vocabulary = vocabulary();
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    let r = Request {
        prompt_logprobs: Some(2),
        logprobs: Some(3),
        ..request(1, 100, 4)
    };
    let mut reader = bench.submit(r);
    bench.run();
    let Ok(Event::Prompt(prompt)) = reader.try_recv() else {
        panic!()
    };
    assert_eq!(prompt.len(), 99);
    assert_eq!(prompt[0].token, super::tests::prompt(1, 100)[1]);
    assert!(prompt.iter().all(|p| p.top.len() == 2 && p.logprob <= 0.0));
    let Ok(Event::Token {
        logprobs: Some(l),
        id,
        ..
    }) = reader.try_recv()
    else {
        panic!()
    };
    assert_eq!((l.token, l.top[0].0, l.top.len()), (id, id, 3));
}

#[test]
fn stop_texts_end_the_answer_and_are_no_part_of_it() {
    let vocabulary = vocabulary();
    let plain = Request {
        ignore_eos: true,
        ..request(3, 20, 40)
    };
    let whole = solo(&vocabulary, None, std::slice::from_ref(&plain)).remove(0);
    let at = whole.text.char_indices().nth(30).unwrap().0;
    let stop: String = whole.text[at..].chars().take(5).collect();
    let want = &whole.text[..whole.text.find(&stop).unwrap()];
    let got = solo(
        &vocabulary,
        None,
        &[Request {
            stop: vec![stop.clone()],
            ..plain
        }],
    )
    .remove(0);
    assert_eq!(got.text, want);
    assert_eq!(got.end, Some(Ok(FinishReason::StopText(stop))));
}

#[test]
fn recordings_hold_what_was_asked_and_given() {
    let vocabulary = vocabulary();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.jsonl");
    let config = EngineConfig {
        record: Some(path.clone()),
        ..EngineConfig::default()
    };
    let requests = [seeded(1, 30, 20), request(2, 10, 5)];
    let mut bench = Bench::new(&vocabulary, None, config);
    let answers = bench.answers(&requests);
    let mut recorded = super::Recorded::read(&path).unwrap();
    recorded.sort_by_key(|r| r.request.tokens.len());
    assert_eq!(recorded[1].request, requests[0]);
    assert_eq!(
        (&recorded[1].tokens, &recorded[1].text),
        (&answers[0].tokens, &answers[0].text)
    );
    std::fs::write(&path, "{}\nnonsense\n").unwrap();
    let error = super::Recorded::read(&path).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}
