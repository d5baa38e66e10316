//! What the APIs answer.

use super::*;

#[test]
fn streamed_is_whole() {
    let server = tiny();
    let whole = server.chat(&hello(json!({"logprobs": true, "top_logprobs": 2})));
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], server.name);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    assert!(whole["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());
    let details = &whole["usage"]["completion_tokens_details"];
    assert_eq!(details["reasoning_tokens"], 0);
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);
    let tokens = whole["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert!(
        tokens
            .iter()
            .all(|t| t["top_logprobs"].as_array().unwrap().len() == 2)
    );

    let more = json!({"stream": true, "logprobs": true, "top_logprobs": 2, "stream_options": {"include_usage": true}});
    let chunks = server.chat(&hello(more)).events();
    assert_eq!(text_of(&chunks, 0), text);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., last, usage] = &chunks[..] else {
        panic!()
    };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["timings"]["predicted_n"], 12);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    let lists = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(lists.flatten().count(), tokens.len());

    let two = server
        .chat(&hello(json!({"n": 2, "temperature": 1.5, "seed": 1})))
        .json();
    let [a, b] = [0, 1].map(|i| two["choices"][i]["message"]["content"].clone());
    assert_ne!(a, b);
    let chunks = server.chat(&hello(
        json!({"n": 2, "temperature": 1.5, "seed": 1, "stream": true}),
    ));
    let chunks = chunks.events();
    assert_eq!([a, b], [0, 1].map(|i| Value::from(text_of(&chunks, i))));
}

