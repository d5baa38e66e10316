//! Events on their way to a reader that may be slow.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::Event;

/// Events that a reader may leave in its channel before its sequence waits for it.
pub(super) const EVENTS: usize = 64;

/// How long a reader may leave its channel full.
const PATIENCE: Duration = Duration::from_secs(30);

/// The sending end of a request's channel. Sending never waits: what the channel cannot take stays
/// here, and the sequence computes no more until it is gone.
#[derive(Debug)]
pub(super) struct Outbox {
    channel: mpsc::Sender<Event>,
    waiting: VecDeque<Event>,
    since: Option<Instant>,
}

impl Outbox {
    pub fn new(channel: mpsc::Sender<Event>) -> Self {
        Outbox {
            channel,
            waiting: VecDeque::new(),
            since: None,
        }
    }

    pub fn send(&mut self, event: Event) {
        self.waiting.push_back(event);
        self.flush();
    }

    /// Sends with the next [`Self::flush`].
    pub fn hold(&mut self, event: Event) {
        self.waiting.push_back(event);
    }

    /// Gives the channel what it can take.
    pub fn flush(&mut self) {
        while let Some(event) = self.waiting.pop_front() {
            match self.channel.try_send(event) {
                Ok(()) => self.since = None,
                Err(TrySendError::Full(event)) => {
                    self.waiting.push_front(event);
                    self.since.get_or_insert_with(Instant::now);
                    return;
                }
                Err(TrySendError::Closed(_)) => self.waiting.clear(),
            }
        }
        self.since = None;
    }

    /// Whether all is in the channel.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nobody listens any more, or has not for too long.
    pub fn is_abandoned(&self) -> bool {
        self.channel.is_closed() || self.since.is_some_and(|since| since.elapsed() > PATIENCE)
    }
}
