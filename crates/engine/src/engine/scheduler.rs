//! The loop: what computes next, in which step, and what becomes of the results.
//!
//! Prompts and answers share steps (continuous batching, Yu et al. 2022, with chunked prefill, Agrawal
//! et al. 2023): every step takes one token of each answer under way, and fills the rest with prompts
//! in the order they came. Who shares a step changes no result.

mod ends;
mod plan;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::{Duration, Instant},
};

use biplane_models::{ModelRunner, SpanOutput, SpanPlan, StepPlan, Want};

use super::{
    EngineConfig, Vocabulary,
    ahead::Ahead,
    exit, guarded,
    guess::{Guesser, Guesses},
    metrics::Counters,
    outbox::Outbox,
    prefix_cache::PrefixCache,
    prompt_store::{self, PromptStore},
    record::Recorder,
    sequence::{Flow, Job, Sequence},
};
use crate::Result;

/// How long a step may take when answers wait for it: longer prompts are cut to fit.
const STEP_TIME: f64 = 0.25;

/// Fewest prompt tokens worth a step of their own.
const LEAST_CHUNK: usize = 32;

/// Pending tokens up to which a sequence under way counts as decoding: a few may be forced at once.
const DECODING: usize = 16;

pub(super) struct Scheduler<'a> {
    pub runner: Box<dyn ModelRunner>,
    pub vocabulary: &'a Vocabulary,
    pub config: EngineConfig,
    pub counters: Arc<Counters>,
    /// Not yet begun, or preempted: these are in front.
    pub waiting: VecDeque<Sequence>,
    /// In the order they began.
    pub running: Vec<Sequence>,
    pub cache: PrefixCache,
    pub store: Option<PromptStore>,
    /// Bytes for all caches.
    pub budget: usize,
    /// Most tokens of a step.
    pub step_tokens: usize,
    pub guesser: Option<Guesser>,
    /// A step in flight beyond the one that was looked at last.
    pub ahead: Option<Ahead>,
    recorder: Option<Recorder>,
    /// Ended sequences' events that their readers have not taken.
    draining: Vec<Outbox>,
    /// How many there have been.
    sequences: u64,
    /// Seconds a prompt token takes, as last seen.
    pace: Option<f64>,
}

/// Seconds a prompt token takes, after a step of `tokens` of them took `time`; steps take `most` tokens. A slow step
/// counts little, as a first one compiles kernels, or not at all where it was short: then the time is not
/// its tokens'. A fast one counts much.
fn pace(before: Option<f64>, time: f64, tokens: usize, most: usize) -> f64 {
    let seen = time / tokens as f64;
    let Some(before) = before else {
        return seen;
    };
    let usual = (STEP_TIME / before).min(most as f64);
    match seen > before {
        true if (tokens as f64) < usual / 2.0 => before,
        true => 0.7 * before + 0.3 * seen,
        false => 0.2 * before + 0.8 * seen,
    }
}

/// A sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which running sequence.
    pub index: usize,
    /// How many of its pending tokens.
    pub tokens: usize,
    pub guessed: Vec<u32>,
}

impl<'a> Scheduler<'a> {
    pub fn new(
        runner: Box<dyn ModelRunner>,
        vocabulary: &'a Vocabulary,
        config: EngineConfig,
        counters: Arc<Counters>,
        budget: usize,
        guesser: Option<Guesser>,
        key: prompt_store::Key,
    ) -> Result<Self> {
        Ok(Scheduler {
            store: PromptStore::open(config.prompt_cache.as_deref(), key)?,
            recorder: Recorder::open(config.record.as_deref(), runner.info())?,
            step_tokens: config.step_tokens_on(runner.info().device),
            runner,
            vocabulary,
            config,
            counters,
            waiting: VecDeque::new(),
            running: Vec::new(),
            cache: PrefixCache::default(),
            budget,
            guesser,
            ahead: None,
            draining: Vec::new(),
            sequences: 0,
            pace: None,
        })
    }

