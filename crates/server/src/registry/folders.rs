//! Folders of models, which are looked through again while the server runs.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{Entry, Inner, Registry, load, slot::Slot, slot::State};

/// How long what was seen of the folders is good.
const GOOD: Duration = Duration::from_secs(1);

/// All models that the command line's folders have now.
pub type Find = Box<dyn Fn() -> anyhow::Result<Vec<Entry>> + Send + Sync>;

/// What looks through the folders.
pub struct Folders {
    find: Find,
    /// When that was last done; held meanwhile, so that all who ask at once wait for one look.
    last: tokio::sync::Mutex<Option<Instant>>,
}

impl Folders {
    pub fn new(find: Find) -> Self {
        Folders {
            find,
            last: tokio::sync::Mutex::default(),
        }
    }
}

/// What a file or directory is like: where this changes, it is another model, or has become whole.
pub type Stamp = Option<(u64, SystemTime)>;

/// Of a directory its configuration counts, which is there as soon as it is a model.
pub fn stamp(place: &Path) -> Stamp {
    let config = place.join("config.json");
    let data = std::fs::metadata(if config.is_file() { &config } else { place }).ok()?;
    Some((data.len(), data.modified().ok()?))
}

impl Registry {
    /// Looks through the folders again, unless that was done in the last second.
    pub async fn refresh(&self) {
        let Some(folders) = &self.0.folders else {
            return;
        };
        let mut last = folders.last.lock().await;
        if last.is_some_and(|last| last.elapsed() < GOOD) {
            return;
        }
        let registry = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let Some(folders) = &registry.0.folders else {
                return Vec::new();
            };
            match (folders.find)() {
                Ok(found) => registry.0.merge(found),
                // What was there stays.
                Err(error) => {
                    tracing::warn!("the models' folders cannot be read anew: {error:#}");
                    Vec::new()
                }
            }
        });
        for slot in looked.await.unwrap_or_default() {
            tracing::info!("{} is no longer in its folder", slot.name);
            if let Some(model) = slot.take_idle(Duration::ZERO) {
                let (registry, slot) = (self.clone(), Arc::clone(&slot));
                tokio::spawn(async move {
                    registry.close(&slot, Some(model)).await;
                    slot.change(|live| live.state = State::Unloaded);
                });
            }
        }
        *last = Some(Instant::now());
    }
}

impl Inner {
    /// Takes over what was found in the folders; gives what is gone.
    fn merge(&self, found: Vec<Entry>) -> Vec<Arc<Slot>> {
        let old = self.slots();
        let is = |slot: &Slot, entry: &Entry| {
            slot.name == entry.name && slot.place.is_some() && slot.place == entry.place
        };
        let known = |entry: &Entry| old.iter().find(|slot| is(slot, entry));
        let gone =
            |slot: &&Arc<Slot>| slot.place.is_some() && !found.iter().any(|entry| is(slot, entry));
        // Who answers or is asked for stays until that is over.
        let (stay, go): (Vec<_>, Vec<_>) = old
            .iter()
            .filter(gone)
            .cloned()
            .partition(|slot| slot.is_busy());
        let named = old.iter().filter(|slot| slot.place.is_none());
        let mut all: Vec<_> = named.cloned().chain(stay).collect();
        for entry in &found {
            let slot = match known(entry) {
                Some(slot) => Arc::clone(slot),
                None if all.iter().any(|slot| slot.name == entry.name) => continue,
                None => Arc::new(self.slot(entry.clone())),
            };
            let now = slot.place.as_deref().and_then(stamp);
            let before = std::mem::replace(&mut slot.live().stamp, now);
            if known(entry).is_none() || before != now {
                slot.live().outline = None;
                load::look(&slot);
            }
            all.push(slot);
        }
        self.replace(all);
        go
    }
}
