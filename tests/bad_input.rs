//! Broken checkpoints, given to the program as a user would: a clear error that names the file and
//! what is wrong, an exit code that is not 0, no panic, on every backend.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use biplane::BackendKind;
use biplane_tests::fixture;

/// Runs the program on `model`; gives what it said. It must fail, and not by a panic or a signal.
fn refused(model: &Path, backend: BackendKind) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_biplane"))
        .args(["run", "--raw", "-n", "1", "--backend", backend.name(), "-m"])
        .arg(model)
        .arg("Hello")
        .env_remove("BIPLANE_MODEL")
        .env("BIPLANE_DEVICE", "cpu")
        .timeout(std::time::Duration::from_secs(60))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(matches!(code, Some(1..=4)), "exit code {code:?}: {said}");
    assert!(
        said.starts_with("error: ") || said.contains("\nerror: "),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(output.stdout, b"");
    said
}

fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

/// A copy of a fixture directory, with one file changed.
fn changed(name: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join(file);
    fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
    dir
}

fn changed_config(change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    changed("llama/mlx-4bit", "config.json", |bytes| {
        let mut config = serde_json::from_slice(&bytes).unwrap();
        change(&mut config);
        serde_json::to_vec(&config).unwrap()
    })
}

fn first() -> BackendKind {
    BackendKind::default_here().unwrap()
}

#[test]
fn a_missing_file_is_named() {
    let said = refused(Path::new("/nowhere/model.gguf"), first());
    assert_says(&said, &["/nowhere/model.gguf"]);
}

#[test]
fn a_gguf_cut_short_anywhere_is_refused() {
    let whole = fs::read(fixture("llama/gguf/llama-q4_0.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    // In the magic, the counts, the metadata, the tensor list, and the data.
    for part in [
        2,
        12,
        20,
        200,
        5_000,
        20_000,
        whole.len() / 2,
        whole.len() - 1,
    ] {
        fs::write(&path, &whole[..part]).unwrap();
        for backend in BackendKind::compiled() {
            assert_says(&refused(&path, backend), &["cut.gguf"]);
        }
    }
}

#[test]
fn safetensors_cut_short_anywhere_are_refused() {
    let len = fs::metadata(fixture("llama/mlx-4bit/model.safetensors"))
        .unwrap()
        .len() as usize;
    for part in [0, 4, 8, 100, 4_000, len / 2, len - 1] {
        let dir = changed("llama/mlx-4bit", "model.safetensors", |b| {
            b[..part].to_vec()
        });
        assert_says(&refused(dir.path(), first()), &["model.safetensors"]);
    }
}

#[test]
fn a_shard_that_is_missing_or_cut_is_named() {
    let shard = "model-00002-of-00003.safetensors";
    let dir = changed("llama-untied/hf", shard, |b| b[..b.len() - 7].to_vec());
    assert_says(&refused(dir.path(), first()), &[shard]);
    fs::remove_file(dir.path().join(shard)).unwrap();
    assert_says(&refused(dir.path(), first()), &[shard]);
}

#[test]
fn another_architecture_lists_what_is_supported() {
    let dir = changed_config(|c| c["model_type"] = "mamba".into());
    assert_says(
        &refused(dir.path(), first()),
        &["mamba", "supported are", "llama"],
    );
}

#[test]
fn absurd_shapes_cost_no_memory() {
    for (key, value) in [
        ("hidden_size", 1u64 << 40),
        ("vocab_size", 1 << 62),
        ("num_hidden_layers", 1 << 23),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("intermediate_size", 1 << 20),
        ("head_dim", 7),
    ] {
        let dir = changed_config(|c| c[key] = value.into());
        let said = refused(dir.path(), first());
        assert!(said.len() < 600, "{said}");
    }
}

#[test]
fn config_that_contradicts_itself_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &[&str]); 6] = [
        (|c| c["quantization"]["bits"] = 7.into(), &["bits 7"]),
        (
            |c| c["quantization"]["bits"] = 8.into(),
            &["8 bits", "tensor"],
        ),
        (
            |c| c["quantization"]["mode"] = "mxfp4".into(),
            &["mxfp4", "affine"],
        ),
        (
            |c| drop(c.as_object_mut().unwrap().remove("hidden_size")),
            &["hidden_size"],
        ),
        (
            |c| c["rope_scaling"]["rope_type"] = "yarn".into(),
            &["yarn", "llama3"],
        ),
        (|c| c["hidden_act"] = "relu".into(), &["relu", "silu"]),
    ];
    for (change, words) in cases {
        let dir = changed_config(change);
        assert_says(&refused(dir.path(), first()), words);
    }
}

/// Rewrites the header of a safetensors file.
fn with_header(
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> tempfile::TempDir {
    changed("llama/hf", "model.safetensors", |bytes| {
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        change(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header);
        out.extend(&bytes[8 + n..]);
        out
    })
}

#[test]
fn a_missing_tensor_is_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let dir = with_header(|header| {
        let tensor = header.remove(name).unwrap();
        header.insert("model.layers.1.mlp.other.weight".into(), tensor);
    });
    assert_says(&refused(dir.path(), first()), &[name, "missing"]);
}

#[test]
fn a_tensor_nobody_knows_is_named() {
    let name = "model.layers.0.self_attn.sinks";
    let dir = with_header(|header| {
        let norm = header["model.norm.weight"].clone();
        header.insert(name.into(), norm);
    });
    let said = refused(dir.path(), first());
    // Two tensors over the same bytes may be refused by the format already.
    assert!(
        said.contains(name) || said.contains("model.safetensors"),
        "{said}"
    );
}

#[test]
fn a_wrong_element_type_is_named() {
    let name = "model.layers.0.self_attn.q_proj.weight";
    for backend in BackendKind::compiled() {
        let dir = with_header(|header| header[name]["dtype"] = "I16".into());
        assert_says(&refused(dir.path(), backend), &[name]);
    }
}

#[test]
fn a_wrong_shape_is_named() {
    let name = "model.layers.0.self_attn.q_proj.weight";
    let dir = with_header(|header| header[name]["shape"] = serde_json::json!([32, 128]));
    assert_says(
        &refused(dir.path(), first()),
        &[name, "[64, 64]", "[32, 128]"],
    );
}

#[test]
fn folders_that_are_no_checkpoint_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let said = refused(dir.path(), first());
    assert_says(&said, &["config.json"]);
    fs::write(dir.path().join("config.json"), "{").unwrap();
    assert_says(&refused(dir.path(), first()), &["config.json"]);
    let text: PathBuf = dir.path().join("notes.txt");
    fs::write(&text, "hello").unwrap();
    assert_says(&refused(&text, first()), &["notes.txt"]);
}

#[test]
fn a_broken_tokenizer_is_named() {
    for content in [
        "",
        "{}",
        "[1, 2",
        r#"{"version":"1.0","model":{"type":"BPE"}}"#,
    ] {
        let dir = changed("llama/mlx-4bit", "tokenizer.json", |_| content.into());
        assert_says(&refused(dir.path(), first()), &["tokenizer"]);
    }
    let dir = changed("llama/mlx-4bit", "tokenizer.json", |b| b);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert_says(&refused(dir.path(), first()), &["tokenizer.json"]);
}
