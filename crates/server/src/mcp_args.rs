//! Arguments about MCP.

use std::path::PathBuf;

use anyhow::Context;
use biplane::{McpClient, McpConfig, ModelBuilder, ToolConfig, mcp::McpSource};
use clap::Args;

use crate::{
    cli::{BackendArg, ModelArgs},
    engine_args::EngineArgs,
    http::Mcp,
    report,
};

/// Which tools are run for the model.
#[derive(Debug, Args)]
pub struct ToolArgs {
    /// MCP servers whose tools are run for the model: a JSON file with mcpServers, as other programs
    /// have it, or mistral.rs's servers.
    #[arg(long, value_name = "FILE", env = "MCP_CONFIG_PATH")]
    pub mcp_config: Option<PathBuf>,

    /// Most times that tools are run for one answer.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub max_tool_rounds: u16,
}

impl ToolArgs {
    /// Begins to connect the servers; none without a configuration.
    pub fn connect(&self) -> anyhow::Result<Option<(McpClient, ToolConfig)>> {
        let Some(file) = &self.mcp_config else {
            return Ok(None);
        };
        let config = McpConfig::read(file).context("--mcp-config (or MCP_CONFIG_PATH)")?;
        let own = config.servers.iter().map(|server| match &server.source {
            McpSource::Http { timeout, .. } => timeout.unwrap_or_default(),
            McpSource::Process { .. } => std::time::Duration::ZERO,
        });
        let tools = ToolConfig {
            max_rounds: self.max_tool_rounds.into(),
            // The connection's own limit comes first: it tells the server that nobody waits.
            timeout: own.fold(config.tool_timeout, Ord::max) + std::time::Duration::from_secs(5),
            parallelism: config.max_concurrent_calls,
            show_calls: false,
            ..ToolConfig::default()
        };
        let client = McpClient::start(config).with_context(|| file.display().to_string())?;
        Ok(Some((client, tools)))
    }
}

/// MCP of `biplane serve` and `biplane mlx`.
#[derive(Debug, Args)]
pub struct ServerMcpArgs {
    #[command(flatten)]
    pub tools: ToolArgs,

    /// Run tools of MCP servers for the model, which --mcp-config does by itself. Tools that requests
    /// bring need no option: their calls are always returned.
    #[arg(long)]
    pub enable_tools: bool,

    /// Serve MCP's clients at this port too; /mcp at the server's own port always does.
    #[arg(long, value_name = "PORT")]
    pub mcp_port: Option<u16>,
}

impl ServerMcpArgs {
    /// Begins to connect the servers, and notes what the server's own MCP side needs.
    pub fn start(&self, mcp: &Mcp, builder: ModelBuilder) -> anyhow::Result<()> {
        mcp.verify_with(builder);
        match self.tools.connect()? {
            Some((client, config)) => mcp.run_tools(client, config),
            None if self.enable_tools => report::note(
                "--enable-tools runs tools of MCP servers, and none are named: add --mcp-config FILE. \
                 Tools that requests bring work as ever; their calls are returned",
            ),
            None => {}
        }
        Ok(())
    }
}

/// Arguments of `biplane mcp`.
#[derive(Debug, Args)]
pub struct McpArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub backend: BackendArg,

    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub tools: ToolArgs,

    /// A chat template (Jinja) to use instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// What clients call the model; its file's name or id by default.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
}
