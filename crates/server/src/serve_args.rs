//! Arguments of the server.

use std::path::PathBuf;

use biplane::{Device, EngineConfig};
use clap::Args;

use crate::{
    engine_args::{EngineArgs, size},
    mcp_args::ServerMcpArgs,
    model_args::{BackendArg, LoadArgs},
    registry::Limits,
};

/// Arguments of `biplane serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub backend: BackendArg,

    #[command(flatten)]
    pub options: ServeOptions,
}

/// Arguments of `biplane mlx`.
#[derive(Debug, Args)]
pub struct MlxArgs {
    #[command(flatten)]
    pub options: ServeOptions,

    /// Where MLX computes: auto, cpu or gpu.
    #[arg(long, value_parser = mlx_device, conflicts_with = "device")]
    pub mlx_device: Option<Device>,

    /// Describe a whole step's graph before any of it is computed; otherwise layer by layer.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub mlx_lazy_eval: bool,
}

fn mlx_device(s: &str) -> Result<Device, String> {
    match s {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "gpu" => Ok(Device::Gpu),
        _ => Err("expected auto, cpu or gpu".into()),
    }
}

/// An origin as browsers send it: anything else would never be equal to one.
fn origin(s: &str) -> Result<String, String> {
    if s.contains('*') {
        return Err(
            "every page that this machine's browser opens could ask; name each origin that may, as \
             --cors-origin https://app.example --cors-origin http://localhost:3000"
                .into(),
        );
    }
    let place = s.split_once("://").filter(|(scheme, _)| !scheme.is_empty());
    let good = place.is_some_and(|(_, host)| {
        !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"/?#@".contains(&b))
    });
    match good {
        true => Ok(s.to_owned()),
        false => Err(
            "expected scheme://host or scheme://host:port, without a path, as https://app.example"
                .into(),
        ),
    }
}

/// Fewest bytes of KV caches for a model where only the memory of all models is given.
const LEAST_KV: usize = 64 << 20;

impl ServeOptions {
    /// The configuration of each of so many models' engines.
    pub fn engine(&self, models: usize) -> EngineConfig {
        let config = self.engine.config();
        let part = || self.models_memory.map(|all| (all / 8).max(LEAST_KV));
        EngineConfig {
            max_sequences: self.max_sequences.into(),
            max_queue: self.max_queue.into(),
            kv_memory: config.kv_memory.or_else(part),
            memory_share: self
                .max_models
                .map_or(models, |most| models.min(most.into())),
            ..config
        }
    }

    /// What all models may take together.
    pub fn limits(&self, engine: &EngineConfig) -> Limits {
        let memory = self.models_memory.map(|bytes| bytes as u64);
        let kv = memory.and(engine.kv_memory).unwrap_or(0);
        Limits {
            models: self.max_models.map(usize::from),
            memory,
            kv: kv as u64,
        }
    }
}

