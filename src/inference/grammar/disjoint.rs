//! A proof that no JSON is valid under both of two schemas. With it, `oneOf` means the same as `anyOf`, which grammars
//! can enforce.
//!
//! The proof is one-sided: keywords that it does not know are taken to allow anything.

use std::cell::Cell;

use serde_json::{Map, Value};

/// Most steps of all proofs about one schema.
const MAX_STEPS: usize = 100_000;

/// The deepest nesting of schemas that is looked into.
const MAX_DEPTH: usize = 24;

/// Items of arrays that are compared.
const MAX_ITEMS: u64 = 16;

/// Proofs about the parts of one schema.
pub struct Disjointness<'a> {
    /// The schema that `$ref`s point into.
    root: &'a Value,
    n_steps: Cell<usize>,
}

/// Schemas that apply to the same JSON.
#[derive(Clone, Default)]
struct Conjunction<'a> {
    schemas: Vec<&'a Map<String, Value>>,
    /// Whether one of them is `false`.
    is_never: bool,
}

/// The types of JSON as bits. Numbers are either whole or not.
struct Types;

impl Types {
    const NULL: u8 = 1;
    const BOOLEAN: u8 = 2;
    const INTEGER: u8 = 4;
    const FRACTION: u8 = 8;
    const STRING: u8 = 16;
    const ARRAY: u8 = 32;
    const OBJECT: u8 = 64;
    const ALL: u8 = 127;

    fn from_name(name: &Value) -> u8 {
        match name.as_str() {
            Some("null") => Self::NULL,
            Some("boolean") => Self::BOOLEAN,
            Some("integer") => Self::INTEGER,
            Some("number") => Self::INTEGER | Self::FRACTION,
            Some("string") => Self::STRING,
            Some("array") => Self::ARRAY,
            Some("object") => Self::OBJECT,
            _ => Self::ALL,
        }
    }

    fn from_value(value: &Value) -> u8 {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(n) if n.as_f64().is_some_and(|n| n.fract() != 0.0) => Self::FRACTION,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }
}

impl<'a> Disjointness<'a> {
    /// Proofs about parts of `root`.
    pub fn new(root: &'a Value) -> Self {
        Self { root, n_steps: Cell::new(0) }
    }

    /// Whether each two of several schemas that apply beside `base` are known to exclude each other.
    pub fn are_disjoint(&self, base: &Map<String, Value>, schemas: &[Value]) -> bool {
        let base = Value::Object(base.clone());
        let with_base = |schema| {
            let mut all = self.conjunction(schema);
            self.add(&base, &mut all, MAX_DEPTH);
            all
        };
        let all: Vec<Conjunction> = schemas.iter().map(with_base).collect();
        let mut pairs = (0..all.len()).flat_map(|one| (0..one).map(move |other| (one, other)));
        pairs.all(|(one, other)| self.excludes(&all[one], &all[other], MAX_DEPTH))
    }

    /// Counts a step; returns whether it may be taken.
    fn step(&self) -> bool {
        self.n_steps.set(self.n_steps.get() + 1);
        self.n_steps.get() <= MAX_STEPS
    }

    fn conjunction<'b>(&'b self, schema: &'b Value) -> Conjunction<'b> {
        let mut all = Conjunction::default();
        self.add(schema, &mut all, MAX_DEPTH);
        all
    }

