//! Recording requests with what they gave, to be replayed.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
};

use biplane_models::ModelInfo;
use serde::{Deserialize, Serialize};

use super::sequence::{Sequence, Task};
use crate::{Error, Request, Result};

/// One request, and what it gave: a line of JSON in a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The model's architecture.
    pub architecture: String,
    /// The backend that computed.
    pub backend: String,
    /// Element type of activations.
    pub dtype: String,
    /// The request; its seed is the one that was used.
    pub request: Request,
    /// The tokens that came.
    pub tokens: Vec<u32>,
    /// The text that came.
    pub text: String,
}

impl Recorded {
    /// Reads a recording.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Request`] naming the line that is no recorded request.
    pub fn read(path: &Path) -> Result<Vec<Recorded>> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let lines = BufReader::new(File::open(path).map_err(io)?).lines();
        let mut all = Vec::new();
        for (number, line) in lines.enumerate() {
            let line = line.map_err(io)?;
            all.push(serde_json::from_str(&line).map_err(|e| {
                Error::Request(format!(
                    "{}, line {}: no recorded request: {e}",
                    path.display(),
                    number + 1
                ))
            })?);
        }
        Ok(all)
    }
}

pub(super) struct Recorder {
    file: File,
    architecture: String,
    backend: String,
    dtype: String,
}

impl Recorder {
    pub fn open(path: Option<&Path>, info: &ModelInfo) -> Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| Error::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(Some(Recorder {
            file,
            architecture: info.architecture.clone(),
            backend: info.backend.into(),
            dtype: info.dtype.to_string(),
        }))
    }

    pub fn write(&mut self, sequence: &Sequence) {
        let Task::Answer(answer) = &sequence.task else {
            return;
        };
        let recorded = Recorded {
            architecture: self.architecture.clone(),
            backend: self.backend.clone(),
            dtype: self.dtype.clone(),
            request: answer.request.clone(),
            tokens: answer.generated.clone(),
            text: answer.text.clone(),
        };
        // One write a line, so that a crash leaves whole lines.
        let line = serde_json::to_vec(&recorded).map_err(std::io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.file.write_all(&line)
        });
        if let Err(error) = written {
            tracing::warn!("a request could not be recorded: {error}");
        }
    }
}
