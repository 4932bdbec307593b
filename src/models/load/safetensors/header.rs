//! Parses safetensors headers: bytes in, validated tensor locations out.
//!
//! A header is untrusted JSON, so, as in [`crate::gguf`], nothing in it is used before it is checked.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

/// A validated header.
#[derive(Debug)]
pub struct SafetensorsHeader {
    tensors: HashMap<String, SafetensorsTensorInfo>,
}

/// The type, shape and location of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsTensorInfo {
    /// The format's name for the element type.
    pub dtype: &'static str,
    /// The dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The range of its bytes in the file, which lies inside the file and has the length that type and shape
    /// require.
    pub bytes: Range<usize>,
}

/// The format's element types and their sizes in bits.
const DTYPES: [(&str, usize); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("I64", 64),
    ("U64", 64),
    ("F64", 64),
    ("C64", 64),
];

/// The size of the header's length, which precedes the header.
pub(super) const LENGTH_BYTES: usize = size_of::<u64>();

/// The format's own limit on the header's length, in bytes.
pub(super) const MAX_HEADER_BYTES: usize = 100_000_000;

/// The maximum number of tensors in a file: a hundred times what the largest models have.
const MAX_TENSORS: usize = 1 << 16;

/// The maximum number of dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

impl SafetensorsHeader {
    /// Parses and validates the header of `file`, the contents of a whole file.
    ///
    /// # Errors
    /// When anything in the header is invalid.
    pub fn parse(file: &[u8]) -> Result<Self> {
        Self::parse_start(file, file.len())
    }

    /// The length of a header with the length field before it, which is the `start` of a file of `file_bytes`.
    ///
    /// # Errors
    /// When the file is too short for it, or it is too long.
    pub(super) fn n_bytes(start: &[u8], file_bytes: usize) -> Result<usize> {
        let (n_bytes, _) = start
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or_else(|| Error::model("it is too short for a header"))?;
        let n_bytes = u64::from_le_bytes(*n_bytes);
        usize::try_from(n_bytes)
            .ok()
            .filter(|&n_bytes| n_bytes <= MAX_HEADER_BYTES)
            .map(|n_bytes| LENGTH_BYTES + n_bytes)
            .filter(|&end| end <= file_bytes)
            .ok_or_else(|| {
                Error::model(format!(
                    "its header has {n_bytes} bytes; the file has {file_bytes}, and {MAX_HEADER_BYTES} are allowed"
                ))
            })
    }

    /// Parses and validates the header of a file of `file_bytes` that begins with `start`, the whole header at least.
    ///
    /// # Errors
    /// When anything in the header is invalid.
    pub(super) fn parse_start(start: &[u8], file_bytes: usize) -> Result<Self> {
        let end = Self::n_bytes(start, file_bytes)?;
        let json =
            start.get(LENGTH_BYTES..end).ok_or_else(|| Error::internal("a header was not read whole"))?;
        let UniqueMap(entries) = serde_json::from_slice::<UniqueMap<HeaderEntry>>(json)
            .map_err(|e| Error::model(format!("its header is damaged: {e}")))?;
        let data = end..file_bytes;
        let tensors = entries
            .into_iter()
            .map(|(name, entry)| {
                let info = entry.locate(&data).map_err(|e| e.context(format_args!("tensor `{name}`")))?;
                Ok((name, info))
            })
            .collect::<Result<HashMap<_, _>>>()?;
        check_coverage(&tensors, &data)?;
        Ok(Self { tensors })
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &HashMap<String, SafetensorsTensorInfo> {
        &self.tensors
    }

    /// Turns the header into its tensors by name.
    pub(super) fn into_tensors(self) -> HashMap<String, SafetensorsTensorInfo> {
        self.tensors
    }
}

/// Checks that tensors cover the file's `data` without gap or overlap, as the format requires.
fn check_coverage(tensors: &HashMap<String, SafetensorsTensorInfo>, data: &Range<usize>) -> Result<()> {
    let mut ranges: Vec<(&Range<usize>, &String)> =
        tensors.iter().map(|(name, info)| (&info.bytes, name)).collect();
    ranges.sort_by_key(|(bytes, _)| (bytes.start, bytes.end));
    let mut end = data.start;
    for (bytes, name) in ranges {
        if bytes.start != end {
            return Err(Error::model(format!("tensor `{name}` does not begin where the previous one ends")));
        }
        end = bytes.end;
    }
    if end != data.end {
        return Err(Error::model(format!("it has {} bytes after its last tensor", data.end - end)));
    }
    Ok(())
}

/// A tensor's entry in the JSON.
#[derive(Deserialize)]
struct HeaderEntry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    /// Start and end, counted from the first byte after the header.
    data_offsets: (usize, usize),
}

