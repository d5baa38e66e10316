//! What the next job reads first, for workers that have nothing to do before it begins.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use super::{parallel_for, run, threads};

/// Threads besides the caller's that [`Reads`] has places for.
const AHEAD_THREADS: usize = 7;

/// Where each worker begins to read in a job: addresses and lengths. Hints, which may be outdated: nothing is
/// read but by prefetches, which never fault.
#[derive(Default)]
pub(super) struct Reads(pub [(AtomicUsize, AtomicUsize); AHEAD_THREADS]);

pub(super) static NOTHING: Reads = Reads([const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; _]);

impl Reads {
    /// `first` gives what a worker reads first, by its number from 1 on.
    fn set<T>(&self, first: impl Fn(usize) -> Option<*const [T]>) {
        for (i, (start, bytes)) in self.0.iter().enumerate().take(threads() - 1) {
            let region = first(i + 1);
            let address = region.map_or(0, |r| r.cast::<u8>().addr());
            let len = region.map_or(0, |r| r.len() * size_of::<T>());
            // Writing what is there already would take the line from the workers' caches.
            if start.load(Ordering::Relaxed) != address {
                start.store(address, Ordering::Relaxed);
            }
            if bytes.load(Ordering::Relaxed) != len {
                bytes.store(len, Ordering::Relaxed);
            }
        }
    }
}

/// What was read after a job when it last ran: a model's decode steps are all alike.
#[derive(Default)]
pub struct Ahead {
    /// By the next job.
    next: Reads,
    /// By the one after jobs that keep nothing of their own.
    beyond: Reads,
}

thread_local! {
    /// The last job that keeps what comes after it, and whether others have followed it.
    static PREVIOUS: Cell<(Weak<Ahead>, bool)> = const { Cell::new((Weak::new(), false)) };
}

/// As [`parallel_for`], where `reads` gives what a worker, by its number from 1 on, reads first: the job before is
/// told, so that next time an idle worker fetches that beforehand. `ahead` keeps what comes after this job.
pub fn parallel_for_after<T>(
    ahead: &Arc<Ahead>,
    reads: impl Fn(usize) -> Option<*const [T]>,
    tasks: usize,
    f: impl Fn(usize) + Sync,
) {
    let (previous, between) = PREVIOUS.replace((Arc::downgrade(ahead), false));
    if let Some(previous) = previous.upgrade() {
        match between {
            true => previous.beyond.set(reads),
            false => previous.next.set(reads),
        }
    }
    run(&ahead.next, tasks, f);
}

/// As [`parallel_for_after`], for a job without anything of its own: the one before keeps what comes after it too.
/// Where `reads` gives nothing, what follows is told as if this job were not there.
pub fn parallel_for_between<T>(
    reads: impl Fn(usize) -> Option<*const [T]>,
    tasks: usize,
    f: impl Fn(usize) + Sync,
) {
    let (previous, mut between) = PREVIOUS.take();
    let Some(ahead) = previous.upgrade() else {
        return parallel_for(tasks, f);
    };
    if !between && threads() > 1 && reads(1).is_some() {
        ahead.next.set(reads);
        between = true;
    }
    PREVIOUS.set((previous, between));
    match between {
        true => run(&ahead.beyond, tasks, f),
        false => run(&ahead.next, tasks, f),
    }
}
