//! Asking the hub, and what its refusals mean.

use std::{fs, path::PathBuf, sync::mpsc, thread, time::Duration};

use hf_hub::{HFClient, HFError, HFRepository, RepoTypeModel};
use reqwest::{Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::runtime::{Builder, Runtime};

use super::{
    super::{Error, Options, Result},
    cache::Cache,
    choose::{Files, Hash, Listed},
    spec::{Spec, is_commit},
};

/// What to do about a name that the hub does not know.
pub(super) const CHECK: &str = "check the name; a private model needs HF_TOKEN";

/// A model's repository on the hub.
pub(super) struct Hub {
    /// hf-hub's client, which knows the hub's ways to send files.
    pub repo: HFRepository<RepoTypeModel>,
    pub id: String,
    api: Api,
    /// How long the hub may take to answer a question.
    patience: Duration,
    /// How long a download may bring nothing.
    pub stall: Duration,
    pub cache: Cache,
}

impl Hub {
    pub(super) fn new(
        spec: &Spec<'_>,
        options: &Options,
        cache: Cache,
        patience: Duration,
    ) -> Result<Self> {
        let token = options.token.clone().or_else(token_in_environment);
        // The program is here to answer soon: a retry, but no long back-off.
        let mut builder = HFClient::builder()
            .cache_dir(&cache.root)
            .retry_max_attempts(1);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &token {
            builder = builder.token(token);
        }
        let endpoint = options.endpoint.clone().unwrap_or_default();
        let unreachable = |reason| Error::Unreachable {
            endpoint: endpoint.clone(),
            reason,
        };
        let client = builder.build().map_err(|e| unreachable(root_cause(&e)))?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("biplane/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| unreachable(root_cause(&e)))?;
        let (org, name) = hf_hub::split_id(spec.id);
        Ok(Self {
            repo: client.model(org, name),
            id: spec.id.to_owned(),
            api: Api {
                http,
                endpoint: client.endpoint().to_owned(),
                token,
            },
            patience,
            stall: super::STALL,
            cache,
        })
    }

    /// What asks, the hub's URL, and whether there is a token.
    pub(super) fn parts(&self) -> (reqwest::Client, &str, bool) {
        let api = &self.api;
        (api.http.clone(), &api.endpoint, api.token.is_some())
    }

    /// The commit that a revision is.
    pub(super) fn commit(&self, revision: Option<&str>) -> Result<String> {
        #[derive(Deserialize)]
        struct Info {
            sha: Option<String>,
        }
        let path = match revision {
            Some(revision) => format!("revision/{revision}"),
            None => String::new(),
        };
        let info: Result<Vec<Info>> = self.ask(&path, revision, usize::MAX);
        let info = info.map_err(|error| self.with_names_alike(error))?;
        let sha = info.into_iter().find_map(|info| info.sha);
        sha.filter(|sha| is_commit(sha))
            .ok_or_else(|| self.failed(&self.id, "the hub names no commit"))
    }

    /// The files of a commit.
    pub(super) fn files(&self, commit: &str) -> Result<Files> {
        #[derive(Deserialize)]
        struct Entry {
            r#type: String,
            path: String,
            #[serde(default)]
            size: u64,
            oid: String,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            oid: String,
        }
        let path = format!("tree/{commit}?recursive=true");
        let pages: Vec<Vec<Entry>> = self.ask(&path, Some(commit), usize::MAX)?;
        let files = pages.into_iter().flatten().filter(|e| e.r#type == "file");
        let listed = |entry: Entry| {
            let hash = match entry.lfs {
                Some(lfs) => Hash::sha256(&lfs.oid),
                None => Hash::git(&entry.oid),
            };
            let size = entry.size;
            (entry.path, Listed { size, hash })
        };
        Ok(files.map(listed).collect())
    }

    /// Asks something about the model, and takes so many pages of the answer at most.
    fn ask<T>(&self, path: &str, revision: Option<&str>, pages: usize) -> Result<Vec<T>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let path = match path {
            "" => self.id.clone(),
            path => format!("{}/{path}", self.id),
        };
        self.ask_of_all(&format!("/{path}"), revision, pages)
    }

    /// The same about all models: what is answered soon or not at all.
    pub(super) fn ask_of_all<T>(
        &self,
        path: &str,
        revision: Option<&str>,
        pages: usize,
    ) -> Result<Vec<T>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (sender, answer) = mpsc::channel();
        let (api, patience) = (self.api.clone(), self.patience);
        let url = format!("{}/api/models{path}", api.endpoint);
        // The system may look for an address for minutes: that goes on alone.
        thread::spawn(move || {
            let ask = || {
                let runtime = runtime().map_err(|e| Refusal::Here(e.to_string()))?;
                let answer = runtime
                    .block_on(async { tokio::time::timeout(patience, api.get(url, pages)).await });
                runtime.shutdown_background();
                answer.unwrap_or(Err(Refusal::Silence))
            };
            let _ = sender.send(ask());
        });
        answer
            .recv_timeout(patience)
            .unwrap_or(Err(Refusal::Silence))
            .map_err(|refusal| self.refused(refusal, revision))
    }

    /// A refusal as an error of ours; `revision` is what was asked for.
    fn refused(&self, refusal: Refusal, revision: Option<&str>) -> Error {
        match refusal {
            Refusal::Silence => {
                let patience = self.patience.as_secs();
                self.unreachable(format!("no answer in {patience} s"))
            }
            Refusal::Here(reason) => self.failed(&self.id, reason),
            Refusal::Transport(error) if error.is_decode() => {
                self.failed(&self.id, root_cause(&error))
            }
            Refusal::Transport(error) => self.unreachable(root_cause(&error)),
            Refusal::Elsewhere(url) => self.failed(
                &self.id,
                format!("its list of files goes on at {url}, which is not the hub"),
            ),
            Refusal::Status(status, code) => self.status(status, code.as_deref(), revision),
        }
    }

    fn status(&self, status: StatusCode, code: Option<&str>, revision: Option<&str>) -> Error {
        match (status.as_u16(), revision) {
            (404, Some(revision)) if code != Some("RepoNotFound") => Error::NoRevision {
                id: self.id.clone(),
                revision: revision.to_owned(),
                known: Vec::new(),
            },
            (401 | 403, _) if code == Some("RepoNotFound") => self.not_found(),
            (404, _) => self.not_found(),
            (401 | 403, _) => Error::Gated {
                id: self.id.clone(),
                url: format!("{}/{}", self.api.endpoint, self.id),
                token_seen: self.api.token.is_some(),
            },
            (429, _) => self.unreachable("it limits how often it is asked (429)".into()),
            (500..=599, _) => self.unreachable(format!("it answers {status}")),
            _ => self.failed(&self.id, format!("the hub answers {status}")),
        }
    }

    /// An error of hf-hub's as one of ours.
    pub(super) fn download_error(&self, error: &HFError, name: &str, commit: &str) -> Error {
        let context = match error {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::RateLimited { context, .. } => Some(context),
            HFError::RepoNotFound { context, .. } | HFError::RevisionNotFound { context, .. } => {
                context.as_ref()
            }
            HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => {
                return self.unreachable(root_cause(error));
            }
            _ => None,
        };
        match context {
            Some(context) => {
                self.status(context.status, context.error_code.as_deref(), Some(commit))
            }
            None => self.failed(name, root_cause(error)),
        }
    }

    pub(super) fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable {
            endpoint: self.api.endpoint.clone(),
            reason,
        }
    }

    pub(super) fn failed(&self, what: &str, reason: impl Into<String>) -> Error {
        Error::Download {
            what: match what == self.id {
                true => what.to_owned(),
                false => self.named(what),
            },
            reason: reason.into(),
        }
    }

    /// A file with its model, for errors.
    pub(super) fn named(&self, file: &str) -> String {
        format!("{}/{file}", self.id)
    }

    fn not_found(&self) -> Error {
        Error::NotFound {
            spec: self.id.clone(),
            hint: CHECK.to_owned(),
        }
    }
}

