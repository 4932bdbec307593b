//! The shape of a JSON text: how deep it nests, and how much memory it takes when parsed, known before it is parsed.

/// Counts of a JSON text. Of a malformed one they are approximate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JsonShape {
    /// Levels of arrays and objects.
    pub depth: usize,
    /// Values that follow another in the same array or object; all others are a container's first, or the outermost.
    pub n_values: usize,
    /// Arrays and objects.
    pub n_containers: usize,
}

impl JsonShape {
    /// Counts in one pass over the bytes, without memory.
    pub fn scan(json: &[u8]) -> Self {
        let (mut shape, mut depth) = (Self::default(), 0usize);
        let mut bytes = json.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => {
                    // To the end of the string.
                    while let Some(byte) = bytes.next() {
                        match byte {
                            b'"' => break,
                            b'\\' => drop(bytes.next()),
                            _ => {}
                        }
                    }
                }
                b'[' | b'{' => {
                    depth += 1;
                    shape.n_containers += 1;
                    shape.depth = shape.depth.max(depth);
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                b',' => shape.n_values += 1,
                _ => {}
            }
        }
        shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_and_values_are_counted_outside_of_strings() {
        for (json, depth, n_values, n_containers) in [
            ("", 0, 0, 0),
            ("1", 0, 0, 0),
            ("[]", 1, 0, 1),
            ("[1, 2, 3]", 1, 2, 1),
            (r#"{"a": [[1], [2, {}]], "b": 3}"#, 4, 3, 5),
            (r#"["a,b", "[[[[", "\\", "\"]]],", "{"]"#, 1, 4, 1),
            (r#"["\"#, 1, 0, 1),
            ("]]][", 1, 0, 1),
            ("[[[", 3, 0, 3),
        ] {
            let expected = JsonShape { depth, n_values, n_containers };
            assert_eq!(JsonShape::scan(json.as_bytes()), expected, "{json}");
        }
    }
}
