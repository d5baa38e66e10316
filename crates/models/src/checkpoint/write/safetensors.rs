use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use biplane_backend::DType;
use serde_json::{Map, Value, json};

use super::{TensorHeader, check_complete, check_next, io_error};
use crate::{Error, Result, checkpoint::RawKind};

/// Writes `model.safetensors`, or shards with `model.safetensors.index.json`.
#[derive(Debug)]
pub struct SafetensorsWriter {
    dir: PathBuf,
    /// The shards to come, the current one first.
    shards: std::vec::IntoIter<Shard>,
    current: Option<(Shard, BufWriter<File>, usize)>,
    index: Option<Value>,
}

#[derive(Debug)]
struct Shard {
    file: String,
    tensors: Vec<TensorHeader>,
}

impl SafetensorsWriter {
    /// Divides the tensors among files of at most `max_shard_bytes` of data each, unless a single
    /// tensor is larger. The directory must exist.
    ///
    /// # Errors
    /// [`Error::Write`] for an element type that safetensors does not have, such as GGML's blocks.
    pub fn create(dir: &Path, tensors: Vec<TensorHeader>, max_shard_bytes: usize) -> Result<Self> {
        let mut parts: Vec<Vec<TensorHeader>> = vec![Vec::new()];
        let (mut held, mut total) = (0, 0);
        for tensor in tensors {
            type_name(dir, &tensor)?;
            let size = tensor.size_in_bytes(dir)?;
            if held > 0 && held + size > max_shard_bytes {
                parts.push(Vec::new());
                held = 0;
            }
            held += size;
            total += size;
            if let Some(part) = parts.last_mut() {
                part.push(tensor);
            }
        }
        let count = parts.len();
        let shards: Vec<Shard> = parts
            .into_iter()
            .enumerate()
            .map(|(i, tensors)| Shard {
                file: match count {
                    1 => "model.safetensors".to_owned(),
                    _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
                },
                tensors,
            })
            .collect();
        let index = (count > 1).then(|| {
            let map: Map<String, Value> = shards
                .iter()
                .flat_map(|s| {
                    s.tensors
                        .iter()
                        .map(|t| (t.name.clone(), s.file.clone().into()))
                })
                .collect();
            json!({"metadata": {"total_size": total}, "weight_map": map})
        });
        Ok(SafetensorsWriter {
            dir: dir.to_owned(),
            shards: shards.into_iter(),
            current: None,
            index,
        })
    }

    /// The next tensor's data.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Write`] unless they are as long as announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let done = |(shard, _, at): &(Shard, _, usize)| *at == shard.tensors.len();
        if self.current.as_ref().is_none_or(done) {
            self.next_shard()?;
        }
        let Some((shard, file, at)) = &mut self.current else {
            return check_next(&self.dir, None, bytes.len());
        };
        let path = self.dir.join(&shard.file);
        check_next(&path, shard.tensors.get(*at), bytes.len())?;
        file.write_all(bytes).map_err(io_error(&path))?;
        *at += 1;
        Ok(())
    }

    fn next_shard(&mut self) -> Result<()> {
        self.close_shard()?;
        let Some(shard) = self.shards.next() else {
            return Ok(());
        };
        let path = self.dir.join(&shard.file);
        let file = File::create_new(&path).map_err(io_error(&path))?;
        let mut file = BufWriter::new(file);
        let header = header(&path, &shard.tensors)?;
        file.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .map_err(io_error(&path))?;
        self.current = Some((shard, file, 0));
        Ok(())
    }

    fn close_shard(&mut self) -> Result<()> {
        let Some((shard, mut file, at)) = self.current.take() else {
            return Ok(());
        };
        let path = self.dir.join(&shard.file);
        check_complete(&path, shard.tensors.get(at))?;
        file.flush()
            .and_then(|()| file.get_ref().sync_all())
            .map_err(io_error(&path))
    }

    /// Brings everything to the disk, the index last.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Write`] if tensors are missing.
    pub fn finish(mut self) -> Result<()> {
        self.close_shard()?;
        if let Some(shard) = self.shards.next() {
            check_complete(&self.dir.join(&shard.file), shard.tensors.first())?;
        }
        if let Some(index) = &self.index {
            let path = self.dir.join("model.safetensors.index.json");
            std::fs::write(&path, format!("{index:#}\n")).map_err(io_error(&path))?;
        }
        Ok(())
    }
}

/// The header of one file, padded with spaces as the format wants.
fn header(path: &Path, tensors: &[TensorHeader]) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    // mlx-lm and transformers look for it.
    entries.insert("__metadata__".into(), json!({"format": "mlx"}));
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.size_in_bytes(path)?;
        let entry = json!({
            "dtype": type_name(path, tensor)?,
            "shape": tensor.shape,
            "data_offsets": [at, end],
        });
        if entries.insert(tensor.name.clone(), entry).is_some() {
            return Err(Error::Write {
                path: path.to_owned(),
                reason: format!("{:?} would be there twice", tensor.name),
            });
        }
        at = end;
    }
    let mut bytes = Value::Object(entries).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

fn type_name(path: &Path, tensor: &TensorHeader) -> Result<&'static str> {
    Ok(match tensor.kind {
        RawKind::Dense(DType::F32) => "F32",
        RawKind::Dense(DType::F16) => "F16",
        RawKind::Dense(DType::BF16) => "BF16",
        RawKind::Dense(DType::U32) => "U32",
        RawKind::Dense(DType::I32) => "I32",
        RawKind::Dense(DType::U8) => "U8",
        RawKind::Ggml(kind) => {
            return Err(Error::Write {
                path: path.to_owned(),
                reason: format!(
                    "tensor {}: safetensors has no {}; write GGUF",
                    tensor.name,
                    kind.name()
                ),
            });
        }
    })
}
