//! Which models may be loaded at once, and which one goes when another needs its room.

use std::time::Instant;

/// What loaded models may take together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// How many there may be.
    pub models: Option<usize>,
    /// Bytes of their weights and KV caches.
    pub memory: Option<u64>,
    /// Bytes of one model's KV caches, where `memory` is set.
    pub kv: u64,
}

/// A model that has memory.
#[derive(Clone, Copy, Debug)]
pub struct Held<T> {
    pub model: T,
    pub bytes: u64,
    pub use_of: Use,
}

/// What becomes of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It stays: the model answers, or is being loaded.
    Busy,
    /// It can be had: nobody has asked since.
    Idle(Instant),
    /// It comes back by itself.
    Closing,
}

/// What is to be done before another model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room<T> {
    Enough,
    Unload(T),
    Wait,
    /// Too many stay.
    Full(Limit),
    /// It fits with no other beside it.
    TooLarge,
}

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Models,
    Memory,
}

impl Limits {
    /// What `need` bytes more are to wait for. Nothing is unloaded that would not help.
    pub fn room<T: Copy>(&self, need: u64, held: &[Held<T>]) -> Room<T> {
        if self.memory.is_some_and(|memory| need > memory) {
            return Room::TooLarge;
        }
        let exceeded = |all: &dyn Fn(&Held<T>) -> bool| {
            let count = held.iter().filter(|held| all(held)).count();
            let bytes = held.iter().filter(|held| all(held));
            let bytes = bytes.fold(need, |sum, held| sum.saturating_add(held.bytes));
            if self.models.is_some_and(|most| count >= most) {
                return Some(Limit::Models);
            }
            let memory = self.memory.is_some_and(|most| bytes > most);
            memory.then_some(Limit::Memory)
        };
        if exceeded(&|_| true).is_none() {
            return Room::Enough;
        }
        if let Some(limit) = exceeded(&|held| held.use_of == Use::Busy) {
            return Room::Full(limit);
        }
        if exceeded(&|held| held.use_of != Use::Closing).is_none() {
            return Room::Wait;
        }
        let idle = held.iter().filter_map(|held| match held.use_of {
            Use::Idle(since) => Some((since, held.model)),
            _ => None,
        });
        match idle.min_by_key(|(since, _)| *since) {
            Some((_, model)) => Room::Unload(model),
            None => Room::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn held(model: usize, bytes: u64, use_of: Use) -> Held<usize> {
        Held {
            model,
            bytes,
            use_of,
        }
    }

    fn limits(models: Option<usize>, memory: Option<u64>) -> Limits {
        Limits {
            models,
            memory,
            kv: 0,
        }
    }

    #[test]
    fn without_limits_there_is_always_room() {
        let all = [held(0, u64::MAX, Use::Busy), held(1, u64::MAX, Use::Busy)];
        assert_eq!(limits(None, None).room(u64::MAX, &all), Room::Enough);
    }

    #[test]
    fn the_one_that_rests_longest_goes() {
        let now = Instant::now();
        let idle = |seconds| Use::Idle(now + Duration::from_secs(seconds));
        let two = limits(Some(2), None);
        assert_eq!(two.room(0, &[held(0, 0, Use::Busy)]), Room::Enough);
        let both = [held(0, 0, idle(5)), held(1, 0, idle(3))];
        assert_eq!(two.room(0, &both), Room::Unload(1));
        let both = [held(0, 0, Use::Busy), held(1, 0, idle(3))];
        assert_eq!(two.room(0, &both), Room::Unload(1));
        let both = [held(0, 0, Use::Busy), held(1, 0, Use::Busy)];
        assert_eq!(two.room(0, &both), Room::Full(Limit::Models));
    }

    #[test]
    fn nothing_goes_in_vain() {
        let idle = Use::Idle(Instant::now());
        let memory = limits(None, Some(8));
        let held_by = |busy, rest| [held(0, busy, Use::Busy), held(1, rest, idle)];
        assert_eq!(memory.room(2, &held_by(4, 2)), Room::Enough);
        assert_eq!(memory.room(4, &held_by(4, 2)), Room::Unload(1));
        assert_eq!(memory.room(6, &held_by(4, 2)), Room::Full(Limit::Memory));
        assert_eq!(memory.room(9, &held_by(0, 0)), Room::TooLarge);
        // What goes already is waited for.
        let closing = [held(0, 4, Use::Closing), held(1, 4, idle)];
        assert_eq!(memory.room(4, &closing), Room::Wait);
        assert_eq!(memory.room(5, &closing), Room::Unload(1));
    }
}
