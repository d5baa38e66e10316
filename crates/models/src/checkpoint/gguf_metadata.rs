//! The key-value pairs of a GGUF file's header.

use std::{
    collections::{HashMap, HashSet, hash_map},
    path::{Path, PathBuf},
};

use super::{cursor::Cursor, write::MetadataValue};
use crate::{Error, Result};

/// Arrays within arrays within arrays, …: a limit to recursion. Nobody writes even two.
const MAX_DEPTH: usize = 8;

/// The key-value pairs of a GGUF file, and the names of its tensors.
///
/// A getter gives [`Error::Config`], which names file and key, for a value of another type; the
/// plain ones also for a key that is missing, where the `optional_` ones give `None`. Integers are
/// read from every width that holds them.
///
/// Source: the GGUF specification (docs/gguf.md of ggml).
#[derive(Debug)]
pub struct GgufMetadata {
    path: PathBuf,
    values: HashMap<String, Value>,
    tensors: HashSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// One value; numbers in a type that holds all widths exactly.
#[derive(Debug)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    /// Not necessarily UTF-8.
    String(Box<[u8]>),
    Array(Array),
}

#[derive(Debug)]
enum Array {
    /// Elements of one byte width, back to back as in the file.
    Scalars { kind: ValueType, bytes: Box<[u8]> },
    /// All strings joined, and where each ends.
    Strings { bytes: Vec<u8>, ends: Vec<usize> },
    /// Checked and passed over: no known key holds one.
    Arrays { len: usize },
}

impl ValueType {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        const TYPES: [ValueType; 13] = [
            ValueType::U8,
            ValueType::I8,
            ValueType::U16,
            ValueType::I16,
            ValueType::U32,
            ValueType::I32,
            ValueType::F32,
            ValueType::Bool,
            ValueType::String,
            ValueType::Array,
            ValueType::U64,
            ValueType::I64,
            ValueType::F64,
        ];
        let at = cursor.position();
        let code = cursor.u32()?;
        TYPES.get(code as usize).copied().ok_or_else(|| {
            cursor.malformed(format!(
                "the metadata at byte {at} is of type {code}, which does not exist"
            ))
        })
    }

    /// Bytes of one element; `None` where that depends on the element.
    fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "strings",
            Self::Array => "arrays",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// An element of `bytes`, as long as [`Self::size`] says; `None` for a bool that is neither.
    fn decode(self, bytes: &[u8]) -> Option<Value> {
        let mut word = [0; 8];
        word.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let bits = u64::from_le_bytes(word);
        Some(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Integer(bits.into()),
            Self::I8 => Value::Integer((bits as i8).into()),
            Self::I16 => Value::Integer((bits as i16).into()),
            Self::I32 => Value::Integer((bits as i32).into()),
            Self::I64 => Value::Integer((bits as i64).into()),
            Self::F32 => Value::Float(f32::from_bits(bits as u32).into()),
            Self::F64 => Value::Float(f64::from_bits(bits)),
            Self::Bool if bits <= 1 => Value::Bool(bits == 1),
            Self::Bool | Self::String | Self::Array => return None,
        })
    }
}

