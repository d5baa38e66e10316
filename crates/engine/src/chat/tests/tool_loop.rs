//! Answers whose calls are not all run here, from a stream that is written by hand.

use super::*;
use crate::{ModelBuilder, Tool, ToolDefinition};

/// What a reader is given for one answer that calls `add`, which is run here, and `weather`.
fn given(show_calls: bool) -> Vec<ChatEvent> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/llama/mlx-4bit"
    );
    let model = ModelBuilder::new(folder).build_blocking().unwrap();
    let tools = ToolBox::new();
    tools.add(Tool::new("add", |a: f64, b: f64| a + b)).unwrap();
    let setting = ToolLoop::new(
        tools,
        ToolConfig {
            show_calls,
            ..ToolConfig::default()
        },
    );
    let mut chat = ChatRequest::new([Message::new("user", "both")]);
    chat.tools = setting.tools.definitions();
    let empty = serde_json::json!({"type": "object"});
    chat.tools.push(ToolDefinition::new("weather", empty));
    let (written, events) = mpsc::channel(EVENTS);
    let (out, mut read) = mpsc::channel(EVENTS);
    let call = |index, name: &str| {
        let begin = Delta::CallStart {
            index,
            id: name.into(),
            name: name.into(),
        };
        let json_fragment = "{}".into();
        [
            begin,
            Delta::CallArguments {
                index,
                json_fragment,
            },
        ]
    };
    let deltas = [call(0, "add"), call(1, "weather"), call(2, "add")].concat();
    let done = ChatEvent::Done {
        deltas,
        reason: ChatFinish::ToolCalls,
        timings: Timings::default(),
    };
    written.try_send(done).unwrap();
    let rounds = Rounds {
        setting,
        model,
        chat,
        out,
        calls: 0,
        said: false,
        total: None,
    };
    futures::executor::block_on(rounds.run(ChatStream::of_loop(events))).unwrap();
    std::iter::from_fn(|| read.try_recv().ok()).collect()
}

#[test]
fn a_reader_is_given_its_own_calls_and_told_of_the_others() {
    let events = given(false);
    let [
        ChatEvent::ToolResult(first),
        ChatEvent::ToolResult(second),
        ChatEvent::Done { deltas, reason, .. },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    for run in [first, second] {
        assert_eq!(run.call.name, "add");
        let reason = run.result.as_ref().unwrap_err();
        assert!(
            reason.contains("not run: the answer has other calls"),
            "{reason}"
        );
    }
    assert_eq!(*reason, ChatFinish::ToolCalls);
    let [
        Delta::CallStart { index: 0, name, .. },
        Delta::CallArguments { index: 0, .. },
    ] = &deltas[..]
    else {
        panic!("{deltas:?}");
    };
    assert_eq!(name, "weather");
}

#[test]
fn all_calls_are_given_where_all_are_shown() {
    let events = given(true);
    let [ChatEvent::Done { deltas, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(deltas.len(), 6);
}
