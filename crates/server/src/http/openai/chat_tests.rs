use super::*;
use serde_json::json;

fn ask(value: Value) -> Result<Ask> {
    read(Fields::of(value, "").unwrap())
}

fn with(extra: Value) -> Result<Ask> {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let fields = body.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    ask(body)
}

fn param(result: Result<Ask>) -> String {
    result.unwrap_err().param.unwrap()
}

#[test]
fn what_is_harmless_is_accepted() {
    let got = with(json!({
        "user": "x", "metadata": {"a": 1}, "store": false, "service_tier": "auto", "unknown": [1],
        "temperature": null, "stop": null, "tools": null, "tool_choice": null, "n": null,
        "logprobs": false, "function_call": null, "functions": [], "response_format": null,
    }));
    let got = got.unwrap();
    assert_eq!(got.n, 1);
    assert_eq!(got.chat.sampling.unwrap(), Default::default());
}

#[test]
fn what_cannot_be_honoured_is_named() {
    for (extra, name) in [
        (json!({"stop": 5}), "stop"),
        (json!({"n": 9}), "n"),
        (json!({"n": 0}), "n"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (json!({"guided_json": {"type": "null"}}), "guided_json"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema.schema",
        ),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
        (json!({"dry_multiplier": "much"}), "dry_multiplier"),
        (json!({"repeat_last_n": -2}), "repeat_last_n"),
        (
            json!({"dry_sequence_breakers": vec!["x"; 17]}),
            "dry_sequence_breakers",
        ),
        (
            json!({"dry_sequence_breakers": ["x".repeat(65)]}),
            "dry_sequence_breakers",
        ),
        (
            json!({"dry_sequence_breakers": [""]}),
            "dry_sequence_breakers",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (
            json!({"messages": [{"role": "function", "content": ""}]}),
            "messages[0].role",
        ),
        (json!({"messages": [{"content": ""}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        (json!({"messages": null}), "messages"),
    ] {
        let said = format!("{extra}");
        assert_eq!(param(with(extra)), name, "{said}");
    }
}

#[test]
fn fields_reach_the_engine() {
    let got = with(json!({
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
        ],
        "max_tokens": 3, "max_completion_tokens": 4, "stop": "x", "seed": 7, "top_k": -1,
        "logit_bias": {"5": -100}, "logprobs": true, "top_logprobs": 2, "stream": true,
        "stream_options": {"include_usage": true}, "enable_thinking": false, "repeat_penalty": 1.5,
        "response_format": {"type": "regex", "regex": "a+"},
    }));
    let got = got.unwrap();
    assert_eq!(got.chat.messages[0].role, "system");
    assert_eq!(got.chat.messages[1].tool_calls.len(), 1);
    assert_eq!(got.chat.messages[2].tool_call_id.as_deref(), Some("1"));
    let g = &got.chat.generation;
    assert_eq!(g.max_tokens, Some(4));
    assert_eq!(g.stop, ["x"]);
    assert_eq!(g.logprobs, Some(2));
    assert_eq!(g.constraint, Some(biplane::Constraint::Regex("a+".into())));
    let s = got.chat.sampling.unwrap();
    assert_eq!(
        (s.seed, s.top_k, s.repetition_penalty),
        (Some(7), Some(0), Some(1.5))
    );
    assert_eq!(s.logit_bias, Some(vec![(5, -100.0)]));
    assert!(got.stream && got.include_usage);
    assert_eq!(got.chat.template_variables["enable_thinking"], json!(false));
}

#[test]
fn dry_has_the_names_and_values_of_llama_cpp() {
    let sampling = |extra| with(extra).unwrap().chat.sampling.unwrap();
    let all = sampling(json!({
        "dry_multiplier": 0.5, "dry_base": 2, "dry_allowed_length": 3, "dry_penalty_last_n": 100,
        "dry_sequence_breakers": ["\n"], "repetition_window": 64,
    }));
    let dry = biplane::Dry {
        multiplier: 0.5,
        base: 2.0,
        allowed_length: 3,
        range: Some(100),
        sequence_breakers: Vec::new(),
    };
    assert_eq!(all.dry, Some(dry));
    assert_eq!(all.dry_breakers, Some(vec!["\n".into()]));
    assert_eq!(all.repetition_window, Some(64));
    let usual = sampling(json!({"dry_multiplier": 0.8, "dry_penalty_last_n": -1}));
    assert_eq!(usual.dry, Some(biplane::Dry::default()));
    assert_eq!(usual.dry_breakers.unwrap().len(), 4);
    let off = sampling(json!({"dry_base": 1.5, "repeat_last_n": -1}));
    assert_eq!(off.dry.unwrap().multiplier, 0.0);
    assert_eq!(off.repetition_window, Some(usize::MAX));
}
