//! Prompts' caches on disk, for later runs of the program.
//!
//! One file a prompt: a header, its tokens, the cache as the runner exports it, and a checksum. It is
//! written beside its name and renamed, so that a crash leaves no half file; a file of another model,
//! other settings or another version is another key, and is not looked at.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use biplane_models::{ModelRunner, SlotId};
use sha2::{Digest, Sha256};

use super::prefix_cache::common;
use crate::{Error, Result, backends::RunnerSpec};

const MAGIC: &[u8; 8] = b"BIPKV002";

/// Bytes of a SHA-256 digest.
const DIGEST: usize = 32;

/// Shortest prompt worth a file.
const LEAST: usize = 64;

/// Most bytes of all files; the least recently written go first.
const MOST_BYTES: u64 = 4 << 30;

pub(super) type Key = [u8; DIGEST];

struct Stored {
    path: PathBuf,
    tokens: Vec<u32>,
}

pub(super) struct PromptStore {
    dir: PathBuf,
    key: Key,
    stored: Vec<Stored>,
    writer: Option<thread::JoinHandle<()>>,
}

/// What a cache depends on: the weights' files, how they are loaded, and this program's version.
pub(super) fn key(spec: &RunnerSpec) -> Key {
    let mut hash = Sha256::new();
    let mut add = |text: String| {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    add(env!("CARGO_PKG_VERSION").into());
    add(format!(
        "{} {:?} {:?} {:?} {:?} {:?} {}",
        spec.backend,
        spec.device,
        spec.dtype,
        spec.kv_type,
        spec.isq,
        spec.context_length,
        spec.exact
    ));
    let path = spec.opened.checkpoint.path();
    let mut files: Vec<PathBuf> = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![path.to_owned()],
    };
    files.sort();
    for file in files {
        // A link into a cache of downloads: what it leads to counts.
        let Ok(meta) = fs::metadata(&file) else {
            continue;
        };
        add(format!(
            "{:?} {} {:?}",
            file.file_name(),
            meta.len(),
            meta.modified().ok()
        ));
    }
    hash.finalize().into()
}

impl PromptStore {
    /// Reads what a directory holds for this key; makes it where it is missing.
    pub fn open(dir: Option<&Path>, key: Key) -> Result<Option<Self>> {
        let Some(dir) = dir else { return Ok(None) };
        let io = |source| Error::Io {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(io)?;
        let mut stored = Vec::new();
        for entry in fs::read_dir(dir).map_err(io)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "partial") {
                // A writer that is gone left it.
                let _ = fs::remove_file(&path);
            } else if path.extension().is_some_and(|e| e == "kv")
                && let Some(tokens) = read_tokens(&path, &key)
            {
                stored.push(Stored { path, tokens });
            }
        }
        Ok(Some(PromptStore {
            dir: dir.to_owned(),
            key,
            stored,
            writer: None,
        }))
    }

    /// A sequence with more than `better_than` of the first `limit` tokens, and how many.
    pub fn load(
        &mut self,
        runner: &mut dyn ModelRunner,
        tokens: &[u32],
        limit: usize,
        better_than: usize,
    ) -> Option<(SlotId, usize)> {
        let usable = |s: &Stored| common(&s.tokens, tokens).min(limit);
        let (index, n) = (self.stored.iter().map(usable).enumerate()).max_by_key(|(_, n)| *n)?;
        if n <= better_than {
            return None;
        }
        let stored = self.stored.get(index)?;
        let loaded = read(&stored.path, &self.key).and_then(|bytes| {
            let slot = runner.import(&bytes, stored.tokens.len()).ok()?;
            if runner.truncate(slot, n).is_err() {
                runner.close(slot);
                return None;
            }
            Some((slot, n))
        });
        if loaded.is_none() {
            tracing::debug!("{} cannot be used here", stored.path.display());
        }
        loaded
    }

    /// Writes a sequence's cache, on a thread of its own, unless one that holds it is there.
    pub fn save(&mut self, runner: &mut dyn ModelRunner, slot: SlotId, tokens: &[u32]) {
        let known = self.stored.iter().any(|s| s.tokens.starts_with(tokens));
        let writing = self.writer.as_ref().is_some_and(|w| !w.is_finished());
        if tokens.len() < LEAST || known || writing {
            return;
        }
        let bytes = match runner.export(slot) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!("a prompt's cache cannot be stored: {error}");
                return;
            }
        };
        let body = body(&self.key, tokens, &bytes);
        let name = Sha256::digest(
            tokens
                .iter()
                .flat_map(|t| t.to_le_bytes())
                .collect::<Vec<_>>(),
        );
        let name: String = name.iter().take(12).map(|b| format!("{b:02x}")).collect();
        let key: String = self
            .key
            .iter()
            .take(4)
            .map(|b| format!("{b:02x}"))
            .collect();
        let path = self.dir.join(format!("{key}-{name}.kv"));
        self.stored.push(Stored {
            path: path.clone(),
            tokens: tokens.to_vec(),
        });
        let dir = self.dir.clone();
        self.writer = thread::Builder::new()
            .name("biplane-prompt-cache".into())
            .spawn(move || {
                if let Err(error) = write(&path, &body) {
                    tracing::warn!("{}: {error}", path.display());
                }
                keep_within(&dir, MOST_BYTES);
            })
            .ok();
    }
}

