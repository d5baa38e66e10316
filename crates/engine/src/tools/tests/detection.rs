//! Formats are found in the templates of the corpus.

use std::{fs, path::Path};

use crate::tools::{ReasoningTags, ToolFormat};

#[test]
fn formats_are_found_in_the_corpus() {
    use ToolFormat::*;
    let expected = [
        ("chatml", Some(Json)),
        ("command-r-v01", None),
        ("command-r7b-tool-use", Some(Command)),
        ("deepseek-r1", Some(DeepSeek)),
        ("deepseek-r1-distill-llama-8b", Some(DeepSeek)),
        ("deepseek-r1-distill-qwen-32b", Some(DeepSeek)),
        ("functionary-medium-v3.1", Some(Functionary)),
        ("gemma-2-2b-it", Some(Gemma)),
        ("gemma-3-it", Some(Gemma)),
        ("gpt-oss-120b", None),
        ("granite-3.3-2b", Some(Granite)),
        ("hermes-2-pro-tool-use", Some(Hermes)),
        ("hermes-3-tool-use", Some(Hermes)),
        ("llama-2-chat", Some(Json)),
        ("llama-3-instruct", Some(Json)),
        ("llama-3.1-8b-instruct", Some(Llama)),
        ("llama-3.2-3b-instruct", Some(Llama)),
        ("llama-3.2-vision-instruct", Some(Llama)),
        ("llama-3.3-70b-instruct", Some(Llama)),
        ("mistral-7b-instruct-v0.1", Some(Json)),
        ("mistral-7b-instruct-v0.3-tools", Some(Mistral)),
        ("mistral-nemo-2407", Some(Mistral)),
        ("mistral-small-3.2", Some(MistralArgs)),
        ("phi-3-mini", Some(Json)),
        ("phi-3.5-mini", Some(Json)),
        ("phi-4", Some(Json)),
        ("phi-4-mini", Some(Phi)),
        ("qwen2.5-7b-instruct", Some(Hermes)),
        ("qwen3-0.6b", Some(Hermes)),
        ("qwen3-coder", None),
        ("qwq-32b", Some(Hermes)),
        ("smollm2-instruct", Some(Json)),
        ("smollm3-3b", Some(Json)),
        ("stable-code-instruct", Some(Json)),
        ("stablelm-2-zephyr", Some(Json)),
        ("tinyllama-1.1b-chat", Some(Json)),
    ];
    let thinking = [
        "deepseek-r1",
        "deepseek-r1-distill-llama-8b",
        "deepseek-r1-distill-qwen-32b",
        "granite-3.3-2b",
        "qwen3-0.6b",
        "qwq-32b",
        "smollm3-3b",
        "command-r7b-tool-use",
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat_templates");
    let templates = fs::read_dir(&folder).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|e| e == "jinja")
    });
    assert_eq!(templates.count(), expected.len());
    for (name, format) in expected {
        let text = fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        assert_eq!(ToolFormat::detect(&text), format, "{name}");
        let thinks = ReasoningTags::detect(&text).is_some();
        assert_eq!(thinks, thinking.contains(&name), "{name}");
    }
}

#[test]
fn names_are_read_back() {
    for format in ToolFormat::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let error = "yaml".parse::<ToolFormat>().unwrap_err().to_string();
    assert!(
        error.contains("yaml") && error.contains("hermes"),
        "{error}"
    );
}
