//! Every fixture checkpoint on every backend gives the reference's logits, greedy tokens and
//! likelihoods. The references come from transformers 5.24 in f32; see the `versions` in each file.

use biplane::BackendKind;
use biplane_tests::{Tolerance, assert_golden, assert_golden_rounded, on_each_backend};

/// A Hugging Face or mlx-community directory.
fn directory(name: &str, backend: BackendKind) {
    assert_golden(
        name,
        &format!("{name}/golden.json"),
        backend,
        Tolerance::EXACT,
    );
}

fn variant(checkpoint: &str, golden: &str, backend: BackendKind) {
    assert_golden(checkpoint, golden, backend, Tolerance::EXACT);
}

fn nested(name: &str, backend: BackendKind) {
    let tolerance = Tolerance {
        logits: 5e-3,
        nll: 1e-4,
    };
    assert_golden(name, &format!("{name}/golden.json"), backend, tolerance);
}

fn gguf(name: &str, backend: BackendKind) {
    gguf_within(name, backend, Tolerance::EXACT);
}

fn gguf_within(name: &str, backend: BackendKind, tolerance: Tolerance) {
    assert_golden(
        &format!("{name}.gguf"),
        &format!("{name}.golden.json"),
        backend,
        tolerance,
    );
}

/// Every quantized form with activations rounded to 8 bits.
#[cfg(feature = "candle")]
#[test]
fn rounded_activations() {
    for name in [
        "llama/mlx-4bit",
        "llama/mlx-4bit-g32",
        "llama/mlx-8bit",
        "llama/mlx-mixed",
        "gemma3/mlx-4bit",
        "stablelm-qkln/mlx-4bit",
    ] {
        let golden = format!("{name}/golden.json");
        assert_golden_rounded(name, &golden, BackendKind::Candle, Tolerance::ROUNDED);
    }
    for name in [
        "llama/gguf/llama-q8_0",
        "llama/gguf/llama-q4_0",
        "llama/gguf/llama-q4_1",
        "llama/gguf/llama-q5_0",
        "llama/gguf/llama-q5_1",
        "gemma3/gguf/gemma3-q8_0",
        // Rows of 256 random values: the widest logits, and so the largest rounding.
        "llama-k/gguf/llama-k-q4_k_mix",
    ] {
        let (file, golden) = (format!("{name}.gguf"), format!("{name}.golden.json"));
        let tolerance = match name.contains("llama-k") {
            true => Tolerance {
                logits: 0.7,
                nll: 0.05,
            },
            false => Tolerance::ROUNDED,
        };
        assert_golden_rounded(&file, &golden, BackendKind::Candle, tolerance);
    }
}

