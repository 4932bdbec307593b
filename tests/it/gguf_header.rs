//! Parsing of GGUF headers, and the error message for each defect.

use predict_otron_9000::gguf::{GgufHeader, TensorType};

use crate::support::gguf::{ARRAY, BOOL, F32, Gguf, I32, STRING, U8, U64, array_start};

fn llama() -> Gguf {
    Gguf::default().string("general.architecture", "llama")
}

fn error(bytes: &[u8]) -> String {
    GgufHeader::parse(bytes).unwrap_err().to_string()
}

#[test]
fn keys_and_tensors_are_read_back() {
    let bytes = llama()
        .u32("u32", 7)
        .key("u64", U64, &i64::MAX.to_le_bytes())
        .key("i8", 1, &[0xFE])
        .f32("f32", 0.5)
        .key("f64", 12, &0.1f64.to_le_bytes())
        .bool("true", true)
        .strings("words", &["ab", "", "ç"])
        .i32s("numbers", &[-1, 5])
        .key("bytes", ARRAY, &[&array_start(U8, 2)[..], &[1, 255]].concat())
        .key("floats", ARRAY, &[&array_start(F32, 1)[..], &0.25f32.to_le_bytes()].concat())
        .key("nested", ARRAY, &[&array_start(ARRAY, 1)[..], &array_start(U8, 1), &[3]].concat())
        .u32("general.alignment", 32)
        .f32_tensor("a", &[2, 3], &[1.0; 6])
        .tensor("b", &[4, 64], 8, &[0; 4 * 2 * 34])
        .bytes();
    let header = GgufHeader::parse(&bytes).unwrap();
    let metadata = &header.metadata;

    assert_eq!(metadata.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.integer("u32").unwrap(), Some(7));
    assert_eq!(metadata.count("u32").unwrap(), Some(7));
    assert_eq!(metadata.token_id("u32").unwrap(), Some(7));
    assert_eq!(metadata.integer("u64").unwrap(), Some(i64::MAX));
    assert_eq!(metadata.integer("i8").unwrap(), Some(-2));
    assert_eq!(metadata.float("f32").unwrap(), Some(0.5));
    assert_eq!(metadata.float("f64").unwrap(), Some(0.1));
    assert_eq!(metadata.bool("true").unwrap(), Some(true));
    let words = metadata.strings("words").unwrap().unwrap();
    assert_eq!(words.iter().collect::<Vec<_>>(), ["ab", "", "ç"]);
    assert_eq!(metadata.integers("numbers").unwrap(), Some(vec![-1, 5]));
    assert_eq!(metadata.integers("bytes").unwrap(), Some(vec![1, 255]));
    assert_eq!(metadata.floats("floats").unwrap(), Some(&[0.25f32][..]));
    assert_eq!(metadata.string("absent").unwrap(), None);

    let tensor = |name| header.tensor(name).unwrap();
    let (a, b) = (tensor("a"), tensor("b"));
    assert_eq!((a.tensor_type, &a.shape[..], a.bytes.len()), (TensorType::F32, &[2, 3][..], 24));
    assert_eq!((b.tensor_type, &b.shape[..], b.bytes.len()), (TensorType::Q8_0, &[4, 64][..], 272));
    assert_eq!(b.bytes.end, bytes.len());
    assert_eq!(bytes[a.bytes.clone()], [0, 0, 128, 63].repeat(6));
    assert!(header.tensor("c").is_none());
}

#[test]
fn reading_a_value_as_another_type_names_key_and_type() {
    let metadata = llama()
        .u32("number", 300)
        .key("negative", I32, &(-1i32).to_le_bytes())
        .key("large", U64, &u64::MAX.to_le_bytes())
        .f32("endless", f32::INFINITY)
        .key("latin", STRING, &[&1u64.to_le_bytes()[..], &[0xE9]].concat())
        .key("latins", ARRAY, &[&array_start(STRING, 1)[..], &1u64.to_le_bytes(), &[0xE9]].concat())
        .i32s("numbers", &[1])
        .metadata();
    fn assert_error<T>(result: predict_otron_9000::error::Result<Option<T>>, key: &str, expected: &str) {
        let error = result.err().unwrap().to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains(expected), "{error}");
    }
    assert_error(metadata.string("number"), "number", "a string");
    assert_error(metadata.integers("number"), "number", "array of integers");
    assert_error(metadata.count("negative"), "negative", "non-negative");
    assert_error(metadata.token_id("negative"), "negative", "token id");
    assert_error(metadata.integer("large"), "large", "an integer");
    assert_error(metadata.float("endless"), "endless", "finite");
    assert_error(metadata.bool("number"), "number", "true or false");
    assert_error(metadata.string("latin"), "latin", "a string");
    assert_error(metadata.strings("latins"), "latins", "array of strings");
    assert_error(metadata.strings("numbers"), "numbers", "array of strings");
    assert_error(metadata.float("numbers"), "numbers", "finite number");
}

