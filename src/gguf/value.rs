//! The keys and values of a header.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// What stands under a key. Numbers of all widths are one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Integers(IntegerList),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Strings(StringList),
    /// What no model needs: arrays of arrays or doubles, text that is not UTF-8, numbers from 2^63 on.
    Unread,
}

/// Whole numbers, kept as the file has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegerList {
    /// Their type, by its number in the format.
    kind: u32,
    bytes: Box<[u8]>,
}

/// Many strings in one piece of memory: a vocabulary has hundreds of thousands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StringList {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<usize>,
}

/// Keys and values, with access by type.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    values: HashMap<String, Value>,
}

impl IntegerList {
    /// `bytes` are whole numbers of the type that the format numbers `kind`.
    pub(super) fn new(kind: u32, bytes: &[u8]) -> Self {
        Self { kind, bytes: bytes.into() }
    }

    /// The numbers, unless one is too large.
    pub fn to_vec(&self) -> Option<Vec<i64>> {
        self.bytes.chunks_exact(integer_bytes(self.kind)).map(|bytes| integer(self.kind, bytes)).collect()
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

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at a place.
    pub fn get(&self, idx: usize) -> Option<&str> {
        let start = if idx == 0 { 0 } else { *self.ends.get(idx - 1)? };
        Some(&self.text[start..*self.ends.get(idx)?])
    }

    /// The strings in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|idx| self.get(idx).unwrap_or_default())
    }
}

/// Every accessor gives nothing for a key that is not there.
///
/// # Errors
/// All of them say so when the key holds something else.
impl Metadata {
    pub(super) fn new(values: HashMap<String, Value>) -> Self {
        Self { values }
    }

    pub fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "a whole number", |value| match value {
            Value::Integer(number) => Some(*number),
            _ => None,
        })
    }

    /// A number that counts something.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number that is not negative", |value| match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        })
    }

    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", |value| match value {
            Value::Integer(number) => u32::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A number, whole or not; it is finite.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |value| match value {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number).filter(|number| number.is_finite()),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn strings(&self, key: &str) -> Result<Option<&StringList>> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Strings(strings) => Some(strings),
            _ => None,
        })
    }

    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of whole numbers", |value| match value {
            Value::Integers(list) => list.to_vec(),
            _ => None,
        })
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an array of numbers", |value| match value {
            Value::Floats(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong =
            || Error::model(format!("`{key}` of the GGUF file is not {expected}; the file is damaged"));
        read(value).map(Some).ok_or_else(wrong)
    }
}

/// Bytes of a whole number of the type that the format numbers `kind`.
pub(super) fn integer_bytes(kind: u32) -> usize {
    match kind {
        0 | 1 => 1,
        2 | 3 => 2,
        4 | 5 => 4,
        _ => 8,
    }
}

/// A whole number of that type.
pub(super) fn integer(kind: u32, bytes: &[u8]) -> Option<i64> {
    Some(match kind {
        0 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        1 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        2 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        3 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        4 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        5 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        10 => u64::from_le_bytes(bytes.try_into().ok()?).try_into().ok()?,
        _ => i64::from_le_bytes(bytes.try_into().ok()?),
    })
}
