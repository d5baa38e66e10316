//! The engine: one thread that owns a model and serves many requests at once. Requests come by a
//! channel, tokens go back by bounded channels.
//!
//! `scheduler` is the loop, `admission` begins sequences, `sequence` and `answer` are one request's
//! state. Nothing here sees a tensor.

mod admission;
mod ahead;
mod answer;
mod config;
mod exit;
mod guess;
mod metrics;
mod outbox;
mod prefix_cache;
mod prompt_store;
mod record;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc as std_mpsc},
    thread,
    time::Instant,
};

use biplane_backend::MemoryStats;
use biplane_models::{ModelInfo, ModelRunner};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Error, Event, Request, Result,
    backends::{self, RunnerSpec},
    grammar::GrammarState,
    memory,
    tokenizer::Tokenizer,
};
use guess::Guesser;
use metrics::Counters;
use scheduler::Scheduler;
use sequence::Job;

pub use config::{EngineConfig, Guess, Speculation};
pub use metrics::{BUCKETS, Histogram, Metrics};
pub use record::Recorded;
pub use sequence::Pooling;

/// Fewest bytes of KV cache that an engine starts with.
const LEAST_MEMORY: usize = 64 << 20;

/// A handle to the engine's thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Engine {
    jobs: std_mpsc::Sender<Job>,
    /// Its other end is the thread's, as long as it runs.
    alive: watch::Receiver<()>,
    counters: Arc<Counters>,
    max_queue: usize,
    pub info: Arc<ModelInfo>,
}

/// What the engine needs besides the model.
pub(crate) struct Vocabulary {
    pub tokenizer: Arc<Tokenizer>,
    pub stop_ids: HashSet<u32>,
}

/// What the engine's thread starts with.
pub(crate) struct Setup {
    pub spec: RunnerSpec,
    pub config: EngineConfig,
    /// A smaller model that guesses.
    pub draft: Option<RunnerSpec>,
    /// Made on another thread meanwhile.
    pub vocabulary: oneshot::Receiver<Vocabulary>,
}

impl Engine {
    /// Starts the thread and loads the model on it; the caller makes the vocabulary meanwhile.
    pub fn start(setup: Setup) -> Result<oneshot::Receiver<Result<Engine>>> {
        let (ready, loaded) = oneshot::channel();
        thread::Builder::new()
            .name(format!("biplane-{}", setup.spec.backend))
            .spawn(move || run(setup, ready))
            .map_err(|e| Error::Stopped(format!("no thread can be started: {e}")))?;
        Ok(loaded)
    }

    /// Whether the thread still runs.
    pub fn is_alive(&self) -> bool {
        self.alive.has_changed().is_ok()
    }

    /// Lets the engine go; waits until its thread has ended, unless another handle keeps it.
    pub async fn close(self) {
        let Engine {
            jobs, mut alive, ..
        } = self;
        drop(jobs);
        let _ = alive.changed().await;
    }

    /// Queues a request; its events come through the channel. Dropping the channel cancels it.
    pub fn submit(
        &self,
        request: Request,
        grammar: Option<GrammarState>,
    ) -> Result<mpsc::Receiver<Event>> {
        let (events, receiver) = mpsc::channel(outbox::EVENTS);
        self.queue(Job::Answer {
            request: Box::new(request),
            grammar,
            events,
            submitted: Instant::now(),
        })?;
        Ok(receiver)
    }

    /// Queues a text to be made a vector of.
    pub fn embed(
        &self,
        tokens: Vec<u32>,
        pooling: Pooling,
    ) -> Result<oneshot::Receiver<Result<Vec<f32>>>> {
        let (reply, receiver) = oneshot::channel();
        self.queue(Job::Embed {
            tokens,
            pooling,
            reply,
        })?;
        Ok(receiver)
    }

