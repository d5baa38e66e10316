//! Each constraint's form, and what is refused.

use serde_json::json;

use super::*;

fn schema(value: Value) -> Constraint {
    Constraint::JsonSchema(value)
}

#[test]
fn choices_are_literal_and_whole() {
    let bench = Bench::small();
    let texts = [
        "a",
        "ab",
        "a.c",
        "x\"y\\z\n",
        "日本 🙂",
        "\u{7f}\t",
        "<|eot_id|>",
    ];
    let choice = Constraint::Choice(texts.map(str::to_owned).to_vec());
    for text in &texts[..6] {
        assert!(bench.takes(&choice, text), "{text:?}");
    }
    for text in ["", "abc", "aXc", "b", "x\"y\\z", "日本 "] {
        assert!(!bench.takes(&choice, text), "{text:?}");
    }
    // A control token's name is text here, and the control token itself is not it.
    assert!(!bench.takes(&choice, "<|eot_id|>"));
    let mut state = bench.state(&choice);
    let plain = bench
        .tokenizer
        .encode("<|eot_id|>", Specials::Plain)
        .unwrap();
    plain.into_iter().for_each(|id| state.accept(id).unwrap());
    assert!(state.is_finished());
    for wrong in [vec![], vec![String::new()], vec!["a".into(), String::new()]] {
        assert!(
            bench
                .error(&Constraint::Choice(wrong))
                .contains("one or more texts")
        );
    }
}

#[test]
fn regular_expressions_match_the_whole_text() {
    let bench = Bench::small();
    for pattern in ["[a-c]+x?", "^[a-c]+x?$"] {
        let regex = Constraint::Regex(pattern.into());
        for (text, right) in [
            ("abc", true),
            ("ax", true),
            ("abxx", false),
            ("x", false),
            ("", false),
        ] {
            assert_eq!(bench.takes(&regex, text), right, "{pattern} {text:?}");
        }
    }
    let price = Constraint::Regex(r"\$".into());
    assert!(bench.takes(&price, "$"));
    let slashes = Constraint::Regex("a/b\nc|^x$".into());
    assert!(bench.takes(&slashes, "a/b\nc") && bench.takes(&slashes, "x"));
    for wrong in ["", "^$", "(", "(?=a)b", r"(a)\1", "a{3,1}"] {
        let error = bench
            .engine
            .state(&Constraint::Regex(wrong.into()))
            .unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{wrong} {error}");
    }
}

#[test]
fn the_end_is_the_models_stop_token_and_nothing_else() {
    let bench = Bench::small();
    assert!(bench.stops.len() > 1);
    let mut state = bench.state(&Constraint::Regex("ab+".into()));
    let [a, b] = ["a", "b"].map(|t| bench.tokenizer.encode(t, Specials::Plain).unwrap()[0]);
    state.accept(a).unwrap();
    state.accept(b).unwrap();
    // More may come, or the end.
    assert!(!state.is_finished() && state.may_end().unwrap());
    let mask = state.mask().unwrap().clone();
    assert!(mask.allows(b) && bench.stops.iter().all(|id| mask.allows(*id)));
    state.accept(bench.stops[0]).unwrap();
    assert!(state.is_finished());
    for (constraint, text) in [
        (Constraint::Choice(vec!["ab".into()]), "ab"),
        (
            schema(
                json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": false}),
            ),
            "{\"a\":null}",
        ),
        (Constraint::JsonObject, "{}"),
    ] {
        let mut state = bench.state(&constraint);
        for id in bench.tokenizer.encode(text, Specials::Plain).unwrap() {
            assert!(!state.is_finished());
            state.accept(id).unwrap();
        }
        assert!(state.is_finished(), "{text}");
        let ids: Vec<u32> = state.mask().unwrap().iter().collect();
        assert_eq!(ids, bench.stops);
        assert!(state.forced().unwrap().is_empty());
    }
}

#[test]
fn a_token_that_does_not_fit_is_refused() {
    let bench = Bench::small();
    let mut state = bench.state(&Constraint::JsonObject);
    let id = bench.tokenizer.encode("x", Specials::Plain).unwrap()[0];
    assert_eq!(state.accept(id), Err(Error::Refused { id }));
    let mut state = bench.state(&Constraint::JsonObject);
    assert!(state.accept(1 << 30).is_err());
}