impl Drop for PromptStore {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Magic, key, number of tokens (`u64`), tokens (`u32`), the cache, SHA-256 of all that.
fn body(key: &Key, tokens: &[u32], cache: &[u8]) -> Vec<u8> {
    let mut body =
        Vec::with_capacity(MAGIC.len() + 2 * DIGEST + 8 + 4 * tokens.len() + cache.len());
    body.extend_from_slice(MAGIC);
    body.extend_from_slice(key);
    body.extend((tokens.len() as u64).to_le_bytes());
    body.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    body.extend_from_slice(cache);
    let digest = Sha256::digest(&body);
    body.extend_from_slice(&digest);
    body
}

fn write(path: &Path, body: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(body)?;
        file.sync_all()
    });
    let written = written.and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

/// The tokens of a file with this key; `None` for any other file.
fn read_tokens(path: &Path, key: &Key) -> Option<Vec<u32>> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let mut head = [0; MAGIC.len() + DIGEST + 8];
    file.read_exact(&mut head).ok()?;
    let (n, _) = split_head(&head, key)?;
    if n.checked_mul(4)? > size {
        return None;
    }
    let mut tokens = vec![0; usize::try_from(n).ok()?.checked_mul(4)?];
    file.read_exact(&mut tokens).ok()?;
    Some(to_tokens(&tokens))
}

fn split_head<'a>(bytes: &'a [u8], key: &Key) -> Option<(u64, &'a [u8])> {
    let bytes = bytes.strip_prefix(MAGIC)?.strip_prefix(key)?;
    let (n, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*n), rest))
}

fn to_tokens(bytes: &[u8]) -> Vec<u32> {
    let (tokens, _) = bytes.as_chunks::<4>();
    tokens.iter().map(|t| u32::from_le_bytes(*t)).collect()
}

/// A file's cache, if all of it is as it was written.
fn read(path: &Path, key: &Key) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (body, digest) = bytes.split_last_chunk::<DIGEST>()?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    let (n, rest) = split_head(body, key)?;
    let tokens = usize::try_from(n).ok()?.checked_mul(4)?;
    rest.get(tokens..).map(<[u8]>::to_vec)
}

/// Removes the files written longest ago until the others have at most `most` bytes.
fn keep_within(dir: &Path, most: u64) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "kv"))
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in files {
        if total <= most {
            return;
        }
        if fs::remove_file(path).is_ok() {
            total -= size;
        }
    }
}
