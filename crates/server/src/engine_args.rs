//! Flags of the engine.

use std::path::PathBuf;

use biplane::{EngineConfig, Guess, Speculation};
use clap::Args;

/// How the model serves.
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// Memory for all KV caches of a model, running and kept, as 512M or 4G; half of what is free by
    /// default.
    #[arg(long, value_name = "SIZE", value_parser = size, env = "BIPLANE_KV_MEMORY")]
    pub kv_memory: Option<usize>,

    /// Keep prompts' caches in this directory across runs.
    #[arg(long, value_name = "DIR", env = "BIPLANE_PROMPT_CACHE")]
    pub prompt_cache: Option<PathBuf>,

    /// A smaller model of the same family that guesses tokens; the answer stays the same.
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<String>,

    /// Guess that what followed the same words before follows again; the answer stays the same.
    #[arg(long, conflicts_with = "draft")]
    pub prompt_lookup: bool,

    /// Most tokens guessed at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub guess: u8,

    /// Write every request with what it gave to this file, for `biplane replay`.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

impl EngineArgs {
    /// The engine's configuration.
    pub fn config(&self) -> EngineConfig {
        let from = match (&self.draft, self.prompt_lookup) {
            (Some(model), _) => Some(Guess::Draft(model.clone())),
            (None, true) => Some(Guess::PromptLookup),
            (None, false) => None,
        };
        EngineConfig {
            kv_memory: self.kv_memory,
            prompt_cache: self.prompt_cache.clone(),
            record: self.record.clone(),
            speculation: from.map(|from| Speculation {
                from,
                tokens: self.guess.into(),
            }),
            ..EngineConfig::default()
        }
    }
}

/// Bytes, with `K`, `M` or `G` for powers of 1,024.
pub fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is no size; write 512M or 4G");
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit
        .to_ascii_uppercase()
        .trim_end_matches("IB")
        .trim_end_matches('B')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(wrong()),
    };
    let number: usize = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("3MiB"), Ok(3 << 20));
        assert_eq!(size("2GB"), Ok(2 << 30));
        for wrong in [
            "",
            "M",
            "-1",
            "1T",
            "1.5G",
            "99999999999999999999",
            "99999999999G",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
