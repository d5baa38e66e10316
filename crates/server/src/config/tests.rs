use std::ffi::OsString;

use biplane::{Device, IsqType, KvType};
use clap::{CommandFactory, FromArgMatches};

use super::*;
use crate::cli::{self, Cli};

fn config(text: &str) -> Config {
    Config {
        path: Some("c.toml".into()),
        table: toml::from_str(text).unwrap(),
    }
}

fn parse(text: &str, line: &str) -> Result<cli::Command, String> {
    let config = config(text);
    let program = Cli::command();
    config.check(&program).map_err(|e| format!("{e:#}"))?;
    let line: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
    match config.parse(program, &line) {
        Ok(matches) => Ok(Cli::from_arg_matches(&matches).unwrap().command),
        Err(Failure::Line(error)) => Err(error.to_string()),
        Err(Failure::File(error)) => Err(format!("{error:#}")),
    }
}

fn serve(text: &str, line: &str) -> crate::serve_args::ServeArgs {
    match parse(text, line).unwrap() {
        cli::Command::Serve(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn flags_count_before_the_file_and_the_file_before_defaults() {
    let text = "port = 1\ndevice = \"cpu\"\ncors-origin = [\"http://a\", \"http://b\"]\ninsecure = true\n\
                [serve]\nport = 2\nisq = \"Q4K\"\nkv-type = \"q8\"\n[chat]\nport-of-another = 3\n";
    let text = text.replace("[chat]\nport-of-another = 3\n", "");
    let args = serve(&text, "biplane serve");
    assert_eq!(args.options.port, 2);
    assert_eq!(args.options.model.device, Device::Cpu);
    assert_eq!(args.options.model.isq.isq, Some(IsqType::Q4K));
    assert_eq!(args.options.model.kv_type, KvType::Q8);
    assert_eq!(args.options.cors_origin, ["http://a", "http://b"]);
    assert!(args.options.insecure);
    assert_eq!(args.options.max_queue, 256);
    let args = serve(
        &text,
        "biplane serve --port 3 --isq Q8_0 --cors-origin http://c",
    );
    assert_eq!(args.options.port, 3);
    assert_eq!(args.options.model.isq.isq, Some(IsqType::Q8_0));
    assert_eq!(args.options.cors_origin, ["http://c"]);
}

#[test]
fn several_models_are_configured() {
    let text = "models-dir = [\"/models\"]\n[serve]\nmodel = [\"a.gguf\", \"b=org/b\"]\nlazy = true\n\
                max-models = 1\nmodels-memory = \"2G\"\nidle-unload = 60\n";
    let options = serve(text, "biplane serve").options;
    assert_eq!(options.models, ["a.gguf", "b=org/b"]);
    assert_eq!(options.models_dir, [std::path::PathBuf::from("/models")]);
    assert!(options.lazy);
    assert_eq!(options.idle_unload, Some(60));
    let limits = options.limits(&options.engine(2));
    assert_eq!((limits.models, limits.memory), (Some(1), Some(2 << 30)));
    assert_eq!(limits.kv, 256 << 20);
    let options = serve(text, "biplane serve -m c --kv-memory 1G").options;
    assert_eq!(options.models, ["c"]);
    assert_eq!(options.limits(&options.engine(1)).kv, 1 << 30);
}

#[test]
fn what_a_flag_excludes_is_not_taken_from_the_file() {
    let text = "draft = \"small.gguf\"\nchat-template = \"a.jinja\"";
    let args = serve(text, "biplane serve");
    assert_eq!(args.options.engine.draft.as_deref(), Some("small.gguf"));
    let args = serve(text, "biplane serve --prompt-lookup");
    assert_eq!(args.options.engine.draft, None);
    let cli::Command::Run(run) = parse(text, "biplane run --raw hello").unwrap() else {
        panic!("another command");
    };
    assert!(run.raw && run.chat_template.is_none());
}

#[test]
fn commands_within_commands_are_configured() {
    let text = "model = \"a.gguf\"";
    let cli::Command::Template(args) = parse(text, "biplane template render").unwrap() else {
        panic!("another command");
    };
    let crate::template::TemplateCommand::Render(args) = args.what;
    assert_eq!(args.model.as_deref(), Some("a.gguf"));
}

#[test]
fn what_is_unknown_or_wrong_is_named_with_the_file() {
    for (text, words) in [
        ("prot = 1", &["c.toml", "prot", "did you mean port"][..]),
        ("top_p = 1", &["top_p", "top-p"]),
        ("[serv]\nport = 1", &["serv", "did you mean serve"]),
        ("[serve]\nwindow = 1", &["window", "serve"]),
        ("force = true", &["force"]),
        ("port = [[1]]", &["port", "array of arrays"]),
        ("port = 1979-05-27", &["port", "a date"]),
        ("port = 99999", &["c.toml", "port", "99999"]),
        ("device = \"tpu\"", &["c.toml", "tpu", "auto, cpu"]),
    ] {
        let said = parse(text, "biplane serve").unwrap_err();
        for word in words {
            assert!(said.contains(word), "{text}: {word:?} is not in: {said}");
        }
    }
    // What is wrong on the line is not the file's.
    let said = parse("port = 1", "biplane serve --port x").unwrap_err();
    assert!(!said.contains("c.toml"), "{said}");
}
