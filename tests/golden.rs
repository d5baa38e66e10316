//! Every fixture checkpoint on every backend gives the reference's logits, greedy tokens and
//! likelihoods. The references come from transformers 5.24 in f32; see the `versions` in each file.

use biplane::BackendKind;
use biplane_tests::{Tolerance, assert_golden, on_each_backend};

/// A Hugging Face or mlx-community directory.
fn directory(name: &str, backend: BackendKind) {
    assert_golden(
        name,
        &format!("{name}/golden.json"),
        backend,
        Tolerance::EXACT,
    );
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
    // MLX has no groups of 16: its Q6_K matrices are re-quantized to 8 bits, an eighth of their own
    // step. The bounds are those of llama.cpp's 8-bit activations on the same file.
    k_quants => |b| gguf_within("llama-k/gguf/llama-k-q4_k_mix", b, match b {
        BackendKind::Candle => Tolerance::EXACT,
        BackendKind::Mlx => Tolerance { logits: 0.5, nll: 0.05 },
    });
}

#[test]
fn transformers_5_writes_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let from = biplane_tests::fixture("llama/hf");
    for (name, to) in [
        ("config.v5.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
        ("golden.json", "golden.json"),
    ] {
        std::fs::copy(from.join(name), dir.path().join(to)).unwrap();
    }
    let backend = BackendKind::default_here().unwrap();
    let old = biplane_tests::last_logits(&mut *biplane_tests::runner(&from, backend), &[1, 2, 3]);
    let new =
        biplane_tests::last_logits(&mut *biplane_tests::runner(dir.path(), backend), &[1, 2, 3]);
    assert_eq!(old, new);
}
