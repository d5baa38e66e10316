//! `biplane doctor`

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use biplane::{
    BackendKind, Device, McpClient, McpConfig, hub,
    mcp::{McpServerState, McpServerStatus},
    memory,
};
use clap::{Args, CommandFactory};
use serde::Serialize;

use crate::{cli::Cli, config::Config, report};

/// Arguments of `biplane doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A JSON object instead of lines.
    #[arg(long)]
    pub json: bool,

    /// MCP servers to connect to once: a JSON file as `biplane serve` takes.
    #[arg(long, value_name = "FILE", env = "MCP_CONFIG_PATH")]
    pub mcp_config: Option<PathBuf>,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Something does not work that is not always needed.
    Warning,
    /// Something must be mended.
    Broken,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    version: &'static str,
    checks: Vec<Check>,
}

/// Looks at what a model needs to run.
pub fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut checks = Vec::new();
    let mut add = |name, (state, found)| checks.push(Check { name, state, found });
    add(
        "system",
        (
            State::Ok,
            format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
        ),
    );
    for kind in BackendKind::ALL {
        add(kind.name(), backend(kind));
    }
    add("mlx library", mlx_library());
    add("processor", processor());
    add("kernels", kernels());
    add("threads", threads());
    add("memory", free_memory());
    let options = hub::Options::default();
    add(
        "hub cache",
        folder(&options.hub_cache(), || {
            let models = hub::stored(&options);
            let bytes = models.iter().map(|model| model.bytes).sum();
            format!(", {} models, {}", models.len(), report::bytes(bytes))
        }),
    );
    add(
        "own cache",
        match hub::cache_dir() {
            Ok(dir) => folder(&dir, || match hub::starter_file() {
                Some(_) => ", has the starter model".to_owned(),
                None => ", no starter model yet".to_owned(),
            }),
            Err(error) => (State::Broken, error.to_string()),
        },
    );
    add("hub", endpoint(&options));
    add("configuration", configuration());
    add("log filter", log_filter());
    for found in args.mcp_config.iter().flat_map(|file| mcp_servers(file)) {
        add("mcp server", found);
    }
    let ok = checks.iter().all(|check| check.state != State::Broken);
    let report = Report {
        ok,
        version: env!("CARGO_PKG_VERSION"),
        checks,
    };
    report::data(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&report)?),
        false => lines(&report)?,
    })?;
    Ok(ExitCode::from(u8::from(!ok)))
}

/// How each configured MCP server stands, after one attempt.
fn mcp_servers(file: &Path) -> Vec<(State, String)> {
    let connected = McpConfig::read(file)
        .map_err(anyhow::Error::from)
        .and_then(|config| Ok(futures::executor::block_on(McpClient::connect(config))?));
    let client = match connected {
        Ok(client) => client,
        Err(error) => return vec![(State::Broken, format!("{}: {error}", file.display()))],
    };
    client.servers().into_iter().map(mcp_server).collect()
}

fn mcp_server(server: McpServerStatus) -> (State, String) {
    let (state, found) = match server.state {
        McpServerState::Ready { tools } => {
            let state = match server.left_out.is_empty() {
                true => State::Ok,
                false => State::Warning,
            };
            (state, format!("{} tools", tools.len()))
        }
        McpServerState::Failed { reason } => (State::Broken, reason),
        McpServerState::Connecting => (State::Broken, "no answer yet".to_owned()),
    };
    let left_out: String = server
        .left_out
        .iter()
        .map(|why| format!("; {why}"))
        .collect();
    (state, format!("{}: {found}{left_out}", server.name))
}

fn lines(report: &Report) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    writeln!(out, "biplane {}", report.version)?;
    for check in &report.checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Broken => "BROKEN",
        };
        writeln!(out, "{state:8} {:14} {}", check.name, check.found)?;
    }
    Ok(out)
}

fn backend(kind: BackendKind) -> (State, String) {
    if !kind.is_compiled() {
        // One is enough; without any, nothing runs.
        let state = match BackendKind::compiled().next() {
            Some(_) => State::Ok,
            None => State::Broken,
        };
        return (
            state,
            format!("not in this build; --features {kind} brings it"),
        );
    }
    match kind.open_device(Device::Auto) {
        Ok(device) => {
            let threads = biplane::threads(kind);
            (
                State::Ok,
                format!("in this build, computes on {device}, {threads} threads on the processor"),
            )
        }
        Err(error) => (State::Broken, error.to_string()),
    }
}

