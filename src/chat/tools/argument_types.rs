//! The JSON types that a function's schema allows for an argument, and the conversion of text to them.

use std::ops::BitOr;

use serde_json::{Map, Value};

use super::literal::parse_literal;
use crate::openai::chat::FunctionDefinition;

/// A set of JSON types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArgumentTypes(u8);

/// Deepest nesting of schemas that is looked into.
const MAX_DEPTH: usize = 8;

impl ArgumentTypes {
    const NONE: Self = Self(0);
    /// Strings only.
    pub const STRING: Self = Self(1);
    const NUMBER: Self = Self(2);
    const BOOLEAN: Self = Self(4);
    const NULL: Self = Self(8);
    const OBJECT: Self = Self(16);
    const ARRAY: Self = Self(32);
    /// Any type.
    pub const ANY: Self = Self(63);

    /// The types of the argument `key` of the function `name`.
    pub fn of_argument(functions: &[FunctionDefinition], name: &str, key: &str) -> Self {
        let function = functions.iter().find(|function| function.name == name);
        let Some(schema) = function.and_then(|function| function.parameters.as_ref()) else {
            return Self::ANY;
        };
        properties(schema)
            .and_then(|properties| properties.get(key))
            .map_or(Self::ANY, |property| Self::of_schema(property, schema))
    }

    /// The types that a schema allows, whose references lead into `root`.
    pub fn of_schema(schema: &Value, root: &Value) -> Self {
        Self::at_depth(schema, root, 0)
    }

    fn at_depth(schema: &Value, root: &Value, depth: usize) -> Self {
        let Some(fields) = schema.as_object().filter(|_| depth < MAX_DEPTH) else { return Self::ANY };
        let inner = |schema: &Value| Self::at_depth(schema, root, depth + 1);
        let union = |schemas: &[Value]| schemas.iter().map(inner).fold(Self::NONE, Self::bitor);
        let list = |key: &str| fields.get(key).and_then(Value::as_array).map(Vec::as_slice);
        let mut types = match fields.get("type") {
            Some(Value::String(name)) => Self::by_name(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).map(Self::by_name).fold(Self::NONE, Self::bitor)
            }
            _ => Self::ANY,
        };
        if let Some(target) = resolve(schema, root) {
            types = types & inner(target);
        }
        if let Some(values) = list("enum") {
            types = types & values.iter().map(Self::of_value).fold(Self::NONE, Self::bitor);
        }
        if let Some(value) = fields.get("const") {
            types = types & Self::of_value(value);
        }
        for alternatives in ["anyOf", "oneOf"].into_iter().filter_map(list) {
            types = types & union(alternatives);
        }
        list("allOf").into_iter().flatten().fold(types, |types, schema| types & inner(schema))
    }

    fn by_name(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "string" => Self::STRING,
            "number" | "integer" => Self::NUMBER,
            "boolean" => Self::BOOLEAN,
            "null" => Self::NULL,
            "object" => Self::OBJECT,
            "array" => Self::ARRAY,
            _ => Self::ANY,
        }
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(_) => Self::NUMBER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    /// Whether the value is a string in any case.
    pub fn is_text(self) -> bool {
        self == Self::STRING
    }

    /// Whether a value of type string is allowed.
    pub fn has_text(self) -> bool {
        self & Self::STRING != Self::NONE
    }

    fn has(self, value: &Value) -> bool {
        self & Self::of_value(value) != Self::NONE
    }

    /// The value that a text without quotes stands for.
    pub fn value_of_text(self, text: &str) -> Value {
        if self.is_text() {
            return Value::from(text);
        }
        let trimmed = text.trim();
        if let Ok(value) = serde_json::from_str::<Value>(trimmed)
            && self.has(&value)
            && !(value.is_string() && self.has_text())
        {
            return value;
        }
        match parse_literal(trimmed) {
            Some(value) if !self.has_text() && self.has(&value) => value,
            _ => Value::from(text),
        }
    }

    /// The value that a literal stands for, which was parsed from `text`.
    pub fn value_of_literal(self, value: Value, text: &str) -> Value {
        match &value {
            value if self.has(value) => value.clone(),
            Value::String(inner) => match self.value_of_text(inner) {
                converted if self.has(&converted) => converted,
                _ => value,
            },
            _ if self.is_text() => Value::from(text.trim()),
            _ => value,
        }
    }
}

impl BitOr for ArgumentTypes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitAnd for ArgumentTypes {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The schema that a reference within `root` leads to.
pub fn resolve<'a>(schema: &Value, root: &'a Value) -> Option<&'a Value> {
    root.pointer(schema.get("$ref")?.as_str()?.strip_prefix('#')?)
}

/// The properties of a function's arguments.
pub fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    let schema = resolve(schema, schema).unwrap_or(schema);
    schema.get("properties")?.as_object()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_converted_by_its_schema() {
        let root = json!({"$defs": {"n": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}});
        for (schema, text, value) in [
            (json!({"type": "string"}), "12", json!("12")),
            (json!({"type": "integer"}), " 12 ", json!(12)),
            (json!({"$ref": "#/$defs/n"}), "12", json!(12)),
            (json!({"$ref": "#/$defs/loop"}), "12", json!(12)),
            (json!({"type": "integer"}), "twelve", json!("twelve")),
            (json!({"type": ["string", "null"]}), "null", json!(null)),
            (json!({"type": ["string", "null"]}), "12", json!("12")),
            (json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), "12", json!(12)),
            (json!({"enum": ["1", "2"]}), "1", json!("1")),
            (json!({"enum": [1, 2]}), "1", json!(1)),
            (json!({"const": true}), "True", json!(true)),
            (json!({"type": "boolean"}), "False", json!(false)),
            (json!({"type": "array"}), "['a', None]", json!(["a", null])),
            (json!({"type": "object"}), "{\"a\": [1]}", json!({"a": [1]})),
            (json!({}), "{\"a\": [1]}", json!({"a": [1]})),
            (json!({}), "True story", json!("True story")),
            (json!({}), "\"quoted\"", json!("\"quoted\"")),
            (json!({"allOf": [{"type": ["string", "integer"]}, {"type": "integer"}]}), "3", json!(3)),
        ] {
            let types = ArgumentTypes::of_schema(&schema, &root);
            assert_eq!(types.value_of_text(text), value, "{schema} {text}");
        }
    }
}
