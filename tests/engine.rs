//! The engine on real computation: who else is served, and what was kept, changes no answer.

use biplane::tokenizer::Specials;
use biplane::{
    BackendKind, Device, EngineConfig, Event, FinishReason, Guess, Model, ModelBuilder, Pooling,
    Request, Response, SamplingParams, Speculation,
};
use biplane_tests::{fixture, on_each_backend, real_model};

/// Full caches, and a window of 16 tokens in most layers.
const MODELS: [&str; 2] = ["llama/mlx-4bit", "gemma3/mlx-4bit"];

fn model(name: &str, backend: BackendKind, config: EngineConfig) -> Model {
    ModelBuilder::new(fixture(name).to_string_lossy())
        .with_backend(backend)
        .with_device(Device::Cpu)
        .with_engine(config)
        .build_blocking()
        .unwrap()
}

fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 97 + seed * 31 + 5) % 500)
        .collect()
}

/// Prompts of all lengths, some with a common beginning; greedy and seeded.
fn requests(n: usize) -> Vec<Request> {
    (0..n as u32)
        .map(|i| {
            let mut tokens = prompt(i, 3 + 17 * (i as usize % 5));
            if i % 2 == 1 {
                tokens.splice(0..0, prompt(99, 120));
            }
            Request {
                max_tokens: Some(12 + i as usize % 7),
                ignore_eos: true,
                sampling: SamplingParams {
                    temperature: if i % 3 == 0 { 0.8 } else { 0.0 },
                    top_p: 0.95,
                    seed: Some(i.into()),
                    ..SamplingParams::default()
                },
                ..Request::new(tokens)
            }
        })
        .collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn together(model: &Model, requests: &[Request]) -> Vec<Response> {
    let submitted: Vec<_> = requests
        .iter()
        .map(|r| model.submit(r.clone()).unwrap())
        .collect();
    runtime().block_on(async {
        let mut responses = Vec::new();
        for events in submitted {
            responses.push(Response::collect(events).await.unwrap());
        }
        responses
    })
}

fn one_by_one(model: &Model, requests: &[Request]) -> Vec<Response> {
    requests
        .iter()
        .map(|r| together(model, std::slice::from_ref(r)).remove(0))
        .collect()
}

fn alone(name: &str, backend: BackendKind, requests: &[Request]) -> Vec<Response> {
    let config = EngineConfig {
        prefix_cache: false,
        ..EngineConfig::default()
    };
    one_by_one(&model(name, backend, config), requests)
}

fn assert_alike(got: &[Response], want: &[Response]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(
            (&got.tokens, &got.text),
            (&want.tokens, &want.text),
            "request {i}"
        );
    }
}

fn batched_is_solo(backend: BackendKind) {
    for name in MODELS {
        let all = requests(16);
        let want = alone(name, backend, &all);
        for n in [2, 4, 8, 16] {
            let model = model(name, backend, EngineConfig::default());
            assert_alike(&together(&model, &all[..n]), &want[..n]);
        }
    }
}

/// A model's share of a request: the likelihoods too, which candle gives bit for bit.
fn facts(response: &Response, backend: BackendKind) -> (Vec<u32>, String, Vec<u32>) {
    let bits = match backend {
        BackendKind::Candle => {
            let logprobs = response.logprobs.iter();
            logprobs.map(|l| l.logprob.to_bits()).collect()
        }
        BackendKind::Mlx => Vec::new(),
    };
    (response.tokens.clone(), response.text.clone(), bits)
}

