//! Arguments of calls as objects, for APIs that do not pass on their text.

use serde_json::{Map, Value};

/// The arguments of a call from the text of a JSON object, which the token limit may have cut: then the members that are
/// complete.
pub fn complete_arguments(arguments: &str) -> Map<String, Value> {
    let parsed = serde_json::from_str(arguments).or_else(|_| serde_json::from_str(&closed(arguments)));
    parsed.unwrap_or_default()
}

/// The longest beginning of a JSON text that can be closed, closed.
fn closed(json: &str) -> String {
    let mut open = Vec::new();
    // Where the text can be cut, and what closes it there.
    let mut cut = (0, String::new());
    let (mut is_string, mut is_escaped) = (false, false);
    for (idx, byte) in json.bytes().enumerate() {
        if is_string {
            is_string = is_escaped || byte != b'"';
            is_escaped = byte == b'\\' && !is_escaped;
            continue;
        }
        let end = match byte {
            b'"' => {
                is_string = true;
                continue;
            }
            b'{' | b'[' => {
                open.push(if byte == b'{' { '}' } else { ']' });
                idx + 1
            }
            b'}' | b']' => {
                open.pop();
                idx + 1
            }
            b',' => idx,
            _ => continue,
        };
        cut = (end, open.iter().rev().collect());
    }
    let (end, closing) = cut;
    format!("{}{closing}", &json[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cut_object_keeps_its_complete_members() {
        for (arguments, expected) in [
            (r#"{"a": 1, "b": [2, {"c": "x,y}"#, json!({"a": 1, "b": [2, {}]})),
            (r#"{"a": "\"{", "b"#, json!({"a": "\"{"})),
            (r#"{"a": {"b": tr"#, json!({"a": {}})),
            (r#"{"a": [1], "#, json!({"a": [1]})),
            (r#"{"a": 12"#, json!({})),
            ("{", json!({})),
            ("", json!({})),
            (r#"{"a": "é"}"#, json!({"a": "é"})),
        ] {
            assert_eq!(Value::Object(complete_arguments(arguments)), expected, "{arguments}");
        }
    }
}
