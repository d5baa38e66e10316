//! One MCP server: connected, watched, and connected again when it ends.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use rmcp::{
    ClientHandler,
    model::{
        CallToolRequestParams, CallToolResponse, ClientConfig, Implementation, SubscriptionFilter,
    },
    service::{NotificationContext, Peer, RoleClient, ServiceError},
};
use serde_json::Value;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, watch},
};

use super::{
    McpConfig, McpServerConfig, McpServerState, McpServerStatus, McpSource,
    open::{CONNECT, Opening, Session},
    register::Register,
    result,
};
use crate::tools::ToolOutcome;

/// Waits between attempts: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct Connection {
    pub config: McpServerConfig,
    pub status: watch::Sender<McpServerStatus>,
    peer: RwLock<Option<Peer<RoleClient>>>,
    permits: Arc<Semaphore>,
    timeout: Duration,
    runtime: Handle,
    /// A call found the transport broken.
    broken: Notify,
}

/// Hears what a server says unasked.
pub(super) struct Listener {
    pub name: String,
    pub changed: Arc<Notify>,
}

impl ClientHandler for Listener {
    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }

    #[expect(deprecated, reason = "servers of today's protocol send it")]
    async fn on_logging_message(
        &self,
        params: rmcp::model::LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        tracing::debug!("MCP server {:?}: {}", self.name, params.data);
    }

    fn get_info(&self) -> ClientConfig {
        let me = Implementation::new("biplane", env!("CARGO_PKG_VERSION"));
        // What a handshake may agree on; where there is none, each request names its version.
        ClientConfig::new(Default::default(), me)
            .with_protocol_version(rmcp::model::ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

impl Connection {
    pub fn new(
        config: McpServerConfig,
        all: &McpConfig,
        permits: Arc<Semaphore>,
        runtime: Handle,
    ) -> Self {
        let own = match &config.source {
            McpSource::Http { timeout, .. } => *timeout,
            McpSource::Process { .. } => None,
        };
        let status = McpServerStatus {
            name: config.name.clone(),
            state: McpServerState::Connecting,
            left_out: Vec::new(),
            connections: 0,
            protocol: None,
            last_error: None,
        };
        Connection {
            config,
            status: watch::Sender::new(status),
            peer: RwLock::new(None),
            permits,
            timeout: own.unwrap_or(all.tool_timeout),
            runtime,
            broken: Notify::new(),
        }
    }

    /// Keeps the server connected, until this is dropped. `after` are the servers before it, whose
    /// tools get their names first.
    pub async fn run(
        self: Arc<Self>,
        register: Register,
        after: Vec<watch::Receiver<McpServerStatus>>,
    ) {
        let mut after = after;
        let mut pause = FIRST_PAUSE;
        let mut opening = Opening::default();
        loop {
            let changed = Arc::new(Notify::new());
            let began = Instant::now();
            let listener = || Listener {
                name: self.config.name.clone(),
                changed: Arc::clone(&changed),
            };
            let opened = opening.open(&self.config.source, listener).await;
            let reason = match opened {
                Ok(session) => {
                    for mut other in std::mem::take(&mut after) {
                        let _ = other.wait_for(McpServerStatus::is_settled).await;
                    }
                    let info = session.service.peer().peer_info();
                    let protocol = info.map(|info| info.protocol_version.to_string());
                    self.status.send_modify(|status| {
                        status.connections += 1;
                        status.protocol = protocol;
                    });
                    let reason = self.attend(session, &register, &changed).await;
                    if began.elapsed() > LAST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                    reason
                }
                Err(reason) => reason,
            };
            *self.peer.write().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::warn!("MCP server {:?}: {reason}", self.config.name);
            self.status.send_modify(|status| {
                status.last_error = Some(reason.clone());
                status.state = McpServerState::Failed { reason };
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Lists tools until the session ends; why it did.
    async fn attend(&self, session: Session, register: &Register, changed: &Arc<Notify>) -> String {
        let Session { service, _child } = session;
        let peer = service.peer().clone();
        let _watch = watch(&peer, changed);
        let set = || self.peer.write().unwrap_or_else(PoisonError::into_inner);
        let waiting = service.waiting();
        tokio::pin!(waiting);
        loop {
            let listing = tokio::time::timeout(CONNECT, register.list(&peer));
            let listed = tokio::select! {
                _ = &mut waiting => return "it ended".into(),
                listed = listing => listed,
            };
            let (tools, mut left_out) = match listed {
                Ok(Ok(listed)) => listed,
                Ok(Err(reason)) => return format!("its tools cannot be listed: {reason}"),
                Err(_) => {
                    return format!("its tools were not listed within {} s", CONNECT.as_secs());
                }
            };
            *set() = Some(peer.clone());
            let tools = register.put(self, tools, &mut left_out);
            self.status.send_modify(|status| {
                status.state = McpServerState::Ready { tools };
                status.left_out = left_out;
            });
            tokio::select! {
                _ = &mut waiting => return "it ended".into(),
                () = self.broken.notified() => return "it cannot be reached".into(),
                () = changed.notified() => {}
            }
        }
    }

    /// Calls a tool. Dropping the call cancels it.
    pub async fn call(self: Arc<Self>, tool: String, arguments: Value) -> ToolOutcome {
        let Value::Object(arguments) = arguments else {
            return Err("the arguments are no object".into());
        };
        let call = CallToolRequestParams::new(tool).with_arguments(arguments);
        let response = self
            .ask(async move |peer| peer.call_tool_once(call).await)
            .await?;
        match response {
            CallToolResponse::Complete(result) => result::outcome(result),
            _ => Err("it asks the user for more, which cannot be done here".into()),
        }
    }

    /// Asks the server within its time, on the connection's own runtime.
    pub async fn ask<T, F>(
        self: Arc<Self>,
        question: impl FnOnce(Peer<RoleClient>) -> F + Send + 'static,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send,
    {
        let me = Arc::clone(&self);
        let work = async move {
            let asking = async {
                let permit = Arc::clone(&me.permits).acquire_owned().await;
                let _permit = permit.map_err(|e| e.to_string())?;
                question(me.peer()?)
                    .await
                    .map_err(|error| me.explain(&error))
            };
            let limit = me.timeout;
            let late = || format!("it did not answer within {} s", limit.as_secs_f64());
            let answered = tokio::time::timeout(limit, asking).await;
            answered.map_err(|_| late())?
        };
        let mut task = AbortOnDrop(self.runtime.spawn(work));
        let done = (&mut task.0).await;
        done.unwrap_or_else(|_| Err("its connection is closed".into()))
    }

    fn peer(&self) -> Result<Peer<RoleClient>, String> {
        let peer = self.peer.read().unwrap_or_else(PoisonError::into_inner);
        let name = &self.config.name;
        peer.clone()
            .ok_or_else(|| match &self.status.borrow().state {
                McpServerState::Failed { reason } => {
                    format!("the MCP server {name:?} is not connected: {reason}; it is tried again")
                }
                _ => format!("the MCP server {name:?} is not connected yet"),
            })
    }

    fn explain(&self, error: &ServiceError) -> String {
        match error {
            ServiceError::McpError(error) => error.message.to_string(),
            ServiceError::TransportClosed => {
                format!(
                    "the MCP server {:?} ended during the call",
                    self.config.name
                )
            }
            ServiceError::TransportSend(_) => {
                self.broken.notify_one();
                format!(
                    "the MCP server {:?} cannot be reached: {error}",
                    self.config.name
                )
            }
            other => other.to_string(),
        }
    }
}

/// Asks a server without sessions to say when its tools change; others say so unasked.
fn watch(peer: &Peer<RoleClient>, changed: &Arc<Notify>) -> Option<AbortOnDrop<()>> {
    let info = peer.peer_info()?;
    let tells = info.capabilities.tools.as_ref()?.list_changed == Some(true);
    if info.protocol_version.has_initialize() || !tells {
        return None;
    }
    let (peer, changed) = (peer.clone(), Arc::clone(changed));
    Some(AbortOnDrop(tokio::spawn(async move {
        let filter = SubscriptionFilter::builder().tools_list_changed().build();
        let Ok(mut subscription) = peer.listen(filter).await else {
            return;
        };
        while let Ok(Some(_)) = subscription.next().await {
            changed.notify_one();
        }
    })))
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
