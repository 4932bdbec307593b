//! Memory that kernels read: whole pages, zero at first.

use std::ops::{Deref, DerefMut, Range};

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
        Self { start: bytes.as_mut_ptr(), _bytes: bytes }
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }
}
