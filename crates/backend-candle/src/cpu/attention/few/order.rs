//! The order in which the parts of heads are done.

use std::ops::Range;

use crate::cpu::pool;

/// A part of a head, by its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// Its keys' scores; the last of them makes weights of all.
    Keys(usize),
    /// Its values, after those of the parts before.
    Values(usize),
}

/// The tasks of the one job in the order of their places, which are shared out in stretches.
///
/// A stretch is at least a head long, so that no head lies in three of them. A task waits for none but places before
/// its own, which are claimed or will be by the caller: that one takes all places in their order.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub kv_heads: usize,
    /// No more than there are key heads.
    pub threads: usize,
    /// Parts of a head's keys, and of its values.
    pub keys: usize,
    pub values: usize,
}

impl Order {
    pub fn of_a_head(&self) -> usize {
        self.keys + self.values
    }

    pub fn places(&self) -> usize {
        self.kv_heads * self.of_a_head()
    }

    pub fn stretch(&self, thread: usize) -> Range<usize> {
        pool::stretch(self.places(), thread, self.threads)
    }

    /// The places of a stretch's whole heads, where all tasks lie in their heads' order.
    pub fn whole_heads(&self, stretch: &Range<usize>) -> Range<usize> {
        let head = self.of_a_head();
        stretch.start.next_multiple_of(head)..stretch.end / head * head
    }

    /// What a thread does after a place's task, unless that is its last.
    pub fn next(&self, place: usize) -> Option<(usize, Task)> {
        let ends = |thread| self.stretch(thread).end == place + 1;
        (!(0..self.threads).any(ends)).then(|| self.task(place + 1))
    }

    /// Head and task of a place.
    pub fn task(&self, place: usize) -> (usize, Task) {
        let mut stretches = (0..self.threads).map(|thread| self.stretch(thread));
        let here = stretches.find(|s| place < s.end).unwrap_or(place..place);
        let whole = self.whole_heads(&here);
        // Where the values begin of the head whose end, but not whose beginning, is here.
        let values = here.start.max(whole.start.saturating_sub(self.values));
        let sections = [
            here.start..values,
            whole.end..here.end,
            whole.clone(),
            values..whole.start,
        ];
        let (mut turn, mut in_order) = (place - here.start, place);
        for section in sections {
            match turn.checked_sub(section.len()) {
                None => {
                    in_order = section.start + turn;
                    break;
                }
                Some(rest) => turn = rest,
            }
        }
        let (head, task) = (in_order / self.of_a_head(), in_order % self.of_a_head());
        match task.checked_sub(self.keys) {
            None => (head, Task::Keys(task)),
            Some(part) => (head, Task::Values(part)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_a_place_and_waits_for_none_after_its_own() {
        for kv_heads in 2..12 {
            for threads in 2..=kv_heads {
                for (keys, values) in [(1, 1), (3, 2), (4, 2), (2, 5), (9, 6)] {
                    let order = Order {
                        kv_heads,
                        threads,
                        keys,
                        values,
                    };
                    let all: Vec<_> = (0..order.places()).map(|p| order.task(p)).collect();
                    let place = |head, task| {
                        let is = |(h, t): &(usize, Task)| *h == head && *t == task;
                        let found = all.iter().position(is);
                        found.unwrap_or_else(|| panic!("{order:?} has no {task:?} of {head}"))
                    };
                    assert_eq!(all.len(), kv_heads * (keys + values));
                    for head in 0..kv_heads {
                        let first = place(head, Task::Values(0));
                        for part in 0..keys {
                            assert!(place(head, Task::Keys(part)) < first, "{order:?} {head}");
                        }
                        for part in 1..values {
                            let before = place(head, Task::Values(part - 1));
                            assert!(before < place(head, Task::Values(part)), "{order:?} {head}");
                        }
                    }
                }
            }
        }
    }
}
