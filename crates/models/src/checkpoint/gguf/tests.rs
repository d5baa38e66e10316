use std::time::{Duration, Instant};

use super::*;
use crate::checkpoint::Checkpoint;

/// Writes GGUF files, sound or not.
#[derive(Clone)]
struct Writer {
    version: u32,
    pairs: Vec<Vec<u8>>,
    infos: Vec<Vec<u8>>,
    data: Vec<u8>,
}

impl Writer {
    fn new() -> Self {
        Writer {
            version: 3,
            pairs: vec![],
            infos: vec![],
            data: vec![],
        }
        .pair("general.architecture", 8, &string(b"llama"))
    }

    fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let pair = [&string(key.as_bytes()), &kind.to_le_bytes()[..], value].concat();
        self.pairs.push(pair);
        self
    }

    /// `dims` with the innermost first, as in the file.
    fn info(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut info = string(name.as_bytes());
        info.extend((dims.len() as u32).to_le_bytes());
        info.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        info.extend(kind.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.infos.push(info);
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0xEE);
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.info(name, dims, kind, offset)
    }

    fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.infos.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        out.extend(self.pairs.concat());
        out.extend(self.infos.concat());
        out
    }

    fn finish(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(32), 0xDD);
        out.extend(&self.data);
        out
    }

    fn error(&self) -> String {
        header_error(&self.finish())
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

fn array(kind: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), &len.to_le_bytes()[..], elements].concat()
}

fn read(bytes: &[u8]) -> Result<(Vec<Entry>, GgufMetadata)> {
    read_header(Path::new("m.gguf"), bytes)
}

fn header_error(bytes: &[u8]) -> String {
    read(bytes).map(|_| ()).unwrap_err().to_string()
}

/// A file with all value types, nested arrays, dense tensors and blocks.
fn sample() -> Writer {
    let nested = array(
        9,
        2,
        &[array(4, 1, &[9, 0, 0, 0]), array(8, 1, &string(b"x"))].concat(),
    );
    Writer::new()
        .pair("u8", 0, &[200])
        .pair("i8", 1, &[0xFE])
        .pair("u16", 2, &[1, 2])
        .pair("i16", 3, &[0xFE, 0xFF])
        .pair("u32", 4, &u32::MAX.to_le_bytes())
        .pair("i32", 5, &7i32.to_le_bytes())
        .pair("f32", 6, &0.1f32.to_le_bytes())
        .pair("yes", 7, &[1])
        .pair("latin1", 8, &string(&[b'a', 0xE4]))
        .pair("u64", 10, &u64::MAX.to_le_bytes())
        .pair("i64", 11, &(-3i64).to_le_bytes())
        .pair("f64", 12, &0.5f64.to_le_bytes())
        .pair(
            "words",
            9,
            &array(
                8,
                3,
                &[string(b"one"), string(b""), string("zwölf".as_bytes())].concat(),
            ),
        )
        .pair(
            "raw",
            9,
            &array(8, 2, &[string(&[0xFF]), string(b"b")].concat()),
        )
        .pair(
            "types",
            9,
            &array(5, 2, &[1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]),
        )
        .pair("scores", 9, &array(6, 1, &(-2.5f32).to_le_bytes()))
        .pair("none", 9, &array(4, 0, &[]))
        .pair("nested", 9, &nested)
        .tensor("dense", &[3, 2], 0, &[7; 24])
        .tensor("blocks", &[64, 3], 8, &[5; 6 * 34])
        .tensor("brain", &[5], 30, &[1; 10])
}

#[test]
fn reads_every_type_of_metadata() {
    let (_, m) = read(&sample().finish()).unwrap();
    assert_eq!(m.architecture().unwrap(), "llama");
    assert_eq!(m.u32("u8").unwrap(), 200);
    assert_eq!(m.u32("u16").unwrap(), 0x201);
    assert_eq!(m.u32("u32").unwrap(), u32::MAX);
    assert_eq!(m.usize("i32").unwrap(), 7);
    assert_eq!(m.u64("u64").unwrap(), u64::MAX);
    assert_eq!(m.f32("f32").unwrap(), 0.1);
    assert_eq!(m.f32("f64").unwrap(), 0.5);
    assert!(m.bool("yes").unwrap());
    assert_eq!(m.bytes("latin1").unwrap(), [b'a', 0xE4]);
    assert_eq!(m.array_str("words").unwrap(), ["one", "", "zwölf"]);
    assert_eq!(m.array_bytes("raw").unwrap(), [&[0xFF][..], b"b"]);
    assert_eq!(m.array_i32("types").unwrap(), [1, -1]);
    assert_eq!(m.array_f32("scores").unwrap(), [-2.5]);
    assert_eq!(m.array_u32("none").unwrap(), [0; 0]);
    assert_eq!(m.array_str("none").unwrap(), [""; 0]);
    assert_eq!(m.array_len("nested").unwrap(), 2);
    assert_eq!(m.optional_u32("absent").unwrap(), None);
}

