//! The configuration stored in a checkpoint, from either kind of file.
//!
//! `config.json` and GGUF metadata state the same settings under different names. A [`ConfigKey`]
//! holds both names, so that a family asks for a setting once.

use serde_json::{Map, Value};

use super::load::GgufFile;
use crate::error::{Error, Result};

/// The names of one setting; an empty name where that kind of checkpoint does not have it.
#[derive(Debug, Clone, Copy)]
pub struct ConfigKey {
    /// The name in `config.json`.
    json: &'static str,
    /// The name in GGUF metadata, after the architecture's name and a dot.
    gguf: &'static str,
}

/// The configuration of one checkpoint.
#[derive(Clone, Copy)]
pub enum CheckpointConfig<'a> {
    /// A Hugging Face `config.json`.
    Json(&'a Map<String, Value>),
    /// The metadata of a GGUF file.
    Gguf {
        /// The file.
        file: &'a GgufFile,
        /// The prefix of the model's keys.
        architecture: &'a str,
    },
}

impl ConfigKey {
    /// A setting of both kinds of checkpoint.
    pub const fn new(json: &'static str, gguf: &'static str) -> Self {
        Self { json, gguf }
    }

    /// A setting of `config.json` only.
    pub const fn json(name: &'static str) -> Self {
        Self::new(name, "")
    }

    /// A setting of GGUF metadata only.
    pub const fn gguf(name: &'static str) -> Self {
        Self::new("", name)
    }

    /// The full key in GGUF metadata. No file has the key that an empty name makes.
    fn gguf_key(self, architecture: &str) -> String {
        format!("{architecture}.{}", self.gguf)
    }
}

impl CheckpointConfig<'_> {
    /// Returns a non-negative integer.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn integer(&self, key: ConfigKey) -> Result<Option<usize>> {
        match self {
            Self::Json(object) => self.json_value(object, key, "a non-negative integer", |value| {
                value.as_u64().and_then(|number| usize::try_from(number).ok())
            }),
            Self::Gguf { file, architecture } => file.metadata().count(&key.gguf_key(architecture)),
        }
    }

    /// Returns a setting of each layer, if the checkpoint has a list of them.
    ///
    /// # Errors
    /// When the list contains something else than non-negative integers.
    pub fn per_layer(&self, key: ConfigKey) -> Result<Option<Vec<usize>>> {
        match self {
            Self::Json(object) => match object.get(key.json).and_then(Value::as_array) {
                None => Ok(None),
                Some(list) => {
                    let number =
                        |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
                    let mismatch = || {
                        Error::model(format!(
                            "{} is not a list of numbers; the file is damaged",
                            self.name(key)
                        ))
                    };
                    list.iter().map(number).collect::<Option<_>>().map(Some).ok_or_else(mismatch)
                }
            },
            Self::Gguf { file, architecture } => file.metadata().counts(&key.gguf_key(architecture)),
        }
    }

    /// Returns a non-negative integer, or the largest one where the checkpoint has one for each layer.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn largest(&self, key: ConfigKey) -> Result<Option<usize>> {
        match self.per_layer(key)? {
            Some(list) => Ok(list.into_iter().max()),
            None => self.integer(key),
        }
    }

    /// Returns a non-negative integer that every model has.
    ///
    /// # Errors
    /// When the value is missing or of another type.
    pub fn required(&self, key: ConfigKey) -> Result<usize> {
        self.integer(key)?.ok_or_else(|| self.missing(key))
    }

    /// Returns a finite number.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn float(&self, key: ConfigKey) -> Result<Option<f64>> {
        match self {
            Self::Json(object) => self.json_value(object, key, "a number", Value::as_f64),
            Self::Gguf { file, architecture } => file.metadata().float(&key.gguf_key(architecture)),
        }
    }

    /// Returns a boolean.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn boolean(&self, key: ConfigKey) -> Result<Option<bool>> {
        match self {
            Self::Json(object) => self.json_value(object, key, "true or false", Value::as_bool),
            Self::Gguf { file, architecture } => file.metadata().bool(&key.gguf_key(architecture)),
        }
    }

    /// Returns a string.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn string(&self, key: ConfigKey) -> Result<Option<&str>> {
        match self {
            Self::Json(object) => self.json_value(object, key, "a string", Value::as_str),
            Self::Gguf { file, architecture } => file.metadata().string(&key.gguf_key(architecture)),
        }
    }

    /// Returns a number of each layer, if the checkpoint has a list of them; those of GGUF files may be infinite.
    ///
    /// # Errors
    /// When the list contains something else.
    pub fn floats(&self, key: ConfigKey) -> Result<Option<Vec<f64>>> {
        match self {
            Self::Json(object) => self.json_value(object, key, "a list of numbers", |value| {
                value.as_array()?.iter().map(Value::as_f64).collect()
            }),
            Self::Gguf { file, architecture } => {
                let numbers = file.metadata().floats(&key.gguf_key(architecture))?;
                Ok(numbers.map(|numbers| numbers.iter().copied().map(f64::from).collect()))
            }
        }
    }

    /// Returns the object under `name` of a `config.json`.
    pub fn object(&self, name: &str) -> Option<&Map<String, Value>> {
        match self {
            Self::Json(object) => object.get(name).and_then(Value::as_object),
            Self::Gguf { .. } => None,
        }
    }

    /// Returns the array under `name` of a `config.json`.
    pub fn array(&self, name: &str) -> Option<&[Value]> {
        match self {
            Self::Json(object) => object.get(name).and_then(Value::as_array).map(Vec::as_slice),
            Self::Gguf { .. } => None,
        }
    }

    /// Returns the booleans of an array in the metadata of a GGUF file.
    pub fn booleans(&self, key: ConfigKey) -> Option<&[bool]> {
        match self {
            Self::Json(_) => None,
            Self::Gguf { file, architecture } => file.metadata().booleans(&key.gguf_key(architecture)),
        }
    }

    /// Returns the values of a one-dimensional tensor of a GGUF file, if it has one of this name.
    ///
    /// # Errors
    /// When the tensor has more than one dimension.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Json(_) => Ok(None),
            Self::Gguf { file, .. } => file.vector(name),
        }
    }

    /// Whether this is a GGUF file that lacks the tensor `name`.
    pub fn lacks_tensor(&self, name: &str) -> bool {
        matches!(self, Self::Gguf { file, .. } if !file.contains(name))
    }

    /// The error for a required setting that the checkpoint lacks.
    pub fn missing(&self, key: ConfigKey) -> Error {
        Error::model(format!("{} is missing", self.name(key)))
    }

    /// The setting's name in error messages.
    fn name(&self, key: ConfigKey) -> String {
        match self {
            Self::Json(_) => format!("`{}` of config.json", key.json),
            Self::Gguf { architecture, .. } => format!("`{}` of the GGUF file", key.gguf_key(architecture)),
        }
    }

    /// A value of a `config.json`, in which an explicit null counts as missing.
    fn json_value<'a, T>(
        &self,
        object: &'a Map<String, Value>,
        key: ConfigKey,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = object.get(key.json).filter(|value| !value.is_null()) else { return Ok(None) };
        let mismatch = || Error::model(format!("{} is not {expected}; the file is damaged", self.name(key)));
        convert(value).map(Some).ok_or_else(mismatch)
    }
}
