//! Finished sequences' caches, kept for later ones that begin alike.

use biplane_models::{ModelRunner, SlotId};

/// A kept sequence.
#[derive(Debug)]
pub(super) struct Kept {
    pub slot: SlotId,
    pub tokens: Vec<u32>,
    pub bytes: usize,
    /// Whether it ends where requests part: it is copied and never taken over.
    pub branch: bool,
    used: u64,
}

/// Kept sequences; the least recently used one goes first.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    kept: Vec<Kept>,
    clock: u64,
}

/// How many tokens two sequences have in common at their beginning.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// Index and tokens that can be used.
    pub usable: Option<(usize, usize)>,
    /// Most tokens in common with any kept sequence, reachable or not.
    pub common: usize,
}

impl PrefixCache {
    /// The kept sequence of which most tokens can be used for `tokens`, at most `limit`.
    pub fn find(&self, runner: &dyn ModelRunner, tokens: &[u32], limit: usize) -> Match {
        let mut found = Match::default();
        for (i, kept) in self.kept.iter().enumerate() {
            let shared = common(&kept.tokens, tokens);
            found.common = found.common.max(shared);
            let usable = shared.min(limit);
            let better = found.usable.is_none_or(|(_, best)| usable > best);
            if usable > 0 && better && runner.can_go_back_to(kept.slot, usable) {
                found.usable = Some((i, usable));
            }
        }
        found
    }

    /// The kept sequence at an index of [`Self::find`], marked as used.
    pub fn touch(&mut self, index: usize) -> Option<&Kept> {
        self.clock += 1;
        let kept = self.kept.get_mut(index)?;
        kept.used = self.clock;
        Some(kept)
    }

    /// Hands a kept sequence over to a running one.
    pub fn take(&mut self, index: usize) -> Kept {
        self.kept.swap_remove(index)
    }

    /// Keeps a sequence; what it makes needless goes, it itself where another holds all of it.
    pub fn keep(
        &mut self,
        runner: &mut dyn ModelRunner,
        slot: SlotId,
        tokens: Vec<u32>,
        branch: bool,
    ) {
        self.clock += 1;
        let used = self.clock;
        let covering = self.kept.iter_mut().find(|kept| {
            kept.tokens.starts_with(&tokens) && runner.can_go_back_to(kept.slot, tokens.len())
        });
        if let Some(kept) = covering {
            kept.used = used;
            kept.branch |= branch && kept.tokens.len() == tokens.len();
            runner.close(slot);
            return;
        }
        self.kept.retain(|kept| {
            let needless =
                tokens.starts_with(&kept.tokens) && runner.can_go_back_to(slot, kept.tokens.len());
            if needless {
                runner.close(kept.slot);
            }
            !needless
        });
        if let Err(error) = runner.rest(slot) {
            tracing::warn!("a prefix cannot be kept: {error}");
            runner.close(slot);
            return;
        }
        self.kept.push(Kept {
            bytes: runner.bytes(slot, 0),
            slot,
            tokens,
            branch,
            used,
        });
    }

    /// Frees the least recently used sequence, but for the one at `except`; whether there was one.
    pub fn evict(&mut self, runner: &mut dyn ModelRunner, except: Option<SlotId>) -> bool {
        let oldest = (0..self.kept.len())
            .filter(|&i| self.kept.get(i).map(|k| k.slot) != except)
            .min_by_key(|&i| self.kept.get(i).map(|k| k.used));
        match oldest {
            Some(index) => {
                runner.close(self.kept.swap_remove(index).slot);
                true
            }
            None => false,
        }
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.bytes).sum()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }
}
