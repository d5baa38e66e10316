//! The fixtures' tokenizers from one format to the other, against transformers' ids.

use biplane_models::checkpoint::write::MetadataValue;
use std::{collections::HashMap, fs, path::Path};

use biplane_models::checkpoint::{self, GgufMetadata, Metadata};
use serde_json::{Value, json};

use super::*;
use crate::{
    template,
    tokenizer::{
        GgufVocab, Specials, Tokenizer,
        tests::{FAMILIES, Random, fixture_gguf, fixtures, from_hf, ids, json as read},
    },
};

fn metadata(path: &Path) -> GgufMetadata {
    match checkpoint::open(path).unwrap().metadata {
        Metadata::Gguf(metadata) => metadata,
        Metadata::HuggingFace { .. } => panic!("{} is no GGUF file", path.display()),
    }
}

/// As a reader of the written file would see it.
fn vocab_of(pairs: Vec<(String, MetadataValue)>) -> GgufVocab<'static> {
    let mut found: HashMap<String, MetadataValue> = pairs.into_iter().collect();
    let mut take = |key: &str| found.remove(&format!("tokenizer.ggml.{key}"));
    macro_rules! get {
        ($key:literal, $kind:ident) => {
            match take($key) {
                Some(MetadataValue::$kind(value)) => Some(value),
                None => None,
                other => panic!("{}: {other:?}", $key),
            }
        };
    }
    let texts = |texts: Option<Vec<String>>| {
        let texts = texts.unwrap_or_default().into_iter();
        texts.map(Into::into).collect()
    };
    GgufVocab {
        model: get!("model", String).unwrap(),
        pre: get!("pre", String),
        tokens: texts(get!("tokens", Strings)),
        scores: get!("scores", F32s).unwrap_or_default(),
        token_types: get!("token_type", I32s).unwrap(),
        merges: texts(get!("merges", Strings)),
        bos: get!("bos_token_id", U32),
        eos: get!("eos_token_id", U32),
        eot: get!("eot_token_id", U32),
        eom: get!("eom_token_id", U32),
        unk: get!("unknown_token_id", U32),
        pad: get!("padding_token_id", U32),
        add_bos: get!("add_bos_token", Bool),
        add_eos: get!("add_eos_token", Bool),
        add_space_prefix: get!("add_space_prefix", Bool),
    }
}

/// Golden ids, and the same ids as the original for random texts with control tokens in them.
fn assert_same(family: &str, converted: &Tokenizer) {
    let original = from_hf(family);
    let golden = read(&fixtures().join(family).join("hf/golden.json"));
    for case in golden["tokenizer_cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let plain = converted.encode(text, Specials::Plain).unwrap();
        assert_eq!(plain, ids(&case["ids_no_special"]), "{family}: {text:?}");
        let whole = converted.encode_with_bos(text, Specials::Parse).unwrap();
        assert_eq!(whole, ids(&case["ids"]), "{family}: {text:?}");
        let decoded = converted.decode(&whole, true);
        assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{family}");
    }
    let mut random = Random(5);
    for _ in 0..300 {
        let text = random.text() + original.eos_token().unwrap() + &random.text();
        for how in [Specials::Parse, Specials::Plain] {
            let expected = original.encode(&text, how).unwrap();
            assert_eq!(converted.encode(&text, how).unwrap(), expected, "{text:?}");
        }
    }
    assert_eq!(converted.bos(), original.bos());
    assert_eq!(converted.eos(), original.eos());
    assert_eq!(
        converted.stop_ids([]).unwrap(),
        original.stop_ids([]).unwrap()
    );
}

