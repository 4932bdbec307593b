//! JSON schemas as llguidance is to read them.

use std::cell::Cell;

use llguidance::JsonCompileOptions;
use serde_json::{Map, Value};

use super::unenforceable;
use crate::error::Result;

/// White space between the tokens of JSON: none, one space, or a new line and its indentation. Without a bound, a model
/// could generate white space for ever.
const JSON_SPACE: &str = r" |\n {0,32}";

/// Largest `multipleOf` without its decimal point.
const MAX_REMAINDERS: f64 = 10_000.0;

/// A schema with options for the format of its JSON. Options that the schema brings itself are overridden: they could
/// loosen it.
pub fn with_options(schema: &Value) -> Result<Value> {
    let mut schema = schema.clone();
    if !schema.is_object() {
        return Err(unenforceable("a schema is a JSON object, such as {\"type\": \"object\"}"));
    }
    check_multiples(&mut schema)?;
    for_each_schema(&mut schema, &narrow_times);
    let options = JsonCompileOptions {
        whitespace_pattern: Some(JSON_SPACE.to_owned()),
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok(schema)
}

/// Refuses multiples of numbers with so many digits that checking them would take too long: the lexer has a state for
/// each remainder.
fn check_multiples(schema: &mut Value) -> Result<()> {
    let too_large = Cell::new(None);
    for_each_schema(schema, &|schema: &mut Map<String, Value>| {
        let divisor = schema.get("multipleOf").and_then(Value::as_f64);
        if let Some(divisor) = divisor.filter(|&divisor| n_remainders(divisor) > MAX_REMAINDERS) {
            too_large.set(Some(divisor));
        }
    });
    match too_large.get() {
        None => Ok(()),
        Some(divisor) => Err(unenforceable(&format!(
            "`multipleOf` is {divisor}, and its digits, read as a whole number, may be {MAX_REMAINDERS} at most"
        ))),
    }
}

/// The digits of a number, read as a whole number.
fn n_remainders(divisor: f64) -> f64 {
    let mut digits = divisor;
    while digits.fract() != 0.0 && digits < MAX_REMAINDERS {
        digits *= 10.0;
    }
    digits
}

/// Restricts times to those that common parsers accept: RFC 3339 also allows a year 0 and a leap second 60.
fn narrow_times(schema: &mut Map<String, Value>) {
    let pattern = match schema.get("format").and_then(Value::as_str) {
        Some("date") => "^0{0,3}[1-9]",
        Some("date-time") => "^0{0,3}[1-9][^:]*:[^:]*:[0-5]",
        Some("time") => "^[^:]*:[^:]*:[0-5]",
        _ => return,
    };
    schema.entry("pattern").or_insert_with(|| pattern.into());
}

/// Applies `change` to a JSON schema and all its subschemas.
pub fn for_each_schema(schema: &mut Value, change: &impl Fn(&mut Map<String, Value>)) {
    let Value::Object(fields) = schema else { return };
    change(fields);
    for (keyword, value) in fields {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().for_each(|schema| for_each_schema(schema, change));
            }
            ("prefixItems" | "allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(|schema| for_each_schema(schema, change));
            }
            ("items" | "additionalProperties", schema) => for_each_schema(schema, change),
            _ => {}
        }
    }
}
