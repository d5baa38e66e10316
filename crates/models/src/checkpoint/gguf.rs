//! GGUF files, versions 2 and 3.
//!
//! Source: the GGUF specification (docs/gguf.md of ggml); types as in ggml.h.

use std::path::Path;

use biplane_backend::{DType, GgmlKind};

use super::{
    GgufMetadata, RawKind,
    cursor::Cursor,
    map::Map,
    mapped::{Entry, Format, MappedCheckpoint},
    write::MetadataValue,
};
use crate::{Error, Result};

/// The first four bytes of every file.
pub(super) const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;

/// Maps a file and checks its header.
pub(super) fn open(path: &Path) -> Result<(MappedCheckpoint, GgufMetadata)> {
    let map = Map::open(path)?;
    let (entries, mut metadata) = read_header(path, &map)?;
    // What is kept of the header is copied out of it: a large vocabulary is some megabytes.
    let data = entries.iter().map(|entry| entry.range.start).min();
    map.release(&(0..data.unwrap_or(0)));
    let checkpoint = MappedCheckpoint::new(path, vec![map], entries)?;
    metadata.set_tensors(
        super::Checkpoint::names(&checkpoint)
            .into_iter()
            .map(str::to_owned),
    );
    Ok((checkpoint, metadata))
}

/// A tensor as the header describes it, its place relative to the data section.
struct Info<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: RawKind,
    offset: u64,
    bytes: usize,
}

fn read_header(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, GgufMetadata)> {
    let mut cursor = Cursor::new(path, bytes);
    if cursor.take(MAGIC.len())? != MAGIC {
        return Err(cursor.malformed("is no GGUF file: it does not begin with \"GGUF\""));
    }
    check_version(path, cursor.u32()?)?;
    // Name length, number of axes, one axis, type, offset.
    let tensors = cursor.count("tensors", 8 + 4 + 8 + 4 + 8)?;
    // Key length, type, one byte.
    let pairs = cursor.count("key-value pairs", 8 + 4 + 1)?;
    let metadata = GgufMetadata::read(path, &mut cursor, pairs)?;
    refuse_split(&metadata)?;
    let alignment = alignment(&metadata)?;
    let infos = (0..tensors)
        .map(|_| read_info(path, &mut cursor, alignment))
        .collect::<Result<Vec<_>>>()?;

    let data = (cursor.position() as u64).checked_next_multiple_of(alignment);
    let entries = infos.into_iter().map(|info| {
        let start = data
            .and_then(|data| data.checked_add(info.offset))
            .and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(info.bytes)?));
        match range {
            Some(range) if range.end <= bytes.len() => Ok(Entry {
                name: info.name.to_owned(),
                shape: info.shape,
                format: Format::Known(info.kind),
                file: 0,
                range,
            }),
            _ => Err(cursor.malformed(format!(
                "tensor {}: its {} bytes at offset {} lie beyond the end of the file, which has {} bytes: it is cut short; download it again",
                info.name, info.bytes, info.offset, bytes.len()
            ))),
        }
    });
    Ok((entries.collect::<Result<_>>()?, metadata))
}

fn check_version(path: &Path, version: u32) -> Result<()> {
    let reason = match version {
        2 | 3 => return Ok(()),
        1 => "is of GGUF version 1, which is not supported; convert the model again".into(),
        // A small number with its bytes swapped.
        v if v & 0xffff == 0 && v != 0 => {
            "is a big-endian GGUF file, which is not supported; get the little-endian one".into()
        }
        v => format!("is of GGUF version {v}; 2 and 3 are supported"),
    };
    Err(Error::Unsupported {
        path: path.to_owned(),
        reason,
    })
}

fn refuse_split(metadata: &GgufMetadata) -> Result<()> {
    let count = metadata.optional_u64("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(());
    }
    let part = metadata.optional_u64("split.no")?.unwrap_or(0);
    Err(Error::Unsupported {
        path: metadata.path().to_owned(),
        reason: format!(
            "is part {} of {count} of a split GGUF file; merge the parts into one with `llama-gguf-split --merge FIRST_PART MERGED.gguf` and use that",
            part.saturating_add(1)
        ),
    })
}

fn alignment(metadata: &GgufMetadata) -> Result<u64> {
    let alignment = metadata
        .optional_u32("general.alignment")?
        .map_or(DEFAULT_ALIGNMENT, u64::from);
    if alignment.is_power_of_two() {
        Ok(alignment)
    } else {
        Err(metadata.config_error(format!(
            "general.alignment is {alignment}, which is no power of two"
        )))
    }
}

