//! Conversations in files.

use std::{collections::BTreeMap, fs, io, path::Path};

use anyhow::{Context, bail};
use biplane::Message;
use serde::{Deserialize, Serialize};

/// What `/save` writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Says what kind of file it is.
    pub biplane_chat: u32,
    /// The model, where one was named.
    pub model: Option<String>,
    pub system: Option<String>,
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    pub messages: Vec<Message>,
}

/// No conversation is longer.
const LONGEST: u64 = 64 << 20;

impl Saved {
    /// Reads a conversation.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let at = || path.display().to_string();
        let size = fs::metadata(path).with_context(at)?.len();
        if size > LONGEST {
            bail!(
                "{}: {size} bytes, a conversation has at most {LONGEST}",
                at()
            );
        }
        let text = fs::read_to_string(path).with_context(at)?;
        let saved: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no conversation that /save wrote", at()))?;
        match saved.biplane_chat {
            1 => Ok(saved),
            other => bail!("{}: version {other} of this format is not known", at()),
        }
    }

    /// Writes it. Only a file that is a conversation is replaced.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let at = || path.display().to_string();
        match fs::symlink_metadata(path) {
            Ok(_) if Self::read(path).is_err() => {
                bail!(
                    "{} is there already, and no conversation; choose another name",
                    at()
                );
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(at);
            }
            _ => {}
        }
        let text = serde_json::to_string_pretty(self).context("the conversation")?;
        fs::write(path, format!("{text}\n")).with_context(at)
    }
}
