//! The hub's cache on disk, which other programs share: `models--org--name/{blobs,refs,snapshots}`
//! as the [hub's documentation](https://huggingface.co/docs/huggingface_hub/guides/manage-cache)
//! describes it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use super::{
    choose::{Choice, Files, Hash, INDEX, Listed, choose, shards},
    spec::{Spec, is_commit},
};

/// A model's folder in the cache.
pub(super) struct Cache {
    /// The folder of all models.
    pub root: PathBuf,
    /// The model's folder.
    pub(super) repo: PathBuf,
}

impl Cache {
    pub(super) fn new(root: PathBuf, id: &str) -> Self {
        let repo = root.join(format!("models--{}", id.replace('/', "--")));
        Self { root, repo }
    }

    /// The files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.join("snapshots").join(commit)
    }

    /// The commit that a revision was when it was last seen.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.repo.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Remembers which commit a revision is.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let refs = self.repo.join("refs");
        fs::create_dir_all(&refs)?;
        let part = refs.join(format!(".{revision}-{}", std::process::id()));
        fs::write(&part, commit)?;
        fs::rename(part, refs.join(revision))
    }

    /// The model as it lies in the cache, or else what is missing.
    pub(super) fn find(&self, spec: &Spec<'_>) -> Result<PathBuf, String> {
        let missing = || format!("revision {}", spec.revision());
        let commit = self.commit(spec.revision()).ok_or_else(missing)?;
        let snapshot = self.snapshot(&commit);
        let mut files = Files::new();
        list(&snapshot, "", &mut files);
        if files.is_empty() {
            return Err(missing());
        }
        let weights = match choose(spec, &files).map_err(|error| error.to_string())? {
            Choice::Gguf(file) => return Ok(snapshot.join(file)),
            Choice::Directory { weights, .. } => weights,
        };
        // Weights are fetched last: where they are, all that the model has is there, unless another
        // program chose the files.
        let mut wanted = vec!["tokenizer.json".to_owned()];
        if weights == INDEX {
            let index = fs::read(snapshot.join(INDEX)).map_err(|error| error.to_string())?;
            wanted.extend(shards(&index).map_err(|error| format!("{INDEX}: {error}"))?);
        }
        match wanted.into_iter().find(|file| !files.contains_key(file)) {
            Some(file) => Err(file),
            None => Ok(snapshot),
        }
    }

    /// Where the bytes of a file are kept.
    pub(super) fn blob(&self, hash: &Hash) -> PathBuf {
        self.repo.join("blobs").join(hash.text())
    }

    /// Where they are gathered before they are whole.
    pub(super) fn partial(&self, hash: &Hash) -> PathBuf {
        let name = format!("{}.incomplete", hash.text());
        self.repo.join("blobs").join(name)
    }

    /// The right to write a file, which the hub's other programs respect as well. Calls `waiting` where
    /// one of them has it.
    pub(super) fn lock(&self, hash: &Hash, waiting: impl FnOnce()) -> io::Result<File> {
        let repo = self.repo.file_name().unwrap_or_default();
        let folder = self.root.join(".locks").join(repo);
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(self.repo.join("blobs"))?;
        let file = File::create(folder.join(format!("{}.lock", hash.text())))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => waiting(),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.lock()?;
        Ok(file)
    }

    /// Gives a blob its name in a commit.
    pub(super) fn link(&self, commit: &str, name: &str, hash: &Hash) -> io::Result<()> {
        let path = self.snapshot(commit).join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        #[cfg(unix)]
        {
            // Relative, so that the cache may be moved.
            let up = "../".repeat(2 + name.matches('/').count());
            std::os::unix::fs::symlink(format!("{up}blobs/{}", hash.text()), path)
        }
        #[cfg(not(unix))]
        fs::copy(self.blob(hash), path).map(drop)
    }

    /// Removes a file and the blob behind it.
    pub(super) fn discard(&self, path: &Path) {
        let blobs = fs::canonicalize(self.repo.join("blobs"));
        if let (Ok(blob), Ok(blobs)) = (fs::canonicalize(path), blobs)
            && blob.starts_with(blobs)
        {
            let _ = fs::remove_file(blob);
        }
        let _ = fs::remove_file(path);
    }
}

/// The files below a folder; links that lead nowhere are none.
pub(super) fn list(dir: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = format!("{prefix}{name}");
        match fs::metadata(entry.path()) {
            // A link to a folder could lead round in a circle.
            Ok(meta) if meta.is_dir() && entry.file_type().is_ok_and(|t| t.is_dir()) => {
                list(&entry.path(), &format!("{path}/"), files);
            }
            Ok(meta) if meta.is_file() => {
                let size = meta.len();
                files.insert(path, Listed { size, hash: None });
            }
            _ => {}
        }
    }
}
