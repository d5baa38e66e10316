//! `biplane completions` and `biplane man`

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{cli::Cli, report};

/// Arguments of `biplane completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell; `biplane completions bash > ~/.local/share/bash-completion/completions/biplane`, say.
    pub shell: Shell,
}

/// Arguments of `biplane man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The page of one command, instead of the program's.
    pub verb: Option<String>,

    /// Write the pages of the program and of every command into this directory instead.
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    pub dir: Option<PathBuf>,
}

/// Writes a completion script.
pub fn completions(args: CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "biplane", &mut script);
    report::data(&String::from_utf8(script).context("the completion script")?)
}

/// Writes the manual.
pub fn man(args: ManArgs) -> anyhow::Result<()> {
    let mut program = Cli::command();
    program.build();
    if let Some(dir) = args.dir {
        let at = || dir.display().to_string();
        std::fs::create_dir_all(&dir).with_context(at)?;
        return clap_mangen::generate_to(program, &dir).with_context(at);
    }
    let command = match &args.verb {
        None => program,
        Some(verb) => {
            let found = program.find_subcommand(verb).cloned();
            found.with_context(|| {
                let names = program.get_subcommands().map(clap::Command::get_name);
                format!(
                    "there is no command {verb}{}",
                    crate::near::hint(verb, names)
                )
            })?
        }
    };
    let mut page = Vec::new();
    Man::new(command)
        .render(&mut page)
        .context("the manual page")?;
    report::data(&String::from_utf8(page).context("the manual page")?)
}
