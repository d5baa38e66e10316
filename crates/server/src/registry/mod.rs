//! Models by name: loaded when they are asked for, unloaded when others need their room or nobody asks.
//!
//! A [`Slot`] is one name with the state of its model. Whoever answers has a lease: a handle of the model
//! that is counted until its last clone is gone, so that no model ends under an answer. `room` decides
//! which model goes for another, `load` brings and takes them.

mod error;
mod folders;
mod load;
mod room;
mod slot;
mod sources;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use biplane::{BackendKind, IsqType, Metrics, Model, ModelBuilder, Outline};
use futures::future::BoxFuture;
use tokio::sync::watch;

pub use self::{
    error::{Error, Result},
    folders::{Find, Folders},
    room::Limits,
    sources::{Empty, Source, sources},
};
use self::{
    load::Failure,
    slot::{Claim, Outcome, Slot, State, Wanted},
};
use crate::near;

/// What is done with a model before it answers.
pub type Prepare = Arc<dyn Fn(Model) -> BoxFuture<'static, Model> + Send + Sync>;

/// All models of a server.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    /// The first is asked where none is named.
    slots: RwLock<Vec<Arc<Slot>>>,
    folders: Option<Folders>,
    /// What models are quantized to that nobody has quantized otherwise.
    isq: Option<IsqType>,
    backend: BackendKind,
    limits: Limits,
    prepare: Prepare,
    /// Held by the one load that makes room for itself.
    room: tokio::sync::Mutex<()>,
    /// Told of whatever a load or a request may wait for.
    changed: watch::Sender<()>,
}

/// A model by its name.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    /// What loads it, but for the quantization.
    pub builder: ModelBuilder,
    /// Where in a folder it was found; none where the command line names it.
    pub place: Option<PathBuf>,
}

/// A model that is lent out, until the last clone of the handle is gone.
pub struct Lease {
    pub name: String,
    pub model: Model,
}

/// The first model, which is being loaded.
pub struct First {
    slot: Arc<Slot>,
    told: watch::Sender<Option<Result<()>>>,
    before: Option<IsqType>,
}

/// How far a model is.
pub struct Status {
    pub name: String,
    pub stage: Stage,
    /// The type that it is quantized to while it is loaded.
    pub isq: Option<IsqType>,
    pub leases: usize,
    /// How often it was loaded.
    pub loads: u64,
    /// What its files say, where they are here.
    pub outline: Option<Outline>,
}

pub enum Stage {
    Unloaded,
    Loading {
        progress: Option<f64>,
        message: String,
        at_start: bool,
    },
    Loaded {
        /// A handle that is not lent: to be looked at, not kept.
        model: Model,
        /// Whether it goes when its answers have ended.
        leaving: bool,
    },
    /// It ends.
    Unloading,
    Failed(String),
}

impl Registry {
    /// Nothing is loaded yet. No two models have the same name.
    pub fn new(
        models: Vec<Entry>,
        backend: BackendKind,
        isq: Option<IsqType>,
        limits: Limits,
        prepare: Prepare,
        folders: Option<Find>,
    ) -> Self {
        let inner = Inner {
            slots: RwLock::default(),
            folders: folders.map(Folders::new),
            isq,
            backend,
            limits,
            prepare,
            room: tokio::sync::Mutex::new(()),
            changed: watch::Sender::new(()),
        };
        let slot = |entry| Arc::new(inner.slot(entry));
        inner.replace(models.into_iter().map(slot).collect());
        Registry(Arc::new(inner))
    }

    /// Whether there is one model only, and no other can come.
    pub fn is_alone(&self) -> bool {
        self.0.folders.is_none() && self.0.slots().len() == 1
    }

    /// What all models compute on.
    pub fn backend(&self) -> BackendKind {
        self.0.backend
    }

    /// Whether requests can be taken at all; each model's own state is its lease's matter.
    pub fn check(&self) -> Result<()> {
        let slots = self.0.slots();
        let ([slot], true) = (&slots[..], self.is_alone()) else {
            return Ok(());
        };
        match &slot.live().state {
            State::Loading(loading) if loading.at_start => Err(Error::Starting {
                message: loading.message.clone(),
            }),
            State::Loaded { model, .. } if !model.is_loaded() => Err(slot.stopped(true)),
            _ => Ok(()),
        }
    }

