//! The loop: what computes next, in which step, and what becomes of the results.
//!
//! Prompts and answers share steps (continuous batching, Yu et al. 2022, with chunked prefill, Agrawal
//! et al. 2023): every step takes one token of each answer under way, and fills the rest with prompts
//! in the order they came. Who shares a step changes no result.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::{Duration, Instant},
};

use biplane_models::{ModelRunner, SpanPlan, StepPlan, Want};

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
use crate::{Error, Result};

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
            exit::stand_if_exiting();
            if !self.tick() {
                // Only readers are waited for.
                exit::at_rest(|| std::thread::sleep(Duration::from_millis(1)));
            } else if std::mem::take(&mut first) {
                // What the backend makes at its first step is there now.
                exit::wait_for_engines();
            }
        }
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

    /// What the next step computes: answers first, then prompts in their order.
    fn plan(&self, guesses: &Guesses) -> Vec<Part> {
        let all = self.config.step_tokens;
        let whole = |index: usize, s: &Sequence, limit| Part {
            index,
            tokens: s.chunk(limit),
            guessed: Vec::new(),
        };
        if let Some((index, s)) = self.running.iter().enumerate().find(|(_, s)| s.alone) {
            return match s.waits_for_reader() {
                true => Vec::new(),
                false => vec![whole(index, s, all)],
            };
        }
        let (answers, prompts): (Vec<_>, Vec<_>) = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.waits_for_reader())
            .partition(|(_, s)| s.decodes(DECODING));
        let mut parts: Vec<Part> = answers
            .into_iter()
            .map(|(index, s)| Part {
                guessed: guesses.get(&s.id).cloned().unwrap_or_default(),
                ..whole(index, s, DECODING)
            })
            .collect();
        let mut left = match parts.is_empty() {
            true => all,
            false => self.chunk_beside_answers(),
        };
        for (index, s) in prompts {
            if left == 0 {
                break;
            }
            let part = whole(index, s, left);
            left -= part.tokens;
            parts.push(part);
        }
        parts
    }

    /// Prompt tokens that fit a step which answers wait for.
    fn chunk_beside_answers(&self) -> usize {
        match self.pace {
            Some(pace) => ((STEP_TIME / pace) as usize).clamp(LEAST_CHUNK, self.config.step_tokens),
            None => LEAST_CHUNK.min(self.config.step_tokens),
        }
    }

    /// A plan whose caches fit the budget: kept prefixes go first, then the sequence that began last
    /// gives its memory back, to be computed again when there is room.
    fn affordable_plan(&mut self, guesses: &Guesses) -> Vec<Part> {
        loop {
            let parts = self.plan(guesses);
            let growth: usize = parts.iter().map(|part| self.growth(part)).sum();
            let needed = self.running_bytes() + growth;
            self.evict_to(needed, None);
            if needed <= self.budget || parts.is_empty() {
                return parts;
            }
            let Some(mut last) = self.running.pop() else {
                return Vec::new();
            };
            if self.running.is_empty() {
                let tokens = last.tokens.len();
                let error = self.too_big(tokens, needed);
                self.finish(last, |s| s.fail(error));
                continue;
            }
            self.close(&mut last);
            self.counters.queued.fetch_add(1, Relaxed);
            self.counters.update(|m| m.preemptions += 1);
            self.waiting.push_front(last);
        }
    }

    fn growth(&self, part: &Part) -> usize {
        let slot = self.running.get(part.index).and_then(|s| s.slot);
        slot.map_or(0, |slot| {
            let added = part.tokens + part.guessed.len();
            self.runner.bytes(slot, added) - self.runner.bytes(slot, 0)
        })
    }

    /// Bytes of running sequences' caches, a draft model's among them.
    pub fn running_bytes(&self) -> usize {
        let slots = self.running.iter().filter_map(|s| s.slot);
        let guesses = self.guesser.as_ref().map_or(0, Guesser::bytes);
        slots.map(|slot| self.runner.bytes(slot, 0)).sum::<usize>() + guesses
    }

    /// Lets kept prefixes go until `needed` bytes fit beside them.
    pub fn evict_to(&mut self, needed: usize, except: Option<biplane_models::SlotId>) {
        while needed + self.cache.bytes() > self.budget
            && self.cache.evict(&mut *self.runner, except)
        {}
    }

    pub fn too_big(&self, tokens: usize, needed: usize) -> Error {
        Error::Request(format!(
            "{tokens} tokens need {} MiB of KV cache, {} MiB are allowed; allow more (--kv-memory), shorten the prompt, or quantize the model (--isq)",
            needed.div_ceil(1 << 20),
            self.budget >> 20
        ))
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
            self.runner.launch(&plan)?;
            // While the device computes.
            for part in &parts {
                if let Some(s) = self.running.get_mut(part.index) {
                    s.prepare(part.tokens)?;
                }
            }
            let ahead = self.run_ahead(&parts)?;
            Ok((ahead, self.runner.collect()?))
        });
        self.counters.update(|m| {
            m.steps += 1;
            m.prompt_tokens += prompt_tokens as u64;
        });
        if prompt_tokens >= LEAST_CHUNK {
            let seen = start.elapsed().as_secs_f64() / prompt_tokens as f64;
            self.pace = Some(self.pace.map_or(seen, |pace| 0.7 * pace + 0.3 * seen));
        }
        match outputs {
            Ok((ahead, outputs)) => {
                self.ahead = ahead;
                self.apply(&parts, &outputs);
            }
            Err(error) => self.recover(&parts, error),
        }
    }

    pub fn apply(&mut self, parts: &[Part], outputs: &[biplane_models::SpanOutput]) {
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

    /// A step failed. Alone, a sequence is to blame; of several, each is tried again alone.
    pub fn recover(&mut self, parts: &[Part], error: Error) {
        tracing::warn!("a step of {} sequences failed: {error}", parts.len());
        // What else is in flight is of the same sequences.
        self.ahead = None;
        while guarded(|| Ok(self.runner.collect()?)).is_ok() {}
        if let [part] = parts {
            let sequence = self.running.remove(part.index);
            self.finish(sequence, |s| {
                s.computed = 0;
                s.fail(error);
            });
            return;
        }
        for part in parts {
            if let Some(s) = self.running.get_mut(part.index) {
                s.alone = true;
            }
            self.reopen(part.index);
        }
    }

    /// Begins a running sequence's computation anew.
    fn reopen(&mut self, index: usize) {
        let Some(s) = self.running.get_mut(index) else {
            return;
        };
        if let Some(slot) = s.slot.take() {
            self.runner.close(slot);
        }
        s.computed = 0;
        match self.runner.open() {
            Ok(slot) => s.slot = Some(slot),
            Err(error) => {
                let sequence = self.running.remove(index);
                self.finish(sequence, |s| s.fail(error.into()));
            }
        }
    }

    /// Copies the cache of a sequence that has come to where others part from it.
    fn branch_at_its_end(&mut self, index: usize) {
        let Some(s) = self.running.get_mut(index) else {
            return;
        };
        let Some(slot) = s.slot.filter(|_| s.branches.first() == Some(&s.computed)) else {
            return;
        };
        s.branches.remove(0);
        let at_prompt_end = s.branches.is_empty();
        let tokens = s.tokens.get(..s.computed).unwrap_or_default().to_vec();
        let needed = self.running_bytes() + self.runner.bytes(slot, 0);
        self.evict_to(needed, None);
        if needed <= self.budget
            && let Ok(copy) = self.runner.fork(slot, tokens.len())
        {
            // The only copy from which the prompt can be had again once the answer is long.
            if at_prompt_end && let Some(store) = &mut self.store {
                store.save(&mut *self.runner, copy, &tokens);
            }
            self.cache.keep(&mut *self.runner, copy, tokens, true);
            self.trim_kept();
        }
    }

    /// The end of a sequence: its cache is kept for others, its last events go their way.
    fn finish(&mut self, mut sequence: Sequence, last: impl FnOnce(&mut Sequence)) {
        last(&mut sequence);
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&sequence);
        }
        sequence.flush();
        if let Some(guesser) = &mut self.guesser {
            guesser.forget(sequence.id);
        }
        let keep = self.config.prefix_cache && sequence.shares_prefix() && sequence.computed > 0;
        let slot = sequence.slot.take();
        // Of what was computed ahead nobody knows.
        let whole = slot.is_some_and(|slot| {
            self.runner.len(slot) <= sequence.computed
                || self.runner.truncate(slot, sequence.computed).is_ok()
        });
        match slot {
            Some(slot) if keep && whole => {
                let mut tokens = std::mem::take(&mut sequence.tokens);
                tokens.truncate(sequence.computed);
                if let Some(store) = &mut self.store
                    && !self.runner.info().is_windowed()
                {
                    store.save(&mut *self.runner, slot, &tokens);
                }
                self.cache.keep(&mut *self.runner, slot, tokens, false);
                self.trim_kept();
            }
            Some(slot) => self.runner.close(slot),
            None => {}
        }
        self.draining.extend(sequence.into_outbox());
    }

    /// Lets go of what is kept beyond the most that may be.
    fn trim_kept(&mut self) {
        let most = self.config.kept_prefixes.unwrap_or(usize::MAX);
        while self.cache.len() > most && self.cache.evict(&mut *self.runner, None) {}
    }

    /// Lets a sequence go that never began.
    pub fn drop_unbegun(&mut self, sequence: Sequence) {
        self.finish(sequence, |_| {});
    }

    fn close(&mut self, sequence: &mut Sequence) {
        if let Some(slot) = sequence.slot.take() {
            self.runner.close(slot);
        }
        sequence.computed = 0;
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
