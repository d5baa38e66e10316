//! The program `biplane`.
// These panic when nobody reads; see `report`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod chat;
mod cli;
mod config;
mod convert;
mod doctor;
mod engine_args;
mod evaluate;
mod form_args;
mod http;
mod log;
mod mcp;
mod mcp_args;
mod model_args;
mod near;
mod plot;
mod registry;
mod replay;
mod report;
mod run;
mod run_tools;
mod serve;
mod serve_args;
mod shell;
mod show;
mod store;
mod template;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use config::{Config, Failure};

fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        // clap's own exit code for wrong arguments, 2, means here that a model was not found.
        Err(Failure::Line(error)) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
        Err(Failure::File(error)) => return report::failure(&error),
    };
    log::start(cli.verbose, cli.log_format);
    let result = match cli.command_line() {
        Ok(command) => run_command(command),
        Err(error) => Err(error),
    };
    match result {
        Ok(code) => code,
        Err(error) => report::failure(&error),
    }
}

/// The command line on top of the configuration file.
fn parse() -> Result<cli::Cli, Failure> {
    let program = cli::Cli::command();
    let line: Vec<_> = std::env::args_os().collect();
    // Help, and what finds out that the file is broken, must not depend on it.
    let verb = program
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&line);
    let verb = verb
        .as_ref()
        .ok()
        .and_then(|matches| matches.subcommand_name());
    let config = match verb {
        None | Some("doctor" | "completions" | "man") => Config::default(),
        Some(_) => {
            let config = Config::find()?;
            config.check(&program)?;
            config
        }
    };
    let matches = config.parse(program, &line)?;
    Ok(cli::Cli::from_arg_matches(&matches)?)
}

fn run_command(command: cli::Command) -> anyhow::Result<ExitCode> {
    match command {
        cli::Command::Run(args) => run::run(*args).map(|()| ExitCode::SUCCESS),
        cli::Command::Chat(args) => chat::chat(*args).map(|()| ExitCode::SUCCESS),
        cli::Command::Pull(args) => store::pull(args).map(|()| ExitCode::SUCCESS),
        cli::Command::List(args) => store::list(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Show(args) => show::show(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Rm(args) => store::rm(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Template(args) => template::template(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Doctor(args) => doctor::doctor(args),
        cli::Command::Completions(args) => shell::completions(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Man(args) => shell::man(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Serve(args) => serve::serve(*args).map(|()| ExitCode::SUCCESS),
        cli::Command::Mlx(args) => serve::mlx(*args).map(|()| ExitCode::SUCCESS),
        cli::Command::Mcp(args) => mcp::mcp(*args).map(|()| ExitCode::SUCCESS),
        cli::Command::Replay(args) => replay::replay(args),
        cli::Command::Bench(args) => bench::bench(args),
        cli::Command::Quantize(args) => convert::quantize(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Convert(args) => convert::convert(args).map(|()| ExitCode::SUCCESS),
        cli::Command::Verify(args) => evaluate::verify(args),
        cli::Command::Perplexity(args) => evaluate::perplexity(args).map(|()| ExitCode::SUCCESS),
    }
}
