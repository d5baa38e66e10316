use biplane_backend::{DType, GgmlKind};

use super::*;
use crate::checkpoint::{Metadata, open};

fn header(name: &str, shape: &[usize], kind: RawKind) -> TensorHeader {
    TensorHeader {
        name: name.into(),
        shape: shape.to_vec(),
        kind,
    }
}

fn some_bytes(header: &TensorHeader) -> Vec<u8> {
    let len = header.size_in_bytes(Path::new("x")).unwrap();
    (0..len)
        .map(|i| (i * 7 + header.name.len()) as u8)
        .collect()
}

#[test]
fn gguf_is_read_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let metadata = vec![
        (
            "general.architecture".into(),
            MetadataValue::String("llama".into()),
        ),
        ("a.u32".into(), MetadataValue::U32(7)),
        ("a.f32".into(), MetadataValue::F32(0.5)),
        ("a.bool".into(), MetadataValue::Bool(true)),
        (
            "a.strings".into(),
            MetadataValue::Strings(vec!["ä".into(), String::new()]),
        ),
        ("a.i32s".into(), MetadataValue::I32s(vec![-1, 3])),
        ("a.f32s".into(), MetadataValue::F32s(vec![1.5])),
    ];
    let mut tensors = vec![
        header("vector", &[5], RawKind::Dense(DType::F32)),
        header("odd", &[3, 5], RawKind::Dense(DType::BF16)),
    ];
    for kind in GgmlKind::ALL {
        tensors.push(header(kind.name(), &[3, 256], RawKind::Ggml(kind)));
    }
    let mut writer = GgufWriter::create(&path, &metadata, tensors.clone()).unwrap();
    for tensor in &tensors {
        writer.write(&some_bytes(tensor)).unwrap();
    }
    writer.finish().unwrap();
    let opened = open(&path).unwrap();
    for tensor in &tensors {
        let raw = opened.checkpoint.tensor(&tensor.name).unwrap().unwrap();
        assert_eq!((&raw.shape, raw.kind), (&tensor.shape, tensor.kind));
        assert_eq!(raw.bytes, some_bytes(tensor), "{}", tensor.name);
    }
    let Metadata::Gguf(m) = &opened.metadata else {
        panic!("expected GGUF");
    };
    assert_eq!(m.u32("a.u32").unwrap(), 7);
    assert_eq!(m.array_str("a.strings").unwrap(), ["ä", ""]);
    assert_eq!(m.array_i32("a.i32s").unwrap(), [-1, 3]);
    assert!(m.bool("a.bool").unwrap());
    // A copy of a copy is the same file.
    let again = dir.path().join("again.gguf");
    let mut writer = GgufWriter::create(&again, &m.pairs().unwrap(), tensors.clone()).unwrap();
    for tensor in &tensors {
        writer.write(&some_bytes(tensor)).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(&again).unwrap()
    );
}

#[test]
fn shards_are_read_back_as_one() {
    for (limit, files) in [(usize::MAX, 1), (100, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let tensors = [
            header("a.weight", &[3, 8], RawKind::Dense(DType::F32)),
            header("b", &[7], RawKind::Dense(DType::F16)),
            header("c.weight", &[2, 100], RawKind::Dense(DType::U32)),
        ];
        let mut writer = SafetensorsWriter::create(dir.path(), tensors.to_vec(), limit).unwrap();
        for tensor in &tensors {
            writer.write(&some_bytes(tensor)).unwrap();
        }
        writer.finish().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let written = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(written, 1 + files + usize::from(files > 1));
        let opened = open(dir.path()).unwrap();
        for tensor in &tensors {
            let raw = opened.checkpoint.tensor(&tensor.name).unwrap().unwrap();
            assert_eq!((&raw.shape, raw.kind), (&tensor.shape, tensor.kind));
            assert_eq!(raw.bytes, some_bytes(tensor));
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = header("q", &[2, 32], RawKind::Ggml(GgmlKind::Q4_0));
    let error = SafetensorsWriter::create(dir.path(), vec![blocks.clone()], 1000).unwrap_err();
    assert!(error.to_string().contains("write GGUF"), "{error}");
    let vector = header("v", &[4], RawKind::Dense(DType::F32));
    let path = dir.path().join("m.gguf");
    let twice = GgufWriter::create(&path, &[], vec![vector.clone(), vector.clone()]);
    assert!(twice.unwrap_err().to_string().contains("twice"));
    let mut writer = GgufWriter::create(&path, &[], vec![vector.clone(), blocks]).unwrap();
    let error = writer.write(&[0; 15]).unwrap_err();
    assert!(error.to_string().contains("tensor v"), "{error}");
    writer.write(&[0; 16]).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(error.to_string().contains("tensor q"), "{error}");
    // Nothing is overwritten.
    assert!(GgufWriter::create(&path, &[], vec![vector]).is_err());
}
