//! GGUF files, memory-mapped, one or several parts: headers by our own reader, blocks by candle's
//! decoders and ours.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};

use super::super::layers::linear::Weight;
use super::expand::{candle_type, expand, unsupported};
use super::{MappedFile, Rows, blocks, check_shape};
use crate::error::{Error, Result};
use crate::gguf::{Header, Metadata, TensorInfo};

/// An open GGUF file: its header in memory, its tensors on disk until they are asked for.
pub struct GgufFile {
    path: PathBuf,
    /// The file itself, and the parts that follow it where the model is split.
    parts: Vec<Part>,
    /// Whether matrices are expanded to float32.
    expands: bool,
}

struct Part {
    map: MappedFile,
    header: Header,
}

/// Up to this many bytes of float32, quantized matrices are expanded at load.
///
/// candle's float32 product runs on all cores and keeps every bit of the activations; its
/// quantized product rounds them to 8 bits and has fast code for few formats only. Measured on
/// SmolLM2-135M Q4_1 with 2 threads (2026-11-23): prefill 17 times and decode 2.3 times as fast
/// expanded, at 540 MB instead of 96. Larger models stay as the file has them.
const EXPAND_BYTES: usize = 3 << 30;

/// The matrix whose rows are looked up, for which it is expanded always.
const EMBEDDING: &str = "token_embd.weight";

