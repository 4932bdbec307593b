//! Walking through JSON schemas.

use serde_json::{Map, Value};

/// Forbids properties that the schemas of objects do not name.
pub fn forbid_additional_properties(schema: &mut Value) {
    for_each_schema(schema, &|schema: &mut Map<String, Value>| {
        if schema.contains_key("properties") && !schema.contains_key("patternProperties") {
            schema.entry("additionalProperties").or_insert(Value::Bool(false));
        }
    });
}

/// Applies `change` to a JSON schema and all its subschemas.
pub fn for_each_schema(schema: &mut Value, change: &impl Fn(&mut Map<String, Value>)) {
    for_each_schema_at(schema, "", &mut |schema: &mut Map<String, Value>, _: &str| change(schema));
}

/// Applies `change` to a JSON schema and all its subschemas, each with its path, which begins with `path`.
pub fn for_each_schema_at(
    schema: &mut Value,
    path: &str,
    change: &mut impl FnMut(&mut Map<String, Value>, &str),
) {
    let Value::Object(fields) = schema else { return };
    change(fields, path);
    for (keyword, value) in fields {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                for (name, schema) in schemas {
                    for_each_schema_at(schema, &format!("{path}.{keyword}.{name}"), change);
                }
            }
            ("prefixItems" | "allOf" | "anyOf" | "oneOf" | "items", Value::Array(schemas)) => {
                for (idx, schema) in schemas.iter_mut().enumerate() {
                    for_each_schema_at(schema, &format!("{path}.{keyword}[{idx}]"), change);
                }
            }
            ("items" | "additionalProperties" | "additionalItems", schema) => {
                for_each_schema_at(schema, &format!("{path}.{keyword}"), change);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn additional_properties_are_forbidden_where_some_are_named() {
        let mut schema = json!({"properties": {"a": {"type": "object", "properties": {"b": {}}},
                                "properties": {"enum": [{"properties": 1}]}}});
        let mut closed = schema.clone();
        closed["additionalProperties"] = json!(false);
        closed["properties"]["a"]["additionalProperties"] = json!(false);
        forbid_additional_properties(&mut schema);
        assert_eq!(schema, closed);
    }
}
