//! Reads numbers, strings and values from a header that may be cut short anywhere.

use super::value::{self, IntegerList, MetadataValue, StringList};
use super::value_type::{
    ARRAY, BOOL, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, STRING, UINT8, UINT16, UINT32, UINT64,
};
use crate::error::{Error, Result};

/// The maximum length of a key or tensor name in bytes; the format's own limit for keys.
const MAX_NAME_BYTES: usize = (1 << 16) - 1;

/// The maximum nesting depth of arrays.
const MAX_DEPTH: usize = 4;

/// The maximum length of a header in bytes: ten times what the largest vocabularies need.
const MAX_HEADER_BYTES: usize = 128 << 20;

/// A cursor over the first bytes of a file. Every method fails when the file ends before its value does, and when
/// the value goes on behind those bytes, which [`HeaderReader::needed`] then tells.
pub struct HeaderReader<'a> {
    start: &'a [u8],
    file_bytes: usize,
    position: usize,
    /// How many bytes of the file the last value needs, if they are more than there are in `start`.
    needed: Option<usize>,
}

impl<'a> HeaderReader<'a> {
    /// A cursor at the beginning of a file of `file_bytes`, of which `start` is the beginning.
    pub fn new(start: &'a [u8], file_bytes: usize) -> Self {
        Self { start, file_bytes, position: 0, needed: None }
    }

    /// The number of bytes read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The size of the file.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// The number of bytes of the file without which a method has failed, if that was the reason.
    pub fn needed(&self) -> Option<usize> {
        self.needed
    }

    /// Reads `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        self.require(n, 1)?;
        let bytes = &self.start[self.position..self.position + n];
        self.position += n;
        Ok(bytes)
    }

    /// Checks that `n` values of at least `min_bytes` follow.
    fn require(&mut self, n: usize, min_bytes: usize) -> Result<()> {
        let end = n.checked_mul(min_bytes).and_then(|n_bytes| self.position.checked_add(n_bytes));
        match end {
            Some(end) if end <= self.start.len() => Ok(()),
            Some(end) if end <= self.file_bytes.min(MAX_HEADER_BYTES) => {
                self.needed = Some(end);
                Err(Error::model("its header goes on"))
            }
            Some(end) if end <= self.file_bytes => Err(Error::model(format!(
                "its header has more than the {MAX_HEADER_BYTES} bytes that are allowed; the file is damaged"
            ))),
            _ => Err(Error::model("it ends within its header; download it again")),
        }
    }

    /// Reads a 32-bit unsigned integer.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a 64-bit unsigned integer.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads the name of a key or tensor; error messages call it the name of `what`.
    pub fn name(&mut self, what: &str) -> Result<String> {
        let n_bytes = self.length()?;
        if n_bytes > MAX_NAME_BYTES {
            return Err(Error::model(format!(
                "the name of {what} has {n_bytes} bytes; {MAX_NAME_BYTES} are allowed"
            )));
        }
        let bytes = self.bytes(n_bytes)?;
        let name = std::str::from_utf8(bytes)
            .map_err(|_| Error::model(format!("the name of {what} is not UTF-8")))?;
        Ok(name.to_owned())
    }

    /// Reads a type id and a value of this type.
    pub fn value(&mut self) -> Result<MetadataValue> {
        let type_id = self.u32()?;
        self.value_of_type(type_id, 0)
    }

    fn value_of_type(&mut self, type_id: u32, depth: usize) -> Result<MetadataValue> {
        Ok(match type_id {
            UINT8 | INT8 | UINT16 | INT16 | UINT32 | INT32 | UINT64 | INT64 => {
                let bytes = self.bytes(value::integer_bytes(type_id))?;
                value::integer(type_id, bytes).map_or(MetadataValue::Unsupported, MetadataValue::Integer)
            }
            FLOAT32 => MetadataValue::Float(f32::from_le_bytes(self.array()?).into()),
            FLOAT64 => MetadataValue::Float(f64::from_le_bytes(self.array()?)),
            BOOL => MetadataValue::Bool(self.bool()?),
            STRING => {
                let n_bytes = self.length()?;
                let text = std::str::from_utf8(self.bytes(n_bytes)?);
                text.map_or(MetadataValue::Unsupported, |text| MetadataValue::String(text.to_owned()))
            }
            ARRAY => self.array_value(depth)?,
            _ => return Err(Error::model(format!("a value has the unknown type {type_id}"))),
        })
    }

    fn array_value(&mut self, depth: usize) -> Result<MetadataValue> {
        let (type_id, n) = (self.u32()?, self.length()?);
        // The minimum size of an element bounds the number of elements that the file can hold.
        let min_bytes = match type_id {
            UINT8 | INT8 | BOOL => 1,
            UINT16 | INT16 => 2,
            UINT32 | INT32 | FLOAT32 => 4,
            STRING | UINT64 | INT64 | FLOAT64 => 8,
            ARRAY => 12,
            _ => return Err(Error::model(format!("an array has the unknown type {type_id}"))),
        };
        if n > (self.file_bytes - self.position) / min_bytes {
            return Err(Error::model(format!("an array has {n} elements, more than the file holds")));
        }
        self.require(n, min_bytes)?;
        Ok(match type_id {
            FLOAT32 => MetadataValue::Floats(
                (0..n).map(|_| Ok(f32::from_le_bytes(self.array()?))).collect::<Result<_>>()?,
            ),
            BOOL => MetadataValue::Bools((0..n).map(|_| self.bool()).collect::<Result<_>>()?),
            STRING => {
                let mut strings = StringList::with_capacity(n);
                let mut is_utf8 = true;
                for _ in 0..n {
                    let n_bytes = self.length()?;
                    match std::str::from_utf8(self.bytes(n_bytes)?) {
                        Ok(text) => strings.push(text),
                        Err(_) => is_utf8 = false,
                    }
                }
                if is_utf8 { MetadataValue::Strings(strings) } else { MetadataValue::Unsupported }
            }
            ARRAY | FLOAT64 if depth + 1 == MAX_DEPTH => {
                return Err(Error::model(format!("arrays are nested more than {MAX_DEPTH} deep")));
            }
            ARRAY | FLOAT64 => {
                for _ in 0..n {
                    self.value_of_type(type_id, depth + 1)?;
                }
                MetadataValue::Unsupported
            }
            _ => MetadataValue::Integers(IntegerList::new(type_id, self.bytes(n * min_bytes)?)),
        })
    }

    fn bool(&mut self) -> Result<bool> {
        match self.bytes(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Error::model("a boolean is neither 0 nor 1")),
        }
    }

    fn length(&mut self) -> Result<usize> {
        let n = self.u64()?;
        usize::try_from(n).map_err(|_| Error::model(format!("a length is {n}, more than the file holds")))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }
}
