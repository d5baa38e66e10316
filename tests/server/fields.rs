//! Every field of the APIs' requests: honoured, or refused by its name. `fields.json` has for each a value
//! that is served and one that is not; what has no bad value does not matter here, whatever it is.
//! (`tests/clients` holds the table to the official clients' own lists.)

use super::*;

#[test]
fn every_field_is_honoured_or_refused_by_name() {
    let server = tiny();
    let table: Value = serde_json::from_str(include_str!("fields.json")).unwrap();
    let mut asked = 0;
    for (path, api) in table.as_object().unwrap() {
        let ask = |name: &str, value: &Value| {
            let mut body = api["body"].clone();
            body[name] = value.clone();
            // Offered, so that a choice among them can be honoured.
            if name == "tool_choice" {
                body["tools"] = api["fields"]["tools"]["good"].clone();
            }
            if name == "top_logprobs" && path == "/v1/chat/completions" {
                body["logprobs"] = true.into();
            }
            server.post(path, &body)
        };
        let refused = |name: &str, value: &Value| {
            let reply = ask(name, value);
            let said = format!("{path} {name} {value}: {reply:?}");
            assert_eq!(reply.status, 400, "{said}");
            let error = reply.json()["error"].clone();
            match path.as_str() {
                "/v1/messages" => {
                    assert!(error["message"].as_str().unwrap().contains(name), "{said}")
                }
                _ => assert!(error["param"].as_str().unwrap().starts_with(name), "{said}"),
            }
        };
        let served = |name: &str, value: &Value| {
            let reply = ask(name, value);
            assert_eq!(reply.status, 200, "{path} {name} {value}: {reply:?}");
        };
        let required = api["required"].as_array().unwrap();
        served("never_heard_of", &json!({"a": [1]}));
        for (name, values) in api["fields"].as_object().unwrap() {
            asked += 1;
            match required.iter().any(|r| r == name) {
                true => refused(name, &Value::Null),
                false => served(name, &Value::Null),
            }
            if let Some(good) = values.get("good") {
                served(name, good);
            }
            match values.get("bad") {
                Some(bad) => refused(name, bad),
                None => served(name, &json!({"some": ["thing"]})),
            }
        }
    }
    assert!(asked > 100, "{asked}");
}
