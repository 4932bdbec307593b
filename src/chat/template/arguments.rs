//! Arguments of calls as in Python: positional or by keyword.

use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{Error, ErrorKind};

/// Arguments of one call. The accessors fail if an argument is missing or has the wrong type.
pub struct Arguments<'a> {
    positional: &'a [Value],
    keyword: Kwargs,
}

impl<'a> Arguments<'a> {
    /// Separates positional from keyword arguments.
    ///
    /// # Errors
    /// When positional arguments follow keyword arguments.
    pub fn new(args: &'a [Value]) -> Result<Self, Error> {
        let (positional, keyword) = from_args(args)?;
        Ok(Self { positional, keyword })
    }

    /// An optional argument.
    pub fn get(&self, position: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.positional.get(position) {
            Some(value) => Ok(Some(value.clone())),
            None => self.keyword.get(name),
        }
    }

    /// A required argument.
    pub fn required(&self, position: usize, name: &str) -> Result<Value, Error> {
        self.get(position, name)?
            .ok_or_else(|| Error::new(ErrorKind::MissingArgument, format!("argument `{name}` is missing")))
    }

    /// A required string.
    pub fn text(&self, position: usize, name: &str) -> Result<String, Error> {
        as_text(&self.required(position, name)?)
    }

    /// An optional string; `none` counts as missing.
    pub fn optional_text(&self, position: usize, name: &str) -> Result<Option<String>, Error> {
        self.get(position, name)?.filter(|value| !value.is_none()).map(|value| as_text(&value)).transpose()
    }

    /// An optional argument of type `T`; `none` counts as missing.
    pub fn optional<T>(&self, position: usize, name: &str) -> Result<Option<T>, Error>
    where
        T: TryFrom<Value, Error = Error>,
    {
        self.get(position, name)?.filter(|value| !value.is_none()).map(T::try_from).transpose()
    }

    /// A boolean argument that defaults to false.
    pub fn flag(&self, position: usize, name: &str) -> Result<bool, Error> {
        Ok(self.get(position, name)?.is_some_and(|value| value.is_true()))
    }

    /// The values of all arguments.
    pub fn values(&self) -> Result<Vec<Value>, Error> {
        let keyword = self.keyword.args().map(|name| self.keyword.get(name));
        self.positional.iter().cloned().map(Ok).chain(keyword).collect()
    }

    /// Refuses more than `n_params` positional arguments, and keyword arguments that have not been accessed.
    pub fn refuse_rest(&self, n_params: usize) -> Result<(), Error> {
        if self.positional.len() > n_params {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.keyword.assert_all_used()
    }
}

fn as_text(value: &Value) -> Result<String, Error> {
    let wrong =
        || Error::new(ErrorKind::InvalidOperation, format!("expected a string, not {}", value.kind()));
    Ok(value.as_str().ok_or_else(wrong)?.to_owned())
}
