//! Mutated headers, a hundred thousand per format: parsing returns an error or a valid header, never panics, and
//! never allocates more memory than the file's size justifies.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::ops::Range;

use predict_otron_9000::gguf::GgufHeader;
use predict_otron_9000::models::decoder::CausalLm;
use predict_otron_9000::models::load::{GgufFile, SafetensorsHeader, Weights};
use predict_otron_9000::models::{Backend, ModelConfig};
use support::gguf::{ARRAY, F32, Gguf, Random, U8, U64, array_start, tiny_llama_keys, tiny_llama_tensors};

const N_MUTATIONS: u64 = 100_000;

/// The system's allocator, counting the bytes that each thread holds.
struct CountingAllocator;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to `System`, which upholds the contract.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().wrapping_add(layout.size());
        HELD.set(held);
        // A thread may free memory that another allocated, so its count may be negative.
        if held.cast_signed() > PEAK.get().cast_signed() {
            PEAK.set(held);
        }
        // SAFETY: `layout` has a size other than zero, as the caller of `alloc` guarantees.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(layout.size()));
        // SAFETY: `pointer` came from `System.alloc` with this layout: `alloc` above has no other source.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Runs `work` and returns its result and the peak memory that this thread allocated meanwhile, in bytes.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get().wrapping_sub(before))
}

/// Numbers at the edges of integer types.
const EXTREMES: [u64; 14] = [
    0,
    1,
    7,
    31,
    255,
    65_536,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    1 << 61,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Mutates `bytes` in one to four places before `header_len`.
fn mutated(bytes: &[u8], header_len: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let len = bytes.len().min(header_len);
        if len < 16 {
            break;
        }
        let at = random.below(len - 8);
        let part = at..at + 1 + random.below(64.min(len - at));
        match random.below(8) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => {
                let extreme = EXTREMES[random.below(EXTREMES.len())].to_le_bytes();
                let n_bytes = [4, 8][random.below(2)];
                bytes[at..at + n_bytes].copy_from_slice(&extreme[..n_bytes]);
            }
            4 => {
                let from = random.below(len - part.len() + 1);
                bytes.copy_within(from..from + part.len(), at);
            }
            5 => drop(bytes.drain(part)),
            6 => {
                let again = bytes[part].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes.truncate(at + random.below(bytes.len() - at)),
        }
    }
    bytes
}

/// A file with keys of every type and some tensors, and the length of its header.
fn gguf() -> (Vec<u8>, usize) {
    let mut file = Gguf::default()
        .string("general.architecture", "llama")
        .u32("general.alignment", 32)
        .u32("split.count", 1)
        .key("u64", U64, &7u64.to_le_bytes())
        .key("f32s", ARRAY, &[&array_start(F32, 2)[..], &[0; 8]].concat())
        .key("nested", ARRAY, &[&array_start(ARRAY, 1)[..], &array_start(U8, 2), &[1, 2]].concat())
        .bool("bool", true)
        .strings("words", &["one", "", "three"])
        .i32s("numbers", &[1, -1, 3]);
    for (idx, (code, n_bytes)) in [(0, 128), (1, 64), (8, 34), (12, 144), (20, 18)].into_iter().enumerate() {
        let shape: &[usize] = if code == 12 { &[1, 1, 256] } else { &[1, 32] };
        file = file.tensor(&format!("blk.{idx}.weight"), shape, code, &vec![1; n_bytes]);
    }
    let bytes = file.bytes();
    let header_len = GgufHeader::parse(&bytes).unwrap().tensors().values().map(|info| info.bytes.start).min();
    (bytes, header_len.unwrap())
}

/// Asserts that no two ranges overlap and that all are within `len` bytes.
fn assert_disjoint(mut ranges: Vec<Range<usize>>, len: usize) {
    ranges.sort_by_key(|range| (range.start, range.end));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
    assert!(ranges.iter().all(|range| range.start <= range.end && range.end <= len), "{ranges:?}");
}

