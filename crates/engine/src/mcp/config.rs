//! Which MCP servers to use, and how. Read from both shapes that people have: `mcpServers` by name,
//! and mistral.rs's list of `servers`.

mod read;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// MCP servers whose tools a model is given. None by default.
///
/// ```
/// let config = biplane::mcp::McpConfig::parse(
///     r#"{"mcpServers": {"files": {"command": "mcp-files", "args": ["--root", "."]}}}"#,
/// )?;
/// assert_eq!(config.servers[0].name, "files");
/// # Ok::<(), biplane::mcp::McpConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct McpConfig {
    /// The servers.
    pub servers: Vec<McpServerConfig>,
    /// How long one call may take.
    pub tool_timeout: Duration,
    /// Most calls at once, of all servers together.
    pub max_concurrent_calls: usize,
    /// Whether the servers' tools are offered to the model. Without it they are connected only, for
    /// [`McpClient::call_tool`](super::McpClient::call_tool).
    pub auto_register_tools: bool,
}

impl Default for McpConfig {
    fn default() -> Self {
        McpConfig {
            servers: Vec::new(),
            tool_timeout: Duration::from_secs(30),
            max_concurrent_calls: 10,
            auto_register_tools: true,
        }
    }
}

/// An MCP server.
#[derive(Clone, Debug, PartialEq)]
pub struct McpServerConfig {
    /// What it is called here.
    pub name: String,
    /// Where it is.
    pub source: McpSource,
    /// Put before its tools' names, with `_` between. Without one, a name that is taken already gets
    /// the server's name before it.
    pub tool_prefix: Option<String>,
    /// Whether it is used at all.
    pub enabled: bool,
}

impl McpServerConfig {
    /// A server under this name.
    pub fn new(name: impl Into<String>, source: McpSource) -> Self {
        McpServerConfig {
            name: name.into(),
            source,
            tool_prefix: None,
            enabled: true,
        }
    }
}

/// Where an MCP server is.
#[derive(Clone, PartialEq)]
pub enum McpSource {
    /// A program that is started, and spoken to through its standard input and output.
    Process {
        /// The program.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Environment variables, besides this program's own.
        env: BTreeMap<String, String>,
        /// The folder it runs in.
        work_dir: Option<PathBuf>,
    },
    /// A server of MCP's streamable HTTP transport.
    Http {
        /// Its address.
        url: String,
        /// Sent with every request.
        headers: BTreeMap<String, String>,
        /// Sent as `Authorization: Bearer ..`.
        bearer_token: Option<String>,
        /// How long a call may take, in place of [`McpConfig::tool_timeout`].
        timeout: Option<Duration>,
    },
}

impl McpSource {
    /// A program.
    pub fn process(
        command: impl Into<String>,
        args: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        McpSource::Process {
            command: command.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            work_dir: None,
        }
    }

    /// An address.
    pub fn http(url: impl Into<String>) -> Self {
        McpSource::Http {
            url: url.into(),
            headers: BTreeMap::new(),
            bearer_token: None,
            timeout: None,
        }
    }
}

/// Without values that may be secret.
impl std::fmt::Debug for McpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process {
                command,
                args,
                env,
                work_dir,
            } => f
                .debug_struct("Process")
                .field("command", command)
                .field("args", &args.len())
                .field("env", &env.keys())
                .field("work_dir", work_dir)
                .finish(),
            Self::Http {
                url,
                headers,
                bearer_token,
                timeout,
            } => f
                .debug_struct("Http")
                .field("url", url)
                .field("headers", &headers.keys())
                .field("bearer_token", &bearer_token.is_some())
                .field("timeout", timeout)
                .finish(),
        }
    }
}

/// A configuration of MCP servers that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum McpConfigError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is wrong.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<McpConfigError>,
    },
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A field cannot be used.
    #[error("{place}: {reason}")]
    Field {
        /// The field, and the server it belongs to.
        place: String,
        /// Why, and what is allowed.
        reason: String,
    },
}
