use std::hash::{BuildHasher as _, Hash, RandomState};

/// Numbers found by what they stand for, which is kept elsewhere: four bytes a slot.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// A number and 1, or 0; about half of them are.
    slots: Vec<u32>,
    hasher: RandomState,
    len: usize,
}

impl Table {
    /// Room for `n` numbers, all below `u32::MAX`.
    pub fn with_room(n: usize) -> Self {
        Table {
            slots: vec![0; (2 * n).next_power_of_two()],
            hasher: RandomState::new(),
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The number for which `is` says that it stands for `key`.
    pub fn find(&self, key: impl Hash, is: impl Fn(u32) -> bool) -> Option<u32> {
        let number = *self.slots.get(self.place(key, is)?)?;
        number.checked_sub(1)
    }

    /// Puts `number` in, unless there is one for the same `key`: gives that one.
    pub fn insert(&mut self, number: u32, key: impl Hash, is: impl Fn(u32) -> bool) -> Option<u32> {
        let place = self.place(key, is)?;
        let slot = self.slots.get_mut(place)?;
        if *slot != 0 {
            return Some(*slot - 1);
        }
        *slot = number + 1;
        self.len += 1;
        None
    }

    /// The slot of `key`, or the one that is free for it; none in a table that is full.
    fn place(&self, key: impl Hash, is: impl Fn(u32) -> bool) -> Option<usize> {
        let mask = self.slots.len() - 1;
        let start = self.hasher.hash_one(key) as usize;
        (0..self.slots.len())
            .map(|step| start.wrapping_add(step) & mask)
            .find(|&place| match self.slots[place] {
                0 => true,
                number => is(number - 1),
            })
    }
}
