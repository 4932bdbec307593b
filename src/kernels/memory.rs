//! Memory that kernels read: whole lines of the cache, zero at first, in large pages.
//!
//! A processor remembers where a few thousand pages are. Weights in pages of 4 KiB would take more than
//! that, and a look-up for each page of a matrix takes longer than reading the page; so small pieces
//! share maps that are large enough for large pages.

use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::Arc;

use memmap2::MmapMut;

/// Bytes that go back to the system once all that share their map are dropped. What is never touched
/// takes no memory.
///
/// In this crate's own tests they end where a page ends, and what reads or writes behind it crashes.
#[derive(Debug)]
pub struct HugePageBuf {
    start: *mut u8,
    len: usize,
    /// What `start` points to.
    _map: Arc<MmapMut>,
}

// SAFETY: nobody else reaches these bytes of the map.
unsafe impl Send for HugePageBuf {}
// SAFETY: as above.
unsafe impl Sync for HugePageBuf {}

impl HugePageBuf {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no such memory.
    #[cfg(not(all(test, unix)))]
    pub fn zeroed(len: usize) -> Self {
        shared_map::take(len)
    }

    /// As above.
    #[cfg(all(test, unix))]
    pub fn zeroed(len: usize) -> Self {
        // SAFETY: asks a number of the system.
        #[allow(clippy::unwrap_used)]
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let end = len.next_multiple_of(page);
        let mut map = map(end + page);
        // SAFETY: the last page of the map, which nobody has used yet.
        let refused = unsafe { libc::mprotect(map[end..].as_mut_ptr().cast(), page, libc::PROT_NONE) };
        assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
        Self { start: map[end - len..].as_mut_ptr(), len, _map: Arc::new(map) }
    }
}

#[allow(clippy::expect_used)] // As for a `Vec` of that length.
fn map(len: usize) -> MmapMut {
    MmapMut::map_anon(len).expect("memory")
}

/// Maps that several pieces share.
#[cfg(not(all(test, unix)))]
mod shared_map {
    use super::*;
    use std::sync::{Mutex, PoisonError};

    /// Bytes of a large page, and where it has to begin.
    const LARGE_PAGE: usize = 2 << 20;

    /// Bytes that no other piece's lines lie among: those that a processor fetches along with each other.
    const ALIGNMENT: usize = 128;

    /// Bytes of a map, where no piece needs more.
    const LEN: usize = 16 * LARGE_PAGE;

    /// A map and what has not been taken of it.
    struct Rest {
        map: Arc<MmapMut>,
        next: *mut u8,
        n_left: usize,
    }

    // SAFETY: what is left of the map is nobody else's.
    unsafe impl Send for Rest {}

    /// `len` zeros that nobody else has.
    pub fn take(len: usize) -> HugePageBuf {
        static LAST: Mutex<Option<Rest>> = Mutex::new(None);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = len.next_multiple_of(ALIGNMENT);
        let mut rest = last.take().filter(|rest| rest.n_left >= taken).unwrap_or_else(|| Rest::new(taken));
        let start = rest.next;
        // SAFETY: no further than the end of the map.
        rest.next = unsafe { start.add(taken) };
        rest.n_left -= taken;
        let map = rest.map.clone();
        *last = Some(rest);
        HugePageBuf { start, len, _map: map }
    }

    impl Rest {
        /// A new map with room for `len` bytes, begun where a large page can begin.
        fn new(len: usize) -> Self {
            let len = len.max(LEN);
            let mut map = map(len + LARGE_PAGE);
            #[cfg(target_os = "linux")]
            // Only speed is at stake.
            let _ = map.advise(memmap2::Advice::HugePage);
            let skipped = map.as_ptr().align_offset(LARGE_PAGE);
            let next = map[skipped..].as_mut_ptr();
            Self { map: Arc::new(map), next, n_left: len }
        }
    }
}

impl Deref for HugePageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: bytes of the map, which lives as long and which nobody else reaches.
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for HugePageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Bytes that are shared out among several owners, each of which reaches its own part only.
#[derive(Debug)]
pub struct Slab(HugePageBuf);

impl Slab {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        Self(HugePageBuf::zeroed(len))
    }

    pub fn start(&self) -> *mut u8 {
        self.0.start
    }
}
