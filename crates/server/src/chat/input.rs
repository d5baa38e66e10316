//! Where lines come from.

use std::path::PathBuf;

use anyhow::Context;
use rustyline::{Config, Editor, error::ReadlineError, history::FileHistory};

/// What a user does at the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D.
    End,
}

/// Where lines come from.
pub trait Lines {
    /// The next line.
    fn line(&mut self, prompt: &str) -> anyhow::Result<Input>;

    /// A message is whole: it may be wanted again.
    fn remember(&mut self, message: &str);
}

/// A terminal with line editing and history.
pub struct Terminal {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Terminal {
    /// Takes up what was typed before, if that is `kept`.
    pub fn new(kept: bool) -> anyhow::Result<Self> {
        let config = Config::builder().max_history_size(1000)?.build();
        let mut editor = Editor::with_config(config).context("the terminal")?;
        let folder = biplane::hub::cache_dir().ok().filter(|_| kept);
        let history = folder.map(|folder| folder.join("chat-history"));
        if let Some(file) = &history {
            // The first time there is none.
            let _ = editor.load_history(file);
        }
        Ok(Self { editor, history })
    }

    /// Writes the history. That it cannot be is no reason to fail at the end.
    pub fn close(mut self) {
        let Some(file) = self.history.take() else {
            return;
        };
        let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = folder.map_err(ReadlineError::from);
        if let Err(error) = written.and_then(|()| self.editor.save_history(&file)) {
            tracing::warn!(%error, file = %file.display(), "the history cannot be written");
        }
    }
}

impl Lines for Terminal {
    fn line(&mut self, prompt: &str) -> anyhow::Result<Input> {
        match self.editor.readline(prompt) {
            Ok(line) => Ok(Input::Line(line)),
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(error).context("the terminal"),
        }
    }

    fn remember(&mut self, message: &str) {
        let _ = self.editor.add_history_entry(message);
    }
}
