//! Checkpoints in safetensors files, whole and sharded.

use std::fs;
use std::path::Path;

use predict_otron_9000::models::load::{SafetensorsFiles, Weights};
use serde_json::{Value, json};

/// Returns a file with one-dimensional tensors, each given by name, type, length and bytes.
fn file(tensors: &[(&str, &str, usize, &[u8])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, len, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert((*name).into(), json!({"dtype": dtype, "shape": [len], "data_offsets": offsets}));
        data.extend(*bytes);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn values(weights: &Weights, name: &str, len: usize) -> Vec<f32> {
    weights.tensor(name, &[len]).unwrap().to_vec1().unwrap()
}

fn error(path: &Path) -> String {
    SafetensorsFiles::open(path).err().unwrap().to_string()
}

#[test]
fn floats_of_every_width_are_read_at_any_alignment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let expected = [1.5f32, -0.25, 3.0];
    let f64s: Vec<u8> = expected.iter().flat_map(|&n| f64::from(n).to_le_bytes()).collect();
    let f32s: Vec<u8> = expected.iter().flat_map(|n| n.to_le_bytes()).collect();
    let f16s: Vec<u8> = expected.iter().flat_map(|&n| half::f16::from_f32(n).to_le_bytes()).collect();
    let bf16s: Vec<u8> = expected.iter().flat_map(|&n| half::bf16::from_f32(n).to_le_bytes()).collect();
    // The first tensor has one byte, so none of the others is aligned.
    let bytes = file(&[
        ("odd", "U8", 1, &[0]),
        ("f64", "F64", 3, &f64s),
        ("f32", "F32", 3, &f32s),
        ("f16", "F16", 3, &f16s),
        ("bf16", "BF16", 3, &bf16s),
        ("f8", "F8_E4M3", 1, &[0]),
    ]);
    fs::write(&path, bytes).unwrap();
    let weights = Weights::Safetensors(SafetensorsFiles::open(&path).unwrap());
    for name in ["f64", "f32", "f16", "bf16"] {
        assert_eq!(values(&weights, name, 3), expected, "{name}");
    }
    for name in ["odd", "f8"] {
        let error = weights.tensor(name, &[1]).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")) && error.contains("BF16, F16 or F32"), "{error}");
    }
    assert!(weights.tensor("f32", &[4]).unwrap_err().to_string().contains("[3]"));
    assert!(weights.tensor("none", &[3]).unwrap_err().to_string().contains("`none`"));
}

#[test]
fn shards_are_opened_by_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let write_index =
        |map: Value| fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let write = |name: &str, tensors: &[&str]| {
        let bytes = 1f32.to_le_bytes();
        let tensors: Vec<_> = tensors.iter().map(|&name| (name, "F32", 1, &bytes[..])).collect();
        fs::write(folder.path().join(name), file(&tensors)).unwrap();
    };
    write("x.safetensors", &["a", "b"]);
    write("y.safetensors", &["c"]);
    // A stray file of another model, which the index does not list.
    write("model-00001-of-00001.safetensors", &["a"]);

    write_index(json!({"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}));
    let weights = Weights::Safetensors(SafetensorsFiles::open(&index).unwrap());
    assert!(["a", "b", "c"].iter().all(|name| values(&weights, name, 1) == [1.0]));

    let cases = [
        (json!({"a": "y.safetensors", "c": "y.safetensors"}), "tensor `a` is not in `y.safetensors`"),
        (json!({"a": "x.safetensors", "c": "x.safetensors"}), "tensor `c` is not in `x.safetensors`"),
        (json!({"a": "x.safetensors", "d": "x.safetensors"}), "tensor `d` is not in `x.safetensors`"),
        (json!({"a": "z.safetensors"}), "z.safetensors"),
        (json!({"a": "../x.safetensors"}), "`../x.safetensors` in the index is not a plain file name"),
        (json!({"a": "/etc/passwd"}), "`/etc/passwd` in the index is not a plain file name"),
        (json!({"a": ".."}), "`..` in the index is not a plain file name"),
        (json!({"a": "sub\\x.safetensors"}), "in the index is not a plain file name"),
        (json!({"a": ""}), "`` in the index is not a plain file name"),
        (json!({"a": 1}), "cannot read the index"),
        (json!([]), "cannot read the index"),
        (json!({"a": "x.safetensors", "c": "model-00001-of-00001.safetensors"}), "tensor `a` is in"),
    ];
    for (map, part) in cases {
        write_index(map);
        assert!(error(&index).contains(part), "{part}: {}", error(&index));
    }
    fs::write(&index, r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#).unwrap();
    assert!(error(&index).contains("`a` is listed twice"), "{}", error(&index));
    fs::remove_file(&index).unwrap();
    assert!(error(&index).contains("model.safetensors.index.json"), "{}", error(&index));
}

#[test]
fn a_file_that_is_cut_short_while_it_loads_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, file(&[("a", "F32", 100_000, &vec![0; 400_000])])).unwrap();
    let weights = Weights::Safetensors(SafetensorsFiles::open(&path).unwrap());
    assert!(weights.tensor("a", &[100_000]).is_ok());
    fs::File::options().write(true).open(&path).unwrap().set_len(200_000).unwrap();
    let error = weights.tensor("a", &[100_000]).unwrap_err().to_string();
    assert!(error.contains("`a`") && error.contains("cut short"), "{error}");
}
