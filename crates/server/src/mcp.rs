//! `biplane mcp`

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use biplane::{
    McpServer, Model, ToolLoop,
    mcp::{McpModel, McpModels},
};
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::{mcp_args::McpArgs, report, serve::name_of};

/// How long the model waits for MCP servers' tools.
const SETTLE: Duration = Duration::from_secs(20);

/// Serves a model on standard input and output, which carry the protocol and nothing else.
pub fn mcp(args: McpArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    let result = runtime.block_on(serve(args));
    // Reading standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}

async fn serve(args: McpArgs) -> anyhow::Result<()> {
    let backend = args.backend.kind()?;
    let mut builder = args.model.builder(backend);
    builder = builder.with_engine(args.engine.config());
    if let Some(file) = &args.chat_template {
        builder = builder.with_chat_template(file);
    }
    let tools = args.tools.connect()?;
    let name = args.model_name.clone();
    let name = name.unwrap_or_else(|| name_of(args.model.model.as_deref()));
    let (loaded, model) = watch::channel(None);
    let server = McpServer::of_models(Arc::new(Coming {
        name: name.clone(),
        model,
    }))
    .with_verification(builder.clone());
    // Clients wait for an answer to their first message, but not for as long as a model may take.
    let loading = async move {
        let mut model = builder.build().await?;
        if let Some((client, config)) = &tools {
            let _ = tokio::time::timeout(SETTLE, client.settled()).await;
            model = model.with_tool_loop(ToolLoop::new(client.tools().clone(), config.clone()));
        }
        report::note(&format!(
            "{name} is ready for MCP on standard input and output"
        ));
        let _ = loaded.send(Some(model));
        // The tools' servers end with the client.
        std::future::pending::<()>().await;
        drop(tools);
        Ok::<_, biplane::Error>(())
    };
    tokio::select! {
        ended = server.serve_stdio() => ended.map_err(Into::into),
        failed = loading => failed.map_err(Into::into),
    }
}

/// A model that is being loaded.
struct Coming {
    name: String,
    model: watch::Receiver<Option<Model>>,
}

impl McpModels for Coming {
    fn list(&self) -> Vec<McpModel> {
        vec![McpModel {
            name: self.name.clone(),
            model: self.model.borrow().clone(),
        }]
    }

    fn find<'a>(&'a self, name: Option<&'a str>) -> BoxFuture<'a, Result<Model, String>> {
        Box::pin(async move {
            if let Some(other) = name.filter(|name| *name != self.name) {
                let own = &self.name;
                return Err(format!(
                    "there is no model {other:?} here; there is {own:?}"
                ));
            }
            let mut model = self.model.clone();
            let found = model.wait_for(Option::is_some).await;
            let found = found.ok().and_then(|model| model.clone());
            found.ok_or_else(|| "the model could not be loaded".into())
        })
    }
}
