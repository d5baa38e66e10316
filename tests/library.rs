//! The library as programs use it: conversations, tools, structured answers, on every backend.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use biplane::{
    BackendKind, ChatEvent, ChatFinish, ChatMessage, ChatRequest, ChatResponse, Device, Dry,
    Message, MlxDevice, MlxModelBuilder, MlxSpecificConfig, Model, ModelBuilder, OnToolError,
    Request, RequestBuilder, SamplingChanges, Tool, ToolChoice, ToolConfig, ToolDefinition,
    blocking,
    schemars::{self, JsonSchema},
};
use biplane_tests::{fixture, on_each_backend, real_model};
use serde::Deserialize;
use serde_json::json;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Random weights: what it says is noise, unless it is held to something.
fn builder(backend: BackendKind) -> ModelBuilder {
    ModelBuilder::new(fixture("llama/mlx-4bit").to_string_lossy())
        .with_backend(backend)
        .with_device(Device::Cpu)
        .with_chat_template_literal(CHATML)
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn asked(tokens: usize) -> RequestBuilder {
    RequestBuilder::new()
        .add_message(ChatMessage::System("You are a calculator".to_string()))
        .add_message(ChatMessage::User("Calculate 15 + 27".to_string()))
        .set_max_len(tokens)
}

/// An integer of two digits at most, so that noise comes to an end.
#[derive(Deserialize, JsonSchema)]
struct Small(#[schemars(range(min = 0, max = 99))] i64);

fn adder(calls: &Arc<AtomicUsize>) -> Tool {
    let calls = Arc::clone(calls);
    Tool::new("add", move |a: Small, b: Small| {
        calls.fetch_add(1, SeqCst);
        a.0 + b.0
    })
}

/// What a stream's events add up to, by hand.
fn gathered(model: &Model, request: ChatRequest) -> (String, usize, ChatFinish) {
    wait(async {
        let mut stream = model.stream_chat_request(request).await.unwrap();
        let (mut text, mut tokens) = (String::new(), 0);
        let mut add = |deltas: Vec<biplane::tools::Delta>| {
            for delta in deltas {
                if let biplane::tools::Delta::Content(more) = delta {
                    text.push_str(&more);
                }
            }
        };
        loop {
            match stream.next().await.expect("an end") {
                ChatEvent::Token { deltas, .. } => {
                    tokens += 1;
                    add(deltas);
                }
                ChatEvent::Round { deltas } => add(deltas),
                ChatEvent::ToolResult(_) => {}
                ChatEvent::Done { deltas, reason, .. } => {
                    add(deltas);
                    assert!(stream.next().await.is_none());
                    return (text, tokens, reason);
                }
                ChatEvent::Failed(error) => panic!("{error}"),
            }
        }
    })
}

fn loads_and_answers(backend: BackendKind) {
    wait(async {
        let model = builder(backend).build().await.unwrap();
        assert!(model.is_loaded());
        let prompt = model.tokenize("Hello").unwrap();
        assert_eq!(model.detokenize(&prompt), "Hello");
        let changes = |dry| SamplingChanges {
            dry,
            dry_breakers: Some(vec!["o".into()]),
            ..SamplingChanges::default()
        };
        let sampling = model.sampling(&changes(Some(Dry::default()))).unwrap();
        let breakers = sampling.dry.unwrap().sequence_breakers;
        let has_o = |id| model.tokenizer().token_bytes(id).unwrap().contains(&b'o');
        let single = |id| breakers.contains(&vec![id]);
        let size = u32::try_from(model.tokenizer().vocab_size()).unwrap();
        let known = (0..size).filter(|&id| model.tokenizer().token_bytes(id).is_some());
        let (with, without): (Vec<u32>, Vec<u32>) = known.partition(|&id| has_o(id));
        assert!(!with.is_empty() && with.iter().all(|&id| single(id)));
        assert!(!without.iter().any(|&id| single(id)));
        assert!(model.sampling(&changes(None)).is_err());
        let messages = vec![
            ChatMessage::System("You are a helpful assistant".to_string()),
            ChatMessage::User("What is Rust?".to_string()),
        ];
        let request = ChatRequest {
            generation: Request {
                max_tokens: Some(8),
                ignore_eos: true,
                ..Request::default()
            },
            ..messages.into()
        };
        let response = model.send_chat_request(request).await.unwrap();
        assert_eq!(response.tokens.len(), 8);
        assert_eq!(response.finish_reason, ChatFinish::Length);
        assert!(response.tokens_per_second > 0.0);
        assert!(response.trace.is_empty() && response.tool_calls.is_empty());
    });
}

/// The first round must call, and its grammar sees to it; then the model says what it likes.
fn runs_tools(backend: BackendKind) {
    let calls = Arc::new(AtomicUsize::new(0));
    let config = ToolConfig {
        choice: ToolChoice::Named("add".into()),
        ..ToolConfig::default()
    };
    let builder = builder(backend).with_tools([adder(&calls)]);
    let model = builder.with_tool_config(config).build_blocking().unwrap();
    let request = asked(400).set_seed(1).build();
    let response: ChatResponse = wait(model.send_chat_request(request.clone())).unwrap();
    let run = &response.trace[0];
    assert_eq!((run.round, run.call.name.as_str()), (0, "add"));
    let arguments: serde_json::Value = serde_json::from_str(&run.call.arguments).unwrap();
    let sum = arguments["a"].as_f64().unwrap() + arguments["b"].as_f64().unwrap();
    assert_eq!(run.result, Ok((sum as i64).to_string()));
    assert_eq!(calls.load(SeqCst), response.trace.len());
    assert_ne!(response.finish_reason, ChatFinish::Cancelled);
    assert!(response.timings.prompt_tokens > response.tokens.len());

    let (text, tokens, reason) = gathered(&model, request);
    assert_eq!((text, tokens), (response.text, response.tokens.len()));
    assert_eq!(reason, response.finish_reason);
}

fn tools_may_fail(backend: BackendKind) {
    let ask = |tool: Tool, config: ToolConfig| {
        let name = tool.definition().name.clone();
        let config = ToolConfig {
            choice: ToolChoice::Named(name),
            ..config
        };
        let builder = builder(backend).with_tools([tool]);
        let model = builder.with_tool_config(config).build_blocking().unwrap();
        wait(model.send_chat_request(asked(300)))
    };
    let broken = || Tool::fallible("broken", || Err::<i32, _>("out of order"));
    let told = ask(broken(), ToolConfig::default()).unwrap();
    assert_eq!(told.trace[0].result, Err("out of order".into()));
    let fail = ToolConfig {
        on_error: OnToolError::Fail,
        ..ToolConfig::default()
    };
    let error = ask(broken(), fail).unwrap_err().to_string();
    assert!(
        error.contains("broken") && error.contains("out of order"),
        "{error}"
    );
    let slow = Tool::asynchronous("slow", || async {
        std::future::pending::<()>().await;
    });
    let hasty = ToolConfig {
        timeout: Duration::from_millis(20),
        ..ToolConfig::default()
    };
    let late = ask(slow, hasty).unwrap();
    let reason = late.trace[0].result.clone().unwrap_err();
    assert!(reason.contains("within 0.02 s"), "{reason}");
    let none = ToolConfig {
        max_rounds: 0,
        ..ToolConfig::default()
    };
    let waiting = ask(broken(), none).unwrap();
    assert_eq!(waiting.finish_reason, ChatFinish::ToolCalls);
    assert_eq!((waiting.tool_calls.len(), waiting.trace.len()), (1, 0));
}

/// Tools of the request's own are called, and not run.
fn gives_calls_back(backend: BackendKind) {
    let model = builder(backend).build_blocking().unwrap();
    let schema = json!({"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": false});
    let request = asked(300)
        .set_tools(vec![ToolDefinition::new("switch", schema)])
        .set_tool_choice(ToolChoice::Required)
        .set_parallel_tool_calls(false);
    let response = wait(model.send_chat_request(request)).unwrap();
    assert_eq!(response.finish_reason, ChatFinish::ToolCalls);
    assert_eq!(response.tool_calls.len(), 1);
    let call = &response.tool_calls[0];
    let arguments: serde_json::Value = serde_json::from_str(&call.arguments).unwrap();
    assert!(call.name == "switch" && arguments["on"].is_boolean());
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Light {
    colour: Colour,
    on: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
enum Colour {
    Red,
    Green,
}

fn answers_in_types(backend: BackendKind) {
    let model = builder(backend).build_blocking().unwrap();
    let light: Light = wait(model.generate_structured("Which light?")).unwrap();
    // What is not of the type is an error, so that these are all there can be.
    assert!(matches!(
        (light.colour, light.on),
        (Colour::Red | Colour::Green, true | false)
    ));
    let short = RequestBuilder::from_text("Which light?").set_max_len(2);
    let error = wait(model.generate_structured::<Light>(short)).unwrap_err();
    assert!(error.to_string().contains("more tokens"), "{error}");
}

fn waits_without_async(backend: BackendKind) {
    let model = blocking::Model::load(builder(backend)).unwrap();
    let request = asked(6).set_deterministic_sampler().build();
    let whole = model.chat(request.clone()).unwrap();
    let mut text = String::new();
    let mut ended = false;
    for event in model.stream(request).unwrap() {
        let deltas = match event {
            ChatEvent::Token { deltas, .. } => deltas,
            ChatEvent::Done { deltas, .. } => {
                ended = true;
                deltas
            }
            other => panic!("{other:?}"),
        };
        for delta in deltas {
            if let biplane::tools::Delta::Content(more) = delta {
                text.push_str(&more);
            }
        }
    }
    assert!(ended);
    assert_eq!(text, whole.text);
    let error = wait(async { model.chat("Hi") }).unwrap_err();
    assert!(error.to_string().contains("async"), "{error}");
}

on_each_backend! {
    answering => loads_and_answers;
    tools => runs_tools;
    failing_tools => tools_may_fail;
    calls => gives_calls_back;
    types => answers_in_types;
    waiting => waits_without_async;
}

/// What cannot be honoured is an error, not a silence.
#[test]
fn options_are_honoured_or_refused() {
    let error = |builder: ModelBuilder| builder.build_blocking().unwrap_err().to_string();
    let any = || ModelBuilder::new(fixture("llama/mlx-4bit").to_string_lossy());
    let revision = error(any().with_hf_revision("main"));
    assert!(revision.contains("is a path"), "{revision}");
    let template = error(any().with_chat_template("no/such.jinja"));
    assert!(template.contains("no/such.jinja"), "{template}");
    let tokenizer = error(any().with_tokenizer_json("no/such.json"));
    assert!(tokenizer.contains("no/such.json"), "{tokenizer}");
    let tool = error(any().with_tools([Tool::new("a b", || 1)]));
    assert!(tool.contains("a b"), "{tool}");
    let unified = MlxModelBuilder::new("x").with_mlx_config(MlxSpecificConfig {
        device_preference: MlxDevice::Auto,
        lazy_evaluation: true,
        unified_memory: false,
    });
    let unified = unified.build_blocking().unwrap_err().to_string();
    assert!(unified.contains("unified_memory"), "{unified}");
}

/// Layer by layer or a whole step at once: the same answer.
#[cfg(feature = "mlx")]
#[test]
fn evaluation_may_be_eager() {
    let answer = |lazy_evaluation| {
        let model = MlxModelBuilder::new(fixture("gemma3/mlx-4bit").to_string_lossy())
            .with_mlx_config(MlxSpecificConfig {
                device_preference: MlxDevice::Cpu,
                lazy_evaluation,
                unified_memory: true,
            })
            .build_blocking()
            .unwrap();
        let request = Request {
            max_tokens: Some(12),
            ignore_eos: true,
            ..Request::new((3..40).collect())
        };
        wait(model.complete(request)).unwrap().tokens
    };
    let lazy = answer(true);
    assert_eq!(lazy.len(), 12);
    assert_eq!(answer(false), lazy);
}

/// The specification's conversation, on a real model.
#[cfg(feature = "candle")]
#[test]
fn a_real_model_adds() {
    let Some(path) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let calculator = Tool::new("add", |a: f64, b: f64| a + b).with_description("Adds two numbers");
    let model = ModelBuilder::new(path.to_string_lossy())
        .with_backend(BackendKind::Candle)
        .with_tools([calculator])
        .build_blocking()
        .unwrap();
    let request = RequestBuilder::new()
        .add_message(Message::new("user", "Calculate 15 + 27"))
        .set_tool_choice(ToolChoice::Named("add".into()))
        .set_max_len(60)
        .set_deterministic_sampler();
    let response = wait(model.send_chat_request(request)).unwrap();
    assert_eq!(response.trace[0].call.name, "add");
    assert_eq!(
        response.trace[0].result,
        Ok("42.0".into()),
        "{:?}",
        response.trace
    );
    // What a model this small makes of it is its own affair, but it has read the sum.
    let rounds = response.trace.last().map_or(0, |run| run.round + 1);
    assert!(rounds >= 1 && response.timings.prompt_tokens > rounds * 50);
    assert_ne!(response.finish_reason, ChatFinish::Cancelled);
    assert!(!response.text.is_empty(), "{response:?}");
}
