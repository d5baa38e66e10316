//! Other models' templates against what transformers renders from them.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use serde_json::json;

use super::*;

/// 2024-07-26 12:34:56, at which the reference was rendered.
const NOW: u64 = 1_721_997_296;

fn template(text: &str) -> ChatTemplate {
    let source = Source {
        default: text.into(),
        tool_use: None,
        origin: "test".into(),
    };
    ChatTemplate::new(source, Some("<s>"), None).unwrap()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn without_html_escapes(text: &str) -> String {
    let escapes = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[test]
fn the_corpus_renders_byte_for_byte() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat_templates");
    let cases = read(&folder.join("cases.json"));
    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut total, mut failed) = (0, 0);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(name) = name.strip_suffix(".rendered.json") else {
            continue;
        };
        let rendered = read(&path);
        let source = explicit(folder.join(format!("{name}.jinja")).to_str().unwrap()).unwrap();
        let token = |key: &str| rendered[key].as_str();
        let template = ChatTemplate::new(source, token("bos_token"), token("eos_token")).unwrap();
        for case in cases.as_array().unwrap() {
            let options = Options {
                tools: serde_json::from_value(case["tools"].clone()).unwrap(),
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                variables: case["kwargs"].as_object().unwrap().clone(),
                now: Some(UNIX_EPOCH + Duration::from_secs(NOW)),
            };
            let got = template.render_as_is(case["messages"].as_array().unwrap(), &options);
            let case = case["name"].as_str().unwrap();
            let wanted = &rendered["cases"][case];
            let good = match (wanted["expected"].as_str(), &got) {
                // Its `|safe` makes transformers escape HTML in the rest of a sum, which is an
                // accident of Python's Markup type.
                (Some(text), Ok(got)) if name == "functionary-medium-v3.1" => {
                    *got == without_html_escapes(text)
                }
                (Some(text), Ok(got)) => got == text,
                (Some(_), Err(_)) => false,
                (None, got) if wanted["error_type"] == "TemplateError" => {
                    matches!(got, Err(Error::Refused(text)) if wanted["error"] == text.as_str())
                }
                // Python cannot iterate over none; that is as good as an empty list.
                (None, Ok(_)) => wanted["error"] == "'NoneType' object is not iterable",
                (None, Err(_)) => true,
            };
            total += 1;
            if !good {
                failed += 1;
                let what = format!("{case}\n   got    {got:?}\n   wanted {wanted}");
                failures.entry(name.to_owned()).or_default().push(what);
            }
        }
    }
    for (name, cases) in &failures {
        println!("{name}: {}", cases.join("\n  "));
    }
    println!("{} of {total} cases", total - failed);
    assert_eq!(failed, 0, "of {total}");
    assert!(total > 1000);
}

#[test]
fn what_a_template_cannot_take_is_put_into_another_form() {
    let plain = template(
        "{% for m in messages %}[{{ m.role + ':' + m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}]{% endfor %}",
    );
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1.0}"}}]}
    ]);
    let text = plain
        .render(messages.as_array().unwrap(), &Options::default())
        .unwrap();
    assert_eq!(text, "[user:a b][assistant:{\"x\": 1.0}]");
    // An image is not dropped in silence.
    let image = [json!({"role": "user", "content": [{"type": "image"}]})];
    assert!(plain.render(&image, &Options::default()).is_err());
    let parts = template(
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}",
    );
    let one = &messages.as_array().unwrap()[..1];
    assert_eq!(parts.render(one, &Options::default()).unwrap(), "<a ><b>");
}

#[test]
fn endless_templates_are_stopped() {
    let none: [Value; 0] = [];
    // A list of 2⁴⁰ letters that takes forty steps and lists to make.
    let doubled = |use_it: &str| {
        format!(
            "{{% set n = namespace(a=['x']) %}}{{% for i in range(40) %}}{{% set n.a = [n.a, n.a] %}}{{% endfor %}}{use_it}"
        )
    };
    for text in [
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(20) %}{% set n.s = n.s + n.s %}{% endfor %}{% for i in range(100) %}{{ n.s }}{% endfor %}",
        &doubled("{{ n.a }}"),
        &doubled("{{ n.a | string }}"),
        &doubled("{{ n.a | tojson }}"),
        &doubled("{{ n.a | pprint }}"),
        &doubled("{{ debug() }}"),
    ] {
        let error = template(text)
            .render(&none, &Options::default())
            .unwrap_err();
        assert!(matches!(error, Error::Render(_)), "{error}");
    }
    let source = Source {
        default: "{% if %}".into(),
        tool_use: None,
        origin: "bad.jinja".into(),
    };
    let error = ChatTemplate::new(source, None, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("bad.jinja"), "{error}");
}

#[test]
fn tools_are_none_and_users_text_is_data() {
    let shown = template(
        "{{ tools is none }} {{ documents is none }} {{ eos_token is defined }} {{ bos_token }} {{ messages[0].content }}",
    );
    let messages = [Message::new("user", "{{ 7 * 7 }} <b>")];
    let text = shown.render(&messages, &Options::default()).unwrap();
    assert_eq!(text, "True True False <s> {{ 7 * 7 }} <b>");
    let source = Source {
        default: "plain".into(),
        tool_use: Some("tools".into()),
        origin: String::new(),
    };
    let two = ChatTemplate::new(source, None, None).unwrap();
    let mut options = Options {
        tools: Some(vec![]),
        ..Options::default()
    };
    assert_eq!(two.render(&messages, &options).unwrap(), "plain");
    options.tools = Some(vec![json!({})]);
    assert_eq!(two.render(&messages, &options).unwrap(), "tools");
}