impl Value {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let kind = ValueType::read(cursor)?;
        let Some(size) = kind.size() else {
            return Ok(match kind {
                ValueType::String => Value::String(cursor.string()?.into()),
                _ => Value::Array(Array::read(cursor, MAX_DEPTH)?),
            });
        };
        let at = cursor.position();
        kind.decode(cursor.take(size)?)
            .ok_or_else(|| not_a_bool(cursor, at))
    }

    /// What it is, for errors.
    fn describe(&self) -> String {
        match self {
            Value::Integer(n) => format!("the integer {n}"),
            Value::Float(x) => format!("the number {x}"),
            Value::Bool(b) => format!("{b}"),
            Value::String(bytes) if std::str::from_utf8(bytes).is_err() => {
                "a string that is not UTF-8".into()
            }
            Value::String(_) => "a string".into(),
            Value::Array(array) => {
                let kind = match array {
                    Array::Scalars { kind, .. } => *kind,
                    Array::Strings { .. } => ValueType::String,
                    Array::Arrays { .. } => ValueType::Array,
                };
                format!("an array of {} {}", array.len(), kind.name())
            }
        }
    }

    fn integer<T: TryFrom<i128>>(&self) -> Option<T> {
        match self {
            Value::Integer(n) => T::try_from(*n).ok(),
            _ => None,
        }
    }

    fn float(&self) -> Option<f32> {
        match self {
            Value::Float(x) => Some(*x as f32),
            _ => None,
        }
    }

    fn bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Value::String(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn str(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn len(&self) -> Option<usize> {
        match self {
            Value::Array(array) => Some(array.len()),
            _ => None,
        }
    }

    fn scalars<T>(&self, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        match self {
            Value::Array(Array::Scalars { kind, bytes }) => bytes
                .chunks_exact(kind.size()?)
                .map(|chunk| read(&kind.decode(chunk)?))
                .collect(),
            _ => None,
        }
    }

    fn byte_strings(&self) -> Option<Vec<&[u8]>> {
        match self {
            Value::Array(Array::Strings { bytes, ends }) => {
                let mut start = 0;
                ends.iter()
                    .map(|&end| bytes.get(std::mem::replace(&mut start, end)..end))
                    .collect()
            }
            // An empty array need not know its type.
            Value::Array(array) if array.len() == 0 => Some(Vec::new()),
            _ => None,
        }
    }

    fn strings(&self) -> Option<Vec<&str>> {
        self.byte_strings()?
            .into_iter()
            .map(|bytes| std::str::from_utf8(bytes).ok())
            .collect()
    }
}

impl Array {
    fn read(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self> {
        let kind = ValueType::read(cursor)?;
        if let Some(size) = kind.size() {
            let len = cursor.count("elements of an array", size)?;
            let at = cursor.position();
            // No overflow: `len` elements are there.
            let bytes = cursor.take(len * size)?;
            if kind == ValueType::Bool && bytes.iter().any(|&b| b > 1) {
                return Err(not_a_bool(cursor, at));
            }
            let bytes = bytes.into();
            return Ok(Array::Scalars { kind, bytes });
        }
        if kind == ValueType::String {
            let len = cursor.count("strings of an array", 8)?;
            let mut ends = Vec::with_capacity(len);
            let mut bytes = Vec::new();
            for _ in 0..len {
                bytes.extend_from_slice(cursor.string()?);
                ends.push(bytes.len());
            }
            return Ok(Array::Strings { bytes, ends });
        }
        if depth == 0 {
            return Err(cursor.malformed(format!(
                "the metadata at byte {} has arrays in arrays more than {MAX_DEPTH} deep",
                cursor.position()
            )));
        }
        let len = cursor.count("arrays of an array", 12)?;
        for _ in 0..len {
            Array::read(cursor, depth - 1)?;
        }
        Ok(Array::Arrays { len })
    }

    fn len(&self) -> usize {
        match self {
            Array::Scalars { kind, bytes } => kind.size().map_or(0, |size| bytes.len() / size),
            Array::Strings { ends, .. } => ends.len(),
            Array::Arrays { len } => *len,
        }
    }
}

fn not_a_bool(cursor: &Cursor<'_>, at: usize) -> Error {
    cursor.malformed(format!(
        "the metadata at byte {at} should be a bool, but is neither 0 nor 1"
    ))
}

/// `name` and `optional_name` for values that `read` takes.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident, $optional:ident: $type:ty = $read:expr, $expected:literal;)*) => {
        impl GgufMetadata {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`Error::Config`] when `key` is missing or of another type.
                pub fn $name(&self, key: &str) -> Result<$type> {
                    self.$optional(key)?
                        .ok_or_else(|| self.config_error(format!("{key} is missing")))
                }

                $(#[$doc])*
                /// `None` when `key` is missing.
                ///
                /// # Errors
                /// [`Error::Config`] when `key` is of another type.
                pub fn $optional(&self, key: &str) -> Result<Option<$type>> {
                    let Some(value) = self.values.get(key) else {
                        return Ok(None);
                    };
                    let read = $read;
                    read(value).map(Some).ok_or_else(|| {
                        self.config_error(format!(
                            "{key}: expected {}, got {}", $expected, value.describe()
                        ))
                    })
                }
            )*
        }
    };
}

