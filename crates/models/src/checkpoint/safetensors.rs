//! Safetensors files: one, or shards with an index.
//!
//! Source: the format section of the safetensors README; the index as `transformers` writes it.

use std::{
    fmt,
    marker::PhantomData,
    path::{Component, Path},
};

use ::safetensors::Dtype;
use biplane_backend::DType;
use serde::{
    Deserialize, Deserializer,
    de::{IntoDeserializer, MapAccess, Visitor, value::StrDeserializer},
};

use super::{
    RawKind,
    cursor::Cursor,
    map::Map,
    mapped::{Entry, Format, MappedCheckpoint},
};
use crate::{Error, Result};

/// The element types that a model may read, as the format spells them.
pub(super) const SUPPORTED: &str = "F32, F16, BF16, U32, I32, U8";

/// The reference implementation's limit.
const MAX_HEADER: usize = 100_000_000;

/// Maps `files` (names within `dir`) and checks their headers.
pub(super) fn open(dir: &Path, files: &[String]) -> Result<MappedCheckpoint> {
    let mut maps = Vec::new();
    let mut entries = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let map = Map::open(&dir.join(file))?;
        read_header(&map, index, &mut entries)?;
        maps.push(map);
    }
    MappedCheckpoint::new(dir, maps, entries)
}

/// Maps the shards that the index file at `path` lists and checks that each tensor is in its shard.
pub(super) fn open_index(dir: &Path, path: &Path) -> Result<MappedCheckpoint> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: UniqueMap<String>,
    }
    let malformed = |reason: String| Error::Malformed {
        path: path.to_owned(),
        reason,
    };
    let Index { weight_map } =
        serde_json::from_slice(&super::open::read(path)?).map_err(|e| malformed(e.to_string()))?;
    let mut files: Vec<String> = weight_map.0.iter().map(|(_, file)| file.clone()).collect();
    files.sort();
    files.dedup();
    for file in &files {
        // A checkpoint must not have files from elsewhere read.
        let mut parts = Path::new(file).components();
        let plain = matches!(parts.next(), Some(Component::Normal(name)) if name == file.as_str());
        if !plain || parts.next().is_some() || file.contains(['\\', '\0']) {
            return Err(malformed(format!(
                "shard {file:?} is not the name of a file in the same directory"
            )));
        }
        if !dir.join(file).exists() {
            return Err(malformed(format!(
                "lists shard {file}, which is not in the directory: the download is incomplete"
            )));
        }
    }
    let checkpoint = open(dir, &files)?;
    for (name, file) in &weight_map.0 {
        let there = checkpoint
            .entry(name)
            .is_some_and(|entry| files[entry.file] == *file);
        if !there {
            return Err(malformed(format!(
                "says that tensor {name} is in shard {file}, but it is not"
            )));
        }
    }
    Ok(checkpoint)
}

/// A tensor in a header.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Appends the tensors of the file number `file` in the order of their bytes.
fn read_header(map: &Map, file: usize, entries: &mut Vec<Entry>) -> Result<()> {
    let mut cursor = Cursor::new(map.path(), map);
    let len = cursor.count("bytes of the header", 1)?;
    if len > MAX_HEADER {
        return Err(cursor.malformed(format!(
            "its header of {len} bytes is larger than the format's limit of {MAX_HEADER}"
        )));
    }
    let header: UniqueMap<serde_json::Value> = serde_json::from_slice(cursor.take(len)?)
        .map_err(|e| cursor.malformed(format!("the header is not as it should be: {e}")))?;
    let mut infos = Vec::new();
    for (name, value) in header.0 {
        if name != "__metadata__" {
            let info = Info::deserialize(value)
                .map_err(|e| cursor.malformed(format!("tensor {name}: {e}")))?;
            infos.push((name, info));
        }
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);

    let data = cursor.position();
    let mut expected = 0;
    for (name, info) in infos {
        let (start, end) = info.data_offsets;
        let bad = |reason: String| cursor.malformed(format!("tensor {name}: {reason}"));
        // The format knows neither holes nor overlaps.
        if start != expected || end < start {
            return Err(bad(format!(
                "its bytes are {start}..{end} of the data, but should begin at {expected}"
            )));
        }
        if end > cursor.remaining() {
            return Err(bad(format!(
                "its bytes are {start}..{end} of the data, of which there are {}: the file is cut short; download it again",
                cursor.remaining()
            )));
        }
        expected = end;
        let format = read_format(&info, end - start).map_err(bad)?;
        entries.push(Entry {
            name,
            shape: info.shape,
            format,
            file,
            // No overflow: inside the file.
            range: data + start..data + end,
        });
    }
    if expected != cursor.remaining() {
        return Err(cursor.malformed(format!(
            "its tensors end at byte {expected} of the data, but there are {}; download it again",
            cursor.remaining()
        )));
    }
    Ok(())
}

fn read_format(info: &Info, bytes: usize) -> Result<Format, String> {
    let name = info.dtype.as_str();
    let deserializer: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
    // A type that is not known may be of any size.
    let Ok(dtype) = Dtype::deserialize(deserializer) else {
        return Ok(Format::Unsupported(name.to_owned()));
    };
    let elements = info
        .shape
        .iter()
        .try_fold(1usize, |n, &len| n.checked_mul(len));
    let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
    if bits != bytes.checked_mul(8) {
        return Err(format!(
            "its shape {:?} of {name} does not fit its {bytes} bytes",
            info.shape
        ));
    }
    let dtype = match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::U32 => DType::U32,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        _ => return Ok(Format::Unsupported(name.to_owned())),
    };
    Ok(Format::Known(RawKind::Dense(dtype)))
}

/// A JSON object in order; a key that is there twice is an error rather than the last one's.
struct UniqueMap<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
                let mut pairs = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format!("{key:?} is there twice")));
                    }
                    pairs.push((key, value));
                }
                Ok(UniqueMap(pairs))
            }
        }

        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

#[cfg(test)]
mod tests;
