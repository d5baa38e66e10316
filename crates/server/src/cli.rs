//! The command line.

use std::path::PathBuf;

use anyhow::Context;
use biplane::{
    BackendKind, Constraint, DType, Device, IsqOverride, IsqType, ModelBuilder, OutputFormat,
};
use clap::{Args, Parser, Subcommand};

use crate::{
    engine_args::EngineArgs,
    mcp_args::McpArgs,
    serve_args::{MlxArgs, ServeArgs},
};

/// Run language models on your own machine, on candle or MLX.
#[derive(Debug, Parser)]
#[command(name = "biplane", version, propagate_version = true)]
pub struct Cli {
    /// Say more on standard error; twice for everything. BIPLANE_LOG takes a tracing filter.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,

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
    /// Serve a model over HTTP: OpenAI's API, and a page to chat.
    Serve(Box<ServeArgs>),
    /// As `serve`, on Apple's MLX.
    Mlx(Box<MlxArgs>),
    /// Serve a model to the MCP client that starts this program, on standard input and output.
    Mcp(Box<McpArgs>),
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

/// Which model, and on what.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// A GGUF file, a directory, or a Hugging Face id (`org/name`, `org/name:Q4_K_M`,
    /// `org/name@revision`); without it the small starter model.
    #[arg(short, long, env = "BIPLANE_MODEL")]
    pub model: Option<String>,

    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = device, env = "BIPLANE_DEVICE")]
    pub device: Device,

    /// Element type of activations: the checkpoint's on a GPU and f32 on a CPU when `auto`.
    #[arg(long, default_value = "auto", value_parser = dtype)]
    pub dtype: AutoDType,

    /// Threads that compute on the processor; its physical cores by default.
    #[arg(long, env = "BIPLANE_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Longest sequence in tokens; what the model was made for by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,

    #[command(flatten)]
    pub isq: IsqArgs,

    /// Multiply quantized weights in the activations' own type; otherwise candle's processor rounds
    /// activations to 8 bits there, several times faster.
    #[arg(long)]
    pub exact: bool,

    /// Check every quantized kernel against plain f32 arithmetic before loading.
    #[arg(long)]
    pub self_check: bool,
}

/// Quantization of weights.
#[derive(Clone, Debug, Args)]
pub struct IsqArgs {
    /// Quantize the weights while they are loaded: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K,
    /// Q6K (GGML's blocks), AFQ2, AFQ3, AFQ4, AFQ5, AFQ6, AFQ8 (MLX's groups). Embeddings and head get
    /// at least 6 bits; what is stored as coarsely already stays as it is.
    #[arg(long, value_name = "TYPE")]
    pub isq: Option<IsqType>,

    /// Another type for some weights, as lm_head=Q8_0, layers.0=none or 'layers.*.mlp=Q6K'; may be
    /// given several times, the last that matches counts.
    #[arg(long, value_name = "PATTERN=TYPE")]
    pub isq_override: Vec<IsqOverride>,
}

impl IsqArgs {
    /// Hands these to a builder.
    pub fn apply(&self, mut builder: ModelBuilder) -> ModelBuilder {
        if let Some(isq) = self.isq {
            builder = builder.with_isq(isq);
        }
        for exception in &self.isq_override {
            builder = builder.with_isq_override(exception.clone());
        }
        builder
    }
}

impl ModelArgs {
    /// The builder for these arguments on one backend.
    pub fn builder(&self, backend: BackendKind) -> ModelBuilder {
        if let Some(threads) = self.threads {
            biplane::set_threads(usize::from(threads));
        }
        let mut builder = match &self.model {
            Some(model) => ModelBuilder::new(model),
            None => ModelBuilder::starter(),
        }
        .with_backend(backend)
        .with_device(self.device);
        if let AutoDType(Some(dtype)) = self.dtype {
            builder = builder.with_dtype(dtype);
        }
        if let Some(ctx) = self.ctx {
            builder = builder.with_context_length(ctx as usize);
        }
        self.isq
            .apply(builder)
            .with_self_check(self.self_check)
            .with_exact(self.exact)
    }
}

/// `auto` or an element type.
#[derive(Clone, Copy, Debug)]
pub struct AutoDType(pub Option<DType>);

/// Arguments of `biplane run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Which engine computes; the first in this build by default.
    #[arg(long, env = "BIPLANE_BACKEND", value_parser = backend)]
    pub backend: Option<BackendKind>,

    #[command(flatten)]
    pub engine: EngineArgs,

    /// Randomness: 0 always takes the most likely token. The model's own recommendation by default,
    /// else 0.
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,

    /// Only the most likely tokens that together have this probability.
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,

    /// Only the K most likely tokens.
    #[arg(long)]
    pub top_k: Option<usize>,

    /// Only tokens at least this fraction as likely as the most likely one.
    #[arg(long, allow_negative_numbers = true)]
    pub min_p: Option<f32>,

    /// Makes the random choices repeatable, alike on every backend.
    #[arg(long)]
    pub seed: Option<u64>,

    /// Most tokens to generate; what the context leaves by default.
    #[arg(short = 'n', long)]
    pub max_tokens: Option<usize>,

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

    /// Only the text: no figures on standard error.
    #[arg(short, long)]
    pub quiet: bool,

    /// The prompt; standard input when it is missing or `-`.
    pub prompt: Option<String>,
}

