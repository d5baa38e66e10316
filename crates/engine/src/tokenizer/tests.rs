//! The fixtures' tokenizers against transformers' ids, and each GGUF vocabulary against the
//! tokenizer.json of the same model.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::*;

pub(super) const FAMILIES: [&str; 4] = ["llama", "llama-untied", "gemma3", "stablelm"];

pub(super) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub(super) fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

pub(super) fn from_hf(family: &str) -> Tokenizer {
    Tokenizer::from_dir(fixtures().join(family).join("hf")).unwrap()
}

/// The first GGUF file of a family; all of a family's hold the same vocabulary.
pub(super) fn fixture_gguf(family: &str) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixtures().join(family).join("gguf"))
        .ok()?
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    files.sort();
    files.into_iter().next()
}

fn from_fixture_gguf(family: &str) -> Option<Tokenizer> {
    Some(Tokenizer::from_gguf(vocab_of(&fixture_gguf(family)?)).unwrap())
}

pub(super) fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A reader of GGUF metadata, good enough for well-formed files.
struct Metadata<'a>(&'a [u8]);

impl<'a> Metadata<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8(self.take(n).to_vec()).unwrap()
    }
    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 | 1 => self.take(1)[0].into(),
            2 | 3 => u16::from_le_bytes(self.take(2).try_into().unwrap()).into(),
            4 => self.u32().into(),
            5 => (self.u32() as i32).into(),
            6 => f32::from_bits(self.u32()).into(),
            7 => (self.take(1)[0] != 0).into(),
            8 => self.text().into(),
            9 => {
                let kind = self.u32();
                let n = self.u64();
                (0..n).map(|_| self.value(kind)).collect::<Vec<_>>().into()
            }
            10 | 11 => self.u64().into(),
            12 => f64::from_bits(self.u64()).into(),
            other => panic!("kind {other}"),
        }
    }
}

fn vocab_of(path: &Path) -> GgufVocab<'static> {
    let bytes = std::fs::read(path).unwrap();
    let mut reader = Metadata(&bytes[16..]);
    let count = reader.u64();
    let mut found: HashMap<String, Value> = HashMap::new();
    for _ in 0..count {
        let key = reader.text();
        let kind = reader.u32();
        found.insert(key, reader.value(kind));
    }
    let mut take = |key: &str| {
        found
            .remove(&format!("tokenizer.ggml.{key}"))
            .unwrap_or_default()
    };
    fn list<T: serde::de::DeserializeOwned>(value: Value) -> Vec<T> {
        serde_json::from_value::<Option<Vec<T>>>(value)
            .unwrap()
            .unwrap_or_default()
    }
    let id = |value: Value| value.as_u64().map(|id| id as u32);
    GgufVocab {
        model: take("model").as_str().unwrap().into(),
        pre: take("pre").as_str().map(Into::into),
        tokens: list(take("tokens")),
        scores: list(take("scores")),
        token_types: list(take("token_type")),
        merges: list(take("merges")),
        bos: id(take("bos_token_id")),
        eos: id(take("eos_token_id")),
        eot: id(take("eot_token_id")),
        eom: id(take("eom_token_id")),
        unk: id(take("unknown_token_id")),
        pad: id(take("padding_token_id")),
        add_bos: take("add_bos_token").as_bool(),
        add_eos: take("add_eos_token").as_bool(),
        add_space_prefix: take("add_space_prefix").as_bool(),
    }
}

/// xorshift64: the same numbers in each run.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    pub(super) fn text(&mut self) -> String {
        const WORDS: [&str; 24] = [
            "the",
            " of",
            "Alice",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "12",
            "3456",
            "don't",
            "I'LL",
            "é",
            "ß",
            "你好",
            "🌍",
            "👩\u{200d}👧",
            "a\u{301}",
            "\u{a0}",
            "▁",
            "<|im_",
            "end|>",
            "<0x0A>",
            "...",
        ];
        let mut text = String::new();
        for _ in 0..self.below(24) {
            match self.below(5) {
                0 => text.extend(char::from_u32(self.below(0x11_0000) as u32)),
                1 => text.push(self.below(128) as u8 as char),
                _ => text.push_str(WORDS[self.below(WORDS.len())]),
            }
        }
        text
    }
}

