//! The keys and values of a header.

use std::collections::HashMap;

use super::reader::Reader;
use crate::error::{Error, Result};

/// What stands under a key. Numbers of all widths are one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// Bytes that are not UTF-8 have become U+FFFD, here and in lists.
    String(String),
    Integers(IntegerList),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Strings(StringList),
    /// An array of arrays or doubles, of which no reader has a use.
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
    pub fn new(kind: u32, bytes: &[u8]) -> Self {
        Self { kind, bytes: bytes.into() }
    }

    /// The numbers.
    ///
    /// # Errors
    /// When the bytes are not of the type.
    pub fn to_vec(&self) -> Result<Vec<i64>> {
        let mut reader = Reader::new(&self.bytes);
        let mut numbers = Vec::new();
        while reader.position() < self.bytes.len() {
            numbers.push(reader.integer(self.kind)?);
        }
        Ok(numbers)
    }
}

impl FromIterator<i32> for IntegerList {
    fn from_iter<I: IntoIterator<Item = i32>>(numbers: I) -> Self {
        let bytes: Vec<u8> = numbers.into_iter().flat_map(i32::to_le_bytes).collect();
        Self::new(5, &bytes)
    }
}

impl StringList {
    pub fn with_capacity(n: usize) -> Self {
        Self { text: String::new(), ends: Vec::with_capacity(n) }
    }

    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The strings in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|idx| {
            let start = if idx == 0 { 0 } else { self.ends[idx - 1] };
            &self.text[start..self.ends[idx]]
        })
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringList {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut list = Self::default();
        strings.into_iter().for_each(|text| list.push(text.as_ref()));
        list
    }
}

/// Every accessor gives nothing for a key that is not there.
///
/// # Errors
/// All of them say so when the key holds something else.
impl Metadata {
    pub fn new(values: HashMap<String, Value>) -> Self {
        Self { values }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
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
        let list = self.typed(key, "an array of whole numbers", |value| match value {
            Value::Integers(list) => Some(list),
            _ => None,
        })?;
        list.map(IntegerList::to_vec).transpose()
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
