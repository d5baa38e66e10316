use super::errors::{refused, still_works};
use super::matrix_data::Packed;
use super::nd::{Nd, Rng, assert_close, assert_same, download, upload, views};
use super::{Expect, FLOATS, tolerance};
use crate::{Backend, DType, GgmlKind, PackedLayout, PackedMatrix, Shape, Tensor, WeightMatrix};

/// Numbers of rows that are no multiple of a vector's or a tile's length.
const OUTS: [usize; 4] = [1, 3, 40, 129];

/// Matrices of `F32`, `F16` and `BF16` elements.
pub fn dense_matrices<B: Backend>(backend: &B, expect: &Expect) {
    let mut rng = Rng(50);
    for dtype in FLOATS {
        for (out, cols) in [(1, 1), (3, 37), (40, 64), (129, 96)] {
            let matrix = Packed::dense(dtype, [out, cols], &mut rng);
            check_matrix(backend, expect, &matrix, &FLOATS, &mut rng);
        }
    }
}

/// Every width, group size and scale type of MLX's affine quantization, and groups of 16.
pub fn mlx_matrices<B: Backend>(backend: &B, expect: &Expect) {
    let mut rng = Rng(51);
    for bits in [2, 3, 4, 5, 6, 8] {
        for group_size in [16, 32, 64, 128] {
            for scales in FLOATS {
                let matrix = Packed::affine(bits, group_size, scales, [3, 256], &mut rng);
                check_matrix(backend, expect, &matrix, &[DType::F32, scales], &mut rng);
            }
        }
        for out in OUTS {
            let matrix = Packed::affine(bits, 64, DType::F16, [out, 192], &mut rng);
            check_matrix(backend, expect, &matrix, &FLOATS, &mut rng);
        }
    }
}

/// Every block format of GGML.
pub fn ggml_matrices<B: Backend>(backend: &B, expect: &Expect) {
    let mut rng = Rng(52);
    for kind in GgmlKind::ALL {
        for out in OUTS {
            let matrix = Packed::ggml(kind, [out, kind.block_len()], &mut rng);
            check_matrix(backend, expect, &matrix, &[DType::F32], &mut rng);
        }
        let matrix = Packed::ggml(kind, [5, 3 * kind.block_len()], &mut rng);
        check_matrix(backend, expect, &matrix, &FLOATS, &mut rng);
    }
}

/// Joined matrices give what the parts give, one after the other; what does not fit is not joined.
pub fn joined_matrices<B: Backend>(backend: &B, expect: &Expect) {
    let mut rng = Rng(53);
    let kinds = [
        Packed::dense(DType::F32, [3, 64], &mut rng),
        Packed::dense(DType::F32, [40, 64], &mut rng),
        Packed::affine(4, 64, DType::F16, [3, 64], &mut rng),
        Packed::affine(4, 64, DType::F16, [40, 64], &mut rng),
        Packed::affine(4, 32, DType::F16, [40, 64], &mut rng),
        Packed::affine(8, 64, DType::F16, [3, 64], &mut rng),
        Packed::dense(DType::F32, [3, 32], &mut rng),
    ];
    let load = |m: &Packed| backend.load_matrix(&m.packed(), DType::F32).unwrap();
    let x = Nd::random([2, 64], &mut rng).rounded(DType::F32);
    let x = upload(backend, &x, DType::F32);
    for a in &kinds {
        for b in &kinds {
            let what = format!(
                "{} {:?} joined to {} {:?}",
                b.name, b.shape, a.name, a.shape
            );
            let (left, right) = (load(a), load(b));
            let joined = B::Matrix::join(&[&left, &right]).unwrap();
            let Some(joined) = joined else {
                continue;
            };
            let [rows, cols] = a.shape;
            assert_eq!(cols, b.shape[1], "{what}");
            assert_eq!(joined.shape(), [rows + b.shape[0], cols], "{what}");
            if cols != 64 {
                continue;
            }
            let parts = [&left, &right].map(|m| m.matmul_t(&x).unwrap());
            let want = B::Tensor::concat(&[&parts[0], &parts[1]], 1).unwrap();
            let got = joined.matmul_t(&x).unwrap();
            let tolerance = |m: &Packed| (expect.matmul)(&m.packed(), DType::F32).max(1e-5) * 64.0;
            let tolerance = tolerance(a).max(tolerance(b));
            assert_close(&what, &got, DType::F32, &download(&want), tolerance);
            let values = [&left, &right].map(|m| m.dequantize(DType::F32).unwrap());
            let values = B::Tensor::concat(&[&values[0], &values[1]], 0).unwrap();
            let whole = joined.dequantize(DType::F32).unwrap();
            assert_same(&what, &whole, DType::F32, &download(&values));
            let ids = [0, rows as u32, 1, (rows + b.shape[0] - 1) as u32];
            let ids = backend.from_u32s(&ids, [4]).unwrap();
            let taken = joined.take_rows(&ids, DType::F32).unwrap();
            let want = values.take_rows(&ids).unwrap();
            assert_same(&what, &taken, DType::F32, &download(&want));
        }
    }
    assert!(B::Matrix::join(&[]).unwrap().is_none());
}

