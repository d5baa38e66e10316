//! One name, and how far its model is.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use biplane::{IsqType, Model, ModelBuilder, Outline};
use tokio::sync::watch;

use super::{
    Entry,
    error::{Error, Result},
    folders::{self, Stamp},
    room::{Held, Use},
};

/// How a load went, as all who wait for it are told.
pub type Outcome = watch::Receiver<Option<Result<()>>>;

/// A name, and its model.
pub struct Slot {
    pub name: String,
    /// What loads it, but for the quantization.
    base: ModelBuilder,
    /// Where in a folder it was found.
    pub place: Option<PathBuf>,
    live: Mutex<Live>,
    /// The registry's own: told of whatever others may wait for.
    changed: watch::Sender<()>,
}

/// What changes of it.
pub struct Live {
    pub state: State,
    pub isq: Option<IsqType>,
    /// Handles that are lent out.
    pub leases: usize,
    /// Requests that wait for the model.
    pub wanted: usize,
    pub last_used: Instant,
    /// How often it was loaded.
    pub loads: u64,
    pub outline: Option<Outline>,
    /// What its place was like when that was read.
    pub stamp: Stamp,
}

pub enum State {
    Unloaded,
    Loading(Loading),
    Loaded {
        model: Model,
        bytes: u64,
        /// Whether it goes as soon as its leases have ended; none are made meanwhile.
        leaving: bool,
    },
    /// Its engine ends.
    Closing {
        bytes: u64,
    },
    Failed(String),
}

pub struct Loading {
    /// Of the present task, 0 to 1; none where that is not known.
    pub progress: Option<f64>,
    pub message: String,
    /// Whether the program has begun with it.
    pub at_start: bool,
    pub outcome: Outcome,
    /// What is reserved for it, once there is room.
    pub granted: Option<u64>,
}

impl Loading {
    /// Whether whoever loads it is gone.
    fn is_lost(&self) -> bool {
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_err()
    }
}

/// What somebody who wants the model finds.
pub enum Claim {
    Here(Model),
    /// It is being loaded.
    Comes(Outcome),
    /// It goes; then it can be loaded.
    Goes(watch::Receiver<()>),
    /// It is to be loaded, and whoever asks has to tell of it here.
    Absent(watch::Sender<Option<Result<()>>>, Outcome),
}

impl Slot {
    pub fn new(entry: Entry, isq: Option<IsqType>, changed: watch::Sender<()>) -> Self {
        Slot {
            name: entry.name,
            base: entry.builder,
            live: Mutex::new(Live {
                state: State::Unloaded,
                isq,
                leases: 0,
                wanted: 0,
                last_used: Instant::now(),
                loads: 0,
                outline: None,
                stamp: entry.place.as_deref().and_then(folders::stamp),
            }),
            place: entry.place,
            changed,
        }
    }

    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and tells those who wait.
    pub fn change<T>(&self, f: impl FnOnce(&mut Live) -> T) -> T {
        let result = f(&mut self.live());
        self.changed.send_replace(());
        result
    }

    /// What loads it as it is to be now.
    pub fn builder(&self) -> ModelBuilder {
        match self.live().isq {
            Some(isq) => self.base.clone().with_isq(isq),
            None => self.base.clone(),
        }
    }

    /// Notes how far loading has come.
    pub fn note(&self, progress: biplane::Progress<'_>) {
        if let State::Loading(loading) = &mut self.live().state {
            let known = progress.total > 0;
            loading.progress = known.then(|| progress.done as f64 / progress.total as f64);
            progress.task.clone_into(&mut loading.message);
        }
    }

    /// What is to be done to have the model.
    pub fn claim(self: &Arc<Self>, alone: bool) -> Result<Claim> {
        let mut live = self.live();
        match &live.state {
            State::Loaded { leaving: true, .. } | State::Closing { .. } => {
                return Ok(Claim::Goes(self.changed.subscribe()));
            }
            State::Loaded { model, .. } if !model.is_loaded() => return Err(self.stopped(alone)),
            State::Loaded { model, .. } => {
                let model = model.clone();
                live.leases += 1;
                live.last_used = Instant::now();
                return Ok(Claim::Here(model.keeping(Arc::new(Lent(Arc::clone(self))))));
            }
            State::Loading(loading) if !loading.is_lost() => {
                let message = &loading.message;
                return match alone && loading.at_start {
                    true => Err(Error::Starting {
                        message: message.clone(),
                    }),
                    false => Ok(Claim::Comes(loading.outcome.clone())),
                };
            }
            State::Loading(_) | State::Unloaded | State::Failed(_) => {}
        }
        let (told, outcome) = live.begin(false);
        Ok(Claim::Absent(told, outcome))
    }

