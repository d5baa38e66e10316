//! What all handlers share.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use biplane::Model;

use super::{Security, error::ApiError, id, mcp::Mcp, responses::Store};

/// What all handlers share.
pub type Shared = Arc<App>;

/// The server's state.
pub struct App {
    /// What the model is called.
    pub name: String,
    /// Who may ask.
    pub security: Security,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// MCP servers, and the tools that are run for the model.
    pub mcp: Mcp,
    /// What later responses may continue.
    pub responses: Store,
    phase: RwLock<Phase>,
    draining: AtomicBool,
}

/// How far the model is.
#[derive(Clone)]
pub enum Phase {
    Loading {
        /// Of the present task, 0 to 1; none where that is not known.
        progress: Option<f64>,
        message: String,
    },
    Ready(Model),
}

impl App {
    pub fn new(name: String, security: Security) -> Shared {
        Arc::new(App {
            name,
            security,
            started: id::now(),
            mcp: Mcp::default(),
            responses: Store::default(),
            phase: RwLock::new(Phase::Loading {
                progress: None,
                message: "finding the model".into(),
            }),
            draining: AtomicBool::new(false),
        })
    }

    pub fn phase(&self) -> Phase {
        let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner);
        phase.clone()
    }

    /// Notes how far loading has come.
    pub fn loading(&self, progress: biplane::Progress<'_>) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Loading { .. } = *phase {
            let known = progress.total > 0;
            *phase = Phase::Loading {
                progress: known.then(|| progress.done as f64 / progress.total as f64),
                message: progress.task.to_owned(),
            };
        }
    }

    pub fn loaded(&self, model: Model) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = Phase::Ready(model);
    }

    /// From now on nothing new is begun.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
        self.mcp.close();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// The model, where it can be asked now.
    pub fn model(&self) -> Result<Model, ApiError> {
        if self.is_draining() {
            let message = "the server is ending; it takes no more requests";
            return Err(ApiError::unavailable(message, "draining", 10));
        }
        match self.phase() {
            Phase::Ready(model) if model.is_loaded() => Ok(model),
            Phase::Ready(_) => Err(ApiError::unavailable(
                "the engine has stopped by a fault; restart the server",
                "engine_stopped",
                60,
            )),
            Phase::Loading { message, .. } => Err(ApiError::unavailable(
                format!("the model is not loaded yet ({message}); see /health"),
                "loading",
                2,
            )),
        }
    }

    /// Refuses a request for another model than the one that is here.
    pub fn check_name(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            None | Some("" | "default") => Ok(()),
            Some(name) if name == self.name => Ok(()),
            Some(name) => Err(self.no_such_model(name)),
        }
    }

    pub fn no_such_model(&self, name: &str) -> ApiError {
        let message = format!(
            "there is no model {name:?} here; this server has {:?} (or leave model out)",
            self.name
        );
        let status = axum::http::StatusCode::NOT_FOUND;
        ApiError::new(status, "invalid_request_error", message)
            .with_param("model")
            .with_code("model_not_found")
    }
}