    /// The model of a name, loaded where it is not; none, an empty name and `default` are the first.
    /// All who wait for one load are told how it went, and one who leaves does not end it.
    pub async fn lease(&self, asked: Option<&str>) -> Result<Lease> {
        let slot = match asked {
            None | Some("") => self.first()?,
            Some("default") => self.find("default").or_else(|_| self.first())?,
            Some(name) => self.wanted(name).await?,
        };
        let _wanted = Wanted::new(&slot);
        loop {
            let outcome = match slot.claim(self.is_alone())? {
                Claim::Here(model) => {
                    let name = slot.name.clone();
                    return Ok(Lease { name, model });
                }
                Claim::Comes(outcome) => outcome,
                Claim::Goes(mut changed) => {
                    // It cannot end: the slot has a sender of its own.
                    let _ = changed.changed().await;
                    continue;
                }
                Claim::Absent(told, outcome) => {
                    let (registry, slot) = (self.clone(), Arc::clone(&slot));
                    let before = slot.live().isq;
                    tokio::spawn(async move { registry.bring(&slot, told, before).await });
                    outcome
                }
            };
            waited(&slot, outcome).await?;
        }
    }

    /// From now on the first model is being loaded, as the program starts; it is for
    /// [`load_first`](Self::load_first) to do it.
    pub fn begin_first(&self) -> Result<First> {
        let slot = self.first()?;
        let (before, (told, _)) = slot.change(|live| (live.isq, live.begin(true)));
        Ok(First { slot, told, before })
    }

    /// Loads the first model, whose failure ends the program.
    pub async fn load_first(&self, first: First) -> anyhow::Result<Status> {
        match self.bring(&first.slot, first.told, first.before).await {
            Ok(()) => Ok(status(&first.slot)),
            Err(Failure::Model(error)) => Err((*error).into()),
            Err(Failure::Refused(error)) => Err(error.into()),
        }
    }

    /// Loads a model, where it is not yet.
    pub async fn load(&self, name: &str) -> Result<Status> {
        let slot = self.wanted(name).await?;
        let fault = match &slot.live().state {
            State::Loaded { model, .. } => !model.is_loaded(),
            _ => false,
        };
        if fault {
            self.unload(name, true).await?;
        }
        self.lease(Some(name)).await?;
        Ok(status(&slot))
    }

    /// Unloads a model: as soon as its answers have ended, or only if it has none.
    pub async fn unload(&self, name: &str, drain: bool) -> Result<Status> {
        let slot = self.find(name)?;
        let (registry, own) = (self.clone(), Arc::clone(&slot));
        // Once begun it goes on, whether or not anybody waits for it.
        let work = async move {
            let model = registry.retire(&own, drain).await?;
            registry.close(&own, model).await;
            own.change(|live| live.state = State::Unloaded);
            Ok(())
        };
        spawned(&slot, work).await?;
        Ok(status(&slot))
    }

    /// Loads a model anew with its weights quantized as said, when its answers have ended. Where that
    /// fails the next load is as before.
    pub async fn requantize(&self, name: &str, isq: Option<IsqType>) -> Result<Status> {
        let slot = self.find(name)?;
        let (registry, own) = (self.clone(), Arc::clone(&slot));
        let work = async move { registry.swap(&own, isq).await };
        spawned(&slot, work).await?;
        Ok(status(&slot))
    }

    /// How far all models are, in their order.
    pub fn list(&self) -> Vec<Status> {
        self.0.slots().iter().map(|slot| status(slot)).collect()
    }

    /// How far a model is.
    pub async fn status(&self, name: &str) -> Result<Status> {
        self.refresh().await;
        Ok(status(&*self.find(name)?))
    }

