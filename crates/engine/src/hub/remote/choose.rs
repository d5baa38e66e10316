//! Which files of a repository are needed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    super::{Error, Result},
    spec::{Spec, is_hex},
};

/// A file of a repository or of a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// Bytes.
    pub size: u64,
    /// What the repository knows it by; `None` in a snapshot, or where the hub says nothing usable.
    pub hash: Option<Hash>,
}

/// What a file is known by. It names the file in the cache: only hexadecimal digits ever get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    /// Of a file in Git LFS: the sum of its bytes.
    Sha256(String),
    /// Of another: git's own.
    Git(String),
}

impl Hash {
    pub(super) fn sha256(text: &str) -> Option<Self> {
        (text.len() == 64 && is_hex(text)).then(|| Self::Sha256(text.to_owned()))
    }

    pub(super) fn git(text: &str) -> Option<Self> {
        // 64 digits in a repository of git's newer kind.
        (matches!(text.len(), 40 | 64) && is_hex(text)).then(|| Self::Git(text.to_owned()))
    }

    /// Its digits.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Sha256(text) | Self::Git(text) => text,
        }
    }
}

/// Files by path.
pub(super) type Files = BTreeMap<String, Listed>;

/// What to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Safetensors and what belongs to them.
    Directory {
        /// Small files.
        beside: Vec<String>,
        /// The weights, or their index.
        weights: &'static str,
    },
    /// One GGUF file.
    Gguf(String),
}

/// The index of weights in several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

const WEIGHTS: &str = "model.safetensors";
/// What kind of model it is.
pub(super) const CONFIG: &str = "config.json";
const BESIDE: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
const TEMPLATES: &str = "additional_chat_templates/";

/// The usual compromise between size and quality.
const USUAL_QUANT: &str = "Q4_K_M";

/// The files to load: safetensors, unless a quantization is named or there are GGUF files only.
///
/// # Errors
/// [`Error::Quant`] when no GGUF file or more than one fits, [`Error::Format`] when there is nothing
/// to load.
pub(super) fn choose(spec: &Spec<'_>, files: &Files) -> Result<Choice> {
    if spec.quant.is_none() && files.contains_key(CONFIG) {
        // The checkpoint reader prefers them in this order, too.
        let weights = [WEIGHTS, INDEX]
            .into_iter()
            .find(|f| files.contains_key(*f));
        if let Some(weights) = weights {
            let beside = BESIDE.into_iter().filter(|f| files.contains_key(*f));
            let templates = files
                .keys()
                .filter(|f| f.strip_prefix(TEMPLATES).is_some_and(is_jinja));
            let names = [CONFIG].into_iter().chain(beside);
            let names = names.chain(templates.map(String::as_str));
            return Ok(Choice::Directory {
                beside: names.map(str::to_owned).collect(),
                weights,
            });
        }
    }
    gguf(spec, files).map(Choice::Gguf)
}

fn is_jinja(name: &str) -> bool {
    name.ends_with(".jinja") && is_plain(name) && !name.contains('/')
}

