//! What all handlers share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{Security, error::ApiError, id, mcp::Mcp, responses::Store};
use crate::registry::{Lease, Registry};

/// What all handlers share.
pub type Shared = Arc<App>;

/// The server's state.
pub struct App {
    /// The models by their names.
    pub models: Registry,
    /// Who may ask.
    pub security: Security,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// MCP servers, and the tools that are run for the models.
    pub mcp: Arc<Mcp>,
    /// What later responses may continue.
    pub responses: Store,
    draining: AtomicBool,
}

impl App {
    pub fn new(models: Registry, mcp: Arc<Mcp>, security: Security) -> Shared {
        Arc::new(App {
            models,
            security,
            started: id::now(),
            mcp,
            responses: Store::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// From now on nothing new is begun.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
        self.mcp.close();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Whether requests are taken now; asked before a body is read.
    pub fn open(&self) -> Result<(), ApiError> {
        if self.is_draining() {
            let message = "the server is ending; it takes no more requests";
            return Err(ApiError::unavailable(message, "draining", 10));
        }
        Ok(self.models.check()?)
    }

    /// The model that a request names, loaded where it is not; held until the answer has ended.
    pub async fn lease(&self, name: Option<&str>) -> Result<Lease, ApiError> {
        self.open()?;
        Ok(self.models.lease(name).await?)
    }
}
