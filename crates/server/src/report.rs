//! What the program says: data on standard output; progress, figures and failures on standard error.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use biplane::ModelBuilder;
pub use biplane::memory::readable as bytes;
use indicatif::{ProgressBar, ProgressStyle};

use crate::near;

/// Writes data to standard output. A reader that has gone away wants no more of it, which is no
/// failure.
pub fn data(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// Writes a line to standard error, if anyone listens; in one piece, as others may write there too.
pub fn note(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Progress bars on a terminal, one line a task elsewhere; gone when it is dropped.
pub struct Progress {
    bar: Arc<Mutex<Option<(String, ProgressBar)>>>,
    shown: bool,
}

impl Progress {
    /// Shows nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        Progress {
            bar: Arc::default(),
            shown: !quiet,
        }
    }

    /// Says at once which model is to be loaded: finding and reading its files takes a while.
    pub fn begin(&self, model: Option<&str>) {
        if !self.shown {
            return;
        }
        let task = format!("loading {}", model.unwrap_or("the starter model"));
        if !io::stderr().is_terminal() {
            return note(&task);
        }
        if let Ok(mut slot) = self.bar.lock() {
            let spinner = ProgressBar::new_spinner();
            spinner.set_message(task.clone());
            spinner.enable_steady_tick(TICK);
            *slot = Some((task, spinner));
        }
    }

    /// Shows how far a builder has come.
    pub fn watch(&self, builder: ModelBuilder) -> ModelBuilder {
        if !self.shown {
            return builder;
        }
        builder.with_progress(self.shower())
    }

    /// Shows what it is called with.
    pub fn shower(&self) -> impl Fn(biplane::Progress<'_>) + Send + Sync + 'static {
        let bar = Arc::clone(&self.bar);
        move |p| update(&bar, p)
    }

    /// Removes what is shown.
    pub fn clear(&self) {
        clear(&self.bar);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn clear(bar: &Mutex<Option<(String, ProgressBar)>>) {
    if let Ok(mut slot) = bar.lock()
        && let Some((_, bar)) = slot.take()
    {
        bar.finish_and_clear();
    }
}

fn update(shown: &Mutex<Option<(String, ProgressBar)>>, p: biplane::Progress<'_>) {
    let Ok(mut slot) = shown.lock() else {
        return;
    };
    if slot.as_ref().is_none_or(|(name, _)| name != p.task) {
        if let Some((_, old)) = slot.take() {
            old.finish_and_clear();
        }
        if !io::stderr().is_terminal() && p.task != LOADING {
            note(p.task);
        }
        *slot = Some((p.task.to_owned(), bar(p.task, p.total)));
    }
    if let Some((_, shown)) = &mut *slot {
        let done = p.total > 0 && p.done >= p.total;
        // The same task once more: another backend loads.
        if shown.is_finished() && !done {
            *shown = bar(p.task, p.total);
        }
        shown.set_length(p.total);
        shown.set_position(p.done);
        if done {
            shown.finish_and_clear();
        }
    }
}

/// The task of bringing weights to the device: too short to mention where no bar can be drawn.
pub const LOADING: &str = "loading weights";

/// How often bars are drawn anew.
const TICK: Duration = Duration::from_millis(200);

/// Draws only on a terminal; indicatif hides it elsewhere.
fn bar(task: &str, total: u64) -> ProgressBar {
    // Of nothing all would be done.
    let bar = ProgressBar::new(total.max(1));
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_message(task.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

/// A model that would have to be downloaded first.
#[derive(Debug)]
pub struct NotHere(String);

impl NotHere {
    /// `more` follows the model's name.
    pub fn new(model: &str, more: &str) -> Self {
        NotHere(format!(
            "{model} is not on this machine{more}; `biplane pull {model}` brings it"
        ))
    }
}

impl std::fmt::Display for NotHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}

/// Models whose names are near to one that is not there.
fn nearby(error: &anyhow::Error) -> String {
    match error.downcast_ref::<biplane::Error>() {
        Some(biplane::Error::Hub(biplane::hub::Error::NotFound { spec, .. })) => {
            near::model_hint(spec)
        }
        Some(biplane::Error::Hub(biplane::hub::Error::NotCached { id, .. })) => {
            near::model_hint(id)
        }
        _ => String::new(),
    }
}

/// Says what went wrong; chooses the exit code.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    note(&format!("error: {}{}", in_words(error), nearby(error)));
    let code = match error.downcast_ref::<biplane::Error>() {
        None if error.downcast_ref::<NotHere>().is_some() => 2,
        Some(biplane::Error::Hub(biplane::hub::Error::NotCached { .. })) => 2,
        Some(biplane::Error::Hub(hub)) if hub.is_not_found() => 2,
        Some(biplane::Error::Hub(hub)) if hub.is_gated() => 3,
        Some(
            biplane::Error::Memory { .. }
            | biplane::Error::Backend(biplane::BackendError::OutOfMemory { .. })
            | biplane::Error::Model(biplane::ModelError::Backend(
                biplane::BackendError::OutOfMemory { .. },
            )),
        ) => 4,
        _ => 1,
    };
    ExitCode::from(code)
}

/// An error and its causes, but for those whose words are in it already.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !words.ends_with(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn every_cause_is_said_once() {
        let file = || std::io::Error::other("the disk is on fire");
        let io = biplane::Error::Io {
            path: "a.gguf".into(),
            source: file(),
        };
        let words = |e: anyhow::Error| super::in_words(&e);
        assert_eq!(words(io.into()), "a.gguf: the disk is on fire");
        let deep = Err::<(), _>(file()).context("b.txt").context("reading");
        assert_eq!(
            words(deep.unwrap_err()),
            "reading: b.txt: the disk is on fire"
        );
    }
}
