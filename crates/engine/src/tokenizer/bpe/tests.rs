//! Against the tokenizers crate's own model.

use tokenizers::{Model as _, ModelWrapper};

use super::*;
use crate::tokenizer::tests::{FAMILIES, Random, fixtures, json as read};

fn ours(model: &str) -> Option<Bpe> {
    Bpe::from_json(serde_json::from_str(model).unwrap()).unwrap()
}

fn theirs(model: &str) -> ModelWrapper {
    serde_json::from_str(model).unwrap()
}

fn assert_same(model: &str, texts: impl IntoIterator<Item = String>) {
    let (ours, theirs) = (ours(model).unwrap(), theirs(model));
    for text in texts {
        let expected = theirs.tokenize(&text).unwrap();
        let expected: Vec<_> = expected
            .iter()
            .map(|token| (token.id, token.offsets.1 - token.offsets.0))
            .collect();
        assert_eq!(
            ours.encode(&text).unwrap(),
            expected,
            "{text:?} by {model:.200}"
        );
    }
}

#[test]
fn fixtures_vocabularies_encode_as_the_crates_model_does() {
    for family in FAMILIES {
        let json = read(&fixtures().join(family).join("hf/tokenizer.json"));
        let mut random = Random(11);
        let texts = (0..300).flat_map(|_| {
            let text = random.text();
            let letters = text.replace(' ', "\u{2581}");
            [text, letters]
        });
        assert_same(&json["model"].to_string(), texts);
    }
}

/// All texts of up to `n` of these letters.
fn all_texts(letters: &[&str], n: usize) -> Vec<String> {
    let mut texts = vec![String::new()];
    let mut last = texts.clone();
    for _ in 0..n {
        let longer = |text: &String| letters.iter().map(|l| text.clone() + l).collect::<Vec<_>>();
        last = last.iter().flat_map(longer).collect();
        texts.extend(last.iter().cloned());
    }
    texts
}

#[test]
fn small_vocabularies_encode_as_the_crates_model_does() {
    let vocab =
        r#"{"a":0,"b":1,"ab":2,"aa":3,"aab":4,"bb":5,"?":6,"abb":7,"é":8,"<0xC3>":9,"<0x9F>":10}"#;
    // Overlapping pairs, one listed twice, one that makes the same token as another.
    let merges =
        r#"[["a","a"],["a","b"],["b","b"],["a","ab"],["aa","b"],["a","a"],["a","bb"],["ab","b"]]"#;
    let as_words = r##"["#version: 0.2","b b","a b","ab b","a a"]"##;
    let rules = [
        r#""unk_token":null"#,
        r#""unk_token":"?","fuse_unk":true"#,
        r#""unk_token":"?","fuse_unk":false,"byte_fallback":true"#,
        r#""unk_token":"?","byte_fallback":true,"ignore_merges":true,"end_of_word_suffix":"""#,
    ];
    for merges in [merges, as_words, "[]"] {
        for rules in rules {
            let model = format!(r#"{{"type":"BPE",{rules},"vocab":{vocab},"merges":{merges}}}"#);
            assert_same(&model, all_texts(&["a", "b", "é", "ß", "x"], 6));
        }
    }
}

#[test]
fn what_is_written_is_read_again() {
    let model = r#"{"type":"BPE","unk_token":"c","fuse_unk":true,"byte_fallback":false,"ignore_merges":true,
        "vocab":{"b":1,"a":0,"ab":5,"c":4},"merges":[["a","b"]]}"#;
    let written = serde_json::to_string(&ours(model).unwrap()).unwrap();
    assert_eq!(
        written,
        serde_json::to_string(&theirs(model)).unwrap(),
        "as the crate writes it"
    );
    let read = ours(&written).unwrap();
    assert_eq!(
        read.tokens().collect::<Vec<_>>(),
        [(0, "a"), (1, "b"), (4, "c"), (5, "ab")]
    );
    assert_eq!(read.len(), 4);
    assert_eq!(
        (read.token(5), read.token(3), read.token(6)),
        (Some("ab"), None, None)
    );
}

#[test]
fn merges_by_score_are_every_split_in_the_order_of_scores() {
    let tokens = ["a", "b", "ab", "ba", "aba", "<s>", "ab"];
    let scores = [-1.0, -1.0, -3.0, -2.0, -4.0, f32::NAN, -0.5];
    let scores = scores.map(|score: f32| (!score.is_nan()).then_some(score));
    let bpe = Bpe::scored(tokens.into_iter(), scores.into_iter(), Rules::default()).unwrap();
    let expected = [("b", "a"), ("a", "b"), ("ab", "a"), ("a", "ba")];
    assert_eq!(bpe.merges(), expected);
    let list = expected.into_iter();
    let listed = Bpe::listed(tokens.into_iter().map(Some), list, Rules::default()).unwrap();
    for text in all_texts(&["a", "b"], 8) {
        assert_eq!(
            bpe.encode(&text).unwrap(),
            listed.encode(&text).unwrap(),
            "{text}"
        );
    }
}

#[test]
fn other_models_are_left_to_the_crate() {
    for model in [
        r#"{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}"#,
        r#"{"type":"BPE","dropout":0.1,"vocab":{"a":0},"merges":[]}"#,
        r#"{"type":"BPE","end_of_word_suffix":"</w>","vocab":{"a":0},"merges":[]}"#,
        r#"{"vocab":{"a":0},"merges":[]}"#,
    ] {
        assert!(ours(model).is_none(), "{model}");
        theirs(model);
    }
}

#[test]
fn contradictions_are_errors() {
    let vocabs = [
        (r#"{"a":0,"b":0}"#, "[]", "two tokens have id 0"),
        (r#"{"a":4294967295}"#, "[]", "far beyond"),
        (r#"{"a":0}"#, r#"["a"]"#, "not two tokens"),
        (r#"{"a":0}"#, r#"[["a"]]"#, "two tokens"),
        (r#"{"a":0}"#, r#"[["a","a"]]"#, "\"aa\" is no token"),
        (r#"{"a":-1}"#, "[]", "u32"),
    ];
    for (vocab, merges, says) in vocabs {
        let model = format!(r#"{{"type":"BPE","vocab":{vocab},"merges":{merges}}}"#);
        let error = Bpe::from_json(serde_json::from_str(&model).unwrap()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let lost = r#"{"type":"BPE","unk_token":"?","vocab":{"a":0},"merges":[]}"#;
    assert!(ours(lost).unwrap().encode("ab").unwrap_err().contains('?'));
}