    /// Adds a schema, the target of its `$ref`, and its `allOf`.
    fn add<'b>(&'b self, schema: &'b Value, all: &mut Conjunction<'b>, depth: usize) {
        if depth == 0 || !self.step() {
            return;
        }
        match schema {
            Value::Bool(false) => all.is_never = true,
            Value::Object(fields) => {
                all.schemas.push(fields);
                if let Some(target) = fields.get("$ref").and_then(|reference| target(self.root, reference)) {
                    self.add(target, all, depth - 1);
                }
                for schema in list(fields, "allOf") {
                    self.add(schema, all, depth - 1);
                }
            }
            _ => {}
        }
    }

    fn excludes(&self, one: &Conjunction, other: &Conjunction, depth: usize) -> bool {
        if one.is_never || other.is_never {
            return true;
        }
        if depth == 0 || !self.step() {
            return false;
        }
        let common = one.types() & other.types();
        common == 0
            || self.values_exclude(one, other, depth)
            || self.values_exclude(other, one, depth)
            || self.alternatives_exclude(one, other, depth)
            || self.alternatives_exclude(other, one, depth)
            || self.common_types_exclude(common, one, other, depth)
    }

    /// Whether all alternatives of an `anyOf` or `oneOf` exclude `other`.
    fn alternatives_exclude(&self, one: &Conjunction, other: &Conjunction, depth: usize) -> bool {
        let choices = one.schemas.iter().flat_map(|schema| [list(schema, "anyOf"), list(schema, "oneOf")]);
        choices.filter(|choice| !choice.is_empty()).any(|choice| {
            choice.iter().all(|schema| self.excludes(&self.conjunction(schema), other, depth - 1))
        })
    }

    /// Whether `one` allows only certain values, and `other` none of them.
    fn values_exclude(&self, one: &Conjunction, other: &Conjunction, depth: usize) -> bool {
        let Some(values) = one.schemas.iter().find_map(|schema| values(schema)) else { return false };
        let possible = values.into_iter().filter(|value| self.may_match(value, one, depth));
        possible.into_iter().all(|value| !self.may_match(value, other, depth))
    }

    fn common_types_exclude(&self, common: u8, one: &Conjunction, other: &Conjunction, depth: usize) -> bool {
        let both = [one, other];
        let is_excluded = |kind: u8| match kind {
            Types::INTEGER | Types::FRACTION => is_empty_range(one, other, "minimum", "maximum"),
            Types::STRING => {
                is_empty_range(one, other, "minLength", "maxLength") || prefixes_exclude(one, other)
            }
            Types::ARRAY => {
                let n_items = both.iter().filter_map(|all| all.max_of("minItems")).fold(0, u64::max);
                is_empty_range(one, other, "minItems", "maxItems")
                    || (0..n_items.min(MAX_ITEMS))
                        .any(|idx| self.excludes(&self.item(one, idx), &self.item(other, idx), depth - 1))
            }
            Types::OBJECT => {
                let mut names = both.iter().flat_map(|all| all.required());
                is_empty_range(one, other, "minProperties", "maxProperties")
                    || names.any(|name| {
                        self.excludes(&self.property(one, name), &self.property(other, name), depth - 1)
                    })
            }
            _ => false,
        };
        (0..7).map(|bit| 1 << bit).filter(|kind| common & kind != 0).all(is_excluded)
    }

    /// The schemas of a property.
    fn property<'b>(&'b self, all: &Conjunction<'b>, name: &str) -> Conjunction<'b> {
        let mut found = Conjunction::default();
        for schema in &all.schemas {
            let own = schema.get("properties").and_then(|properties| properties.get(name));
            let rest =
                || schema.get("additionalProperties").filter(|_| !schema.contains_key("patternProperties"));
            if let Some(schema) = own.or_else(rest) {
                self.add(schema, &mut found, MAX_DEPTH);
            }
        }
        found
    }

    /// The schemas of an item of an array.
    fn item<'b>(&'b self, all: &Conjunction<'b>, idx: u64) -> Conjunction<'b> {
        let mut found = Conjunction::default();
        for schema in &all.schemas {
            let (first, rest) = match schema.get("items") {
                Some(Value::Array(items)) => (&items[..], schema.get("additionalItems")),
                items => (list(schema, "prefixItems"), items),
            };
            let own = usize::try_from(idx).ok().and_then(|idx| first.get(idx));
            if let Some(schema) = own.or(rest) {
                self.add(schema, &mut found, MAX_DEPTH);
            }
        }
        found
    }

    /// Whether a value is valid, as far as is known.
    fn may_match(&self, value: &Value, all: &Conjunction, depth: usize) -> bool {
        if all.is_never {
            return false;
        }
        if depth == 0 || !self.step() {
            return true;
        }
        if all.types() & Types::from_value(value) == 0 {
            return false;
        }
        all.schemas.iter().all(|schema| {
            let is_known = values(schema).is_none_or(|values| values.iter().any(|other| equal(value, other)));
            let has_alternative = ["anyOf", "oneOf"].into_iter().all(|keyword| {
                let choice = list(schema, keyword);
                choice.is_empty()
                    || choice.iter().any(|schema| self.may_match(value, &self.conjunction(schema), depth - 1))
            });
            is_known && has_alternative && is_within_bounds(value, schema)
        }) && match value {
            Value::Object(fields) => {
                all.required().all(|name| fields.contains_key(name))
                    && fields
                        .iter()
                        .all(|(name, value)| self.may_match(value, &self.property(all, name), depth - 1))
            }
            Value::Array(items) => {
                (0..).zip(items).all(|(idx, value)| self.may_match(value, &self.item(all, idx), depth - 1))
            }
            _ => true,
        }
    }
}

impl<'a> Conjunction<'a> {
    fn types(&self) -> u8 {
        let of_schema = |schema: &&Map<String, Value>| {
            let declared = match schema.get("type") {
                None => Types::ALL,
                Some(Value::Array(types)) => {
                    types.iter().map(Types::from_name).fold(0, |all, kind| all | kind)
                }
                Some(name) => Types::from_name(name),
            };
            let of_values = |values: Vec<&Value>| {
                values.into_iter().map(Types::from_value).fold(0, |all, kind| all | kind)
            };
            declared & values(schema).map_or(Types::ALL, of_values)
        };
        self.schemas.iter().map(of_schema).fold(Types::ALL, |all, kinds| all & kinds)
    }

