//! Filters that [`prepare`](super::syntax::prepare) puts into a template where it makes values, to bound them.
//!
//! A list may contain another one twice, which contains a third one twice, and so on: forty such lists take no memory,
//! but comparing or printing them would not end. A value that refers to many others in a chain would overflow the
//! stack when it is dropped. So every list and dictionary is weighed when it is made: its weight is what a visit of
//! everything inside of it costs.

use minijinja::value::{DynObject, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::budget::{charge_items, check_size, check_time, exceeded};
use super::expression::{MADE, STORED};
use super::syntax::TICK;

/// The deepest nesting of lists and dictionaries.
const MAX_DEPTH: usize = 128;

/// The largest weight of a value: the number of values inside of it, shared ones counted each time, and a share of
/// the bytes of their texts.
const MAX_WEIGHT: usize = 400_000;

/// Bytes of text that weigh as much as a value.
const BYTES_PER_WEIGHT: usize = 32;

/// Weight between two looks at the clock.
const WEIGHT_PER_CHECK: usize = 1 << 12;

/// Registers the filters.
pub fn register(environment: &mut Environment<'_>) {
    environment.add_filter(MADE, made);
    environment.add_filter(STORED, stored);
    environment.add_filter(TICK, |_: &Value| check_time().map(|()| false));
}

/// Passes a value on that the template has made. Lists that are computed on demand are computed now, so that they do
/// not pile up.
///
/// # Errors
/// When the value is nested too deeply or too large.
pub fn made(value: Value) -> Result<Value, Error> {
    check_time()?;
    let mut left = MAX_WEIGHT;
    match value.kind() {
        ValueKind::String => check_size(value.as_str().map_or(0, str::len))?,
        ValueKind::Iterable => {
            let value = Value::from(collect(&value)?);
            weigh(&value, 0, &mut left)?;
            return Ok(value);
        }
        ValueKind::Seq | ValueKind::Map => weigh(&value, 0, &mut left)?,
        _ => {}
    }
    Ok(value)
}

/// Passes a value on that becomes an attribute of a namespace. A namespace may not refer to itself, which would never
/// be freed.
///
/// # Errors
/// When the value is not plain data.
pub fn stored(value: Value) -> Result<Value, Error> {
    match value.as_object() {
        Some(object) if value.kind() == ValueKind::Plain || is_stateful(object) => {
            let message = "only data can be an attribute of a namespace";
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
        _ => made(value),
    }
}

/// The items of a list, each charged for.
///
/// # Errors
/// When the value is not a list, or the budget is used up.
fn collect(value: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        charge_items(1)?;
        items.push(item?);
    }
    Ok(items)
}

/// Subtracts the weight of a value from `left`.
fn weigh(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
    let own = 1 + value.as_str().map_or(0, str::len) / BYTES_PER_WEIGHT;
    *left = left
        .checked_sub(own)
        .ok_or_else(|| exceeded(format!("a value of it is larger than {MAX_WEIGHT} values in all")))?;
    if left.is_multiple_of(WEIGHT_PER_CHECK) {
        check_time()?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    if depth > MAX_DEPTH {
        return Err(exceeded(format!("a value of it is nested more than {MAX_DEPTH} deep")));
    }
    if depth > 0 && is_stateful(object) {
        let message = "a list or dictionary cannot contain a namespace or loop";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    if let Some(mut pairs) = object.try_iter_pairs() {
        return pairs.try_for_each(|(key, value)| {
            weigh(&key, depth + 1, left)?;
            weigh(&value, depth + 1, left)
        });
    }
    object.try_iter().into_iter().flatten().try_for_each(|item| weigh(&item, depth + 1, left))
}

/// Whether an object can change, so that it could come to refer to itself.
fn is_stateful(object: &DynObject) -> bool {
    ["::Namespace", "::Loop"].iter().any(|name| object.type_name().ends_with(name))
}
