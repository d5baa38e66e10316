use super::{spellings::Spellings, table::Table};

/// Which two tokens are merged into one, and which before which.
#[derive(Clone, Debug)]
pub(super) enum Merges {
    /// Those of a list, in its order.
    Listed {
        /// Left, right, both together.
        pairs: Vec<[u32; 3]>,
        ranks: Table,
    },
    /// All of two tokens that together are spelled as a third one: SentencePiece keeps no list. The third
    /// one's greater score comes first, then the longer left part, then the longer token.
    Scored {
        /// By id: the lower, the greater the score; [`NEVER`] for tokens that no merge has to do with.
        orders: Vec<u32>,
    },
}

/// The order of a token that is neither merged nor part of a merge.
const NEVER: u32 = u32::MAX;

/// When a merge is done; lower ones are done first.
pub(super) type Rank = u128;

impl Merges {
    /// Pairs of spellings, each a merge. Of two alike the later counts.
    pub fn listed<'t>(
        spellings: &Spellings,
        listed: impl ExactSizeIterator<Item = (&'t str, &'t str)>,
    ) -> Result<Self, String> {
        let count = listed.len();
        if u32::try_from(count).is_err() {
            return Err(format!("{count} merges"));
        }
        let mut pairs = Vec::with_capacity(count);
        let mut whole = String::new();
        for (left, right) in listed {
            whole.clear();
            whole.push_str(left);
            whole.push_str(right);
            let id = |token: &str| {
                let missing = || format!("{left:?} and {right:?} merge, but {token:?} is no token");
                spellings.id(token).ok_or_else(missing)
            };
            pairs.push([id(left)?, id(right)?, id(&whole)?]);
        }
        let mut ranks = Table::with_room(count);
        for (rank, &[left, right, _]) in pairs.iter().enumerate().rev() {
            let rank = rank as u32;
            ranks.insert(rank, (left, right), |rank| is(&pairs, rank, left, right));
        }
        Ok(Merges::Listed { pairs, ranks })
    }

    /// `scores` by id, `None` for a token that no merge has to do with.
    pub fn scored(scores: impl Iterator<Item = Option<f32>>) -> Self {
        let order = |score: Option<f32>| {
            let Some(score) = score else { return NEVER };
            let bits = score.to_bits();
            // Rising bits as `f32::total_cmp` orders: negative floats' order is turned round.
            let rising = bits ^ (((bits as i32 >> 31) as u32) | 1 << 31);
            (!rising).min(NEVER - 1)
        };
        Merges::Scored {
            orders: scores.map(order).collect(),
        }
    }

    /// When two tokens are merged, and into which; `room` is anything.
    pub fn find(
        &self,
        spellings: &Spellings,
        left: u32,
        right: u32,
        room: &mut String,
    ) -> Option<(Rank, u32)> {
        match self {
            Merges::Listed { pairs, ranks } => {
                let rank = ranks.find((left, right), |rank| is(pairs, rank, left, right))?;
                Some((Rank::from(rank), pairs.get(rank as usize)?[2]))
            }
            Merges::Scored { orders } => {
                let order = |id: u32| orders.get(id as usize).copied().filter(|o| *o != NEVER);
                order(left).and(order(right))?;
                let (left, right) = (spellings.of(left), spellings.of(right));
                if left.len() + right.len() > spellings.longest() {
                    return None;
                }
                room.clear();
                room.push_str(left);
                room.push_str(right);
                let id = spellings.id(room)?;
                Some((scored_rank(order(id)?, left, room, id), id))
            }
        }
    }

    /// All merges as ids of two tokens, in the order of their ranks.
    pub fn list(&self, spellings: &Spellings) -> Vec<(u32, u32)> {
        match self {
            Merges::Listed { pairs, ranks } => (0..)
                .zip(pairs)
                .filter(|&(rank, &[left, right, _])| {
                    ranks.find((left, right), |rank| is(pairs, rank, left, right)) == Some(rank)
                })
                .map(|(_, &[left, right, _])| (left, right))
                .collect(),
            Merges::Scored { .. } => {
                let mut room = String::new();
                let mut found = Vec::new();
                for (whole, token) in spellings.iter() {
                    for (at, _) in token.char_indices().skip(1) {
                        let (left, right) = token.split_at(at);
                        if let (Some(left), Some(right)) = (spellings.id(left), spellings.id(right))
                            && let Some((rank, id)) = self.find(spellings, left, right, &mut room)
                            && id == whole
                        {
                            found.push((rank, left, right));
                        }
                    }
                }
                found.sort_unstable();
                found.into_iter().map(|(_, l, r)| (l, r)).collect()
            }
        }
    }
}

fn is(pairs: &[[u32; 3]], rank: u32, left: u32, right: u32) -> bool {
    let pair = pairs.get(rank as usize);
    pair.is_some_and(|pair| pair[..2] == [left, right])
}

/// The rank among merges by score of the one into `whole`; no other has the same.
fn scored_rank(order: u32, left: &str, whole: &str, id: u32) -> Rank {
    let longer_first = |text: &str| u32::MAX - text.chars().count() as u32;
    [order, longer_first(left), longer_first(whole), id]
        .into_iter()
        .fold(0, |rank, part| rank << 32 | Rank::from(part))
}
