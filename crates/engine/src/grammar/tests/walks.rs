//! Random answers within the masks: whatever is chosen, the answer is what the constraint says.

use serde_json::{Value, json};

use super::*;

#[derive(Debug, Default)]
struct Counts {
    schemas: usize,
    refused: usize,
    answers: usize,
    endless: usize,
}

fn long() -> bool {
    std::env::var_os("BIPLANE_TEST_LONG").is_some()
}

/// Walks random schemas; what ends must validate.
fn random_schemas(bench: &Bench, seed: u64, schemas: usize) -> Counts {
    let mut random = Random(seed);
    let mut counts = Counts::default();
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..schemas {
        let schema = generate::schema(&mut random);
        counts.schemas += 1;
        let mut state = match bench.engine.state(&Constraint::JsonSchema(schema.clone())) {
            Ok(state) => state,
            Err(error @ (Error::Invalid { .. } | Error::TooLarge { .. })) => {
                counts.refused += 1;
                let text: String = error.to_string().chars().take(100).collect();
                *reasons.entry(text).or_default() += 1;
                continue;
            }
            Err(other) => panic!("{other}: {schema}"),
        };
        let Some(text) = walk(bench, &mut state, &mut random, 600) else {
            counts.endless += 1;
            println!("no end: {schema}");
            continue;
        };
        check(&schema, &text);
        counts.answers += 1;
    }
    println!("{counts:?} {reasons:#?}");
    counts
}

fn check(schema: &Value, text: &str) {
    let value: Value = match serde_json::from_str(text) {
        // A number may have any exponent.
        Err(e) if e.to_string().contains("number out of range") => return,
        parsed => parsed.unwrap_or_else(|e| panic!("{e}: {text:?} of {schema}")),
    };
    let validator = jsonschema::draft202012::options()
        .should_validate_formats(true)
        .build(schema)
        .unwrap();
    if let Err(error) = validator.validate(&value) {
        panic!("{error}: {text} of {schema}");
    }
}

#[test]
fn answers_to_random_schemas_validate() {
    let n = if long() { 10_000 } else { 500 };
    let counts = random_schemas(&Bench::small(), 0x1234_5678_9ABC_DEF1, n);
    // Most are schemas that are supported, and most answers come to an end.
    assert!(counts.answers * 10 > counts.schemas * 7, "{counts:?}");
    assert!(counts.endless * 20 < counts.schemas, "{counts:?}");
}

#[test]
fn answers_in_real_vocabularies_validate() {
    for bench in [Bench::smollm(), Bench::gemma()].into_iter().flatten() {
        let n = if long() { 1000 } else { 60 };
        let counts = random_schemas(&bench, 0xFEDC_BA98_7654_3211, n);
        assert!(counts.answers * 10 > counts.schemas * 7, "{counts:?}");
    }
}

#[test]
fn any_json_is_json() {
    let bench = Bench::small();
    let mut random = Random(99);
    for (constraint, schema) in [
        (Constraint::JsonObject, json!({"type": "object"})),
        (Constraint::JsonSchema(json!(true)), json!(true)),
        (Constraint::JsonSchema(json!({})), json!({})),
    ] {
        for _ in 0..40 {
            let mut state = bench.state(&constraint);
            let text = walk(&bench, &mut state, &mut random, 600).expect("an end");
            check(&schema, &text);
        }
    }
}
