use std::{collections::BTreeSet, env};

use biplane_backend::{DType, GgmlKind};

use super::*;
use crate::checkpoint::{GgufMetadata, RawKind};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn error(path: &Path) -> String {
    open(path).unwrap_err().to_string()
}

fn gguf(opened: &Opened) -> &GgufMetadata {
    match &opened.metadata {
        Metadata::Gguf(metadata) => metadata,
        other => panic!("{other:?}"),
    }
}

/// Every tensor has the bytes that its shape and kind need.
fn check_sizes(opened: &Opened) {
    let mut total = 0;
    for name in opened.checkpoint.names() {
        let tensor = opened.checkpoint.tensor(name).unwrap().unwrap();
        let elements: usize = tensor.shape.iter().product();
        let bytes = match tensor.kind {
            RawKind::Dense(dtype) => elements * dtype.size(),
            RawKind::Ggml(kind) => elements / kind.block_len() * kind.block_bytes(),
        };
        assert_eq!(tensor.bytes.len(), bytes, "{name}");
        total += bytes;
        opened.checkpoint.release(name);
    }
    assert_eq!(opened.checkpoint.size_in_bytes(), total);
}

#[test]
fn hugging_face_fixtures_have_the_shapes_of_their_config() {
    for (name, tensors, dtype) in [
        ("llama/hf", None, DType::BF16),
        ("llama-untied/hf", None, DType::F16),
        ("llama/mlx-4bit", Some((4, 64)), DType::U32),
        ("llama/mlx-8bit", Some((8, 64)), DType::U32),
        ("llama/mlx-4bit-g32", Some((4, 32)), DType::U32),
        ("llama-untied/mlx-4bit", Some((4, 64)), DType::U32),
        ("llama-untied/mlx-8bit", Some((8, 64)), DType::U32),
    ] {
        let opened = open(&fixture(name)).unwrap();
        check_sizes(&opened);
        let Metadata::HuggingFace {
            config,
            generation_config,
            dir,
        } = &opened.metadata
        else {
            panic!("{name}");
        };
        assert_eq!(opened.checkpoint.path(), dir);
        assert!(generation_config.as_ref().unwrap().is_object());
        let size = |key: &str| config[key].as_u64().unwrap() as usize;
        let (hidden, inner) = (size("hidden_size"), size("intermediate_size"));
        for (matrix, rows, columns) in [
            ("model.embed_tokens", size("vocab_size"), hidden),
            ("model.layers.0.mlp.up_proj", inner, hidden),
            ("model.layers.1.mlp.down_proj", hidden, inner),
        ] {
            let shape = |part: &str| {
                let name = format!("{matrix}.{part}");
                opened
                    .checkpoint
                    .tensor(&name)
                    .unwrap()
                    .map(|t| (t.kind, t.shape))
            };
            let packed = tensors.map_or(columns, |(bits, _)| columns * bits / 32);
            let weight = (RawKind::Dense(dtype), vec![rows, packed]);
            assert_eq!(shape("weight"), Some(weight), "{name} {matrix}");
            let groups = tensors.map(|(_, group)| vec![rows, columns / group]);
            assert_eq!(
                shape("scales").map(|(_, shape)| shape),
                groups,
                "{name} {matrix}"
            );
        }
        assert_eq!(
            opened.checkpoint.names().contains(&"lm_head.weight"),
            config["tie_word_embeddings"] != true
        );
    }
    check_sizes(&open(&fixture("llama/mlx-mixed")).unwrap());
}

#[test]
fn gguf_fixtures_have_the_shapes_of_their_metadata() {
    for (name, kind) in [
        ("llama/gguf/llama-f16", RawKind::Dense(DType::F16)),
        ("llama/gguf/llama-bf16", RawKind::Dense(DType::BF16)),
        ("llama/gguf/llama-q4_0", RawKind::Ggml(GgmlKind::Q4_0)),
        ("llama/gguf/llama-q4_1", RawKind::Ggml(GgmlKind::Q4_1)),
        ("llama/gguf/llama-q5_0", RawKind::Ggml(GgmlKind::Q5_0)),
        ("llama/gguf/llama-q5_1", RawKind::Ggml(GgmlKind::Q5_1)),
        ("llama/gguf/llama-q8_0", RawKind::Ggml(GgmlKind::Q8_0)),
        ("gemma3/gguf/gemma3-q8_0", RawKind::Ggml(GgmlKind::Q8_0)),
        ("stablelm/gguf/stablelm-q8_0", RawKind::Ggml(GgmlKind::Q8_0)),
        (
            "llama-k/gguf/llama-k-q4_k_mix",
            RawKind::Ggml(GgmlKind::Q4K),
        ),
    ] {
        let path = fixture(&format!("{name}.gguf"));
        let opened = open(&path).unwrap();
        assert_eq!(opened.checkpoint.path(), path);
        check_sizes(&opened);
        check_llama(&opened, kind);
    }
}

