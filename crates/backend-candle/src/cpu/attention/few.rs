//! Few queries, as a decode step has: their keys and values are shared out among the threads.
//!
//! With at least as many key heads as threads that is one job. The heads' keys and values lie in a row, and each
//! thread has a stretch of it: whole heads, whose scores stay in its cache, and parts of a head at either end. What
//! another thread needs comes first in a stretch and what may wait for another last, so that no one waits. With fewer
//! heads the keys are shared out, then, in a second job, the elements of values.

mod order;

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use half::f16;

use super::kernel::{KEY_BLOCK, MAX_QUERIES, Queries, Scores, Soften, Weighted};
use super::{AttentionShape, BLOCK, SCORES, room};
use crate::cpu::simd::{Isa, MAX_LANES, launch};
use crate::cpu::{SharedOut, pool};
use order::{Order, Task};

thread_local! {
    /// What is kept for each key head, from call to call.
    static HEADS: Cell<Vec<Head>> = const { Cell::new(Vec::new()) };
}

/// What is known of a key head. It has cache lines of its own, and they stay with the thread that has the head.
#[derive(Default)]
#[repr(align(128))]
struct Head {
    /// Parts of its keys that have scores, [`KNOWN`] when all weights are known.
    scored: AtomicUsize,
    /// Parts of its values that are in the outputs.
    weighed: AtomicUsize,
    /// Written by the one that scores the last part, read when the weights are known.
    factors: UnsafeCell<[f32; MAX_QUERIES]>,
}

// SAFETY: see `factors`; the rest is atomic.
unsafe impl Sync for Head {}

/// [`Head::scored`] of one whose weights are known.
const KNOWN: usize = usize::MAX;

impl Head {
    /// As it is at the start of a call.
    fn reset(&self) {
        self.scored.store(0, Ordering::Relaxed);
        self.weighed.store(0, Ordering::Relaxed);
    }
}

/// Few queries, cut into parts by keys. All in one place, of which other threads fetch a few lines.
#[derive(Clone, Copy)]
pub(super) struct Few<'a> {
    isa: Isa,
    /// Those of the first key head.
    queries: Queries<'a>,
    /// The keys that any of them sees.
    seen: (usize, usize),
    threads: usize,
    keys: Parts,
    values: Parts,
}

/// How a head's keys or values are cut.
#[derive(Clone, Copy)]
struct Parts {
    count: usize,
    /// Keys of each but the last, a multiple of [`KEY_BLOCK`].
    size: usize,
}

impl Parts {
    /// About so many.
    fn of(keys: usize, count: usize) -> Parts {
        let size = keys.div_ceil(count).max(1).next_multiple_of(KEY_BLOCK);
        let count = keys.div_ceil(size).max(1);
        Parts { count, size }
    }
}

/// Where tasks find what they share.
#[derive(Clone, Copy)]
struct Shared<'a> {
    few: Few<'a>,
    /// [`Queries::scores_len`] floats for each head.
    scores: SharedOut,
    heads: &'a [Head],
    /// A task has panicked: what waits for it would wait for ever.
    failed: &'a AtomicBool,
}

impl<'a> Few<'a> {
    /// Queries of the first key head, all that there are; `None` for one thread, and for few keys, of which each
    /// thread does best with whole heads.
    pub fn of(isa: Isa, queries: Queries<'a>) -> Option<Few<'a>> {
        /// Keys of which sharing out the work better is worth its cost.
        const WORTHWHILE: usize = 4 * KEY_BLOCK;
        /// Tasks of keys for each thread, so that one that is taken away holds up little.
        const TASKS: usize = 4;
        let threads = pool::threads();
        let shape = queries.shape;
        if threads == 1 || shape.kv_len < WORTHWHILE {
            return None;
        }
        let seen = queries.visible_to_any(0..queries.count);
        let parts = (TASKS * threads).div_ceil(shape.kv_heads);
        Some(Few {
            isa,
            queries,
            threads,
            keys: Parts::of(seen.len(), parts),
            // Scores and weights of as many keys take half as long again as weighted values.
            values: Parts::of(seen.len(), (2 * parts / 3).max(1)),
            seen: (seen.start, seen.end),
        })
    }

    pub fn run(self) {
        let kv_heads = self.queries.shape.kv_heads;
        let (mut scores, mut heads) = (SCORES.take(), HEADS.take());
        heads.resize_with(heads.len().max(kv_heads), Head::default);
        let scores_of_all = room(&mut scores, kv_heads * self.queries.scores_len());
        let shared = Shared {
            few: self,
            scores: SharedOut(scores_of_all.as_mut_ptr()),
            heads: &heads,
            failed: &AtomicBool::new(false),
        };
        match self.threads <= kv_heads {
            true => shared.one_job(),
            false => shared.two_jobs(),
        }
        // Not where a task panicked: heads in midst of their work are not kept.
        SCORES.set(scores);
        HEADS.set(heads);
    }

    fn order(&self) -> Order {
        Order {
            kv_heads: self.queries.shape.kv_heads,
            threads: self.threads,
            keys: self.keys.count,
            values: self.values.count,
        }
    }

    /// The keys of a head's part.
    fn part(&self, parts: Parts, part: usize) -> Range<usize> {
        let first = self.seen.0 + part * parts.size;
        first..self.seen.1.min(first + parts.size)
    }

    /// As many keys from `start` on as a head has, where that is known. For hints: it may be beyond the end.
    fn a_heads(&self, start: *const f16) -> Option<*const [f16]> {
        let all = (self.seen.1 - self.seen.0) * self.queries.shape.head_dim;
        (!start.is_null()).then(|| std::ptr::slice_from_raw_parts(start, all))
    }

    /// Where a task begins to read.
    fn start(&self, (head, task): (usize, Task)) -> *const f16 {
        match task {
            Task::Keys(part) => self.queries.key(head, self.part(self.keys, part).start),
            Task::Values(part) => self.queries.value(head, self.part(self.values, part).start),
        }
    }
}

impl Shared<'_> {
    fn one_job(self) {
        let (few, order) = (self.few, self.few.order());
        let reads = |thread| {
            let head = order.whole_heads(&order.stretch(thread)).start / order.of_a_head();
            // A part of another head, which may come before, is less.
            few.a_heads(few.start((head, Task::Keys(0))))
        };
        pool::parallel_for_between(reads, order.places(), move |place| {
            let failure = SayFailure(self.failed);
            let next = order
                .next(place)
                .map_or(std::ptr::null(), |task| few.start(task));
            // SAFETY: every place is one task's.
            unsafe { self.run(order.task(place), next) };
            std::mem::forget(failure);
        });
    }

