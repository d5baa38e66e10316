//! Grammars in Lark, and the patterns for calls of tools that the module documents.

use super::*;

fn lark(text: &str) -> Constraint {
    Constraint::Lark(text.into())
}

const CALL: &str = r#"{"type": "object", "properties": {"name": {"const": "add"}, "arguments": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false}}, "required": ["name", "arguments"], "additionalProperties": false}"#;

/// The fixture's control token plays the trigger.
const CONTROL: &str = "<|start_header_id|>";

#[test]
fn a_call_must_come_after_a_control_token() {
    let bench = Bench::small();
    let constraint = lark(&format!("start: {CONTROL} %json {CALL}"));
    assert!(bench.takes(
        &constraint,
        &format!(r#"{CONTROL}{{"name":"add","arguments":{{"x":1}}}}"#)
    ));
    assert!(!bench.takes(&constraint, r#"{"name":"add","arguments":{"x":1}}"#));
    assert!(!bench.takes(
        &constraint,
        &format!(r#"{CONTROL}{{"name":"sub","arguments":{{"x":1}}}}"#)
    ));
    // The name as text is not the token.
    let mut state = bench.state(&constraint);
    let first = bench.tokenizer.encode("<", Specials::Plain).unwrap()[0];
    assert!(!state.mask().unwrap().allows(first));
    let id = bench.tokenizer.id_of(CONTROL).unwrap();
    assert_eq!(state.mask().unwrap().iter().collect::<Vec<_>>(), [id]);
    assert_eq!(state.forced().unwrap()[0], id);
}

#[test]
fn a_call_must_come_after_a_text() {
    let bench = Bench::small();
    let constraint = lark(&format!(
        "start: \"<tool_call>\\n\" %json {CALL} \"\\n</tool_call>\""
    ));
    assert!(bench.takes(
        &constraint,
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"x\": -7}}\n</tool_call>"
    ));
    assert!(!bench.takes(
        &constraint,
        "<tool_call>\n{\"name\": \"add\"}\n</tool_call>"
    ));
}

#[test]
fn text_or_calls_with_a_control_token() {
    let bench = Bench::small();
    let constraint = lark(&format!(
        "start: TEXT? call*\ncall: {CONTROL} %json {CALL}\nTEXT: /(.|\\n)+/"
    ));
    let call = format!(r#"{CONTROL}{{"name":"add","arguments":{{"x":1}}}}"#);
    for right in [
        "",
        "Just text.\nMore {\"of\": it}",
        &call,
        &format!("Let me see. {call}"),
        &format!("{call}{call}"),
    ] {
        assert!(bench.takes(&constraint, right), "{right}");
    }
    for wrong in [
        CONTROL,
        &format!("text {CONTROL}"),
        &format!("{CONTROL}{{}}"),
        &format!("{call}text"),
    ] {
        assert!(!bench.takes(&constraint, wrong), "{wrong}");
    }
}

#[test]
fn text_or_calls_with_a_text() {
    for bench in [Some(Bench::small()), Bench::smollm()]
        .into_iter()
        .flatten()
    {
        let constraint = lark(&format!(
            "start: call* last\ncall: before \"\\n\" %json {CALL} \"\\n</tool_call>\"\nbefore[suffix=\"<tool_call>\"]: /(.|\\n)*/\nlast: LAST?\nLAST: ~(/(.|\\n)*/ \"<tool_call>\" /(.|\\n)*/) & /(.|\\n)+/"
        ));
        let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"x\": 12}}\n</tool_call>";
        for right in [
            "",
            "Just text with <tool> and <tool_cal",
            call,
            &format!("Let me see.\n{call}"),
            &format!("{call}\n{call}"),
            &format!("{call} done"),
        ] {
            assert!(bench.takes(&constraint, right), "{right}");
        }
        for wrong in [
            "<tool_call>",
            "text <tool_call>",
            "<tool_call>\n{}\n</tool_call>",
            "<tool_call>\n{\"name\": \"sub\"",
            &format!("{call}<tool_call>"),
        ] {
            assert!(!bench.takes(&constraint, wrong), "{wrong}");
        }
        let mut random = Random(5);
        for _ in 0..10 {
            let mut state = bench.state(&constraint);
            bench
                .tokenizer
                .encode("So: <tool_call>", Specials::Plain)
                .unwrap()
                .into_iter()
                .for_each(|id| state.accept(id).unwrap());
            let text = walk(&bench, &mut state, &mut random, 400).expect("an end");
            let json = text.trim_start().split("\n</tool_call>").next().unwrap();
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!(value["name"], "add", "{text}");
        }
    }
}

#[test]
fn tokens_are_written_as_what_they_are() {
    let bench = Bench::small();
    let id = bench.tokenizer.id_of(CONTROL).unwrap();
    assert_eq!(token(&bench.tokenizer, CONTROL), format!("<[{id}]>"));
    assert_eq!(
        token(&bench.tokenizer, "<tool_\"call>"),
        "\"<tool_\\u0022call>\""
    );
    for name in [CONTROL, "<tool_\"call>\\\n"] {
        let constraint = lark(&format!("start: {} \"x\"", token(&bench.tokenizer, name)));
        assert!(bench.takes(&constraint, &format!("{name}x")), "{name}");
    }
}

#[test]
fn wrong_grammars_are_refused() {
    let bench = Bench::small();
    for (text, what) in [
        ("", "start"),
        ("start: <|nothing|>", "<|nothing|>"),
        ("start: %json {\"not\": {}}", "\"not\""),
        (
            "start: %json {\"x-guidance\": {\"lenient\": true}}",
            "x-guidance",
        ),
        (
            "start: %json {\"$ref\": \"http://example.com\"}",
            "example.com",
        ),
        ("start: %json nonsense", "%json"),
        ("start: %json", "%json"),
        ("start: other", "other"),
        ("start: \"unfinished", "lexer"),
        ("start: /a", "lexer"),
        ("start: <[999999]>", "range"),
        ("start: @other", "other"),
        ("start: start", ""),
    ] {
        let error = match bench.engine.state(&lark(text)) {
            Ok(_) => panic!("{text} is taken"),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Invalid { .. }), "{text} {error:?}");
        assert!(error.to_string().contains(what), "{text} {error}");
        assert!(!error.to_string().contains("panic"), "{text} {error}");
    }
}

#[test]
fn schemas_in_comments_and_literals_are_text() {
    let bench = Bench::small();
    let text = "# %json {\n// <|no|> (((\nstart: \"%json { # <|no|> \\\" (\" X %json {\"enum\": [\"#\", \"//\", \"/\"]} // %json\nX: /%json \\/ <no> \"[(]/";
    let constraint = lark(text);
    assert!(bench.takes(&constraint, "%json { # <|no|> \" (%json / <no> \"(\"//\""));
    let nested = lark("start: \"a\" %lark {\n start: %json {\"type\": \"null\"} \"b\"\n}");
    assert!(bench.takes(&nested, "anullb"));
}