    fn required(&self) -> impl Iterator<Item = &'a str> {
        self.schemas.iter().flat_map(|schema| list(schema, "required")).filter_map(Value::as_str)
    }

    /// The largest value of a keyword that is a count.
    fn max_of(&self, keyword: &str) -> Option<u64> {
        self.schemas.iter().filter_map(|schema| schema.get(keyword)?.as_u64()).max()
    }
}

/// The schema within `root` that a `$ref` names, if it is a JSON pointer.
pub fn target<'a>(root: &'a Value, reference: &Value) -> Option<&'a Value> {
    let pointer = reference.as_str()?.strip_prefix('#')?;
    root.pointer(&pointer.replace("%24", "$").replace("%25", "%"))
}

/// The array under a keyword; empty if there is none.
fn list<'a>(schema: &'a Map<String, Value>, keyword: &str) -> &'a [Value] {
    schema.get(keyword).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The only values that a schema allows by its `const` or `enum`.
fn values(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

/// Equality of JSON, in which 1 and 1.0 are the same.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| equal(value, other)))
        }
        (one, other) => one == other,
    }
}

/// Whether numbers, strings, arrays or objects of a value keep to the bounds of a schema.
fn is_within_bounds(value: &Value, schema: &Map<String, Value>) -> bool {
    let within = |size: f64, min: &str, max: &str| {
        let (low, is_low_open) = lower(schema, min);
        let (high, is_high_open) = upper(schema, max);
        (size > low || size == low && !is_low_open) && (size < high || size == high && !is_high_open)
    };
    match value {
        Value::Number(n) => n.as_f64().is_none_or(|n| within(n, "minimum", "maximum")),
        Value::String(text) => {
            let has_prefix = schema
                .get("pattern")
                .and_then(|pattern| literal_prefix(pattern.as_str()?))
                .is_none_or(|prefix| text.starts_with(&prefix));
            has_prefix && within(text.chars().count() as f64, "minLength", "maxLength")
        }
        Value::Array(items) => within(items.len() as f64, "minItems", "maxItems"),
        Value::Object(fields) => within(fields.len() as f64, "minProperties", "maxProperties"),
        _ => true,
    }
}

/// The lower bound of a keyword, and whether the bound itself is excluded.
fn lower(schema: &Map<String, Value>, keyword: &str) -> (f64, bool) {
    let bound = schema.get(keyword).and_then(Value::as_f64).unwrap_or(f64::NEG_INFINITY);
    match schema.get("exclusiveMinimum").filter(|_| keyword == "minimum") {
        Some(Value::Bool(is_open)) => (bound, *is_open),
        Some(open) if open.as_f64().is_some_and(|open| open >= bound) => {
            (open.as_f64().unwrap_or(bound), true)
        }
        _ => (bound, false),
    }
}

/// The upper bound of a keyword, and whether the bound itself is excluded.
fn upper(schema: &Map<String, Value>, keyword: &str) -> (f64, bool) {
    let bound = schema.get(keyword).and_then(Value::as_f64).unwrap_or(f64::INFINITY);
    match schema.get("exclusiveMaximum").filter(|_| keyword == "maximum") {
        Some(Value::Bool(is_open)) => (bound, *is_open),
        Some(open) if open.as_f64().is_some_and(|open| open <= bound) => {
            (open.as_f64().unwrap_or(bound), true)
        }
        _ => (bound, false),
    }
}

/// Whether no number or size keeps to the bounds of both.
fn is_empty_range(one: &Conjunction, other: &Conjunction, min: &str, max: &str) -> bool {
    let schemas = || one.schemas.iter().chain(&other.schemas);
    schemas().any(|above| {
        let (low, is_low_open) = lower(above, min);
        schemas().any(|below| {
            let (high, is_high_open) = upper(below, max);
            low > high || low == high && (is_low_open || is_high_open)
        })
    })
}

/// Whether the patterns of both begin with different texts.
fn prefixes_exclude(one: &Conjunction, other: &Conjunction) -> bool {
    let prefixes = |all: &Conjunction| -> Vec<String> {
        let patterns = all.schemas.iter().filter_map(|schema| schema.get("pattern")?.as_str());
        patterns.filter_map(literal_prefix).collect()
    };
    let others = prefixes(other);
    prefixes(one)
        .iter()
        .any(|one| others.iter().any(|other| !one.starts_with(other) && !other.starts_with(one)))
}