on_each_backend! {
    llama_dense_bf16 => |b| directory("llama/hf", b);
    llama_mlx_4bit => |b| directory("llama/mlx-4bit", b);
    llama_mlx_4bit_group_32 => |b| directory("llama/mlx-4bit-g32", b);
    llama_mlx_8bit => |b| directory("llama/mlx-8bit", b);
    llama_mlx_mixed => |b| directory("llama/mlx-mixed", b);
    llama_gguf_f16 => |b| gguf("llama/gguf/llama-f16", b);
    llama_gguf_bf16 => |b| gguf("llama/gguf/llama-bf16", b);
    llama_gguf_q8_0 => |b| gguf("llama/gguf/llama-q8_0", b);
    llama_gguf_q4_0 => |b| gguf("llama/gguf/llama-q4_0", b);
    llama_gguf_q4_1 => |b| gguf("llama/gguf/llama-q4_1", b);
    llama_gguf_q5_0 => |b| gguf("llama/gguf/llama-q5_0", b);
    llama_gguf_q5_1 => |b| gguf("llama/gguf/llama-q5_1", b);
    untied_f16_in_shards => |b| directory("llama-untied/hf", b);
    untied_mlx_4bit => |b| directory("llama-untied/mlx-4bit", b);
    untied_mlx_8bit => |b| directory("llama-untied/mlx-8bit", b);
    untied_gguf_f16 => |b| gguf("llama-untied/gguf/llama-untied-f16", b);
    gemma3_dense_bf16 => |b| directory("gemma3/hf", b);
    gemma3_mlx_4bit => |b| directory("gemma3/mlx-4bit", b);
    gemma3_mlx_8bit => |b| directory("gemma3/mlx-8bit", b);
    gemma3_gguf_f16 => |b| gguf("gemma3/gguf/gemma3-f16", b);
    gemma3_gguf_q8_0 => |b| gguf("gemma3/gguf/gemma3-q8_0", b);
    // Multimodal layout: `text_config`, names inside `language_model.`, defaults left out. The
    // reference itself is sure to 1.5e-3 there: it rounds the embedding's scale.
    gemma3_nested_dense => |b| nested("gemma3-nested/hf", b);
    gemma3_nested_mlx_4bit => |b| nested("gemma3-nested/mlx-4bit", b);
    stablelm_dense_f32 => |b| directory("stablelm/hf", b);
    stablelm_mlx_4bit => |b| directory("stablelm/mlx-4bit", b);
    stablelm_mlx_8bit => |b| directory("stablelm/mlx-8bit", b);
    stablelm_gguf_f16 => |b| gguf("stablelm/gguf/stablelm-f16", b);
    stablelm_gguf_q8_0 => |b| gguf("stablelm/gguf/stablelm-q8_0", b);
    // StableLM 2 12B's kind: norms of heads, attention and feed-forward part side by side.
    stablelm_parallel_dense => |b| directory("stablelm-qkln/hf", b);
    stablelm_parallel_mlx_4bit => |b| directory("stablelm-qkln/mlx-4bit", b);
    stablelm_parallel_mlx_8bit => |b| directory("stablelm-qkln/mlx-8bit", b);
    stablelm_parallel_gguf_f16 => |b| gguf("stablelm-qkln/gguf/stablelm-qkln-f16", b);
    // Llama's variants, made by scripts/fixtures/make_variants.py; the weights are the same in both
    // formats.
    mistral => |b| directory("mistral", b);
    qwen2 => |b| directory("qwen2", b);
    qwen3 => |b| directory("qwen3", b);
    qwen3_gguf => |b| variant("qwen3/qwen3-f16.gguf", "qwen3/golden.json", b);
    phi3 => |b| directory("phi3", b);
    phi3_gguf => |b| variant("phi3/phi3-f16.gguf", "phi3/golden.json", b);
    // MLX has no groups of 16: its Q6_K matrices are re-quantized to 8 bits, an eighth of their own
    // step. The bounds are those of llama.cpp's 8-bit activations on the same file.
    k_quants => |b| gguf_within("llama-k/gguf/llama-k-q4_k_mix", b, match b {
        BackendKind::Candle => Tolerance::EXACT,
        BackendKind::Mlx => Tolerance { logits: 0.5, nll: 0.05 },
    });
}

/// The same model with its config as transformers 5 writes it.
fn transformers_5_writes_the_same_model(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let from = biplane_tests::fixture(name);
    for (name, to) in [
        ("config.v5.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
    ] {
        std::fs::copy(from.join(name), dir.path().join(to)).unwrap();
    }
    let backend = BackendKind::default_here().unwrap();
    let ids: Vec<u32> = (1..40).collect();
    let logits =
        |path| biplane_tests::last_logits(&mut *biplane_tests::runner(path, backend), &ids);
    assert_eq!(logits(&from), logits(dir.path()));
}

#[test]
fn transformers_5_writes_the_same_llama() {
    transformers_5_writes_the_same_model("llama/hf");
}

#[test]
fn transformers_5_writes_the_same_gemma() {
    transformers_5_writes_the_same_model("gemma3/hf");
}

/// The first StableLM checkpoints, stable-code's MLX one among them, have other names for some keys.
#[test]
fn early_stablelm_is_the_same_model() {
    let Some(from) = biplane_tests::any_fixture("stablelm/mlx-4bit") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let weights = "model.safetensors";
    std::fs::copy(from.join(weights), dir.path().join(weights)).unwrap();
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let config = config
        .replace("layer_norm_eps", "norm_eps")
        .replace("partial_rotary_factor", "rope_pct")
        .replace(r#""stablelm""#, r#""stablelm_epoch""#)
        .replacen('{', r#"{"rotary_scaling_factor": 1.0,"#, 1);
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for backend in BackendKind::compiled() {
        let ids: Vec<u32> = (1..40).collect();
        let logits =
            |path| biplane_tests::last_logits(&mut *biplane_tests::runner(path, backend), &ids);
        assert_eq!(logits(&from), logits(dir.path()), "{backend}");
    }
}
