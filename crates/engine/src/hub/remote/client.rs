//! The hub itself: asking it, downloading from it, and what its refusals mean.

use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Sender},
    thread,
    time::Duration,
};

use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync, HFResult, RepoTypeModel,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
    repository::RepoTreeEntry,
};

use super::{
    super::{Error, Options, Progress, Result, sha256},
    cache::{Cache, sum_of_blob},
    choose::{Files, Listed},
    spec::{Spec, is_commit},
};

const POLL: Duration = Duration::from_millis(100);

type Repo = HFRepositorySync<RepoTypeModel>;

/// A model's repository on the hub.
pub(super) struct Hub {
    repo: Repo,
    id: String,
    endpoint: String,
    token_seen: bool,
    patience: Duration,
    pub cache: Cache,
}

impl Hub {
    pub(super) fn new(
        spec: &Spec<'_>,
        options: &Options,
        cache: Cache,
        patience: Duration,
    ) -> Result<Self> {
        // The program is here to answer soon: a retry, but no long back-off.
        let mut builder = HFClient::builder()
            .cache_dir(&cache.root)
            .retry_max_attempts(1);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &options.token {
            builder = builder.token(token);
        }
        let endpoint = options.endpoint.clone().unwrap_or_default();
        let unreachable = |error: HFError| Error::Unreachable {
            endpoint: endpoint.clone(),
            reason: root_cause(&error),
        };
        let client = builder.build().map_err(unreachable)?;
        let endpoint = client.endpoint().to_owned();
        let client = HFClientSync::from_inner(client).map_err(unreachable)?;
        let (org, name) = hf_hub::split_id(spec.id);
        Ok(Self {
            repo: client.model(org, name),
            id: spec.id.to_owned(),
            endpoint,
            token_seen: options.token.is_some() || token_in_environment(),
            patience,
            cache,
        })
    }

    /// The commit that a revision is.
    pub(super) fn commit(&self, revision: Option<&str>) -> Result<String> {
        let wanted = revision.map(str::to_owned);
        let info = self.ask(|repo| repo.info().maybe_revision(wanted).send());
        let sha = info.map_err(|error| self.error(error, revision))?.sha;
        sha.filter(|sha| is_commit(sha))
            .ok_or_else(|| self.failed(&self.id, "the hub names no commit"))
    }

    pub(super) fn files(&self, commit: &str) -> Result<Files> {
        let revision = commit.to_owned();
        let list = |repo: Repo| repo.list_tree().revision(revision).recursive(true).send();
        let entries = self.ask(list);
        let entries = entries.map_err(|error| self.error(error, Some(commit)))?;
        let file = |entry| match entry {
            RepoTreeEntry::File {
                path, size, lfs, ..
            } => {
                let lfs = lfs.is_some();
                Some((path, Listed { size, lfs }))
            }
            RepoTreeEntry::Directory { .. } => None,
        };
        Ok(entries.into_iter().filter_map(file).collect())
    }

