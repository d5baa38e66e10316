//! Events are understood alike however the text is cut.

use crate::{
    Event, FinishReason, Timings,
    chat::{ChatEvent, ChatFinish, reader::Reader},
    tools::{ParsedAnswer, Reasoning, ReasoningTags, ToolDefinition, ToolFormat, ToolParser},
};

fn reader(markers: &[&str]) -> Reader {
    let tools = [ToolDefinition::new(
        "add",
        serde_json::json!({"type": "object"}),
    )];
    let think = ReasoningTags::detect("</think>").unwrap();
    let parser = ToolParser::new(Some(ToolFormat::Hermes), &tools);
    let parser = parser.with_reasoning(Reasoning::Possible(think));
    Reader::new(parser, markers.iter().map(|m| (*m).to_owned()).collect())
}

fn read<'t>(
    mut reader: Reader,
    pieces: impl Iterator<Item = &'t str>,
    reason: FinishReason,
) -> (ParsedAnswer, ChatFinish) {
    let mut answer = ParsedAnswer::default();
    for (id, piece) in pieces.enumerate() {
        let event = reader.read(Event::Token {
            id: id as u32,
            text: piece.into(),
            logprobs: None,
        });
        let Some(ChatEvent::Token { deltas, .. }) = event else {
            panic!("{event:?}");
        };
        deltas.into_iter().for_each(|delta| answer.push(delta));
    }
    let end = reader.read(Event::Done {
        text: String::new(),
        reason,
        timings: Timings::default(),
    });
    let Some(ChatEvent::Done { deltas, reason, .. }) = end else {
        panic!("{end:?}");
    };
    deltas.into_iter().for_each(|delta| answer.push(delta));
    answer.calls.iter_mut().for_each(|call| call.id.clear());
    (answer, reason)
}

const ANSWERS: [&str; 5] = [
    "<think>\nHm.\n</think>\n\nIt is 3 < 4 </tool_call> so.",
    "Let me.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>",
    "<tool_call>add(1)</tool_call> fails",
    "a </tool",
    "no marks at all",
];

#[test]
fn streamed_is_whole() {
    let markers = ["<tool_call>", "</tool_call>", "<think>", "</think>"];
    for text in ANSWERS {
        let whole = read(reader(&markers), [text].into_iter(), FinishReason::Stop);
        let letters = text.split_inclusive(|_| true);
        assert_eq!(
            read(reader(&markers), letters, FinishReason::Stop),
            whole,
            "{text}"
        );
        for (at, _) in text.char_indices() {
            let halves = [&text[..at], &text[at..]];
            let halved = read(reader(&markers), halves.into_iter(), FinishReason::Stop);
            assert_eq!(halved, whole, "{text} at {at}");
        }
    }
}

#[test]
fn control_tokens_are_not_for_the_reader() {
    let text = |markers: &[&str], text: &str| {
        let (answer, _) = read(reader(markers), [text].into_iter(), FinishReason::Stop);
        answer.content
    };
    let broken = "<tool_call>add(1)</tool_call> fails";
    assert_eq!(
        text(&["<tool_call>", "</tool_call>"], broken),
        "add(1) fails"
    );
    // As letters they are text.
    assert_eq!(text(&[], broken), broken);
    assert_eq!(text(&["</tool_call>"], "a </tool"), "a </tool");
}

#[test]
fn an_answer_that_calls_waits_for_results() {
    let finish = |text: &str, reason| read(reader(&[]), [text].into_iter(), reason).1;
    assert_eq!(
        finish(ANSWERS[1], FinishReason::Stop),
        ChatFinish::ToolCalls
    );
    assert_eq!(finish(ANSWERS[1], FinishReason::Length), ChatFinish::Length);
    assert_eq!(finish("Hi", FinishReason::Stop), ChatFinish::Stop);
    let stop = FinishReason::StopText("X".into());
    assert_eq!(finish("Hi", stop), ChatFinish::StopText("X".into()));
}

#[test]
fn tokens_of_reasoning_are_counted() {
    let thought = |pieces: &[&str]| {
        let mut reader = reader(&["<think>", "</think>"]);
        for piece in pieces {
            reader.read(Event::Token {
                id: 0,
                text: (*piece).into(),
                logprobs: None,
            });
        }
        let end = reader.read(Event::Done {
            text: String::new(),
            reason: FinishReason::Length,
            timings: Timings::default(),
        });
        match end {
            Some(ChatEvent::Done { timings, .. }) => timings.reasoning_tokens,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(thought(&["It", " is", " so"]), 0);
    let marked = ["<think>", "Hm", ",", " well", "</think>", "It", " is"];
    assert_eq!(thought(&marked), 4);
    // Marks in pieces, and reasoning that never ends.
    assert_eq!(thought(&["<th", "ink>", "Hm", "</th", "ink>", "It"]), 3);
    assert_eq!(thought(&["<think>", "Hm", ", so"]), 3);
    let call = "{\"name\": \"add\", \"arguments\": {}}";
    let calls = [
        "<think>",
        "Hm",
        "</think>",
        "<tool_call>",
        call,
        "</tool_call>",
    ];
    assert_eq!(thought(&calls), 2);
}
