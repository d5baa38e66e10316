//! What would bring a parser down is refused in time, and the process lives. These threads have 2 MiB of
//! stack, as the engine's thread at its smallest.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

/// Compiles, or says why not; a few tokens of what compiles are chosen.
fn survive(bench: &Bench, name: &str, constraint: &Constraint) -> Option<Error> {
    let start = Instant::now();
    let result = bench.engine.state(constraint);
    println!(
        "{name}: {:?} {:?}",
        start.elapsed(),
        result.as_ref().err().map(ToString::to_string)
    );
    // The deadline is two seconds; the rest is the machine's.
    assert!(start.elapsed() < Duration::from_secs(10), "{name}");
    match result {
        Ok(mut state) => {
            let mut random = Random(7);
            for _ in 0..60 {
                if state.is_finished() {
                    break;
                }
                let Ok(mask) = state.mask() else { break };
                let ids: Vec<u32> = mask.iter().collect();
                let id = *random.pick(&ids);
                if bench.stops.contains(&id) || state.accept(id).is_err() {
                    break;
                }
            }
            None
        }
        Err(error) => Some(error),
    }
}

fn too_large(bench: &Bench, name: &str, constraint: &Constraint) {
    let error = survive(bench, name, constraint);
    assert!(
        matches!(error, Some(Error::TooLarge { .. })),
        "{name} {error:?}"
    );
}

fn chain(links: usize, link: impl Fn(usize) -> Value) -> Value {
    let mut defs = serde_json::Map::new();
    for i in 0..links {
        defs.insert(format!("d{i}"), link(i + 1));
    }
    defs.insert(format!("d{links}"), json!({"type": "null"}));
    json!({"$ref": "#/$defs/d0", "$defs": defs})
}

#[test]
fn chains_of_references() {
    let bench = Bench::small();
    let to = |i: usize| format!("#/$defs/d{i}");
    type Link<'a> = &'a dyn Fn(usize) -> Value;
    let links: [(&str, Link<'_>); 5] = [
        ("plain", &|i| json!({"$ref": to(i)})),
        (
            "any",
            &|i| json!({"anyOf": [{"$ref": to(i)}, {"type": "string"}]}),
        ),
        (
            "all",
            &|i| json!({"allOf": [{"$ref": to(i)}], "title": "t"}),
        ),
        (
            "property",
            &|i| json!({"type": "object", "properties": {"a": {"$ref": to(i)}}}),
        ),
        (
            "sibling",
            &|i| json!({"$ref": to(i), "type": ["null", "string"]}),
        ),
    ];
    for (name, link) in links {
        let error = survive(&bench, name, &Constraint::JsonSchema(chain(60, link)));
        assert!(error.is_none(), "{name} {error:?}");
        too_large(&bench, name, &Constraint::JsonSchema(chain(300, link)));
    }
}

#[test]
fn nesting() {
    let bench = Bench::small();
    let mut schema = json!({"type": "null"});
    for _ in 0..10_000 {
        schema = Value::Object([("items".to_owned(), schema)].into_iter().collect());
    }
    // A schema from a file could not be as deep; one from a program can.
    let constraint = Constraint::JsonSchema(schema);
    too_large(&bench, "deep", &constraint);
    let Constraint::JsonSchema(mut schema) = constraint else {
        unreachable!()
    };
    while let Some(inner) = schema.get_mut("items").map(Value::take) {
        schema = inner;
    }
    let mut flat = json!({"type": "string"});
    for _ in 0..28 {
        flat = json!({"anyOf": [flat, {"type": "null"}]});
    }
    assert_eq!(
        survive(&bench, "nested anyOf", &Constraint::JsonSchema(flat)),
        None
    );
    let many: Vec<_> = (0..3000).map(|i| json!({"const": i})).collect();
    too_large(
        &bench,
        "wide",
        &Constraint::JsonSchema(json!({"anyOf": many})),
    );
    too_large(
        &bench,
        "long",
        &Constraint::JsonSchema(json!({"const": "x".repeat(100_000)})),
    );
    for (open, close) in [("(", ")"), ("[", "]"), ("(?:a|", ")*"), ("((", ")+)+")] {
        let text = format!("{}a{}", open.repeat(10_000), close.repeat(10_000));
        too_large(&bench, "regex", &Constraint::Regex(text.clone()));
        too_large(
            &bench,
            "lark",
            &Constraint::Lark(format!(
                "start: {}\"a\"{}",
                "(".repeat(9000),
                ")".repeat(9000)
            )),
        );
        too_large(
            &bench,
            "lark regex",
            &Constraint::Lark(format!("start: /{text}/")),
        );
    }
}

#[test]
fn combinations_multiply() {
    let bench = Bench::small();
    let names: serde_json::Map<String, Value> = (0..200)
        .map(|i| (format!("p{i}"), json!({"type": "string"})))
        .collect();
    for option in [json!({}), json!({"type": "object"}), json!({"title": "x"})] {
        let options = vec![option; 200];
        too_large(
            &bench,
            "allOf of oneOf",
            &Constraint::JsonSchema(
                json!({"type": "object", "properties": names, "allOf": [{"oneOf": options}, {"anyOf": options}, {"oneOf": options}]}),
            ),
        );
    }
    let doubled = chain(
        50,
        |i| json!({"allOf": [{"anyOf": [{"$ref": format!("#/$defs/d{i}")}, {"type": "string"}]}, {"anyOf": [{"$ref": format!("#/$defs/d{i}")}, {"type": "null"}]}]}),
    );
    too_large(&bench, "doubling", &Constraint::JsonSchema(doubled));
}

#[test]
fn numbers_without_measure() {
    let bench = Bench::small();
    for schema in [
        json!({"type": "array", "items": {"type": "null"}, "minItems": 1_000_000_000u64}),
        json!({"type": "array", "maxItems": u64::MAX}),
        json!({"type": "array", "prefixItems": [true], "minItems": u64::MAX, "maxItems": u64::MAX}),
        json!({"type": "string", "minLength": 1_000_000_000u64}),
        json!({"type": "string", "maxLength": u64::MAX}),
        json!({"type": "string", "pattern": "^(a{1000}){1000}$"}),
        json!({"type": "string", "pattern": "(.*a){50}b(.*c){50}"}),
        json!({"type": "object", "minProperties": 1_000_000_000u64}),
        json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX}),
        json!({"type": "integer", "multipleOf": 4_000_000_007u64}),
        json!({"type": "number", "multipleOf": 1e-300}),
        json!({"type": "number", "minimum": 1e300, "maximum": -1e300}),
    ] {
        survive(
            &bench,
            &schema.to_string(),
            &Constraint::JsonSchema(schema.clone()),
        );
    }
}