#[test]
fn a_hundred_thousand_mutated_gguf_headers() {
    let (whole, header_len) = gguf();
    let mut n_read = 0;
    for seed in 0..N_MUTATIONS {
        let bytes = mutated(&whole, header_len, &mut Random::new(seed));
        let (header, peak) = peak_bytes(|| GgufHeader::parse(&bytes));
        assert!(peak <= 4 * bytes.len() + 4096, "seed {seed}: {peak} bytes for a file of {}", bytes.len());
        let Ok(header) = header else { continue };
        n_read += 1;
        let tensors = header.tensors();
        for info in tensors.values() {
            assert_eq!(info.tensor_type.n_bytes(&info.shape).unwrap(), info.bytes.len(), "seed {seed}");
            assert!(info.bytes.start.is_multiple_of(8) && info.n_elements() > 0, "seed {seed}");
        }
        assert_disjoint(tensors.values().map(|info| info.bytes.clone()).collect(), bytes.len());
        for key in ["general.architecture", "u64", "f32s", "nested", "bool", "words", "numbers"] {
            let metadata = &header.metadata;
            let _ =
                (metadata.string(key), metadata.strings(key).map(|words| words.map(|w| w.iter().count())));
            let _ =
                (metadata.integer(key), metadata.integers(key), metadata.floats(key), metadata.float(key));
            let _ = (metadata.bool(key), metadata.count(key), metadata.token_id(key));
        }
    }
    // Otherwise the mutations never get past the first check.
    assert!((1000..N_MUTATIONS - 1000).contains(&n_read), "{n_read} were read");
}

#[test]
fn a_hundred_thousand_mutated_safetensors_headers() {
    let json = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"I64","shape":[],"data_offsets":[32,40]}}"#;
    let file = |json: &[u8]| [&(json.len() as u64).to_le_bytes()[..], json, &[1; 40]].concat();
    assert!(SafetensorsHeader::parse(&file(json.as_bytes())).is_ok());
    let mut n_read = 0;
    for seed in 0..N_MUTATIONS {
        let mut random = Random::new(seed);
        let bytes = match random.below(4) {
            // The header is the whole file, with its length field.
            0 => mutated(&file(json.as_bytes()), 8 + json.len(), &mut random),
            1 => file(&mutated(json.as_bytes(), json.len(), &mut random)),
            _ => file(with_other_numbers(json, &mut random).as_bytes()),
        };
        let (header, peak) = peak_bytes(|| SafetensorsHeader::parse(&bytes));
        assert!(peak <= 4 * bytes.len() + 4096, "seed {seed}: {peak} bytes for a file of {}", bytes.len());
        let Ok(header) = header else { continue };
        n_read += 1;
        assert_disjoint(header.tensors().values().map(|info| info.bytes.clone()).collect(), bytes.len());
    }
    assert!((100..N_MUTATIONS - 1000).contains(&n_read), "{n_read} were read");
}

/// Replaces one or two numbers in a JSON text.
fn with_other_numbers(json: &str, random: &mut Random) -> String {
    let mut json = json.to_owned();
    for _ in 0..=random.below(2) {
        let is_number = |text: &str| text.chars().all(|c| c.is_ascii_digit());
        let starts: Vec<usize> = json
            .match_indices(['[', ','])
            .map(|(at, _)| at + 1)
            .filter(|&at| json[at..].starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        let start = starts[random.below(starts.len())];
        let len = json[start..].find([',', ']']).unwrap();
        assert!(is_number(&json[start..start + len]));
        let number = match random.below(3) {
            0 => EXTREMES[random.below(EXTREMES.len())],
            _ => random.below(64) as u64,
        };
        json.replace_range(start..start + len, &number.to_string());
    }
    json
}

#[test]
fn mutated_models_are_refused_or_load() {
    let tensors = tiny_llama_tensors(32);
    let file = tensors.iter().fold(tiny_llama_keys(32), |file, (name, tensor)| file.tensor_f32(name, tensor));
    let whole = file.bytes();
    let header = GgufHeader::parse(&whole).unwrap();
    let header_len = header.tensors().values().map(|info| info.bytes.start).min().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let (mut n_loaded, mut n_refused) = (0, 0);
    for seed in 0..2000 {
        fs::write(&path, mutated(&whole, header_len, &mut Random::new(seed))).unwrap();
        let load = || {
            let file = GgufFile::open(&path)?;
            CausalLm::load(ModelConfig::from_gguf(&file)?, &Weights::Gguf(file), Backend::Reference).map(drop)
        };
        let (result, peak) = peak_bytes(load);
        // 2^24 is the widest row a configuration may ask for.
        assert!(peak <= 128 << 20, "seed {seed}: {peak} bytes");
        match result {
            Ok(()) => n_loaded += 1,
            Err(_) => n_refused += 1,
        }
    }
    assert!(n_loaded >= 20 && n_refused >= 1000, "{n_loaded} loaded, {n_refused} refused");
}
