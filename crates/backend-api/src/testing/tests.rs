use super::faulty::{Fault, Faulty};
use super::host::HostBackend;
use super::*;

mod host {
    use crate::testing::host::HostBackend;

    crate::conformance_tests!(HostBackend);
}

type Group = fn(&Faulty<HostBackend>, &Expect);

fn passes(fault: Fault, group: Group) -> bool {
    let run = || group(&Faulty(HostBackend, fault), &Expect::default());
    std::panic::catch_unwind(run).is_ok()
}

#[test]
fn faults_are_caught() {
    let groups: [(Group, &[Fault]); 15] = [
        (reshapes, &[Fault::SwapOnlyInName]),
        (casts, &[Fault::TruncatingCast]),
        (slices, &[Fault::NarrowFromStart]),
        (writes, &[Fault::WriteToStart]),
        (binaries, &[Fault::MinForMax]),
        (selections, &[Fault::SelectSwapped]),
        (reductions, &[Fault::LossySum, Fault::LastOfEquals]),
        (row_lookups, &[Fault::RowsClamped]),
        (norms, &[Fault::NormWithoutEps]),
        (rotations, &[Fault::OtherPairing, Fault::NarrowFromStart]),
        (attentions, &[Fault::FutureSeen, Fault::SwapOnlyInName]),
        (dense_matrices, &[Fault::InexactMatrix]),
        (malformed_matrices, &[Fault::OtherError]),
        (wrong_arguments, &[Fault::RowsClamped]),
        (absurd_shapes, &[Fault::AbsurdIsEmpty]),
    ];
    for (group, faults) in groups {
        // It is the fault that fails, not the backend around it.
        assert!(passes(Fault::None, group));
        for &fault in faults {
            assert!(!passes(fault, group), "{fault:?} was not caught");
        }
    }
}

#[test]
fn batch_dependence_and_loose_products_are_judged_by_expectations() {
    let strict = Expect {
        exact: |_, _| false,
        requantized: 0.0,
        batch_invariant: true,
        ..Expect::default()
    };
    // The host's matrices are exact and its rows independent, so the strictest demands hold.
    ggml_matrices(&HostBackend, &strict);
    let impossible = Expect {
        matmul: |_, _| 0.0,
        ..Expect::default()
    };
    let run = || ggml_matrices(&HostBackend, &impossible);
    assert!(std::panic::catch_unwind(run).is_err());
}

#[test]
fn wrong_products_are_found_by_the_self_check() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let check = |fault| crate::self_check(&Faulty(HostBackend, fault), dtype);
        let forms = check(Fault::None).unwrap();
        let named = |name: &str| forms.iter().any(|check| check.form == name);
        for kind in crate::GgmlKind::ALL {
            assert!(named(kind.name()), "{}", kind.name());
        }
        assert!(named("5 bits, groups of 128") && named("bf16"), "{forms:?}");
        assert!(forms.iter().all(|check| check.error <= check.tolerance));
        for fault in [Fault::LargeProducts, Fault::ProductsWithoutNumbers] {
            let error = check(fault).unwrap_err().to_string();
            assert!(error.contains("faulty multiplies wrongly"), "{error}");
        }
    }
}

#[test]
fn tolerances_follow_the_element_type() {
    assert!(tolerance(DType::F32) < tolerance(DType::F16));
    assert!(tolerance(DType::F16) < tolerance(DType::BF16));
}
