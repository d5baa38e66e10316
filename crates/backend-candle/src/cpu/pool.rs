//! A pool of threads that stay: waking them costs about a microsecond while they still spin.
//!
//! One job runs at a time. Every thread, the caller too, has a stretch of its tasks, so that it reads
//! memory in order, claims them one by one, and then those left of the others' stretches: a thread that
//! the system takes away holds up no more than the task it is in. Nothing is allocated for a job.
//!
//! A worker without a task fetches what it will read in the next job into its cache: see [`parallel_for_after`].

mod ahead;

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::simd::prefetch;
pub use ahead::{Ahead, parallel_for_after, parallel_for_between};
use ahead::{NOTHING, Reads};

/// Rounds a worker spins for the next job before it sleeps: some tens of microseconds, longer than
/// the gaps between the operations of a decode step.
const SPINS: u32 = 4000;

/// Set in [`Shared::state`] while a job may be joined.
const OPEN: u64 = 1 << 32;
/// Added to [`Shared::state`] for every job; the low half counts threads inside the job.
const NEXT_JOB: u64 = 1 << 33;
const INSIDE: u64 = OPEN - 1;

/// Own cache lines, so that claiming tasks does not disturb those who watch the state.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// Most bytes that a worker fetches ahead: a part of a second-level cache.
const AHEAD_BYTES: usize = 256 * 1024;
/// Bytes between two looks for a job.
const AHEAD_STEP: usize = 512;
const CACHE_LINE: usize = 64;

struct Shared {
    /// Job number, [`OPEN`], and how many workers are inside.
    state: Line<AtomicU64>,
    /// The next unclaimed task of every thread's stretch, the caller's first.
    next: Box<[Line<AtomicUsize>]>,
    /// What the job after this one reads.
    ahead: Reads,
    tasks: AtomicUsize,
    /// Points at the caller's `Task`; valid while a worker is inside an open job.
    job: AtomicPtr<()>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Worker {
    asleep: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

fn pool() -> &'static Mutex<Option<Pool>> {
    static POOL: Mutex<Option<Pool>> = Mutex::new(None);
    &POOL
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that compute, the caller's included: the physical cores unless set.
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => default_threads(),
        n => n,
    }
}

/// Sets the number of threads that compute, at least 1; waits for a running job.
pub fn set_threads(n: usize) {
    let mut pool = lock(pool());
    THREADS.store(n.max(1), Ordering::Relaxed);
    *pool = None; // joins the workers; the next job starts others
}

/// Calls `f` with every number below `tasks`, on all threads; returns when all calls have.
///
/// From inside a task the caller does all of it itself; while another thread's job runs it begins by
/// itself, and shares what is left when that job has ended. A panic in a task reaches the caller after the tasks that run have ended; the unclaimed ones are dropped.
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync) {
    run(&NOTHING, tasks, f);
}

fn run(ahead: &Reads, tasks: usize, f: impl Fn(usize) + Sync) {
    for first in 0..tasks {
        if tasks - first > 1 && threads() > 1 && share(ahead, tasks - first, &|i| f(first + i)) {
            return;
        }
        f(first);
    }
}

/// A moment of waiting for another thread, which may have been taken off this very core.
pub fn pause(spins: &mut u32) {
    *spins = spins.saturating_add(1);
    match *spins < SPINS {
        true => std::hint::spin_loop(),
        false => std::thread::yield_now(),
    }
}

/// The stretch of a job's tasks that is a thread's own; the caller is thread 0.
pub fn stretch(tasks: usize, thread: usize, threads: usize) -> Range<usize> {
    tasks * thread / threads..tasks * (thread + 1) / threads
}

/// Runs a job on the pool, if no other is running there.
fn share(ahead: &Reads, tasks: usize, f: &(impl Fn(usize) + Sync)) -> bool {
    let mut guard = match pool().try_lock() {
        Ok(guard) => guard,
        Err(std::sync::TryLockError::Poisoned(e)) => e.into_inner(),
        Err(std::sync::TryLockError::WouldBlock) => return false,
    };
    let panic = guard
        .get_or_insert_with(|| Pool::start(threads() - 1))
        .run(ahead, tasks, f);
    drop(guard);
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
    true
}

fn default_threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    *DEFAULT.get_or_init(|| {
        let logical = std::thread::available_parallelism().map_or(1, usize::from);
        physical_cores().map_or(logical, |cores| cores.clamp(1, logical))
    })
}