/// A relative path that stays below its folder on every system.
fn is_plain(path: &str) -> bool {
    path.split('/')
        .all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn gguf(spec: &Spec<'_>, files: &Files) -> Result<String> {
    let models: Vec<&str> = files
        .keys()
        .map(String::as_str)
        .filter(|path| {
            let name = file_name(path).to_ascii_lowercase();
            // Projectors of images and importance matrices are no language models.
            is_plain(path)
                && name.ends_with(".gguf")
                && !name.contains("mmproj")
                && !name.contains("imatrix")
        })
        .collect();
    if models.is_empty() {
        return Err(Error::Format {
            id: spec.id.to_owned(),
            quant: spec.quant.map_or_else(String::new, |q| format!(" ({q})")),
        });
    }
    let quant = spec.quant.unwrap_or(USUAL_QUANT);
    let found = match (spec.quant, models.as_slice()) {
        (None, [only]) => vec![*only],
        _ => fitting(quant, &models),
    };
    let problem = match found.as_slice() {
        [only] if is_split(only) => format!("{only} is one of several parts of a model"),
        [only] => return Ok((*only).to_owned()),
        [] if spec.quant.is_none() => format!("several GGUF files, none of them {USUAL_QUANT}"),
        [] => format!("no GGUF file with {quant} in its name"),
        [first, ..] if is_split(first) => format!("the {quant} file is split into several"),
        many => format!("{} GGUF files with {quant} in their names", many.len()),
    };
    let labels: BTreeSet<&str> = models
        .iter()
        .filter(|path| !is_split(path))
        .map(|path| label(path))
        .collect();
    let choices: Vec<String> = labels
        .iter()
        .map(|quant| format!("{}:{quant}", spec.id))
        .collect();
    Err(Error::Quant {
        id: spec.id.to_owned(),
        problem,
        remedy: match choices.is_empty() {
            true => {
                "merge the parts with `llama-gguf-split --merge` and give the file's path".into()
            }
            false => format!("choose one of {}", choices.join(", ")),
        },
    })
}

/// Files with the quantization in their names: where several, those with exactly it.
fn fitting<'a>(quant: &str, models: &[&'a str]) -> Vec<&'a str> {
    let quant = quant.to_ascii_lowercase();
    let name = |path: &str| file_name(path).to_ascii_lowercase();
    let all: Vec<&str> = models
        .iter()
        .copied()
        .filter(|path| name(path).contains(&quant))
        .collect();
    if all.len() < 2 {
        return all;
    }
    // `F16` is in `BF16`, and `Q4_K` in `Q4_K_M`.
    let exact = |path: &&str| {
        let name = name(path);
        name.match_indices(&quant).any(|(at, text)| {
            let before = name.get(..at).and_then(|s| s.chars().next_back());
            let after = name.get(at + text.len()..).and_then(|s| s.chars().next());
            let edge = |c: Option<char>| c.is_none_or(|c| matches!(c, '-' | '.'));
            edge(before) && edge(after)
        })
    };
    let exactly: Vec<&str> = all.iter().copied().filter(exact).collect();
    if exactly.is_empty() { all } else { exactly }
}

/// `name-00001-of-00003.gguf`
pub(super) fn is_split(path: &str) -> bool {
    let stem = file_name(path)
        .rsplit_once('.')
        .map_or("", |(stem, _)| stem);
    let Some((rest, count)) = stem.rsplit_once("-of-") else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(count) && rest.rsplit_once('-').is_some_and(|(_, n)| digits(n))
}

/// The quantization in a file's name, by which it may be asked for.
pub(super) fn label(path: &str) -> &str {
    let name = file_name(path);
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.rsplit(['-', '.']).next().unwrap_or(stem)
}