/// The hub's questions and answers. hf-hub asks them, too, but leaves out the sums of files.
#[derive(Clone)]
struct Api {
    http: reqwest::Client,
    endpoint: String,
    token: Option<String>,
}

/// Why there is no answer.
enum Refusal {
    Silence,
    /// It could not be asked.
    Here(String),
    Transport(reqwest::Error),
    Status(StatusCode, Option<String>),
    Elsewhere(String),
}

impl Api {
    /// The pages of an answer, so many at most.
    async fn get<T: DeserializeOwned>(&self, url: String, most: usize) -> Result<Vec<T>, Refusal> {
        let (mut pages, mut next) = (Vec::new(), Some(url));
        while let Some(url) = next.take().filter(|_| pages.len() < most) {
            // The token goes to nobody else.
            let rest = url.strip_prefix(&self.endpoint);
            if !rest.is_some_and(|rest| rest.starts_with('/')) {
                return Err(Refusal::Elsewhere(url));
            }
            let mut request = self.http.get(url);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(Refusal::Transport)?;
            if !response.status().is_success() {
                let code = response.headers().get("x-error-code");
                let code = code.and_then(|code| code.to_str().ok()).map(str::to_owned);
                return Err(Refusal::Status(response.status(), code));
            }
            next = next_page(&response);
            pages.push(response.json().await.map_err(Refusal::Transport)?);
        }
        Ok(pages)
    }
}

/// `Link: <url>; rel="next"` (RFC 8288).
fn next_page(response: &Response) -> Option<String> {
    let links = response.headers().get(header::LINK)?.to_str().ok()?;
    links.split(',').find_map(|link| {
        let (url, parameters) = link.split_once('>')?;
        let url = url.trim().strip_prefix('<')?;
        parameters.contains("rel=\"next\"").then(|| url.to_owned())
    })
}

/// For the requests of one thread.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// The innermost error's text: the outer ones only say that a request failed.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

/// The token where the hub's own programs look for it.
fn token_in_environment() -> Option<String> {
    let value = |key| std::env::var(key).ok().filter(|value| !value.is_empty());
    let in_file = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    };
    if value("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    value("HF_TOKEN")
        .or_else(|| value("HF_TOKEN_PATH").and_then(|path| in_file(path.into())))
        .or_else(|| in_file(hf_hub::hf_home().join("token")))
}
