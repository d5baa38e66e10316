//! Answers are understood the same however they come.

use serde_json::Value;

use super::cases::{Case, cases, tools};
use crate::tools::{Delta, ParsedAnswer, ToolFormat, ToolParser};

fn parser(case: &Case) -> ToolParser {
    ToolParser::new(Some(case.format), &tools()).with_reasoning(case.reasoning)
}

/// What comes of an answer in pieces; calls' ids are checked and left out.
fn streamed<'t>(case: &Case, pieces: impl IntoIterator<Item = &'t str>) -> ParsedAnswer {
    let mut parser = parser(case);
    let mut deltas = Vec::new();
    for piece in pieces {
        deltas.extend(parser.feed(piece));
    }
    deltas.extend(parser.finish());
    let mut answer = ParsedAnswer::default();
    for delta in deltas {
        match &delta {
            Delta::CallStart { index, .. } => assert_eq!(*index, answer.calls.len()),
            Delta::CallArguments { index, .. } => assert_eq!(*index + 1, answer.calls.len()),
            _ => {}
        }
        answer.push(delta);
    }
    for call in &mut answer.calls {
        assert!(call.id.len() == 9 && call.id.chars().all(|c| c.is_ascii_alphanumeric()));
        call.id.clear();
    }
    answer
}

fn check(case: &Case, answer: &ParsedAnswer) {
    let text = case.text;
    assert_eq!(answer.content, case.content, "content of {text:?}");
    assert_eq!(answer.reasoning, case.thoughts, "thoughts of {text:?}");
    let calls: Vec<_> = answer
        .calls
        .iter()
        .map(|call| {
            let arguments: Option<Value> = serde_json::from_str(&call.arguments).ok();
            let arguments = arguments.unwrap_or_else(|| call.arguments.clone().into());
            (call.name.as_str(), arguments)
        })
        .collect();
    assert_eq!(calls, case.calls, "calls of {text:?}");
}

#[test]
fn answers_are_taken_apart() {
    for case in cases() {
        check(&case, &streamed(&case, [case.text]));
    }
}

#[test]
fn every_split_gives_what_the_whole_gives() {
    for case in cases() {
        let text = case.text;
        let whole = streamed(&case, [text]);
        for (at, _) in text.char_indices() {
            let (before, after) = text.split_at(at);
            assert_eq!(streamed(&case, [before, after]), whole, "{text:?} at {at}");
        }
        let letters = text.split_inclusive(|_| true);
        assert_eq!(streamed(&case, letters), whole, "{text:?} letter by letter");
    }
}

/// Whatever the format: nothing but white space and a call's own markup is lost, and the halves of a
/// text cut off anywhere are understood alike.
#[test]
fn cut_answers_lose_nothing() {
    for case in cases() {
        for format in ToolFormat::ALL {
            for (at, _) in case.text.char_indices() {
                let cut = Case {
                    format,
                    ..case.with(&case.text[..at])
                };
                let whole = streamed(&cut, [cut.text]);
                let letters = streamed(&cut, cut.text.split_inclusive(|_| true));
                assert_eq!(whole, letters, "{:?} as {format}", cut.text);
                if whole.calls.is_empty() && whole.reasoning.is_empty() {
                    let text = cut.text.replace("<think>", "").replace("</think>", "");
                    let content = whole.content.replace("<think>", "").replace("</think>", "");
                    assert_eq!(content.trim(), text.trim(), "{:?} as {format}", cut.text);
                }
            }
        }
    }
}

#[test]
fn written_calls_are_read_back() {
    let calls = |count: usize| -> Vec<_> {
        let call = |(name, arguments): &(&str, &str)| crate::tools::ToolCall {
            id: String::new(),
            name: (*name).into(),
            arguments: (*arguments).into(),
        };
        [("add", r#"{"a": 1, "b": "x\n\"ü"}"#), ("now", "{}")][..count]
            .iter()
            .map(call)
            .collect()
    };
    for format in ToolFormat::ALL {
        for count in 1..=2 {
            let written = format.write(&calls(count));
            let mut answer = ToolParser::new(Some(format), &tools()).parse(&written);
            answer.calls.iter_mut().for_each(|call| call.id.clear());
            assert_eq!(answer.calls, calls(count), "{format}: {written}");
            assert_eq!(answer.content, "", "{format}: {written}");
        }
    }
}

#[test]
fn arguments_come_before_they_are_complete() {
    let mut parser = ToolParser::new(Some(ToolFormat::Hermes), &tools());
    let first = parser.feed("<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"long");
    assert_eq!(first.len(), 2, "{first:?}");
    let more = parser.feed(" text");
    let fragment = Delta::CallArguments {
        index: 0,
        json_fragment: " text".into(),
    };
    assert_eq!(more, [fragment]);
}

#[test]
fn without_a_format_all_is_text() {
    let text = "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>";
    let answer = ToolParser::new(None, &tools()).parse(text);
    assert_eq!((answer.content.as_str(), answer.calls.len()), (text, 0));
}