    /// Asks something that is answered at once or not at all.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(Repo) -> HFResult<T> + Send + 'static,
    ) -> Result<T, Option<HFError>> {
        let (sender, answer) = mpsc::channel();
        let repo = self.repo.clone();
        // The client waits for a connection as long as the system does, minutes: that goes on alone.
        thread::spawn(move || {
            let _ = sender.send(question(repo));
        });
        match answer.recv_timeout(self.patience) {
            Ok(answer) => answer.map_err(Some),
            Err(_) => Err(None),
        }
    }

    /// A file in the cache, of the right size and, where it was downloaded now, with the right sum.
    pub(super) fn get(
        &self,
        commit: &str,
        name: &str,
        listed: Listed,
        sum: Option<&str>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        let path = self.cache.snapshot(commit).join(name);
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() == listed.size => return Ok(path),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "of the wrong size; downloading it again");
                self.cache.discard(&path);
            }
            Err(_) => {}
        }
        let got = self.download(commit, name, listed.size, progress)?;
        if got != path {
            return Err(self.failed(name, "the hub sent it as another commit's"));
        }
        self.verify(&path, name, listed, sum)
            .inspect_err(|_| self.cache.discard(&path))?;
        progress(Progress {
            file: name,
            done: listed.size,
            total: listed.size,
        });
        Ok(path)
    }

    fn download(
        &self,
        commit: &str,
        name: &str,
        total: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        loop {
            let error = match self.try_download(commit, name, total, progress) {
                Ok(path) => return Ok(path),
                Err(error) => error,
            };
            return Err(match error {
                HFError::CacheLockTimeout { .. } => {
                    tracing::info!(file = name, "another process is downloading it; waiting");
                    continue;
                }
                HFError::Io(source) => Error::io(&self.cache.root, source, total),
                HFError::Xet { .. } => self.failed(name, root_cause(&error)),
                HFError::Request { ref source, .. } if source.is_body() || source.is_decode() => {
                    self.failed(name, root_cause(&error))
                }
                error => self.error(Some(error), Some(commit)),
            });
        }
    }

    fn try_download(
        &self,
        commit: &str,
        name: &str,
        total: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> HFResult<PathBuf> {
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.repo
                    .download_file()
                    .filename(name)
                    .revision(commit)
                    .progress(Reporter(sender))
                    .send()
            });
            while !worker.is_finished() {
                let first = receiver.recv_timeout(POLL).ok();
                if let Some(done) = receiver.try_iter().last().or(first) {
                    progress(Progress {
                        file: name,
                        done: u64::min(done, total),
                        total,
                    });
                }
            }
            let panicked = |_| Err(HFError::Other("the downloading thread panicked".to_owned()));
            worker.join().unwrap_or_else(panicked)
        })
    }

    /// Neither the client nor every server checks what was sent.
    fn verify(&self, path: &Path, name: &str, listed: Listed, sum: Option<&str>) -> Result<()> {
        let what = || format!("{}/{name}", self.id);
        let io = |source| Error::io(path, source, 0);
        let got = fs::metadata(path).map_err(io)?.len();
        if got != listed.size {
            return Err(Error::Size {
                what: what(),
                expected: listed.size,
                got,
            });
        }
        let named = listed.lfs.then(|| sum_of_blob(path)).flatten();
        let Some(expected) = sum.map(str::to_owned).or(named) else {
            return Ok(());
        };
        let got = sha256(path).map_err(io)?;
        if got != expected {
            return Err(Error::Checksum {
                what: what(),
                expected,
                got,
            });
        }
        Ok(())
    }

    pub(super) fn failed(&self, what: &str, reason: impl Into<String>) -> Error {
        Error::Download {
            what: match what == self.id {
                true => what.to_owned(),
                false => format!("{}/{what}", self.id),
            },
            reason: reason.into(),
        }
    }

    /// The client's error as ours; `None` is that the hub said nothing in time.
    fn error(&self, error: Option<HFError>, revision: Option<&str>) -> Error {
        let unreachable = |reason: String| Error::Unreachable {
            endpoint: self.endpoint.clone(),
            reason,
        };
        let Some(error) = error else {
            return unreachable(format!("no answer in {} s", self.patience.as_secs()));
        };
        let context = match &error {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::RateLimited { context, .. } => Some(context),
            HFError::RepoNotFound { context, .. } | HFError::RevisionNotFound { context, .. } => {
                context.as_ref()
            }
            HFError::Request { source, .. }
                if source.is_connect() || source.is_timeout() || source.is_request() =>
            {
                return unreachable(root_cause(&error));
            }
            _ => None,
        };
        let code = context.and_then(|context| context.error_code.as_deref());
        match (context.map(|context| context.status.as_u16()), revision) {
            (Some(404), Some(revision)) if code != Some("RepoNotFound") => Error::NoRevision {
                id: self.id.clone(),
                revision: revision.to_owned(),
            },
            (Some(401 | 403 | 404), _) if code == Some("RepoNotFound") => self.not_found(),
            (Some(404), _) => self.not_found(),
            (Some(401 | 403), _) => Error::Gated {
                id: self.id.clone(),
                url: format!("{}/{}", self.endpoint, self.id),
                token_seen: self.token_seen,
            },
            (Some(429 | 500..=599), _) => unreachable(error.to_string()),
            _ => self.failed(&self.id, root_cause(&error)),
        }
    }

    fn not_found(&self) -> Error {
        Error::NotFound {
            spec: self.id.clone(),
            hint: "check the name; a private model needs HF_TOKEN",
        }
    }
}

/// Hands a download's bytes over.
struct Reporter(Sender<u64>);

impl ProgressHandler for Reporter {
    fn on_progress(&self, event: &ProgressEvent) {
        let done = match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                files.last().map(|file| file.bytes_completed)
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed, ..
            }) => Some(*bytes_completed),
            _ => None,
        };
        if let Some(done) = done {
            let _ = self.0.send(done);
        }
    }
}

/// The innermost error's text: the outer ones only say that a request failed.
fn root_cause(error: &HFError) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

/// Where the client looks for a token, for the user to know whether it found one.
fn token_in_environment() -> bool {
    let value = |key| std::env::var(key).ok().filter(|value| !value.is_empty());
    let in_file = |path: PathBuf| fs::read_to_string(path).is_ok_and(|t| !t.trim().is_empty());
    value("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_none()
        && (value("HF_TOKEN").is_some()
            || value("HF_TOKEN_PATH").is_some_and(|path| in_file(path.into()))
            || in_file(hf_hub::hf_home().join("token")))
}
