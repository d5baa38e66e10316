//! Which models a server has, and what they are called.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::serve::name_of;

/// How deep a folder of models is looked through.
const DEPTH: usize = 4;
/// Most models of a folder.
const MOST: usize = 1000;

/// A model by the name that clients call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    /// A path or an id of the hub; none is the starter model.
    pub model: Option<String>,
    /// Whether it was found in a folder.
    pub found: bool,
}

/// What is to become of a folder without models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Empty {
    /// It is a mistake at the start,
    Refused,
    /// and may be so for a while later.
    Allowed,
}

/// The models of a command line: those that are named, then those of the folders.
pub fn sources(
    models: &[String],
    folders: &[PathBuf],
    only_name: Option<&str>,
    empty: Empty,
) -> anyhow::Result<Vec<Source>> {
    let mut all: Vec<Source> = models.iter().map(|model| named(model)).collect();
    if models.is_empty() && folders.is_empty() {
        all.push(Source {
            name: name_of(None),
            model: None,
            found: false,
        });
    }
    if let Some(name) = only_name {
        match &mut all[..] {
            [one] if folders.is_empty() => name.clone_into(&mut one.name),
            _ => bail!(
                "--model-name {name} is for one model; with several write -m NAME=MODEL for each"
            ),
        }
    }
    for folder in folders {
        let found = of_folder(folder)?;
        if found.is_empty() && empty == Empty::Refused {
            bail!(
                "--models-dir {}: there is no GGUF file, and no directory with a config.json",
                folder.display()
            );
        }
        // What is named and lies there too has the name that it was given.
        let here = |source: &Source| {
            let path = source.model.as_deref().map(Path::new);
            path.and_then(|path| path.canonicalize().ok())
        };
        let given: Vec<_> = all.iter().filter_map(here).collect();
        let new = |source: &Source| here(source).is_none_or(|path| !given.contains(&path));
        all.extend(found.into_iter().filter(new));
    }
    let mut seen: BTreeMap<&str, &Source> = BTreeMap::new();
    for source in &all {
        if let Some(other) = seen.insert(&source.name, source) {
            bail!(
                "two models are called {:?}: {} and {}; name one of them, as -m NAME={}",
                source.name,
                place(other),
                place(source),
                place(source),
            );
        }
    }
    Ok(all)
}

fn place(source: &Source) -> &str {
    source.model.as_deref().unwrap_or("the starter model")
}

/// `NAME=MODEL`, or a model that has a name of its own.
fn named(model: &str) -> Source {
    let given = model.split_once('=').filter(|(name, source)| {
        // A path may have the sign, too.
        let is_name = !name.is_empty() && !name.starts_with(['.', '/', '~']);
        is_name && !source.is_empty() && !Path::new(model).exists()
    });
    match given {
        Some((name, source)) => Source {
            name: name.to_owned(),
            model: Some(source.to_owned()),
            found: false,
        },
        None => Source {
            name: name_of(Some(model)),
            model: Some(model.to_owned()),
            found: false,
        },
    }
}

/// GGUF files and model directories below a folder, in the order of their names. Several of one name
/// are called by their place in the folder.
fn of_folder(folder: &Path) -> anyhow::Result<Vec<Source>> {
    let at = || format!("--models-dir {}", folder.display());
    let mut paths = Vec::new();
    collect(folder, 0, &mut paths).with_context(at)?;
    if paths.len() > MOST {
        bail!(
            "{}: {} models, at most {MOST} are served; name a folder below it",
            at(),
            paths.len()
        );
    }
    paths.sort();
    let short = |path: &PathBuf| {
        let name = match is_gguf(path) {
            true => path.file_stem(),
            false => path.file_name(),
        };
        name.unwrap_or_default().to_string_lossy().into_owned()
    };
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for path in &paths {
        *count.entry(short(path)).or_default() += 1;
    }
    let source = |path: &PathBuf| {
        let name = short(path);
        let own = match count.get(&name) {
            Some(1) => name,
            _ => {
                let place = path.strip_prefix(folder).unwrap_or(path);
                place.to_string_lossy().replace('\\', "/")
            }
        };
        Source {
            name: own,
            model: Some(path.to_string_lossy().into_owned()),
            found: true,
        }
    };
    Ok(paths.iter().map(source).collect())
}

fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e == "gguf")
}

fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden {
            continue;
        }
        if is_gguf(&path) || path.join("config.json").is_file() {
            paths.push(path);
        } else if depth < DEPTH && path.is_dir() {
            // What cannot be read below is not there for us.
            let _ = collect(&path, depth + 1, paths);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[Source]) -> Vec<&str> {
        all.iter().map(|source| source.name.as_str()).collect()
    }

    #[test]
    fn models_have_their_own_names_or_given_ones() {
        let all = ["small=org/name:Q4_K_M", "org/other", "./a=b.gguf"].map(String::from);
        let all = sources(&all, &[], None, Empty::Refused).unwrap();
        assert_eq!(names(&all), ["small", "org/other", "./a=b.gguf"]);
        assert_eq!(all[0].model.as_deref(), Some("org/name:Q4_K_M"));
        let one = sources(&["org/name".into()], &[], Some("mine"), Empty::Refused).unwrap();
        assert_eq!(names(&one), ["mine"]);
        let starter = sources(&[], &[], None, Empty::Refused).unwrap();
        assert_eq!(names(&starter), ["SmolLM2-135M-Instruct"]);
        let same = ["a=x.gguf", "a=y.gguf"].map(String::from);
        let error = sources(&same, &[], None, Empty::Refused)
            .unwrap_err()
            .to_string();
        assert!(error.contains("x.gguf and y.gguf"), "{error}");
        let two = ["a=x.gguf", "b=y.gguf"].map(String::from);
        let error = sources(&two, &[], Some("c"), Empty::Refused)
            .unwrap_err()
            .to_string();
        assert!(error.contains("-m NAME=MODEL"), "{error}");
    }

    #[test]
    fn folders_are_looked_through() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for place in ["one", "org/two", ".hidden", "org/empty", "q4", "q8"] {
            fs::create_dir_all(at(place)).unwrap();
        }
        for file in [
            "one/config.json",
            "org/two/config.json",
            ".hidden/config.json",
            "three.gguf",
            "q4/model.gguf",
            "q8/model.gguf",
            "notes.txt",
            // Part of a model, not one of its own.
            "one/inner.gguf",
        ] {
            fs::write(at(file), "").unwrap();
        }
        let folders = [folder.path().to_owned()];
        let all = sources(&[], &folders, None, Empty::Refused).unwrap();
        let found = ["one", "two", "q4/model.gguf", "q8/model.gguf", "three"];
        assert_eq!(names(&all), found);
        let given = format!("mine={}", at("three.gguf").display());
        let all = sources(&[given], &folders, None, Empty::Refused).unwrap();
        assert_eq!(
            names(&all),
            ["mine", "one", "two", "q4/model.gguf", "q8/model.gguf"]
        );
        let empty = [at("org/empty")];
        let error = sources(&[], &empty, None, Empty::Refused)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--models-dir"), "{error}");
        let later = sources(&[], &empty, None, Empty::Allowed).unwrap();
        assert_eq!(later, []);
        assert!(sources(&[], &[at("not-there")], None, Empty::Refused).is_err());
    }
}
