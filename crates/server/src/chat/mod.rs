//! `biplane chat`

mod command;
mod input;
mod saved;
mod session;
mod settings;
mod shown;
#[cfg(test)]
mod tests;

use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::Args;

use self::{
    input::Terminal,
    session::{Session, Turn},
    settings::Settings,
};
use crate::{
    cli::{BackendArg, ModelArgs},
    engine_args::EngineArgs,
    form_args::SamplingArgs,
    report::{self, Progress},
};

/// Arguments of `biplane chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub backend: BackendArg,

    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// A system message before the conversation.
    #[arg(long)]
    pub system: Option<String>,

    /// A chat template (Jinja) to use instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Go on with a conversation that /save wrote.
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,

    /// Keep no history of what was typed; otherwise it is in biplane's cache folder.
    #[arg(long)]
    pub no_history: bool,

    /// Only the answers: no figures on standard error.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Talks until the input ends.
pub fn chat(args: ChatArgs) -> anyhow::Result<()> {
    let piped = !std::io::stdin().is_terminal();
    let message = if piped { Some(message()?) } else { None };
    let settings = Settings::of(&args.sampling)?;
    let backend = args.backend.kind()?;
    let progress = Progress::new(args.quiet);
    progress.begin(args.model.model.as_deref());
    let mut builder = progress
        .watch(args.model.builder(backend))
        .with_engine(args.engine.config());
    if let Some(file) = &args.chat_template {
        builder = builder.with_chat_template(file);
    }
    let model = builder.build_blocking()?;
    progress.clear();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    let mut session = Session::new(
        model.clone(),
        args.model.model.clone(),
        settings,
        args.system,
    );
    session.quiet = args.quiet;
    if let Some(file) = &args.load {
        session.load(file)?;
    }
    let mut out = std::io::stdout();
    match message {
        Some(message) => {
            let turn = runtime.block_on(session.say(message, &mut out))?;
            if turn == Turn::Stopped {
                bail!("interrupted");
            }
        }
        None => {
            let info = model.info();
            report::note(&format!(
                "{} on {}, {} tokens of context; /help says what can be done, Ctrl-D leaves",
                info.architecture, info.device, info.context_length
            ));
            let mut terminal = Terminal::new(!args.no_history)?;
            session.converse(&mut terminal, &mut out, &runtime)?;
            terminal.close();
        }
    }
    drop(session);
    runtime.block_on(model.close());
    Ok(())
}

/// One message: all of standard input.
fn message() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("standard input is not UTF-8 text")?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.trim().is_empty() {
        bail!("standard input is empty; write a message into it, or run chat on a terminal");
    }
    Ok(text.to_owned())
}