/// Real models with up to 16 conversations of one beginning; each names its own animal.
fn real_models_keep_conversations_apart(backend: BackendKind) {
    const ANIMALS: [&str; 16] = [
        "cat", "dog", "horse", "whale", "eagle", "snake", "tiger", "shark", "mouse", "sheep",
        "camel", "otter", "crow", "toad", "moose", "hen",
    ];
    // MLX's processor kernels take minutes for all of it.
    let long = backend == BackendKind::Candle || std::env::var_os("BIPLANE_TEST_LONG").is_some();
    let (sizes, tokens): (&[usize], _) = match long {
        true => (&[1, 2, 4, 8, 16], 12),
        false => (&[1, 3], 3),
    };
    for file in [
        "smollm2-135m-instruct-q4_1.gguf",
        "gemma-3-270m-q4_k_m.gguf",
    ] {
        let Some(path) = real_model(file) else {
            return;
        };
        let loaded = |prefix_cache| {
            ModelBuilder::new(path.to_string_lossy())
                .with_backend(backend)
                .with_device(Device::Cpu)
                .with_engine(EngineConfig {
                    prefix_cache,
                    ..EngineConfig::default()
                })
                .build_blocking()
                .unwrap()
        };
        let model = loaded(false);
        let most = sizes.iter().max().unwrap();
        let all: Vec<_> = ANIMALS[..*most]
            .iter()
            .enumerate()
            .map(|(i, animal)| {
                let text =
                    format!("What is known of animals, where they live and eat: the {animal}");
                let ids = model.tokenizer().encode_with_bos(&text, Specials::Plain);
                Request {
                    max_tokens: Some(tokens),
                    ignore_eos: true,
                    logprobs: Some(1),
                    sampling: SamplingParams {
                        temperature: [0.0, 0.7][i % 2],
                        seed: Some(i as u64),
                        ..SamplingParams::default()
                    },
                    ..Request::new(ids.unwrap())
                }
            })
            .collect();
        let told = |model: &Model, n: usize| -> Vec<_> {
            let answers = together(model, &all[..n]);
            answers.iter().map(|r| facts(r, backend)).collect()
        };
        let solo: Vec<_> = one_by_one(&model, &all)
            .iter()
            .map(|r| facts(r, backend))
            .collect();
        let cached = loaded(true);
        for &n in sizes {
            assert_eq!(told(&model, n), solo[..n], "{file}, {n} at once");
            // First a miss, then hits of ever more.
            assert_eq!(told(&cached, n), solo[..n], "{file}, {n} at once, cached");
        }
    }
}

fn a_hit_is_a_miss(backend: BackendKind) {
    for name in MODELS {
        let all = requests(6);
        let want = alone(name, backend, &all);
        let model = model(name, backend, EngineConfig::default());
        let first = one_by_one(&model, &all);
        let again = one_by_one(&model, &all);
        assert_alike(&first, &want);
        assert_alike(&again, &want);
        for (request, response) in all.iter().zip(&again) {
            // A few tokens are computed sooner than a cache is copied.
            let reused = response.timings.cached_tokens;
            match request.tokens.len() - 1 {
                n if n < 16 => assert!(reused <= n),
                n => assert_eq!(reused, n),
            }
        }
    }
}

fn guesses_change_nothing(backend: BackendKind) {
    for name in MODELS {
        let all = requests(5);
        let want = alone(name, backend, &all);
        // The model as its own draft guesses all that is greedy.
        for from in [
            Guess::PromptLookup,
            Guess::Draft(fixture(name).to_string_lossy().into_owned()),
        ] {
            let config = EngineConfig {
                speculation: Some(Speculation { from, tokens: 4 }),
                ..EngineConfig::default()
            };
            let model = model(name, backend, config);
            assert_alike(&one_by_one(&model, &all), &want);
            assert!(model.metrics().guessed_tokens > 0);
        }
    }
}

fn streams_end_and_leave_nothing(backend: BackendKind) {
    let model = model(MODELS[1], backend, EngineConfig::default());
    let mut running = Vec::new();
    for (i, request) in requests(24).into_iter().enumerate() {
        let mut events = model.submit(Request {
            max_tokens: None,
            ..request
        });
        // Some leave at once, some after a few tokens.
        for _ in 0..i % 4 {
            if let Ok(events) = &mut events {
                assert!(matches!(events.blocking_recv(), Some(Event::Token { .. })));
            }
        }
        running.push(events.unwrap());
        if i % 3 > 0 {
            running.remove(0);
        }
    }
    drop(running);
    let start = std::time::Instant::now();
    loop {
        let m = model.metrics();
        if m.finished == 24 {
            assert_eq!((m.queued, m.failed), (0, 0));
            break;
        }
        assert!(start.elapsed().as_secs() < 60, "{m:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Another is served as ever.
    let all = requests(1);
    assert_alike(&together(&model, &all), &alone(MODELS[1], backend, &all));
    let m = model.metrics();
    assert_eq!((m.running, m.running_bytes), (0, 0));
}

fn texts_become_vectors(backend: BackendKind) {
    let model = model(MODELS[0], backend, EngineConfig::default());
    let texts = [
        "a cat sat",
        "a cat sat",
        "entirely other words about the sea",
    ];
    for pooling in [Pooling::Mean, Pooling::Last] {
        let vectors = runtime().block_on(model.embed(&texts, pooling)).unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(vectors[0].len(), model.info().hidden_size);
        assert!((dot(&vectors[0], &vectors[1]) - 1.0).abs() < 1e-4);
        assert!(dot(&vectors[0], &vectors[2]) < 0.9999);
    }
}

fn recorded_is_replayed(backend: BackendKind) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.jsonl");
    let config = EngineConfig {
        record: Some(file.clone()),
        ..EngineConfig::default()
    };
    let mut all = requests(6);
    // Without a seed of its own a request gets one, which is recorded.
    all[0].sampling.seed = None;
    let model_of = |config| model(MODELS[0], backend, config);
    together(&model_of(config), &all);
    let recorded = biplane::Recorded::read(&file).unwrap();
    assert_eq!(recorded.len(), 6);
    let model = model_of(EngineConfig::default());
    for r in &recorded {
        let replayed = runtime().block_on(biplane::replay(&model, r)).unwrap();
        assert!(replayed.same, "parts at {:?}", replayed.parts_at);
    }
    let mut other = recorded[0].clone();
    other.tokens[3] ^= 1;
    let replayed = runtime().block_on(biplane::replay(&model, &other)).unwrap();
    assert_eq!((replayed.same, replayed.parts_at), (false, Some(3)));
}

fn stored_prompts_serve_the_next_model(backend: BackendKind) {
    let dir = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        prompt_cache: Some(dir.path().to_owned()),
        ..EngineConfig::default()
    };
    for name in MODELS {
        let all = [Request {
            tokens: prompt(3, 150),
            ..requests(1).remove(0)
        }];
        let want = alone(name, backend, &all);
        let writes = model(name, backend, config.clone());
        let first = together(&writes, &all);
        runtime().block_on(writes.close());
        let again = together(&model(name, backend, config.clone()), &all);
        assert_alike(&first, &want);
        assert_alike(&again, &want);
        assert_eq!(again[0].timings.cached_tokens, 149, "{name}");
        assert_eq!(again[0].finish_reason, FinishReason::Length);
        // Another arithmetic gives other keys and values.
        let exact = ModelBuilder::new(fixture(name).to_string_lossy())
            .with_backend(backend)
            .with_device(Device::Cpu)
            .with_exact(true)
            .with_engine(config.clone())
            .build_blocking()
            .unwrap();
        assert_eq!(together(&exact, &all)[0].timings.cached_tokens, 0);
    }
}

