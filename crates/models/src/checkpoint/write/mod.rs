//! Writers of checkpoints. Tensors are announced first, so that headers can be written; their bytes
//! follow one tensor at a time, in that order, and go straight to the file.

mod gguf;
mod safetensors;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::RawKind;
use crate::{Error, Result};

pub use gguf::{GgufWriter, MetadataValue};
pub use safetensors::SafetensorsWriter;

/// A tensor to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// Element type or block format.
    pub kind: RawKind,
}

impl TensorHeader {
    /// Bytes of its data.
    ///
    /// # Errors
    /// [`Error::Write`] for rows that are no whole number of blocks, or a shape beyond any file.
    pub fn size_in_bytes(&self, path: &Path) -> Result<usize> {
        super::gguf::size_in_bytes(&self.shape, self.kind).map_err(|reason| Error::Write {
            path: path.to_owned(),
            reason: format!("tensor {}: {reason}", self.name),
        })
    }
}

/// The next tensor's data must be as long as announced.
fn check_next(path: &Path, next: Option<&TensorHeader>, bytes: usize) -> Result<()> {
    let wrong = |reason: String| Error::Write {
        path: path.to_owned(),
        reason,
    };
    let Some(header) = next else {
        return Err(wrong("more tensors are written than were announced".into()));
    };
    let expected = header.size_in_bytes(path)?;
    if bytes != expected {
        let name = &header.name;
        return Err(wrong(format!(
            "tensor {name}: {bytes} bytes are written for {expected}"
        )));
    }
    Ok(())
}

fn check_complete(path: &Path, next: Option<&TensorHeader>) -> Result<()> {
    match next {
        None => Ok(()),
        Some(header) => Err(Error::Write {
            path: path.to_owned(),
            reason: format!("tensor {} was announced and not written", header.name),
        }),
    }
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}
