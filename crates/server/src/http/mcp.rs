//! MCP in both directions: the tools of other servers for the model, and the model for MCP's clients.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Json, Router, extract::State, middleware};
use biplane::{
    McpClient, McpServer, Model, ModelBuilder, ToolConfig, ToolLoop,
    mcp::{McpModel, McpModels, McpServerState, McpServerStatus},
};
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use super::{Shared, listen, security};
use crate::registry::{Stage, Status};

/// How long a model waits for MCP servers' tools before it answers without those that are missing.
const SETTLE: Duration = Duration::from_secs(20);

/// What the server knows of MCP.
#[derive(Default)]
pub struct Mcp {
    tools: OnceLock<(McpClient, ToolConfig)>,
    builder: OnceLock<ModelBuilder>,
    closed: watch::Sender<bool>,
}

impl Mcp {
    /// Runs these servers' tools for models that are [`equip`](Self::equip)ped.
    pub fn run_tools(&self, client: McpClient, config: ToolConfig) {
        let _ = self.tools.set((client, config));
    }

    /// What loads the model anew, to verify the backends.
    pub fn verify_with(&self, builder: ModelBuilder) {
        let _ = self.builder.set(builder);
    }

    /// The model with the tools that are run for it. Waits for servers that are being connected, but
    /// not for long: the tools of late ones come by themselves.
    pub async fn equip(self: Arc<Self>, model: Model) -> Model {
        let Some((client, config)) = self.tools.get() else {
            return model;
        };
        let _ = tokio::time::timeout(SETTLE, client.settled()).await;
        let tools = client.tools().clone();
        model.with_tool_loop(ToolLoop::new(tools, config.clone()))
    }

    /// Ends the sessions of MCP's clients as soon as their calls have ended.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closed = self.closed.subscribe();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }
}

/// `/v1/mcp/servers`
pub async fn servers(State(app): State<Shared>) -> Json<Value> {
    let tools = app.mcp.tools.get();
    let servers = tools.map_or_else(Vec::new, |(client, _)| client.servers());
    let servers: Vec<Value> = servers.iter().map(status).collect();
    Json(json!({"object": "list", "data": servers}))
}

fn status(server: &McpServerStatus) -> Value {
    let (state, tools) = match &server.state {
        McpServerState::Connecting => ("connecting", &[][..]),
        McpServerState::Ready { tools } => ("ready", tools.as_slice()),
        McpServerState::Failed { .. } => ("failed", &[][..]),
    };
    json!({
        "name": server.name,
        "state": state,
        "tools": tools,
        "left_out": server.left_out,
        "protocol": server.protocol,
        "connections": server.connections,
        "last_error": server.last_error,
    })
}

/// `/mcp`; who may ask is checked around it.
pub fn service(app: &Shared) -> Router {
    let models = Arc::new(Served(Arc::clone(app)));
    let mut server = McpServer::of_models(models).without_place_checks();
    if let Some(builder) = app.mcp.builder.get() {
        server = server.with_verification(builder.clone());
    }
    server.into_router(app.mcp.closed())
}

/// Serves `/mcp` alone, at a port of its own.
pub async fn serve(listener: TcpListener, app: Shared, stop: impl Future<Output = ()>) {
    let guarded = service(&app).layer(middleware::from_fn_with_state(app.clone(), security::key));
    let router = guarded.layer(middleware::from_fn_with_state(app.clone(), security::place));
    listen::serve_router(listener, router, app, stop).await;
}

/// The server's models, for MCP's clients.
struct Served(Shared);

impl McpModels for Served {
    fn list(&self) -> Vec<McpModel> {
        let models = self.0.models.list().into_iter();
        let model = |status: Status| McpModel {
            name: status.name,
            model: match status.stage {
                Stage::Loaded { model, .. } => Some(model),
                _ => None,
            },
        };
        models.map(model).collect()
    }

    fn find<'a>(&'a self, name: Option<&'a str>) -> BoxFuture<'a, Result<Model, String>> {
        Box::pin(async move {
            let lease = self.0.lease(name).await;
            lease
                .map(|lease| lease.model)
                .map_err(|error| error.message)
        })
    }
}
