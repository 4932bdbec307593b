//! safetensors headers: bytes in, checked places of tensors out.
//!
//! A header is JSON of the file's own making, so the same holds as for [`crate::gguf`]: nothing it
//! says is believed before it is checked.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

/// A checked header.
#[derive(Debug)]
pub struct SafetensorsHeader {
    tensors: HashMap<String, TensorInfo>,
}

/// What a tensor is and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The format's name for its type.
    pub dtype: &'static str,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// In the file. As long as type and shape say, and inside the file.
    pub bytes: Range<usize>,
}

/// The format's types and the bits of one number.
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

/// Bytes of the number before the header, which says how long the header is.
const LENGTH_BYTES: usize = size_of::<u64>();

/// Longest header, in bytes; the format's own limit.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Most tensors of a file: a hundred times what the largest have.
const MAX_TENSORS: usize = 1 << 16;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

impl SafetensorsHeader {
    /// Reads and checks the header of `file`, all bytes of a file.
    ///
    /// # Errors
    /// When anything in it is out of order.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let (n_bytes, rest) = file
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or_else(|| Error::model("it is too short to have a header"))?;
        let n_bytes = u64::from_le_bytes(*n_bytes);
        let json = usize::try_from(n_bytes)
            .ok()
            .filter(|&n_bytes| n_bytes <= MAX_HEADER_BYTES)
            .and_then(|n_bytes| rest.get(..n_bytes))
            .ok_or_else(|| {
                let len = file.len();
                Error::model(format!(
                    "its header has {n_bytes} bytes where the file has {len} and {MAX_HEADER_BYTES} are allowed"
                ))
            })?;
        let UniqueMap(entries) = serde_json::from_slice::<UniqueMap<Entry>>(json)
            .map_err(|e| Error::model(format!("its header is damaged: {e}")))?;
        let data = LENGTH_BYTES + json.len()..file.len();
        let tensors = entries
            .into_iter()
            .map(|(name, entry)| {
                let info = entry.place(&data).map_err(|e| e.context(format_args!("tensor `{name}`")))?;
                Ok((name, info))
            })
            .collect::<Result<HashMap<_, _>>>()?;
        check_cover(&tensors, &data)?;
        Ok(Self { tensors })
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &HashMap<String, TensorInfo> {
        &self.tensors
    }

    pub(super) fn into_tensors(self) -> HashMap<String, TensorInfo> {
        self.tensors
    }
}

/// Tensors fill the file's `data` without gap or overlap, as the format has it.
fn check_cover(tensors: &HashMap<String, TensorInfo>, data: &Range<usize>) -> Result<()> {
    let mut places: Vec<(&Range<usize>, &String)> =
        tensors.iter().map(|(name, info)| (&info.bytes, name)).collect();
    places.sort_by_key(|(bytes, _)| (bytes.start, bytes.end));
    let mut end = data.start;
    for (bytes, name) in places {
        if bytes.start != end {
            return Err(Error::model(format!("tensor `{name}` does not begin where the one before it ends")));
        }
        end = bytes.end;
    }
    if end != data.end {
        return Err(Error::model(format!("it has {} bytes behind its last tensor", data.end - end)));
    }
    Ok(())
}

/// A tensor as the JSON has it.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    /// Begin and end, counted from the first byte behind the header.
    data_offsets: (usize, usize),
}

impl Entry<'_> {
    /// Where it is in a file whose tensors are at `data`.
    fn place(self, data: &Range<usize>) -> Result<TensorInfo> {
        let &(dtype, n_bits) = DTYPES
            .iter()
            .find(|(name, _)| *name == self.dtype)
            .ok_or_else(|| Error::model(format!("its type `{}` is not known", self.dtype)))?;
        let Shape(shape) = self.shape;
        let n_bits = shape.iter().try_fold(n_bits, |product, &n| product.checked_mul(n));
        let n_bytes = n_bits.filter(|n_bits| n_bits.is_multiple_of(8)).map(|n_bits| n_bits / 8);
        let (start, end) = self.data_offsets;
        if n_bytes.is_none() || end.checked_sub(start) != n_bytes {
            return Err(Error::model(format!(
                "it has {dtype} numbers of shape {shape:?} at {start} to {end}"
            )));
        }
        if end > data.len() {
            return Err(Error::model(format!(
                "it ends at byte {end} of {}; the file is cut short",
                data.len()
            )));
        }
        Ok(TensorInfo { dtype, shape, bytes: data.start + start..data.start + end })
    }
}

/// Dimensions, of which there are few.
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

/// Values by the names of tensors, none of which comes twice; what the format keeps for remarks is
/// passed over.
pub(super) struct UniqueMap<V>(pub(super) HashMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for ByName<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the names of tensors")
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
                        return Err(A::Error::custom(format_args!("tensor `{name}` comes twice")));
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
    fn tensors_come_out_where_they_are() {
        let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]},
            "a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"empty":{"dtype":"F32","shape":[0,3],"data_offsets":[8,8]}}"#;
        let header = SafetensorsHeader::parse(&file(json, 16)).unwrap();
        let start = 8 + json.len();
        let info = |dtype, shape, bytes| TensorInfo { dtype, shape, bytes };
        assert_eq!(header.tensors()["a"], info("BF16", vec![2, 2], start..start + 8));
        assert_eq!(header.tensors()["b"], info("I64", vec![], start + 8..start + 16));
        assert_eq!(header.tensors()["empty"], info("F32", vec![0, 3], start + 8..start + 8));
    }

    #[test]
    fn every_defect_has_its_message() {
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
            ("not an object", file("[]", 0), &["names of tensors"]),
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
                "all numbers",
                file(&one("F32", "[4294967296,4294967296,4294967296]", "[0,0]"), 0),
                &["tensor `t`", "F32"],
            ),
            ("cut data", file(&one("U8", "[4]", "[0,4]"), 3), &["tensor `t`", "cut short"]),
            ("bytes behind", file(&one("U8", "[4]", "[0,4]"), 5), &["1 bytes behind"]),
            ("twice", file(twice, 2), &["tensor `t` comes twice"]),
            ("gap", file(apart, 3), &["tensor `b` does not begin"]),
            ("overlap", file(shared, 3), &["tensor `b` does not begin"]),
        ];
        for (what, bytes, parts) in cases {
            let found = SafetensorsHeader::parse(bytes).unwrap_err().to_string();
            assert!(parts.iter().all(|part| found.contains(part)), "{what}: {found}");
        }
    }
}
