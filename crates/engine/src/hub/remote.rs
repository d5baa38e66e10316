//! A model from the Hugging Face hub, kept in the hub's own cache.

mod cache;
mod choose;
mod client;
mod download;
mod near;
mod reach;
mod spec;
mod stored;
#[cfg(test)]
mod tests;

pub use self::{
    reach::{Reach, reach},
    stored::{Removal, StoredModel, removal, stored},
};

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use self::{
    cache::Cache,
    choose::{CONFIG, Choice, Hash, INDEX, Listed, choose, shards},
    client::Hub,
    spec::{Spec, is_commit},
};
use super::{Error, Options, Progress, Result};
use crate::files;

/// How long the hub may take to say anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same where there is another source.
const HASTE: Duration = Duration::from_secs(5);

/// How long a download may bring nothing.
const STALL: Duration = Duration::from_secs(60);

/// The model of a name; `None` where it cannot be a name on the hub.
///
/// # Errors
/// [`Error::Gated`], [`Error::NotFound`], [`Error::NoRevision`], [`Error::Unreachable`],
/// [`Error::NotCached`], [`Error::Quant`], [`Error::Format`], or what went wrong with a file.
pub(super) fn resolve(
    text: &str,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Option<Result<PathBuf>> {
    Spec::parse(text).map(|spec| find(&spec, options, progress))
}

fn find(
    spec: &Spec<'_>,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let cache = Cache::new(options.hub_cache(), spec.id);
    let cached = cache.find(spec);
    if options.is_offline() {
        return cached.map_err(|missing| not_cached(&cache, spec.id, missing));
    }
    match cached {
        // Without a quantization the hub might have a file that is preferred to the one here.
        Ok(path) if is_commit(spec.revision()) && (spec.quant.is_some() || path.is_dir()) => {
            Ok(path)
        }
        Ok(path) => match fetch(spec, options, cache, HASTE, progress) {
            Err(Error::Unreachable { reason, .. }) => {
                tracing::warn!(%reason, path = %path.display(), "the hub cannot be reached; using the copy in the cache");
                Ok(path)
            }
            result => result,
        },
        Err(_) => fetch(spec, options, cache, PATIENCE, progress),
    }
}

fn not_cached(cache: &Cache, id: &str, missing: String) -> Error {
    Error::NotCached {
        id: id.to_owned(),
        cache: cache.root.clone(),
        missing,
    }
}

fn fetch(
    spec: &Spec<'_>,
    options: &Options,
    cache: Cache,
    patience: Duration,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let hub = Hub::new(spec, options, cache, patience)?;
    let commit = hub.commit(spec.revision)?;
    let files = hub.files(&commit)?;
    let mut get = |name: &str| match files.get(name) {
        Some(listed) => hub.get(&commit, name, listed, progress),
        None => Err(hub.failed(name, "the hub does not have it")),
    };
    let path = match choose(spec, &files)? {
        Choice::Gguf(file) => get(&file)?,
        Choice::Directory { beside, weights } => {
            let snapshot = hub.cache.snapshot(&commit);
            for name in &beside {
                get(name)?;
            }
            // Before gigabytes are fetched for nothing.
            check_config(&snapshot)?;
            let path = get(weights)?;
            if weights == INDEX {
                let index = fs::read(&path).map_err(|source| Error::io(&path, source, 0))?;
                for shard in shards(&index).map_err(|reason| hub.failed(INDEX, reason))? {
                    get(&shard)?;
                }
            }
            snapshot
        }
    };
    if let Err(error) = hub.cache.remember(spec.revision(), &commit) {
        tracing::warn!(%error, "the cache cannot be written; the model will not be found offline");
    }
    Ok(path)
}

/// Refuses a model that could not be loaded.
fn check_config(dir: &Path) -> Result<()> {
    let path = dir.join(CONFIG);
    let bytes = files::read(&path).map_err(|source| Error::io(&path, source, 0))?;
    let config = serde_json::from_slice(&bytes.unwrap_or_default()).map_err(|error| {
        biplane_models::Error::Malformed {
            path,
            reason: error.to_string(),
        }
    })?;
    Ok(biplane_models::check_config(dir, &config)?)
}

/// One file that is known beforehand.
pub(super) struct Pinned {
    pub id: &'static str,
    /// Commit hash.
    pub commit: &'static str,
    pub file: &'static str,
    /// Bytes.
    pub size: u64,
    pub sha256: &'static str,
}

/// The file, out of the cache or from the hub.
///
/// # Errors
/// As those of a model that is named.
pub(super) fn pinned(
    wanted: &Pinned,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let cache = Cache::new(options.hub_cache(), wanted.id);
    let path = cache.snapshot(wanted.commit).join(wanted.file);
    if fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == wanted.size) {
        return Ok(path);
    }
    if options.is_offline() {
        return Err(not_cached(&cache, wanted.id, wanted.file.to_owned()));
    }
    let spec = Spec {
        id: wanted.id,
        revision: Some(wanted.commit),
        quant: None,
    };
    let hub = Hub::new(&spec, options, cache, HASTE)?;
    let commit = hub.commit(spec.revision)?;
    let listed = Listed {
        size: wanted.size,
        hash: Hash::sha256(wanted.sha256),
    };
    hub.get(&commit, wanted.file, &listed, progress)
}
