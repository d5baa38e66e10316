//! Reads little-endian values off a file's bytes, never beyond their end.

use std::path::Path;

use crate::{Error, Result};

/// A place in a file's bytes.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes left to read.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Malformed {
            path: self.path.to_owned(),
            reason: reason.into(),
        }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..n) else {
            return Err(self.malformed(format!(
                "is cut short or broken: {n} bytes should follow at byte {}, but {} do; download it again",
                self.at,
                rest.len()
            )));
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each, and so bounded by what is left.
    pub fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize> {
        let count = self.u64()?;
        let most = self.remaining() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.malformed(format!(
                "is cut short or broken: says that {count} {what} follow at byte {}, but at most {most} can; download it again",
                self.at
            ))),
        }
    }

    /// Bytes with their length (`u64`) in front.
    pub fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.count("bytes of a string", 1)?;
        self.take(len)
    }

    /// As [`Self::string`], for names, which must be UTF-8.
    pub fn name(&mut self, what: &str) -> Result<&'a str> {
        let at = self.at;
        std::str::from_utf8(self.string()?)
            .map_err(|_| self.malformed(format!("the {what} at byte {at} is not UTF-8")))
    }
}
