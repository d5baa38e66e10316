//! Answers of a real model, held to a form.

use biplane::{
    BackendKind, Constraint, Device, FinishReason, Model, ModelBuilder, Request, Response,
};
use biplane_tests::real_model;
use serde_json::{Value, json};

fn model() -> Option<Model> {
    let path = real_model("smollm2-135m-instruct-q4_1.gguf")?;
    let model = ModelBuilder::new(path.to_string_lossy())
        .with_backend(BackendKind::default_here().unwrap())
        .with_device(Device::Cpu)
        .build_blocking();
    Some(model.unwrap())
}

fn ask(model: &Model, requests: &[(&str, Constraint)]) -> Vec<Response> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let events: Vec<_> = requests
        .iter()
        .map(|(prompt, constraint)| {
            let message = biplane::Message::new("user", *prompt);
            let request = Request {
                constraint: Some(constraint.clone()),
                max_tokens: Some(200),
                ..Request::new(model.chat_tokens(&[message]).unwrap())
            };
            model.submit(request).unwrap()
        })
        .collect();
    let collect = |events| runtime.block_on(Response::collect(events)).unwrap();
    events.into_iter().map(collect).collect()
}

#[test]
fn a_real_models_answers_keep_their_form() {
    let Some(model) = model() else { return };
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "born": {"type": "integer", "minimum": 1000, "maximum": 2030},
            "field": {"enum": ["physics", "painting", "politics"]}
        },
        "required": ["name", "born", "field"],
        "additionalProperties": false
    });
    let requests = [
        ("Describe Albert Einstein as JSON.", Constraint::JsonSchema(schema)),
        ("Is water wet?", Constraint::Choice(vec!["yes".into(), "no".into(), "maybe".into()])),
        ("What is 12 + 30?", Constraint::Regex("[0-9]{1,4}".into())),
        ("Call the tool.", Constraint::Lark("start: \"<tool_call>\\n\" %json {\"type\": \"object\", \"properties\": {\"name\": {\"const\": \"add\"}}, \"required\": [\"name\"], \"additionalProperties\": false} \"\\n</tool_call>\"".into())),
    ];
    let answers = ask(&model, &requests);
    for answer in &answers {
        println!("{:?} {:?}", answer.text, answer.timings);
        assert_eq!(answer.finish_reason, FinishReason::Stop);
    }
    let person: Value = serde_json::from_str(&answers[0].text).unwrap();
    let person = person.as_object().unwrap();
    assert_eq!(person.keys().collect::<Vec<_>>(), ["name", "born", "field"]);
    assert!((1000..=2030).contains(&person["born"].as_i64().unwrap()));
    assert!(["yes", "no", "maybe"].contains(&answers[1].text.as_str()));
    assert!(answers[2].text.parse::<u32>().is_ok());
    let call = answers[3].text.strip_prefix("<tool_call>\n").unwrap();
    let call: Value = serde_json::from_str(call.strip_suffix("\n</tool_call>").unwrap()).unwrap();
    assert_eq!(call, json!({"name": "add"}));
}

#[test]
fn what_cannot_be_kept_is_refused_before_anything_is_computed() {
    let Some(model) = model() else { return };
    let refused = |constraint| {
        let request = Request {
            constraint: Some(constraint),
            ..Request::new(vec![1, 2, 3])
        };
        model.submit(request).unwrap_err().to_string()
    };
    let error = refused(Constraint::JsonSchema(json!({"not": {}})));
    assert!(error.contains("\"not\""), "{error}");
    let error = refused(Constraint::Lark("start: <|no_such_token|>".into()));
    assert!(error.contains("<|no_such_token|>"), "{error}");
    assert_eq!(model.metrics().steps, 0);
}
