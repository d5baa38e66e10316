//! The formats of keys and values.

use std::{fmt, str::FromStr};

use crate::{DType, Error, Result};

/// How a user wants keys and values to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// In the element type that is fastest without being coarser than half precision.
    #[default]
    Auto,
    /// In 8 bits.
    Q8,
    /// In 4 bits.
    Q4,
}

impl KvType {
    /// Every type, for tables and messages.
    pub const ALL: [KvType; 3] = [KvType::Auto, KvType::Q8, KvType::Q4];

    /// The name users write and read.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::Auto => "auto",
            KvType::Q8 => "q8",
            KvType::Q4 => "q4",
        }
    }

    /// Width of a code; `None` where nothing is quantized.
    pub const fn bits(self) -> Option<u8> {
        match self {
            KvType::Auto => None,
            KvType::Q8 => Some(8),
            KvType::Q4 => Some(4),
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = String;

    /// llama.cpp's names (`q8_0`, `q4_0`) and mlx-lm's numbers of bits (`8`, `4`) too.
    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "auto" => Ok(KvType::Auto),
            "q8" | "q8_0" | "8" => Ok(KvType::Q8),
            "q4" | "q4_0" | "4" => Ok(KvType::Q4),
            _ => Err("expected auto, q8 or q4".into()),
        }
    }
}

/// Quantized keys and values: codes of `bits` bits, and for every `group_size` elements of a head a
/// scale and a bias: `x = scale · code + bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvSpec {
    /// Width of a code: 4 or 8.
    pub bits: u8,
    /// Elements that share a scale, an even number.
    pub group_size: usize,
    /// Element type of scales and biases.
    pub scales: DType,
}

impl KvSpec {
    /// Bytes of a head's codes.
    pub const fn code_bytes(self, head_dim: usize) -> usize {
        head_dim * self.bits as usize / 8
    }

    /// The largest code.
    pub const fn levels(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }
}

/// How a backend keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// In an element type.
    Plain(DType),
    /// In codes.
    Quantized(KvSpec),
}

impl KvFormat {
    /// Bytes of one head's key or value of `head_dim` elements.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::Plain(dtype) => head_dim * dtype.size(),
            KvFormat::Quantized(spec) => {
                spec.code_bytes(head_dim) + 2 * (head_dim / spec.group_size) * spec.scales.size()
            }
        }
    }

    /// Refuses heads that are no whole groups.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub fn check(self, backend: &'static str, head_dim: usize) -> Result<()> {
        match self {
            KvFormat::Quantized(spec) if !head_dim.is_multiple_of(spec.group_size) => {
                Err(Error::Unsupported {
                    backend,
                    what: format!(
                        "quantize keys and values of heads of {head_dim} elements, which are no whole groups of {}",
                        spec.group_size
                    ),
                    instead: "keep them as they are (--kv-type auto)".into(),
                })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvFormat::Plain(dtype) => dtype.fmt(f),
            KvFormat::Quantized(spec) => write!(f, "q{}", spec.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes() {
        for kind in KvType::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("Q8_0".parse(), Ok(KvType::Q8));
        assert_eq!("4".parse(), Ok(KvType::Q4));
        assert!("q5".parse::<KvType>().is_err());
        let spec = KvSpec {
            bits: 4,
            group_size: 32,
            scales: DType::F16,
        };
        assert_eq!(spec.levels(), 15);
        assert_eq!(KvFormat::Quantized(spec).row_bytes(64), 32 + 8);
        let wide = KvFormat::Quantized(KvSpec { bits: 8, ..spec });
        assert_eq!(wide.row_bytes(64), 64 + 8);
        assert_eq!(KvFormat::Plain(DType::F16).row_bytes(64), 128);
        assert!(wide.check("test", 96).is_ok());
        let words = wide.check("test", 80).unwrap_err().to_string();
        assert!(
            words.contains("80") && words.contains("--kv-type auto"),
            "{words}"
        );
    }
}
