//! What an engine counts, readable from any thread.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

/// Upper bounds of the histograms' buckets, in seconds; what is above all is counted too.
pub const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// A histogram of durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Observations at most as large as each of [`BUCKETS`]; not cumulative.
    pub buckets: [u64; BUCKETS.len()],
    /// All observations.
    pub count: u64,
    /// Their sum in seconds.
    pub sum: f64,
}

impl Histogram {
    fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound);
        if let Some(n) = bucket.and_then(|i| self.buckets.get_mut(i)) {
            *n += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// An engine's figures at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Requests that wait.
    pub queued: usize,
    /// Sequences that compute.
    pub running: usize,
    /// Requests finished, cancelled and failed ones included.
    pub finished: u64,
    /// Of them, those that nobody listened to any more.
    pub cancelled: u64,
    /// Of them, those that failed.
    pub failed: u64,
    /// Steps computed.
    pub steps: u64,
    /// Time that the engine's thread took to describe steps and hand them to the device; on a processor it
    /// computes them meanwhile.
    pub launching: Duration,
    /// Time that it waited for them.
    pub waiting: Duration,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Prompt tokens that an earlier request had computed.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens guessed by speculation.
    pub guessed_tokens: u64,
    /// Of them, those that were right.
    pub accepted_tokens: u64,
    /// Sequences that gave their memory back, to be computed again.
    pub preemptions: u64,
    /// Bytes of running sequences' KV caches.
    pub running_bytes: usize,
    /// Bytes of kept prefixes.
    pub cached_bytes: usize,
    /// Bytes allowed for both.
    pub budget_bytes: usize,
    /// Kept prefixes.
    pub cached_prefixes: usize,
    /// Time to first token.
    pub time_to_first_token: Histogram,
    /// Time between a sequence's tokens.
    pub inter_token: Histogram,
    /// Time since the engine's last sign of life while it had work; zero when idle.
    pub silent_for: Duration,
}

/// The counters behind [`Metrics`]; the engine's thread writes, anyone reads.
#[derive(Debug)]
pub(crate) struct Counters {
    pub queued: AtomicUsize,
    start: Instant,
    beat: AtomicU64,
    idle: AtomicBool,
    shared: Mutex<Metrics>,
}

impl Counters {
    pub fn new() -> Self {
        Counters {
            queued: AtomicUsize::new(0),
            start: Instant::now(),
            beat: AtomicU64::new(0),
            idle: AtomicBool::new(true),
            shared: Mutex::new(Metrics::default()),
        }
    }

    /// The engine's thread is alive, with or without work.
    pub fn beat(&self, idle: bool) {
        self.beat_at(self.start.elapsed(), idle);
    }

    fn beat_at(&self, now: Duration, idle: bool) {
        self.beat.store(now.as_millis() as u64, Relaxed);
        // Who sees work begin sees this beat too, and not one from before a long rest.
        self.idle.store(idle, Release);
    }

    pub fn update(&self, f: impl FnOnce(&mut Metrics)) {
        f(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn first_token(&self, time: Duration) {
        self.update(|m| m.time_to_first_token.observe(time));
    }

    pub fn next_token(&self, time: Duration) {
        self.update(|m| m.inter_token.observe(time));
    }

    pub fn read(&self) -> Metrics {
        self.read_at(|| self.start.elapsed())
    }

    fn read_at(&self, now: impl FnOnce() -> Duration) -> Metrics {
        let mut metrics = self
            .shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        metrics.queued = self.queued.load(Relaxed);
        if !self.idle.load(Acquire) {
            let beat = Duration::from_millis(self.beat.load(Relaxed));
            metrics.silent_for = now().saturating_sub(beat);
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_only_beside_work() {
        let counters = Counters::new();
        let second = Duration::from_secs;
        let silent = |now| counters.read_at(|| second(now)).silent_for;
        counters.beat_at(second(5), true);
        assert_eq!(silent(100), Duration::ZERO);
        counters.beat_at(second(100), false);
        assert_eq!(silent(100), Duration::ZERO);
        assert_eq!(silent(140), second(40));
        counters.beat_at(second(140), false);
        assert_eq!(silent(141), second(1));
    }
}
