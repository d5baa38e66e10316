//! The hub's cache on disk, which other programs share: `models--org--name/{blobs,refs,snapshots}`
//! as the [hub's documentation](https://huggingface.co/docs/huggingface_hub/guides/manage-cache)
//! describes it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    choose::{Choice, Files, INDEX, Listed, choose, shards},
    spec::{Spec, is_commit, is_hex},
};

/// A model's folder in the cache.
pub(super) struct Cache {
    /// The folder of all models.
    pub root: PathBuf,
    /// The model's folder.
    repo: PathBuf,
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
    fn commit(&self, revision: &str) -> Option<String> {
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
        let names = match choose(spec, &files).map_err(|error| error.to_string())? {
            Choice::Gguf(file) => return Ok(snapshot.join(file)),
            Choice::Directory(names) => names,
        };
        // Weights are fetched last: where they are, all that the model has is there, unless another
        // program chose the files.
        let mut wanted = vec!["tokenizer.json".to_owned()];
        if names.iter().any(|name| name == INDEX) {
            let index = fs::read(snapshot.join(INDEX)).map_err(|error| error.to_string())?;
            wanted.extend(shards(&index).map_err(|error| format!("{INDEX}: {error}"))?);
        }
        match wanted.into_iter().find(|file| !files.contains_key(file)) {
            Some(file) => Err(file),
            None => Ok(snapshot),
        }
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

/// The sha256 that a file must have: an LFS file's ETag, which names its blob. Where the cache holds
/// copies in place of links (Windows), the name is lost.
pub(super) fn sum_of_blob(path: &Path) -> Option<String> {
    let blob = fs::canonicalize(path).ok()?;
    let name = blob.file_name()?.to_str()?;
    (name.len() == 64 && is_hex(name)).then(|| name.to_owned())
}

/// The files below a folder; links that lead nowhere are none.
fn list(dir: &Path, prefix: &str, files: &mut Files) {
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
                files.insert(path, Listed { size, lfs: false });
            }
            _ => {}
        }
    }
}