    /// Why a model whose engine is gone does not answer.
    pub fn stopped(&self, alone: bool) -> Error {
        match alone {
            true => Error::Stopped {
                of: String::new(),
                remedy: "restart the server",
            },
            false => Error::Stopped {
                of: format!(" of {:?}", self.name),
                remedy: "load it anew (POST /v1/models/load), or restart the server",
            },
        }
    }

    /// Whether somebody has the model, wants it, or changes something.
    pub fn is_busy(&self) -> bool {
        let live = self.live();
        let moves = match &live.state {
            State::Loading(loading) => !loading.is_lost(),
            State::Closing { .. } => true,
            State::Loaded { leaving, .. } => *leaving,
            State::Unloaded | State::Failed(_) => false,
        };
        moves || live.leases > 0 || live.wanted > 0
    }

    /// Takes the model out, if nobody has it or wants it, and it has not been used for so long.
    pub fn take_idle(&self, rest: Duration) -> Option<Model> {
        let mut live = self.live();
        let idle = live.leases == 0 && live.wanted == 0 && live.last_used.elapsed() >= rest;
        match live.state {
            State::Loaded { leaving: false, .. } if idle => live.take(),
            _ => None,
        }
    }

    /// What it takes of the registry's room.
    pub fn held<T>(&self, model: T) -> Option<Held<T>> {
        let live = self.live();
        let (bytes, use_of) = match &live.state {
            State::Loaded { bytes, leaving, .. } => {
                let idle = !leaving && live.leases == 0 && live.wanted == 0;
                let since = Use::Idle(live.last_used);
                (*bytes, if idle { since } else { Use::Busy })
            }
            State::Loading(loading) => (loading.granted?, Use::Busy),
            State::Closing { bytes } => (*bytes, Use::Closing),
            State::Unloaded | State::Failed(_) => return None,
        };
        Some(Held {
            model,
            bytes,
            use_of,
        })
    }
}

impl Live {
    /// From now on it is being loaded.
    pub fn begin(&mut self, at_start: bool) -> (watch::Sender<Option<Result<()>>>, Outcome) {
        let (told, outcome) = watch::channel(None);
        self.state = State::Loading(Loading {
            progress: None,
            message: "finding the model".into(),
            at_start,
            outcome: outcome.clone(),
            granted: None,
        });
        (told, outcome)
    }

    /// Takes the model out, if it may go now: where it drains, all answers have ended, else nobody wants
    /// it either.
    pub fn let_go(&mut self, drain: bool) -> Looked {
        let (leases, wanted) = (self.leases, self.wanted);
        match &mut self.state {
            State::Unloaded | State::Failed(_) => {
                self.state = State::Closing { bytes: 0 };
                Looked::Took(None)
            }
            State::Loading(_) => Looked::Loads,
            State::Closing { .. } => Looked::Waits,
            State::Loaded { leaving: true, .. } if !drain => Looked::Waits,
            State::Loaded { .. } if leases == 0 && (drain || wanted == 0) => {
                Looked::Took(self.take())
            }
            State::Loaded { .. } if !drain => Looked::Used(leases.max(wanted)),
            State::Loaded { leaving, .. } => {
                *leaving = true;
                Looked::Waits
            }
        }
    }

    /// Takes the model out, whoever has a handle of it.
    pub fn take(&mut self) -> Option<Model> {
        let bytes = match &self.state {
            State::Loaded { bytes, .. } => *bytes,
            _ => return None,
        };
        match std::mem::replace(&mut self.state, State::Closing { bytes }) {
            State::Loaded { model, .. } => Some(model),
            _ => None,
        }
    }
}

/// What is found of a model that is to go.
pub enum Looked {
    /// The model, where there was one; nobody begins anything until its slot is told what comes next.
    Took(Option<Model>),
    Loads,
    /// Something changes first.
    Waits,
    /// By so many it is used.
    Used(usize),
}

/// A handle that is lent out; a model keeps it until its last clone is gone.
struct Lent(Arc<Slot>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.change(|live| {
            live.leases = live.leases.saturating_sub(1);
            live.last_used = Instant::now();
        });
    }
}

/// Somebody waits for the model; it is not unloaded meanwhile.
pub struct Wanted(Arc<Slot>);

impl Wanted {
    pub fn new(slot: &Arc<Slot>) -> Self {
        slot.live().wanted += 1;
        Wanted(Arc::clone(slot))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0
            .change(|live| live.wanted = live.wanted.saturating_sub(1));
    }
}
