//! Zeroed, cache-line-aligned memory on huge pages.
//!
//! The TLB holds a few thousand entries. Weights on 4 KiB pages would need more than that, and a page walk
//! takes longer than reading the page; so small buffers share mappings that are large enough for huge pages.

use std::io;
use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::Arc;

use memmap2::MmapMut;

/// A zeroed buffer on huge pages. Its mapping returns to the system when all buffers that share it are
/// dropped; pages that are never touched take no memory.
///
/// In this crate's own tests a buffer ends where a page ends, with a guard page behind it: a read or write
/// past the end crashes.
#[derive(Debug)]
pub struct HugePageBuf {
    start: *mut u8,
    len: usize,
    /// The mapping that `start` points into.
    _map: Arc<MmapMut>,
}

// SAFETY: a buffer owns its bytes of the mapping, as a `Vec` does: no two buffers overlap.
unsafe impl Send for HugePageBuf {}
// SAFETY: shared references only read, as with a `Vec`.
unsafe impl Sync for HugePageBuf {}

impl HugePageBuf {
    /// A buffer of `len` zeros.
    ///
    /// # Panics
    /// When the system is out of memory.
    pub fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).expect("the system has memory")
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// When the system is out of memory.
    #[cfg(not(all(test, unix)))]
    pub fn try_zeroed(len: usize) -> io::Result<Self> {
        shared_map::allocate(len)
    }

    /// A buffer of `len` zeros that ends at a guard page.
    ///
    /// # Errors
    /// When the system is out of memory.
    #[cfg(all(test, unix))]
    pub fn try_zeroed(len: usize) -> io::Result<Self> {
        // SAFETY: `sysconf` has no preconditions.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page has a size");
        let end = len.next_multiple_of(page);
        let mut map = MmapMut::map_anon(end + page)?;
        // SAFETY: the last page of the mapping, which nothing refers to yet.
        let refused = unsafe { libc::mprotect(map[end..].as_mut_ptr().cast(), page, libc::PROT_NONE) };
        assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
        Ok(Self { start: map[end - len..].as_mut_ptr(), len, _map: Arc::new(map) })
    }
}

/// Mappings that several buffers share.
#[cfg(not(all(test, unix)))]
mod shared_map {
    use super::*;
    use std::sync::{Mutex, PoisonError};

    /// Size and alignment of a huge page, in bytes.
    const HUGE_PAGE: usize = 2 << 20;

    /// Alignment of a buffer: two cache lines, since processors prefetch lines in pairs.
    const ALIGNMENT: usize = 128;

    /// Bytes of a mapping, unless a buffer needs more.
    const LEN: usize = 16 * HUGE_PAGE;

    /// A mapping, and the part of it that is still free.
    struct FreeSpace {
        map: Arc<MmapMut>,
        next: *mut u8,
        n_bytes: usize,
    }

    // SAFETY: no buffer overlaps the free part of the mapping.
    unsafe impl Send for FreeSpace {}

    /// Allocates a buffer of `len` zeros.
    pub fn allocate(len: usize) -> io::Result<HugePageBuf> {
        static LAST: Mutex<Option<FreeSpace>> = Mutex::new(None);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = len.next_multiple_of(ALIGNMENT);
        let mut free = match last.take().filter(|free| free.n_bytes >= taken) {
            Some(free) => free,
            None => FreeSpace::new(taken)?,
        };
        let start = free.next;
        // SAFETY: at least `taken` bytes are free, as filtered or as `FreeSpace::new` made sure.
        free.next = unsafe { start.add(taken) };
        free.n_bytes -= taken;
        let map = free.map.clone();
        *last = Some(free);
        Ok(HugePageBuf { start, len, _map: map })
    }

    impl FreeSpace {
        /// A new mapping with room for `len` bytes from the first huge-page boundary on.
        fn new(len: usize) -> io::Result<Self> {
            let len = len.max(LEN);
            let mut map = MmapMut::map_anon(len + HUGE_PAGE)?;
            #[cfg(target_os = "linux")]
            // Without huge pages everything works, only slower.
            let _ = map.advise(memmap2::Advice::HugePage);
            let skipped = map.as_ptr().align_offset(HUGE_PAGE);
            let next = map[skipped..].as_mut_ptr();
            Ok(Self { map: Arc::new(map), next, n_bytes: len })
        }
    }
}

impl Deref for HugePageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` lie within the mapping, which `_map` keeps alive; only this buffer owns them.
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for HugePageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` and `len` lie within the mapping, which `_map` keeps alive; only this buffer owns them,
        // and it is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// A buffer whose parts belong to several owners, each of which accesses only its own part.
#[derive(Debug)]
pub struct Slab(HugePageBuf);

impl Slab {
    /// A slab of `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        Self(HugePageBuf::zeroed(len))
    }

    /// The address of the first byte.
    pub fn start(&self) -> *mut u8 {
        self.0.start
    }
}
