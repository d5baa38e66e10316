//! The program `biplane`.
// These panic when nobody reads; see `report`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod cli;
mod convert;
mod engine_args;
mod evaluate;
mod http;
mod mcp;
mod mcp_args;
mod replay;
mod report;
mod run;
mod serve;
mod serve_args;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        // clap's own exit code for wrong arguments, 2, means here that a model was not found.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let filter = EnvFilter::try_from_env("BIPLANE_LOG").unwrap_or_else(|_| {
        // A hub that is away is an error of hf-hub's, but for us a reason to look elsewhere.
        EnvFilter::new(match cli.verbose {
            0 => "warn,hf_hub=off",
            1 => "info,hyper=warn,hf_hub=off",
            _ => "debug",
        })
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .compact()
        .init();
    let result = match cli.command_line() {
        Ok(command) => run_command(command),
        Err(error) => Err(error),
    };
    match result {
        Ok(code) => code,
        Err(error) => report::failure(&error),
    }
}

fn run_command(command: cli::Command) -> anyhow::Result<ExitCode> {
    match command {
        cli::Command::Run(args) => run::run(*args).map(|()| ExitCode::SUCCESS),
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
