//! Keywords of JSON schemas that llguidance does not enforce: rewritten to others that it does, or left out.

use serde_json::{Map, Value, json};

use super::disjoint::{Disjointness, target};
use super::schema_walk::for_each_schema_at;

/// Formats that are enforced. Others are annotations, as the standard has it.
const FORMATS: &[&str] =
    &["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

/// The versions of the standard that are told apart; for others, `$schema` says nothing.
const DRAFTS: &[&str] = &[
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
];

/// Keywords that no grammar enforces.
const UNENFORCED: &[&str] = &[
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Keywords by which a schema refers to others that apply to the same JSON.
const APPLICATORS: &[&str] =
    &["$dynamicRef", "$recursiveRef", "$ref", "allOf", "anyOf", "dependentSchemas", "if", "oneOf"];

/// Largest `multipleOf` without its decimal point.
pub const MAX_REMAINDERS: f64 = 10_000.0;

/// How often a `$ref` may point to another.
const MAX_REFS: usize = 8;

/// Rewrites a schema so that more of it can be enforced. The result allows the same JSON.
pub fn rewrite_keywords(schema: &mut Value) {
    let root = schema.clone();
    let proofs = Disjointness::new(&root);
    for_each_schema_at(schema, "", &mut |schema: &mut Map<String, Value>, _: &str| {
        remove_no_ops(schema);
        apply_formats(schema);
        apply_unevaluated(schema);
        apply_property_names(schema, &root);
        apply_one_of(schema, &proofs);
    });
}

/// Leaves out what no grammar enforces; returns the paths of these keywords, which begin with `path`.
pub fn leave_out_unenforceable(schema: &mut Value, path: &str) -> Vec<String> {
    rewrite_keywords(schema);
    let mut left_out = Vec::new();
    for_each_schema_at(schema, path, &mut |schema: &mut Map<String, Value>, path: &str| {
        let mut leave_out = |schema: &mut Map<String, Value>, keyword: &str| {
            left_out.push(format!("{path}.{keyword}"));
            schema.shift_remove(keyword)
        };
        for keyword in UNENFORCED {
            if schema.contains_key(*keyword) {
                leave_out(schema, keyword);
            }
        }
        if text(schema, "pattern").is_some_and(|pattern| !is_regular(pattern)) {
            leave_out(schema, "pattern");
        }
        if schema.get("multipleOf").and_then(Value::as_f64).is_some_and(|divisor| !is_small_divisor(divisor))
        {
            leave_out(schema, "multipleOf");
        }
        if text(schema, "$ref").is_some_and(|reference| !reference.starts_with('#')) {
            leave_out(schema, "$ref");
        }
        if let Some(Value::Object(patterns)) = schema.get("patternProperties")
            && patterns.keys().any(|pattern| !is_regular(pattern))
        {
            // Without the patterns, properties that match them are additional.
            leave_out(schema, "patternProperties");
            if schema.contains_key("additionalProperties") {
                leave_out(schema, "additionalProperties");
            }
        }
        if let Some(alternatives) = leave_out_one_of(schema) {
            left_out.push(format!("{path}.oneOf"));
            add_any_of(schema, alternatives);
        }
    });
    left_out
}

/// Whether multiples of a number can be enforced.
pub fn is_small_divisor(divisor: f64) -> bool {
    n_remainders(divisor) <= MAX_REMAINDERS
}

/// The digits of a number, read as a whole number.
fn n_remainders(divisor: f64) -> f64 {
    let mut digits = divisor;
    while digits.fract() != 0.0 && digits < MAX_REMAINDERS {
        digits *= 10.0;
    }
    digits
}

/// Takes the `oneOf` that [`rewrite_keywords`] has left.
fn leave_out_one_of(schema: &mut Map<String, Value>) -> Option<Vec<Value>> {
    match schema.get("oneOf") {
        Some(Value::Array(_)) => match schema.shift_remove("oneOf") {
            Some(Value::Array(alternatives)) => Some(alternatives),
            _ => None,
        },
        _ => None,
    }
}

/// Removes keywords that say nothing.
fn remove_no_ops(schema: &mut Map<String, Value>) {
    if text(schema, "$schema").is_some_and(|draft| !DRAFTS.contains(&draft.trim_end_matches('#'))) {
        schema.shift_remove("$schema");
    }
    if schema.get("uniqueItems") == Some(&Value::Bool(false)) {
        schema.shift_remove("uniqueItems");
    }
    if !schema.contains_key("contains") {
        schema.shift_remove("minContains");
        schema.shift_remove("maxContains");
    }
    if !schema.contains_key("if") {
        schema.shift_remove("then");
        schema.shift_remove("else");
    }
    for keyword in ["dependencies", "dependentRequired", "dependentSchemas"] {
        if schema.get(keyword).and_then(Value::as_object).is_some_and(Map::is_empty) {
            schema.shift_remove(keyword);
        }
    }
    for keyword in ["$dynamicAnchor", "$recursiveAnchor"] {
        schema.shift_remove(keyword);
    }
}

/// Removes formats that are annotations, and patterns that say the same as a format in a way that is not supported.
fn apply_formats(schema: &mut Map<String, Value>) {
    let Some(format) = text(schema, "format") else { return };
    if !FORMATS.contains(&format) {
        schema.shift_remove("format");
    } else if text(schema, "pattern").is_some_and(|pattern| !is_regular(pattern)) {
        schema.shift_remove("pattern");
    }
}

/// Rewrites `unevaluatedProperties` and `unevaluatedItems` where no other schema could evaluate them.
fn apply_unevaluated(schema: &mut Map<String, Value>) {
    for (keyword, plain) in [("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")]
    {
        let has_others = APPLICATORS.iter().any(|keyword| schema.contains_key(*keyword));
        let says_nothing = matches!(schema.get(keyword), Some(Value::Bool(true)))
            || schema.get(keyword).and_then(Value::as_object).is_some_and(Map::is_empty)
            // The plain keyword evaluates all that is left.
            || schema.contains_key(plain);
        if says_nothing {
            schema.shift_remove(keyword);
        } else if !has_others && let Some(rest) = schema.shift_remove(keyword) {
            schema.insert(plain.to_owned(), rest);
        }
    }
}

/// Rewrites `propertyNames` to properties, patterns of properties, and counts.
fn apply_property_names(schema: &mut Map<String, Value>, root: &Value) {
    let Some(names) = schema.get("propertyNames") else { return };
    let mut rewritten = Vec::new();
    if names_as_properties(names, root, &mut rewritten, MAX_REFS).is_none() {
        return;
    }
    schema.shift_remove("propertyNames");
    for addition in rewritten {
        add_all_of(schema, addition);
    }
}

/// Adds schemas of objects whose names match the schema `names`; `None` if these cannot be found.
fn names_as_properties(names: &Value, root: &Value, into: &mut Vec<Value>, depth: usize) -> Option<()> {
    let fields = match names {
        Value::Bool(true) => return Some(()),
        Value::Bool(false) => {
            into.push(json!({"maxProperties": 0}));
            return Some(());
        }
        names => names.as_object()?,
    };
    let with_pattern =
        |pattern: String| json!({"patternProperties": {pattern: true}, "additionalProperties": false});
    let with_names = |names: &[Value]| {
        let names = names.iter().filter_map(Value::as_str);
        let properties: Map<String, Value> = names.map(|name| (name.to_owned(), Value::Bool(true))).collect();
        json!({"properties": properties, "additionalProperties": false})
    };
    let (min, max) = (fields.get("minLength"), fields.get("maxLength"));
    if min.is_some() || max.is_some() {
        let bound = |bound: Option<&Value>| bound.map_or(Some(None), |bound| bound.as_u64().map(Some));
        let (min, max) = (bound(min)?.unwrap_or(0), bound(max)?);
        let max = max.map(|max| max.to_string()).unwrap_or_default();
        into.push(with_pattern(format!("^[\\s\\S]{{{min},{max}}}$")));
    }
    for (keyword, value) in fields {
        match (keyword.as_str(), value) {
            ("type", Value::String(kind)) if kind == "string" => {}
            ("type", Value::Array(kinds)) if kinds.iter().any(|kind| kind == "string") => {}
            ("const", value) => into.push(with_names(std::slice::from_ref(value))),
            ("enum", Value::Array(values)) => into.push(with_names(values)),
            ("pattern", Value::String(pattern)) if is_regular(pattern) => {
                into.push(with_pattern(pattern.clone()))
            }
            ("$ref", reference) if depth > 0 => {
                names_as_properties(target(root, reference)?, root, into, depth - 1)?;
            }
            ("allOf", Value::Array(all)) if depth > 0 => {
                for names in all {
                    names_as_properties(names, root, into, depth - 1)?;
                }
            }
            ("format", Value::String(format)) if !FORMATS.contains(&format.as_str()) => {}
            (
                "minLength" | "maxLength" | "title" | "description" | "default" | "examples" | "$comment"
                | "deprecated",
                _,
            ) => {}
            _ => return None,
        }
    }
    Some(())
}

/// Rewrites a `oneOf` whose alternatives exclude each other to an `anyOf`.
fn apply_one_of(schema: &mut Map<String, Value>, proofs: &Disjointness) {
    let Some(Value::Array(alternatives)) = schema.get("oneOf") else { return };
    let alternatives = match required_names(alternatives) {
        Some(names) => {
            let only = |name: &&str| {
                let others = names.iter().filter(|other| *other != name);
                let absent: Map<String, Value> =
                    others.map(|other| ((*other).to_owned(), Value::Bool(false))).collect();
                json!({"required": [name], "properties": absent})
            };
            names.iter().map(only).collect()
        }
        None => {
            let mut base = schema.clone();
            base.shift_remove("oneOf");
            if !proofs.are_disjoint(&base, alternatives) {
                return;
            }
            alternatives.clone()
        }
    };
    schema.shift_remove("oneOf");
    add_any_of(schema, alternatives);
}

/// The names of a `oneOf` each of whose alternatives requires another property, and says nothing else.
fn required_names(alternatives: &[Value]) -> Option<Vec<&str>> {
    let names = alternatives.iter().map(|schema| {
        let fields = schema.as_object()?;
        match (fields.len(), fields.get("required")?.as_array()?.as_slice()) {
            (1, [name]) => name.as_str(),
            _ => None,
        }
    });
    let names = names.collect::<Option<Vec<&str>>>()?;
    let are_different = (0..names.len()).all(|idx| !names[..idx].contains(&names[idx]));
    (are_different && names.len() > 1).then_some(names)
}

fn add_any_of(schema: &mut Map<String, Value>, alternatives: Vec<Value>) {
    if schema.contains_key("anyOf") {
        add_all_of(schema, json!({"anyOf": alternatives}));
    } else {
        schema.insert("anyOf".to_owned(), Value::Array(alternatives));
    }
}

fn add_all_of(schema: &mut Map<String, Value>, addition: Value) {
    match schema.entry("allOf").or_insert_with(|| json!([])) {
        Value::Array(all) => all.push(addition),
        other => *other = json!([addition]),
    }
}

fn text<'a>(schema: &'a Map<String, Value>, keyword: &str) -> Option<&'a str> {
    schema.get(keyword).and_then(Value::as_str)
}