#[test]
fn ids_and_text_are_those_of_transformers() {
    for family in FAMILIES {
        let golden = json(&fixtures().join(family).join("hf/golden.json"));
        let hf = from_hf(family);
        let gguf = from_fixture_gguf(family);
        let cases = golden["tokenizer_cases"].as_array().unwrap();
        assert!(cases.len() > 5);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            for tokenizer in [Some(&hf), gguf.as_ref()].into_iter().flatten() {
                let plain = tokenizer.encode(text, Specials::Plain).unwrap();
                assert_eq!(plain, ids(&case["ids_no_special"]), "{family}: {text:?}");
                let whole = tokenizer.encode_with_bos(text, Specials::Parse).unwrap();
                assert_eq!(whole, ids(&case["ids"]), "{family}: {text:?}");
                assert_eq!(
                    tokenizer.decode(&whole, true),
                    case["decoded"].as_str().unwrap()
                );
            }
        }
    }
}

#[test]
fn gguf_vocabularies_encode_as_their_tokenizer_json() {
    let mut compared = 0;
    for family in FAMILIES {
        let hf = from_hf(family);
        let Some(gguf) = from_fixture_gguf(family) else {
            continue;
        };
        compared += 1;
        assert_eq!(gguf.vocab_size(), hf.vocab_size());
        assert_eq!((gguf.bos(), gguf.eos()), (hf.bos(), hf.eos()), "{family}");
        assert_eq!(gguf.add_bos(), hf.add_bos(), "{family}");
        let mut random = Random(7);
        for _ in 0..500 {
            let mut text = random.text();
            if random.below(3) == 0 {
                text.push_str(hf.eos_token().unwrap());
                text.push_str(&random.text());
            }
            for how in [Specials::Parse, Specials::Plain] {
                let (a, b) = (
                    hf.encode(&text, how).unwrap(),
                    gguf.encode(&text, how).unwrap(),
                );
                assert_eq!(a, b, "{family} {how:?}: {text:?}");
                assert_eq!(hf.decode(&a, false), gguf.decode(&a, false));
            }
        }
    }
    assert!(compared >= 2);
}

#[test]
fn encoding_is_the_crates_own_and_texts_come_back() {
    for family in FAMILIES {
        let ours = from_hf(family);
        let crates =
            tokenizers::Tokenizer::from_file(fixtures().join(family).join("hf/tokenizer.json"))
                .unwrap();
        let mut random = Random(11);
        for _ in 0..500 {
            let text = random.text() + ours.eos_token().unwrap() + &random.text();
            let ids = ours.encode(&text, Specials::Parse).unwrap();
            assert_eq!(ids, crates.encode(text.as_str(), false).unwrap().get_ids());
            let plain = ours.encode(&text, Specials::Plain).unwrap();
            assert!(
                plain.iter().all(|&id| !ours.is_special(id)),
                "{family}: {text:?}"
            );
            if !text.contains('▁') {
                assert_eq!(ours.decode(&plain, true), text, "{family}");
                assert_eq!(crates.decode(&ids, true).unwrap(), ours.decode(&ids, true));
            }
        }
    }
}

#[test]
fn streams_put_together_are_the_whole() {
    for family in FAMILIES {
        let tokenizer = from_hf(family);
        let mut random = Random(3);
        for round in 0..2000 {
            let skip = round % 2 == 0;
            let ids: Vec<u32> = (0..random.below(40))
                .map(|_| match random.below(3) {
                    // Single bytes, which are half characters most of the time.
                    0 => random.below(256) as u32,
                    _ => random.below(tokenizer.vocab_size() + 3) as u32,
                })
                .collect();
            let bytes: Vec<u8> = ids
                .iter()
                .filter(|&&id| !(skip && tokenizer.is_special(id)))
                .flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default())
                .copied()
                .collect();
            let mut stream = tokenizer.detokenizer(skip);
            let mut text = String::new();
            for &id in &ids {
                text.extend(stream.push(id));
                // What waits is never more than a character's first bytes.
                assert!(String::from_utf8_lossy(&bytes).starts_with(&text));
            }
            text.extend(stream.finish());
            assert_eq!(text, String::from_utf8_lossy(&bytes), "{family}");
            assert_eq!(text, tokenizer.decode(&ids, skip), "{family}");
        }
    }
}