impl HeaderEntry<'_> {
    /// Locates the tensor in a file whose tensors are at `data`.
    fn locate(self, data: &Range<usize>) -> Result<SafetensorsTensorInfo> {
        let &(dtype, n_bits) = DTYPES
            .iter()
            .find(|(name, _)| *name == self.dtype)
            .ok_or_else(|| Error::model(format!("its type `{}` is unknown", self.dtype)))?;
        let Shape(shape) = self.shape;
        let n_bits = shape.iter().try_fold(n_bits, |product, &n| product.checked_mul(n));
        let n_bytes = n_bits.filter(|n_bits| n_bits.is_multiple_of(8)).map(|n_bits| n_bits / 8);
        let (start, end) = self.data_offsets;
        if n_bytes.is_none() || end.checked_sub(start) != n_bytes {
            return Err(Error::model(format!(
                "its type {dtype} and shape {shape:?} do not fit its offsets, {start} to {end}"
            )));
        }
        if end > data.len() {
            return Err(Error::model(format!(
                "it ends at byte {end} of {}; the file is cut short",
                data.len()
            )));
        }
        Ok(SafetensorsTensorInfo { dtype, shape, bytes: data.start + start..data.start + end })
    }
}

/// The dimensions of a tensor, at most [`MAX_DIMENSIONS`].
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_DIMENSIONS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut dimensions: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(n) = dimensions.next_element()? {
                    if shape.len() == MAX_DIMENSIONS {
                        return Err(A::Error::invalid_length(MAX_DIMENSIONS + 1, &self));
                    }
                    shape.push(n);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// Values by tensor names. A duplicate name is an error; the format's `__metadata__` is skipped.
pub(super) struct UniqueMap<V>(pub(super) HashMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for ByName<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with tensor names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueMap<V>, A::Error> {
                let mut by_name = HashMap::new();
                while let Some(name) = entries.next_key::<String>()? {
                    if name == "__metadata__" {
                        entries.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if by_name.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                    }
                    if by_name.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("tensor `{name}` is listed twice")));
                    }
                    by_name.insert(name, entries.next_value()?);
                }
                Ok(UniqueMap(by_name))
            }
        }
        deserializer.deserialize_map(ByName(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, n_data_bytes: usize) -> Vec<u8> {
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; n_data_bytes]].concat()
    }

    #[test]
    fn tensors_are_located() {
        let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]},
            "a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"empty":{"dtype":"F32","shape":[0,3],"data_offsets":[8,8]}}"#;
        let header = SafetensorsHeader::parse(&file(json, 16)).unwrap();
        let start = 8 + json.len();
        let info = |dtype, shape, bytes| SafetensorsTensorInfo { dtype, shape, bytes };
        assert_eq!(header.tensors()["a"], info("BF16", vec![2, 2], start..start + 8));
        assert_eq!(header.tensors()["b"], info("I64", vec![], start + 8..start + 16));
        assert_eq!(header.tensors()["empty"], info("F32", vec![0, 3], start + 8..start + 8));
    }

    #[test]
    fn every_defect_has_its_error_message() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let twice = r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let apart = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
        let shared = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
        let cases: &[(&str, Vec<u8>, &[&str])] = &[
            ("short", vec![0; 7], &["too short"]),
            ("long header", file("{}", 0)[..9].to_vec(), &["header has 2 bytes", "file has 9"]),
            ("endless header", [0xFF; 64].to_vec(), &["18446744073709551615 bytes"]),
            ("not JSON", file("{", 0), &["header is damaged"]),
            ("not UTF-8", [&2u64.to_le_bytes()[..], &[b'{', 0xFF]].concat(), &["header is damaged"]),
            ("not an object", file("[]", 0), &["tensor names"]),
            ("no shape", file(r#"{"t":{"dtype":"U8","data_offsets":[0,1]}}"#, 1), &["shape"]),
            ("negative", file(&one("U8", "[-1]", "[0,1]"), 1), &["header is damaged", "-1"]),
            ("unknown type", file(&one("F9", "[1]", "[0,1]"), 1), &["tensor `t`", "`F9`"]),
            (
                "many dimensions",
                file(&one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1),
                &["at most 8 dimensions"],
            ),
            ("wrong size", file(&one("F32", "[2]", "[0,4]"), 4), &["tensor `t`", "F32", "[2]", "0 to 4"]),
            ("backwards", file(&one("U8", "[1]", "[1,0]"), 1), &["tensor `t`", "1 to 0"]),
            ("half a byte", file(&one("F4", "[1]", "[0,0]"), 0), &["tensor `t`", "F4"]),
            (
                "element count overflows",
                file(&one("F32", "[4294967296,4294967296,4294967296]", "[0,0]"), 0),
                &["tensor `t`", "F32"],
            ),
            ("cut data", file(&one("U8", "[4]", "[0,4]"), 3), &["tensor `t`", "cut short"]),
            ("bytes after the data", file(&one("U8", "[4]", "[0,4]"), 5), &["1 bytes after"]),
            ("twice", file(twice, 2), &["tensor `t` is listed twice"]),
            ("gap", file(apart, 3), &["tensor `b` does not begin"]),
            ("overlap", file(shared, 3), &["tensor `b` does not begin"]),
        ];
        for (what, bytes, parts) in cases {
            let found = SafetensorsHeader::parse(bytes).unwrap_err().to_string();
            assert!(parts.iter().all(|part| found.contains(part)), "{what}: {found}");
        }
    }
}