    fn queue(&self, job: Job) -> Result<()> {
        let queued = self.counters.queued.fetch_add(1, Relaxed);
        let refused = if queued >= self.max_queue {
            Some(Error::Busy { queued })
        } else {
            let sent = self.jobs.send(job);
            sent.err()
                .map(|_| Error::Stopped("its thread has ended".into()))
        };
        match refused {
            Some(error) => {
                self.counters.queued.fetch_sub(1, Relaxed);
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// The engine's figures.
    pub fn metrics(&self) -> Metrics {
        self.counters.read()
    }
}

/// The engine's thread.
fn run(setup: Setup, ready: oneshot::Sender<Result<Engine>>) {
    exit::at_work();
    let Setup {
        spec,
        config,
        draft,
        vocabulary,
    } = setup;
    let key = prompt_store::key(&spec);
    let loaded = guarded(|| {
        let mut runner = backends::load(&spec)?;
        let start = Instant::now();
        match runner.warm_up(config.max_sequences) {
            Ok(()) => tracing::debug!("the first steps took {:?}", start.elapsed()),
            // What fails now may do so again, and is told to whom it concerns then.
            Err(error) => tracing::warn!("the first steps failed: {error}"),
        }
        let guesser = guesser(&config, draft.as_ref(), &*runner)?;
        exit::wait_for_engines();
        let budget = config
            .kv_memory
            .unwrap_or_else(|| default_budget(runner.memory(), config.memory_share));
        let chunk = config.step_tokens_on(runner.info().device);
        memory::check_context(runner.info(), spec.context_length, chunk, budget)?;
        Ok((runner, guesser, budget))
    });
    drop(spec);
    let (mut runner, mut guesser, budget) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    settle(&mut *runner, guesser.as_mut());
    // Without a vocabulary the caller has failed and says so itself.
    let Ok(vocabulary) = exit::at_rest(|| vocabulary.blocking_recv()) else {
        return;
    };
    let (jobs, queue) = std_mpsc::channel();
    let (running, alive) = watch::channel(());
    let engine = Engine {
        jobs,
        alive,
        counters: Arc::new(Counters::new()),
        max_queue: config.max_queue,
        info: Arc::new(runner.info().clone()),
    };
    let counters = Arc::clone(&engine.counters);
    match Scheduler::new(runner, &vocabulary, config, counters, budget, guesser, key) {
        Ok(mut scheduler) => {
            if ready.send(Ok(engine)).is_ok() {
                scheduler.serve(&queue);
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    }
    drop(running);
}

/// Half of what is free once the weights are there, on the device where it has memory of its own, or
/// this engine's part of it.
fn default_budget(device: MemoryStats, share: usize) -> usize {
    let free = match device.limit {
        Some(limit) => limit.saturating_sub(device.active),
        None => memory::available_bytes().map_or(usize::MAX / 4, |b| b as usize),
    };
    (free / 2 / share.max(1)).max(LEAST_MEMORY)
}

fn guesser(
    config: &EngineConfig,
    draft: Option<&RunnerSpec>,
    runner: &dyn ModelRunner,
) -> Result<Option<Guesser>> {
    let Some(speculation) = &config.speculation else {
        return Ok(None);
    };
    Ok(Some(match draft {
        Some(spec) => {
            let draft = backends::load(spec)?;
            guess::check_draft(&*draft, runner)?;
            Guesser::draft(speculation.tokens, draft)
        }
        None => Guesser::prompt_lookup(speculation.tokens),
    }))
}

/// Lets what is under way on the devices end: a step that was started ahead for a sequence that has ended,
/// for one.
fn settle(runner: &mut dyn ModelRunner, guesser: Option<&mut Guesser>) {
    let end = |runner: &mut dyn ModelRunner| {
        if let Err(error) = runner.synchronize() {
            tracing::debug!("{error}");
        }
    };
    end(runner);
    if let Some(draft) = guesser.and_then(Guesser::runner) {
        end(draft);
    }
}

/// Turns a panic below into an error, so that one request's fault is not the next one's.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(Error::Stopped(format!("internal fault: {text}")))
    })
}
