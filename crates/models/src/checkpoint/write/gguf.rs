use std::{
    collections::HashSet,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{TensorHeader, check_complete, check_next, io_error};
use crate::{
    Error, Result,
    checkpoint::gguf::{KINDS, MAGIC},
};

const VERSION: u32 = 3;
/// What data begin at a multiple of, where the header does not say otherwise.
const ALIGNMENT: usize = 32;

/// A value of a GGUF file's header.
#[derive(Clone, Debug, PartialEq)]
pub enum MetadataValue {
    /// An integer.
    U32(u32),
    /// A number.
    F32(f32),
    /// A flag.
    Bool(bool),
    /// A text.
    String(String),
    /// An array of texts.
    Strings(Vec<String>),
    /// An array of integers.
    I32s(Vec<i32>),
    /// An array of numbers.
    F32s(Vec<f32>),
    /// Type and value as another file holds them.
    Raw(Vec<u8>),
}

impl MetadataValue {
    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            MetadataValue::U32(n) => {
                out.extend(4u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            MetadataValue::F32(x) => {
                out.extend(6u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            MetadataValue::Bool(b) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*b));
            }
            MetadataValue::String(s) => {
                out.extend(8u32.to_le_bytes());
                string(out, s);
            }
            MetadataValue::Strings(all) => {
                array(out, 8, all.len());
                all.iter().for_each(|s| string(out, s));
            }
            MetadataValue::I32s(all) => {
                array(out, 5, all.len());
                all.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            MetadataValue::F32s(all) => {
                array(out, 6, all.len());
                all.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            MetadataValue::Raw(bytes) => out.extend(bytes),
        }
    }
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// Writes a GGUF file, version 3.
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    file: BufWriter<File>,
    tensors: std::vec::IntoIter<TensorHeader>,
}

impl GgufWriter {
    /// Creates the file and writes its header. A key `general.alignment` is left out: data are
    /// aligned to 32 bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Write`] for a key or name that is there twice, or an element type that
    /// GGUF does not have.
    pub fn create(
        path: &Path,
        metadata: &[(String, MetadataValue)],
        tensors: Vec<TensorHeader>,
    ) -> Result<Self> {
        let wrong = |reason: String| Error::Write {
            path: path.to_owned(),
            reason,
        };
        let metadata: Vec<_> = metadata
            .iter()
            .filter(|(key, _)| key != "general.alignment")
            .collect();
        let mut names = HashSet::new();
        let keys = metadata.iter().map(|(key, _)| key);
        for name in keys.chain(tensors.iter().map(|t| &t.name)) {
            if !names.insert(name) {
                return Err(wrong(format!("{name:?} would be there twice")));
            }
        }
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            string(&mut header, key);
            value.write(&mut header);
        }
        let mut offset = 0usize;
        for tensor in &tensors {
            let number = KINDS.iter().find(|(_, kind)| *kind == tensor.kind);
            let Some((number, _)) = number else {
                return Err(wrong(format!(
                    "tensor {}: GGUF has no {:?}",
                    tensor.name, tensor.kind
                )));
            };
            string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for len in tensor.shape.iter().rev() {
                header.extend((*len as u64).to_le_bytes());
            }
            header.extend(number.to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset += tensor.size_in_bytes(path)?.next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        let file = File::create_new(path).map_err(io_error(path))?;
        let mut file = BufWriter::new(file);
        file.write_all(&header).map_err(io_error(path))?;
        Ok(GgufWriter {
            path: path.to_owned(),
            file,
            tensors: tensors.into_iter(),
        })
    }

    /// The next tensor's data.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Write`] unless they are as long as announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        check_next(&self.path, self.tensors.as_slice().first(), bytes.len())?;
        let padding = [0; ALIGNMENT];
        let missing = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.file
            .write_all(bytes)
            .and_then(|()| self.file.write_all(&padding[..missing]))
            .map_err(io_error(&self.path))?;
        self.tensors.next();
        Ok(())
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Write`] if tensors are missing.
    pub fn finish(mut self) -> Result<()> {
        check_complete(&self.path, self.tensors.as_slice().first())?;
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(io_error(&self.path))
    }
}