#[test]
fn whitespace_is_bounded() {
    let bench = Bench::small();
    let pretty = "{\n  \"a\": [\n    1,\n    2\n  ]\n}";
    assert!(bench.takes(&Constraint::JsonObject, pretty));
    assert!(bench.takes(&Constraint::JsonObject, "{\"a\":1, \"b\": 2}"));
    let newline = bench.tokenizer.encode("\n", Specials::Plain).unwrap()[0];
    let space = (0..)
        .find(|id| bench.tokenizer.token_bytes(*id) == Some(b" "))
        .unwrap();
    let mut state = bench.state(&Constraint::JsonObject);
    state
        .accept(bench.tokenizer.encode("{", Specials::Plain).unwrap()[0])
        .unwrap();
    state.accept(newline).unwrap();
    let mut n = 0;
    while state.mask().unwrap().allows(space) {
        state.accept(space).unwrap();
        n += 1;
        assert!(n < 100);
    }
    assert!(n > 8 && !state.mask().unwrap().allows(newline));
    // None before the beginning, none after the end.
    assert!(!bench.takes(&Constraint::JsonObject, " {}"));
    assert!(!bench.takes(&Constraint::JsonObject, "{} "));
}

#[test]
fn what_schemas_cannot_have_is_named() {
    let bench = Bench::small();
    for (bad, what) in [
        (json!({"not": {"type": "string"}}), "\"not\""),
        (
            json!({"type": "object", "properties": {"a": {"if": {}}}}),
            "\"if\"",
        ),
        (
            json!({"type": "array", "uniqueItems": true}),
            "\"uniqueItems\"",
        ),
        (json!({"$defs": {"a": {"contains": {}}}}), "\"contains\""),
        (json!({"type": "string", "format": "color"}), "color"),
        (json!({"$ref": "https://example.com/schema"}), "example.com"),
        (json!({"$ref": "other.json"}), "other.json"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"type": "strange"}), "strange"),
        (json!({"x-guidance": {"lenient": true}}), "x-guidance"),
        (json!({"const": 9007199254740993u64}), "9007199254740993"),
        (json!(false), "must be an object"),
        (json!([]), "a schema is"),
        (json!({"type": "string", "pattern": "("}), "regex"),
        (
            json!({"type": "string", "minLength": 3, "maxLength": 2}),
            "nothing fulfils it",
        ),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}]}),
            "oneOf",
        ),
        // Reached only by a reference: found all the same.
        (json!({"$ref": "#/x/y", "x": {"y": {"not": {}}}}), "not"),
        (
            json!({"$ref": "#/x/y", "x": {"y": {"$ref": "http://example.com"}}}),
            "example.com",
        ),
    ] {
        let error = match bench.engine.state(&schema(bad.clone())) {
            Ok(_) => panic!("{bad} is taken"),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Invalid { .. }), "{bad} {error:?}");
        assert!(error.to_string().contains(what), "{bad} {error}");
    }
}