    /// Does a task of the one job.
    ///
    /// # Safety
    /// It is done once.
    unsafe fn run(&self, (head, task): (usize, Task), next: *const f16) {
        let part = match task {
            // SAFETY: the caller's contract.
            Task::Keys(part) => return unsafe { self.score(head, part, next) },
            Task::Values(part) => part,
        };
        let state = &self.heads[head];
        let mut spins = 0;
        while state.scored.load(Ordering::Acquire) != KNOWN
            || state.weighed.load(Ordering::Acquire) != part
        {
            if self.failed.load(Ordering::Relaxed) {
                return;
            }
            pool::pause(&mut spins);
        }
        let elements = 0..self.few.queries.shape.head_dim;
        // SAFETY: the parts before have ended, and those after wait.
        unsafe { self.weigh(head, elements, self.few.part(self.few.values, part), next) };
        match part + 1 == self.few.values.count {
            true => state.reset(),
            false => state.weighed.store(part + 1, Ordering::Release),
        }
    }

    fn two_jobs(&self) {
        let few = &self.few;
        let queries = few.queries;
        let AttentionShape {
            kv_heads, head_dim, ..
        } = queries.shape;
        let tasks = kv_heads * few.keys.count;
        let reads = |thread| {
            let task = pool::stretch(tasks, thread, few.threads).start;
            let first = few.part(few.keys, task % few.keys.count).start;
            few.a_heads(queries.key(task / few.keys.count, first))
        };
        pool::parallel_for_between(reads, tasks, |task| {
            let (head, part) = (task / few.keys.count, task % few.keys.count);
            let next = queries.key(head, few.part(few.keys, part).end);
            // SAFETY: every part is scored once.
            unsafe { self.score(head, part, next) };
        });
        let size = head_dim.div_ceil(few.threads).next_multiple_of(MAX_LANES);
        let pieces = head_dim.div_ceil(size);
        pool::parallel_for_between(
            |_| None::<*const [f16]>,
            kv_heads * pieces,
            |task| {
                let (head, piece) = (task / pieces, task % pieces);
                let elements = piece * size..head_dim.min((piece + 1) * size);
                // SAFETY: the first job made all weights, and other tasks have other elements.
                unsafe { self.weigh(head, elements, few.seen.0..few.seen.1, std::ptr::null()) };
            },
        );
        self.heads.iter().for_each(Head::reset);
    }

    /// Scores of a head's part, and weights where they are the head's last.
    ///
    /// # Safety
    /// Every part is scored once.
    unsafe fn score(&self, kv_head: usize, part: usize, next: *const f16) {
        let queries = Queries {
            kv_head,
            ..self.few.queries
        };
        let len = queries.scores_len();
        let head = &self.heads[kv_head];
        let mut block = BLOCK.take();
        let kernel = Scores {
            queries,
            keys: self.few.part(self.few.keys, part),
            next,
            // SAFETY: this head's scores.
            scores: unsafe { self.scores.at(kv_head * len) },
            room: room(&mut block, queries.room_len()),
        };
        launch(self.few.isa, kernel);
        BLOCK.set(block);
        if head.scored.fetch_add(1, Ordering::AcqRel) + 1 < self.few.keys.count {
            return;
        }
        // SAFETY: all tasks that write the head's scores have ended, and this is the only one that saw the
        // last of them end.
        let (scores, factors) = unsafe {
            let scores = self.scores.part(kv_head * len, len);
            (scores, &mut *head.factors.get())
        };
        let kernel = Soften {
            queries,
            scores,
            factors,
        };
        launch(self.few.isa, kernel);
        head.scored.store(KNOWN, Ordering::Release);
    }

    /// Adds the weighted values of some keys to some elements of a head's outputs.
    ///
    /// # Safety
    /// The head's weights are known, the keys before are added, and no other task has these elements.
    unsafe fn weigh(
        &self,
        kv_head: usize,
        elements: Range<usize>,
        keys: Range<usize>,
        next: *const f16,
    ) {
        let queries = Queries {
            kv_head,
            ..self.few.queries
        };
        let len = queries.scores_len();
        let mut block = BLOCK.take();
        // SAFETY: no one writes known weights and factors.
        let (weights, factors) = unsafe {
            let weights = std::slice::from_raw_parts(self.scores.at(kv_head * len), len);
            (weights, &*self.heads[kv_head].factors.get())
        };
        let kernel = Weighted {
            queries,
            elements,
            keys,
            next,
            weights,
            factors,
            room: room(&mut block, queries.room_len()),
        };
        launch(self.few.isa, kernel);
        BLOCK.set(block);
    }
}

/// Says that a task panicked, unless it is forgotten.
struct SayFailure<'a>(&'a AtomicBool);

impl Drop for SayFailure<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