/// What the answer must be.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub struct FormArgs {
    /// JSON that fits a JSON Schema: a file, or the schema itself.
    #[arg(long, value_name = "FILE|JSON")]
    pub json_schema: Option<String>,

    /// A JSON object.
    #[arg(long)]
    pub json_object: bool,

    /// Text that a regular expression matches as a whole.
    #[arg(long, value_name = "REGEX")]
    pub regex: Option<String>,

    /// Text of a Lark grammar, in llguidance's dialect.
    #[arg(long, value_name = "FILE")]
    pub lark: Option<PathBuf>,

    /// One of these texts, separated by commas or in several of this option.
    #[arg(long, value_name = "A,B…", value_delimiter = ',')]
    pub choice: Vec<String>,
}

impl FormArgs {
    /// The constraint that is asked for, if any.
    pub fn constraint(self) -> anyhow::Result<Option<Constraint>> {
        let read = |path: &std::path::Path| {
            std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))
        };
        Ok(if let Some(schema) = self.json_schema {
            let inline = schema.trim_start().starts_with('{') || schema.trim() == "true";
            let text = match inline {
                true => schema,
                false => read(schema.as_ref())?,
            };
            let schema = serde_json::from_str(&text).context("--json-schema: this is no JSON")?;
            Some(Constraint::JsonSchema(schema))
        } else if self.json_object {
            Some(Constraint::JsonObject)
        } else if let Some(path) = self.lark {
            Some(Constraint::Lark(read(&path)?))
        } else if !self.choice.is_empty() {
            Some(Constraint::Choice(self.choice))
        } else {
            self.regex.map(Constraint::Regex)
        })
    }
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
}

/// Arguments of `biplane replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Which engine computes; the first in this build by default.
    #[arg(long, env = "BIPLANE_BACKEND", value_parser = backend)]
    pub backend: Option<BackendKind>,

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

    /// Which engine computes; the first in this build by default.
    #[arg(long, env = "BIPLANE_BACKEND", value_parser = backend)]
    pub backend: Option<BackendKind>,

    /// Tokens of each window of the text.
    #[arg(long, default_value_t = 1024)]
    pub window: usize,

    /// A JSON object instead of a line.
    #[arg(long)]
    pub json: bool,

    /// The text.
    pub file: PathBuf,
}

pub fn backend(s: &str) -> Result<BackendKind, String> {
    s.parse().map_err(|e: biplane::Error| e.to_string())
}

fn device(s: &str) -> Result<Device, String> {
    match s {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "metal" => Ok(Device::Metal),
        "cuda" => Ok(Device::Cuda(0)),
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(Device::Cuda)
            .ok_or_else(|| "expected auto, cpu, cuda, cuda:N or metal".into()),
    }
}

fn dtype(s: &str) -> Result<AutoDType, String> {
    let floats = || DType::ALL.into_iter().filter(|d| d.is_float());
    match s {
        "auto" => Ok(AutoDType(None)),
        name => floats()
            .find(|d| d.name() == name)
            .map(|d| AutoDType(Some(d)))
            .ok_or_else(|| "expected auto, f32, f16 or bf16".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn form(args: &[&str]) -> anyhow::Result<Option<Constraint>> {
        let args = ["biplane", "run"].iter().chain(args).chain(&["prompt"]);
        match Cli::try_parse_from(args)?.command {
            Command::Run(run) => run.form.constraint(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn forms_of_answers_parse_and_exclude_each_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(form(&[]).unwrap(), None);
        let schema = Constraint::JsonSchema(serde_json::json!({"type": "null"}));
        let text = r#" {"type": "null"}"#;
        assert_eq!(
            form(&["--json-schema", text]).unwrap(),
            Some(schema.clone())
        );
        std::fs::write(path, text).unwrap();
        assert_eq!(form(&["--json-schema", path]).unwrap(), Some(schema));
        std::fs::write(path, "start: \"a\"").unwrap();
        let lark = Constraint::Lark("start: \"a\"".into());
        assert_eq!(form(&["--lark", path]).unwrap(), Some(lark));
        assert!(form(&["--json-schema", path]).is_err());
        assert!(form(&["--lark", "/no/such/file"]).is_err());
        let object = form(&["--json-object"]).unwrap();
        assert_eq!(object, Some(Constraint::JsonObject));
        let regex = form(&["--regex", "a,b"]).unwrap();
        assert_eq!(regex, Some(Constraint::Regex("a,b".into())));
        let choice = Constraint::Choice(["a", "b c", "d"].map(str::to_owned).to_vec());
        assert_eq!(
            form(&["--choice", "a,b c", "--choice", "d"]).unwrap(),
            Some(choice)
        );
        assert!(form(&["--json-object", "--regex", "a"]).is_err());
        assert!(form(&["--choice", "a", "--lark", path]).is_err());
    }

    #[test]
    fn devices_and_dtypes_parse() {
        assert_eq!(device("cuda:1"), Ok(Device::Cuda(1)));
        assert!(device("tpu").is_err());
        assert!(dtype("u32").is_err());
        assert!(matches!(dtype("bf16"), Ok(AutoDType(Some(DType::BF16)))));
    }
}