/// The weight files that an index names.
///
/// # Errors
/// What is wrong with it.
pub(super) fn shards(index: &[u8]) -> std::result::Result<BTreeSet<String>, String> {
    let index: Value = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or("weight_map is not there")?;
    map.values()
        .map(|file| match file.as_str() {
            Some(file) if is_plain(file) && !file.contains('/') => Ok(file.to_owned()),
            _ => Err(format!("{file} is not a file's name")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(spec: &str, names: &[&str]) -> Result<Choice> {
        let listed = Listed {
            size: 1,
            hash: None,
        };
        let files = names.iter().map(|n| ((*n).to_owned(), listed.clone()));
        let files = files.collect();
        choose(&Spec::parse(spec).unwrap(), &files)
    }

    fn directory(names: &[&str], weights: &'static str) -> Choice {
        Choice::Directory {
            beside: names.iter().map(|n| (*n).to_owned()).collect(),
            weights,
        }
    }

    #[test]
    fn only_hashes_become_names() {
        let (long, short) = ("0a".repeat(32), "0a".repeat(20));
        assert_eq!(Hash::sha256(&long), Some(Hash::Sha256(long.clone())));
        assert_eq!(Hash::git(&short), Some(Hash::Git(short.clone())));
        assert_eq!(Hash::sha256(&short), None);
        for bad in [
            "",
            "../x",
            "/etc/passwd",
            &long.to_uppercase(),
            &"../".repeat(20),
        ] {
            assert_eq!(Hash::sha256(bad), None, "{bad}");
            assert_eq!(Hash::git(bad), None, "{bad}");
        }
    }

    #[test]
    fn safetensors_come_first() {
        let files = [
            "README.md",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/../x.jinja",
            "config.json",
            "model.gguf",
            "model.safetensors",
            "onnx/model.onnx",
            "tokenizer.json",
        ];
        let template = "additional_chat_templates/tool_use.jinja";
        let beside = ["config.json", "tokenizer.json", template];
        assert_eq!(pick("a/b", &files).unwrap(), directory(&beside, WEIGHTS));
        assert_eq!(
            pick("a/b:model", &files).unwrap(),
            Choice::Gguf("model.gguf".into())
        );
        let sharded = ["config.json", INDEX, "model-00001-of-00001.safetensors"];
        assert_eq!(
            pick("a/b", &sharded).unwrap(),
            directory(&["config.json"], INDEX)
        );
    }

    #[test]
    fn one_gguf_file_is_chosen_or_all_are_named() {
        let files = [
            "m-BF16.gguf",
            "m-F16.gguf",
            "m-Q4_K_M.gguf",
            "m-Q4_K_S.gguf",
            "mmproj-m-Q8_0.gguf",
            "sub/m-q8_0.gguf",
            "../m-Q2_K.gguf",
            "big/m-Q6_K-00001-of-00002.gguf",
            "big/m-Q6_K-00002-of-00002.gguf",
        ];
        let gguf = |spec| match pick(spec, &files) {
            Ok(Choice::Gguf(file)) => Ok(file),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(gguf("a/b").unwrap(), "m-Q4_K_M.gguf");
        assert_eq!(gguf("a/b:f16").unwrap(), "m-F16.gguf");
        assert_eq!(gguf("a/b:Q8_0").unwrap(), "sub/m-q8_0.gguf");
        let error = gguf("a/b:Q4_K").unwrap_err();
        assert!(error.contains("2 GGUF files"), "{error}");
        let error = gguf("a/b:Q2_K").unwrap_err();
        assert!(error.contains("a/b:BF16, a/b:F16, a/b:Q4_K_M"), "{error}");
        assert!(
            error.contains("a/b:q8_0") && !error.contains("mmproj"),
            "{error}"
        );
        assert!(gguf("a/b:Q6_K").unwrap_err().contains("split"));
        assert!(matches!(
            pick("a/b", &["x-Q8_0.gguf"]).unwrap(),
            Choice::Gguf(_)
        ));
        let several = pick("a/b", &["x-Q8_0.gguf", "x-Q2_K.gguf"]).unwrap_err();
        assert!(matches!(several, Error::Quant { .. }), "{several}");
    }

    #[test]
    fn nothing_to_load_is_an_error() {
        for files in [
            &["README.md", "pytorch_model.bin"][..],
            &["model.safetensors"],
        ] {
            let error = pick("a/b", files).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{error}");
        }
    }

    #[test]
    fn an_index_names_files_beside_it_only() {
        let index = br#"{"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-1.safetensors"}}"#;
        let names = shards(index).unwrap();
        assert!(names.iter().eq(["m-1.safetensors", "m-2.safetensors"]));
        for bad in [
            "{",
            "{}",
            r#"{"weight_map":{"a":"../m"}}"#,
            r#"{"weight_map":{"a":1}}"#,
        ] {
            assert!(shards(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
