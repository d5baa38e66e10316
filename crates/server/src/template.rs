//! `biplane template`

use std::{io::Read, path::PathBuf};

use anyhow::{Context, bail};
use biplane::{ChatRequest, Message, ToolDefinition};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    model_args::builder_of,
    report::{self, Progress},
};

/// Arguments of `biplane template`.
#[derive(Debug, Args)]
pub struct TemplateArgs {
    #[command(subcommand)]
    pub what: TemplateCommand,
}

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Write the prompt that a model's chat template makes of a conversation.
    Render(RenderArgs),
}

/// Arguments of `biplane template render`.
#[derive(Debug, Args)]
pub struct RenderArgs {
    /// A GGUF file, a directory, or a Hugging Face id; without it the small starter model.
    #[arg(short, long, env = "BIPLANE_MODEL")]
    pub model: Option<String>,

    /// A chat template (Jinja) to use instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Tools that the model may call: a file with a JSON array as `tools` of a request.
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,

    /// Whether to end with the beginning of the answer, as a served model does.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = clap::ArgAction::Set)]
    pub add_generation_prompt: bool,

    /// The prompt's token ids, a JSON array, instead of its text.
    #[arg(long)]
    pub ids: bool,

    /// The conversation: a JSON array of messages, or an object with `messages` and, if wanted, `tools`
    /// and `chat_template_kwargs`; standard input when it is missing or `-`.
    pub file: Option<PathBuf>,
}

/// A conversation as it may be written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Conversation {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<ToolDefinition>,
    #[serde(default)]
    chat_template_kwargs: Map<String, Value>,
}

pub fn template(args: TemplateArgs) -> anyhow::Result<()> {
    let TemplateCommand::Render(args) = args.what;
    let name = match &args.file {
        Some(path) if path.as_os_str() != "-" => path.display().to_string(),
        _ => "standard input".to_owned(),
    };
    let text = match &args.file {
        Some(path) if path.as_os_str() != "-" => std::fs::read_to_string(path),
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
    };
    let mut talk = conversation(&text.with_context(|| name.clone())?).context(name)?;
    if let Some(path) = &args.tools {
        let at = || format!("--tools {}", path.display());
        if !talk.tools.is_empty() {
            bail!("{}: the conversation has tools already", at());
        }
        let text = std::fs::read_to_string(path).with_context(at)?;
        talk.tools = serde_json::from_str(&text).with_context(at)?;
    }
    let progress = Progress::new(false);
    let mut builder = progress.watch(builder_of(args.model.as_deref()));
    if let Some(file) = &args.chat_template {
        builder = builder.with_chat_template(file);
    }
    let maker = builder.prompt_maker()?;
    progress.clear();
    let prompt = maker.render(&ChatRequest {
        tools: talk.tools,
        template_variables: talk.chat_template_kwargs,
        add_generation_prompt: args.add_generation_prompt,
        ..ChatRequest::new(talk.messages)
    })?;
    report::data(&match args.ids {
        true => format!("{}\n", serde_json::to_string(&prompt.tokens)?),
        // Exactly the prompt: no newline of ours.
        false => prompt.text,
    })
}

fn conversation(text: &str) -> anyhow::Result<Conversation> {
    let value: Value = serde_json::from_str(text).context("this is no JSON")?;
    match value {
        Value::Array(_) => Ok(Conversation {
            messages: serde_json::from_value(value).context("messages")?,
            tools: Vec::new(),
            chat_template_kwargs: Map::new(),
        }),
        Value::Object(_) => Ok(serde_json::from_value(value)?),
        _ => bail!("expected an array of messages, or an object with `messages`"),
    }
}

#[cfg(test)]
mod tests {
    use super::conversation;

    #[test]
    fn conversations_come_in_two_forms_and_nothing_is_dropped() {
        let user = r#"[{"role":"user","content":"Hi"}]"#;
        assert_eq!(conversation(user).unwrap().messages.len(), 1);
        let object = format!(r#"{{"messages":{user},"chat_template_kwargs":{{"a":1}}}}"#);
        assert_eq!(conversation(&object).unwrap().chat_template_kwargs["a"], 1);
        for (wrong, word) in [
            ("{", "no JSON"),
            ("1", "expected an array"),
            (r#"[{"content":"Hi"}]"#, "role"),
            (r#"{"messages":[],"temperature":1}"#, "temperature"),
        ] {
            let said = format!("{:#}", conversation(wrong).unwrap_err());
            assert!(said.contains(word), "{said}");
        }
    }
}
