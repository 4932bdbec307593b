//! JSON schemas as llguidance is to read them.

use std::cell::Cell;

use llguidance::JsonCompileOptions;
use serde_json::{Map, Value};

use super::schema_keywords::{MAX_REMAINDERS, is_small_divisor, rewrite_keywords};
use super::schema_walk::for_each_schema;
use super::unenforceable;
use crate::error::Result;

/// White space between the tokens of JSON: none, one space, or a new line and its indentation. Without a bound, a model
/// could generate white space for ever.
pub const JSON_SPACE: &str = r" |\n {0,32}";

/// A schema in the form that llguidance enforces, with the regular expression of the white space in its JSON, which is
/// empty for none. Options that the schema brings itself are overridden: they could loosen it.
pub fn with_options(schema: &Value, space: &str) -> Result<Value> {
    let mut schema = schema.clone();
    if !schema.is_object() {
        return Err(unenforceable("a schema is a JSON object, such as {\"type\": \"object\"}"));
    }
    rewrite_keywords(&mut schema);
    check_multiples(&mut schema)?;
    for_each_schema(&mut schema, &narrow_times);
    let options = JsonCompileOptions {
        whitespace_flexible: !space.is_empty(),
        whitespace_pattern: (!space.is_empty()).then(|| space.to_owned()),
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
        if let Some(divisor) = divisor.filter(|&divisor| !is_small_divisor(divisor)) {
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
