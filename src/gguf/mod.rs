//! GGUF headers: bytes in, checked keys and places of tensors out.
//!
//! This is the only reader of the format in the program. Nothing that a header says is believed
//! before it is checked: every size, count and offset is bounded by the bytes that are there, so a
//! damaged or hostile file is an error that says what is wrong, never a panic, and never more
//! memory than the file has bytes.

mod reader;
mod tensor_type;
mod value;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

pub use tensor_type::TensorType;
pub use value::{Metadata, StringList};

use crate::error::{Error, Result};
use reader::Reader;

/// A checked header.
#[derive(Debug)]
pub struct Header {
    pub metadata: Metadata,
    tensors: HashMap<String, TensorInfo>,
}

/// What a tensor is and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub tensor_type: TensorType,
    /// Outermost dimension first; none is zero.
    pub shape: Vec<usize>,
    /// In the file. As long as type and shape say, and inside the file.
    pub bytes: Range<usize>,
}

const MAGIC: &[u8] = b"GGUF";

/// Where tensors begin at a multiple of, unless the file says otherwise.
const DEFAULT_ALIGNMENT: usize = 32;

/// Most keys, and most tensors, of a file: a hundred times what the largest have.
const MAX_ENTRIES: u64 = 1 << 16;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;

impl Header {
    /// Reads and checks the header of `file`, all bytes of a file.
    ///
    /// # Errors
    /// When it is not GGUF of version 2 or 3 in little-endian order, or anything in it is out of
    /// order.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(file);
        if reader.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err(Error::model("it does not begin with `GGUF`"));
        }
        match reader.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(Error::model("it is in big-endian order; use a little-endian file"));
            }
            version => {
                return Err(Error::model(format!(
                    "it is of version {version}, and 2 and 3 are read; convert it anew"
                )));
            }
        }
        let (n_tensors, n_keys) = (reader.u64()?, reader.u64()?);
        if n_tensors.max(n_keys) > MAX_ENTRIES {
            return Err(Error::model(format!(
                "it has {n_keys} keys and {n_tensors} tensors; {MAX_ENTRIES} of each are allowed"
            )));
        }
        let metadata = read_metadata(&mut reader, n_keys)?;
        let alignment = match metadata.integer("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(n) => {
                usize::try_from(n).ok().filter(|&n| n >= 8 && n.is_power_of_two()).ok_or_else(|| {
                    Error::model(format!("`general.alignment` is {n}; it must be a power of two from 8 on"))
                })?
            }
        };
        let tensors = read_tensors(&mut reader, n_tensors, alignment, file.len())?;
        Ok(Self { metadata, tensors })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &HashMap<String, TensorInfo> {
        &self.tensors
    }
}

impl TensorInfo {
    /// How many numbers it holds.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

fn read_metadata(reader: &mut Reader, n_keys: u64) -> Result<Metadata> {
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
    reader: &mut Reader,
    n_tensors: u64,
    alignment: usize,
    file_bytes: usize,
) -> Result<HashMap<String, TensorInfo>> {
    // Offsets count from where the header ends, which is known after the last of them.
    let mut placed = HashMap::new();
    for _ in 0..n_tensors {
        let name = reader.name("a tensor")?;
        let in_tensor = |e: Error| e.context(format_args!("tensor `{name}`"));
        let (tensor_type, shape, n_bytes, offset) = read_tensor(reader).map_err(in_tensor)?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(Error::model(format!(
                "tensor `{name}` begins at {offset}, which is not a multiple of the alignment {alignment}"
            )));
        }
        if placed.insert(name.clone(), (tensor_type, shape, n_bytes, offset)).is_some() {
            return Err(Error::model(format!("it has the tensor `{name}` twice")));
        }
    }
    let data_start = reader.position().next_multiple_of(alignment);
    let mut tensors = HashMap::with_capacity(placed.len());
    for (name, (tensor_type, shape, n_bytes, offset)) in placed {
        let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(n_bytes)).filter(|&end| end <= file_bytes);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::model(format!(
                "tensor `{name}` reaches beyond the file's {file_bytes} bytes; the file is cut short"
            )));
        };
        tensors.insert(name, TensorInfo { tensor_type, shape, bytes: start..end });
    }
    check_overlaps(&tensors)?;
    Ok(tensors)
}

/// Type, shape, size in bytes and offset of the next tensor.
fn read_tensor(reader: &mut Reader) -> Result<(TensorType, Vec<usize>, usize, u64)> {
    let n_dims = reader.u32()? as usize;
    if !(1..=MAX_DIMENSIONS).contains(&n_dims) {
        return Err(Error::model(format!(
            "it has {n_dims} dimensions, and 1 to {MAX_DIMENSIONS} are allowed"
        )));
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

fn check_overlaps(tensors: &HashMap<String, TensorInfo>) -> Result<()> {
    let mut places: Vec<(&Range<usize>, &String)> =
        tensors.iter().map(|(name, info)| (&info.bytes, name)).collect();
    places.sort_by_key(|(bytes, _)| bytes.start);
    for pair in places.windows(2) {
        if pair[1].0.start < pair[0].0.end {
            return Err(Error::model(format!("tensors `{}` and `{}` overlap", pair[0].1, pair[1].1)));
        }
    }
    Ok(())
}