/// The library that this process has loaded: Linux says which.
fn mlx_library() -> (State, String) {
    if !BackendKind::Mlx.is_compiled() {
        return (State::Ok, "not needed by this build".into());
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let found = maps.lines().find_map(|line| {
        let path = line.get(line.find('/')?..)?;
        path.contains("libmlx").then(|| path.to_owned())
    });
    (
        State::Ok,
        found.unwrap_or_else(|| "linked into this program".into()),
    )
}

fn processor() -> (State, String) {
    let mut found: Vec<&str> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx-vnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512-vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512-bf16", is_x86_feature_detected!("avx512bf16")),
    ] {
        if there {
            found.push(name);
        }
    }
    #[cfg(target_arch = "aarch64")]
    for (name, there) in [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        (
            "dotprod",
            std::arch::is_aarch64_feature_detected!("dotprod"),
        ),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ] {
        if there {
            found.push(name);
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (
        State::Ok,
        format!("{cores} logical cores; {}", found.join(" ")),
    )
}

fn kernels() -> (State, String) {
    let Some(kernels) = biplane::kernels() else {
        return (State::Ok, "MLX's own".into());
    };
    let wanted = std::env::var("BIPLANE_CPU").ok();
    let all = kernels.available.join(", ");
    match wanted {
        Some(wanted) if wanted != kernels.chosen => (
            State::Warning,
            format!(
                "{}; BIPLANE_CPU={wanted} is not available here: {all}",
                kernels.chosen
            ),
        ),
        _ => (State::Ok, format!("{} (of {all})", kernels.chosen)),
    }
}

fn threads() -> (State, String) {
    match std::env::var("BIPLANE_THREADS") {
        Err(_) => (State::Ok, "one for each physical core".into()),
        Ok(text) => match text.parse::<u16>() {
            Ok(1..=1024) => (State::Ok, format!("{text} by BIPLANE_THREADS")),
            _ => (
                State::Broken,
                format!("BIPLANE_THREADS={text} is none of 1 to 1024"),
            ),
        },
    }
}

fn free_memory() -> (State, String) {
    match memory::available_bytes() {
        // Not even the starter model runs well in less.
        Some(bytes) if bytes < 256 << 20 => (
            State::Warning,
            format!("only {} are free", report::bytes(bytes)),
        ),
        Some(bytes) => (State::Ok, format!("{} are free", report::bytes(bytes))),
        None => (
            State::Warning,
            "the system does not say how much is free".into(),
        ),
    }
}

/// A folder that downloads are written to; it may not be there yet.
fn folder(path: &Path, more: impl FnOnce() -> String) -> (State, String) {
    let name = path.display();
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => (State::Broken, format!("{name} is no folder")),
        Ok(_) => {
            let probe = path.join(format!(".biplane-doctor-{}", std::process::id()));
            let written = std::fs::write(&probe, "");
            let _ = std::fs::remove_file(&probe);
            match written {
                Ok(()) => (State::Ok, format!("{name}{}", more())),
                Err(error) => (State::Broken, format!("{name} cannot be written: {error}")),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            (State::Ok, format!("{name}, not there yet"))
        }
        Err(error) => (State::Broken, format!("{name}: {error}")),
    }
}

fn endpoint(options: &hub::Options) -> (State, String) {
    match hub::reach(options) {
        Err(error) => (State::Broken, error.to_string()),
        Ok(reach) => {
            let token = if reach.has_token {
                "a token"
            } else {
                "no token"
            };
            let at = format!("{} ({token})", reach.endpoint);
            match (reach.offline, reach.trouble) {
                (true, _) => (State::Ok, format!("{at} is not asked: HF_HUB_OFFLINE")),
                (false, None) => (State::Ok, format!("{at} answers")),
                (false, Some(why)) => (
                    State::Warning,
                    format!("{at} does not answer: {why}; models that are here still run"),
                ),
            }
        }
    }
}

fn configuration() -> (State, String) {
    let read = Config::find().and_then(|config| config.check(&Cli::command()).map(|()| config));
    match read {
        Ok(config) => (
            State::Ok,
            match config.path {
                Some(path) => path.display().to_string(),
                None => "no file; flags, environment and defaults".into(),
            },
        ),
        Err(error) => (State::Broken, format!("{error:#}")),
    }
}

fn log_filter() -> (State, String) {
    match std::env::var("BIPLANE_LOG") {
        Err(_) => (State::Ok, "by --verbose".into()),
        Ok(text) => match text.parse::<tracing_subscriber::EnvFilter>() {
            Ok(_) => (State::Ok, format!("BIPLANE_LOG={text}")),
            Err(error) => (State::Broken, format!("BIPLANE_LOG={text}: {error}")),
        },
    }
}
