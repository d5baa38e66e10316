//! Small files of a model's directory.

use std::{fs, io, path::Path};

/// A file's bytes; `None` where there is none.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidInput`] for what is no regular file: opening a pipe
/// would wait for a writer.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => fs::read(path).map(Some),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "is not a regular file",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
