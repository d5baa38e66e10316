//! What cannot be asked is refused by name.

use serde_json::json;

use crate::{
    ChatMessage, ChatRequest, Constraint, Dry, Message, Request, RequestBuilder, SamplingChanges,
    SamplingParams,
    tools::{ToolChoice, ToolDefinition},
};

fn asked() -> ChatRequest {
    ChatRequest::new([Message::new("user", "Hi")])
}

fn tool(name: &str) -> ToolDefinition {
    ToolDefinition::new(name, json!({"type": "object"}))
}

#[test]
fn wrong_requests_are_named() {
    let message = |content| ChatRequest {
        messages: vec![Message {
            role: "user".into(),
            content,
            ..Message::default()
        }],
        ..ChatRequest::default()
    };
    let image =
        json!([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]);
    let cases: Vec<(ChatRequest, &[&str])> = vec![
        (ChatRequest::default(), &["messages is empty"]),
        (message(image), &["messages[0].content[1]", "image_url"]),
        (message(json!(3)), &["messages[0].content", "a number"]),
        (
            message(json!([{"type": "text"}])),
            &["messages[0].content[0].text"],
        ),
        (
            ChatRequest {
                messages: vec![Message {
                    tool_calls: vec![json!({"name": "add"})],
                    ..Message::new("assistant", "")
                }],
                ..ChatRequest::default()
            },
            &["messages[0].tool_calls[0]", "function"],
        ),
        (
            ChatRequest {
                tools: vec![tool("a b")],
                ..asked()
            },
            &["tools[0].name", "\"a b\""],
        ),
        (
            ChatRequest {
                tools: vec![tool("a"), tool("a")],
                ..asked()
            },
            &["tools[1].name", "\"a\""],
        ),
        (
            ChatRequest {
                tools: vec![ToolDefinition::new("a", json!({"type": "array"}))],
                ..asked()
            },
            &["tools[0].parameters"],
        ),
        (
            ChatRequest {
                tools: vec![tool("add")],
                tool_choice: ToolChoice::Named("sub".into()),
                ..asked()
            },
            &["tool_choice", "\"sub\"", "add"],
        ),
        (
            ChatRequest {
                tool_choice: ToolChoice::Required,
                ..asked()
            },
            &["tool_choice", "no tools"],
        ),
        (
            ChatRequest {
                tools: vec![tool("add")],
                tool_choice: ToolChoice::Required,
                generation: Request {
                    constraint: Some(Constraint::JsonObject),
                    ..Request::default()
                },
                ..asked()
            },
            &["tool_choice", "generation.constraint"],
        ),
        (
            ChatRequest {
                add_generation_prompt: false,
                ..asked()
            },
            &["add_generation_prompt"],
        ),
        (
            ChatRequest {
                generation: Request::new(vec![1]),
                ..asked()
            },
            &["generation.tokens"],
        ),
        (
            ChatRequest {
                generation: Request {
                    prompt_logprobs: Some(1),
                    ..Request::default()
                },
                ..asked()
            },
            &["generation.prompt_logprobs"],
        ),
    ];
    for (request, words) in cases {
        let error = request.validate().unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word} is not in {error:?}");
        }
    }
    let schema_without_type = ToolDefinition::new("a", json!({"properties": {}}));
    let good = ChatRequest {
        tools: vec![tool("b"), schema_without_type],
        ..asked()
    };
    good.validate().unwrap();
}

#[test]
fn messages_become_requests() {
    let from = |request: ChatRequest| (request.messages, request.sampling);
    let user = (
        vec![Message::new("user", "Hi")],
        Some(SamplingChanges::default()),
    );
    assert_eq!(from("Hi".into()), user);
    assert_eq!(from(vec![ChatMessage::User("Hi".into())].into()), user);
    assert_eq!(from(vec![Message::new("user", "Hi")].into()), user);
    let tool = ChatMessage::Tool {
        call_id: "x".into(),
        content: "3".into(),
    };
    let tool: Message = tool.into();
    assert_eq!(
        (tool.role.as_str(), tool.tool_call_id.as_deref()),
        ("tool", Some("x"))
    );
}

#[test]
fn the_builder_changes_what_is_recommended_or_its_own() {
    let recommended = SamplingParams {
        temperature: 0.6,
        top_p: 0.9,
        ..SamplingParams::default()
    };
    let builder = RequestBuilder::new().set_sampler_topp(1.0).set_seed(7);
    let changes = builder.clone().build().sampling.unwrap();
    let applied = changes.apply(recommended.clone());
    assert_eq!(
        (applied.temperature, applied.top_p, applied.seed),
        (0.6, 1.0, Some(7))
    );
    let window = |tokens| {
        let changes = SamplingChanges {
            repetition_window: Some(tokens),
            dry: Some(Dry::default()),
            ..SamplingChanges::default()
        };
        changes.apply(recommended.clone())
    };
    assert_eq!(window(3).repetition_window, Some(3));
    assert_eq!(window(usize::MAX).repetition_window, None);
    assert_eq!(window(0).dry, Some(Dry::default()));
    let own = builder.set_deterministic_sampler().set_seed(9).build();
    assert_eq!(own.sampling, None);
    assert_eq!(
        (
            own.generation.sampling.temperature,
            own.generation.sampling.seed
        ),
        (0.0, Some(9))
    );
}