impl GgufFile {
    /// Opens a file, or the first part of a model and with it the parts beside it, and reads the
    /// headers.
    ///
    /// # Errors
    /// When it cannot be read, is not GGUF in good order, or parts are missing.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = Self { path: path.to_owned(), parts: vec![Part::open(path)?], expands: false };
        file.add_parts().map_err(|e| e.context(format_args!("`{}`", path.display())))?;
        // Sizes are bounded by the files', so the sum cannot overflow.
        let n_elements: usize = file.tensors().map(|(_, info)| info.n_elements()).sum();
        Ok(Self { expands: n_elements.saturating_mul(size_of::<f32>()) <= EXPAND_BYTES, ..file })
    }

    /// Opens the parts that follow the first.
    fn add_parts(&mut self) -> Result<()> {
        let n_parts = self.metadata().count("split.count")?.unwrap_or(1);
        for number in 1..=n_parts {
            if number > 1 {
                self.parts.push(Part::open(&sibling(&self.path, number, n_parts)?)?);
            }
            let metadata = &self.parts[number - 1].header.metadata;
            let says = (metadata.count("split.no")?, metadata.count("split.count")?);
            if n_parts > 1 && says != (Some(number - 1), Some(n_parts)) {
                return Err(Error::model(format!(
                    "what stands in the place of part {number} of {n_parts} is another; name the first part"
                )));
            }
        }
        let names: HashSet<&str> = self.tensors().map(|(name, _)| name).collect();
        let n_tensors = self.tensors().count();
        if names.len() != n_tensors {
            return Err(Error::model("a tensor is in two of its parts"));
        }
        match self.metadata().count("split.tensors.count")? {
            Some(expected) if n_parts > 1 && expected != n_tensors => Err(Error::model(format!(
                "its {n_parts} parts have {n_tensors} tensors and should have {expected}"
            ))),
            _ => Ok(()),
        }
    }

    /// The same file with its matrices left as they are.
    pub fn unexpanded(self) -> Self {
        Self { expands: false, ..self }
    }

    /// The header's keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.parts[0].header.metadata
    }

    /// The name of the model's architecture.
    ///
    /// # Errors
    /// When the header does not say.
    pub fn architecture(&self) -> Result<&str> {
        let name = self.metadata().string("general.architecture")?;
        name.ok_or_else(|| Error::model("GGUF file has no `general.architecture`"))
    }

    /// How many rows a matrix has.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn n_rows(&self, name: &str) -> Result<usize> {
        Ok(self.shape(name)?[0])
    }

    /// The numbers of a one-dimensional tensor, if there is one of this name.
    ///
    /// # Errors
    /// When it is of another form.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if !self.contains(name) {
            return Ok(None);
        }
        let shape = self.shape(name)?;
        check_shape(name, shape, &[shape.iter().product()])?;
        Ok(Some(self.tensor(name)?.to_vec1::<f32>()?))
    }

    /// Bytes that the tensors take in memory once they are loaded.
    pub(super) fn memory_bytes(&self) -> u64 {
        let of_tensor = |(name, info): (&str, &TensorInfo)| {
            let n_elements = info.n_elements();
            if !self.keeps_blocks(info) || info.shape.len() == 1 || name == EMBEDDING {
                n_elements * size_of::<f32>()
            } else if candle_type(info.tensor_type).is_some() {
                info.bytes.len()
            } else {
                blocks::q8_0_bytes(n_elements)
            }
        };
        self.tensors().map(of_tensor).sum::<usize>() as u64
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.required(name)?.1.shape)
    }

    /// A tensor as float32, in its own shape.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let (map, info) = self.required(name)?;
        let numbers = expand(info.tensor_type, &map.bytes()[info.bytes.clone()]);
        let numbers = numbers.map_err(|e| self.in_tensor(name, e))?;
        map.release(info.bytes.clone());
        Ok(Tensor::from_vec(numbers, info.shape.as_slice(), &Device::Cpu)?)
    }

    /// Rows of a matrix to multiply with: rows are whole blocks. A tensor of more than two dimensions
    /// is taken as the rows of all its matrices.
    pub(super) fn matrix(&self, name: &str, rows: &Rows, n_in: usize) -> Result<Weight> {
        let (map, info) = self.required(name)?;
        let (row_len, outer) = info.shape.split_last().unwrap_or((&1, &[]));
        check_shape(name, &[outer.iter().product(), *row_len], &[rows.n_stored, n_in])?;
        let row_bytes = n_in / info.tensor_type.block_len() * info.tensor_type.block_bytes();
        let picked = rows.pick_bytes(&map.bytes()[info.bytes.clone()], row_bytes);
        let shape = (picked.len() / row_bytes, n_in);
        let weight = if self.keeps_blocks(info) {
            kept(info, picked, shape)
        } else {
            expand(info.tensor_type, &picked)
                .and_then(|numbers| Ok(Weight::Dense(Tensor::from_vec(numbers, shape, &Device::Cpu)?)))
        };
        map.release(info.bytes.clone());
        weight.map_err(|e| self.in_tensor(name, e))
    }

    /// Whether a matrix stays quantized; candle would expand plain numbers anyway.
    fn keeps_blocks(&self, info: &TensorInfo) -> bool {
        !self.expands && info.tensor_type.block_len() > 1
    }

    fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.parts.iter().flat_map(|part| part.header.tensors()).map(|(name, info)| (name.as_str(), info))
    }

    /// Where a tensor is.
    fn find(&self, name: &str) -> Option<(&MappedFile, &TensorInfo)> {
        self.parts.iter().find_map(|part| Some((&part.map, part.header.tensor(name)?)))
    }

    fn required(&self, name: &str) -> Result<(&MappedFile, &TensorInfo)> {
        let missing = || Error::model(format!("`{}` has no tensor `{name}`", self.path.display()));
        self.find(name).ok_or_else(missing)
    }

    fn in_tensor(&self, name: &str, e: Error) -> Error {
        e.context(format_args!("tensor `{name}` of `{}`", self.path.display()))
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes())
            .map_err(|e| e.context(format_args!("`{}` is not a readable GGUF file", path.display())))?;
        Ok(Self { map, header })
    }
}

/// Blocks as candle multiplies with them.
fn kept(info: &TensorInfo, blocks: Cow<[u8]>, shape: (usize, usize)) -> Result<Weight> {
    let (dtype, blocks) = match (candle_type(info.tensor_type), blocks::reader(info.tensor_type)) {
        (Some(dtype), _) => (dtype, blocks),
        (None, Some(read)) => {
            (GgmlDType::Q8_0, Cow::Owned(blocks::to_q8_0(read, info.tensor_type, &blocks)?))
        }
        (None, None) => return Err(unsupported(info.tensor_type)),
    };
    Weight::quantized(QTensor::new(QStorage::from_data(blocks, &Device::Cpu, dtype)?, shape)?)
}

/// The name of another part of the model whose first part is `first`.
fn sibling(first: &Path, number: usize, n_parts: usize) -> Result<PathBuf> {
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&format!("-00001-of-{n_parts:05}.gguf")).ok_or_else(|| {
        Error::model(format!(
            "it has {n_parts} parts, and its name is not that of the first, which ends in -00001-of-{n_parts:05}.gguf"
        ))
    })?;
    Ok(first.with_file_name(format!("{stem}-{number:05}-of-{n_parts:05}.gguf")))
}
