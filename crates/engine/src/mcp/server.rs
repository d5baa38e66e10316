//! The model as an MCP server.

mod handler;
mod models;
mod session;
mod tools;

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use super::McpError;
use crate::{Model, ModelBuilder};
use handler::Handler;
use models::One;
pub use models::{McpModel, McpModels};
use tools::Tools;

/// How long a session is kept in which nothing is said, be it that a call takes that long.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// A model for other programs, by MCP: the tools `chat`, `complete`, `embed`, `tokenize`,
/// `list_models` and `verify_backends`, the model's card as a resource, and its chat template as a
/// prompt.
///
/// ```no_run
/// # async fn example(model: biplane::Model) -> Result<(), biplane::mcp::McpError> {
/// let serving = biplane::McpServer::new(model).start().await?;
/// println!("{}", serving.url());
/// serving.wait().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct McpServer {
    models: Models,
    builder: Option<ModelBuilder>,
    checks_place: bool,
    address: String,
    api_key: Option<ApiKey>,
    hosts: Vec<String>,
    origins: Vec<String>,
}

#[derive(Clone)]
struct ApiKey(String);

#[derive(Clone)]
enum Models {
    One(Model, String),
    Many(Arc<dyn McpModels>),
}

/// Without the key.
impl std::fmt::Debug for McpServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("McpServer")
            .field("address", &self.address)
            .field("hosts", &self.hosts)
            .field("origins", &self.origins)
            .finish_non_exhaustive()
    }
}

impl McpServer {
    /// A server for this machine only, at a free port.
    pub fn new(model: Model) -> Self {
        Self::of(Models::One(model, "biplane".into()))
    }

    /// As [`new`](Self::new), of models that may come and go.
    pub fn of_models(models: Arc<dyn McpModels>) -> Self {
        Self::of(Models::Many(models))
    }

    fn of(models: Models) -> Self {
        McpServer {
            models,
            builder: None,
            checks_place: true,
            address: "127.0.0.1:0".into(),
            api_key: None,
            hosts: Vec::new(),
            origins: Vec::new(),
        }
    }

    /// What the model is called; models of [`of_models`](Self::of_models) say it themselves.
    pub fn with_model_name(mut self, name: impl Into<String>) -> Self {
        if let Models::One(_, own) = &mut self.models {
            *own = name.into();
        }
        self
    }

    /// What loads the model anew on each backend, for the tool `verify_backends`.
    pub fn with_verification(mut self, builder: ModelBuilder) -> Self {
        self.builder = Some(builder);
        self
    }

    /// Leaves it to whoever uses [`into_router`](Self::into_router) to check requests' `Host` and
    /// `Origin`.
    pub fn without_place_checks(mut self) -> Self {
        self.checks_place = false;
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
        let router = self.into_router(std::future::pending());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!("the MCP server ended: {error}");
            }
        });
        Ok(McpServing { address, task })
    }

    /// The route `/mcp`, for a server that is there already. When `closed` ends, calls under way may
    /// end too, and then all sessions do. Needs a Tokio runtime.
    pub fn into_router(self, closed: impl Future<Output = ()> + Send + 'static) -> Router {
        let own = ["localhost", "127.0.0.1", "::1"].map(String::from);
        let config = StreamableHttpServerConfig::default();
        let config = match self.checks_place {
            true => config
                .with_allowed_hosts(own.into_iter().chain(self.hosts))
                .with_allowed_origins(self.origins)
                .enforce_origin_validation(),
            false => config.disable_allowed_hosts().disable_allowed_origins(),
        };
        let end = config.cancellation_token.clone();
        let active = watch::Sender::new(0);
        let mut calls = active.subscribe();
        tokio::spawn(async move {
            closed.await;
            let _ = calls.wait_for(|n| *n == 0).await;
            end.cancel();
        });
        let tools = tools_of(self.models, self.builder);
        let mut sessions = LocalSessionManager::default();
        sessions.session_config.keep_alive = Some(IDLE);
        let service = StreamableHttpService::new(
            move || Ok(Handler::new(&tools, &active)),
            sessions.into(),
            config,
        );
        let router = Router::new().route_service("/mcp", service);
        match self.api_key {
            Some(key) => router.layer(middleware::from_fn_with_state(key, check_key)),
            None => router,
        }
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
        let tools = tools_of(self.models, self.builder);
        let handler = Handler::new(&tools, &watch::Sender::new(0));
        let served = handler.serve(rmcp::transport::stdio()).await;
        let service = served.map_err(|e| failed(e.to_string()))?;
        let ended = service.waiting().await;
        ended.map_err(|e| failed(e.to_string())).map(drop)
    }
}

fn tools_of(models: Models, builder: Option<ModelBuilder>) -> Arc<Tools> {
    Arc::new(Tools {
        models: match models {
            Models::One(model, name) => Arc::new(One { name, model }),
            Models::Many(models) => models,
        },
        builder,
        verifying: Semaphore::new(1),
    })
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