/// What is served, where, and to whom.
#[derive(Debug, Args)]
pub struct ServeOptions {
    /// A GGUF file, a directory, or a Hugging Face id (`org/name`, `org/name:Q4_K_M`,
    /// `org/name@revision`), or NAME=MODEL to say what clients call it; without it the small starter
    /// model. May be given several times: the first is loaded at once, the others when they are asked for.
    #[arg(
        id = "model",
        short = 'm',
        long = "model",
        value_name = "[NAME=]MODEL",
        env = "BIPLANE_MODEL"
    )]
    pub models: Vec<String>,

    /// Serve the GGUF files and model directories below this folder, too, by their names; loaded when
    /// they are asked for. May be given several times.
    #[arg(long, value_name = "DIR", env = "BIPLANE_MODELS_DIR")]
    pub models_dir: Vec<PathBuf>,

    /// Load nothing before it is asked for.
    #[arg(long)]
    pub lazy: bool,

    /// Unload a model when nobody has asked for it for so many seconds.
    #[arg(long, value_name = "SECONDS", env = "BIPLANE_IDLE_UNLOAD", value_parser = clap::value_parser!(u32).range(1..))]
    pub idle_unload: Option<u32>,

    /// Most models loaded at once; the one that rests longest goes for another.
    #[arg(long, value_name = "N", env = "BIPLANE_MAX_MODELS", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_models: Option<u16>,

    /// Memory for the weights and KV caches of all loaded models, as 8G; the one that rests longest goes
    /// for another. Each counts with --kv-memory, an eighth of this by default.
    #[arg(long, value_name = "SIZE", value_parser = size, env = "BIPLANE_MODELS_MEMORY")]
    pub models_memory: Option<usize>,

    #[command(flatten)]
    pub model: LoadArgs,

    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub mcp: ServerMcpArgs,

    /// Most answers computed at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub max_sequences: u16,

    /// Most requests that wait; more are answered with 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_queue: u16,

    /// A chat template (Jinja) to use instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// What clients call the model; its file's name or id by default.
    #[arg(long, value_name = "NAME", env = "BIPLANE_MODEL_NAME")]
    pub model_name: Option<String>,

    /// The address to listen at; others than this machine's own need --api-key or --insecure.
    #[arg(long, default_value = "127.0.0.1", env = "BIPLANE_HOST")]
    pub host: String,

    /// The port to listen at; 0 for any that is free.
    #[arg(long, default_value_t = 8080, env = "BIPLANE_PORT")]
    pub port: u16,

    /// What requests must send as `Authorization: Bearer KEY`.
    #[arg(
        long,
        value_name = "KEY",
        env = "BIPLANE_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,

    /// Serve others than this machine without a key.
    #[arg(long)]
    pub insecure: bool,

    /// Let pages of this origin ask, as `https://app.example`; may be given several times.
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    pub cors_origin: Vec<String>,
}

#[cfg(test)]
mod tests {
    use biplane::{Device, IsqType};
    use clap::Parser;

    use crate::cli::{Cli, Command};

    #[test]
    fn mlx_takes_what_its_users_write() {
        let line = "biplane --isq Q4K mlx -m org/name --port 1234 --mlx-device gpu --mlx-lazy-eval false \
                    --enable-tools --mcp-port 3000";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Mlx(args) = cli.command_line().unwrap() else {
            panic!("another command");
        };
        assert_eq!(args.options.model.isq.isq, Some(IsqType::Q4K));
        assert_eq!(args.options.port, 1234);
        assert_eq!(args.mlx_device, Some(Device::Gpu));
        assert!(!args.mlx_lazy_eval && args.options.mcp.enable_tools);
        assert_eq!(args.options.mcp.mcp_port, Some(3000));
    }

    #[test]
    fn origins_are_named_one_by_one() {
        let options = |origin: &str| -> Result<Vec<String>, String> {
            let cli = Cli::try_parse_from(["biplane", "serve", "--cors-origin", origin])
                .map_err(|e| e.to_string())?;
            match cli.command_line() {
                Ok(Command::Serve(args)) => Ok(args.options.cors_origin),
                _ => panic!("another command"),
            }
        };
        for good in [
            "https://app.example",
            "http://localhost:3000",
            "tauri://[::1]",
        ] {
            assert_eq!(options(good).unwrap(), [good]);
        }
        for bad in ["*", "https://*.example"] {
            let error = options(bad).unwrap_err();
            assert!(error.contains("name each origin"), "{error}");
        }
        for bad in [
            "",
            "null",
            "app.example",
            "https://",
            "https://app.example/",
            "://x",
        ] {
            let error = options(bad).unwrap_err();
            assert!(error.contains("without a path"), "{error}");
        }
    }

    #[test]
    fn isq_before_the_command_is_for_servers() {
        let command = |line: &str| {
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            cli.command_line()
        };
        assert!(command("biplane --isq Q4K serve").is_ok());
        assert!(command("biplane --isq Q4K serve --isq Q5K").is_err());
        assert!(command("biplane --isq Q4K run hello").is_err());
    }
}