/// The text with which everything that a pattern matches begins.
fn literal_prefix(pattern: &str) -> Option<String> {
    let rest = pattern.strip_prefix('^')?;
    if rest.contains('|') {
        return None;
    }
    let is_literal = |c: char| c.is_alphanumeric() || " _-:/,;@#%&=~'\"<>!".contains(c);
    let end = rest.find(|c| !is_literal(c)).unwrap_or(rest.len());
    let mut prefix = rest[..end].to_owned();
    // The last character may be repeated not once.
    if rest[end..].starts_with(['*', '?', '{']) {
        prefix.pop();
    }
    Some(prefix)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn are_disjoint(schema: &Value) -> bool {
        let base: Map<String, Value> = schema
            .as_object()
            .unwrap()
            .clone()
            .into_iter()
            .filter(|(keyword, _)| keyword != "oneOf")
            .collect();
        Disjointness::new(schema).are_disjoint(&base, schema["oneOf"].as_array().unwrap())
    }

    #[test]
    fn alternatives_that_exclude_each_other_are_found() {
        let tagged =
            |value: Value| json!({"type": "object", "properties": {"kind": value}, "required": ["kind"]});
        for alternatives in [
            json!([{"type": "string"}, {"type": "integer"}, {"type": ["null", "boolean"]}]),
            json!([{"const": 1}, {"const": 2}]),
            json!([{"enum": ["a", "b"]}, {"enum": ["c"]}, {"type": "null"}]),
            json!([{"const": 1.5}, {"type": "integer"}]),
            json!([{"type": "integer", "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}]),
            json!([{"type": "string", "maxLength": 3}, {"type": "string", "minLength": 4}]),
            json!([{"type": "string", "pattern": "^a-"}, {"type": "string", "pattern": "^b-[0-9]*"}]),
            json!([{"const": "x1"}, {"type": "string", "pattern": "^y"}]),
            json!([{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}]),
            json!([{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "array", "items": {"type": "null"}}]),
            json!([tagged(json!({"const": "a"})), tagged(json!({"const": "b"}))]),
            json!([tagged(json!({"enum": ["a", "x"]})), tagged(json!({"type": "string", "enum": ["b"]}))]),
            json!([tagged(json!({"const": "a"})), tagged(json!({"type": "integer"}))]),
            json!([{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}, {"type": "null"}]),
            json!([{"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"y": {}}}]}, {"$ref": "#/$defs/B"}]),
            json!([{"anyOf": [{"$ref": "#/$defs/A"}, {"type": "string"}]}, {"$ref": "#/$defs/B"}]),
            json!([{"type": "object", "required": ["x"]}, {"type": "object", "properties": {"x": false}}]),
            json!([{"type": "object", "required": ["x"]}, {"type": "object", "properties": {"y": {}}, "additionalProperties": false}]),
            json!([false, {"type": "string"}]),
        ] {
            let schema = json!({"oneOf": alternatives, "title": "any",
                "$defs": {"A": tagged(json!({"const": "a"})), "B": tagged(json!({"const": "b"}))}});
            assert!(are_disjoint(&schema), "{alternatives}");
        }
        let required_by_the_whole = json!({"type": "object", "required": ["k"], "oneOf": [
            {"properties": {"k": {"const": 1}}}, {"properties": {"k": {"const": 2}}}]});
        assert!(are_disjoint(&required_by_the_whole));
    }

    #[test]
    fn alternatives_that_may_both_match_are_not() {
        for alternatives in [
            json!([{"type": "string"}, {"minLength": 1}]),
            json!([{"const": 1}, {"const": 1.0}]),
            json!([{"enum": ["a", "b"]}, {"enum": ["b"]}]),
            json!([{"type": "integer"}, {"type": "number"}]),
            json!([{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 3}]),
            json!([{"type": "string", "pattern": "^a*b"}, {"type": "string", "pattern": "^b"}]),
            json!([{"type": "string", "pattern": "^a|b"}, {"type": "string", "pattern": "^c"}]),
            json!([{"type": "object", "properties": {"k": {"const": 1}}}, {"type": "object", "properties": {"k": {"const": 2}}}]),
            json!([{"required": ["a"]}, {"required": ["b"]}]),
            json!([{"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "null"}}]),
            json!([{"$ref": "#"}, {"$ref": "#/oneOf/0"}]),
            json!([{"$ref": "#/missing"}, {"type": "null"}]),
            json!([{}, {}]),
        ] {
            assert!(!are_disjoint(&json!({"oneOf": alternatives})), "{alternatives}");
        }
    }

    #[test]
    fn proofs_are_bounded() {
        let one = json!({"anyOf": (0..50).map(|n| json!({"$ref": format!("#/$defs/a{}", n % 3)})).collect::<Vec<_>>()});
        let schema = json!({"oneOf": vec![one.clone(); 50], "$defs": {"a0": one, "a1": one, "a2": one}});
        let start = std::time::Instant::now();
        assert!(!are_disjoint(&schema));
        assert!(start.elapsed().as_secs() < 10);
    }
}
