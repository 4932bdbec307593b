//! Models in GGUF files, with every supported tensor type.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use predict_otron_9000::gguf::{GgufHeader, TensorType};
use predict_otron_9000::kernels::attention::kv_block::KvFormat;
use predict_otron_9000::models::decoder::CausalLm;
use predict_otron_9000::models::load::{GgufFile, RowSelection, Weights};
use predict_otron_9000::models::{
    Backend, BlockId, Decoder, ForwardInput, ModelConfig, SequenceChunk, SequenceId, SequenceStates,
};
use sha2::{Digest, Sha256};

use crate::support::gguf::{
    ARRAY, Gguf, Random, STRING, U8, U64, array_start, tiny_llama_keys, tiny_llama_tensors,
};
use crate::support::reference::backends;

/// A file written by the `gguf` Python package; see `make.py` beside it.
const TYPES: &str = "tests/data/gguf/types.gguf";
const SHAPE: [usize; 2] = [2, 256];

/// The types in the file, which are the supported ones.
const NAMES: [&str; 26] = [
    "F64", "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "TQ1_0", "TQ2_0",
];

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest expected value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |largest, number| largest.max(number.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn every_type_is_dequantized_correctly() {
    let weights = Weights::Gguf(GgufFile::open(Path::new(TYPES)).unwrap());
    for name in NAMES {
        let found = values(&weights.tensor(name, &SHAPE).unwrap());
        let expected = values(&weights.tensor(&format!("{name}.f32"), &SHAPE).unwrap());
        assert!(difference(&found, &expected) <= 1e-6, "{name}: {}", difference(&found, &expected));
    }
}

/// Values of 1024 random blocks of each type, enough for every point of its grid, are those of the `gguf` package bit
/// for bit; `make.py` writes their hashes.
#[test]
fn i_quants_are_dequantized_exactly() {
    let hashes = fs::read_to_string("tests/data/gguf/i_quants.json").unwrap();
    let hashes: BTreeMap<String, String> = serde_json::from_str(&hashes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(hashes.len(), 9);
    for (name, expected) in hashes {
        let tensor_type = *TensorType::ALL.iter().find(|it| it.to_string() == name).unwrap();
        let (n_blocks, block_bytes) = (1024, tensor_type.block_bytes());
        let mut random = Random::new(tensor_type.id().into());
        let n_words = (n_blocks * block_bytes).div_ceil(8);
        let mut blocks: Vec<u8> = (0..n_words).flat_map(|_| random.next().to_le_bytes()).collect();
        blocks.truncate(n_blocks * block_bytes);
        // The highest bit of the exponent of the scale: it is finite.
        let scale_end = match name.as_str() {
            "TQ1_0" => 53,
            "TQ2_0" => 65,
            "IQ1_M" => 55,
            _ => 1,
        };
        blocks.iter_mut().skip(scale_end).step_by(block_bytes).for_each(|byte| *byte &= 0xBF);
        let shape = [n_blocks, tensor_type.block_len()];
        let path = folder.path().join(&name);
        fs::write(&path, Gguf::default().tensor("m", &shape, tensor_type.id(), &blocks).bytes()).unwrap();
        let weights = Weights::Gguf(GgufFile::open(&path).unwrap());
        let bytes: Vec<u8> =
            values(&weights.tensor("m", &shape).unwrap()).into_iter().flat_map(f32::to_le_bytes).collect();
        let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn every_type_is_multiplied_correctly() {
    let bytes = fs::read(TYPES).unwrap();
    let header = GgufHeader::parse(&bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        // `linear` loads the tensor with the suffix `.weight`.
        let info = header.tensor(name).unwrap();
        let file =
            Gguf::default().tensor("m.weight", &SHAPE, info.tensor_type.id(), &bytes[info.bytes.clone()]);
        let path = folder.path().join(name);
        fs::write(&path, file.bytes()).unwrap();
        let weights = Weights::Gguf(GgufFile::open(&path).unwrap());
        let expected = &header.tensor(&format!("{name}.f32")).unwrap().bytes;
        let expected: Vec<f32> =
            bytes[expected.clone()].as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        // The kernels keep the scales of IQ4_XS in half precision.
        let bound = if name == "IQ4_XS" { 1e-3 } else { 1e-5 };
        for backend in backends() {
            let matrix = weights.linear("m", &RowSelection::all(SHAPE[0]), SHAPE[1], backend).unwrap();
            // Each row of the identity matrix selects a column.
            let one = Tensor::eye(SHAPE[1], DType::F32, &Device::Cpu).unwrap();
            let found = values(&matrix.forward(&one).unwrap().t().unwrap());
            let difference = difference(&found, &expected);
            assert!(difference <= bound, "{name} {backend:?}: {difference}");
        }
    }
}

#[test]
fn an_unsupported_type_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let (q8_k, n_bytes) = (TensorType::Q8K, 2 * TensorType::Q8K.block_bytes());
    let file = Gguf::default().tensor("m.weight", &SHAPE, q8_k.id(), &vec![0; n_bytes]);
    fs::write(&path, file.bytes()).unwrap();
    let weights = Weights::Gguf(GgufFile::open(&path).unwrap());
    for backend in backends() {
        let rows = RowSelection::all(SHAPE[0]);
        let error = weights.linear("m", &rows, SHAPE[1], backend).err().unwrap().to_string();
        for part in ["`m.weight`", "a.gguf", "Q8_K", "Q4_K_M or Q8_0"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

/// The logits after a few tokens.
fn logits(file: GgufFile, backend: Backend) -> Vec<f32> {
    let config = ModelConfig::from_gguf(&file).unwrap();
    let mut model = CausalLm::load(config, &Weights::Gguf(file), backend).unwrap();
    let mut input = ForwardInput::default();
    input.push(SequenceChunk {
        sequence: SequenceId(1),
        n_prompt: 5,
        n_rounded: 0,
        start: 0,
        tables: &[BlockId::consecutive(0, 16)],
        state: None,
        token_ids: &[1, 5, 2, 9, 3],
        n_logits: 1,
    });
    let mut states = SequenceStates::new(model.config(), KvFormat::F32);
    values(&model.forward(&mut states, &input).unwrap())
}

#[test]
fn a_quantized_model_equals_its_dequantized_twin() {
    let folder = tempfile::tempdir().unwrap();
    let open = |file: &Gguf| {
        let path = folder.path().join("model.gguf");
        fs::write(&path, file.bytes()).unwrap();
        GgufFile::open(&path).unwrap()
    };
    use GgmlDType::{BF16, F16, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let types = [
        (TensorType::F16, F16),
        (TensorType::Bf16, BF16),
        (TensorType::Q4_0, Q4_0),
        (TensorType::Q4_1, Q4_1),
        (TensorType::Q5_0, Q5_0),
        (TensorType::Q5_1, Q5_1),
        (TensorType::Q8_0, Q8_0),
        (TensorType::Q2K, Q2K),
        (TensorType::Q3K, Q3K),
        (TensorType::Q4K, Q4K),
        (TensorType::Q5K, Q5K),
        (TensorType::Q6K, Q6K),
    ];
    for (tensor_type, dtype) in types {
        let (mut quantized, mut twin) = (tiny_llama_keys(256), tiny_llama_keys(256));
        for (name, tensor) in tiny_llama_tensors(256) {
            if tensor.rank() == 1 {
                (quantized, twin) = (quantized.tensor_f32(name, &tensor), twin.tensor_f32(name, &tensor));
                continue;
            }
            let blocks = QTensor::quantize(&tensor, dtype).unwrap();
            quantized = quantized.tensor(name, tensor.dims(), tensor_type.id(), &blocks.data().unwrap());
            twin = twin.tensor_f32(name, &blocks.dequantize(&Device::Cpu).unwrap());
        }
        let expected = logits(open(&twin), Backend::Reference);
        for backend in backends() {
            let difference = difference(&logits(open(&quantized), backend), &expected);
            let bound = if backend == Backend::Reference { 0.0 } else { 1e-4 };
            assert!(difference <= bound, "{tensor_type} {backend:?}: {difference}");
        }
    }
}

#[test]
fn a_sharded_model_equals_the_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    let tensors = tiny_llama_tensors(32);
    let with_tensors = |file: Gguf, is_included: &dyn Fn(&str) -> bool| {
        let selected = tensors.iter().filter(|(name, _)| is_included(name));
        selected.fold(file, |file, (name, tensor)| file.tensor_f32(name, tensor))
    };
    // Attention is in the second shard, the MLP in the third.
    let shard_of = |name: &str| 1 + usize::from(name.contains("blk")) + usize::from(name.contains("ffn"));
    let shard = |number: usize| {
        let keys = if number == 1 { tiny_llama_keys(32) } else { Gguf::default() };
        let keys = keys.u32("split.no", number as u32 - 1).u32("split.count", 3);
        with_tensors(keys.u32("split.tensors.count", tensors.len() as u32), &|name| shard_of(name) == number)
    };
    for number in 1..=3 {
        fs::write(path(number), shard(number).bytes()).unwrap();
    }
    let whole = folder.path().join("whole.gguf");
    fs::write(&whole, with_tensors(tiny_llama_keys(32), &|_| true).bytes()).unwrap();
    let logits = |path: &Path| logits(GgufFile::open(path).unwrap(), Backend::Reference);
    assert_eq!(logits(&path(1)), logits(&whole));

    let error = |path: &Path| GgufFile::open(path).err().unwrap().to_string();
    assert!(error(&path(2)).contains("name the first shard"), "{}", error(&path(2)));
    fs::write(path(3), shard(2).bytes()).unwrap();
    assert!(error(&path(1)).contains("shard 3 of 3"), "{}", error(&path(1)));
    let repeated = with_tensors(Gguf::default().u32("split.no", 2).u32("split.count", 3), &|_| true);
    fs::write(path(3), repeated.bytes()).unwrap();
    assert!(error(&path(1)).contains("two shards"), "{}", error(&path(1)));
    let empty = Gguf::default().u32("split.no", 2).u32("split.count", 3);
    fs::write(path(3), empty.bytes()).unwrap();
    assert!(error(&path(1)).contains("should have 11"), "{}", error(&path(1)));
    fs::remove_file(path(3)).unwrap();
    assert!(error(&path(1)).contains("m-00003-of-00003.gguf"), "{}", error(&path(1)));
    fs::rename(path(1), folder.path().join("other.gguf")).unwrap();
    assert!(error(&folder.path().join("other.gguf")).contains("-00001-of-00003.gguf"));
}

/// Every tensor read after the cut is an error; a mapped file would end the process with SIGBUS.
#[test]
fn a_file_that_is_cut_short_while_it_loads_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    // Several pages of tensors, so that the cut is within the file's data.
    let (n_out, n_in) = (512, 256);
    let ones = vec![1.0; n_out * n_in];
    let file = Gguf::default().f32_tensor("first.weight", &[n_out, n_in], &ones).f32_tensor(
        "last.weight",
        &[n_out, n_in],
        &ones,
    );
    for backend in backends() {
        fs::write(&path, file.bytes()).unwrap();
        let weights = Weights::Gguf(GgufFile::open(&path).unwrap());
        let load = |name: &str| weights.linear(name, &RowSelection::all(n_out), n_in, backend);
        assert!(load("first").is_ok() && load("last").is_ok());
        fs::File::options().write(true).open(&path).unwrap().set_len(300_000).unwrap();
        assert!(load("first").is_err(), "{backend:?}");
        let error = load("last").err().unwrap().to_string();
        for part in ["`last.weight`", "a.gguf", "cut short", "download it again"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(weights.tensor("last.weight", &[n_out, n_in]).is_err());
    }
}

#[test]
fn a_header_longer_than_the_first_read_is_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let words: Vec<String> = (0..400_000).map(|n| format!("word {n}")).collect();
    let file = Gguf::default().strings("words", &words).f32_tensor("one", &[1], &[7.0]).string("last", "yes");
    fs::write(&path, file.bytes()).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata().strings("words").unwrap().unwrap().get(399_999), Some("word 399999"));
    assert_eq!(file.metadata().string("last").unwrap(), Some("yes"));
    assert_eq!(file.vector("one").unwrap().unwrap(), [7.0]);
}

/// A sparse file takes no space on disk, and claims as much memory as it likes.
#[test]
fn a_header_that_claims_a_huge_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    for (kind, n_bytes) in [(STRING, 8), (U64, 8), (U8, 1)] {
        let array = array_start(kind, (1 << 39) / n_bytes);
        fs::write(&path, Gguf::default().key("all", ARRAY, &array).bytes()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = GgufFile::open(&path).err().unwrap().to_string();
        assert!(error.contains("`all`") && error.contains("134217728"), "{error}");
    }
}

#[test]
fn only_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), Path::new("/dev/zero")] {
        let error = GgufFile::open(path).err().unwrap().to_string();
        assert!(error.contains("is not a file"), "{error}");
    }
}
