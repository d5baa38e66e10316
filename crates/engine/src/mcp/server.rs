//! The model as an MCP server.

mod handler;

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use rmcp::{
    ServiceExt,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio::net::TcpListener;

use super::McpError;
use crate::Model;
use handler::Handler;

/// A model for other programs, by MCP: the tools `chat`, `complete`, `embed`, `tokenize` and
/// `list_models`, and the model's card as a resource.
///
/// ```no_run
/// # async fn example(model: biplane::Model) -> Result<(), biplane::mcp::McpError> {
/// let serving = biplane::McpServer::new(model).start().await?;
/// println!("{}", serving.url());
/// serving.wait().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct McpServer {
    handler: Handler,
    address: String,
    api_key: Option<ApiKey>,
    hosts: Vec<String>,
    origins: Vec<String>,
}

#[derive(Clone)]
struct ApiKey(String);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl McpServer {
    /// A server for this machine only, at a free port.
    pub fn new(model: Model) -> Self {
        McpServer {
            handler: Handler::new(model, "biplane".into()),
            address: "127.0.0.1:0".into(),
            api_key: None,
            hosts: Vec::new(),
            origins: Vec::new(),
        }
    }

    /// What the model is called.
    pub fn with_model_name(mut self, name: impl Into<String>) -> Self {
        self.handler.name = name.into();
        self
    }

    /// Where to serve, as `127.0.0.1:8808`. Other machines reach it at an address of this one only
    /// with [`with_allowed_hosts`](Self::with_allowed_hosts).
    pub fn with_address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Refuses requests without `Authorization: Bearer KEY`.
    pub fn with_api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(ApiKey(key.into()));
        self
    }

    /// Names that requests may call this machine by, besides `localhost`: others are refused, since
    /// they may come from a web page that tricks a browser.
    pub fn with_allowed_hosts(
        mut self,
        hosts: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.hosts.extend(hosts.into_iter().map(Into::into));
        self
    }

    /// Web pages that may send requests, as `https://example.org`. None by default.
    pub fn with_allowed_origins(
        mut self,
        origins: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.origins.extend(origins.into_iter().map(Into::into));
        self
    }

    /// Serves by streamable HTTP at `/mcp`, on the current Tokio runtime, until what this gives is
    /// dropped.
    ///
    /// # Errors
    /// [`McpError::Address`].
    pub async fn start(self) -> Result<McpServing, McpError> {
        let wrong = |reason: String| McpError::Address {
            address: self.address.clone(),
            reason,
        };
        let bound = TcpListener::bind(&self.address).await;
        let listener = bound.map_err(|e| wrong(e.to_string()))?;
        let address = listener.local_addr().map_err(|e| wrong(e.to_string()))?;
        if !address.ip().is_loopback() && self.hosts.is_empty() {
            return Err(wrong(
                "other machines can reach it, but none may call it: name it by with_allowed_hosts"
                    .into(),
            ));
        }
        let own = ["localhost", "127.0.0.1", "::1"].map(String::from);
        let config = StreamableHttpServerConfig::default()
            .with_allowed_hosts(own.into_iter().chain(self.hosts))
            .with_allowed_origins(self.origins)
            .enforce_origin_validation();
        let handler = self.handler;
        let service = StreamableHttpService::new(
            move || Ok(handler.clone()),
            LocalSessionManager::default().into(),
            config,
        );
        let mut router = Router::new().route_service("/mcp", service);
        if let Some(key) = self.api_key {
            router = router.layer(middleware::from_fn_with_state(key, check_key));
        }
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!("the MCP server ended: {error}");
            }
        });
        Ok(McpServing { address, task })
    }

    /// Serves on standard input and output until the input ends. Nothing else may write to standard
    /// output meanwhile.
    ///
    /// # Errors
    /// [`McpError::Server`] when the other side does not speak MCP.
    pub async fn serve_stdio(self) -> Result<(), McpError> {
        let failed = |reason: String| McpError::Server {
            server: "on standard input and output".into(),
            reason,
        };
        let served = self.handler.serve(rmcp::transport::stdio()).await;
        let service = served.map_err(|e| failed(e.to_string()))?;
        let ended = service.waiting().await;
        ended.map_err(|e| failed(e.to_string())).map(drop)
    }
}

async fn check_key(State(key): State<ApiKey>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let right = given.is_some_and(|given| same(given, key.0.as_bytes()));
    match right {
        true => next.run(request).await,
        false => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (
                StatusCode::UNAUTHORIZED,
                challenge,
                "a right API key is needed",
            )
                .into_response()
        }
    }
}

/// Compares in the same time whatever differs.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// A server at work; it stops when this is dropped.
#[derive(Debug)]
pub struct McpServing {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl McpServing {
    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients are to be given.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Waits until it stops by itself.
    pub async fn wait(mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for McpServing {
    fn drop(&mut self) {
        self.task.abort();
    }
}