/// Of the matrix that all mixes hold in the kind the file is named after.
fn check_llama(opened: &Opened, kind: RawKind) {
    let m = gguf(opened);
    let arch = m.architecture().unwrap();
    let size = |key: &str| m.usize(&format!("{arch}.{key}")).unwrap();
    let hidden = size("embedding_length");
    let up = opened
        .checkpoint
        .tensor("blk.0.ffn_up.weight")
        .unwrap()
        .unwrap();
    assert_eq!(up.shape, [size("feed_forward_length"), hidden]);
    assert_eq!(up.kind, kind);
    let vocabulary = m.array_len("tokenizer.ggml.tokens").unwrap();
    let embedding = opened
        .checkpoint
        .tensor("token_embd.weight")
        .unwrap()
        .unwrap();
    assert_eq!(embedding.shape, [vocabulary, hidden]);
    let norm = opened
        .checkpoint
        .tensor("output_norm.weight")
        .unwrap()
        .unwrap();
    assert_eq!(
        (norm.shape, norm.kind),
        (vec![hidden], RawKind::Dense(DType::F32))
    );
    let last = format!("blk.{}.attn_q.weight", size("block_count") - 1);
    assert!(m.has_tensor(&last));
    assert_eq!(
        m.array_i32("tokenizer.ggml.token_type").unwrap().len(),
        vocabulary
    );
    assert_eq!(
        m.array_bytes("tokenizer.ggml.tokens").unwrap().len(),
        vocabulary
    );
}

#[test]
fn real_models() {
    let Some(dir) = env::var_os("BIPLANE_TEST_MODELS") else {
        println!("skipped: BIPLANE_TEST_MODELS does not name a directory of models");
        return;
    };
    for (file, arch, vocabulary, kind) in [
        (
            "smollm2-135m-instruct-q4_1.gguf",
            "llama",
            49_152,
            GgmlKind::Q4_1,
        ),
        (
            "gemma-3-270m-q4_k_m.gguf",
            "gemma3",
            262_144,
            GgmlKind::Q5_0,
        ),
    ] {
        let path = Path::new(&dir).join(file);
        if !path.exists() {
            println!("skipped: no {}", path.display());
            continue;
        }
        let opened = open(&path).unwrap();
        check_sizes(&opened);
        check_llama(&opened, RawKind::Ggml(kind));
        let m = gguf(&opened);
        assert_eq!(m.architecture().unwrap(), arch);
        assert_eq!(
            m.array_str("tokenizer.ggml.tokens").unwrap().len(),
            vocabulary
        );
    }
}

/// A directory with the files of `from`.
fn copy(from: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files_in(&fixture(from)).unwrap() {
        fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn a_gguf_is_known_by_its_content_or_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(fixture("llama/gguf/llama-q4_0.gguf")).unwrap();
    let blob = dir.path().join("sha256-0123");
    fs::write(&blob, &bytes).unwrap();
    assert!(matches!(open(&blob).unwrap().metadata, Metadata::Gguf(_)));
    assert!(error(dir.path()).contains("a directory without weights"));
    let first = dir.path().join("one.GGUF");
    fs::write(&first, &bytes).unwrap();
    assert_eq!(open(dir.path()).unwrap().checkpoint.path(), first);
    fs::write(dir.path().join("two.gguf"), "").unwrap();
    let said = error(dir.path());
    assert!(
        said.contains("one must be named: one.GGUF, two.gguf"),
        "{said}"
    );
    // Named, it is judged by its content.
    assert!(error(&dir.path().join("two.gguf")).contains("cut short"));
}

#[test]
fn a_weights_file_stands_for_its_directory() {
    let shard = fixture("llama-untied/hf/model-00002-of-00003.safetensors");
    let names = |opened: &Opened| -> BTreeSet<String> {
        opened
            .checkpoint
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let whole = open(&fixture("llama-untied/hf")).unwrap();
    assert_eq!(names(&open(&shard).unwrap()), names(&whole));
    let dir = copy("llama/mlx-4bit");
    let other = dir.path().join("adapter.safetensors");
    fs::copy(dir.path().join(WEIGHTS), &other).unwrap();
    let said = error(&other);
    assert!(
        said.contains("adapter.safetensors") && said.contains("no part of"),
        "{said}"
    );
}

#[test]
fn directories_that_lack_something_say_what() {
    let dir = copy("llama-untied/hf");
    let shard = "model-00003-of-00003.safetensors";
    fs::remove_file(dir.path().join(shard)).unwrap();
    assert!(error(dir.path()).contains(shard));
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    let said = error(dir.path());
    assert!(
        said.contains("whose weights are model-00001-of-00003.safetensors"),
        "{said}"
    );
    assert!(said.contains(INDEX), "{said}");

    let dir = copy("llama/hf");
    for (content, part) in [("{", "EOF"), ("[]", "JSON object"), ("", "EOF")] {
        fs::write(dir.path().join(CONFIG), content).unwrap();
        let said = error(dir.path());
        assert!(
            said.contains("config.json: ") && said.contains(part),
            "{said}"
        );
    }
    fs::remove_file(dir.path().join(CONFIG)).unwrap();
    assert!(error(dir.path()).contains("weights without config.json"));

    let text = dir.path().join("notes.txt");
    fs::write(&text, "GGU").unwrap();
    let said = error(&text);
    assert!(
        said.contains("notes.txt: no model here: a file of another kind"),
        "{said}"
    );
    let said = error(&dir.path().join("nowhere"));
    assert!(said.contains("nowhere"), "{said}");
}