fn check_matrix<B: Backend>(
    backend: &B,
    expect: &Expect,
    matrix: &Packed,
    activations: &[DType],
    rng: &mut Rng,
) {
    let truth = matrix.values();
    for &dtype in activations {
        let m = matrix.packed();
        let what = format!("{} for {dtype}", matrix.name);
        let w = backend
            .load_matrix(&m, dtype)
            .unwrap_or_else(|e| panic!("load_matrix of {what}: {e}"));
        assert_eq!(w.shape(), matrix.shape, "{what}");
        assert!(w.size_in_bytes() > 0, "{what}");

        let values = w.dequantize(DType::F32).unwrap();
        if (expect.exact)(&m, dtype) {
            let what = format!("dequantize of {what}");
            assert_same(&what, &values, DType::F32, &truth);
        } else {
            assert_near_rows(&what, &download(&values), &truth, expect.requantized);
        }
        // From here on the backend is held to the values it has.
        let values = download(&values);
        let narrow = w.dequantize(dtype).unwrap();
        let narrow_what = format!("dequantize of {what} to");
        assert_close(&narrow_what, &narrow, dtype, &values, tolerance(dtype));

        check_products(backend, expect, (&what, &m), (&w, &values), dtype, rng);
        check_rows(backend, &what, &w, &values, dtype);
    }
}

fn assert_near_rows(what: &str, got: &Nd, truth: &Nd, tolerance: f64) {
    assert_eq!(got.shape, truth.shape, "{what}");
    let cols = truth.shape.as_slice()[1];
    for (got, truth) in got.values.chunks(cols).zip(truth.values.chunks(cols)) {
        let largest = truth.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
        for (g, t) in got.iter().zip(truth) {
            assert!(
                (g - t).abs() <= tolerance * largest,
                "dequantize of {what}: {g}, expected {t} ± {:e}",
                tolerance * largest
            );
        }
    }
}

