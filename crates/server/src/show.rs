//! `biplane show`

use std::fmt::Write as _;

use biplane::{Description, Error, hub};
use clap::Args;

use crate::{
    model_args::builder_of,
    near,
    report::{self, NotHere},
};

/// Arguments of `biplane show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A GGUF file, a directory, or a Hugging Face id (`org/name`, `org/name:Q4_K_M`,
    /// `org/name@revision`); `starter` is the starter model.
    pub model: String,

    /// A JSON object instead of lines.
    #[arg(long)]
    pub json: bool,
}

/// Says what a model is.
pub fn show(args: ShowArgs) -> anyhow::Result<()> {
    let described = match args.model.as_str() {
        // Without a request to any hub or mirror.
        crate::model_args::STARTER if hub::starter_file().is_none() => {
            return Err(NotHere::new("starter", "").into());
        }
        model => builder_of(Some(model)).offline().describe(),
    };
    let described = described.map_err(|error| match error {
        Error::Hub(hub::Error::NotCached { id, missing, .. }) => {
            let hint = near::model_hint(&args.model);
            NotHere::new(&id, &format!(" (missing: {missing}){hint}")).into()
        }
        other => anyhow::Error::new(other),
    })?;
    report::data(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&described)?),
        false => lines(&described)?,
    })
}

fn lines(d: &Description) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let formats: Vec<String> = d
        .formats
        .iter()
        .map(|(name, bytes)| format!("{name} {}", report::bytes(*bytes as u64)))
        .collect();
    let tools = match (&d.tool_format, d.chat_template) {
        (Some(format), _) => format!("yes; tools as {format}"),
        (None, true) => "yes; tools by instructions only".to_owned(),
        (None, false) => "none".to_owned(),
    };
    writeln!(out, "path           {}", d.path.display())?;
    writeln!(out, "format         {}", d.format)?;
    writeln!(out, "architecture   {}", d.architecture)?;
    writeln!(out, "parameters     {:.1}M", d.parameters as f64 / 1e6)?;
    writeln!(
        out,
        "weights        {}",
        report::bytes(d.weight_bytes as u64)
    )?;
    writeln!(out, "stored as      {}", formats.join(", "))?;
    writeln!(out, "context        {} tokens", d.context_length)?;
    writeln!(out, "vocabulary     {} tokens", d.vocab_size)?;
    writeln!(
        out,
        "layers         {} of width {}",
        d.layers, d.hidden_size
    )?;
    writeln!(out, "chat template  {tools}")?;
    Ok(out)
}