/// Cores counted by their lists of sibling threads; `None` where the system does not say.
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()? {
        let siblings = entry.ok()?.path().join("topology/thread_siblings_list");
        if let Ok(list) = std::fs::read_to_string(siblings) {
            cores.insert(list);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

impl Pool {
    /// Starts workers; fewer if the system gives no more threads.
    fn start(n: usize) -> Pool {
        let shared = Arc::new(Shared {
            state: Line::default(),
            next: (0..=n).map(|_| Line::default()).collect(),
            ahead: Reads::default(),
            tasks: AtomicUsize::new(0),
            job: AtomicPtr::default(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |i: usize| {
            let asleep = Arc::new(AtomicBool::new(false));
            let (s, a) = (shared.clone(), asleep.clone());
            let handle = std::thread::Builder::new()
                .name(format!("biplane-cpu-{i}"))
                .spawn(move || s.work(i, &a))
                .ok()?;
            Some(Worker { asleep, handle })
        };
        let workers = (1..=n).map_while(spawn).collect();
        Pool { shared, workers }
    }

    /// Runs a job; gives the panic of a task.
    fn run(&mut self, ahead: &Reads, tasks: usize, f: Task<'_>) -> Option<Box<dyn Any + Send>> {
        let shared = &*self.shared;
        let threads = shared.next.len();
        for (i, next) in shared.next.iter().enumerate() {
            next.0
                .store(stretch(tasks, i, threads).start, Ordering::Relaxed);
        }
        for (to, from) in shared.ahead.0.iter().zip(&ahead.0).take(threads - 1) {
            to.0.store(from.0.load(Ordering::Relaxed), Ordering::Relaxed);
            to.1.store(from.1.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        shared.tasks.store(tasks, Ordering::Relaxed);
        shared
            .job
            .store((&raw const f).cast_mut().cast(), Ordering::Relaxed);
        // Publishes the job; sequentially consistent against `asleep`, see `wait_for_job`.
        shared.state.0.fetch_add(NEXT_JOB | OPEN, Ordering::SeqCst);
        for worker in &self.workers {
            // Woken once: waking takes longer than many a job.
            let asleep = &worker.asleep;
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.handle.thread().unpark();
            }
        }
        shared.claim(0, tasks, f);
        // No one may join now: `f` must outlive everyone inside.
        shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.state.0.load(Ordering::Acquire) & INSIDE != 0 {
            pause(&mut spins);
        }
        lock(&shared.panic).take()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.handle.thread().unpark();
            // A worker catches its tasks' panics, so there is none to pass on.
            let _ = worker.handle.join();
        }
    }
}

impl Shared {
    /// Does tasks until none is left, those of the thread's own stretch first.
    fn claim(&self, thread: usize, tasks: usize, f: Task<'_>) {
        let threads = self.next.len();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for owner in (thread..threads).chain(0..thread) {
                let end = stretch(tasks, owner, threads).end;
                let next = &self.next[owner].0;
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= end {
                        break;
                    }
                    f(i);
                }
            }
        }));
        if let Err(panic) = outcome {
            for next in &self.next {
                next.0.store(tasks, Ordering::Relaxed);
            }
            lock(&self.panic).get_or_insert(panic);
        }
    }

    /// Fetches what worker `thread` will read in the next job or the one after, until a job is there.
    fn fetch_ahead(&self, thread: usize, job: u64) {
        let Some((start, bytes)) = self.ahead.0.get(thread - 1) else {
            return;
        };
        let start = std::ptr::without_provenance::<u8>(start.load(Ordering::Relaxed));
        let bytes = bytes.load(Ordering::Relaxed).min(AHEAD_BYTES);
        for at in (0..bytes).step_by(CACHE_LINE) {
            let another = || self.state.0.load(Ordering::Relaxed) / NEXT_JOB != job / NEXT_JOB;
            if at.is_multiple_of(AHEAD_STEP) && another() {
                return;
            }
            prefetch(start.wrapping_add(at));
        }
    }

    /// A worker's life.
    fn work(&self, thread: usize, asleep: &AtomicBool) {
        let mut seen = 0;
        while let Some(state) = self.wait_for_job(seen, asleep) {
            let joined = self.state.0.compare_exchange(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if joined.is_err() {
                continue; // another worker joined, or the job closed: look again
            }
            seen = state & !INSIDE;
            let f = self.job.load(Ordering::Relaxed).cast::<Task<'_>>();
            // SAFETY: the job was open when this thread joined, so the caller, whose `Task` this
            // is, waits until this thread leaves.
            let f = unsafe { *f };
            self.claim(thread, self.tasks.load(Ordering::Relaxed), f);
            self.state.0.fetch_sub(1, Ordering::AcqRel);
            self.fetch_ahead(thread, seen);
        }
    }

    /// The state of an open job other than `seen`, or `None` when the pool stops.
    fn wait_for_job(&self, seen: u64, asleep: &AtomicBool) -> Option<u64> {
        let open = || {
            let state = self.state.0.load(Ordering::SeqCst);
            (state & OPEN != 0 && state & !INSIDE != seen).then_some(state)
        };
        loop {
            for _ in 0..SPINS {
                if let Some(state) = open() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            // Either this sees the job or the caller sees `asleep`: both are sequentially consistent.
            asleep.store(true, Ordering::SeqCst);
            if open().is_none() && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(tasks: usize) -> usize {
        let sum = AtomicUsize::new(0);
        parallel_for(tasks, |i| {
            sum.fetch_add(i + 1, Ordering::Relaxed);
        });
        sum.into_inner()
    }

    #[test]
    fn every_task_runs_once_from_many_callers_and_nested() {
        std::thread::scope(|scope| {
            for caller in 0..4 {
                scope.spawn(move || {
                    for round in 0..2000 {
                        let n = (round * 7 + caller) % 40;
                        assert_eq!(sum_of(n), n * (n + 1) / 2);
                        if round % 500 == 0 {
                            // Long enough for the workers to fall asleep.
                            std::thread::sleep(std::time::Duration::from_millis(3));
                        }
                        if caller == 0 && round % 700 == 0 {
                            set_threads(1 + round % 4);
                        }
                    }
                });
            }
        });
        let nested = AtomicUsize::new(0);
        parallel_for(8, |_| {
            nested.fetch_add(sum_of(10), Ordering::Relaxed);
        });
        assert_eq!(nested.into_inner(), 8 * 55);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for bad in [0, 7, 63] {
            let caught = catch_unwind(|| parallel_for(64, |i| assert!(i != bad, "task {i}")));
            let message = caught.unwrap_err();
            let message = message.downcast_ref::<String>().unwrap();
            assert_eq!(message, &format!("task {bad}"));
            assert_eq!(sum_of(100), 5050);
        }
    }
}
