//! A buffer that several threads fill, each its own part.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// An exclusively borrowed slice that threads share out among themselves: each writes parts that no other
/// thread accesses.
#[derive(Debug, Clone, Copy)]
pub struct DisjointSlice<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: elements are accessed only through `slice`, whose callers keep their parts disjoint.
unsafe impl<T: Send> Send for DisjointSlice<'_, T> {}
// SAFETY: elements are accessed only through `slice`, whose callers keep their parts disjoint.
unsafe impl<T: Send> Sync for DisjointSlice<'_, T> {}

impl<'a, T> DisjointSlice<'a, T> {
    /// Shares out `all`.
    pub fn new(all: &'a mut [T]) -> Self {
        Self { start: all.as_mut_ptr(), len: all.len(), lifetime: PhantomData }
    }

    /// The address of the first element.
    pub fn start(&self) -> *const T {
        self.start
    }

    /// The `len` elements from `start` on.
    ///
    /// # Safety
    /// While the part is in use, nothing else accesses any of it.
    ///
    /// # Panics
    /// When the part reaches past the end of the slice.
    #[allow(clippy::mut_from_ref)] // That is what this type is for.
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds, as asserted; the slice is borrowed for `'a`, and the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The `len` elements from `start` on, to be shared out further.
    ///
    /// # Panics
    /// When the part reaches past the end of the slice.
    pub fn part(&self, start: usize, len: usize) -> Self {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds, as asserted.
        Self { start: unsafe { self.start.add(start) }, len, lifetime: PhantomData }
    }

    /// The `len` elements from `start` on, to be read.
    ///
    /// # Safety
    /// While the part is in use, nothing writes to any of it.
    ///
    /// # Panics
    /// When the part reaches past the end of the slice.
    pub unsafe fn shared(&self, start: usize, len: usize) -> &'a [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds, as asserted; the slice is borrowed for `'a`, and nobody writes to this part.
        unsafe { std::slice::from_raw_parts(self.start.add(start), len) }
    }
}

impl<'a, T> DisjointSlice<'a, MaybeUninit<T>> {
    /// The whole slice, initialized.
    ///
    /// # Safety
    /// All elements have been written, and none is written while the result is in use.
    pub unsafe fn assume_init(&self) -> &'a [T] {
        // SAFETY: the whole slice, which is borrowed for `'a` and initialized, as this function requires.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

/// A vector of `n` numbers that `write` fills.
///
/// # Safety
/// `write` writes every element.
pub unsafe fn collect_rows(n: usize, write: impl FnOnce(DisjointSlice<MaybeUninit<f32>>)) -> Vec<f32> {
    let mut values = Vec::with_capacity(n);
    write(DisjointSlice::new(&mut values.spare_capacity_mut()[..n]));
    // SAFETY: the capacity is at least `n`, and `write` has written `n` elements, as this function requires.
    unsafe { values.set_len(n) };
    values
}
