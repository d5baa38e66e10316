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

/// Bytes that Linux maps at once where one is touched.
const MAPPED_TOGETHER: usize = 64 << 10;

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

    fn release_bytes(&self, bytes: &[u8]) {
        for file in &self.files {
            let inside = file.as_ptr_range();
            if inside.contains(&bytes.as_ptr()) {
                let start = bytes.as_ptr().addr() - inside.start.addr();
                // With a page, the system maps those around it that are in its cache.
                file.release(&(start.saturating_sub(MAPPED_TOGETHER)..start + bytes.len()));
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use biplane_backend::DType;

    use super::*;

    #[test]
    fn a_part_of_a_tensor_is_released_in_its_own_file() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
        let maps = ["one", "two"].map(|name| {
            std::fs::write(dir.path().join(name), &bytes).unwrap();
            Map::open(&dir.path().join(name)).unwrap()
        });
        let entry = |file| Entry {
            name: format!("w{file}"),
            shape: vec![1 << 20],
            format: Format::Known(RawKind::Dense(DType::U8)),
            file,
            range: 0..1 << 20,
        };
        let checkpoint =
            MappedCheckpoint::new(dir.path(), maps.into(), vec![entry(0), entry(1)]).unwrap();
        let whole = |name| checkpoint.tensor(name).unwrap().unwrap().bytes;
        let resident = || [0, 1].map(|file: usize| checkpoint.files[file].resident());
        assert!(whole("w0") == bytes && whole("w1") == bytes);
        assert_eq!(resident(), [1024, 1024]);
        let part = &whole("w1")[256 << 10..512 << 10];
        checkpoint.release_bytes(part);
        assert_eq!(resident(), [1024, 1024 - 256 - 64]);
        checkpoint.release_bytes(&[0; 1 << 16]);
        assert_eq!(resident(), [1024, 1024 - 256 - 64]);
        assert!(part == &bytes[256 << 10..512 << 10]);
    }
}
