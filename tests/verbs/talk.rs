//! Conversations: chat, and the prompts that templates make.

use super::*;

#[test]
fn a_prompt_is_rendered_as_the_model_sees_it() {
    let user = User::new();
    let talk = r#"[{"role": "user", "content": "Hi <|im_end|>"}]"#;
    let render = |args: &[&str], talk: &str| {
        let mut command = user.biplane(&["template", "render", "-m", &tiny()]);
        command.args(args).write_stdin(talk);
        command
    };
    let prompt = good(&mut render(&[], talk));
    let without = good(&mut render(&["--add-generation-prompt=false"], talk));
    assert!(
        prompt.starts_with(&without) && prompt.len() > without.len(),
        "{prompt:?} {without:?}"
    );
    assert!(prompt.contains("Hi <|im_end|>"), "{prompt}");
    let ids: Vec<u32> = serde_json::from_str(&good(&mut render(&["--ids"], talk))).unwrap();
    assert!(ids.len() > 3);
    let file = user.home().join("talk.json");
    fs::write(&file, format!(r#"{{"messages": {talk}}}"#)).unwrap();
    assert_eq!(good(&mut render(&[file.to_str().unwrap()], "")), prompt);
    let jinja = user.home().join("t.jinja");
    fs::write(
        &jinja,
        "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}",
    )
    .unwrap();
    let own = ["--chat-template", jinja.to_str().unwrap()];
    assert_eq!(
        good(&mut render(&own, r#"[{"role":"user","content":"Hi"}]"#)),
        "[user: Hi]"
    );
    let tools = user.home().join("tools.json");
    fs::write(
        &tools,
        r#"[{"type":"function","function":{"name":"add_up","parameters":{}}}]"#,
    )
    .unwrap();
    fs::write(
        &jinja,
        "{{ tools | tojson }}{% if tools %}<tool_call>{% endif %}{{ messages[0].content }}",
    )
    .unwrap();
    let with = [
        "--chat-template",
        jinja.to_str().unwrap(),
        "--tools",
        tools.to_str().unwrap(),
    ];
    assert!(good(&mut render(&with, talk)).contains("add_up"));

    for (talk, word) in [
        ("", "JSON"),
        ("{}", "messages"),
        ("[]", "messages is empty"),
        (r#"[{"content": "Hi"}]"#, "role"),
        (r#"{"messages": [], "top_p": 1}"#, "top_p"),
    ] {
        refused(&mut render(&[], talk), 1, &[word]);
    }
    refused(&mut render(&["/no/such.json"], ""), 1, &["/no/such.json"]);
    refused(
        &mut render(&["--tools", "/no/such.json"], talk),
        1,
        &["--tools /no/such.json"],
    );
}

#[test]
fn a_piped_message_is_answered_once() {
    let user = User::new();
    let chat = |args: &[&str], message: &str| {
        let mut command = user.biplane(&["chat", "-m", &tiny(), "-n", "4", "--temperature", "0"]);
        command.args(args).write_stdin(message);
        command
    };
    let (code, out, said) = end(&mut chat(&[], "Hello\n"));
    assert_eq!(code, 0, "{said}");
    assert!(!out.trim().is_empty());
    assert!(
        said.contains("tok/s") && said.contains("first token"),
        "{said}"
    );
    let (_, quiet, said) = end(&mut chat(&["-q"], "Hello"));
    assert_eq!((quiet, said.as_str()), (out, ""));
    refused(&mut chat(&[], " \n"), 1, &["standard input is empty"]);
    refused(&mut chat(&["--top-p", "2"], "Hello"), 1, &["top_p"]);
    refused(
        &mut chat(&["--load", "/no/such"], "Hello"),
        1,
        &["/no/such"],
    );
    refused(
        user.biplane(&["chat", "-m", "no-such.gguf"])
            .write_stdin("x"),
        2,
        &["no-such.gguf"],
    );
}

#[test]
fn a_real_model_chats() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let user = User::new();
    let model = model.to_str().unwrap();
    let chat = [
        "chat",
        "-q",
        "--exact",
        "-n",
        "40",
        "--temperature",
        "0",
        "-m",
        model,
    ];
    let text = good(
        user.biplane(&chat)
            .write_stdin("What is the capital of France?"),
    );
    assert_eq!(text, "The capital of France is Paris.\n");
}