#[test]
fn completions_in_all_forms() {
    let server = tiny();
    let ask = |more: Value| {
        let mut body = json!({"temperature": 0, "max_tokens": 8});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &body)
    };
    let whole = ask(json!({"prompt": "Alice was"})).json();
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(!text.is_empty());
    let chunks = ask(json!({"prompt": "Alice was", "stream": true})).events();
    let streamed: String = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(streamed, text);
    let tokens = server.post(
        "/tokenize",
        &json!({"content": "Alice was", "add_special": true}),
    );
    let tokens = tokens.json()["tokens"].clone();
    let back = server
        .post("/detokenize", &json!({"tokens": tokens}))
        .json();
    assert_eq!(back["content"].as_str().unwrap().trim(), "Alice was");
    let both = ask(json!({"prompt": [tokens, tokens], "n": 2})).json();
    let choices = both["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert!(choices.iter().all(|c| c["text"] == text));
    let n = tokens.as_array().unwrap().len() as u64;
    assert_eq!(both["usage"]["prompt_tokens"], 2 * n);
    assert_eq!(both["usage"]["completion_tokens"], 32);
    let echo = ask(json!({"prompt": tokens, "echo": true, "logprobs": 1, "max_tokens": 0})).json();
    let logprobs = &echo["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len() as u64, n);
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert!(logprobs["token_logprobs"][1].as_f64().unwrap() <= 0.0);
    for (more, param) in [
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": [4_000_000]}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
    ] {
        let mut all = json!({"prompt": "a"});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        if param == "prompt" && all["prompt"] == "" && ask(all.clone()).status == 200 {
            continue; // A model with a beginning-of-sequence token can begin by itself.
        }
        assert_eq!(ask(all).error(400)["param"], param, "{more}");
    }
}

#[test]
fn embeddings_as_numbers_and_base64() {
    let server = tiny();
    let ask = |body: Value| server.post("/v1/embeddings", &body);
    let got = ask(json!({"input": ["Alice", "Alice", "a rabbit"]})).json();
    let data = got["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    assert_eq!(data[0]["embedding"], data[1]["embedding"]);
    assert_ne!(data[0]["embedding"], data[2]["embedding"]);
    assert!(got["usage"]["prompt_tokens"].as_u64().unwrap() >= 3);
    let base64 = ask(json!({"input": "Alice", "encoding_format": "base64"})).json();
    let width = data[0]["embedding"].as_array().unwrap().len();
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (width * 4).div_ceil(3) * 4);
    assert_eq!(
        ask(json!({"input": "a", "dimensions": 8})).error(400)["param"],
        "dimensions"
    );
    assert_eq!(ask(json!({"input": []})).error(400)["param"], "input");
    assert_eq!(ask(json!({})).error(400)["param"], "input");
}

#[test]
fn a_demanded_tool_is_called() {
    let Some(server) = smollm() else { return };
    let tools = json!([{"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": false}}}]);
    let ask = json!({"messages": [{"role": "user", "content": "How is the weather in Paris?"}], "temperature": 0,
        "max_tokens": 120, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}});
    let reply = server.chat(&ask);
    assert_eq!(reply.status, 200, "{reply:?}");
    let choice = reply.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(arguments).unwrap()["city"].is_string());
    let mut streamed = ask.clone();
    streamed["stream"] = true.into();
    let chunks = server.chat(&streamed).events();
    let deltas = chunks.iter().filter_map(|c| {
        c["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
    });
    assert_eq!(deltas.collect::<String>(), arguments);
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let Some(server) = smollm() else { return };
    let schema = json!({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["age"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    let reply = server.chat(&hello(json!({"response_format": format, "max_tokens": 60})));
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = reply.json()["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["age"].as_u64().unwrap() <= 120);
    let choice = server
        .chat(&hello(
            json!({"response_format": {"type": "choice", "choice": ["yes", "no"]}}),
        ))
        .json();
    let text = choice["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(["yes", "no"].contains(&text), "{text}");
}

/// The events of a stream whose events have names.
fn typed(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{reply:?}");
    let events = reply
        .body
        .split("\n\n")
        .filter(|e| e.starts_with("event: "));
    let event = |text: &str| {
        let (name, data) = text.split_once("\ndata: ").unwrap();
        let value: Value = serde_json::from_str(data).unwrap();
        assert_eq!(name.strip_prefix("event: "), value["type"].as_str());
        value
    };
    events.map(event).collect()
}

#[test]
fn the_other_apis_say_the_same() {
    let server = tiny();
    let chat = server.chat(&hello(json!({}))).json();
    let text = chat["choices"][0]["message"]["content"].as_str().unwrap();

    let mut ask = hello(json!({}));
    let whole = server.post("/v1/messages", &ask).json();
    assert_eq!(whole["content"][0]["text"], text, "{whole}");
    assert_eq!(whole["stop_reason"], "max_tokens");
    assert_eq!(whole["usage"]["output_tokens"], 12);
    ask["stream"] = true.into();
    let events = typed(&server.post("/v1/messages", &ask));
    let pieces = events.iter().filter_map(|e| e["delta"]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    let [.., a, b, c] = kinds[..] else { panic!() };
    assert_eq!(
        [a, b, c],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    let tokens = server.post("/v1/messages/count_tokens", &ask).json();
    assert_eq!(tokens["input_tokens"], chat["usage"]["prompt_tokens"]);
    let wrong = server.post("/v1/messages", &json!({"messages": [], "max_tokens": 1}));
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.json()["error"]["type"], "invalid_request_error");

    let mut ask = json!({"input": "Hello", "temperature": 0, "max_output_tokens": 12});
    let whole = server.post("/v1/responses", &ask).json();
    assert_eq!(whole["output"][0]["content"][0]["text"], text, "{whole}");
    assert_eq!(whole["status"], "incomplete");
    ask["stream"] = true.into();
    let events = typed(&server.post("/v1/responses", &ask));
    let pieces = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta");
    assert_eq!(
        pieces
            .map(|e| e["delta"].as_str().unwrap())
            .collect::<String>(),
        text
    );
    let numbers = events
        .iter()
        .map(|e| e["sequence_number"].as_u64().unwrap());
    assert!(numbers.eq(0..events.len() as u64));
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text);
}

#[test]
fn responses_are_read_again_and_forgotten() {
    let server = tiny();
    let remove = |id: &str| {
        let path = format!("/v1/responses/{id}");
        server.ask(&server.head("DELETE", &path, "", 0), b"")
    };
    let mut ask = json!({"input": "Hello", "temperature": 0, "max_output_tokens": 12});
    let whole = server.post("/v1/responses", &ask).json();
    let id = whole["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/responses/{id}");
    assert_eq!(server.get(&path).json(), whole);
    ask["stream"] = true.into();
    let streamed = typed(&server.post("/v1/responses", &ask));
    let last = &streamed.last().unwrap()["response"];
    let other = last["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/responses/{other}")).json(), *last);
    let refused = server.get(&format!("{path}?stream=true"));
    assert_eq!(refused.error(400)["param"], "stream");

    let gone = remove(&id).json();
    assert_eq!(
        gone,
        json!({"id": id, "object": "response", "deleted": true})
    );
    assert_eq!(server.get(&path).error(404)["code"], "response_not_found");
    assert_eq!(remove(&id).error(404)["code"], "response_not_found");
    let next = json!({"input": "And?", "previous_response_id": id, "max_output_tokens": 2});
    let error = server.post("/v1/responses", &next).error(400);
    assert_eq!(error["param"], "previous_response_id");
    // Others stay.
    let next = json!({"input": "And?", "previous_response_id": other, "max_output_tokens": 2});
    assert_eq!(server.post("/v1/responses", &next).status, 200);
    let secret = json!({"input": "Hello", "max_output_tokens": 2, "store": false});
    let secret = server.post("/v1/responses", &secret).json();
    let id = secret["id"].as_str().unwrap();
    server.get(&format!("/v1/responses/{id}")).error(404);
}

#[test]
fn repetition_is_held_back_on_responses_too() {
    let server = tiny();
    let ask = |multiplier: f64| {
        let mut body = json!({"input": "Hello", "temperature": 0, "max_output_tokens": 200});
        body["ignore_eos"] = true.into();
        if multiplier > 0.0 {
            body["dry_multiplier"] = multiplier.into();
        }
        let whole = server.post("/v1/responses", &body).json();
        whole["output"][0]["content"][0]["text"].clone()
    };
    let chat = hello(json!({"max_tokens": 200, "ignore_eos": true, "dry_multiplier": 20}));
    let chat = server.chat(&chat).json();
    assert_eq!(ask(20.0), chat["choices"][0]["message"]["content"]);
    assert_ne!(ask(20.0), ask(0.0));
}