#[test]
fn regular_expressions_without_measure() {
    let bench = Bench::small();
    for regex in [
        "(a{1000}){1000}".to_owned(),
        "((((a{100}){100}){100}){100}){100}".into(),
        "(a|b)*a(a|b){5000}".into(),
        "(.*x){200}".into(),
        "[ab][cd]".repeat(8000),
        "(ab|cd)".repeat(8000),
        "a|".repeat(30_000) + "b",
        "a?".repeat(5000) + &"a".repeat(5000),
        "\\p{L}{1,1000}\\p{Lu}{1,1000}".into(),
        "x".repeat(60_000),
    ] {
        let name: String = regex.chars().take(30).collect();
        survive(&bench, &name, &Constraint::Regex(regex.clone()));
    }
}

#[test]
fn grammars_without_measure() {
    let bench = Bench::small();
    let rules = |n: usize| {
        let chain: String = (0..n).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
        format!("start: r0\n{chain}r{n}: \"x\"\n")
    };
    assert_eq!(
        survive(&bench, "rules", &Constraint::Lark(rules(300))),
        None
    );
    assert_eq!(
        survive(&bench, "many rules", &Constraint::Lark(rules(1500))),
        None
    );
    too_large(&bench, "too many rules", &Constraint::Lark(rules(3000)));
    let tokens: String = (0..900)
        .map(|i| format!("T{i}: T{} | \"b\"\n", i + 1))
        .collect();
    for text in [
        "start: a\na: a a | \"x\"".to_owned(),
        "start: a*\na: b*\nb: a* \"x\"?".into(),
        "start: (\"a\"*)*".into(),
        "start: ((\"a\"?)*)*".into(),
        "start: e e e e e e\ne: e e | \"a\" | ".into(),
        "start: \"a\"~1..1000000000".into(),
        "start: ((\"a\"~1..1000)~1..1000)~1..1000".into(),
        "start: s\ns: \"(\" s \")\" | s s |".into(),
        format!("start: T0\n{tokens}T900: \"x\""),
        format!("start: {}", "\"a\"? ".repeat(1500)),
        format!("start: {}", "/a*/ ".repeat(1500)),
        format!("start: x\nx: {} \"b\"", "x? ".repeat(500)),
        format!(
            "start: %json {}",
            chain(60, |i| json!({"$ref": format!("#/$defs/d{i}")}))
        ),
    ] {
        let name: String = text.chars().take(40).collect();
        survive(&bench, &name, &Constraint::Lark(text.clone()));
    }
    too_large(
        &bench,
        "schema in a grammar",
        &Constraint::Lark(format!(
            "start: %json {}",
            chain(300, |i| json!({"$ref": format!("#/$defs/d{i}")}))
        )),
    );
}

#[test]
fn long_answers_run_on_a_small_stack() {
    let bench = Bench::small();
    let open = bench.tokenizer.encode("[", Specials::Plain).unwrap()[0];
    let mut state = bench.state(&Constraint::JsonSchema(json!(true)));
    for _ in 0..20_000 {
        assert!(state.mask().unwrap().allows(open));
        state.accept(open).unwrap();
    }
}
