//! Finds out what kind of checkpoint lies at a path.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Metadata, Opened, gguf, safetensors};
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Opens the checkpoint at `path`, and checks and maps its files:
///
/// - a Hugging Face or mlx-community directory: `config.json` and `model.safetensors`, else the
///   shards that `model.safetensors.index.json` lists (`transformers` takes them in this order);
/// - a file of that directory's weights, which stands for the directory;
/// - a GGUF file, whatever its name, or a directory with no other weights than one `.gguf` file.
///
/// # Errors
/// [`Error::NoCheckpoint`] for anything else, [`Error::Io`], [`Error::Malformed`] for files that
/// are broken or cut short, [`Error::Unsupported`] for variants of GGUF, [`Error::TensorType`] for
/// GGUF tensors of a type that is not supported.
pub fn open(path: &Path) -> Result<Opened> {
    let kind = path.metadata().map_err(|e| io_error(path, e))?;
    if kind.is_dir() {
        return open_dir(path);
    }
    if !kind.is_file() {
        return Err(no_checkpoint(path, "neither a file nor a directory"));
    }
    if has_extension(path, "gguf") || starts_with(path, gguf::MAGIC)? {
        open_gguf(path)
    } else if has_extension(path, "safetensors") {
        open_dir_of(path)
    } else {
        Err(no_checkpoint(path, "a file of another kind"))
    }
}

fn open_gguf(path: &Path) -> Result<Opened> {
    let (checkpoint, metadata) = gguf::open(path)?;
    Ok(Opened {
        checkpoint: Box::new(checkpoint),
        metadata: Metadata::Gguf(metadata),
    })
}

fn open_dir(dir: &Path) -> Result<Opened> {
    if weights_in(dir).is_some() {
        return open_hugging_face(dir).map(|(opened, _)| opened);
    }
    let files = files_in(dir)?;
    let ggufs: Vec<&PathBuf> = files.iter().filter(|f| has_extension(f, "gguf")).collect();
    let names = |files: &[&PathBuf]| {
        let names: Vec<_> = files
            .iter()
            .filter_map(|f| f.file_name())
            .map(|name| name.to_string_lossy())
            .collect();
        names.join(", ")
    };
    match ggufs.as_slice() {
        [file] => return open_gguf(file),
        [] => {}
        several => {
            return Err(no_checkpoint(
                dir,
                format!(
                    "a directory with several GGUF files, of which one must be named: {}",
                    names(several)
                ),
            ));
        }
    }
    let others: Vec<&PathBuf> = files
        .iter()
        .filter(|f| {
            ["safetensors", "bin", "pth", "pt", "npz"]
                .iter()
                .any(|e| has_extension(f, e))
        })
        .collect();
    let found = if others.is_empty() {
        "a directory without weights".to_owned()
    } else {
        format!("a directory whose weights are {}", names(&others))
    };
    Err(no_checkpoint(dir, found))
}

/// The directory that a weights file belongs to.
fn open_dir_of(path: &Path) -> Result<Opened> {
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if weights_in(dir).is_some() {
        let (opened, files) = open_hugging_face(dir)?;
        // Another file must not be loaded in place of the one that was named.
        if files
            .iter()
            .any(|file| path.file_name() == Some(file.as_ref()))
        {
            return Ok(opened);
        }
    }
    Err(no_checkpoint(
        path,
        format!("a file that is no part of a {WEIGHTS} or {INDEX} beside it"),
    ))
}

/// The file that a directory's weights begin with.
fn weights_in(dir: &Path) -> Option<&'static str> {
    [WEIGHTS, INDEX].into_iter().find(|f| dir.join(f).exists())
}

/// Also gives the names of the weights' files.
fn open_hugging_face(dir: &Path) -> Result<(Opened, Vec<String>)> {
    if !dir.join(CONFIG).exists() {
        return Err(no_checkpoint(dir, format!("weights without {CONFIG}")));
    }
    let config = read_json(&dir.join(CONFIG))?;
    let generation = dir.join("generation_config.json");
    let generation_config = match generation.exists() {
        true => Some(read_json(&generation)?),
        false => None,
    };
    let checkpoint = match weights_in(dir) {
        Some(INDEX) => safetensors::open_index(dir, &dir.join(INDEX))?,
        _ => safetensors::open(dir, &[WEIGHTS.to_owned()])?,
    };
    let files = checkpoint.file_names();
    let opened = Opened {
        checkpoint: Box::new(checkpoint),
        metadata: Metadata::HuggingFace {
            config,
            generation_config,
            dir: dir.to_owned(),
        },
    };
    Ok((opened, files))
}

/// A JSON object.
fn read_json(path: &Path) -> Result<Value> {
    let malformed = |reason: String| Error::Malformed {
        path: path.to_owned(),
        reason,
    };
    let value: Value =
        serde_json::from_slice(&read(path)?).map_err(|e| malformed(e.to_string()))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(malformed("should be a JSON object".into()))
    }
}

/// A whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let kind = path.metadata().map_err(|e| io_error(path, e))?;
    // Opening a pipe would wait for a writer.
    if !kind.is_file() {
        return Err(Error::Malformed {
            path: path.to_owned(),
            reason: "is not a regular file".into(),
        });
    }
    fs::read(path).map_err(|e| io_error(path, e))
}

/// All files of a directory, by name.
fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| io_error(dir, e))? {
        let path = entry.map_err(|e| io_error(dir, e))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

fn starts_with(path: &Path, magic: &[u8]) -> Result<bool> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(magic.len() as u64).read_to_end(&mut head))
        .map_err(|e| io_error(path, e))?;
    Ok(head == magic)
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

fn no_checkpoint(path: &Path, found: impl Into<String>) -> Error {
    Error::NoCheckpoint {
        path: path.to_owned(),
        found: found.into(),
    }
}

#[cfg(test)]
mod tests;
