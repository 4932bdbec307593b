//! What a checkpoint says of its model, whichever kind of file says it.
//!
//! `config.json` and GGUF metadata state the same facts under different names. A [`Key`] holds
//! both, so that a family asks for a fact once.

use serde_json::{Map, Value};

use super::load::GgufFile;
use crate::error::{Error, Result};

/// The names of one fact; an empty one where that kind of checkpoint does not state it.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// In `config.json`.
    pub json: &'static str,
    /// In GGUF metadata, behind the architecture's name and a dot.
    pub gguf: &'static str,
}

/// The facts of one checkpoint.
#[derive(Clone, Copy)]
pub enum Fields<'a> {
    Json(&'a Map<String, Value>),
    Gguf { file: &'a GgufFile, architecture: &'a str },
}

impl Fields<'_> {
    /// A whole number that is not negative.
    ///
    /// # Errors
    /// When it stands there as something else.
    pub fn integer(&self, key: Key) -> Result<Option<usize>> {
        match self {
            Self::Json(object) => self.json(object, key, "a whole number", |value| {
                value.as_u64().and_then(|number| usize::try_from(number).ok())
            }),
            Self::Gguf { file, architecture } => file.metadata().count(&key.in_gguf(architecture)),
        }
    }

    /// As [`Fields::integer`], where there is no model without it.
    ///
    /// # Errors
    /// When it is missing, too.
    pub fn required(&self, key: Key) -> Result<usize> {
        self.integer(key)?.ok_or_else(|| Error::model(format!("{} is missing", self.name(key))))
    }

    /// A number; it is finite.
    ///
    /// # Errors
    /// When it stands there as something else.
    pub fn float(&self, key: Key) -> Result<Option<f64>> {
        match self {
            Self::Json(object) => self.json(object, key, "a number", Value::as_f64),
            Self::Gguf { file, architecture } => file.metadata().float(&key.in_gguf(architecture)),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it stands there as something else.
    pub fn boolean(&self, key: Key) -> Result<Option<bool>> {
        match self {
            Self::Json(object) => self.json(object, key, "true or false", Value::as_bool),
            Self::Gguf { file, architecture } => file.metadata().bool(&key.in_gguf(architecture)),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// When it stands there as something else.
    pub fn text(&self, key: Key) -> Result<Option<&str>> {
        match self {
            Self::Json(object) => self.json(object, key, "a text", Value::as_str),
            Self::Gguf { file, architecture } => file.metadata().string(&key.in_gguf(architecture)),
        }
    }

    /// The object under `name` of a `config.json`.
    pub fn object(&self, name: &str) -> Option<&Map<String, Value>> {
        match self {
            Self::Json(object) => object.get(name).and_then(Value::as_object),
            Self::Gguf { .. } => None,
        }
    }

    /// The array under `name` of a `config.json`.
    pub fn array(&self, name: &str) -> Option<&[Value]> {
        match self {
            Self::Json(object) => object.get(name).and_then(Value::as_array).map(Vec::as_slice),
            Self::Gguf { .. } => None,
        }
    }

    /// The numbers of a tensor of a GGUF file, if it has one of this name.
    ///
    /// # Errors
    /// When it is not one row of numbers.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Json(_) => Ok(None),
            Self::Gguf { file, .. } => file.vector(name),
        }
    }

    /// What to call a fact in a message.
    pub fn name(&self, key: Key) -> String {
        match self {
            Self::Json(_) => format!("`{}` of config.json", key.json),
            Self::Gguf { architecture, .. } => format!("`{}` of the GGUF file", key.in_gguf(architecture)),
        }
    }

    /// A fact of a `config.json`, in which an explicit null is the same as nothing.
    fn json<'a, T>(
        &self,
        object: &'a Map<String, Value>,
        key: Key,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = object.get(key.json).filter(|value| !value.is_null()) else { return Ok(None) };
        let wrong = || Error::model(format!("{} is not {expected}; the file is damaged", self.name(key)));
        read(value).map(Some).ok_or_else(wrong)
    }
}

impl Key {
    /// Nothing stands under the key that an empty name makes.
    fn in_gguf(self, architecture: &str) -> String {
        format!("{architecture}.{}", self.gguf)
    }
}
