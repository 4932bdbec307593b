//! Parsing arbitrary bytes gives an error, or a header whose tensors are inside the file.
#![no_main]

use predict_otron_9000::models::load::SafetensorsHeader;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let Ok(header) = SafetensorsHeader::parse(file) else { return };
    let n_bytes: usize = header.tensors().values().map(|info| file[info.bytes.clone()].len()).sum();
    assert!(n_bytes <= file.len());
});
