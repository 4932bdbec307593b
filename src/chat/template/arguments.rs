//! Arguments as Python finds them: by place or by name.

use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{Error, ErrorKind};

/// Arguments of one call. The methods fail when one is missing or of another type.
pub struct Arguments<'a> {
    by_place: &'a [Value],
    by_name: Kwargs,
}

impl<'a> Arguments<'a> {
    pub fn new(args: &'a [Value]) -> Result<Self, Error> {
        let (by_place, by_name) = from_args(args)?;
        Ok(Self { by_place, by_name })
    }

    /// An argument that may be missing.
    pub fn get(&self, place: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.by_place.get(place) {
            Some(value) => Ok(Some(value.clone())),
            None => self.by_name.get(name),
        }
    }

    /// An argument that must be there.
    pub fn required(&self, place: usize, name: &str) -> Result<Value, Error> {
        self.get(place, name)?
            .ok_or_else(|| Error::new(ErrorKind::MissingArgument, format!("argument `{name}` is missing")))
    }

    /// A text that must be there.
    pub fn text(&self, place: usize, name: &str) -> Result<String, Error> {
        as_text(&self.required(place, name)?)
    }

    /// A text that may be missing or none.
    pub fn optional_text(&self, place: usize, name: &str) -> Result<Option<String>, Error> {
        self.get(place, name)?.filter(|value| !value.is_none()).map(|value| as_text(&value)).transpose()
    }

    /// An argument that may be missing or none.
    pub fn optional<T>(&self, place: usize, name: &str) -> Result<Option<T>, Error>
    where
        T: TryFrom<Value, Error = Error>,
    {
        self.get(place, name)?.filter(|value| !value.is_none()).map(T::try_from).transpose()
    }

    /// A switch that is off unless it is given.
    pub fn flag(&self, place: usize, name: &str) -> Result<bool, Error> {
        Ok(self.get(place, name)?.is_some_and(|value| value.is_true()))
    }

    /// All that were given by place.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.by_place.iter()
    }

    /// Refuses what is left once `n_places` were asked for, each by its name too.
    pub fn finish(&self, n_places: usize) -> Result<(), Error> {
        if self.by_place.len() > n_places {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.by_name.assert_all_used()
    }
}

fn as_text(value: &Value) -> Result<String, Error> {
    let wrong =
        || Error::new(ErrorKind::InvalidOperation, format!("expected a string, not {}", value.kind()));
    Ok(value.as_str().ok_or_else(wrong)?.to_owned())
}
