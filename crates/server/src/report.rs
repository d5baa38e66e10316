//! What a person sees on standard error: progress, figures, failures.

use std::{io::IsTerminal, process::ExitCode, sync::Mutex, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress bars on a terminal, one line a task elsewhere.
pub struct Progress {
    bar: Mutex<Option<(String, ProgressBar)>>,
    shown: bool,
}

impl Progress {
    /// Shows nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        Progress {
            bar: Mutex::new(None),
            shown: !quiet,
        }
    }

    /// `done` of `total` bytes of a task; a total of 0 is unknown.
    pub fn update(&self, task: &str, done: u64, total: u64) {
        if !self.shown {
            return;
        }
        let Ok(mut slot) = self.bar.lock() else {
            return;
        };
        if slot.as_ref().is_none_or(|(name, _)| name != task) {
            if let Some((_, old)) = slot.take() {
                old.finish_and_clear();
            }
            if !std::io::stderr().is_terminal() && task != LOADING {
                eprintln!("{task}");
            }
            *slot = Some((task.to_owned(), bar(task)));
        }
        if let Some((_, bar)) = &*slot {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Removes what is shown.
    pub fn clear(&self) {
        if let Ok(mut slot) = self.bar.lock()
            && let Some((_, bar)) = slot.take()
        {
            bar.finish_and_clear();
        }
    }
}

/// The task of bringing weights to the device: too short to mention where no bar can be drawn.
pub const LOADING: &str = "loading weights";

/// Draws only on a terminal; indicatif hides it elsewhere.
fn bar(task: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_message(task.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < 3 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit == 3) * 2;
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Says what went wrong; chooses the exit code.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    let code = match error.downcast_ref::<biplane::Error>() {
        Some(biplane::Error::Hub(hub)) if hub.is_not_found() => 2,
        Some(biplane::Error::Hub(hub)) if hub.is_gated() => 3,
        Some(
            biplane::Error::Backend(biplane::BackendError::OutOfMemory { .. })
            | biplane::Error::Model(biplane::ModelError::Backend(
                biplane::BackendError::OutOfMemory { .. },
            )),
        ) => 4,
        _ => 1,
    };
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_for_people() {
        assert_eq!(super::bytes(999), "999 B");
        assert_eq!(super::bytes(300 << 20), "300 MiB");
        assert_eq!(super::bytes(3 << 29), "1.50 GiB");
    }
}
