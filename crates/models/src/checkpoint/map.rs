//! Memory-mapped files.

use std::{
    fs::File,
    io,
    ops::{Deref, Range},
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use crate::{Error, Result};

/// A file's bytes, read from disk as they are touched.
///
/// # Changes by others
/// The bytes are borrowed from the file itself. Who writes to the file or cuts it short while it is
/// mapped changes bytes that Rust takes to be constant (undefined behaviour), or has the system end
/// the process with SIGBUS: replace a model's files by renaming new ones over them.
#[derive(Debug)]
pub(super) struct Map {
    path: PathBuf,
    bytes: Mmap,
}

impl Map {
    /// Maps a whole file.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        // Opening a pipe would wait for a writer.
        if !path.metadata().map_err(io)?.is_file() {
            return Err(io(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only, and every range is checked against its length, which is the
        // file's at this moment. Nobody must change the file meanwhile; see the type's notes.
        let bytes = unsafe { Mmap::map(&file) }.map_err(io)?;
        // Tensors are read once, front to back. Advice may be ignored, and so may its failure.
        #[cfg(unix)]
        let _ = bytes.advise(memmap2::Advice::Sequential);
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(Error::Malformed {
                path: path.to_owned(),
                reason: "is a Git LFS pointer, not the file itself; run `git lfs pull`".into(),
            });
        }
        Ok(Map {
            path: path.to_owned(),
            bytes,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the system drop the pages that lie wholly inside `range`.
    pub fn release(&self, range: &Range<usize>) {
        // Not the system's page size where that is larger: a neighbour's page is read again then.
        const PAGE: usize = 4096;
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end / PAGE * PAGE;
        if start >= end {
            return;
        }
        #[cfg(unix)]
        // SAFETY: the map is shared, read-only, and of a file: a dropped page is read back from the
        // file with the same bytes when it is touched again, so borrows of it stay valid.
        let _ = unsafe {
            self.bytes.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                start,
                end - start,
            )
        };
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    impl Map {
        /// KiB of the file that are mapped into this process's memory.
        pub fn resident(&self) -> usize {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let after = maps.split(self.path.to_str().unwrap()).nth(1).unwrap();
            let line = after.lines().find(|l| l.starts_with("Rss:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn released_pages_leave_memory_and_come_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let map = Map::open(file.path()).unwrap();
        assert_eq!(map[..], bytes[..]);
        assert_eq!(map.resident(), 1024);
        map.release(&(100..(1 << 20) - 100));
        let left = map.resident();
        assert!((8..=128).contains(&left), "{left} KiB are left");
        assert_eq!(map[..], bytes[..]);
        // Within one page, and empty: nothing to drop.
        map.release(&(5000..6000));
        map.release(&(4096..4096));
        assert_eq!(map.resident(), 1024);
    }

    #[test]
    fn what_is_no_file_with_content_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Map::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let pointer = dir.path().join("model.safetensors");
        std::fs::write(&pointer, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        let error = Map::open(&pointer).unwrap_err().to_string();
        assert!(error.contains("git lfs pull"), "{error}");
    }
}
