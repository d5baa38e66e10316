use std::fmt;

use crate::{Error, Result};

/// The lengths of a tensor's axes, outermost first; at most four. `Copy`, never allocates.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: u8,
}

impl Shape {
    /// The most axes a tensor may have.
    pub const MAX_RANK: usize = 4;

    /// A shape of the given axes.
    ///
    /// # Errors
    /// [`Error::Rank`] for more than four axes.
    pub fn new(dims: &[usize]) -> Result<Self> {
        if dims.len() > Self::MAX_RANK {
            return Err(Error::Rank {
                op: "shape",
                expected: Self::MAX_RANK,
                got: dims.len(),
            });
        }
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        Ok(Shape {
            dims: all,
            rank: dims.len() as u8,
        })
    }

    /// The axes' lengths.
    pub fn as_slice(&self) -> &[usize] {
        &self.dims[..self.rank()]
    }

    /// How many axes there are; a scalar has none.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Exactly `N` axes, or an error naming `op`.
    ///
    /// # Errors
    /// [`Error::Rank`] when the rank is not `N`.
    pub fn dims<const N: usize>(&self, op: &'static str) -> Result<[usize; N]> {
        self.as_slice().try_into().map_err(|_| Error::Rank {
            op,
            expected: N,
            got: self.rank(),
        })
    }

    /// Length of one axis.
    ///
    /// # Errors
    /// [`Error::Axis`] when there is no such axis.
    pub fn dim(&self, op: &'static str, axis: usize) -> Result<usize> {
        self.as_slice().get(axis).copied().ok_or(Error::Axis {
            op,
            axis,
            rank: self.rank(),
        })
    }

    /// Length of the last axis.
    ///
    /// # Errors
    /// [`Error::Rank`] for a scalar.
    pub fn last(&self, op: &'static str) -> Result<usize> {
        self.as_slice().last().copied().ok_or(Error::Rank {
            op,
            expected: 1,
            got: 0,
        })
    }

    /// Number of elements (saturating: a shape that overflows is refused where memory is asked for).
    pub fn numel(&self) -> usize {
        self.as_slice()
            .iter()
            .fold(1usize, |a, &b| a.saturating_mul(b))
    }

    /// The same shape with one axis of another length.
    ///
    /// # Errors
    /// [`Error::Axis`] when there is no such axis.
    pub fn with_dim(mut self, op: &'static str, axis: usize, len: usize) -> Result<Self> {
        self.dim(op, axis)?;
        self.dims[axis] = len;
        Ok(self)
    }

    /// The same shape with two axes exchanged.
    ///
    /// # Errors
    /// [`Error::Axis`] when either does not exist.
    pub fn swapped(mut self, op: &'static str, a: usize, b: usize) -> Result<Self> {
        self.dim(op, a)?;
        self.dim(op, b)?;
        self.dims.swap(a, b);
        Ok(self)
    }

    /// What `self` and `other` broadcast to: axes are aligned at the end, a length of 1 stretches.
    ///
    /// # Errors
    /// [`Error::Shape`] when two lengths differ and neither is 1.
    pub fn broadcast(&self, op: &'static str, other: &Shape) -> Result<Shape> {
        let rank = self.rank().max(other.rank());
        let mut out = Shape {
            dims: [1; 4],
            rank: rank as u8,
        };
        let at = |s: &Shape, from_end: usize| {
            if from_end < s.rank() {
                s.dims[s.rank() - 1 - from_end]
            } else {
                1
            }
        };
        for i in 0..rank {
            out.dims[rank - 1 - i] = match (at(self, i), at(other, i)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => {
                    return Err(Error::Shape {
                        op,
                        lhs: *self,
                        rhs: *other,
                    });
                }
            };
        }
        Ok(out)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        const { assert!(N <= Shape::MAX_RANK, "a shape has at most four axes") };
        let mut all = [1; 4];
        all[..N].copy_from_slice(&dims);
        Shape {
            dims: all,
            rank: N as u8,
        }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_slice())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_aligns_at_the_end() {
        let a = Shape::from([3, 1, 5]);
        assert_eq!(
            a.broadcast("t", &[4, 1].into()).unwrap(),
            Shape::from([3, 4, 5])
        );
        assert_eq!(a.broadcast("t", &[].into()).unwrap(), a);
        assert!(matches!(
            a.broadcast("t", &[2].into()),
            Err(Error::Shape { op: "t", .. })
        ));
        assert_eq!(
            Shape::from([0]).broadcast("t", &[1].into()).unwrap(),
            Shape::from([0])
        );
    }

    #[test]
    fn wrong_ranks_and_axes_are_errors() {
        let s = Shape::from([2, 3]);
        assert_eq!(s.dims::<2>("t").unwrap(), [2, 3]);
        assert!(matches!(
            s.dims::<3>("t"),
            Err(Error::Rank {
                expected: 3,
                got: 2,
                ..
            })
        ));
        assert!(matches!(
            s.dim("t", 2),
            Err(Error::Axis {
                axis: 2,
                rank: 2,
                ..
            })
        ));
        assert!(Shape::new(&[1; 5]).is_err());
        assert_eq!(Shape::from([usize::MAX, 2]).numel(), usize::MAX);
    }
}
