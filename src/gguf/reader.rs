//! A checked walk over a header's bytes.

use super::metadata::ValueType;
use crate::error::{Error, Result};

/// Bytes and how far they are read. Numbers are little-endian.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

/// Longest name of a key or tensor, in bytes, as the format has it.
const MAX_NAME_BYTES: usize = u16::MAX as usize;

/// Deepest nesting of arrays.
const MAX_NESTING: usize = 4;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The bytes read since `start`.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.position]
    }

    pub(super) fn take(&mut self, n_bytes: usize) -> Result<&'a [u8]> {
        let end = self.position.checked_add(n_bytes).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            let (at, len) = (self.position, self.bytes.len());
            Error::model(format!(
                "{n_bytes} bytes are expected at {at}, but the file has {len}; it is cut short or damaged"
            ))
        })?;
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A 64-bit number that counts something in memory.
    pub(super) fn size(&mut self) -> Result<usize> {
        let n = self.u64()?;
        usize::try_from(n).map_err(|_| Error::model(format!("{n} is more than this machine can address")))
    }

    /// The bytes of a string.
    fn string(&mut self) -> Result<&'a [u8]> {
        let n_bytes = self.size()?;
        self.take(n_bytes)
    }

    /// The name of a key or tensor.
    pub(super) fn name(&mut self) -> Result<&'a str> {
        let at = self.position;
        let bytes = self.string()?;
        std::str::from_utf8(bytes)
            .ok()
            .filter(|name| (1..=MAX_NAME_BYTES).contains(&name.len()))
            .ok_or_else(|| Error::model(format!("the name at byte {at} is empty, too long or not UTF-8")))
    }

    /// The bytes of one value of `kind`: of a string without its length, of an array its elements.
    pub(super) fn value(&mut self, kind: ValueType) -> Result<&'a [u8]> {
        match kind {
            ValueType::String => self.string(),
            ValueType::Array => {
                let (element, n) = (ValueType::read(self)?, self.size()?);
                self.elements(element, n, 1)
            }
            kind => self.take(kind.width()),
        }
    }

    /// The bytes of `n` elements of an array that lies `depth` arrays deep.
    pub(super) fn elements(&mut self, kind: ValueType, n: usize, depth: usize) -> Result<&'a [u8]> {
        if depth > MAX_NESTING {
            return Err(Error::model(format!("arrays are nested more than {MAX_NESTING} deep")));
        }
        let start = self.position;
        match kind {
            ValueType::String => {
                for _ in 0..n {
                    self.string()?;
                }
            }
            ValueType::Array => {
                for _ in 0..n {
                    let (element, n) = (ValueType::read(self)?, self.size()?);
                    self.elements(element, n, depth + 1)?;
                }
            }
            kind => {
                self.take(n.saturating_mul(kind.width()))?;
            }
        }
        Ok(self.since(start))
    }
}
