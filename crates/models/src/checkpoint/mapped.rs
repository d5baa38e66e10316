//! Tensors of mapped files, of whatever format.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{Checkpoint, RawKind, RawTensor, map::Map};
use crate::{Error, Result};

/// One tensor's place in a mapped file.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    pub format: Format,
    /// Which of the files.
    pub file: usize,
    /// Where in the file; inside it.
    pub range: Range<usize>,
}

/// Element or block format of an [`Entry`].
#[derive(Debug)]
pub(super) enum Format {
    /// One that a model can read.
    Known(RawKind),
    /// The name of one that no model reads, so that it matters only when asked for.
    Unsupported(String),
}

/// The tensors of one or several mapped files.
#[derive(Debug)]
pub(super) struct MappedCheckpoint {
    path: PathBuf,
    files: Vec<Map>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl MappedCheckpoint {
    /// # Errors
    /// [`Error::Malformed`] when two tensors have one name.
    pub fn new(path: &Path, files: Vec<Map>, entries: Vec<Entry>) -> Result<Self> {
        let mut by_name = HashMap::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            if by_name.insert(entry.name.clone(), index).is_some() {
                return Err(Error::Malformed {
                    path: files[entry.file].path().to_owned(),
                    reason: format!("tensor {:?} is there twice", entry.name),
                });
            }
        }
        Ok(MappedCheckpoint {
            path: path.to_owned(),
            files,
            entries,
            by_name,
        })
    }

    /// Names of the mapped files, without their directory.
    pub fn file_names(&self) -> Vec<String> {
        let names = self.files.iter().filter_map(|map| map.path().file_name());
        names.map(|n| n.to_string_lossy().into_owned()).collect()
    }

    /// The tensor's place.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }
}

impl Checkpoint for MappedCheckpoint {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<&str> {
        self.entries.iter().map(|e| e.name.as_str()).collect()
    }

    fn size_in_bytes(&self) -> usize {
        self.entries.iter().map(|e| e.range.len()).sum()
    }

    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        let Some(entry) = self.entry(name) else {
            return Ok(None);
        };
        let file = &self.files[entry.file];
        match &entry.format {
            Format::Known(kind) => Ok(Some(RawTensor {
                name: &entry.name,
                shape: entry.shape.clone(),
                kind: *kind,
                bytes: &file[entry.range.clone()],
            })),
            Format::Unsupported(got) => Err(Error::TensorType {
                path: file.path().to_owned(),
                name: name.to_owned(),
                got: got.clone(),
                supported: super::safetensors::SUPPORTED.into(),
            }),
        }
    }

    fn release(&self, name: &str) {
        if let Some(entry) = self.entry(name) {
            self.files[entry.file].release(&entry.range);
        }
    }
}