/// Whether a regular expression has neither look-around nor back-references.
fn is_regular(pattern: &str) -> bool {
    let mut is_escaped = false;
    let mut is_class = false;
    pattern.char_indices().all(|(at, c)| match std::mem::take(&mut is_escaped) {
        true => is_class || !matches!(c, '1'..='9' | 'k'),
        false => {
            is_escaped = c == '\\';
            is_class = c == '[' || is_class && c != ']';
            let rest = &pattern[at..];
            is_class || !["(?=", "(?!", "(?<=", "(?<!"].iter().any(|look| rest.starts_with(look))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_rewritten_to_others() {
        let any_of = |alternatives: Value| json!({"anyOf": alternatives});
        for (schema, expected) in [
            (json!({"type": "string", "format": "colour"}), json!({"type": "string"})),
            (json!({"format": "email", "pattern": "^(?!x).*$"}), json!({"format": "email"})),
            (json!({"format": "email", "pattern": "^x"}), json!({"format": "email", "pattern": "^x"})),
            (json!({"uniqueItems": false, "then": {}, "minContains": 1}), json!({})),
            (json!({"$schema": "http://json-schema.org/schema#"}), json!({})),
            (
                json!({"unevaluatedProperties": false, "properties": {}}),
                json!({"properties": {}, "additionalProperties": false}),
            ),
            (json!({"propertyNames": {"type": "string"}}), json!({})),
            (json!({"propertyNames": true}), json!({})),
            (
                json!({"additionalProperties": {"type": "null"}, "propertyNames": {"enum": ["a", 1]}}),
                json!({"additionalProperties": {"type": "null"},
                       "allOf": [{"properties": {"a": true}, "additionalProperties": false}]}),
            ),
            (
                json!({"propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": {"pattern": "^a", "title": "N"}}}),
                json!({"$defs": {"n": {"pattern": "^a", "title": "N"}},
                       "allOf": [{"patternProperties": {"^a": true}, "additionalProperties": false}]}),
            ),
            (
                json!({"propertyNames": {"maxLength": 3}}),
                json!({"allOf": [{"patternProperties": {"^[\\s\\S]{0,3}$": true}, "additionalProperties": false}]}),
            ),
            (json!({"propertyNames": {"not": {}}}), json!({"propertyNames": {"not": {}}})),
            (
                json!({"oneOf": [{"type": "null"}, {"type": "string"}]}),
                any_of(json!([{"type": "null"}, {"type": "string"}])),
            ),
            (json!({"oneOf": [{"type": "null"}, {}]}), json!({"oneOf": [{"type": "null"}, {}]})),
            (
                json!({"anyOf": [{}], "items": {"oneOf": [{"const": 1}, {"const": 2}], "anyOf": [{}]}}),
                json!({"anyOf": [{}], "items": {"anyOf": [{}], "allOf": [any_of(json!([{"const": 1}, {"const": 2}]))]}}),
            ),
            (
                json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                any_of(json!([{"required": ["a"], "properties": {"b": false}},
                              {"required": ["b"], "properties": {"a": false}}])),
            ),
        ] {
            let mut rewritten = schema.clone();
            rewrite_keywords(&mut rewritten);
            assert_eq!(rewritten, expected, "{schema}");
        }
    }

    #[test]
    fn what_is_left_out_is_named_by_path() {
        let mut schema = json!({
            "type": "object", "not": {"required": ["z"]}, "title": "not",
            "properties": {
                "a": {"type": "array", "uniqueItems": true, "items": [{"pattern": "a(?=b)"}]},
                "not": {"oneOf": [{"minLength": 1}, {"type": "string"}]},
                "b": {"multipleOf": 9_999_991, "$ref": "https://example.com/x.json"},
            },
            "patternProperties": {"^(a)\\1": {}}, "additionalProperties": false,
        });
        assert_eq!(
            leave_out_unenforceable(&mut schema, "schema"),
            [
                "schema.not",
                "schema.patternProperties",
                "schema.additionalProperties",
                "schema.properties.a.uniqueItems",
                "schema.properties.a.items[0].pattern",
                "schema.properties.not.oneOf",
                "schema.properties.b.multipleOf",
                "schema.properties.b.$ref",
            ]
        );
        assert_eq!(
            schema,
            json!({"type": "object", "title": "not", "properties": {"a": {"type": "array", "items": [{}]},
                   "not": {"anyOf": [{"minLength": 1}, {"type": "string"}]}, "b": {}}})
        );
        assert!(leave_out_unenforceable(&mut schema, "schema").is_empty());
    }

    #[test]
    fn look_around_and_back_references_are_found() {
        for regular in ["^[a(?=b)]+$", "a\\(?=b", "(?:a|b)", "(?P<n>a)", "[\\1]", "\\\\1"] {
            assert!(is_regular(regular), "{regular}");
        }
        for other in ["a(?=b)", "^(?!x)", "(?<=a)b", "(?<!a)b", "(a)\\1", "(?<n>a)\\k<n>"] {
            assert!(!is_regular(other), "{other}");
        }
    }
}