#[test]
fn gguf_becomes_a_directory_that_tokenizes_alike() {
    let mut converted = 0;
    for family in FAMILIES {
        let Some(file) = fixture_gguf(family) else {
            continue;
        };
        converted += 1;
        let dir = tempfile::tempdir().unwrap();
        write_hf_files(&metadata(&file), dir.path()).unwrap();
        assert_same(family, &Tokenizer::from_dir(dir.path()).unwrap());

        // What transformers does: its ids come from tokenizer.json alone.
        let crates = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        let golden = read(&fixtures().join(family).join("hf/golden.json"));
        for case in golden["tokenizer_cases"].as_array().unwrap() {
            let encoding = crates.encode(case["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(encoding.get_ids(), ids(&case["ids"]), "{family}");
        }

        let hf = fixtures().join(family).join("hf");
        let (ours, theirs) = (
            read(&dir.path().join("tokenizer_config.json")),
            read(&hf.join("tokenizer_config.json")),
        );
        for key in [
            "bos_token",
            "eos_token",
            "model_max_length",
            "chat_template",
        ] {
            assert_eq!(ours[key], theirs[key], "{family}: {key}");
        }
        assert_eq!(ours["tokenizer_class"], "PreTrainedTokenizerFast");
        let map = read(&dir.path().join("special_tokens_map.json"));
        assert_eq!(map["eos_token"], theirs["eos_token"]);
        assert_eq!(
            template::find(dir.path()).unwrap().default,
            template::find(&hf).unwrap().default
        );
        let generation = read(&dir.path().join("generation_config.json"));
        let original = from_hf(family);
        assert_eq!(
            generation["bos_token_id"].as_u64(),
            original.bos().map(u64::from)
        );
        let ends = &generation["eos_token_id"];
        let first = ends.get(0).unwrap_or(ends);
        assert_eq!(first.as_u64(), original.eos().map(u64::from), "{family}");
    }
    assert!(converted >= 3);
}

#[test]
fn a_directory_becomes_gguf_that_tokenizes_alike() {
    for family in FAMILIES {
        let dir = fixtures().join(family).join("hf");
        let size = from_hf(family).vocab_size();
        let pairs = gguf_tokenizer_pairs(&dir, size + 3).unwrap();
        let template = pairs
            .iter()
            .find(|(key, _)| key == "tokenizer.chat_template");
        let expected = template::find(&dir).unwrap().default;
        assert_eq!(template.unwrap().1, MetadataValue::String(expected));

        let mut vocab = vocab_of(pairs);
        let padding = [size, size + 1, size + 2].map(|id| format!("[PAD{id}]"));
        assert_eq!(vocab.tokens[size..], padding);
        assert_eq!(vocab.token_types[size..], [5, 5, 5]);
        let padded = Tokenizer::from_gguf(vocab.clone()).unwrap();
        assert_same(family, &padded);
        let plain = from_hf(family)
            .encode(&padding[0], Specials::Parse)
            .unwrap();
        assert_eq!(padded.encode(&padding[0], Specials::Parse).unwrap(), plain);

        to_hf::drop_padding(&mut vocab);
        assert_eq!(vocab.tokens.len(), size);
        let Some(file) = fixture_gguf(family) else {
            continue;
        };
        let metadata = metadata(&file);
        let written = crate::texts::gguf_vocab(&metadata).unwrap();
        assert_eq!(vocab.model, written.model);
        assert_eq!(vocab.tokens, written.tokens);
        assert_eq!(vocab.token_types, written.token_types);
        assert_eq!(vocab.merges, written.merges);
        assert_eq!((vocab.bos, vocab.eos), (written.bos, written.eos));
        assert_eq!((vocab.unk, vocab.pad), (written.unk, written.pad));
        assert_eq!(
            (vocab.add_bos, vocab.add_eos),
            (written.add_bos, written.add_eos)
        );
    }
}

/// A directory with a tokenizer.json of the fixture's family that `spoil` has changed.
fn changed(family: &str, spoil: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let from = fixtures().join(family).join("hf");
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = read(&from.join("tokenizer.json"));
    spoil(&mut tokenizer);
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = "tokenizer_config.json";
    fs::copy(from.join(config), dir.path().join(config)).unwrap();
    dir
}

#[test]
fn what_gguf_cannot_hold_is_an_error_that_names_it() {
    type Spoil = fn(&mut Value);
    let cases: [(&str, &str, Spoil); 10] = [
        ("llama", "WordLevel", |t| {
            t["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        }),
        ("llama", "Lowercase", |t| {
            t["normalizer"] = json!({"type": "Lowercase"})
        }),
        ("llama", "(?i:'z)", |t| {
            t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(?i:'z)");
        }),
        ("llama", "Whitespace", |t| {
            t["pre_tokenizer"]["pretokenizers"][0] = json!({"type": "Whitespace"});
        }),
        ("stablelm", "ignore_merges true", |t| {
            t["model"]["ignore_merges"] = json!(true)
        }),
        ("stablelm", "rstrip", |t| {
            t["added_tokens"][1]["rstrip"] = json!(true)
        }),
        ("llama", "post_processor", |t| {
            t["post_processor"]["single"]
                .as_array_mut()
                .unwrap()
                .push(json!({"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}));
        }),
        ("gemma3", "Lowercase", |t| {
            let replace = t["normalizer"].take();
            t["normalizer"] =
                json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, replace]});
        }),
        ("gemma3", "falls back", |t| {
            t["model"]["byte_fallback"] = json!(false)
        }),
        // Scores say nothing of the order in which one token's two halves were put together.
        ("gemma3", "how it tokenizes", |t| {
            t["model"]["merges"].as_array_mut().unwrap().reverse();
            t["model"]["merges"].as_array_mut().unwrap().truncate(100);
        }),
    ];
    for (family, named, spoil) in cases {
        let dir = changed(family, spoil);
        let error = gguf_tokenizer_pairs(dir.path(), 600).unwrap_err();
        assert!(
            matches!(error, Error::Inconvertible { .. }),
            "{named}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(named) && text.contains("original format"),
            "{named}: {text}"
        );
    }
    let dir = fixtures().join("llama/hf");
    assert!(
        gguf_tokenizer_pairs(&dir, 400)
            .unwrap_err()
            .to_string()
            .contains("400 rows")
    );
}

#[test]
fn rules_that_mean_the_same_have_the_same_name() {
    let pre = |dir: &tempfile::TempDir| {
        let vocab = vocab_of(gguf_tokenizer_pairs(dir.path(), 512).unwrap());
        (vocab.pre.unwrap(), vocab.add_space_prefix)
    };
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let cases = [
        ("gpt-2", bytes(true)),
        (
            "smollm",
            json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}),
        ),
    ];
    for (name, pre_tokenizer) in cases {
        let dir = changed("stablelm", |t| t["pre_tokenizer"] = pre_tokenizer);
        assert_eq!(pre(&dir).0, name);
    }
    let dir = changed("stablelm", |t| {
        t["normalizer"] = json!({"type": "NFC"});
        let split = &mut t["pre_tokenizer"]["pretokenizers"][0];
        split["behavior"] = json!("Removed");
        split["invert"] = json!(true);
    });
    assert_eq!(pre(&dir).0, "qwen2");
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let dir = changed("gemma3", |t| {
        let replace = t["normalizer"].take();
        t["normalizer"] = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        t["pre_tokenizer"] = Value::Null;
    });
    assert_eq!(pre(&dir), ("default".into(), Some(true)));
    let dir = changed("gemma3", |t| {
        t["normalizer"] = Value::Null;
        t["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    });
    assert_eq!(pre(&dir), ("default".into(), Some(true)));
}

#[test]
fn every_end_of_an_answer_is_kept() {
    // llama: 507 begin_of_text, 508 end_of_text, 511 eot_id; 0 is an ordinary token.
    let ends = |ids: Value| {
        let dir = changed("llama", |_| ());
        let config = json!({ "eos_token_id": ids }).to_string();
        fs::write(dir.path().join("generation_config.json"), config).unwrap();
        gguf_tokenizer_pairs(dir.path(), 512).map(|pairs| {
            let vocab = vocab_of(pairs);
            (vocab.eos, vocab.eot)
        })
    };
    assert_eq!(ends(Value::Null).unwrap(), (Some(511), None));
    assert_eq!(ends(json!([508, 511])).unwrap(), (Some(511), None));
    assert_eq!(ends(json!([508, 0, 511])).unwrap(), (Some(511), Some(0)));
    assert!(
        ends(json!([0, 1]))
            .unwrap_err()
            .to_string()
            .contains("[0, 1]")
    );
    assert!(ends(json!(["</s>"])).is_err());
}

#[test]
fn templates_keep_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    assert!(chat_template::from_dir(dir.path()).unwrap().is_empty());
    let listed = json!([{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]);
    write(
        "tokenizer_config.json",
        &json!({ "chat_template": listed }).to_string(),
    );
    let templates = chat_template::from_dir(dir.path()).unwrap();
    assert_eq!(chat_template::to_json(&templates), Some(listed));
    let text = |text: &str| MetadataValue::String(text.into());
    assert_eq!(
        chat_template::to_pairs(templates),
        [
            ("tokenizer.chat_template".into(), text("d")),
            ("tokenizer.chat_template.rag".into(), text("r")),
            (
                "tokenizer.chat_templates".into(),
                MetadataValue::Strings(vec!["rag".into()])
            ),
        ]
    );
    write("chat_template.jinja", "j");
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "t");
    let found = chat_template::from_dir(dir.path()).unwrap();
    let expected = [("default", "j"), ("tool_use", "t")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(found, expected);
    assert_eq!(
        chat_template::to_json(&found[..1].to_vec()),
        Some(json!("j"))
    );
}
