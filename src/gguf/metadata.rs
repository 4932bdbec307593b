//! The keys and values of a header.

use std::collections::HashMap;
use std::ops::Range;

use super::reader::Reader;
use crate::error::{Error, Result};

/// Keys and values. The values stay as the file has them until they are asked for, so a vocabulary
/// of any size costs one copy of its bytes and no more.
///
/// Every question answers `None` for a key that is absent, and an error that names the key for a
/// value of another type; [`missing`] is the error for those who cannot do without.
#[derive(Debug, Clone)]
pub struct Metadata {
    bytes: Vec<u8>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    form: Form,
    /// Where in the bytes the value is: of a string its text, of an array its elements.
    range: Range<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    One(ValueType),
    Many(ValueType, usize),
}

/// The format's types of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// The types by their codes.
const TYPES: [ValueType; 13] = {
    use ValueType::{Array, Bool, F32, F64, I8, I16, I32, I64, String, U8, U16, U32, U64};
    [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
};

impl ValueType {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let code = reader.u32()?;
        let known = usize::try_from(code).ok().and_then(|code| TYPES.get(code));
        known.copied().ok_or_else(|| Error::model(format!("its value is of type {code}, which is not known")))
    }

    /// Bytes of one number; strings and arrays have no width of their own.
    pub(super) fn width(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::String | Self::Array => 0,
        }
    }
}

impl Metadata {
    /// Reads `n_keys` keys and their values.
    pub(super) fn read(reader: &mut Reader<'_>, n_keys: u64) -> Result<Self> {
        let start = reader.position();
        let mut entries = HashMap::new();
        for _ in 0..n_keys {
            let key = reader.name()?;
            let entry = Entry::read(reader, start).map_err(|e| e.context(format_args!("key `{key}`")))?;
            if entries.insert(key.to_owned(), entry).is_some() {
                return Err(Error::model(format!("key `{key}` appears twice")));
            }
        }
        Ok(Self { bytes: reader.since(start).to_vec(), entries })
    }

    /// A string.
    ///
    /// # Errors
    /// When the value is something else, or not UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.one(key, "text", text)
    }

    /// An array of strings.
    ///
    /// # Errors
    /// When the value is something else, or one of the strings not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.many(key, "an array of text", text)
    }

    /// An integer, whatever width and sign the file gives it.
    ///
    /// # Errors
    /// When the value is something else, or out of `T`'s range.
    pub fn integer<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<T>> {
        self.one(key, "an integer of the right size", |kind, bytes| T::try_from(integer(kind, bytes)?).ok())
    }

    /// An array of integers, whatever width and sign the file gives them.
    ///
    /// # Errors
    /// When the value is something else, or one of them out of `T`'s range.
    pub fn integers<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<Vec<T>>> {
        self.many(key, "an array of integers of the right size", |kind, bytes| {
            T::try_from(integer(kind, bytes)?).ok()
        })
    }

    /// A number with a fraction, of either width.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.one(key, "a float", float)
    }

    /// An array of numbers with a fraction, of either width.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.many(key, "an array of floats", float)
    }

    /// True or false.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.one(key, "true or false", |kind, bytes| match (kind, bytes) {
            (ValueType::Bool, [0]) => Some(false),
            (ValueType::Bool, [1]) => Some(true),
            _ => None,
        })
    }

    fn one<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        decode: impl Fn(ValueType, &'a [u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        let value = match entry.form {
            Form::One(kind) => decode(kind, &self.bytes[entry.range.clone()]),
            Form::Many(..) => None,
        };
        value.map(Some).ok_or_else(|| unexpected(key, entry.form, expected))
    }

    fn many<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        decode: impl Fn(ValueType, &'a [u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        let Form::Many(kind, n) = entry.form else { return Err(unexpected(key, entry.form, expected)) };
        let mut reader = Reader::new(&self.bytes[entry.range.clone()]);
        (0..n)
            .map(|_| decode(kind, reader.value(kind)?).ok_or_else(|| unexpected(key, entry.form, expected)))
            .collect::<Result<Vec<T>>>()
            .map(Some)
    }
}

impl Entry {
    /// Reads a type and a value; the range counts from `start`.
    fn read(reader: &mut Reader<'_>, start: usize) -> Result<Self> {
        let kind = ValueType::read(reader)?;
        let (form, value) = if kind == ValueType::Array {
            let (element, n) = (ValueType::read(reader)?, reader.size()?);
            (Form::Many(element, n), reader.elements(element, n, 1)?)
        } else {
            (Form::One(kind), reader.value(kind)?)
        };
        let end = reader.position() - start;
        Ok(Self { form, range: end - value.len()..end })
    }
}

/// The error for a key that is absent and cannot be done without.
pub fn missing(key: &str) -> Error {
    Error::model(format!("GGUF file has no `{key}`"))
}

fn unexpected(key: &str, found: Form, expected: &str) -> Error {
    let found = match found {
        Form::One(kind) => format!("{kind:?}"),
        Form::Many(kind, n) => format!("an array of {n} {kind:?}"),
    };
    Error::model(format!("GGUF key `{key}` is {found} where {expected} is expected"))
}

fn text(kind: ValueType, bytes: &[u8]) -> Option<&str> {
    (kind == ValueType::String).then(|| std::str::from_utf8(bytes).ok())?
}

fn integer(kind: ValueType, bytes: &[u8]) -> Option<i128> {
    use ValueType::{I8, I16, I32, I64, U8, U16, U32, U64};
    Some(match kind {
        U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        I8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        U64 => u64::from_le_bytes(bytes.try_into().ok()?).into(),
        I64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
        _ => return None,
    })
}

fn float(kind: ValueType, bytes: &[u8]) -> Option<f64> {
    Some(match kind {
        ValueType::F32 => f32::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::F64 => f64::from_le_bytes(bytes.try_into().ok()?),
        _ => return None,
    })
}
