//! The command line.

use std::path::PathBuf;

use biplane::{BackendKind, IsqType, OutputFormat};
use clap::{Args, Parser, Subcommand};

pub use crate::model_args::{BackendArg, IsqArgs, ModelArgs, backend};
use crate::{
    chat::ChatArgs,
    doctor::DoctorArgs,
    engine_args::EngineArgs,
    form_args::{FormArgs, SamplingArgs},
    log::LogFormat,
    mcp_args::{McpArgs, ToolArgs},
    serve_args::{MlxArgs, ServeArgs},
    shell::{CompletionsArgs, ManArgs},
    show::ShowArgs,
    store::{ListArgs, PullArgs, RmArgs},
    template::TemplateArgs,
};

/// Run language models on your own machine, on candle or MLX.
#[derive(Debug, Parser)]
#[command(name = "biplane", version, propagate_version = true)]
pub struct Cli {
    /// Say more on standard error; twice for everything. BIPLANE_LOG takes a tracing filter.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,

    /// How the log is written to standard error.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        env = "BIPLANE_LOG_FORMAT"
    )]
    pub log_format: LogFormat,

    /// As `--isq` of `serve` and `mlx`, before their name.
    #[arg(long = "isq", id = "isq_before", value_name = "TYPE", hide = true)]
    pub isq: Option<IsqType>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer one prompt; the text goes to standard output as it comes.
    Run(Box<RunArgs>),
    /// Talk to a model: lines on a terminal, or one message from standard input.
    Chat(Box<ChatArgs>),
    /// Serve a model over HTTP: OpenAI's API, and a page to chat.
    Serve(Box<ServeArgs>),
    /// As `serve`, on Apple's MLX.
    Mlx(Box<MlxArgs>),
    /// Serve a model to the MCP client that starts this program, on standard input and output.
    Mcp(Box<McpArgs>),
    /// Download a model into the hub's cache; its path goes to standard output.
    Pull(PullArgs),
    /// The models on this machine.
    List(ListArgs),
    /// What a model on this machine is, without loading it.
    Show(ShowArgs),
    /// Remove models from the hub's cache.
    Rm(RmArgs),
    /// Chat templates.
    Template(TemplateArgs),
    /// Whether all is well here: backends, devices, memory, caches, hub; exit code 1 where it is not.
    Doctor(DoctorArgs),
    /// A completion script for a shell.
    Completions(CompletionsArgs),
    /// The manual page.
    Man(ManArgs),
    /// Compute recorded requests again; exit code 1 where one gives something else.
    Replay(ReplayArgs),
    /// Measure prefill, decode, load time and memory.
    Bench(BenchArgs),
    /// Run one checkpoint on two backends and say how far they agree; exit code 1 where they do not.
    Verify(VerifyArgs),
    /// How well a model predicts a text.
    Perplexity(PerplexityArgs),
    /// Write a model with quantized weights: a GGUF file, or a directory as mlx-community's.
    Quantize(ConvertArgs),
    /// Write a model in the other format, with the same values.
    Convert(ConvertArgs),
}

impl Cli {
    /// The command, with what was written before its name.
    pub fn command_line(self) -> anyhow::Result<Command> {
        let mut command = self.command;
        if let Some(isq) = self.isq {
            let options = match &mut command {
                Command::Serve(args) => &mut args.options,
                Command::Mlx(args) => &mut args.options,
                _ => anyhow::bail!("--isq before the command is for serve and mlx; write it after"),
            };
            if options.model.isq.isq.is_some_and(|after| after != isq) {
                anyhow::bail!("--isq is there twice, before the command and after it");
            }
            options.model.isq.isq = Some(isq);
        }
        Ok(command)
    }
}

/// Arguments of `biplane run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub backend: BackendArg,

    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// A system message before the prompt.
    #[arg(long, conflicts_with = "raw")]
    pub system: Option<String>,

    /// Continue the text as it is, without the model's chat template.
    #[arg(long)]
    pub raw: bool,

    /// A chat template (Jinja) to use instead of the model's own.
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub chat_template: Option<PathBuf>,

    #[command(flatten)]
    pub form: FormArgs,

    #[command(flatten)]
    pub tools: ToolArgs,

    /// Only the text: no figures on standard error.
    #[arg(short, long)]
    pub quiet: bool,

    /// The prompt; standard input when it is missing or `-`.
    pub prompt: Option<String>,
}

/// Arguments of `biplane bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Engines to measure, each in a process of its own; all in this build by default.
    #[arg(long, env = "BIPLANE_BACKEND", value_delimiter = ',', value_parser = backend)]
    pub backend: Vec<BackendKind>,

    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    pub prompt_tokens: usize,

    /// Tokens to generate.
    #[arg(long, default_value_t = 64)]
    pub generate: usize,

    /// Runs whose medians are shown, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,

    /// Requests at once, each with a prompt of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub streams: u16,

    /// A JSON array instead of a table.
    #[arg(long)]
    pub json: bool,

    /// Load once, then measure once for every line of standard input, a number of streams, and write a line
    /// of JSON: for measuring by turns with another program.
    #[arg(long, conflicts_with_all = ["json", "plot", "streams", "repeat"])]
    pub turns: bool,

    /// Draw the figures as bars, a colour for each engine, into this SVG file as well.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// Arguments of `biplane replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub backend: BackendArg,

    /// What `--record` wrote.
    pub file: PathBuf,
}

/// Arguments of `biplane quantize` and `biplane convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A GGUF file, a directory, or a Hugging Face id; without it the small starter model.
    #[arg(short, long, env = "BIPLANE_MODEL")]
    pub model: Option<String>,

    #[command(flatten)]
    pub isq: IsqArgs,

    /// What to write: gguf or mlx; by default what the output's name says, a GGUF file if it ends in
    /// .gguf and a directory otherwise.
    #[arg(long, value_parser = output_format)]
    pub format: Option<OutputFormat>,

    /// Replace what is there.
    #[arg(long)]
    pub force: bool,

    /// The file or directory to write.
    #[arg(short, long)]
    pub output: PathBuf,
}

fn output_format(s: &str) -> Result<OutputFormat, String> {
    match s {
        "gguf" => Ok(OutputFormat::Gguf),
        "mlx" => Ok(OutputFormat::Mlx),
        _ => Err("expected gguf or mlx".into()),
    }
}

/// Arguments of `biplane verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// The two engines, the reference first; both in this build by default.
    #[arg(long, value_delimiter = ',', value_parser = backend, num_args = 1..=2)]
    pub backends: Vec<BackendKind>,

    /// A prompt to continue; may be given several times. Four short ones by default.
    #[arg(long)]
    pub prompt: Vec<String>,

    /// Tokens to generate after each prompt.
    #[arg(long, default_value_t = 32)]
    pub generate: usize,

    /// The text to predict; a paragraph of English prose by default.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Difference of the mean negative log-likelihoods, in nats, that still is agreement.
    #[arg(long, default_value_t = 0.005)]
    pub max_nll_difference: f64,

    /// Fraction of tokens after which both must find the same token most likely.
    #[arg(long, default_value_t = 0.98)]
    pub min_top1: f64,

    /// A JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `biplane perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub backend: BackendArg,

    /// Tokens of each window of the text.
    #[arg(long, default_value_t = 1024)]
    pub window: usize,

    /// A JSON object instead of a line.
    #[arg(long)]
    pub json: bool,

    /// The text.
    pub file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
