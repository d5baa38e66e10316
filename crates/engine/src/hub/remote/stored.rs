//! Which models lie in the hub's cache, and how they are removed from it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    super::{Error, Options, Result},
    cache::{Cache, list},
    choose::{Choice, Files, choose, is_split, label},
    spec::{Spec, is_commit},
};

/// A model in the hub's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredModel {
    /// What it is asked for by: `org/name`, with `:quant` for a GGUF file, with `@commit` where no
    /// branch or tag leads to it.
    pub name: String,
    /// `gguf`, `safetensors`, or `other` where nothing can be loaded.
    pub format: &'static str,
    /// The file or directory to load.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// When its weights were written.
    pub modified: Option<SystemTime>,
    /// Whether all of it is there.
    pub complete: bool,
}

/// What would be removed from the hub's cache.
#[derive(Clone, Debug)]
pub struct Removal {
    /// The model.
    pub id: String,
    /// Bytes that become free: those of files that no other model or revision needs.
    pub bytes: u64,
    /// Links and folders first, then what they lead to.
    paths: Vec<PathBuf>,
}

/// The models in the hub's cache, by name.
pub fn stored(options: &Options) -> Vec<StoredModel> {
    let root = options.hub_cache();
    let mut models = Vec::new();
    for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("models--"));
        let Some(id) = id.map(|id| id.replacen("--", "/", 1)) else {
            continue;
        };
        if Spec::parse(&id).is_some() {
            of_model(&root, &id, &mut models);
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

fn of_model(root: &Path, id: &str, models: &mut Vec<StoredModel>) {
    let cache = Cache::new(root.to_owned(), id);
    for commit in cache.commits() {
        let named = cache.refs(&commit);
        let at = match named.iter().any(|name| name == "main") {
            true => String::new(),
            false => format!("@{}", named.first().unwrap_or(&commit)),
        };
        let name = format!("{id}{at}");
        let snapshot = cache.snapshot(&commit);
        let mut files = Files::new();
        list(&snapshot, "", &mut files);
        let (ggufs, others): (Vec<_>, Vec<_>) = files
            .iter()
            .partition(|(file, _)| file.to_ascii_lowercase().ends_with(".gguf"));
        for (file, listed) in &ggufs {
            let path = snapshot.join(file);
            let only = ggufs.len() == 1 && !files.contains_key(super::CONFIG);
            models.push(StoredModel {
                name: match only {
                    true => name.clone(),
                    false => format!("{name}:{}", label(file)),
                },
                format: "gguf",
                bytes: listed.size,
                modified: modified(&path),
                // One of several parts is no model.
                complete: !is_split(file),
                path,
            });
        }
        if others.is_empty() || (!ggufs.is_empty() && !files.contains_key(super::CONFIG)) {
            continue;
        }
        let spec = Spec {
            id,
            revision: Some(&commit),
            quant: None,
        };
        let weights = others.iter().find(|(f, _)| f.ends_with(".safetensors"));
        models.push(StoredModel {
            name,
            format: if weights.is_some() {
                "safetensors"
            } else {
                "other"
            },
            bytes: others.iter().map(|(_, listed)| listed.size).sum(),
            modified: weights.and_then(|(file, _)| modified(&snapshot.join(file))),
            complete: cache.find(&spec).is_ok_and(|path| path == snapshot),
            path: snapshot,
        });
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// What removing a model would do: `org/name` with all its revisions, `org/name@revision`, or the one
/// file of `org/name:quant`. Files that another revision shares stay.
///
/// # Errors
/// [`Error::NotFound`] where the cache does not have it, [`Error::Quant`] where several files fit.
pub fn removal(spec: &str, options: &Options) -> Result<Removal> {
    let missing = |hint: &str| Error::NotFound {
        spec: spec.to_owned(),
        hint: hint.to_owned(),
    };
    let not_here = || missing("the hub's cache does not have it; `biplane list` says what it has");
    let parsed = Spec::parse(spec).ok_or_else(|| {
        missing("only models of the hub's cache are removed, by the names that `biplane list` says")
    })?;
    let cache = Cache::new(options.hub_cache(), parsed.id);
    let id = parsed.id.to_owned();
    if parsed.quant.is_none() && parsed.revision.is_none() {
        let folder = cache.folder().to_owned();
        if fs::symlink_metadata(&folder).is_err() {
            return Err(not_here());
        }
        return Ok(Removal {
            id,
            bytes: size_on_disk(&folder),
            paths: vec![folder, cache.locks()],
        });
    }
    let commit = cache.commit(parsed.revision()).ok_or_else(not_here)?;
    let snapshot = cache.snapshot(&commit);
    let mut files = Files::new();
    list(&snapshot, "", &mut files);
    let mut paths: Vec<PathBuf> = match parsed.quant {
        None if snapshot.is_dir() => {
            let refs = cache.refs(&commit).into_iter();
            let refs = refs.map(|name| cache.folder().join("refs").join(name));
            refs.chain([snapshot.clone()]).collect()
        }
        None => return Err(not_here()),
        Some(_) if files.is_empty() => return Err(not_here()),
        Some(_) => match choose(&parsed, &files)? {
            Choice::Gguf(file) => vec![snapshot.join(file)],
            Choice::Directory { .. } => return Err(not_here()),
        },
    };
    let goes = |link: &Path| paths.iter().any(|path| link.starts_with(path));
    let (mut free, mut kept) = (BTreeSet::new(), BTreeSet::new());
    let mut bytes = 0;
    for commit in cache.commits() {
        let snapshot = cache.snapshot(&commit);
        let mut files = Files::new();
        list(&snapshot, "", &mut files);
        for file in files.keys() {
            let link = snapshot.join(file);
            let set = if goes(&link) { &mut free } else { &mut kept };
            set.extend(fs::canonicalize(link));
        }
    }
    let inside = fs::canonicalize(cache.folder()).map_err(|e| Error::io(cache.folder(), e, 0))?;
    for blob in free
        .difference(&kept)
        .filter(|blob| blob.starts_with(&inside))
    {
        bytes += fs::metadata(blob).map_or(0, |meta| meta.len());
        paths.push(blob.clone());
    }
    Ok(Removal { id, bytes, paths })
}

impl Removal {
    /// Removes it.
    ///
    /// # Errors
    /// [`Error::Io`]; what was removed until then is gone, and the rest can be removed again.
    pub fn carry_out(self) -> Result<()> {
        for path in self.paths {
            // A link to a folder is removed, and not what it leads to.
            let removed = match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(&path, error, 0));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Bytes of all files below a folder, links not followed.
fn size_on_disk(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| size_on_disk(&entry.path())).sum()
        }
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    }
}

impl Cache {
    /// The model's folder.
    fn folder(&self) -> &Path {
        &self.repo
    }

    fn locks(&self) -> PathBuf {
        let repo = self.repo.file_name().unwrap_or_default();
        self.root.join(".locks").join(repo)
    }

    /// The commits of which there are files.
    fn commits(&self) -> Vec<String> {
        let names = fs::read_dir(self.repo.join("snapshots"));
        let names = names.into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut commits: Vec<String> = names.filter(|name| is_commit(name)).collect();
        commits.sort();
        commits
    }

    /// The branches and tags that were this commit when they were last seen.
    fn refs(&self, commit: &str) -> Vec<String> {
        let names = fs::read_dir(self.repo.join("refs"));
        let names = names.into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut refs: Vec<String> = names
            .filter(|name| self.commit(name).as_deref() == Some(commit))
            .filter(|name| !name.starts_with('.'))
            .collect();
        refs.sort();
        refs
    }
}
