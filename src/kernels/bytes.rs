//! Memory that kernels read: whole pages, zero at first.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// From this many bytes on, pages are to be large ones, of which a processor remembers more at once.
const LARGE: usize = 4 << 20;

/// Bytes in pages of their own, which go back to the system as soon as they are dropped. Pages that are
/// never touched take no memory.
#[derive(Debug)]
pub struct PageBytes(MmapMut);

impl PageBytes {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no such memory.
    pub fn zeroed(len: usize) -> Self {
        #[allow(clippy::expect_used)] // As for a `Vec` of that length.
        let map = MmapMut::map_anon(len.max(1)).expect("memory");
        #[cfg(target_os = "linux")]
        if len >= LARGE {
            // Only speed is at stake.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Self(map)
    }
}

impl Deref for PageBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for PageBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
