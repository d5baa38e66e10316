//! Written checkpoints hold the same model: golden values of what was converted, by our own readers.

use std::path::Path;

use biplane::{BackendKind, IsqOverride, IsqType, ModelBuilder, OutputFormat, convert};
use biplane_models::{ConvertRequest, Isq, checkpoint};
use serde_json::{Value, json};

use biplane_tests::{
    Tolerance, any_fixture, assert_golden_at, fixture, last_logits, max_difference,
    on_each_backend, runner,
};

/// Converts a fixture and holds the result to the source's own golden values.
fn keeps_values(name: &str, golden: &str, output: &str, format: OutputFormat) {
    let (Some(from), Some(golden)) = (any_fixture(name), any_fixture(golden)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join(output);
    let builder = ModelBuilder::new(from.to_string_lossy());
    convert(builder, &to, format, false).unwrap();
    let backend = BackendKind::default_here().unwrap();
    assert_golden_at(&to, &golden, backend, Tolerance::EXACT);
    // Nothing else is left beside it.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn directories_become_gguf() {
    for name in [
        "llama/hf",
        "llama-untied/hf",
        "stablelm/hf",
        "stablelm-qkln/hf",
    ] {
        keeps_values(
            name,
            &format!("{name}/golden.json"),
            "m.gguf",
            OutputFormat::Gguf,
        );
    }
}

#[test]
fn gguf_becomes_directories() {
    for name in [
        "llama/gguf/llama-f16",
        "llama/gguf/llama-q4_0",
        "llama/gguf/llama-q5_1",
        "llama/gguf/llama-q8_0",
        "gemma3/gguf/gemma3-q8_0",
        "stablelm/gguf/stablelm-q8_0",
        "stablelm-qkln/gguf/stablelm-qkln-f16",
    ] {
        let (file, golden) = (format!("{name}.gguf"), format!("{name}.golden.json"));
        keeps_values(&file, &golden, "m", OutputFormat::Mlx);
        keeps_values(&file, &golden, "copy.gguf", OutputFormat::Gguf);
    }
}

#[test]
fn directories_are_copied_exactly() {
    for name in ["llama/mlx-mixed", "gemma3/mlx-4bit", "llama-untied/hf"] {
        keeps_values(name, &format!("{name}/golden.json"), "m", OutputFormat::Mlx);
    }
}

#[test]
fn what_a_format_cannot_hold_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("m.gguf");
    // GGUF has no key for the scale of queries, which is not the head's size here.
    for (name, word) in [
        ("gemma3/hf", "query_pre_attn_scalar"),
        ("llama/mlx-8bit", "no type with its values"),
    ] {
        let builder = ModelBuilder::new(fixture(name).to_string_lossy());
        let error = convert(builder, &to, OutputFormat::Gguf, false).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let k = fixture("llama-k/gguf/llama-k-q4_k_mix.gguf");
    let k = || ModelBuilder::new(k.to_string_lossy());
    let error = convert(k(), &dir.path().join("m"), OutputFormat::Mlx, false).unwrap_err();
    assert!(error.to_string().contains("groups of 16"), "{error}");
    let error = convert(k().with_isq(IsqType::AFQ4), &to, OutputFormat::Gguf, false).unwrap_err();
    assert!(error.to_string().contains("GGUF has no AFQ"), "{error}");
    std::fs::write(&to, "mine").unwrap();
    assert!(convert(k(), &to, OutputFormat::Gguf, false).is_err());
    assert_eq!(std::fs::read(&to).unwrap(), b"mine");
}

/// A copy of a fixture without its tokenizer, its configuration changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let (from, dir) = (fixture(name), tempfile::tempdir().unwrap());
    let weights = "model.safetensors";
    std::fs::copy(from.join(weights), dir.path().join(weights)).unwrap();
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// The weights and the configuration as GGUF, without a tokenizer.
fn to_gguf(from: &Path, to: &Path) -> Result<(), biplane_models::Error> {
    let request = ConvertRequest {
        output: OutputFormat::Gguf,
        path: to,
        isq: Isq::default(),
        tokenizer: Vec::new(),
        progress: &|_| {},
    };
    biplane_models::convert(&checkpoint::open(from)?, &request).map(|_| ())
}

#[test]
fn relatives_of_llama_become_gguf() {
    let backend = BackendKind::default_here().unwrap();
    // Past the windows of those that have one.
    let ids: Vec<u32> = (0..41).map(|i| (i * 37 + 11) % 190 + 2).collect();
    let no_window = |c: &mut Value| {
        c["sliding_window"] = Value::Null;
        c["use_sliding_window"] = false.into();
    };
    for (name, dir) in [
        ("llama", changed("mistral", no_window)),
        ("qwen2", changed("qwen2", no_window)),
        ("qwen3", changed("qwen3", |_| {})),
        ("phi3", changed("phi3", |_| {})),
    ] {
        let to = dir.path().join("m.gguf");
        to_gguf(dir.path(), &to).unwrap();
        let mut written = runner(&to, backend);
        assert_eq!(written.info().architecture, name);
        let expected = last_logits(&mut *runner(dir.path(), backend), &ids);
        let (difference, _) = max_difference(&last_logits(&mut *written, &ids), &expected);
        assert!(difference < 1e-5, "{name}: off by {difference}");
    }
}

#[test]
fn what_gguf_has_no_key_for_is_an_error() {
    // The head's size is all that GGUF's readers know for the scale of queries.
    let gemma = |change: &dyn Fn(&mut Value)| {
        changed("gemma3/hf", |c| {
            c["query_pre_attn_scalar"] = c["head_dim"].clone();
            change(c);
        })
    };
    let of_layers = |base: f64| {
        json!({
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        })
    };
    let alternating = json!(["sliding_attention", "full_attention"].repeat(4));
    for (dir, word) in [
        (changed("mistral", |_| {}), "window"),
        (changed("qwen2", |_| {}), "window"),
        (gemma(&|c| c["layer_types"] = alternating.clone()), "slides"),
        (
            gemma(&|c| c["rope_parameters"] = of_layers(2e4)),
            "sliding layers",
        ),
    ] {
        let error = to_gguf(dir.path(), &dir.path().join("m.gguf")).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    for dir in [
        gemma(&|_| {}),
        gemma(&|c| c["rope_parameters"] = of_layers(1e4)),
    ] {
        to_gguf(dir.path(), &dir.path().join("m.gguf")).unwrap();
    }
}

/// Eight bits are near the dense model; each type gives the same on disk and in memory.
fn isq(backend: BackendKind) {
    let path = fixture("llama/hf");
    let ids: Vec<u32> = (3..40).collect();
    let dense = last_logits(&mut *runner(&path, backend), &ids);
    let builder = || {
        ModelBuilder::new(path.to_string_lossy())
            .with_backend(backend)
            .with_device(biplane::Device::Cpu)
            .with_exact(true)
    };
    let dir = tempfile::tempdir().unwrap();
    for isq in [IsqType::Q8_0, IsqType::AFQ8, IsqType::Q4_0, IsqType::AFQ4] {
        let mut quantized = builder().with_isq(isq).build_runner().unwrap();
        let logits = last_logits(&mut *quantized, &ids);
        let (difference, _) = max_difference(&logits, &dense);
        assert!(difference > 0.0, "{isq}");
        if isq.bits() == 8 {
            assert!(difference < 0.5, "{isq}: {difference}");
        }
        let (name, format) = match isq.ggml() {
            Some(_) => ("m.gguf", OutputFormat::Gguf),
            None => ("m", OutputFormat::Mlx),
        };
        let to = dir.path().join(format!("{isq}-{name}"));
        convert(builder().with_isq(isq), &to, format, false).unwrap();
        let written = last_logits(&mut *runner(&to, backend), &ids);
        let (difference, at) = max_difference(&written, &logits);
        assert!(
            difference < 1e-3,
            "{isq}: logit {at} is off by {difference}"
        );
    }
    let nothing: IsqOverride = "layer.0=Q8_0".parse().unwrap();
    let error = builder().with_isq_override(nothing).build_runner();
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("layer.0"), "{error}");
    let keep: IsqOverride = "*=none".parse().unwrap();
    let kept = builder().with_isq(IsqType::Q4K).with_isq_override(keep);
    assert_eq!(last_logits(&mut *kept.build_runner().unwrap(), &ids), dense);
}

on_each_backend! {
    quantized_in_place => isq;
}