#[test]
fn getters_name_file_key_and_types() {
    let (_, m) = read(&sample().finish()).unwrap();
    let says = |error: Error, expected: &str| {
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("m.gguf: config: {expected}"));
    };
    says(m.u32("absent").unwrap_err(), "absent is missing");
    says(
        m.str("u8").unwrap_err(),
        "u8: expected a string, got the integer 200",
    );
    says(
        m.str("latin1").unwrap_err(),
        "latin1: expected a string, got a string that is not UTF-8",
    );
    says(
        m.optional_u32("u64").unwrap_err(),
        "u64: expected an integer of 32 bits without sign, got the integer 18446744073709551615",
    );
    says(
        m.u32("i8").unwrap_err(),
        "i8: expected an integer of 32 bits without sign, got the integer -2",
    );
    says(
        m.bool("f32").unwrap_err(),
        "f32: expected a bool, got the number 0.10000000149011612",
    );
    says(
        m.usize("types").unwrap_err(),
        "types: expected an integer without sign, got an array of 2 i32",
    );
    says(
        m.array_u32("types").unwrap_err(),
        "types: expected an array of integers of 32 bits without sign, got an array of 2 i32",
    );
    says(
        m.array_str("raw").unwrap_err(),
        "raw: expected an array of UTF-8 strings, got an array of 2 strings",
    );
}

#[test]
fn reads_tensors_outermost_axis_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for version in [2, 3] {
        let writer = Writer {
            version,
            ..sample()
        };
        std::fs::write(&path, writer.finish()).unwrap();
        let (checkpoint, metadata) = open(&path).unwrap();
        assert_eq!(checkpoint.names(), ["dense", "blocks", "brain"]);
        assert_eq!(checkpoint.size_in_bytes(), 24 + 6 * 34 + 10);
        assert!(metadata.has_tensor("brain") && !metadata.has_tensor("u8"));
        let tensor = |name| checkpoint.tensor(name).unwrap().unwrap();
        let dense = tensor("dense");
        assert_eq!(dense.shape, [2, 3]);
        assert_eq!(dense.kind, RawKind::Dense(DType::F32));
        assert_eq!(dense.bytes, [7; 24]);
        let blocks = tensor("blocks");
        assert_eq!(blocks.shape, [3, 64]);
        assert_eq!(blocks.kind, RawKind::Ggml(GgmlKind::Q8_0));
        assert_eq!(blocks.bytes, [5; 6 * 34]);
        assert_eq!(tensor("brain").bytes, [1; 10]);
        assert!(checkpoint.tensor("other").unwrap().is_none());
    }
}

#[test]
fn cut_short_anywhere_is_an_error() {
    let whole = sample().finish();
    assert!(read(&whole).is_ok());
    for end in 0..whole.len() {
        let error = read(&whole[..end]).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("m.gguf"), "{end}: {error}");
    }
}

/// What is read from broken bytes lies inside the file, if anything is.
fn survives(bytes: &[u8]) {
    if let Ok((entries, m)) = read(bytes) {
        for entry in entries {
            assert!(entry.range.start <= entry.range.end && entry.range.end <= bytes.len());
        }
        let _ = (
            m.array_str("words"),
            m.array_bytes("raw"),
            m.array_i32("types"),
        );
        let _ = (m.array_f32("scores"), m.array_u32("none"), m.architecture());
    }
}

#[test]
fn any_wrong_byte_is_survived() {
    let whole = sample().finish();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut broken = whole.clone();
            broken[at] ^= 1 << bit;
            survives(&broken);
        }
        for value in [0, 0x7F, 0x80, 0xFF] {
            let mut broken = whole.clone();
            broken[at] = value;
            survives(&broken);
        }
    }
    // Several at once, by a fixed sequence (Knuth's MMIX generator).
    let mut state = 1u64;
    for _ in 0..5000 {
        let mut broken = whole.clone();
        for _ in 0..3 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % broken.len();
            broken[at] = (state >> 24) as u8;
        }
        survives(&broken);
    }
}

