//! Prompts of the corpus's templates.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    ChatRequest, Message,
    chat::prompt::Prompter,
    template::{ChatTemplate, Source},
    tokenizer::{MARK, Tokenizer},
    tools::{Reasoning, ToolCall, ToolChoice, ToolDefinition, ToolFormat},
};

fn tokenizer() -> Tokenizer {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/hf");
    Tokenizer::from_dir(Path::new(dir)).unwrap()
}

fn template(name: &str) -> ChatTemplate {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat_templates");
    let source = Source {
        default: fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap(),
        tool_use: None,
        origin: name.into(),
    };
    ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap()
}

fn tools() -> Vec<ToolDefinition> {
    let tool = |name: &str| {
        let schema = json!({"type": "object", "properties": {"a": {"type": "number", "description": "first"}}});
        ToolDefinition::new(name, schema).with_description("adds")
    };
    vec![tool("add"), tool("sub")]
}

/// Called, answered, and asked again.
fn conversation() -> ChatRequest {
    let call = |id: &str, name: &str| {
        serde_json::to_value(ToolCall {
            id: id.into(),
            name: name.into(),
            arguments: r#"{"a": 1}"#.into(),
        })
        .unwrap()
    };
    let result = |id: &str, text: &str| Message {
        tool_call_id: Some(id.into()),
        ..Message::new("tool", text)
    };
    ChatRequest {
        tools: tools(),
        ..ChatRequest::new([
            Message::new("user", "question1"),
            Message {
                content: "".into(),
                tool_calls: vec![call("abcdefgh1", "add"), call("abcdefgh2", "sub")],
                ..Message::new("assistant", "")
            },
            result("abcdefgh1", "result1"),
            result("abcdefgh2", "result2"),
        ])
    }
}

fn prompt(name: &str, request: &ChatRequest) -> crate::Result<String> {
    let (template, tokenizer) = (template(name), tokenizer());
    let prompter = Prompter {
        template: &template,
        tokenizer: &tokenizer,
        format: template.tool_format().or(Some(ToolFormat::Json)),
    };
    prompter.prompt(request, &request.offered()?)
}

/// With tools in the template or in words, all that matters is in the prompt, in order.
#[test]
fn every_template_tells_tools_calls_and_results() {
    let names = [
        "chatml",
        "command-r7b-tool-use",
        "functionary-medium-v3.1",
        "gemma-2-2b-it",
        "gemma-3-it",
        "granite-3.3-2b",
        "hermes-2-pro-tool-use",
        "hermes-3-tool-use",
        "llama-2-chat",
        "llama-3-instruct",
        "llama-3.1-8b-instruct",
        "llama-3.2-3b-instruct",
        "llama-3.3-70b-instruct",
        "mistral-7b-instruct-v0.1",
        "mistral-7b-instruct-v0.3-tools",
        "mistral-nemo-2407",
        "mistral-small-3.2",
        "phi-3-mini",
        "phi-3.5-mini",
        "phi-4",
        "phi-4-mini",
        "qwen2.5-7b-instruct",
        "qwen3-0.6b",
        "qwq-32b",
        "smollm2-instruct",
        "smollm3-3b",
        "tinyllama-1.1b-chat",
        "deepseek-r1",
        "stablelm-2-zephyr",
    ];
    let mut wrong = Vec::new();
    for name in names {
        let text = match prompt(name, &conversation()) {
            Ok(text) => text.replace(MARK, ""),
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        // The schema's words, the calls' names in the answer, the results.
        let mut at = 0;
        for word in ["question1", "add", "result1", "result2"] {
            match text[at..].find(word) {
                Some(found) => at += found,
                None => wrong.push(format!("{name}: no {word} after {at} in\n{text}")),
            }
        }
        if !text.contains("first") || !text.contains("sub") {
            wrong.push(format!("{name}: no tools in\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn tools_that_are_not_offered_are_not_told() {
    let request = ChatRequest {
        tools: tools(),
        tool_choice: ToolChoice::None,
        ..ChatRequest::new([Message::new("user", "hello")])
    };
    for name in ["chatml", "qwen3-0.6b", "gemma-3-it"] {
        assert!(!prompt(name, &request).unwrap().contains("adds"), "{name}");
    }
}

#[test]
fn a_tool_cannot_bring_control_tokens() {
    let mut request = conversation();
    let name = tokenizer().bos_token().unwrap().to_owned();
    request.tools[0].description = Some(name.clone());
    request.messages[3].content = name.into();
    for name in ["qwen3-0.6b", "chatml", "gemma-3-it"] {
        let text = prompt(name, &request).unwrap();
        let bos = tokenizer().bos().unwrap();
        let ids = tokenizer()
            .encode(&text, crate::tokenizer::Specials::Guarded)
            .unwrap();
        let given = prompt(name, &conversation()).unwrap();
        let plain = tokenizer()
            .encode(&given, crate::tokenizer::Specials::Guarded)
            .unwrap();
        let count = |ids: &[u32]| ids.iter().filter(|&&id| id == bos).count();
        assert_eq!(count(&ids), count(&plain), "{name}: {text}");
    }
}

#[test]
fn the_last_message_is_continued() {
    let request = ChatRequest {
        add_generation_prompt: false,
        ..ChatRequest::new([
            Message::new("user", "Count."),
            Message::new("assistant", "One, two,"),
        ])
    };
    for name in [
        "chatml",
        "qwen3-0.6b",
        "gemma-3-it",
        "llama-3.1-8b-instruct",
    ] {
        let text = prompt(name, &request).unwrap();
        assert!(text.ends_with("One, two,"), "{name}: {text}");
    }
}

#[test]
fn thoughts_begin_where_the_prompt_says() {
    let request = ChatRequest::new([Message::new("user", "Hi")]);
    let mut silent = request.clone();
    silent
        .template_variables
        .insert("enable_thinking".into(), false.into());
    let tokenizer = tokenizer();
    let reasoning = |name: &str, request: &ChatRequest| {
        let template = template(name);
        let prompter = Prompter {
            template: &template,
            tokenizer: &tokenizer,
            format: None,
        };
        let prompt = prompter.prompt(request, &[]).unwrap();
        prompter.reasoning(request, &prompt)
    };
    assert!(matches!(
        reasoning("qwen3-0.6b", &request),
        Reasoning::Possible(_)
    ));
    assert_eq!(reasoning("qwen3-0.6b", &silent), Reasoning::None);
    let mut aloud = request.clone();
    let variables = &mut aloud.template_variables;
    variables.insert("enable_thinking".into(), true.into());
    let distilled = "deepseek-r1-distill-qwen-32b";
    assert!(matches!(reasoning(distilled, &aloud), Reasoning::Begun(_)));
    assert_eq!(reasoning(distilled, &silent), Reasoning::None);
    assert_eq!(reasoning("chatml", &request), Reasoning::None);
}
