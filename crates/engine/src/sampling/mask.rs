/// A set of token ids: what a grammar allows next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// No token of a vocabulary of `size`.
    pub fn none(size: usize) -> Self {
        TokenMask {
            words: vec![0; size.div_ceil(32)],
        }
    }

    /// From 32 ids in each word, the lowest id in the lowest bit.
    pub fn from_words(words: Vec<u32>) -> Self {
        TokenMask { words }
    }

    /// The 32 ids in each word, the lowest id in the lowest bit. Ids beyond them are not allowed.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Allows a token; nothing for ids outside the vocabulary.
    pub fn allow(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 32) {
            *word |= 1 << (id % 32);
        }
    }

    /// Whether the token is allowed.
    pub fn allows(&self, id: u32) -> bool {
        let word = self.words.get(id as usize / 32);
        word.is_some_and(|word| (word >> (id % 32)) & 1 == 1)
    }

    /// How many tokens are allowed.
    pub fn count(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// The allowed ids, rising.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().zip(0u32..).flat_map(|(&word, i)| {
            let next = |left: &u32| Some(left & (left - 1)).filter(|&left| left != 0);
            std::iter::successors(Some(word).filter(|&word| word != 0), next)
                .map(move |left| i * 32 + left.trailing_zeros())
        })
    }

    /// Makes the scores of all other tokens minus infinity.
    pub(super) fn apply(&self, scores: &mut [f32]) {
        let words = self.words.iter().chain(std::iter::repeat(&0));
        for (chunk, &word) in scores.chunks_mut(32).zip(words) {
            match word {
                0 => chunk.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, score) in chunk.iter_mut().enumerate() {
                        let allowed = word & (1 << bit) != 0;
                        *score = if allowed { *score } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
    }
}

impl FromIterator<u32> for TokenMask {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let ids: Vec<u32> = ids.into_iter().collect();
        let mut mask = TokenMask::none(ids.iter().max().map_or(0, |&id| id as usize + 1));
        ids.into_iter().for_each(|id| mask.allow(id));
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_the_set_of_its_ids() {
        let ids = [0, 5, 31, 32, 63, 95, 99];
        let mask: TokenMask = ids.into_iter().collect();
        assert_eq!(mask.iter().collect::<Vec<_>>(), ids);
        assert_eq!(mask.count(), ids.len());
        assert!((0..200).all(|id| mask.allows(id) == ids.contains(&id)));
        assert_eq!(TokenMask::none(0).iter().next(), None);
        // Longer and shorter than the mask, with a word of nothing and one of everything.
        let mask = TokenMask::from_words(vec![5, 0, u32::MAX]);
        for size in [3, 64, 80, 96, 150] {
            let mut scores = vec![1.0; size];
            mask.apply(&mut scores);
            for (id, score) in (0..).zip(scores) {
                assert_eq!(score == 1.0, mask.allows(id), "{id} of {size}");
            }
        }
    }
}
