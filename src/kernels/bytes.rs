//! Memory that kernels read: whole pages, zero at first.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;

/// From this many bytes on, pages are to be large ones, of which a processor remembers more at once.
const LARGE: usize = 4 << 20;

/// Bytes in pages of their own, which go back to the system as soon as they are dropped. Pages that are
/// never touched take no memory.
///
/// In this crate's own tests they end where a page ends, and what reads or writes behind it crashes.
#[derive(Debug)]
pub struct PageBytes {
    map: MmapMut,
    /// The bytes of the map that are ours.
    range: Range<usize>,
}

impl PageBytes {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no such memory.
    pub fn zeroed(len: usize) -> Self {
        let Self { map, range } = Self::map(len);
        #[cfg(target_os = "linux")]
        if len >= LARGE {
            // Only speed is at stake.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Self { map, range }
    }

    #[cfg(not(all(test, unix)))]
    fn map(len: usize) -> Self {
        Self { map: map(len.max(1)), range: 0..len }
    }

    #[cfg(all(test, unix))]
    fn map(len: usize) -> Self {
        // SAFETY: asks a number of the system.
        #[allow(clippy::unwrap_used)]
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let end = len.next_multiple_of(page);
        let mut map = map(end + page);
        // SAFETY: the last page of the map, which nobody has used yet.
        let refused = unsafe { libc::mprotect(map[end..].as_mut_ptr().cast(), page, libc::PROT_NONE) };
        assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
        Self { map, range: end - len..end }
    }
}

#[allow(clippy::expect_used)] // As for a `Vec` of that length.
fn map(len: usize) -> MmapMut {
    MmapMut::map_anon(len).expect("memory")
}

impl Deref for PageBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl DerefMut for PageBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.range.clone()]
    }
}

/// Bytes that are shared out among several owners, each of which reaches its own part only.
#[derive(Debug)]
pub struct Slab {
    start: *mut u8,
    len: usize,
    /// What `start` points to.
    _bytes: PageBytes,
}

// SAFETY: owners reach only what belongs to them, so that each can be used by another thread.
unsafe impl Send for Slab {}
// SAFETY: as above; `Slab` itself touches nothing.
unsafe impl Sync for Slab {}

impl Slab {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut bytes = PageBytes::zeroed(len);
        Self { start: bytes.as_mut_ptr(), len, _bytes: bytes }
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }
}

/// Bytes of a slab that is filled one after the other: what is made in a row, as a model's matrices are,
/// shares large pages, for which each alone may be too small, and which make reading it from memory
/// faster by some percent.
#[derive(Debug)]
pub struct SlabBytes {
    slab: Arc<Slab>,
    range: Range<usize>,
}

impl SlabBytes {
    /// How much is asked of the system at once. Pages that are never touched take no memory.
    const SLAB: usize = 64 << 20;

    /// What belongs to different owners begins on different cache lines.
    const ALIGNMENT: usize = 128;

    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        /// The slab that is being filled, as long as somebody uses it, and how much of it is taken.
        static CURRENT: Mutex<(Weak<Slab>, usize)> = Mutex::new((Weak::new(), 0));

        if len > Self::SLAB / 2 || cfg!(test) {
            return Self { slab: Arc::new(Slab::zeroed(len)), range: 0..len };
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, start) = match current.0.upgrade() {
            Some(slab) if current.1 + len <= slab.len => (slab, current.1),
            _ => (Arc::new(Slab::zeroed(Self::SLAB)), 0),
        };
        *current = (Arc::downgrade(&slab), (start + len).next_multiple_of(Self::ALIGNMENT));
        Self { slab, range: start..start + len }
    }
}

impl Deref for SlabBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is within the slab and nobody else's.
        unsafe { std::slice::from_raw_parts(self.slab.start.add(self.range.start), self.range.len()) }
    }
}

impl DerefMut for SlabBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and it is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.slab.start.add(self.range.start), self.range.len()) }
    }
}

#[cfg(unix)]
impl Drop for SlabBytes {
    /// Gives the memory back, though others still use the slab.
    fn drop(&mut self) {
        const PAGE: usize = 1 << 16; // A multiple of the page size wherever this runs.
        let first = (self.slab.start as usize + self.range.start).next_multiple_of(PAGE);
        let end = (self.slab.start as usize + self.range.end) / PAGE * PAGE;
        if first < end {
            let start = self.slab.start.wrapping_add(first - self.slab.start as usize);
            // SAFETY: whole pages that are ours, and that nobody will use again.
            unsafe { libc::madvise(start.cast(), end - first, libc::MADV_DONTNEED) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_a_slab_have_bytes_of_their_own() {
        let slab = Arc::new(Slab::zeroed(300_000));
        let part = |range| SlabBytes { slab: slab.clone(), range };
        let (mut first, mut second, mut third) = (part(0..100), part(128..200_128), part(200_192..300_000));
        first.fill(1);
        second.fill(2);
        third.fill(3);
        drop(second);
        assert!(first.iter().all(|&byte| byte == 1) && third.iter().all(|&byte| byte == 3));
        assert_eq!((first.len(), third.len()), (100, 99_808));
    }
}
