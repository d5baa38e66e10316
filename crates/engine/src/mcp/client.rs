//! All MCP servers of a configuration.

use std::sync::Arc;

use rmcp::model::{GetPromptRequestParams, Prompt, ReadResourceRequestParams, Resource};
use serde_json::Value;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};

use super::{
    McpConfig, McpConfigError,
    connection::Connection,
    register::Register,
    result::{resource_words, words},
};
use crate::tools::{ToolBox, ToolOutcome};

/// How an MCP server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct McpServerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Whether it serves.
    pub state: McpServerState,
    /// Tools that cannot be used, and why.
    pub left_out: Vec<String>,
    /// How often it was connected.
    pub connections: usize,
    /// The protocol that it was last spoken to in, as `2025-11-25`.
    pub protocol: Option<String>,
    /// Why it last failed, also where it serves again.
    pub last_error: Option<String>,
}

impl McpServerStatus {
    pub(super) fn is_settled(&self) -> bool {
        self.state != McpServerState::Connecting
    }
}

/// Whether an MCP server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum McpServerState {
    /// Not yet.
    Connecting,
    /// It does.
    Ready {
        /// Its tools, by the names the model knows them by.
        tools: Vec<String>,
    },
    /// It does not; it is tried again.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What can go wrong with MCP.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum McpError {
    /// The configuration.
    #[error("MCP: {0}")]
    Config(#[from] McpConfigError),
    /// The system gives no threads.
    #[error("MCP: no thread can be started: {0}")]
    Thread(std::io::Error),
    /// There is no such server.
    #[error("there is no MCP server {0:?}")]
    NoServer(String),
    /// A server did not do what was asked.
    #[error("the MCP server {server:?}: {reason}")]
    Server {
        /// Its name.
        server: String,
        /// Why.
        reason: String,
    },
    /// The address that is to be served at cannot be.
    #[error("MCP: {address} cannot be served at: {reason}")]
    Address {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
}

/// MCP servers, connected. Cheap to clone; the connections, and the programs behind them, end with
/// the last clone.
#[derive(Clone)]
pub struct McpClient {
    inner: Arc<Inner>,
}

struct Inner {
    connections: Vec<Arc<Connection>>,
    tools: ToolBox,
    runtime: Option<Runtime>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl McpClient {
    /// Connects to all servers, each for itself: one that fails is
    /// [`Failed`](McpServerState::Failed), and tried again from time to time.
    ///
    /// # Errors
    /// [`McpError::Config`] for what no server can be, and [`McpError::Thread`].
    pub async fn connect(config: McpConfig) -> Result<Self, McpError> {
        let client = Self::start(config)?;
        client.settled().await;
        Ok(client)
    }

    /// Begins to connect: tools come as servers become ready.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn start(config: McpConfig) -> Result<Self, McpError> {
        Self::start_with(config, ToolBox::new())
    }

    /// Begins to connect, with the tools to be put there.
    pub(crate) fn start_with(config: McpConfig, tools: ToolBox) -> Result<Self, McpError> {
        config.validate()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("biplane-mcp")
            .build()
            .map_err(McpError::Thread)?;
        let most = config.max_concurrent_calls.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(most));
        let mut connections: Vec<Arc<Connection>> = Vec::new();
        for server in config.servers.iter().filter(|server| server.enabled) {
            let connection = Arc::new(Connection::new(
                server.clone(),
                &config,
                Arc::clone(&permits),
                runtime.handle().clone(),
            ));
            let after = connections.iter().map(|c| c.status.subscribe()).collect();
            let target = config.auto_register_tools.then(|| tools.clone());
            let register = Register::new(target, &connection);
            runtime.spawn(Arc::clone(&connection).run(register, after));
            connections.push(connection);
        }
        let inner = Inner {
            connections,
            tools,
            runtime: Some(runtime),
        };
        Ok(McpClient {
            inner: Arc::new(inner),
        })
    }

    /// Waits until each server is ready or has failed once.
    pub async fn settled(&self) {
        for connection in &self.inner.connections {
            let mut status = connection.status.subscribe();
            let _ = status.wait_for(McpServerStatus::is_settled).await;
        }
    }

    /// How each server is.
    pub fn servers(&self) -> Vec<McpServerStatus> {
        let connections = self.inner.connections.iter();
        connections.map(|c| c.status.borrow().clone()).collect()
    }

    /// The servers' tools, for a [`ToolLoop`](crate::ToolLoop).
    pub fn tools(&self) -> &ToolBox {
        &self.inner.tools
    }

    /// Waits until a server is as `f` wants it.
    ///
    /// # Errors
    /// [`McpError::NoServer`].
    pub async fn wait_for(
        &self,
        server: &str,
        f: impl FnMut(&McpServerStatus) -> bool,
    ) -> Result<McpServerStatus, McpError> {
        let mut status = self.find(server)?.status.subscribe();
        let found = status.wait_for(f).await;
        let found = found.map_err(|_| McpError::NoServer(server.to_owned()))?;
        Ok(found.clone())
    }

    /// Calls a server's tool by the name that the server gives it.
    ///
    /// # Errors
    /// [`McpError::NoServer`]; what went wrong in the call is in the outcome.
    pub async fn call_tool(
        &self,
        server: &str,
        tool: &str,
        arguments: Value,
    ) -> Result<ToolOutcome, McpError> {
        let connection = self.find(server)?;
        Ok(connection.call(tool.to_owned(), arguments).await)
    }

    /// A server's resources: addresses and names.
    ///
    /// # Errors
    /// [`McpError::NoServer`], [`McpError::Server`].
    pub async fn list_resources(&self, server: &str) -> Result<Vec<(String, String)>, McpError> {
        let listed = self
            .find(server)?
            .ask(async |peer| peer.list_all_resources().await)
            .await;
        let named = |r: Resource| (r.uri, r.name);
        let listed = listed.map_err(|reason| failed(server, reason))?;
        Ok(listed.into_iter().map(named).collect())
    }

    /// A resource's text.
    ///
    /// # Errors
    /// [`McpError::NoServer`], [`McpError::Server`].
    pub async fn read_resource(&self, server: &str, uri: &str) -> Result<String, McpError> {
        let request = ReadResourceRequestParams::new(uri);
        let read = self
            .find(server)?
            .ask(async move |peer| peer.read_resource(request).await)
            .await
            .map_err(|reason| failed(server, reason))?;
        let parts: Vec<String> = read.contents.iter().map(resource_words).collect();
        Ok(parts.join("\n"))
    }

    /// A server's prompts: names and descriptions.
    ///
    /// # Errors
    /// [`McpError::NoServer`], [`McpError::Server`].
    pub async fn list_prompts(
        &self,
        server: &str,
    ) -> Result<Vec<(String, Option<String>)>, McpError> {
        let listed = self
            .find(server)?
            .ask(async |peer| peer.list_all_prompts().await)
            .await;
        let named = |p: Prompt| (p.name, p.description);
        let listed = listed.map_err(|reason| failed(server, reason))?;
        Ok(listed.into_iter().map(named).collect())
    }

    /// A prompt's messages, for a conversation.
    ///
    /// # Errors
    /// [`McpError::NoServer`], [`McpError::Server`].
    pub async fn get_prompt(
        &self,
        server: &str,
        prompt: &str,
        arguments: serde_json::Map<String, Value>,
    ) -> Result<Vec<crate::Message>, McpError> {
        let request = GetPromptRequestParams::new(prompt).with_arguments(arguments);
        let got = self
            .find(server)?
            .ask(async move |peer| peer.get_prompt(request).await)
            .await
            .map_err(|reason| failed(server, reason))?;
        let message = |m: rmcp::model::PromptMessage| {
            let role = match m.role {
                rmcp::model::Role::User => "user",
                rmcp::model::Role::Assistant => "assistant",
            };
            crate::Message::new(role, words(&m.content))
        };
        Ok(got.messages.into_iter().map(message).collect())
    }

    fn find(&self, server: &str) -> Result<Arc<Connection>, McpError> {
        let mut connections = self.inner.connections.iter();
        let found = connections.find(|c| c.config.name == server);
        found
            .cloned()
            .ok_or_else(|| McpError::NoServer(server.to_owned()))
    }
}

fn failed(server: &str, reason: String) -> McpError {
    McpError::Server {
        server: server.to_owned(),
        reason,
    }
}

impl std::fmt::Debug for McpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.servers()).finish()
    }
}
