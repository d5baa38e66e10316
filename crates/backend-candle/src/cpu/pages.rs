//! Memory for what every token reads from end to end: weights, and keys and values.
//!
//! A processor looks up where each page lies that it reads from, and in a virtual machine looks up each step
//! of that too. In the usual pages of 4 KiB that takes so long that a core reads little more than half of
//! what memory gives; so all matrices lie one behind the other in regions of large pages, where the system
//! has them for the asking (Linux's `madvise`).

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use biplane_backend::{Error, Result};
use bytemuck::AnyBitPattern;

use crate::memory;

/// A large page of x86-64, and of ARM with small pages of 4 KiB.
pub const LARGE_PAGE: usize = 2 << 20;
/// A region: much longer than most matrices, so that little of it is left over at its end.
const REGION: usize = 32 << 20;

/// A cache line.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line([u32; 16]);

/// Some of the system's memory, which goes back when this is dropped.
struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory; who may use which part of it is said by `Lines`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// At least `len` bytes of zeros, from the start of a large page on.
    fn new(len: usize) -> Option<Region> {
        let len = len.checked_next_multiple_of(LARGE_PAGE)?;
        let mapped = len.checked_add(LARGE_PAGE)?;
        // SAFETY: new memory, wherever the system likes.
        let all = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if all == libc::MAP_FAILED {
            return None;
        }
        let all = all.cast::<u8>();
        let before = all.align_offset(LARGE_PAGE);
        let start = NonNull::new(all.wrapping_add(before))?;
        // SAFETY: what is before and behind is part of the mapping, whole pages, and nobody's.
        unsafe {
            if before > 0 {
                libc::munmap(all.cast(), before);
            }
            libc::munmap(start.as_ptr().add(len).cast(), LARGE_PAGE - before);
        }
        large_pages(start.as_ptr(), len);
        Some(Region { start, len })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nothing refers to any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Asks for large pages where memory is not in use yet: it works as well without.
fn large_pages(start: *mut u8, len: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: advice on memory that is there; no contents change.
    unsafe {
        libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, len);
}

/// Zeros, of which `n` from the given element on are for use. They lie in large pages where the system has
/// them, but for a part that fills less than half of one. Only what is written takes memory.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn zeros_in_large_pages<T: AnyBitPattern>(n: usize) -> Result<(Vec<T>, usize)> {
    /// Above this glibc takes a buffer's memory from the system, and gives it back, by itself. What it has
    /// in hand instead has been written before, in small pages.
    const BY_ITSELF: usize = 33 << 20;
    let page = LARGE_PAGE / size_of::<T>().max(1);
    let pages = match cfg!(target_os = "linux") {
        true => n.saturating_add(page / 2) / page,
        false => 0,
    };
    if pages == 0 {
        return Ok((memory::zeros(n)?, 0));
    }
    let needed = n.max(pages * page).saturating_add(page);
    let mut zeros: Vec<T> = memory::zeros(needed.max(BY_ITSELF / size_of::<T>()))?;
    let start = zeros.as_ptr().align_offset(LARGE_PAGE).min(page);
    large_pages(zeros[start..].as_mut_ptr().cast(), pages * LARGE_PAGE);
    Ok((zeros, start))
}

/// Zeros to begin with, in a region that others may share.
pub struct Lines {
    start: NonNull<Line>,
    len: usize,
    region: Arc<Region>,
}

// SAFETY: these lines of the region are this value's alone, and are plain numbers.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Lines {
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Lines> {
        /// The region in use, and how many of its bytes are taken.
        static OPEN: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));
        let bytes = len.saturating_mul(size_of::<Line>());
        let none = || Error::OutOfMemory {
            backend: crate::NAME,
            bytes,
        };
        if bytes > REGION / 2 {
            let region = Arc::new(Region::new(bytes).ok_or_else(none)?);
            return Ok(Lines::of(region, 0, len));
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, used) = match open.0.upgrade() {
            Some(region) if region.len - open.1 >= bytes => (region, open.1),
            _ => (Arc::new(Region::new(REGION).ok_or_else(none)?), 0),
        };
        *open = (Arc::downgrade(&region), used + bytes);
        Ok(Lines::of(region, used, len))
    }

    /// The lines from a byte of a region on, which nobody has.
    fn of(region: Arc<Region>, at: usize, len: usize) -> Lines {
        debug_assert!(at + len * size_of::<Line>() <= region.len);
        // SAFETY: within the region.
        let start = unsafe { region.start.add(at) }.cast();
        Lines { start, len, region }
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: this value's alone; a region begins as zeros, which are lines.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Lines {
    /// Gives back the pages that are this value's alone: the region may live long.
    fn drop(&mut self) {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Some(page) = usize::try_from(page).ok().filter(|p| p.is_power_of_two()) else {
            return;
        };
        let start = self.start.cast::<u8>();
        let before = start.as_ptr().align_offset(page);
        let bytes = self.len * size_of::<Line>();
        let whole = bytes.saturating_sub(before) / page * page;
        if whole > 0 && Arc::strong_count(&self.region) > 1 {
            let unused = match cfg!(target_vendor = "apple") {
                true => libc::MADV_FREE,
                false => libc::MADV_DONTNEED,
            };
            // SAFETY: pages of these lines, which nobody reads any more, nor are they given out again.
            unsafe { libc::madvise(start.as_ptr().add(before).cast(), whole, unused) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zeros_of_their_own() {
        let mut all: Vec<_> = [1, 700, 0, 100_000, 33, REGION / 64 + 1, 5]
            .into_iter()
            .map(|n| (n, Lines::zeroed(n).unwrap()))
            .collect();
        for (i, (n, lines)) in all.iter_mut().enumerate() {
            assert_eq!(lines.len(), *n);
            assert!(lines.iter().all(|line| line.0 == [0; 16]));
            lines.fill(Line([i as u32 + 1; 16]));
        }
        // Those that others are dropped beside stay.
        for i in (0..all.len()).rev().step_by(2) {
            drop(all.remove(i));
        }
        for (i, (_, lines)) in all.iter().enumerate() {
            assert!(lines.iter().all(|line| line.0 == [2 * i as u32 + 2; 16]));
        }
        assert!(Lines::zeroed(usize::MAX / 64).is_err());
        assert!(Lines::zeroed(1 << 50).is_err());
    }
}