getters! {
    /// A string.
    str, optional_str: &str = Value::str, "a string";
    /// A string that need not be UTF-8.
    bytes, optional_bytes: &[u8] = Value::bytes, "a string";
    /// An integer.
    u32, optional_u32: u32 = Value::integer, "an integer of 32 bits without sign";
    /// An integer.
    u64, optional_u64: u64 = Value::integer, "an integer of 64 bits without sign";
    /// An integer.
    usize, optional_usize: usize = Value::integer, "an integer without sign";
    /// A floating-point number of either width.
    f32, optional_f32: f32 = Value::float, "a floating-point number";
    /// A bool.
    bool, optional_bool: bool = Value::bool, "a bool";
    /// The number of elements of an array of any type.
    array_len, optional_array_len: usize = Value::len, "an array";
    /// An array of strings.
    array_str, optional_array_str: Vec<&str> = Value::strings, "an array of UTF-8 strings";
    /// An array of strings that need not be UTF-8.
    array_bytes, optional_array_bytes: Vec<&[u8]> = Value::byte_strings, "an array of strings";
    /// An array of integers.
    array_u32, optional_array_u32: Vec<u32> = |v: &Value| v.scalars(Value::integer),
        "an array of integers of 32 bits without sign";
    /// An array of integers.
    array_i32, optional_array_i32: Vec<i32> = |v: &Value| v.scalars(Value::integer),
        "an array of integers of 32 bits";
    /// An array of floating-point numbers.
    array_f32, optional_array_f32: Vec<f32> = |v: &Value| v.scalars(Value::float),
        "an array of floating-point numbers";
}

impl GgufMetadata {
    /// Reads `count` key-value pairs.
    pub(super) fn read(path: &Path, cursor: &mut Cursor<'_>, count: usize) -> Result<Self> {
        let mut values = HashMap::new();
        for _ in 0..count {
            let key = cursor.name("key")?;
            let value = Value::read(cursor)?;
            match values.entry(key.to_owned()) {
                hash_map::Entry::Vacant(entry) => entry.insert(value),
                hash_map::Entry::Occupied(_) => {
                    return Err(cursor.malformed(format!("metadata key {key:?} is there twice")));
                }
            };
        }
        Ok(GgufMetadata {
            path: path.to_owned(),
            values,
            tensors: HashSet::new(),
        })
    }

    /// Passes over one value.
    pub(super) fn skip_value(cursor: &mut Cursor<'_>) -> Result<()> {
        Value::read(cursor).map(drop)
    }

    /// All pairs in the file's order, for a copy: values as their bytes.
    ///
    /// # Errors
    /// As for reading the file.
    pub fn pairs(&self) -> Result<Vec<(String, MetadataValue)>> {
        super::gguf::raw_pairs(&self.path)
    }

    pub(super) fn set_tensors(&mut self, names: impl Iterator<Item = String>) {
        self.tensors = names.collect();
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `general.architecture`: `llama`, `gemma3`, …; other keys have it in front.
    ///
    /// # Errors
    /// [`Error::Config`] when it is missing or no string.
    pub fn architecture(&self) -> Result<&str> {
        self.str("general.architecture")
    }

    /// Whether the file has a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// [`Error::Config`] for this file.
    pub fn config_error(&self, reason: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}
