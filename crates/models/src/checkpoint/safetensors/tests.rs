use std::{collections::HashMap, fs, path::PathBuf};

use ::safetensors::{serialize, tensor::TensorView};

use super::*;
use crate::checkpoint::Checkpoint;

/// A file as the reference implementation writes it.
fn sample() -> Vec<u8> {
    let metadata = HashMap::from([("shape".to_owned(), "of water".to_owned())]);
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    serialize(
        [
            ("brain", view(Dtype::BF16, &[2, 3], &[1; 12])),
            ("codes", view(Dtype::U32, &[2, 1], &[2; 8])),
            ("empty", view(Dtype::F32, &[0, 4], &[])),
            ("long", view(Dtype::I64, &[1], &[3; 8])),
        ],
        Some(metadata),
    )
    .unwrap()
}

/// A file with a header as it is given.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, bytes: &[u8]) -> Result<MappedCheckpoint> {
        // A new file each time: an old one may still be mapped.
        let _ = fs::remove_file(self.0.path().join("m.safetensors"));
        self.write("m.safetensors", bytes);
        open(self.0.path(), &["m.safetensors".to_owned()])
    }

    fn open_index(&self, json: &str) -> Result<MappedCheckpoint> {
        let path = self.write("index.json", json);
        open_index(self.0.path(), &path)
    }
}

#[test]
fn reads_what_the_reference_writes() {
    let checkpoint = Dir::new().open(&sample()).unwrap();
    assert_eq!(checkpoint.names(), ["long", "empty", "codes", "brain"]);
    assert_eq!(checkpoint.size_in_bytes(), 28);
    let tensor = |name| checkpoint.tensor(name).unwrap().unwrap();
    let brain = tensor("brain");
    assert_eq!(brain.shape, [2, 3]);
    assert_eq!(brain.kind, RawKind::Dense(DType::BF16));
    assert_eq!(brain.bytes, [1; 12]);
    assert_eq!(tensor("codes").kind, RawKind::Dense(DType::U32));
    assert!(tensor("empty").bytes.is_empty());
    assert!(checkpoint.tensor("other").unwrap().is_none());
    // Only who asks for a type that no model reads is refused.
    let error = checkpoint.tensor("long").unwrap_err();
    assert!(
        matches!(&error, Error::TensorType { name, got, .. } if name == "long" && got == "I64"),
        "{error:?}"
    );
}

#[test]
fn cut_short_anywhere_is_an_error() {
    let dir = Dir::new();
    let whole = sample();
    for end in 0..whole.len() {
        let error = dir.open(&whole[..end]).unwrap_err().to_string();
        assert!(error.contains("m.safetensors: "), "{end}: {error}");
    }
    let long = [&whole[..], &[0]].concat();
    let error = dir.open(&long).unwrap_err().to_string();
    assert!(
        error.contains("end at byte 28 of the data, but there are 29"),
        "{error}"
    );
}

