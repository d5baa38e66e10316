//! An answer as a reader sees it.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use biplane::tools::Delta;

/// An answer on its way to the reader.
pub struct Shown<'o> {
    out: &'o mut dyn Write,
    text: String,
    thinks: bool,
    /// Thoughts are dim on a terminal, and elsewhere no part of the data.
    styled: bool,
    terminal: bool,
}

impl<'o> Shown<'o> {
    /// Nothing is written yet.
    pub fn new(out: &'o mut dyn Write) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            out,
            text: String::new(),
            thinks: false,
            styled: terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
            terminal,
        }
    }

    /// Writes what is new; whether anyone still reads.
    pub fn all(&mut self, deltas: Vec<Delta>) -> anyhow::Result<bool> {
        for delta in deltas {
            let written = match delta {
                Delta::Content(text) => {
                    let text = match self.text.is_empty() {
                        true => text.trim_start().to_owned(),
                        false => text,
                    };
                    self.text.push_str(&text);
                    self.style(false)
                        .and_then(|()| self.out.write_all(text.as_bytes()))
                }
                Delta::Reasoning(text) if self.terminal => self
                    .style(true)
                    .and_then(|()| self.out.write_all(text.as_bytes())),
                _ => Ok(()),
            };
            match written.and_then(|()| self.out.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                written => written.context("standard output")?,
            }
        }
        Ok(true)
    }

    fn style(&mut self, thinks: bool) -> io::Result<()> {
        if self.thinks == thinks {
            return Ok(());
        }
        self.thinks = thinks;
        if self.styled {
            let style: &[u8] = if thinks { b"\x1b[2m" } else { b"\x1b[0m" };
            self.out.write_all(style)?;
        }
        match thinks {
            true => Ok(()),
            false => self.out.write_all(b"\n\n"),
        }
    }

    /// Ends the line; gives the answer's text.
    pub fn end(mut self) -> anyhow::Result<String> {
        let ended = self.style(false).and_then(|()| {
            if !self.text.is_empty() && !self.text.ends_with('\n') {
                self.out.write_all(b"\n")?;
            }
            self.out.flush()
        });
        match ended {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("standard output")
            }
            _ => Ok(self.text),
        }
    }
}
