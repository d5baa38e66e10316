//! Keys and values in fewer bits: what they take, how little they change, and that no cache is taken
//! for one of another format. `runner.rs` holds them to the properties of every cache.

use biplane::{
    BackendKind, Device, EngineConfig, FinishReason, KvType, Model, ModelBuilder, ModelRunner,
    Request, Response, SamplingParams, Want,
};
use biplane_tests::{
    builder, fixture, last_logits, logits, max_difference, on_each_backend, real_model, step,
};

/// Heads of 32 elements; a window of 16 tokens in most layers.
const WINDOWED: &str = "gemma3/mlx-4bit";
const QUANTIZABLE: [&str; 2] = [WINDOWED, "stablelm-qkln/mlx-4bit"];
const KINDS: [KvType; 3] = KvType::ALL;

fn kept_as(name: &str, backend: BackendKind, kv_type: KvType) -> Box<dyn ModelRunner> {
    let built = builder(&fixture(name), backend)
        .with_kv_type(kv_type)
        .build_runner();
    built.unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 97 + seed * 31 + 5) % 500)
        .collect()
}

fn quantized_caches_are_smaller(backend: BackendKind) {
    let bytes = |kv_type| {
        let mut r = kept_as(WINDOWED, backend, kv_type);
        let slot = r.open().unwrap();
        step(&mut *r, slot, &prompt(1, 100), Want::Nothing);
        let exported = r.export(slot).unwrap().len();
        (
            r.bytes(slot, 0),
            r.bytes(slot, 500),
            r.info().kv_bytes(5000, 64),
            exported,
        )
    };
    let (auto, q8, q4) = (bytes(KvType::Auto), bytes(KvType::Q8), bytes(KvType::Q4));
    // 36 and 20 bytes for every 32 elements.
    assert_eq!(q8.0 * 20, q4.0 * 36);
    assert_eq!(q8.1 * 20, q4.1 * 36);
    assert_eq!(q8.2 * 20, q4.2 * 36);
    for (smaller, larger) in [(q4, q8), (q8, auto)] {
        assert!(smaller.0 < larger.0 && smaller.2 < larger.2 && smaller.3 < larger.3);
    }
}

fn quantized_caches_change_little(backend: BackendKind) {
    for name in QUANTIZABLE {
        let logits_of = |kv_type| {
            let built = builder(&fixture(name), backend)
                .with_exact(true)
                .with_kv_type(kv_type)
                .build_runner();
            let mut r = built.unwrap_or_else(|e| panic!("{name}: {e}"));
            last_logits(&mut *r, &prompt(2, 80))
        };
        let plain = logits_of(KvType::Auto);
        let spread = plain.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let off = |kv_type| max_difference(&logits_of(kv_type), &plain).0 / spread;
        let (q8, q4) = (off(KvType::Q8), off(KvType::Q4));
        println!("{name}: {q8} and {q4} of the largest logit");
        assert!(q8 > 0.0 && q8 < 0.02, "{name}: {q8}");
        assert!(q4 > q8 && q4 < 0.3, "{name}: {q4}");
    }
}

fn a_cache_of_another_format_is_refused(backend: BackendKind) {
    let name = WINDOWED;
    let mut runners = KINDS.map(|kind| kept_as(name, backend, kind));
    let exported = runners.each_mut().map(|r| {
        let slot = r.open().unwrap();
        step(&mut **r, slot, &prompt(1, 40), Want::Nothing);
        r.export(slot).unwrap()
    });
    for (i, r) in runners.iter_mut().enumerate() {
        for (j, bytes) in exported.iter().enumerate() {
            let imported = r.import(bytes, 40);
            if i == j {
                assert_eq!(r.len(imported.unwrap()), 40);
            } else {
                let error = imported.unwrap_err().to_string();
                assert!(error.contains("not kept as"), "{error}");
            }
        }
    }
}

fn heads_that_are_no_whole_groups_are_refused(backend: BackendKind) {
    let built = builder(&fixture("llama/mlx-4bit"), backend)
        .with_kv_type(KvType::Q8)
        .build_runner();
    let error = built.err().unwrap().to_string();
    assert!(
        error.contains("heads of 16 elements") && error.contains("--kv-type auto"),
        "{error}"
    );
}

