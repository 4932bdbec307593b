//! Parsing arbitrary bytes gives an error, or a header whose tensors are inside the file.
#![no_main]

use predict_otron_9000::gguf::GgufHeader;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let Ok(header) = GgufHeader::parse(file) else { return };
    for info in header.tensors().values() {
        assert_eq!(info.tensor_type.n_bytes(&info.shape).unwrap(), file[info.bytes.clone()].len());
    }
    let _ = header.metadata.integers("tokenizer.ggml.token_type");
    let _ = header.metadata.strings("tokenizer.ggml.tokens").map(|tokens| tokens.map(|t| t.iter().count()));
});
