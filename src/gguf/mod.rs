//! GGUF headers: bytes in, checked keys and places of tensors out.
//!
//! The only parser of the format here. A file may be damaged or made to harm, so everything that
//! its numbers are used for is checked first: nothing is computed without a check for overflow,
//! no count is trusted before its items have been seen, and what is kept of the keys and values is
//! never more than one copy of them.

mod metadata;
mod reader;
mod tensor_type;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

pub use metadata::{Metadata, missing};
pub use tensor_type::TensorType;

use crate::error::{Error, Result};
use reader::Reader;

/// What stands before the tensors' bytes.
#[derive(Debug, Clone)]
pub struct Header {
    pub metadata: Metadata,
    pub tensors: HashMap<String, TensorInfo>,
}

/// Form and place of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub kind: TensorType,
    /// Row-major, outermost first, 1 to 4 sizes, none of them zero.
    pub shape: Vec<usize>,
    /// Its bytes within the file, aligned to 8 at least; no other tensor has any of them.
    pub range: Range<usize>,
}

/// Most tensors, and most keys, that a header may announce: many times what any model has. It
/// bounds what a header costs beyond its own size.
const MAX_ITEMS: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: usize = 32;

impl Header {
    /// Reads the header of a file whose bytes are all in `bytes`; only the header's are touched.
    ///
    /// # Errors
    /// When it is not GGUF of version 2 or 3, or any part of the header is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        check_version(&mut reader)?;
        let n_tensors = count(&mut reader, "tensors")?;
        let n_keys = count(&mut reader, "keys")?;
        let metadata = Metadata::read(&mut reader, n_keys)?;
        let alignment = alignment(&metadata)?;
        let tensors = (0..n_tensors)
            .map(|_| read_tensor(&mut reader, alignment))
            .collect::<Result<Vec<(String, TensorInfo)>>>()?;
        let data_start = reader.position().checked_next_multiple_of(alignment).ok_or_else(out_of_file)?;
        let tensors = placed(tensors, data_start, bytes.len())?;
        Ok(Self { metadata, tensors })
    }
}

impl TensorInfo {
    /// How many numbers it has.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

fn check_version(reader: &mut Reader<'_>) -> Result<()> {
    if reader.take(4)? != b"GGUF" {
        return Err(Error::model("it does not begin with `GGUF`"));
    }
    let refused = |why: String| Err(Error::model(why));
    match reader.u32()? {
        2 | 3 => Ok(()),
        1 => refused(
            "it is of version 1, which has not been written since 2023; convert the model again".into(),
        ),
        version if version.swap_bytes() <= 3 => {
            refused("it is big-endian; use a little-endian file of this model".into())
        }
        version => refused(format!("it is of version {version}; versions 2 and 3 are read")),
    }
}

fn count(reader: &mut Reader<'_>, what: &str) -> Result<u64> {
    let n = reader.u64()?;
    if n > MAX_ITEMS {
        return Err(Error::model(format!("it announces {n} {what}; the most is {MAX_ITEMS}")));
    }
    Ok(n)
}

/// The unit of all tensors' offsets.
fn alignment(metadata: &Metadata) -> Result<usize> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.integer::<u32>(KEY)?.map_or(DEFAULT_ALIGNMENT, |n| n as usize);
    if alignment.is_power_of_two() && alignment >= 8 {
        return Ok(alignment);
    }
    Err(Error::model(format!("`{KEY}` is {alignment}; it must be a power of two, and 8 at least")))
}

/// One tensor, its range still counted from where the tensors begin.
fn read_tensor(reader: &mut Reader<'_>, alignment: usize) -> Result<(String, TensorInfo)> {
    let name = reader.name()?;
    tensor_info(reader, alignment)
        .map(|info| (name.to_owned(), info))
        .map_err(|e| e.context(format_args!("tensor `{name}`")))
}

fn tensor_info(reader: &mut Reader<'_>, alignment: usize) -> Result<TensorInfo> {
    let n_dims = reader.u32()?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(Error::model(format!("it has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")));
    }
    // The format has the innermost size first.
    let mut shape = (0..n_dims).map(|_| reader.size()).collect::<Result<Vec<usize>>>()?;
    shape.reverse();
    let kind = TensorType::of_code(reader.u32()?)?;
    let offset = reader.size()?;
    if !offset.is_multiple_of(alignment) {
        return Err(Error::model(format!("its offset {offset} is not a multiple of {alignment}")));
    }
    let end = kind.n_bytes(&shape)?.checked_add(offset).ok_or_else(out_of_file)?;
    Ok(TensorInfo { kind, shape, range: offset..end })
}

/// The tensors by name, their ranges counted from the file's beginning.
fn placed(
    mut tensors: Vec<(String, TensorInfo)>,
    data_start: usize,
    file_len: usize,
) -> Result<HashMap<String, TensorInfo>> {
    for (name, info) in &mut tensors {
        let shifted = |offset: usize| offset.checked_add(data_start).filter(|&place| place <= file_len);
        let in_file = shifted(info.range.start).zip(shifted(info.range.end));
        let (start, end) = in_file.ok_or_else(|| out_of_file().context(format_args!("tensor `{name}`")))?;
        info.range = start..end;
    }
    tensors.sort_unstable_by_key(|(_, info)| info.range.start);
    if let Some([(first, _), (second, _)]) =
        tensors.array_windows().find(|[(_, first), (_, second)]| first.range.end > second.range.start)
    {
        return Err(Error::model(format!("tensors `{first}` and `{second}` share bytes")));
    }
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (name, info) in tensors {
        match by_name.entry(name) {
            Entry::Vacant(place) => place.insert(info),
            Entry::Occupied(place) => {
                return Err(Error::model(format!("tensor `{}` appears twice", place.key())));
            }
        };
    }
    Ok(by_name)
}

fn out_of_file() -> Error {
    Error::model("it reaches beyond the end of the file, which is cut short or damaged")
}
