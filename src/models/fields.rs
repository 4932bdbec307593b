//! What a checkpoint says of its model, whichever kind of file says it.
//!
//! `config.json` and GGUF metadata state the same facts under different names. A [`Key`] holds
//! both, so that a family asks for a fact once.

use candle_core::quantized::gguf_file::Value as GgufValue;
use serde_json::{Map, Value};

use super::load::{GgufFile, gguf_integer};
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

impl<'a> Fields<'a> {
    /// A whole number that is not negative.
    ///
    /// # Errors
    /// When it stands there as something else.
    pub fn integer(&self, key: Key) -> Result<Option<usize>> {
        match self {
            Self::Json(object) => {
                let Some(value) = present(object, key) else { return Ok(None) };
                let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
                number.map(Some).ok_or_else(|| self.wrong_type(key, "a whole number"))
            }
            Self::Gguf { .. } => {
                let Some(value) = self.gguf_value(key) else { return Ok(None) };
                gguf_integer(value).map(Some).ok_or_else(|| self.wrong_type(key, "a whole number"))
            }
        }
    }

    /// As [`Fields::integer`], where there is no model without it.
    ///
    /// # Errors
    /// When it is missing, too.
    pub fn required(&self, key: Key) -> Result<usize> {
        self.integer(key)?.ok_or_else(|| Error::model(format!("{} is missing", self.name(key))))
    }

    /// A number.
    ///
    /// # Errors
    /// When it stands there as something else, or is not finite.
    pub fn float(&self, key: Key) -> Result<Option<f64>> {
        let number = match self {
            Self::Json(object) => match present(object, key) {
                Some(value) => value.as_f64(),
                None => return Ok(None),
            },
            Self::Gguf { .. } => match self.gguf_value(key) {
                Some(GgufValue::F32(number)) => Some(f64::from(*number)),
                Some(GgufValue::F64(number)) => Some(*number),
                Some(value) => gguf_integer(value).map(|number| number as f64),
                None => return Ok(None),
            },
        };
        number
            .filter(|number| number.is_finite())
            .map(Some)
            .ok_or_else(|| self.wrong_type(key, "a finite number"))
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it stands there as something else.
    pub fn boolean(&self, key: Key) -> Result<Option<bool>> {
        let (found, value) = match self {
            Self::Json(object) => {
                let value = present(object, key);
                (value.is_some(), value.and_then(Value::as_bool))
            }
            Self::Gguf { .. } => {
                let value = self.gguf_value(key);
                (value.is_some(), value.and_then(|value| value.to_bool().ok()))
            }
        };
        if found && value.is_none() { Err(self.wrong_type(key, "true or false")) } else { Ok(value) }
    }

    /// A text.
    ///
    /// # Errors
    /// When it stands there as something else.
    pub fn text(&self, key: Key) -> Result<Option<&str>> {
        let (found, value) = match self {
            Self::Json(object) => {
                let value = present(object, key);
                (value.is_some(), value.and_then(Value::as_str))
            }
            Self::Gguf { .. } => {
                let value = self.gguf_value(key);
                (value.is_some(), value.and_then(|value| value.to_string().ok()).map(String::as_str))
            }
        };
        if found && value.is_none() { Err(self.wrong_type(key, "a text")) } else { Ok(value) }
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
            Self::Gguf { architecture, .. } => format!("`{architecture}.{}` of the GGUF file", key.gguf),
        }
    }

    fn gguf_value(&self, key: Key) -> Option<&GgufValue> {
        match self {
            Self::Gguf { file, architecture } if !key.gguf.is_empty() => {
                file.metadata().get(&format!("{architecture}.{}", key.gguf))
            }
            _ => None,
        }
    }

    fn wrong_type(&self, key: Key, expected: &str) -> Error {
        Error::model(format!("{} is not {expected}; the file is damaged", self.name(key)))
    }
}

/// An explicit null is the same as nothing.
fn present(object: &Map<String, Value>, key: Key) -> Option<&Value> {
    object.get(key.json).filter(|value| !value.is_null())
}