    /// The figures of all models that are loaded.
    pub fn metrics(&self) -> Vec<(String, Metrics)> {
        let metrics = |slot: &Arc<Slot>| match &slot.live().state {
            State::Loaded { model, .. } => Some((slot.name.clone(), model.metrics())),
            _ => None,
        };
        self.0.slots().iter().filter_map(metrics).collect()
    }

    /// From now on models go that nobody has asked for so long.
    pub fn unload_idle(&self, rest: Duration) {
        let every = (rest / 4).clamp(Duration::from_millis(100), Duration::from_secs(5));
        let registry = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                for slot in &registry.0.slots() {
                    if let Some(model) = slot.take_idle(rest) {
                        tracing::info!("{} is unloaded: nobody asks", slot.name);
                        registry.close(slot, Some(model)).await;
                        slot.change(|live| live.state = State::Unloaded);
                    }
                }
            }
        });
    }

    /// Reads what the files of all models say that are here, beside everything else.
    pub fn look(&self) {
        let registry = self.clone();
        tokio::task::spawn_blocking(move || {
            registry.0.slots().iter().for_each(|slot| load::look(slot));
        });
    }

    fn first(&self) -> Result<Arc<Slot>> {
        let first = self.0.slots().first().cloned();
        first.ok_or_else(|| self.unknown(""))
    }

    fn find(&self, name: &str) -> Result<Arc<Slot>> {
        let slots = self.0.slots();
        let found = slots.into_iter().find(|slot| slot.name == name);
        found.ok_or_else(|| self.unknown(name))
    }

    /// A model that may have come into a folder just now.
    async fn wanted(&self, name: &str) -> Result<Arc<Slot>> {
        if let Ok(slot) = self.find(name) {
            return Ok(slot);
        }
        self.refresh().await;
        self.find(name)
    }

    fn unknown(&self, asked: &str) -> Error {
        /// Names that an error lists.
        const SHOWN: usize = 8;
        let all = self.0.slots();
        let names: Vec<String> = all.iter().map(|slot| format!("{:?}", slot.name)).collect();
        let known = match names.get(..SHOWN) {
            Some(some) if names.len() > SHOWN => {
                let hint = near::hint(asked, all.iter().map(|slot| slot.name.as_str()));
                let more = names.len() - SHOWN;
                format!("{} and {more} more, see /v1/models{hint}", some.join(", "))
            }
            _ if names.is_empty() => "none".into(),
            _ => names.join(", "),
        };
        Error::Unknown {
            asked: asked.to_owned(),
            known,
        }
    }
}

impl Inner {
    /// All slots as they are now.
    fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn replace(&self, slots: Vec<Arc<Slot>>) {
        *self.slots.write().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    fn slot(&self, entry: Entry) -> Slot {
        Slot::new(entry, self.isq, self.changed.clone())
    }
}

/// How a load went that somebody else does.
async fn waited(slot: &Slot, mut outcome: Outcome) -> Result<()> {
    let told = outcome.wait_for(Option::is_some).await;
    let told = told.ok().and_then(|told| told.clone());
    told.unwrap_or_else(|| Err(interrupted(slot)))
}

/// Does a work that goes on where whoever waits for it leaves.
async fn spawned(
    slot: &Slot,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<()> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Err(interrupted(slot)))
}

fn interrupted(slot: &Slot) -> Error {
    Error::Failed {
        name: slot.name.clone(),
        reason: "loading was interrupted".into(),
        memory: false,
    }
}

fn status(slot: &Slot) -> Status {
    let live = slot.live();
    Status {
        name: slot.name.clone(),
        stage: match &live.state {
            State::Unloaded => Stage::Unloaded,
            State::Loading(loading) => Stage::Loading {
                progress: loading.progress,
                message: loading.message.clone(),
                at_start: loading.at_start,
            },
            State::Loaded { model, leaving, .. } => Stage::Loaded {
                model: model.clone(),
                leaving: *leaving,
            },
            State::Closing { .. } => Stage::Unloading,
            State::Failed(reason) => Stage::Failed(reason.clone()),
        },
        isq: live.isq,
        leases: live.leases,
        loads: live.loads,
        outline: live.outline.clone(),
    }
}