/// Llama 2's kind of tokenizer drops a space at the beginning of a text, but not in the middle of one.
fn a_continuation_keeps_its_space(backend: BackendKind) {
    let hf = fixture("gemma3/hf");
    let dir = tempfile::tempdir().unwrap();
    let config = "tokenizer_config.json";
    std::fs::copy(hf.join(config), dir.path().join(config)).unwrap();
    let text = std::fs::read_to_string(hf.join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let steps = json["decoder"]["decoders"].as_array_mut().unwrap();
    steps.push(serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let file = dir.path().join("tokenizer.json");
    std::fs::write(&file, json.to_string()).unwrap();
    let model = ModelBuilder::new(hf.to_string_lossy())
        .with_backend(backend)
        .with_device(Device::Cpu)
        .with_tokenizer_json(file)
        .build_blocking()
        .unwrap();
    let the = model.tokenizer().id_of("▁the").unwrap();
    let text = |tokens: Vec<u32>, continues| {
        let request = Request {
            max_tokens: Some(1),
            continues,
            sampling: SamplingParams {
                logit_bias: vec![(the, 100.0)],
                ..SamplingParams::default()
            },
            ..Request::new(tokens)
        };
        together(&model, &[request]).remove(0).text
    };
    let prompt = model.prompt_tokens("This is").unwrap();
    assert_eq!(text(prompt.clone(), true), " the");
    assert_eq!(text(prompt.clone(), false), "the");
    // After a control token a text of its own begins.
    assert_eq!(text(prompt[..1].to_vec(), true), "the");
}

const LEAVES_ON: &str = "BIPLANE_TEST_LEAVES_ON";

/// Starts an answer and leaves without waiting for it; run as a process of its own.
#[test]
#[ignore = "the end of the process is what is tested"]
fn leaver() {
    let Ok(backend) = std::env::var(LEAVES_ON) else {
        return;
    };
    let model = model(MODELS[0], backend.parse().unwrap(), EngineConfig::default());
    let mut answer = model
        .submit(Request {
            max_tokens: Some(100),
            ignore_eos: true,
            ..Request::new(prompt(1, 20))
        })
        .unwrap();
    assert!(runtime().block_on(answer.recv()).is_some());
    std::mem::forget((model, answer));
}

fn a_process_may_end_in_mid_answer(backend: BackendKind) {
    for _ in 0..4 {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leaver", "--ignored", "--nocapture"])
            .env(LEAVES_ON, backend.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

on_each_backend! {
    batched => batched_is_solo;
    real => real_models_keep_conversations_apart;
    cached => a_hit_is_a_miss;
    guessed => guesses_change_nothing;
    continued => a_continuation_keeps_its_space;
    left => a_process_may_end_in_mid_answer;
    cancelled => streams_end_and_leave_nothing;
    embedded => texts_become_vectors;
    replayed => recorded_is_replayed;
    stored => stored_prompts_serve_the_next_model;
}