fn read_info<'a>(path: &Path, cursor: &mut Cursor<'a>, alignment: u64) -> Result<Info<'a>> {
    let name = cursor.name("tensor name")?;
    let bad = |reason: String| Error::Malformed {
        path: path.to_owned(),
        reason: format!("tensor {name}: {reason}"),
    };
    let axes = cursor.u32()?;
    if !(1..=4).contains(&axes) {
        return Err(bad(format!("has {axes} axes; 1 to 4 are possible")));
    }
    let mut shape = Vec::new();
    for _ in 0..axes {
        let len = cursor.u64()?;
        shape.push(usize::try_from(len).map_err(|_| bad(format!("has an axis of {len}")))?);
    }
    // The file has the innermost axis first.
    shape.reverse();
    let kind = read_kind(path, name, cursor.u32()?)?;
    let bytes = size_in_bytes(&shape, kind).map_err(bad)?;
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(bad(format!(
            "its offset {offset} is no multiple of the alignment, {alignment}"
        )));
    }
    Ok(Info {
        name,
        shape,
        kind,
        offset,
        bytes,
    })
}

pub(super) fn size_in_bytes(shape: &[usize], kind: RawKind) -> Result<usize, String> {
    let elements = shape.iter().try_fold(1usize, |n, &len| n.checked_mul(len));
    let bytes = match kind {
        RawKind::Dense(dtype) => elements.and_then(|n| n.checked_mul(dtype.size())),
        RawKind::Ggml(kind) => {
            let row = shape.last().copied().unwrap_or(0);
            if !row.is_multiple_of(kind.block_len()) {
                return Err(format!(
                    "its rows of {row} are no whole {} blocks of {}",
                    kind.name(),
                    kind.block_len()
                ));
            }
            elements.and_then(|n| (n / kind.block_len()).checked_mul(kind.block_bytes()))
        }
    };
    bytes.ok_or_else(|| format!("its shape {shape:?} is larger than any file"))
}

/// ggml's numbers of the types that are weights.
pub(super) const KINDS: [(u32, RawKind); 14] = [
    (0, RawKind::Dense(DType::F32)),
    (1, RawKind::Dense(DType::F16)),
    (30, RawKind::Dense(DType::BF16)),
    (26, RawKind::Dense(DType::I32)),
    (2, RawKind::Ggml(GgmlKind::Q4_0)),
    (3, RawKind::Ggml(GgmlKind::Q4_1)),
    (6, RawKind::Ggml(GgmlKind::Q5_0)),
    (7, RawKind::Ggml(GgmlKind::Q5_1)),
    (8, RawKind::Ggml(GgmlKind::Q8_0)),
    (10, RawKind::Ggml(GgmlKind::Q2K)),
    (11, RawKind::Ggml(GgmlKind::Q3K)),
    (12, RawKind::Ggml(GgmlKind::Q4K)),
    (13, RawKind::Ggml(GgmlKind::Q5K)),
    (14, RawKind::Ggml(GgmlKind::Q6K)),
];

fn read_kind(path: &Path, tensor: &str, code: u32) -> Result<RawKind> {
    if let Some((_, kind)) = KINDS.iter().find(|(number, _)| *number == code) {
        return Ok(*kind);
    }
    let kinds: Vec<&str> = GgmlKind::ALL.iter().map(|k| k.name()).collect();
    Err(Error::TensorType {
        path: path.to_owned(),
        name: tensor.to_owned(),
        got: unsupported_name(code).map_or(format!("number {code}"), str::to_owned),
        supported: format!("F32, F16, BF16, I32, {}", kinds.join(", ")),
    })
}

/// The file's key-value pairs in its order, each value as its bytes.
pub(super) fn raw_pairs(path: &Path) -> Result<Vec<(String, MetadataValue)>> {
    let map = Map::open(path)?;
    let mut cursor = Cursor::new(path, &map);
    cursor.take(MAGIC.len())?;
    check_version(path, cursor.u32()?)?;
    cursor.u64()?;
    let count = cursor.u64()?;
    (0..count)
        .map(|_| {
            let key = cursor.name("key")?.to_owned();
            let start = cursor.position();
            GgufMetadata::skip_value(&mut cursor)?;
            let bytes = map[start..cursor.position()].to_vec();
            Ok((key, MetadataValue::Raw(bytes)))
        })
        .collect()
}

/// The names of ggml's other types.
fn unsupported_name(code: u32) -> Option<&'static str> {
    Some(match code {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
