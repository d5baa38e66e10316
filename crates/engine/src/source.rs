//! Where what makes a model comes from, besides its own files.

use std::{fs, path::PathBuf};

use crate::{Error, Result, template};

/// Where the hub's token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The token itself.
    Literal(String),
    /// An environment variable of this name.
    EnvVar(String),
    /// A file that holds it.
    Path(PathBuf),
    /// The hub's usual places: `HF_TOKEN`, else its token file.
    CacheToken,
}

impl TokenSource {
    /// The token; none to look where the hub's programs do.
    pub(crate) fn token(&self) -> Result<Option<String>> {
        let token = match self {
            Self::CacheToken => return Ok(None),
            Self::Literal(token) => token.clone(),
            Self::EnvVar(name) => std::env::var(name).map_err(|_| {
                Error::Request(format!(
                    "with_token_source names the environment variable {name}, which is not set"
                ))
            })?,
            Self::Path(path) => fs::read_to_string(path).map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?,
        };
        match token.trim() {
            "" => Err(Error::Request(
                "with_token_source gives an empty token; leave it out for the hub's usual places"
                    .into(),
            )),
            token => Ok(Some(token.to_owned())),
        }
    }
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // A token must not get into a log.
            Self::Literal(_) => f.write_str("Literal(..)"),
            Self::EnvVar(name) => write!(f, "EnvVar({name:?})"),
            Self::Path(path) => write!(f, "Path({path:?})"),
            Self::CacheToken => f.write_str("CacheToken"),
        }
    }
}

/// A chat template that is not the model's own.
#[derive(Clone, Debug)]
pub(crate) enum GivenTemplate {
    Literal(String),
    File(PathBuf),
}

impl GivenTemplate {
    pub fn source(&self) -> Result<template::Source> {
        let (default, origin) = match self {
            Self::Literal(text) => (text.clone(), "the given chat template".to_owned()),
            Self::File(path) if path.extension().is_some_and(|e| e == "json") => {
                return Err(Error::Request(format!(
                    "{} is JSON; with_chat_template takes a file of Jinja",
                    path.display()
                )));
            }
            Self::File(path) => {
                let text = fs::read_to_string(path).map_err(|source| Error::Io {
                    path: path.clone(),
                    source,
                })?;
                (text, path.display().to_string())
            }
        };
        Ok(template::Source {
            default,
            tool_use: None,
            origin,
        })
    }
}

/// A model's name on the hub with a revision: before the quantization where there is one.
pub(crate) fn at_revision(spec: &str, revision: &str) -> Result<String> {
    let refuse = |why: &str| {
        Err(Error::Request(format!(
            "with_hf_revision({revision:?}) of {spec}: {why}"
        )))
    };
    if PathBuf::from(spec).exists() {
        return refuse("it is a path; only a model on the hub has revisions");
    }
    if spec.contains('@') {
        return refuse("the name has a revision already");
    }
    Ok(match spec.split_once(':') {
        Some((id, quant)) => format!("{id}@{revision}:{quant}"),
        None => format!("{spec}@{revision}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_stand_before_quantizations() {
        let at = |spec| at_revision(spec, "v1").unwrap();
        assert_eq!(at("org/name"), "org/name@v1");
        assert_eq!(at("org/name:Q4_0"), "org/name@v1:Q4_0");
        assert!(at_revision("org/name@main", "v1").is_err());
        assert!(at_revision(".", "v1").is_err());
    }

    #[test]
    fn tokens_are_found_and_not_shown() {
        let literal = TokenSource::Literal(" hf_secret\n".into());
        assert_eq!(literal.token().unwrap().unwrap(), "hf_secret");
        assert!(!format!("{literal:?}").contains("secret"));
        assert_eq!(TokenSource::CacheToken.token().unwrap(), None);
        let unset = TokenSource::EnvVar("BIPLANE_NO_SUCH_TOKEN".into());
        let error = unset.token().unwrap_err().to_string();
        assert!(error.contains("BIPLANE_NO_SUCH_TOKEN"), "{error}");
        assert!(TokenSource::Literal(" ".into()).token().is_err());
    }
}