    /// Serves until nobody holds the engine any more.
    pub fn serve(&mut self, jobs: &mpsc::Receiver<Job>) {
        let mut first = true;
        let mut open = true;
        while open || !self.is_idle() {
            self.counters.beat(self.is_idle());
            if self.is_idle() && self.draining.is_empty() {
                self.settle();
                match exit::at_rest(|| jobs.recv()) {
                    Ok(job) => self.take(job),
                    Err(_) => return,
                }
            }
            loop {
                match jobs.try_recv() {
                    Ok(job) => self.take(job),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => {
                        open = false;
                        break;
                    }
                }
            }
            // What came during a rest is work from now on, also should its first step never end.
            self.counters.beat(self.is_idle());
            if exit::is_near() {
                self.settle();
                exit::stand();
            }
            if !self.tick() {
                // Only readers are waited for.
                self.settle();
                exit::at_rest(|| std::thread::sleep(Duration::from_millis(1)));
            } else if std::mem::take(&mut first) {
                // What the backend makes at its first step is there now.
                exit::wait_for_engines();
            }
        }
    }

    fn settle(&mut self) {
        super::settle(&mut *self.runner, self.guesser.as_mut());
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.ahead.is_none()
    }

    pub fn take(&mut self, job: Job) {
        let context = self.runner.info().context_length;
        self.sequences += 1;
        match Sequence::new(
            job,
            self.sequences,
            self.vocabulary,
            context,
            &self.counters,
        ) {
            Ok(sequence) => self.waiting.push_back(sequence),
            Err(ended) => {
                self.counters.queued.fetch_sub(1, Relaxed);
                self.draining.extend(ended);
            }
        }
    }

    /// One step, where there is something to compute; whether there was.
    pub fn tick(&mut self) -> bool {
        self.look_after_readers();
        self.admit();
        if let Some(ahead) = self.ahead.take() {
            self.step_ahead(&ahead);
            self.report();
            return true;
        }
        let guesses = match &mut self.guesser {
            Some(guesser) => guesser.guess(&self.running, self.runner.info().context_length),
            None => Guesses::default(),
        };
        let parts = self.affordable_plan(&guesses);
        let stepped = !parts.is_empty();
        if stepped {
            self.step(parts);
        }
        self.report();
        stepped
    }

    /// Gives readers what waits for them, and lets go of those that have left.
    fn look_after_readers(&mut self) {
        self.draining.retain_mut(|outbox| {
            outbox.flush();
            !outbox.is_empty() && !outbox.is_abandoned()
        });
        for index in (0..self.waiting.len()).rev() {
            if self.waiting.get(index).is_some_and(Sequence::is_abandoned)
                && let Some(sequence) = self.waiting.remove(index)
            {
                self.counters.queued.fetch_sub(1, Relaxed);
                self.finish(sequence, |s| s.cancel());
            }
        }
        for index in (0..self.running.len()).rev() {
            let Some(sequence) = self.running.get_mut(index) else {
                continue;
            };
            sequence.flush();
            if sequence.is_abandoned() {
                let sequence = self.running.remove(index);
                self.finish(sequence, |s| s.cancel());
            }
        }
    }

