//! How answers are drawn, and what they must be.

use std::path::PathBuf;

use anyhow::Context;
use biplane::{Constraint, SamplingChanges};
use clap::Args;

/// How tokens are drawn.
#[derive(Clone, Debug, Default, Args)]
pub struct SamplingArgs {
    /// Randomness: 0 always takes the most likely token. The model's own recommendation by default,
    /// else 0.
    #[arg(long, allow_negative_numbers = true, env = "BIPLANE_TEMPERATURE")]
    pub temperature: Option<f32>,

    /// Only the most likely tokens that together have this probability.
    #[arg(long, allow_negative_numbers = true, env = "BIPLANE_TOP_P")]
    pub top_p: Option<f32>,

    /// Only the K most likely tokens.
    #[arg(long, env = "BIPLANE_TOP_K")]
    pub top_k: Option<usize>,

    /// Only tokens at least this fraction as likely as the most likely one.
    #[arg(long, allow_negative_numbers = true, env = "BIPLANE_MIN_P")]
    pub min_p: Option<f32>,

    /// Makes the random choices repeatable, alike on every backend.
    #[arg(long, env = "BIPLANE_SEED")]
    pub seed: Option<u64>,

    /// Most tokens to generate; what the context leaves by default.
    #[arg(short = 'n', long, env = "BIPLANE_MAX_TOKENS")]
    pub max_tokens: Option<usize>,
}

impl SamplingArgs {
    /// What differs from the model's own recommendation.
    pub fn changes(&self) -> SamplingChanges {
        SamplingChanges {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            ..SamplingChanges::default()
        }
    }
}

/// What the answer must be.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub struct FormArgs {
    /// JSON that fits a JSON Schema: a file, or the schema itself.
    #[arg(long, value_name = "FILE|JSON")]
    pub json_schema: Option<String>,

    /// A JSON object.
    #[arg(long)]
    pub json_object: bool,

    /// Text that a regular expression matches as a whole.
    #[arg(long, value_name = "REGEX")]
    pub regex: Option<String>,

    /// Text of a Lark grammar, in llguidance's dialect.
    #[arg(long, value_name = "FILE")]
    pub lark: Option<PathBuf>,

    /// One of these texts, separated by commas or in several of this option.
    #[arg(long, value_name = "A,B…", value_delimiter = ',')]
    pub choice: Vec<String>,
}

impl FormArgs {
    /// The constraint that is asked for, if any.
    pub fn constraint(self) -> anyhow::Result<Option<Constraint>> {
        let read = |path: &std::path::Path| {
            std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))
        };
        Ok(if let Some(schema) = self.json_schema {
            let inline = schema.trim_start().starts_with('{') || schema.trim() == "true";
            let text = match inline {
                true => schema,
                false => read(schema.as_ref())?,
            };
            let schema = serde_json::from_str(&text).context("--json-schema: this is no JSON")?;
            Some(Constraint::JsonSchema(schema))
        } else if self.json_object {
            Some(Constraint::JsonObject)
        } else if let Some(path) = self.lark {
            Some(Constraint::Lark(read(&path)?))
        } else if !self.choice.is_empty() {
            Some(Constraint::Choice(self.choice))
        } else {
            self.regex.map(Constraint::Regex)
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn form(args: &[&str]) -> anyhow::Result<Option<Constraint>> {
        let args = ["biplane", "run"].iter().chain(args).chain(&["prompt"]);
        match Cli::try_parse_from(args)?.command {
            Command::Run(run) => run.form.constraint(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn forms_of_answers_parse_and_exclude_each_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(form(&[]).unwrap(), None);
        let schema = Constraint::JsonSchema(serde_json::json!({"type": "null"}));
        let text = r#" {"type": "null"}"#;
        assert_eq!(
            form(&["--json-schema", text]).unwrap(),
            Some(schema.clone())
        );
        std::fs::write(path, text).unwrap();
        assert_eq!(form(&["--json-schema", path]).unwrap(), Some(schema));
        std::fs::write(path, "start: \"a\"").unwrap();
        let lark = Constraint::Lark("start: \"a\"".into());
        assert_eq!(form(&["--lark", path]).unwrap(), Some(lark));
        assert!(form(&["--json-schema", path]).is_err());
        assert!(form(&["--lark", "/no/such/file"]).is_err());
        let object = form(&["--json-object"]).unwrap();
        assert_eq!(object, Some(Constraint::JsonObject));
        let regex = form(&["--regex", "a,b"]).unwrap();
        assert_eq!(regex, Some(Constraint::Regex("a,b".into())));
        let choice = Constraint::Choice(["a", "b c", "d"].map(str::to_owned).to_vec());
        assert_eq!(
            form(&["--choice", "a,b c", "--choice", "d"]).unwrap(),
            Some(choice)
        );
        assert!(form(&["--json-object", "--regex", "a"]).is_err());
        assert!(form(&["--choice", "a", "--lark", path]).is_err());
    }
}
