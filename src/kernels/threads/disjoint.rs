//! A buffer that several threads fill, each its own part.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Numbers of which each thread writes what no other touches.
#[derive(Debug, Clone, Copy)]
pub struct DisjointSlice<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: access is by `slice`, whose caller answers for it.
unsafe impl<T: Send> Send for DisjointSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointSlice<'_, T> {}

impl<'a, T> DisjointSlice<'a, T> {
    pub fn new(all: &'a mut [T]) -> Self {
        Self { start: all.as_mut_ptr(), len: all.len(), lifetime: PhantomData }
    }

    /// Where the first is.
    pub fn start(&self) -> *const T {
        self.start
    }

    /// The `len` numbers from `start` on.
    ///
    /// # Safety
    /// While the part is in use, nobody else uses any of it.
    ///
    /// # Panics
    /// When the buffer ends before.
    #[allow(clippy::mut_from_ref)] // That is what this type is for.
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: within the buffer, which is borrowed for `'a`; the caller says that no one else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

impl<'a, T> DisjointSlice<'a, MaybeUninit<T>> {
    /// All that was written.
    ///
    /// # Safety
    /// All of it has been collect_rows, and nobody writes any of it while it is in use.
    pub unsafe fn assume_written(&self) -> &'a [T] {
        // SAFETY: within the buffer, which is borrowed for `'a`; the caller says the rest.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

/// `n` numbers that `write` writes.
///
/// # Safety
/// It writes all of them.
pub unsafe fn collect_rows(n: usize, write: impl FnOnce(DisjointSlice<MaybeUninit<f32>>)) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(n);
    write(DisjointSlice::new(&mut numbers.spare_capacity_mut()[..n]));
    // SAFETY: there is room for them, and the caller says that they were written.
    unsafe { numbers.set_len(n) };
    numbers
}