fn check_products<B: Backend>(
    backend: &B,
    expect: &Expect,
    (what, m): (&str, &PackedMatrix<'_>),
    (w, values): (&B::Matrix, &Nd),
    dtype: DType,
    rng: &mut Rng,
) {
    let [out, cols] = m.shape;
    let allowed = (expect.matmul)(m, dtype);
    let x = Nd::random([33, cols], rng).rounded(dtype);
    let mut first_row = None;
    for rows in [1, 2, 7, 33] {
        let part = Nd::new([rows, cols], x.values[..rows * cols].to_vec());
        // Views for one length are enough.
        let all = views(backend, &part, dtype);
        let count = if rows == 7 { all.len() } else { 1 };
        for (view, x) in all.into_iter().take(count) {
            let what = format!("matmul_t of {view} [{rows}, {cols}] with {what}");
            let y = w.matmul_t(&x).unwrap();
            assert_products(&what, &y, &part, values, dtype, allowed);
            let largest = w.argmax_t(&x).unwrap().to_bytes().unwrap();
            let of_all = y.argmax().unwrap().to_bytes().unwrap();
            assert_eq!(largest, of_all, "{what}: the largest output");
            if expect.batch_invariant {
                let row = y.narrow(0, 0, 1).unwrap().to_bytes().unwrap();
                let first = first_row.get_or_insert_with(|| row.clone());
                assert_eq!(*first, row, "{what}: the first row depends on the others");
            }
        }
    }
    // Any number of leading axes, also none.
    for leading in [&[][..], &[2, 3], &[1, 2, 3], &[0]] {
        let rows: usize = leading.iter().product();
        let shape = Shape::new(&[leading, &[cols]].concat()).unwrap();
        let part = Nd::new(shape, x.values[..rows * cols].to_vec());
        let y = w.matmul_t(&upload(backend, &part, dtype)).unwrap();
        let wanted = Shape::new(&[leading, &[out]].concat()).unwrap();
        assert_eq!(y.shape(), wanted, "matmul_t of {shape} with {what}");
        let y = y.reshape([rows, out]).unwrap();
        let part = Nd::new([rows, cols], part.values);
        let what = format!("matmul_t of {shape} with {what}");
        assert_products(&what, &y, &part, values, dtype, allowed);
    }
}

/// `y = x · wᵀ` up to `allowed` times the sum of the products' magnitudes.
fn assert_products<T: Tensor>(what: &str, y: &T, x: &Nd, w: &Nd, dtype: DType, allowed: f64) {
    let cols = w.shape.as_slice()[1];
    let shape = Shape::from([x.shape.as_slice()[0], w.shape.as_slice()[0]]);
    assert_eq!((y.shape(), y.dtype()), (shape, dtype), "{what}");
    let mut got = download(y).values.into_iter();
    for x in x.values.chunks(cols) {
        for (row, w) in w.values.chunks(cols).enumerate() {
            let products = || x.iter().zip(w).map(|(a, b)| a * b);
            let want: f64 = products().sum();
            let limit = allowed * products().map(f64::abs).sum::<f64>() + 1e-30;
            let got = got.next().unwrap();
            assert!(
                (got - want).abs() <= limit,
                "{what}: output {row} is {got}, expected {want} ± {limit:e}"
            );
        }
    }
}

fn check_rows<B: Backend>(backend: &B, what: &str, w: &B::Matrix, values: &Nd, dtype: DType) {
    let [out, cols] = w.shape();
    for ids in [vec![0], vec![out - 1, 0, out / 2, out - 1], vec![]] {
        let want = Nd::from_fn([ids.len(), cols], |i| values.at(&[ids[i[0]], i[1]]));
        let numbers: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let numbers = backend.from_u32s(&numbers, [ids.len()]).unwrap();
        let rows = w.take_rows(&numbers, DType::F32).unwrap();
        let what = format!("take_rows of {what}");
        assert_same(&what, &rows, DType::F32, &want);
        let rows = w.take_rows(&numbers, dtype).unwrap();
        assert_close(&what, &rows, dtype, &want, tolerance(dtype));
    }
}

/// Wrong arguments of loaded matrices give the documented errors.
pub fn wrong_matrix_arguments<B: Backend>(backend: &B, _: &Expect) {
    let mut rng = Rng(53);
    for matrix in [
        Packed::dense(DType::F32, [5, 64], &mut rng),
        Packed::affine(4, 64, DType::F16, [5, 64], &mut rng),
        Packed::ggml(GgmlKind::Q4_0, [5, 64], &mut rng),
        Packed::ggml(GgmlKind::Q6K, [5, 256], &mut rng),
    ] {
        let w = backend.load_matrix(&matrix.packed(), DType::F32).unwrap();
        let before = download(&w.dequantize(DType::F32).unwrap());
        let [out, cols] = matrix.shape;
        let zeros = |shape: &[usize], dtype| {
            let shape = Shape::new(shape).unwrap();
            backend.zeros(shape, dtype).unwrap()
        };
        refused!(Shape, w.matmul_t(&zeros(&[2, cols + 1], DType::F32)));
        refused!(Shape, w.matmul_t(&zeros(&[2, out], DType::F32)));
        refused!(Shape, w.matmul_t(&zeros(&[cols, 2], DType::F32)));
        refused!(Rank, w.matmul_t(&zeros(&[], DType::F32)));
        for dtype in [DType::U32, DType::I32, DType::U8] {
            refused!(DType, w.matmul_t(&zeros(&[2, cols], dtype)));
            if dtype != DType::U32 {
                refused!(DType, w.take_rows(&zeros(&[2], dtype), DType::F32));
            }
        }
        refused!(DType, w.take_rows(&zeros(&[2], DType::F32), DType::F32));
        refused!(Rank, w.take_rows(&zeros(&[], DType::U32), DType::F32));
        refused!(Rank, w.take_rows(&zeros(&[1, 2], DType::U32), DType::F32));
        for id in [out as u32, i32::MAX as u32, u32::MAX] {
            let ids = backend.from_u32s(&[0, id], [2]).unwrap();
            let rows = w.take_rows(&ids, DType::F32);
            refused!(OutOfRange, rows.and_then(|rows| rows.to_bytes()));
        }
        // A number that only the device knows.
        let scores = Nd::from_fn([1, out + 2], |i| i[1] as f64);
        let best = upload(backend, &scores, DType::F32).argmax().unwrap();
        let rows = w.take_rows(&best, DType::F32);
        refused!(OutOfRange, rows.and_then(|rows| rows.to_bytes()));
        let again = w.dequantize(DType::F32).unwrap();
        assert_same("dequantize after errors", &again, DType::F32, &before);
    }
    still_works(backend);
}

/// Bytes that do not fit their shape or format are refused with the matrix's name.
pub fn malformed_matrices<B: Backend>(backend: &B, _: &Expect) {
    let bytes = vec![0u8; 4096];
    let affine = |codes, scales, biases, scale_dtype, bits, group_size| PackedLayout::Affine {
        codes: &bytes[..codes],
        scales: &bytes[..scales],
        biases: &bytes[..biases],
        scale_dtype,
        bits,
        group_size,
    };
    let dense = |dtype, len| PackedLayout::Dense {
        dtype,
        bytes: &bytes[..len],
    };
    let ggml = |kind, len| PackedLayout::Ggml {
        kind,
        blocks: &bytes[..len],
    };
    let h = DType::F16;
    let fine = [
        ([2, 64], affine(64, 8, 8, h, 4, 32)),
        ([2, 64], dense(DType::F32, 512)),
        ([2, 64], ggml(GgmlKind::Q4_0, 72)),
    ];
    for (shape, layout) in fine {
        let m = PackedMatrix {
            name: "fine",
            shape,
            layout,
        };
        backend.load_matrix(&m, DType::F32).unwrap();
    }
    let (huge, max) = (1 << 40, usize::MAX);
    let malformed = [
        // Lengths.
        ([2, 64], affine(63, 8, 8, h, 4, 32)),
        ([2, 64], affine(68, 8, 8, h, 4, 32)),
        ([2, 64], affine(64, 6, 8, h, 4, 32)),
        ([2, 64], affine(64, 8, 6, h, 4, 32)),
        ([2, 64], affine(64, 8, 0, h, 4, 32)),
        ([2, 64], affine(64, 8, 8, DType::F32, 4, 32)),
        ([2, 64], dense(DType::F32, 511)),
        ([2, 64], dense(DType::F32, 516)),
        ([2, 64], dense(DType::F32, 0)),
        ([2, 64], ggml(GgmlKind::Q4_0, 71)),
        ([2, 64], ggml(GgmlKind::Q4_0, 90)),
        // Formats.
        ([2, 64], affine(112, 8, 8, h, 7, 32)),
        ([2, 64], affine(0, 8, 8, h, 0, 32)),
        ([2, 64], affine(64, 8, 8, h, 4, 0)),
        ([2, 48], affine(48, 4, 4, h, 4, 48)),
        ([2, 48], affine(48, 4, 4, h, 4, 32)),
        ([2, 16], affine(12, 4, 4, h, 3, 16)),
        ([2, 64], affine(64, 16, 16, DType::U32, 4, 32)),
        ([2, 64], dense(DType::U32, 512)),
        ([2, 48], ggml(GgmlKind::Q4_0, 54)),
        ([2, 64], ggml(GgmlKind::Q4K, 144)),
        // Shapes.
        ([0, 64], affine(0, 0, 0, h, 4, 32)),
        ([2, 0], ggml(GgmlKind::Q4_0, 0)),
        ([huge, huge], affine(64, 8, 8, h, 4, 32)),
        ([max, 32], affine(64, 8, 8, h, 4, 32)),
        ([huge, huge], ggml(GgmlKind::Q6K, 210)),
        ([huge, huge], dense(DType::F32, 512)),
        ([max, 2], dense(DType::F32, 512)),
        ([1, max], dense(DType::F32, 512)),
    ];
    for (i, (shape, layout)) in malformed.into_iter().enumerate() {
        let name = &format!("layers.{i}.weight");
        let m = PackedMatrix {
            name,
            shape,
            layout,
        };
        match backend.load_matrix(&m, DType::F32) {
            Err(crate::Error::Weight { name: named, .. }) => assert_eq!(&named, name),
            other => panic!(
                "load_matrix of malformed {m:?} gave {:?}",
                other.map(|_| ())
            ),
        }
    }
    still_works(backend);
}
