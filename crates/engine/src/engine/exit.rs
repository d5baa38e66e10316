//! The end of the process: engines' threads stand still before the static objects of a C++ library
//! (MLX's allocator) are destroyed under their hands.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

/// The longest that an exiting process waits for steps under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Engines' threads that are at work: not waiting for any.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
static EXITING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Made first on its thread, it goes last: after what backends keep for a thread.
    static WORK: Work = Work::begin();
}

/// A thread at work.
struct Work;

impl Work {
    fn begin() -> Self {
        AT_WORK.fetch_add(1, SeqCst);
        if is_near() {
            stand();
        }
        Work
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, SeqCst);
    }
}

/// Says that this thread is at work from now to its end.
pub(super) fn at_work() {
    WORK.with(|_| ());
}

/// Waits for something by `wait`; the thread is not at work meanwhile, nor is anything that it started.
pub(super) fn at_rest<T>(wait: impl FnOnce() -> T) -> T {
    AT_WORK.fetch_sub(1, SeqCst);
    let value = wait();
    AT_WORK.fetch_add(1, SeqCst);
    if is_near() {
        stand();
    }
    value
}

/// Whether the process is exiting and waits for the engines: to [`stand`].
pub(super) fn is_near() -> bool {
    EXITING.load(SeqCst)
}

/// Does nothing more on this thread. What it started on a device must have ended.
pub(super) fn stand() -> ! {
    AT_WORK.fetch_sub(1, SeqCst);
    loop {
        thread::park();
    }
}

/// Has an exiting process wait for the engines. Called when a backend has made its static objects:
/// what is registered last runs first.
pub(super) fn wait_for_engines() {
    #[cfg(unix)]
    // SAFETY: `stop` lives as long as the process, takes and gives nothing, and does not unwind.
    unsafe {
        libc::atexit(stop);
    }
}

#[cfg(unix)]
extern "C" fn stop() {
    // Registered for every model; the last one's call has waited for all.
    if EXITING.swap(true, SeqCst) {
        return;
    }
    let begun = Instant::now();
    while AT_WORK.load(SeqCst) > 0 && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_micros(200));
    }
}
