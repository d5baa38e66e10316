//! Calls' ids: nine letters and digits, which is what Mistral's templates demand and no other minds.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const LENGTH: u32 = 9;
const IDS: u64 = 62u64.pow(LENGTH);
/// Shares no factor with [`IDS`], so that every id comes before one comes again.
const STEP: u64 = 4_965_112_370_947_213;

static NEXT: LazyLock<AtomicU64> =
    LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(LENGTH)));

/// An id that this process has not given before.
pub(super) fn next() -> String {
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut rest = u128::from(count) * u128::from(STEP) % u128::from(IDS);
    let mut id = String::new();
    for _ in 0..LENGTH {
        let letter = ALPHABET.get((rest % 62) as usize).copied().unwrap_or(b'0');
        id.push(char::from(letter));
        rest /= 62;
    }
    id
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_nine_letters_and_differ() {
        let ids: HashSet<String> = (0..10_000).map(|_| next()).collect();
        assert_eq!(ids.len(), 10_000);
        let shape = |id: &String| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric());
        assert!(ids.iter().all(shape));
        const { assert!(STEP % 2 == 1 && !STEP.is_multiple_of(31)) };
    }
}
