//! Parses GGUF headers: bytes in, validated metadata and tensor locations out.
//!
//! The only reader of the format in the program. Nothing in a header is used before it is checked:
//! every size, count and offset is bounded by the size of the file. A damaged or hostile file therefore
//! yields an error that names the defect, never a panic, and never takes more memory than the file has bytes, nor
//! more than a few times the longest header that is allowed.

mod reader;
mod tensor_type;
mod value;
mod value_type;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

pub use tensor_type::TensorType;
pub use value::{Metadata, StringList};

use crate::error::{Error, Result};
use reader::HeaderReader;

/// A validated header.
#[derive(Debug)]
pub struct GgufHeader {
    /// The keys and values.
    pub metadata: Metadata,
    tensors: HashMap<String, GgufTensorInfo>,
}

/// The result of parsing the beginning of a file.
#[derive(Debug)]
pub enum ParsedStart {
    /// The whole header.
    Header(GgufHeader),
    /// The header goes on; its next value ends at this byte of the file or later.
    NeedsBytes(usize),
}

/// The type, shape and location of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensorInfo {
    /// The type of its elements.
    pub tensor_type: TensorType,
    /// The dimensions, outermost first; none is zero.
    pub shape: Vec<usize>,
    /// The range of its bytes in the file, which lies inside the file and has the length that type and shape
    /// require.
    pub bytes: Range<usize>,
}

const MAGIC: &[u8] = b"GGUF";

/// The alignment of tensors in files that do not state another.
const DEFAULT_ALIGNMENT: usize = 32;

/// The maximum number of keys, and of tensors, in a file: a hundred times what the largest models have.
const MAX_ENTRIES: u64 = 1 << 16;

/// The maximum number of dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;

impl GgufHeader {
    /// Parses and validates the header of `file`, the contents of a whole file.
    ///
    /// # Errors
    /// When it is not little-endian GGUF of version 2 or 3, or anything in the header is invalid.
    pub fn parse(file: &[u8]) -> Result<Self> {
        Self::read(&mut HeaderReader::new(file, file.len()))
    }

    /// Parses and validates the header of a file of `file_bytes` of which `start` is the beginning.
    ///
    /// # Errors
    /// Those of [`GgufHeader::parse`].
    pub fn parse_start(start: &[u8], file_bytes: usize) -> Result<ParsedStart> {
        let mut reader = HeaderReader::new(start, file_bytes);
        match Self::read(&mut reader) {
            Ok(header) => Ok(ParsedStart::Header(header)),
            Err(e) => reader.needed().map(ParsedStart::NeedsBytes).ok_or(e),
        }
    }

    fn read(reader: &mut HeaderReader) -> Result<Self> {
        if reader.bytes(MAGIC.len()).ok() != Some(MAGIC) {
            return Err(Error::model("it does not begin with `GGUF`"));
        }
        match reader.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(Error::model("it is big-endian; use a little-endian file"));
            }
            version => {
                return Err(Error::model(format!(
                    "GGUF version {version} is not supported; convert the model to version 3"
                )));
            }
        }
        let (n_tensors, n_keys) = (reader.u64()?, reader.u64()?);
        if n_tensors.max(n_keys) > MAX_ENTRIES {
            return Err(Error::model(format!(
                "it has {n_keys} keys and {n_tensors} tensors; {MAX_ENTRIES} of each are allowed"
            )));
        }
        let metadata = read_metadata(reader, n_keys)?;
        let alignment = match metadata.integer("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(n) => {
                usize::try_from(n).ok().filter(|&n| n >= 8 && n.is_power_of_two()).ok_or_else(|| {
                    Error::model(format!("`general.alignment` is {n}; it must be a power of two, at least 8"))
                })?
            }
        };
        let tensors = read_tensors(reader, n_tensors, alignment)?;
        Ok(Self { metadata, tensors })
    }

    /// The tensor of this name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &HashMap<String, GgufTensorInfo> {
        &self.tensors
    }
}

impl GgufTensorInfo {
    /// The number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

fn read_metadata(reader: &mut HeaderReader, n_keys: u64) -> Result<Metadata> {
    let mut values = HashMap::new();
    for _ in 0..n_keys {
        let key = reader.name("a key")?;
        let value = reader.value().map_err(|e| e.context(format_args!("key `{key}`")))?;
        match values.entry(key) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(entry) => {
                return Err(Error::model(format!("it has the key `{}` twice", entry.key())));
            }
        };
    }
    Ok(Metadata::new(values))
}

fn read_tensors(
    reader: &mut HeaderReader,
    n_tensors: u64,
    alignment: usize,
) -> Result<HashMap<String, GgufTensorInfo>> {
    let file_bytes = reader.file_bytes();
    // Offsets count from the end of the header, which is known after the last of them.
    let mut entries = HashMap::new();
    for _ in 0..n_tensors {
        let name = reader.name("a tensor")?;
        let in_tensor = |e: Error| e.context(format_args!("tensor `{name}`"));
        let (tensor_type, shape, n_bytes, offset) = read_tensor(reader).map_err(in_tensor)?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(Error::model(format!(
                "tensor `{name}` begins at {offset}, which is not a multiple of the alignment {alignment}"
            )));
        }
        if entries.insert(name.clone(), (tensor_type, shape, n_bytes, offset)).is_some() {
            return Err(Error::model(format!("it has the tensor `{name}` twice")));
        }
    }
    let data_start = reader.position().next_multiple_of(alignment);
    let mut tensors = HashMap::with_capacity(entries.len());
    for (name, (tensor_type, shape, n_bytes, offset)) in entries {
        let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(n_bytes)).filter(|&end| end <= file_bytes);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::model(format!(
                "tensor `{name}` extends beyond the file's {file_bytes} bytes; the file is cut short"
            )));
        };
        tensors.insert(name, GgufTensorInfo { tensor_type, shape, bytes: start..end });
    }
    check_overlaps(&tensors)?;
    Ok(tensors)
}

/// Reads the type, shape, size in bytes and offset of the next tensor.
fn read_tensor(reader: &mut HeaderReader) -> Result<(TensorType, Vec<usize>, usize, u64)> {
    let n_dims = reader.u32()? as usize;
    if !(1..=MAX_DIMENSIONS).contains(&n_dims) {
        return Err(Error::model(format!("it has {n_dims} dimensions; 1 to {MAX_DIMENSIONS} are allowed")));
    }
    // The file has the innermost dimension first.
    let mut shape = Vec::with_capacity(n_dims);
    for _ in 0..n_dims {
        let n = reader.u64()?;
        let n = usize::try_from(n).ok().filter(|&n| n > 0);
        shape.push(n.ok_or_else(|| Error::model("it has an impossible dimension"))?);
    }
    shape.reverse();
    let tensor_type = TensorType::from_id(reader.u32()?)?;
    let n_bytes = tensor_type.n_bytes(&shape)?;
    Ok((tensor_type, shape, n_bytes, reader.u64()?))
}

fn check_overlaps(tensors: &HashMap<String, GgufTensorInfo>) -> Result<()> {
    let mut ranges: Vec<(&Range<usize>, &String)> =
        tensors.iter().map(|(name, info)| (&info.bytes, name)).collect();
    ranges.sort_by_key(|(bytes, _)| bytes.start);
    for pair in ranges.windows(2) {
        if pair[1].0.start < pair[0].0.end {
            return Err(Error::model(format!("tensors `{}` and `{}` overlap", pair[0].1, pair[1].1)));
        }
    }
    Ok(())
}
