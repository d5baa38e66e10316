//! How models come and go.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use biplane::{IsqType, Model};
use tokio::sync::watch;

use super::{
    Registry,
    error::{Error, Result},
    room::{Limit, Room},
    slot::{Live, Looked, Slot, State},
};
use crate::report::{self, Progress};

/// How long answers may take to end when their model is to go.
const DRAIN: Duration = Duration::from_secs(300);
/// How long a moment is: an answer that is over is still counted until its last piece is written.
const MOMENT: Duration = Duration::from_secs(1);
/// How long an engine may take to end and to write what it keeps.
const CLOSE: Duration = Duration::from_secs(30);

/// Why a model is not loaded.
pub enum Failure {
    Model(Box<biplane::Error>),
    Refused(Error),
}

impl Failure {
    /// As those who wait are told.
    fn told(&self, name: &str) -> Error {
        match self {
            Failure::Refused(error) => error.clone(),
            Failure::Model(error) => Error::Failed {
                name: name.to_owned(),
                reason: error.to_string(),
                memory: matches!(**error, biplane::Error::Memory { .. }),
            },
        }
    }
}

impl From<biplane::Error> for Failure {
    fn from(error: biplane::Error) -> Self {
        Failure::Model(Box::new(error))
    }
}

impl Registry {
    /// Loads a model whose slot says already that it is being loaded, and tells all who wait.
    /// Where it fails, the next load quantizes as `before`.
    pub(super) async fn bring(
        &self,
        slot: &Arc<Slot>,
        told: watch::Sender<Option<Result<()>>>,
        before: Option<IsqType>,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let at_start = matches!(&slot.live().state, State::Loading(loading) if loading.at_start);
        let made = self.make(slot).await;
        let outcome = slot.change(|live| match &made {
            Ok(model) => {
                let weights = model.info().weight_bytes as u64;
                live.last_used = Instant::now();
                live.loads += 1;
                live.state = State::Loaded {
                    model: model.clone(),
                    bytes: weights.saturating_add(self.0.limits.kv),
                    leaving: false,
                };
                Ok(())
            }
            Err(failure) => {
                let error = failure.told(&slot.name);
                live.isq = before;
                live.state = match failure {
                    // The model itself is as good as before.
                    Failure::Refused(_) => State::Unloaded,
                    Failure::Model(error) => State::Failed(error.to_string()),
                };
                Err(error)
            }
        });
        match &outcome {
            Ok(()) => {
                tracing::info!("{} is loaded, in {:.1?}", slot.name, begin.elapsed());
            }
            // Whoever ends the program for it says why.
            Err(_) if at_start => {}
            Err(error) => tracing::warn!("{error}"),
        }
        let _ = told.send(Some(outcome));
        let model = made?;
        // The first constrained answer must not wait for it.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = model.prepare_constraints() {
                tracing::warn!("answers cannot be constrained: {error}");
            }
        });
        Ok(())
    }

    async fn make(&self, slot: &Arc<Slot>) -> Result<Model, Failure> {
        self.make_room(slot).await?;
        let progress = Progress::new(false);
        let (told, show) = (Arc::clone(slot), progress.shower());
        let builder = slot.builder().with_progress(move |p| {
            told.note(p);
            show(p);
        });
        let model = builder.build().await?;
        progress.clear();
        let looked = Arc::clone(slot);
        // Of what was downloaded nothing could be known before.
        let _ = tokio::task::spawn_blocking(move || look(&looked)).await;
        Ok((self.0.prepare)(model).await)
    }

    /// Unloads others, as far as the limits need it.
    async fn make_room(&self, slot: &Arc<Slot>) -> Result<(), Failure> {
        let limits = &self.0.limits;
        let need = match limits.memory {
            Some(_) => {
                let told = Arc::clone(slot);
                let builder = slot.builder().with_progress(move |p| told.note(p));
                let outline = tokio::task::spawn_blocking(move || builder.outline()).await;
                let outline = outline
                    .map_err(|e| biplane::Error::Stopped(format!("reading the model: {e}")))??;
                outline.weight_bytes.saturating_add(limits.kv)
            }
            None => 0,
        };
        let _turn = self.0.room.lock().await;
        let begin = tokio::time::Instant::now();
        loop {
            // From before looking: what changes meanwhile counts.
            let mut changed = self.0.changed.subscribe();
            let slots = self.0.slots();
            let others = slots.iter().filter(|other| !Arc::ptr_eq(other, slot));
            let held: Vec<_> = others.filter_map(|other| other.held(&**other)).collect();
            match limits.room(need, &held) {
                Room::Enough => {
                    slot.change(|live| {
                        if let State::Loading(loading) = &mut live.state {
                            loading.granted = Some(need);
                        }
                    });
                    return Ok(());
                }
                Room::Unload(other) => {
                    let other = slots.iter().find(|s| std::ptr::eq(&***s, other));
                    // It may have been asked for in this moment.
                    if let Some(other) = other
                        && let Some(model) = other.take_idle(Duration::ZERO)
                    {
                        tracing::info!("{} is unloaded, for {}", other.name, slot.name);
                        self.close(other, Some(model)).await;
                        other.change(|live| live.state = State::Unloaded);
                    }
                }
                Room::Wait => drop(changed.changed().await),
                Room::Full(limit) => {
                    let changes = tokio::time::timeout_at(begin + MOMENT, changed.changed());
                    if changes.await.is_err() {
                        return Err(Failure::Refused(self.full(slot, limit)));
                    }
                }
                Room::TooLarge => {
                    return Err(Failure::Refused(Error::TooLarge {
                        name: slot.name.clone(),
                        needed: need,
                        allowed: limits.memory.unwrap_or(0),
                    }));
                }
            }
        }
    }

    fn full(&self, slot: &Slot, limit: Limit) -> Error {
        let limits = &self.0.limits;
        let (used, limit) = match limit {
            Limit::Models => {
                let most = limits.models.unwrap_or(0);
                (format!("--max-models {most} are loaded"), "--max-models")
            }
            Limit::Memory => {
                let all = report::bytes(limits.memory.unwrap_or(0));
                let used = format!("the loaded models leave too little of --models-memory {all}");
                (used, "--models-memory")
            }
        };
        Error::Full {
            name: slot.name.clone(),
            used,
            limit,
        }
    }

    /// Takes the model out of its slot, if there is one, and leaves the slot closing: nobody else begins
    /// anything there. Waits for answers to end where it may.
    pub(super) async fn retire(&self, slot: &Slot, drain: bool) -> Result<Option<Model>> {
        let begin = tokio::time::Instant::now();
        loop {
            let mut changed = self.0.changed.subscribe();
            let looked = slot.live().let_go(drain);
            match looked {
                Looked::Took(model) => return Ok(model),
                Looked::Loads => {
                    let name = slot.name.clone();
                    return Err(Error::Loading { name });
                }
                Looked::Used(leases) => {
                    let changes = tokio::time::timeout_at(begin + MOMENT, changed.changed());
                    if changes.await.is_err() {
                        return Err(Error::InUse {
                            name: slot.name.clone(),
                            leases,
                            remedy: "try again when they have ended, or send \"drain\": true to wait for them",
                        });
                    }
                }
                Looked::Waits => {
                    if tokio::time::timeout_at(begin + DRAIN, changed.changed())
                        .await
                        .is_err()
                    {
                        return Err(self.stays(slot));
                    }
                }
            }
        }
    }

    /// The answers did not end in time.
    fn stays(&self, slot: &Slot) -> Error {
        slot.change(|live| {
            if let State::Loaded { leaving, .. } = &mut live.state {
                *leaving = false;
            }
            Error::InUse {
                name: slot.name.clone(),
                leases: live.leases,
                remedy: "they did not end in five minutes; try again when they have ended",
            }
        })
    }

    /// Waits until a model's engine has ended.
    pub(super) async fn close(&self, slot: &Slot, model: Option<Model>) {
        let Some(model) = model else { return };
        if tokio::time::timeout(CLOSE, model.close()).await.is_err() {
            tracing::warn!("the engine of {} takes long to end", slot.name);
        }
    }

    /// Another quantization.
    pub(super) async fn swap(&self, slot: &Arc<Slot>, isq: Option<IsqType>) -> Result<()> {
        let same = |live: &Live| {
            live.isq == isq
                && matches!(&live.state, State::Loaded { model, .. } if model.is_loaded())
        };
        if same(&slot.live()) {
            return Ok(());
        }
        let model = self.retire(slot, true).await?;
        self.close(slot, model).await;
        let (before, (told, _outcome)) =
            slot.change(|live| (std::mem::replace(&mut live.isq, isq), live.begin(false)));
        let brought = self.bring(slot, told, before).await;
        brought.map_err(|failure| failure.told(&slot.name))
    }
}

/// Notes what a model's files say, if they are here.
pub fn look(slot: &Slot) {
    if let Ok(outline) = slot.builder().offline().outline() {
        slot.live().outline = Some(outline);
    }
}