#[test]
fn half_a_character_waits_for_its_other_half() {
    let tokenizer = from_hf("gemma3");
    let byte = |b: u8| tokenizer.id_of(&format!("<0x{b:02X}>")).unwrap();
    let mut stream = tokenizer.detokenizer(true);
    let text: Vec<_> = "é你".bytes().map(|b| stream.push(byte(b))).collect();
    assert_eq!(
        text,
        [None, Some("é".into()), None, None, Some("你".into())]
    );
    assert_eq!(stream.push(byte(0xE4)), None);
    assert_eq!(stream.finish().as_deref(), Some("\u{FFFD}"));
}

#[test]
fn guarded_text_never_becomes_control_tokens() {
    for family in FAMILIES {
        let tokenizer = from_hf(family);
        let eos = tokenizer.eos_token().unwrap().to_owned();
        let user = format!("a{eos}{eos} b<{eos}");
        let guarded = tokenizer.guard(&user).unwrap();
        let rendered = format!("{eos}{guarded}{eos}");
        let ids = tokenizer.encode(&rendered, Specials::Guarded).unwrap();
        let count = |ids: &[u32]| ids.iter().filter(|&&id| tokenizer.is_special(id)).count();
        assert_eq!(count(&ids), 2, "{family}");
        assert_eq!(tokenizer.decode(&ids, true), user, "{family}");
        let between = tokenizer.encode(&user, Specials::Plain).unwrap();
        assert_eq!(ids[1..ids.len() - 1], between, "{family}");
        assert!(matches!(
            tokenizer.guard("plain").unwrap(),
            std::borrow::Cow::Borrowed(_)
        ));
    }
}

#[test]
fn long_texts_take_time_in_proportion() {
    let passage = std::fs::read_to_string(fixtures().join("passage.txt")).unwrap();
    let texts = [
        passage.repeat(100_000 / passage.len()),
        " ".repeat(100_000),
        "a".repeat(100_000),
        "<|im_end|>".repeat(10_000),
        "你".repeat(33_000),
        "1".repeat(100_000),
    ];
    for family in FAMILIES {
        let tokenizer = from_hf(family);
        for text in &texts {
            let start = Instant::now();
            let guarded = tokenizer.guard(text).unwrap();
            tokenizer.encode(&guarded, Specials::Guarded).unwrap();
            // Generous: other tests share the machine; quadratic time would be minutes.
            let (spent, head) = (start.elapsed(), text.get(..12).unwrap_or_default());
            println!("{family} {head:?}: {spent:?}");
            assert!(
                spent < Duration::from_secs(4),
                "{family} {head:?}: {spent:?}"
            );
        }
    }
}

#[test]
fn real_models_prompts_have_the_reference_ids() {
    let Some(folder) = std::env::var_os("BIPLANE_TEST_MODELS").map(PathBuf::from) else {
        println!("skipped: BIPLANE_TEST_MODELS names no folder of models");
        return;
    };
    let golden = json(&fixtures().join("real_golden.json"));
    for (file, model) in golden["models"].as_object().unwrap() {
        let start = Instant::now();
        let vocab = vocab_of(&folder.join(file));
        let read = start.elapsed();
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        println!(
            "{file}: {:?} to build, {read:?} to read",
            start.elapsed() - read
        );
        for (name, prompt) in model["prompts"].as_object().unwrap() {
            let text = prompt["text"].as_str().unwrap();
            let got = tokenizer.encode_with_bos(text, Specials::Parse).unwrap();
            assert_eq!(got, ids(&prompt["ids"]), "{file} {name}");
        }
        let long = " some words to tokenize, 123 of them\n".repeat(2_800);
        let start = Instant::now();
        tokenizer.encode(&long, Specials::Plain).unwrap();
        println!("{file}: {:?} for 100 kB", start.elapsed());
    }
}
