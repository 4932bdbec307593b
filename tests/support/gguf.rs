//! A writer of small GGUF files.

use candle_core::{Device, Tensor};
use predict_otron_9000::gguf::{GgufHeader, Metadata};

/// A GGUF file under construction.
#[derive(Default)]
pub struct Gguf {
    n_keys: u64,
    keys: Vec<u8>,
    n_tensors: u64,
    tensors: Vec<u8>,
    data: Vec<u8>,
}

// Value types of the format.
pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

pub const ALIGNMENT: usize = 32;

impl Gguf {
    /// Adds a key with the encoded bytes of its value.
    pub fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        put_string(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.n_keys += 1;
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, U32, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, F32, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.key(key, BOOL, &[u8::from(value)])
    }

    pub fn string(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        put_string(&mut bytes, value);
        self.key(key, STRING, &bytes)
    }

    pub fn strings<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let mut bytes = array_start(STRING, values.len());
        for value in values {
            put_string(&mut bytes, value.as_ref());
        }
        self.key(key, ARRAY, &bytes)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = array_start(I32, values.len());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.key(key, ARRAY, &bytes)
    }

    /// Adds a tensor of `shape` (outermost dimension first) with its type code and encoded bytes.
    pub fn tensor(self, name: &str, shape: &[usize], code: u32, bytes: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(ALIGNMENT);
        let mut file = self.placed_tensor(name, shape, code, offset as u64);
        file.data.resize(offset, 0);
        file.data.extend(bytes);
        file
    }

    /// Adds a tensor that claims to be at `offset`, without any bytes.
    pub fn placed_tensor(mut self, name: &str, shape: &[usize], code: u32, offset: u64) -> Self {
        put_string(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        for &n in shape.iter().rev() {
            self.tensors.extend((n as u64).to_le_bytes());
        }
        self.tensors.extend(code.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.n_tensors += 1;
        self
    }

    /// Adds a tensor in float32.
    pub fn tensor_f32(self, name: &str, tensor: &Tensor) -> Self {
        self.f32_tensor(name, tensor.dims(), &tensor.flatten_all().unwrap().to_vec1().unwrap())
    }

    /// Adds float32 values as a tensor.
    pub fn f32_tensor(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, shape, 0, &bytes)
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.n_tensors.to_le_bytes());
        file.extend(self.n_keys.to_le_bytes());
        file.extend(&self.keys);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&self.data);
        file
    }

    /// The metadata that a reader of the file gets.
    pub fn metadata(&self) -> Metadata {
        GgufHeader::parse(&self.bytes()).unwrap().metadata
    }
}

/// The encoded element type and length of an array, which precede its elements.
pub fn array_start(kind: u32, n: usize) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(n as u64).to_le_bytes()].concat()
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Metadata of a one-layer llama with matrices of width `width`.
pub fn tiny_llama_keys(width: usize) -> Gguf {
    Gguf::default()
        .string("general.architecture", "llama")
        .u32("llama.embedding_length", width as u32)
        .u32("llama.feed_forward_length", width as u32)
        .u32("llama.block_count", 1)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .u32("llama.context_length", 64)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10_000.0)
}

/// Tensors of that model, with reproducible random values.
pub fn tiny_llama_tensors(width: usize) -> Vec<(&'static str, Tensor)> {
    let mut random = Random::new(1);
    let mut tensor = |shape: &[usize]| {
        let n = shape.iter().product();
        let numbers: Vec<f32> = (0..n).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect();
        let scale = 1.0 / (width as f64).sqrt();
        (Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap() * scale).unwrap()
    };
    [
        ("token_embd.weight", vec![16, width]),
        ("output_norm.weight", vec![width]),
        ("blk.0.attn_norm.weight", vec![width]),
        ("blk.0.attn_q.weight", vec![width, width]),
        ("blk.0.attn_k.weight", vec![width / 2, width]),
        ("blk.0.attn_v.weight", vec![width / 2, width]),
        ("blk.0.attn_output.weight", vec![width, width]),
        ("blk.0.ffn_norm.weight", vec![width]),
        ("blk.0.ffn_gate.weight", vec![width, width]),
        ("blk.0.ffn_up.weight", vec![width, width]),
        ("blk.0.ffn_down.weight", vec![width, width]),
    ]
    .map(|(name, shape)| (name, tensor(&shape)))
    .into()
}

/// A reproducible pseudorandom number generator.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        // SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
