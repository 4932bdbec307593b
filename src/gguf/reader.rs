//! Numbers, strings and values, one after the other, from bytes that may end at any place.

use super::value::{self, IntegerList, StringList, Value};
use crate::error::{Error, Result};

/// Longest name of a key or tensor, in bytes; the format's own limit for keys.
const MAX_NAME_BYTES: usize = (1 << 16) - 1;

/// How deep arrays may nest.
const MAX_DEPTH: usize = 4;

/// A position in the bytes of a file.
pub struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        let taken = rest.get(..n).ok_or_else(|| Error::model("it ends within its header; fetch it again"))?;
        self.position += n;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The name of a key or tensor.
    pub fn name(&mut self, what: &str) -> Result<String> {
        let n_bytes = self.length()?;
        if n_bytes > MAX_NAME_BYTES {
            return Err(Error::model(format!(
                "the name of {what} has {n_bytes} bytes; {MAX_NAME_BYTES} are allowed"
            )));
        }
        let bytes = self.take(n_bytes)?;
        let name = std::str::from_utf8(bytes)
            .map_err(|_| Error::model(format!("the name of {what} is not UTF-8")))?;
        Ok(name.to_owned())
    }

    /// A value behind its type.
    pub fn value(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        self.value_of(kind, 0)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0..=5 | 10 | 11 => {
                let bytes = self.take(value::integer_bytes(kind))?;
                value::integer(kind, bytes).map_or(Value::Unread, Value::Integer)
            }
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => {
                let n_bytes = self.length()?;
                let text = std::str::from_utf8(self.take(n_bytes)?);
                text.map_or(Value::Unread, |text| Value::String(text.to_owned()))
            }
            9 => self.list(depth)?,
            _ => return Err(Error::model(format!("it has a value of the unknown type {kind}"))),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        let (kind, n) = (self.u32()?, self.length()?);
        // Every element takes at least so many bytes, so `n` of them fit or the file is too short.
        let least_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return Err(Error::model(format!("it has an array of the unknown type {kind}"))),
        };
        if n > (self.bytes.len() - self.position) / least_bytes {
            return Err(Error::model(format!("it has an array of {n} elements, more than the file holds")));
        }
        Ok(match kind {
            6 => Value::Floats((0..n).map(|_| Ok(f32::from_le_bytes(self.array()?))).collect::<Result<_>>()?),
            7 => Value::Bools((0..n).map(|_| self.bool()).collect::<Result<_>>()?),
            8 => {
                let mut strings = StringList::with_capacity(n);
                let mut is_text = true;
                for _ in 0..n {
                    let n_bytes = self.length()?;
                    match std::str::from_utf8(self.take(n_bytes)?) {
                        Ok(text) => strings.push(text),
                        Err(_) => is_text = false,
                    }
                }
                if is_text { Value::Strings(strings) } else { Value::Unread }
            }
            9 | 12 if depth + 1 == MAX_DEPTH => {
                return Err(Error::model(format!("it has arrays nested more than {MAX_DEPTH} deep")));
            }
            9 | 12 => {
                for _ in 0..n {
                    self.value_of(kind, depth + 1)?;
                }
                Value::Unread
            }
            _ => Value::Integers(IntegerList::new(kind, self.take(n * least_bytes)?)),
        })
    }

    fn bool(&mut self) -> Result<bool> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Error::model("it has a truth value that is neither 0 nor 1")),
        }
    }

    fn length(&mut self) -> Result<usize> {
        let n = self.u64()?;
        usize::try_from(n)
            .map_err(|_| Error::model(format!("it has a length of {n}, more than the file holds")))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
}
