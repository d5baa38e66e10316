use std::collections::VecDeque;

use biplane::ModelBuilder;

use super::{
    command::{Command, command},
    input::{Input, Lines},
    saved::Saved,
    session::Session,
    settings::Settings,
};

/// What a user types.
struct Typed {
    lines: VecDeque<Input>,
    remembered: Vec<String>,
}

impl Typed {
    fn new(lines: &[&str]) -> Self {
        Self {
            lines: lines.iter().map(|l| Input::Line((*l).into())).collect(),
            remembered: Vec::new(),
        }
    }
}

impl Lines for Typed {
    fn line(&mut self, _: &str) -> anyhow::Result<Input> {
        Ok(self.lines.pop_front().unwrap_or(Input::End))
    }

    fn remember(&mut self, message: &str) {
        self.remembered.push(message.to_owned());
    }
}

fn session() -> Session {
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/llama/mlx-4bit"
    );
    let builder = ModelBuilder::new(model).with_device(biplane::Device::Cpu);
    let mut settings = Settings::default();
    settings.set("max_tokens", "4").unwrap();
    settings.set("temperature", "0").unwrap();
    let mut session = Session::new(builder.build_blocking().unwrap(), None, settings, None);
    session.quiet = true;
    session
}

/// Gives what went to standard output.
fn converse(session: &mut Session, typed: &mut Typed) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut out = Vec::new();
    session.converse(typed, &mut out, &runtime).unwrap();
    String::from_utf8(out).unwrap()
}

fn roles(session: &Session) -> Vec<&str> {
    session.messages.iter().map(|m| m.role.as_str()).collect()
}

#[test]
fn lines_are_commands_or_messages() {
    let read = |line| command(line).map(Result::unwrap);
    assert_eq!(read("hello /help"), None);
    assert_eq!(read("/usr/bin is a folder"), None);
    assert_eq!(read("//help"), None);
    assert_eq!(read("/ 2"), None);
    assert_eq!(read(" /help "), Some(Command::Help));
    assert_eq!(read("/quit"), Some(Command::Exit));
    assert_eq!(
        read("/system be kind"),
        Some(Command::System(Some("be kind".into())))
    );
    assert_eq!(
        read("/system \"\""),
        Some(Command::System(Some(String::new())))
    );
    assert_eq!(
        read("/set top_p 0.5"),
        Some(Command::Set("top_p".into(), "0.5".into()))
    );
    assert_eq!(
        read("/save my talk.json"),
        Some(Command::Save("my talk.json".into()))
    );
    let wrong = |line| command(line).unwrap().unwrap_err();
    assert!(wrong("/regn").contains("/regen"));
    assert!(wrong("/save").contains("file"));
    assert!(wrong("/clear all").contains("nothing after"));
}

#[test]
fn settings_are_checked_when_they_are_made() {
    let mut settings = Settings::default();
    settings.set("top-p", "0.5").unwrap();
    let before = settings.clone();
    for (name, value, word) in [
        ("temprature", "1", "temperature"),
        ("top_p", "2", "top_p"),
        ("top_k", "many", "a number"),
        ("seed", "-1", "a number"),
        ("max_tokens", "0", "max_tokens"),
        ("temperature", "NaN", "temperature"),
        ("min_p", "", "needs a value"),
    ] {
        let said = settings.set(name, value).unwrap_err();
        assert!(said.contains(word), "{said}");
        assert_eq!(settings, before);
    }
    settings.set("top_p", "default").unwrap();
    assert_eq!(settings, Settings::default());
}

#[test]
fn a_conversation_goes_on_and_can_be_changed() {
    let mut session = session();
    let said = converse(&mut session, &mut Typed::new(&["Hello", "Again"]));
    assert!(!said.trim().is_empty());
    assert_eq!(roles(&session), ["user", "assistant", "user", "assistant"]);
    let last = session.messages.last().unwrap().clone();
    converse(&mut session, &mut Typed::new(&["/regen"]));
    assert_eq!(session.messages.last(), Some(&last), "temperature is 0");
    assert_eq!(session.messages.len(), 4);
    converse(
        &mut session,
        &mut Typed::new(&["/nonsense", "/set top_p 7", "/load /no/such/file"]),
    );
    assert_eq!(session.messages.len(), 4);
    converse(
        &mut session,
        &mut Typed::new(&["/clear", "/regen", "/exit", "never said"]),
    );
    assert!(session.messages.is_empty());
}

#[test]
fn another_seed_gives_another_answer() {
    let mut session = session();
    for (name, value) in [("temperature", "1.5"), ("seed", "1"), ("max_tokens", "12")] {
        session.settings.set(name, value).unwrap();
    }
    converse(&mut session, &mut Typed::new(&["Hello"]));
    let first = session.messages.last().unwrap().clone();
    converse(&mut session, &mut Typed::new(&["/regen"]));
    assert_ne!(session.messages.last(), Some(&first));
    assert_eq!(roles(&session), ["user", "assistant"]);
}

#[test]
fn many_lines_are_one_message_and_nothing_in_them_is_a_command() {
    let mut session = session();
    let mut typed = Typed::new(&[
        "\"\"\"one",
        "",
        "/clear",
        "two\"\"\"",
        "\"\"\"/help\"\"\"",
        "//x",
    ]);
    converse(&mut session, &mut typed);
    let said: Vec<_> = session
        .messages
        .iter()
        .step_by(2)
        .map(|m| m.content.clone())
        .collect();
    assert_eq!(said, ["one\n\n/clear\ntwo", "/help", "/x"]);
}

#[test]
fn ctrl_c_at_the_prompt_drops_what_was_typed() {
    let mut session = session();
    let mut typed = Typed::new(&["\"\"\"one"]);
    typed.lines.push_back(Input::Interrupted);
    typed.lines.push_back(Input::Interrupted);
    typed.lines.push_back(Input::Line("Hello".into()));
    converse(&mut session, &mut typed);
    assert_eq!(session.messages.first().unwrap().content, "Hello");
    assert_eq!(typed.remembered, ["Hello"]);
}

#[test]
fn conversations_are_saved_and_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let save = format!("/save {}", file.display());
    let mut first = session();
    converse(
        &mut first,
        &mut Typed::new(&["/system be brief", "Hello", &save, &save]),
    );
    let mut second = session();
    second.settings = Settings::default();
    converse(
        &mut second,
        &mut Typed::new(&[&format!("/load {}", file.display())]),
    );
    assert_eq!(second.messages, first.messages);
    assert_eq!(second.system.as_deref(), Some("be brief"));
    assert_eq!(second.settings, first.settings);

    // What is no conversation is neither replaced nor loaded.
    let other = dir.path().join("notes.txt");
    std::fs::write(&other, "notes").unwrap();
    converse(
        &mut first,
        &mut Typed::new(&[&format!("/save {}", other.display())]),
    );
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "notes");
    assert!(first.load(&other).is_err());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"4\"", "\"x\"")).unwrap();
    assert!(Saved::read(&file).is_ok());
    let before = second.messages.len();
    assert!(second.load(&file).is_err());
    assert_eq!(second.messages.len(), before);
}

#[test]
fn a_message_that_cannot_be_answered_is_no_part_of_the_conversation() {
    let mut session = session();
    let long = "word ".repeat(100_000);
    converse(&mut session, &mut Typed::new(&["Hello", &long]));
    assert_eq!(roles(&session), ["user", "assistant"]);
}
