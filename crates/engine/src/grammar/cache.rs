//! What is kept of compiled constraints.

use std::collections::HashMap;

use llguidance::Matcher;

/// The compiled constraints that were used last, as many as a number of bytes holds.
pub(super) struct Cache {
    entries: HashMap<String, Entry>,
    most: usize,
    bytes: usize,
    clock: u64,
}

struct Entry {
    matcher: Matcher,
    bytes: usize,
    used: u64,
}

impl Cache {
    pub fn new(most: usize) -> Self {
        Cache {
            entries: HashMap::new(),
            most,
            bytes: 0,
            clock: 0,
        }
    }

    /// A matcher at its beginning, independent of all others.
    pub fn get(&mut self, key: &str) -> Option<Matcher> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.matcher.deep_clone())
    }

    /// Keeps a matcher of about `bytes`, if there is room for it at all.
    pub fn put(&mut self, key: String, matcher: Matcher, bytes: usize) {
        let bytes = bytes + key.len();
        if bytes > self.most {
            return;
        }
        self.clock += 1;
        let entry = Entry {
            matcher,
            bytes,
            used: self.clock,
        };
        self.bytes += bytes;
        if let Some(old) = self.entries.insert(key, entry) {
            self.bytes -= old.bytes;
        }
        while self.bytes > self.most {
            let oldest = self.entries.iter().min_by_key(|(_, e)| e.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            if let Some(old) = self.entries.remove(&key) {
                self.bytes -= old.bytes;
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
