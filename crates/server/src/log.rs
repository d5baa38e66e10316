//! The program's log on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts the log. `BIPLANE_LOG` filters it, else how often `--verbose` is there.
pub fn start(verbose: u8, format: LogFormat) {
    let filter = EnvFilter::try_from_env("BIPLANE_LOG").unwrap_or_else(|_| {
        // A hub that is away is an error of hf-hub's, but for us a reason to look elsewhere.
        EnvFilter::new(match verbose {
            0 => "warn,hf_hub=off",
            1 => "info,hyper=warn,hf_hub=off,rustyline=warn",
            _ => "debug,rustyline=warn",
        })
    });
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && !plain)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).compact().init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
