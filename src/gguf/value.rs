//! The metadata of a header: keys and typed values.

use std::collections::HashMap;

use super::value_type::{INT8, INT16, INT32, UINT8, UINT16, UINT32, UINT64};
use crate::error::{Error, Result};

/// A value of the metadata. Integers of all widths are one variant, and so are floats.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// An integer.
    Integer(i64),
    /// A float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(String),
    /// An array of integers.
    Integers(IntegerList),
    /// An array of 32-bit floats.
    Floats(Vec<f32>),
    /// An array of booleans.
    Bools(Vec<bool>),
    /// An array of strings.
    Strings(StringList),
    /// A value that no model needs: nested arrays, arrays of doubles, text that is not UTF-8, integers from
    /// 2^63 on.
    Unsupported,
}

/// An array of integers as it is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegerList {
    /// The format's id of the elements' type.
    type_id: u32,
    bytes: Box<[u8]>,
}

/// Many strings in one allocation: a vocabulary has hundreds of thousands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StringList {
    text: String,
    /// The end of each string in `text`.
    ends: Vec<usize>,
}

/// Keys and values, with access by type.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    values: HashMap<String, MetadataValue>,
}

impl IntegerList {
    /// A list of the integers in `bytes`, whose type has this id in the format.
    pub(super) fn new(type_id: u32, bytes: &[u8]) -> Self {
        Self { type_id, bytes: bytes.into() }
    }

    /// Returns the integers, or `None` if one exceeds `i64`.
    pub fn to_vec(&self) -> Option<Vec<i64>> {
        self.bytes
            .chunks_exact(integer_bytes(self.type_id))
            .map(|bytes| integer(self.type_id, bytes))
            .collect()
    }
}

impl StringList {
    pub(super) fn with_capacity(n: usize) -> Self {
        Self { text: String::new(), ends: Vec::with_capacity(n) }
    }

    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// The number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string with this index.
    pub fn get(&self, idx: usize) -> Option<&str> {
        let start = if idx == 0 { 0 } else { *self.ends.get(idx - 1)? };
        Some(&self.text[start..*self.ends.get(idx)?])
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|idx| self.get(idx).unwrap_or_default())
    }
}

/// Accessors by type; each returns `None` for a missing key.
///
/// # Errors
/// When the value has another type.
impl Metadata {
    pub(super) fn new(values: HashMap<String, MetadataValue>) -> Self {
        Self { values }
    }

    /// Returns an integer.
    pub fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "an integer", |value| match value {
            MetadataValue::Integer(number) => Some(*number),
            _ => None,
        })
    }

    /// Returns a non-negative integer.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a non-negative integer", |value| match value {
            MetadataValue::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        })
    }

    /// Returns a token id.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", |value| match value {
            MetadataValue::Integer(number) => u32::try_from(*number).ok(),
            _ => None,
        })
    }

    /// Returns a finite number; an integer is converted.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |value| match value {
            MetadataValue::Integer(number) => Some(*number as f64),
            MetadataValue::Float(number) => Some(*number).filter(|number| number.is_finite()),
            _ => None,
        })
    }

    /// Returns a boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            MetadataValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Returns a string.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            MetadataValue::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Returns an array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&StringList>> {
        self.typed(key, "an array of strings", |value| match value {
            MetadataValue::Strings(strings) => Some(strings),
            _ => None,
        })
    }

    /// Returns an array of integers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of integers", |value| match value {
            MetadataValue::Integers(list) => list.to_vec(),
            _ => None,
        })
    }

    /// Returns an array of non-negative integers, or `None` for a single one: some keys have one for each layer in one
    /// file, and one for all in another.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        if matches!(self.values.get(key), Some(MetadataValue::Integer(_))) {
            return Ok(None);
        }
        let counts = |list: Vec<i64>| list.into_iter().map(|number| usize::try_from(number).ok()).collect();
        self.typed(key, "an array of non-negative integers", |value| match value {
            MetadataValue::Integers(list) => list.to_vec().and_then(counts),
            _ => None,
        })
    }

    /// Returns an array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an array of floats", |value| match value {
            MetadataValue::Floats(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// Returns an array of booleans, or `None` for a value of another type: some keys have an array in one file and a
    /// number in another.
    pub fn booleans(&self, key: &str) -> Option<&[bool]> {
        match self.values.get(key) {
            Some(MetadataValue::Bools(flags)) => Some(flags.as_slice()),
            _ => None,
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let mismatch =
            || Error::model(format!("`{key}` of the GGUF file is not {expected}; the file is damaged"));
        convert(value).map(Some).ok_or_else(mismatch)
    }
}

/// The size in bytes of an integer whose type has this id in the format.
pub(super) fn integer_bytes(type_id: u32) -> usize {
    match type_id {
        UINT8 | INT8 => 1,
        UINT16 | INT16 => 2,
        UINT32 | INT32 => 4,
        _ => 8,
    }
}

/// Decodes an integer of this type; `None` if it exceeds `i64`.
pub(super) fn integer(type_id: u32, bytes: &[u8]) -> Option<i64> {
    Some(match type_id {
        UINT8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        INT8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        UINT16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        INT16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        UINT32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        INT32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        UINT64 => u64::from_le_bytes(bytes.try_into().ok()?).try_into().ok()?,
        _ => i64::from_le_bytes(bytes.try_into().ok()?),
    })
}