    fn step(&mut self, parts: Vec<Part>) {
        let mut plan = StepPlan::default();
        let mut prompt_tokens = 0;
        for part in &parts {
            let Some(s) = self.running.get(part.index) else {
                continue;
            };
            let mut tokens = s.pending().get(..part.tokens).unwrap_or_default().to_vec();
            if !s.decodes(DECODING) {
                prompt_tokens += tokens.len();
            }
            tokens.extend_from_slice(&part.guessed);
            let want = match part.guessed.is_empty() {
                true => s.want(part.tokens),
                false => Want::AllLogits,
            };
            plan.spans
                .extend(s.slot.map(|slot| SpanPlan { slot, tokens, want }));
        }
        let start = Instant::now();
        let outputs = guarded(|| {
            self.launched(|runner| runner.launch(&plan))?;
            // While the device computes.
            for part in &parts {
                if let Some(s) = self.running.get_mut(part.index) {
                    s.prepare(part.tokens)?;
                }
            }
            let ahead = self.run_ahead(&parts)?;
            Ok((ahead, self.collected()?))
        });
        self.counters.update(|m| {
            m.steps += 1;
            m.prompt_tokens += prompt_tokens as u64;
        });
        if prompt_tokens >= LEAST_CHUNK {
            let time = start.elapsed().as_secs_f64();
            self.pace = Some(pace(self.pace, time, prompt_tokens, self.step_tokens));
        }
        match outputs {
            Ok((ahead, outputs)) => {
                self.ahead = ahead;
                self.apply(&parts, &outputs);
            }
            Err(error) => self.recover(&parts, error),
        }
    }

    /// What `launch` gives; the time it takes is the host's.
    pub fn launched<T>(
        &mut self,
        launch: impl FnOnce(&mut dyn ModelRunner) -> biplane_models::Result<T>,
    ) -> biplane_models::Result<T> {
        let start = Instant::now();
        let result = launch(&mut *self.runner);
        self.counters.update(|m| m.launching += start.elapsed());
        result
    }

    /// Waits for a step.
    pub fn collected(&mut self) -> biplane_models::Result<Vec<SpanOutput>> {
        let start = Instant::now();
        let result = self.runner.collect();
        self.counters.update(|m| m.waiting += start.elapsed());
        result
    }

    pub fn apply(&mut self, parts: &[Part], outputs: &[SpanOutput]) {
        let mut ended = Vec::new();
        for (part, output) in parts.iter().zip(outputs) {
            let Some(s) = self.running.get_mut(part.index) else {
                continue;
            };
            s.alone = false;
            let flow =
                match guarded(|| s.advance(part.tokens, &part.guessed, output, self.vocabulary)) {
                    Ok(flow) => flow,
                    Err(error) => {
                        s.fail(error);
                        Flow::Ended
                    }
                };
            let cut = match (s.slot, part.guessed.is_empty()) {
                (Some(slot), false) => self.runner.truncate(slot, s.computed),
                _ => Ok(()),
            };
            if let Err(error) = cut {
                // The wrong guesses cannot be taken back: computed again, without them.
                tracing::debug!("{error}");
                s.computed = 0;
            }
            let index = part.index;
            if flow == Flow::Ended {
                ended.push(index);
            } else if s.computed == 0 {
                self.reopen(index);
            } else {
                self.branch_at_its_end(index);
            }
        }
        ended.sort_unstable();
        for index in ended.into_iter().rev() {
            let sequence = self.running.remove(index);
            self.finish(sequence, |_| {});
        }
    }

    fn report(&self) {
        let bytes = self.running_bytes();
        self.counters.update(|m| {
            m.running = self.running.len();
            m.running_bytes = bytes;
            m.cached_bytes = self.cache.bytes();
            m.cached_prefixes = self.cache.len();
            m.budget_bytes = self.budget;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{STEP_TIME, pace};

    #[test]
    fn the_pace_forgets_a_slow_beginning() {
        let first = pace(None, 512.0, 512, 4096);
        assert_eq!(first, 1.0);
        let fifth = (0..4).fold(first, |before, _| pace(Some(before), 0.32, 32, 4096));
        assert!(fifth < 0.02, "{fifth}");
    }

    #[test]
    fn slow_steps_raise_the_pace_where_they_are_no_short_ones() {
        let before = STEP_TIME / 2000.0;
        let slow = |tokens| pace(Some(before), 1.0, tokens, 4096);
        assert_eq!(slow(999), before);
        assert!(slow(1001) > before);
        // A step is never longer than its most tokens.
        assert!(pace(Some(before), 1.0, 256, 512) > before);
    }
}