#[test]
fn absurd_numbers_are_refused_before_anything_is_allocated() {
    let long = u64::MAX / 16;
    let f32_info = |dims: &[u64]| Writer::new().info("t", dims, 0, 0).error();
    let patched = |at: usize, value: u64| {
        let mut bytes = sample().finish();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        header_error(&bytes)
    };
    let cases = [
        (patched(8, 1 << 63), "9223372036854775808 tensors"),
        (patched(16, 1 << 63), "key-value pairs"),
        // The first key's length.
        (patched(24, 1 << 60), "bytes of a string"),
        (
            Writer::new().pair("k", 8, &long.to_le_bytes()).error(),
            "bytes of a string",
        ),
        (
            Writer::new().pair("k", 9, &array(8, long, &[])).error(),
            "strings of an array",
        ),
        (
            Writer::new().pair("k", 9, &array(12, long, &[])).error(),
            "elements of an array",
        ),
        (
            Writer::new().pair("k", 9, &array(9, long, &[])).error(),
            "arrays of an array",
        ),
        (f32_info(&[1 << 40, 1 << 40]), "larger than any file"),
        (f32_info(&[u64::MAX]), "larger than any file"),
        (f32_info(&[1 << 40]), "beyond the end"),
        (f32_info(&[]), "0 axes"),
        (f32_info(&[1; 5]), "5 axes"),
        (
            Writer::new().info("t", &[0], 0, u64::MAX - 31).error(),
            "beyond the end",
        ),
        (
            Writer::new().info("t", &[1], 0, 8).error(),
            "no multiple of the alignment, 32",
        ),
        (
            Writer::new().info("t", &[48], 2, 0).error(),
            "no whole Q4_0 blocks",
        ),
        (Writer::new().pair("k", 13, &[]).error(), "type 13"),
        (Writer::new().pair("k", 7, &[2]).error(), "bool"),
        (
            Writer::new().pair("k", 9, &array(7, 2, &[1, 2])).error(),
            "bool",
        ),
    ];
    for (error, part) in cases {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    let deep = [array(9, 1, &[]).repeat(1_000_000), array(4, 0, &[])].concat();
    let error = Writer::new().pair("k", 9, &deep).error();
    assert!(error.contains("8 deep"), "{error}");
}

#[test]
fn variants_that_are_not_read_say_what_to_do() {
    let swapped = Writer {
        version: 3u32.swap_bytes(),
        ..sample()
    }
    .error();
    assert!(swapped.contains("big-endian"), "{swapped}");
    for (version, part) in [
        (1, "convert the model again"),
        (4, "version 4"),
        (0, "version 0"),
    ] {
        let error = Writer {
            version,
            ..sample()
        }
        .error();
        assert!(error.contains(part), "{error}");
    }
    let split = sample()
        .pair("split.count", 2, &[3, 0])
        .pair("split.no", 2, &[1, 0])
        .error();
    assert!(
        split.contains("part 2 of 3") && split.contains("--merge"),
        "{split}"
    );
    assert!(read(&sample().pair("split.count", 2, &[1, 0]).finish()).is_ok());
    let error = read(&Writer::new().info("blk.0.w", &[256], 23, 0).finish())
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(&error, Error::TensorType { name, got, .. } if name == "blk.0.w" && got == "IQ4_XS")
    );
    assert!(error.to_string().contains("Q4_K"), "{error}");
    assert!(header_error(b"PK\x03\x04....").contains("no GGUF file"));
}

#[test]
fn alignment_is_followed_and_checked() {
    let aligned = |value: u32| Writer::new().pair("general.alignment", 4, &value.to_le_bytes());
    for bad in [0, 24, u32::MAX] {
        let error = aligned(bad).error();
        assert!(error.contains("no power of two"), "{error}");
    }
    // Larger than the file: no tensor can be inside.
    assert!(
        aligned(1 << 31)
            .info("t", &[1], 0, 0)
            .error()
            .contains("beyond the end")
    );
    assert!(read(&aligned(1 << 31).finish()).is_ok());
    let writer = aligned(8).info("a", &[2], 0, 0).info("b", &[1], 0, 8);
    let mut bytes = writer.header();
    let data = bytes.len().next_multiple_of(8);
    bytes.resize(data + 12, 0);
    let (entries, _) = read(&bytes).unwrap();
    assert_eq!(entries[0].range, data..data + 8);
    assert_eq!(entries[1].range, data + 8..data + 12);
    let error = header_error(&bytes[..data + 11]);
    assert!(
        error.contains("tensor b: its 4 bytes at offset 8 lie beyond the end"),
        "{error}"
    );
}

#[test]
fn names_must_be_unique_and_utf8() {
    let error = sample().pair("u8", 0, &[1]).error();
    assert!(error.contains("\"u8\" is there twice"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, sample().info("dense", &[1], 0, 0).finish()).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("\"dense\" is there twice"), "{error}");
    let mut writer = Writer::new();
    writer
        .pairs
        .push([&string(&[0xFF])[..], &[0, 0, 0, 0, 1]].concat());
    assert!(writer.error().contains("key at byte"), "{}", writer.error());
}

#[test]
fn large_vocabularies_are_read_in_linear_time() {
    let tokens: Vec<u8> = (0..300_000u32)
        .flat_map(|i| string(i.to_string().as_bytes()))
        .collect();
    let bytes = Writer::new()
        .pair("tokens", 9, &array(8, 300_000, &tokens))
        .finish();
    let start = Instant::now();
    let (_, m) = read(&bytes).unwrap();
    let read = m.array_str("tokens").unwrap();
    let took = start.elapsed();
    assert_eq!(read.len(), 300_000);
    assert_eq!(read[123_456], "123456");
    assert!(took < Duration::from_secs(3), "took {took:?}");
}