#[test]
fn any_wrong_byte_is_survived() {
    let dir = Dir::new();
    let whole = sample();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut broken = whole.clone();
            broken[at] ^= 1 << bit;
            if let Ok(checkpoint) = dir.open(&broken) {
                for name in checkpoint.names() {
                    let Ok(tensor) = checkpoint.tensor(name) else {
                        continue;
                    };
                    let tensor = tensor.unwrap();
                    let elements: usize = tensor.shape.iter().product();
                    let RawKind::Dense(dtype) = tensor.kind else {
                        panic!("{name}");
                    };
                    assert_eq!(tensor.bytes.len(), elements * dtype.size());
                }
            }
        }
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let dir = Dir::new();
    let tensor = |info: &str| with_header(&format!("{{\"t\":{{{info}}}}}"), 8);
    let f32s = |shape: &str, offsets: &str| {
        tensor(&format!(
            r#""dtype":"F32","shape":{shape},"data_offsets":{offsets}"#
        ))
    };
    assert!(dir.open(&f32s("[2]", "[0,8]")).is_ok());
    let twice = r#"{"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#;
    let overlap = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    let cases = [
        (
            f32s("[3]", "[0,8]"),
            "tensor t: its shape [3] of F32 does not fit its 8 bytes",
        ),
        (f32s("[1]", "[4,8]"), "tensor t: its bytes are 4..8"),
        (f32s("[2]", "[8,0]"), "tensor t: its bytes are 8..0"),
        (f32s("[4]", "[0,16]"), "cut short"),
        (f32s("[1]", "[0,4]"), "end at byte 4"),
        (
            f32s("[1099511627776,1099511627776]", "[0,8]"),
            "does not fit",
        ),
        (f32s("[4611686018427387904]", "[0,8]"), "does not fit"),
        (
            f32s("[4611686018427387904]", "[0,18446744073709551615]"),
            "cut short",
        ),
        (f32s("[-1]", "[0,8]"), "tensor t: "),
        (f32s("[2]", "[0]"), "tensor t: "),
        (
            tensor(r#""dtype":"F32","shape":[2]"#),
            "tensor t: missing field `data_offsets`",
        ),
        (with_header(twice, 8), "\"t\" is there twice"),
        (with_header(overlap, 8), "tensor b: its bytes are 4..8"),
        (with_header("[]", 0), "expected an object"),
        (with_header("{", 0), "EOF"),
        (with_header("{\"\u{0}\":1}", 0), "control character"),
        (
            u64::MAX.to_le_bytes().to_vec(),
            "18446744073709551615 bytes of the header",
        ),
        (vec![], "cut short"),
    ];
    for (bytes, part) in cases {
        let error = dir.open(&bytes).unwrap_err().to_string();
        assert!(error.contains("m.safetensors: "), "{error}");
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    // An unknown type's size cannot be checked, and only asking for it is an error.
    let new = tensor(r#""dtype":"F5","shape":[9],"data_offsets":[0,8]"#);
    let error = dir.open(&new).unwrap().tensor("t").unwrap_err().to_string();
    assert!(
        error.contains("tensor t has type F5") && error.contains("BF16"),
        "{error}"
    );
}

#[test]
fn an_index_is_checked_against_its_shards() {
    let dir = Dir::new();
    let u8s = |name: &str| {
        let info = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        with_header(&info, 1)
    };
    dir.write("1.safetensors", u8s("a"));
    dir.write("2.safetensors", u8s("b"));
    dir.write("3.safetensors", u8s("a"));
    let map = |map: &str| {
        dir.open_index(&format!(
            r#"{{"metadata":{{"total_size":2}},"weight_map":{{{map}}}}}"#
        ))
    };
    let both = map(r#""b":"2.safetensors","a":"1.safetensors""#).unwrap();
    assert_eq!(both.names(), ["a", "b"]);
    assert_eq!(both.file_names(), ["1.safetensors", "2.safetensors"]);
    let cases = [
        (
            r#""a":"1.safetensors","b":"4.safetensors""#,
            "shard 4.safetensors",
        ),
        (
            r#""a":"1.safetensors","c":"2.safetensors""#,
            "tensor c is in shard 2.safetensors",
        ),
        (
            r#""a":"2.safetensors","b":"1.safetensors""#,
            "tensor a is in shard 2.safetensors",
        ),
        (
            r#""a":"1.safetensors","a":"3.safetensors""#,
            "\"a\" is there twice",
        ),
        (r#""a":"../1.safetensors""#, "not the name of a file"),
        (r#""a":"/etc/passwd""#, "not the name of a file"),
        (r#""a":"x/1.safetensors""#, "not the name of a file"),
        (r#""a":"./1.safetensors""#, "not the name of a file"),
        (r#""a":"1.safetensors/""#, "not the name of a file"),
        (r#""a":"..\\1.safetensors""#, "not the name of a file"),
        (r#""a":"..""#, "not the name of a file"),
        (r#""a":"""#, "not the name of a file"),
        (r#""a":1"#, "expected a string"),
    ];
    for (json, part) in cases {
        let error = map(json).unwrap_err().to_string();
        assert!(error.contains("index.json: "), "{error}");
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    let error = map(r#""a":"1.safetensors","b":"3.safetensors""#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3.safetensors: tensor \"a\" is there twice"),
        "{error}"
    );
}

#[test]
fn an_index_cut_short_anywhere_is_an_error() {
    let dir = Dir::new();
    dir.write("1.safetensors", sample());
    let whole = r#"{"metadata":{},"weight_map":{"brain":"1.safetensors"}}"#;
    assert!(dir.open_index(whole).is_ok());
    for end in 0..whole.len() {
        let error = dir.open_index(&whole[..end]).unwrap_err().to_string();
        assert!(error.contains("index.json: "), "{end}: {error}");
    }
}
