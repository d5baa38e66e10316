//! Writing a model in another format, or quantized.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use biplane_models::{
    ConvertRequest, Converted, OutputFormat,
    checkpoint::{Metadata, Opened},
};

use crate::{
    Error, ModelBuilder, Progress, Result,
    tokenizer::convert::{gguf_tokenizer_pairs, write_hf_files},
};

/// Files of a directory that go along with the weights.
const TEXT_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "README.md",
];

/// Writes a model to `output`, a GGUF file or a directory as mlx-community's, quantized as the
/// builder's [`ModelBuilder::with_isq`] says and otherwise with its exact values. Nothing is at
/// `output` until all is written.
///
/// # Errors
/// Whatever is wrong with the model, named; [`Error::Request`] for an output that exists already,
/// unless `overwrite`.
pub fn convert(
    builder: ModelBuilder,
    output: &Path,
    format: OutputFormat,
    overwrite: bool,
) -> Result<Converted> {
    if output.exists() && !overwrite {
        return Err(Error::Request(format!(
            "{} exists already; choose another name, or replace it with --force",
            output.display()
        )));
    }
    if output.is_dir() && !replaceable(output)? {
        return Err(Error::Request(format!(
            "{} holds no model, but other files; choose another name, or remove it yourself",
            output.display()
        )));
    }
    let name = output
        .file_name()
        .ok_or_else(|| Error::Request(format!("{} is no name for a new file", output.display())))?;
    let opened = builder.open()?;
    if same_file(opened.checkpoint.path(), output) {
        return Err(Error::Request(format!(
            "{} is the model itself; choose another name",
            output.display()
        )));
    }
    let hidden = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
    let partial = Partial::new(output.with_file_name(hidden));
    let converted = write(&builder, &opened, &partial.0, format)?;
    if output.exists() {
        let old = match output.is_dir() {
            true => fs::remove_dir_all(output),
            false => fs::remove_file(output),
        };
        old.map_err(io_error(output))?;
    }
    fs::rename(&partial.0, output).map_err(io_error(output))?;
    Ok(converted)
}

fn write(
    builder: &ModelBuilder,
    opened: &Opened,
    path: &Path,
    format: OutputFormat,
) -> Result<Converted> {
    let total = opened.checkpoint.size_in_bytes() as u64;
    let progress = |done: usize| {
        builder.report(Progress {
            task: "writing weights",
            done: done as u64,
            total,
        });
    };
    let mut request = ConvertRequest {
        output: format,
        path,
        isq: builder.isq().clone(),
        tokenizer: Vec::new(),
        progress: &progress,
    };
    match (format, &opened.metadata) {
        (OutputFormat::Mlx, Metadata::HuggingFace { dir, .. }) => {
            fs::create_dir(path).map_err(io_error(path))?;
            for file in TEXT_FILES {
                let from = dir.join(file);
                if from.is_file() {
                    fs::copy(&from, path.join(file)).map_err(io_error(&from))?;
                }
            }
        }
        (OutputFormat::Mlx, Metadata::Gguf(metadata)) => {
            fs::create_dir(path).map_err(io_error(path))?;
            write_hf_files(metadata, path)?;
        }
        (OutputFormat::Gguf, Metadata::HuggingFace { dir, .. }) => {
            request.tokenizer = gguf_tokenizer_pairs(dir, embedding_rows(opened)?)?;
        }
        (OutputFormat::Gguf, Metadata::Gguf(_)) => {}
    }
    Ok(biplane_models::convert(opened, &request)?)
}

/// Tokens that the model knows.
fn embedding_rows(opened: &Opened) -> Result<usize> {
    let source = &opened.checkpoint;
    let names = source.names();
    let name = names.iter().find(|n| n.ends_with("embed_tokens.weight"));
    let rows = match name {
        Some(name) => source.tensor(name)?.and_then(|t| t.shape.first().copied()),
        None => None,
    };
    rows.ok_or_else(|| Error::Request(format!("{} has no embedding", source.path().display())))
}

/// What is being written in this process.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what [`convert`] has begun and not finished in this process: for a program that is about to
/// end, as by Ctrl-C. A conversion that goes on meanwhile fails.
pub fn remove_unfinished() {
    let unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for path in unfinished.iter() {
        // Between its files' removal and its own a folder may have got another one.
        for _ in 0..3 {
            remove(path);
        }
    }
}

/// A file or directory that goes away unless it is renamed.
struct Partial(PathBuf);

impl Partial {
    fn new(path: PathBuf) -> Self {
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.push(path.clone());
        Partial(path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        remove(&self.0);
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.retain(|path| *path != self.0);
    }
}

fn remove(path: &Path) {
    let _ = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// Whether a directory is a model's or empty, so that nothing else is lost with it.
fn replaceable(dir: &Path) -> Result<bool> {
    let empty = || Ok(fs::read_dir(dir)?.next().is_none());
    Ok(dir.join("config.json").is_file() || empty().map_err(io_error(dir))?)
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}
