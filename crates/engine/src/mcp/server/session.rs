//! What a server tells a client unasked: how far a call is, and its log.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU8, Ordering::Relaxed},
};
use std::time::{Duration, Instant};

use rmcp::{RoleServer, model::ProgressNotificationParam, service::RequestContext};
use serde_json::json;

/// Progress is told no more often than this: a message for each token would be most of the traffic.
const PROGRESS: Duration = Duration::from_millis(100);

/// No log: the level of clients that do not ask for one.
pub(super) const SILENT: u8 = u8::MAX;

/// A call's line to its client.
pub(super) struct Session<'a> {
    context: &'a RequestContext<RoleServer>,
    level: &'a AtomicU8,
    told: Mutex<Option<Instant>>,
}

impl<'a> Session<'a> {
    pub fn new(context: &'a RequestContext<RoleServer>, level: &'a AtomicU8) -> Self {
        Session {
            context,
            level,
            told: Mutex::new(None),
        }
    }

    /// Tells how many tokens there are, of how many at most, where the client wants to know.
    pub async fn progress(&self, made: usize, most: usize) {
        let Some(token) = self.context.meta.get_progress_token() else {
            return;
        };
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_some_and(|at| at.elapsed() < PROGRESS) {
                return;
            }
            *told = Some(Instant::now());
        }
        let progress = ProgressNotificationParam::new(token, made as f64).with_total(most as f64);
        let _ = self.context.peer.notify_progress(progress).await;
    }

    /// Logs how a call went, where the client has asked for that much.
    #[expect(
        deprecated,
        reason = "clients of the protocol with a handshake read it"
    )]
    pub async fn log(&self, failed: bool, text: String) {
        use rmcp::model::{LoggingLevel, LoggingMessageNotificationParam};
        let level = match failed {
            true => LoggingLevel::Warning,
            false => LoggingLevel::Info,
        };
        if level as u8 >= self.level.load(Relaxed) {
            let message = LoggingMessageNotificationParam::new(level, json!(text));
            let _ = self.context.peer.notify_logging_message(message).await;
        }
    }
}