/// Real heads, of 64 and 256 elements: chunked is whole and a copy is its original, bit for bit, and 8
/// bits choose the tokens that half precision chooses.
#[test]
fn real_models_on_candle() {
    if !BackendKind::Candle.is_compiled() {
        return;
    }
    for file in [
        "smollm2-135m-instruct-q4_1.gguf",
        "gemma-3-270m-q4_k_m.gguf",
    ] {
        let Some(path) = real_model(file) else {
            continue;
        };
        let ids = prompt(1, 150);
        let run = |kv_type| {
            let built = builder(&path, BackendKind::Candle).with_kv_type(kv_type);
            let mut r = built.build_runner().unwrap();
            let r = &mut *r;
            let whole = last_logits(r, &ids);
            let slot = r.open().unwrap();
            for part in ids[..149].chunks(40) {
                step(r, slot, part, Want::Nothing);
            }
            let fork = r.fork(slot, 149).unwrap();
            let bytes = r.export(slot).unwrap();
            let read = r.import(&bytes, 149).unwrap();
            for slot in [slot, fork, read] {
                let last = logits(step(r, slot, &ids[149..], Want::LastLogits));
                assert!(last == whole, "{file} {kv_type}");
            }
            whole
        };
        let [auto, q8, q4] = KINDS.map(run);
        let best = |l: &[f32]| (0..l.len()).max_by(|&a, &b| l[a].total_cmp(&l[b]));
        assert_eq!(best(&q8), best(&auto), "{file}");
        let (off8, off4) = (max_difference(&q8, &auto).0, max_difference(&q4, &auto).0);
        println!("{file}: {off8} and {off4}");
        assert!(off8 > 0.0 && off8 < off4, "{file}: {off8} and {off4}");
    }
}

/// Prompts of all lengths, some with a common beginning; greedy and seeded.
fn requests() -> Vec<Request> {
    let request = |i: u32| {
        let mut tokens = prompt(i, 3 + 17 * (i as usize % 5));
        if i % 2 == 1 {
            tokens.splice(0..0, prompt(99, 120));
        }
        Request {
            max_tokens: Some(12 + i as usize % 7),
            ignore_eos: true,
            sampling: SamplingParams {
                temperature: if i.is_multiple_of(3) { 0.8 } else { 0.0 },
                seed: Some(i.into()),
                ..SamplingParams::default()
            },
            ..Request::new(tokens)
        }
    };
    (0..8).map(request).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn together(model: &Model, requests: &[Request]) -> Vec<Response> {
    let submit = |r: &Request| model.submit(r.clone()).unwrap();
    let submitted: Vec<_> = requests.iter().map(submit).collect();
    let collect = |events| runtime().block_on(Response::collect(events)).unwrap();
    submitted.into_iter().map(collect).collect()
}

fn served(backend: BackendKind, kv_type: KvType, config: EngineConfig) -> Model {
    ModelBuilder::new(fixture(WINDOWED).to_string_lossy())
        .with_backend(backend)
        .with_device(Device::Cpu)
        .with_kv_type(kv_type)
        .with_engine(config)
        .build_blocking()
        .unwrap()
}

/// With quantized caches too company, kept prefixes and a lack of memory change no answer; on MLX, whose
/// sums depend on their shapes, a code may come out one step off, and another token with it.
fn quantized_caches_serve_alike(backend: BackendKind) {
    let all = requests();
    for kv_type in [KvType::Q8, KvType::Q4] {
        let without = EngineConfig {
            prefix_cache: false,
            ..EngineConfig::default()
        };
        let alone = served(backend, kv_type, without);
        let want: Vec<_> = all
            .iter()
            .map(|r| together(&alone, std::slice::from_ref(r)).remove(0))
            .collect();
        let plenty = served(backend, kv_type, EngineConfig::default());
        let one = plenty.info().kv_bytes(200, 512);
        let little = EngineConfig {
            kv_memory: Some(3 * one),
            ..EngineConfig::default()
        };
        let little = served(backend, kv_type, little);
        for model in [&plenty, &plenty, &little] {
            let got = together(model, &all);
            assert!(got.iter().all(|r| r.finish_reason == FinishReason::Length));
            if backend == BackendKind::Candle {
                let tokens =
                    |all: &[Response]| -> Vec<_> { all.iter().map(|r| r.tokens.clone()).collect() };
                assert_eq!(tokens(&got), tokens(&want), "{kv_type}");
            }
        }
        let again = together(&plenty, &all[1..2]);
        assert!(again[0].timings.cached_tokens > 0);
        assert!(little.metrics().cached_bytes + little.metrics().running_bytes <= 3 * one);
    }
}

fn stored_prompts_are_of_one_format(backend: BackendKind) {
    let dir = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        prompt_cache: Some(dir.path().to_owned()),
        ..EngineConfig::default()
    };
    let all = [Request {
        tokens: prompt(3, 150),
        ..requests().remove(0)
    }];
    let cached = |kv_type| {
        let model = served(backend, kv_type, config.clone());
        let response = together(&model, &all).remove(0);
        runtime().block_on(model.close());
        response.timings.cached_tokens
    };
    assert_eq!(KINDS.map(cached), [0; 3]);
    assert_eq!(KINDS.map(cached), [149; 3]);
}

on_each_backend! {
    smaller => quantized_caches_are_smaller;
    close => quantized_caches_change_little;
    foreign => a_cache_of_another_format_is_refused;
    odd => heads_that_are_no_whole_groups_are_refused;
    alike => quantized_caches_serve_alike;
    stored => stored_prompts_are_of_one_format;
}