#[test]
fn every_defect_has_its_error_message() {
    let start = |version: u32, n_tensors: u64, n_keys: u64| {
        [&b"GGUF"[..], &version.to_le_bytes(), &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()].concat()
    };
    let key = |type_id: u32, value: &[u8]| llama().key("k", type_id, value).bytes();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", Vec::new(), &["does not begin with `GGUF`"]),
        ("another format", b"PK\x03\x04.......".to_vec(), &["does not begin with `GGUF`"]),
        ("version 1", start(1, 0, 0), &["version 1", "convert"]),
        ("version 4", start(4, 0, 0), &["version 4"]),
        ("big-endian", start(3u32.swap_bytes(), 0, 0), &["big-endian", "little-endian"]),
        ("no counts", start(3, 0, 0)[..12].to_vec(), &["ends within its header"]),
        ("too many tensors", start(3, u64::MAX, 0), &["18446744073709551615 tensors"]),
        ("too many keys", start(3, 0, 1 << 40), &["1099511627776 keys"]),
        ("missing keys", start(3, 0, 1), &["ends within its header"]),
        ("long key", Gguf::default().u32(&"k".repeat(70_000), 1).bytes(), &["name of a key", "70000 bytes"]),
        ("duplicate key", llama().u32("k", 1).u32("k", 2).bytes(), &["key `k` twice"]),
        ("unknown value type", key(13, &[0]), &["key `k`", "type 13"]),
        ("unknown element type", key(ARRAY, &array_start(13, 1)), &["key `k`", "type 13"]),
        ("invalid boolean", key(BOOL, &[2]), &["key `k`", "neither 0 nor 1"]),
        (
            "string longer than the file",
            key(STRING, &u64::MAX.to_le_bytes()),
            &["key `k`", "ends within its header"],
        ),
        (
            "array longer than the file",
            key(ARRAY, &array_start(U64, usize::MAX)),
            &["key `k`", "more than the file holds"],
        ),
        (
            "string array longer than the file",
            key(ARRAY, &array_start(STRING, usize::MAX)),
            &["key `k`", "more than the file"],
        ),
        ("deep nesting", key(ARRAY, &array_start(ARRAY, 1).repeat(9)), &["key `k`", "nested"]),
        ("alignment 0", llama().u32("general.alignment", 0).bytes(), &["general.alignment", "power of two"]),
        ("alignment 48", llama().u32("general.alignment", 48).bytes(), &["48", "power of two"]),
        ("alignment 4", llama().u32("general.alignment", 4).bytes(), &["general.alignment", "8"]),
        (
            "alignment of another type",
            llama().string("general.alignment", "32").bytes(),
            &["general.alignment"],
        ),
        ("no dimensions", llama().placed_tensor("t", &[], 0, 0).bytes(), &["tensor `t`", "0 dimensions"]),
        (
            "five dimensions",
            llama().placed_tensor("t", &[1; 5], 0, 0).bytes(),
            &["tensor `t`", "5 dimensions"],
        ),
        ("no elements", llama().placed_tensor("t", &[2, 0], 0, 0).bytes(), &["tensor `t`", "impossible"]),
        (
            "too many elements",
            llama().placed_tensor("t", &[1 << 32, 1 << 32], 0, 0).bytes(),
            &["tensor `t`", "impossible"],
        ),
        (
            "too many bytes",
            llama().placed_tensor("t", &[1 << 31, 1 << 31], 28, 0).bytes(),
            &["tensor `t`", "impossible"],
        ),
        ("unknown tensor type", llama().placed_tensor("t", &[32], 4, 0).bytes(), &["tensor `t`", "type 4"]),
        (
            "partial blocks",
            llama().tensor("t", &[32, 33], 8, &[0; 99]).bytes(),
            &["tensor `t`", "33", "Q8_0"],
        ),
        (
            "unaligned offset",
            llama().placed_tensor("t", &[1], 0, 8).bytes(),
            &["tensor `t`", "begins at 8", "32"],
        ),
        ("far offset", llama().placed_tensor("t", &[1], 0, 1 << 40).bytes(), &["tensor `t`", "cut short"]),
        (
            "last offset",
            llama().placed_tensor("t", &[8], 0, u64::MAX - 31).bytes(),
            &["tensor `t`", "cut short"],
        ),
        ("short data", llama().tensor("t", &[2, 2], 0, &[0; 15]).bytes(), &["tensor `t`", "cut short"]),
        (
            "overlapping tensors",
            llama().f32_tensor("a", &[16], &[0.0; 16]).placed_tensor("b", &[1], 0, 32).bytes(),
            &["`a`", "`b`", "overlap"],
        ),
        (
            "duplicate tensor",
            llama().f32_tensor("a", &[1], &[0.0]).f32_tensor("a", &[1], &[0.0]).bytes(),
            &["tensor `a` twice"],
        ),
    ];
    for (what, bytes, parts) in cases {
        let found = error(&bytes);
        assert!(parts.iter().all(|part| found.contains(part)), "{what}: {found}");
    }
}

#[test]
fn a_file_truncated_anywhere_is_an_error() {
    let bytes = llama()
        .u32("n", 1)
        .strings("words", &["a", "b"])
        .key("f", F32, &1f32.to_le_bytes())
        .f32_tensor("a", &[2, 2], &[0.0; 4])
        .f32_tensor("b", &[1], &[0.0])
        .bytes();
    assert!(GgufHeader::parse(&bytes).is_ok());
    for n_bytes in 0..bytes.len() {
        let found = error(&bytes[..n_bytes]);
        let parts = ["does not begin", "ends within", "more than the file holds", "cut short"];
        assert!(parts.iter().any(|part| found.contains(part)), "truncated to {n_bytes} bytes: {found}");
    }
}