#[test]
fn what_schemas_may_have_is_no_hindrance() {
    let bench = Bench::small();
    let constraint = schema(json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "title": "T", "$id": "https://example.com/t",
        "type": "object", "deprecated": false,
        "properties": {
            "uniqueItems": {"type": "array", "uniqueItems": false, "items": {"type": "integer", "maximum": 9223372036854775807u64}},
            "if": {"$ref": "#/definitions/b"},
            "$ref": {"type": "boolean", "default": {"not": 1}}
        },
        "required": ["uniqueItems", "if"], "additionalProperties": false,
        "definitions": {"b": {"type": "string", "enum": ["x", "y"]}}
    }));
    assert!(bench.takes(&constraint, r#"{"uniqueItems":[1,1],"if":"x"}"#));
    assert!(bench.takes(&constraint, r#"{"uniqueItems":[],"if":"y","$ref":true}"#));
    assert!(!bench.takes(&constraint, r#"{"uniqueItems":[],"if":"z"}"#));
    assert!(!bench.takes(&constraint, r#"{"if":"x"}"#));
}

#[test]
fn bounds_beyond_the_parsers_numbers_move_inwards() {
    let bench = Bench::small();
    for (bounds, right, wrong) in [
        (
            json!({"type": "integer", "minimum": 0, "maximum": u64::MAX}),
            "9223372036854774784",
            "-1",
        ),
        (
            json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX}),
            "-5",
            "9223372036854775808",
        ),
        (
            json!({"type": "number", "minimum": -1e300, "exclusiveMaximum": 1e300}),
            "-5.5",
            "\"\"",
        ),
        (
            json!({"type": "integer", "maximum": (1u64 << 53) + 1}),
            "9007199254740991",
            "9007199254740994",
        ),
        (
            json!({"type": "integer", "minimum": -(1i64 << 53) - 1}),
            "-9007199254740991",
            "-9007199254740994",
        ),
    ] {
        assert!(
            bench.takes(&schema(bounds.clone()), right),
            "{bounds} {right}"
        );
        assert!(
            !bench.takes(&schema(bounds.clone()), wrong),
            "{bounds} {wrong}"
        );
    }
}

#[test]
fn a_text_that_the_vocabulary_cannot_spell_is_an_error() {
    let small = Bench::small();
    // Without the tokens of most bytes.
    let engine = GrammarEngine::new(Arc::clone(&small.tokenizer), &small.stops, 110).unwrap();
    let a = small.tokenizer.encode("a", Specials::Plain).unwrap()[0];
    assert!(a < 110);
    let error = engine
        .state(&Constraint::Choice(vec!["€".into()]))
        .unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    let mut state = engine.state(&Constraint::Regex("[ab]€".into())).unwrap();
    state.accept(a).unwrap();
    let forced = state.forced();
    assert!(forced.as_ref().map_or(true, Vec::is_empty), "{forced:?}");
    assert_eq!(state.mask().unwrap_err(), Error::Stuck);
}

#[test]
fn forced_text_is_written_as_the_tokenizer_writes_it() {
    for bench in [Some(Bench::small()), Bench::smollm(), Bench::gemma()]
        .into_iter()
        .flatten()
    {
        let long = "the only thing that may be said";
        let mut state = bench.state(&Constraint::Choice(vec![long.into()]));
        let mut ids = Vec::new();
        while !state.is_finished() {
            let forced = state.forced().unwrap();
            assert!(!forced.is_empty(), "{ids:?}");
            for id in forced {
                state.accept(id).unwrap();
                ids.push(id);
            }
        }
        let want = bench.tokenizer.encode(long, Specials::Plain).unwrap();
        assert_eq!(ids, want);
    }
}

#[test]
fn logits_may_be_wider_or_narrower_than_the_vocabulary() {
    let small = Bench::small();
    let size = small.tokenizer.vocab_size();
    for width in [size, size + 1, size + 700, size - 100] {
        let engine = GrammarEngine::new(Arc::clone(&small.tokenizer), &small.stops, width).unwrap();
        let mut state = engine.state(&Constraint::Regex("(.|\n)*".into())).unwrap();
        let most = state.mask().unwrap().iter().max().unwrap() as usize;
        assert!(
            most < size.min(width) && most + 60 > size.min(width),
            "{most} {width}"
        );
    }
    let error = GrammarEngine::new(Arc::clone(&small.tokenizer), &[], 0)
        .err()
        .unwrap();
    assert!(matches!(error, Error::Vocabulary { .. }));
    // Without a stop token the end is still known.
    let engine = GrammarEngine::new(Arc::clone(&small.tokenizer), &[], size).unwrap();
    let mut state = engine.state(&Constraint::Choice(vec!["a".into()])).unwrap();
    let id = state.mask().unwrap().iter().next().unwrap();
    state.accept(id).unwrap();
    assert!(state.is_finished());
}

#[test]
fn constraints_are_compiled_once_and_kept_within_bounds() {
    let bench = Bench::small();
    let choice = |i: usize| Constraint::Choice(vec![format!("{i}")]);
    for _ in 0..3 {
        bench.state(&choice(1));
    }
    assert_eq!(bench.engine.kept(), 1);
    // States are independent of each other.
    let (mut a, mut b) = (bench.state(&choice(77)), bench.state(&choice(77)));
    let id = a.mask().unwrap().iter().next().unwrap();
    a.accept(id).unwrap();
    assert!(b.mask().unwrap().allows(id));
    let mut cache = cache::Cache::new(1000);
    for i in 0..100 {
        let parser = llguidance::Matcher::new(Err(llguidance_error()));
        cache.put(format!("{i}"), parser, 298);
        assert!(cache.len() <= 3);
    }
    assert!(cache.get("99").is_some() && cache.get("98").is_some() && cache.get("0").is_none());
    cache.put(
        "large".into(),
        llguidance::Matcher::new(Err(llguidance_error())),
        2000,
    );
    assert!(cache.get("large").is_none() && cache.get("99").is_some());
}

fn llguidance_error() -> anyhow::Error {
    anyhow::anyhow!("nothing")
}
