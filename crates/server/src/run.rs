//! `biplane run`

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, bail};
use biplane::{ChatRequest, Event, FinishReason, Message, Request, Timings};

use crate::{
    cli::RunArgs,
    report::{self, Progress},
    run_tools,
};

pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let backend = args.backend.kind()?;
    let prompt = prompt(args.prompt.as_deref())?;
    let constraint = args.form.constraint()?;
    let changes = args.sampling.changes();
    // Loading may take long, and what is wrong can be known before.
    let usual = biplane::SamplingParams::default();
    changes
        .apply(usual)
        .validate()
        .map_err(anyhow::Error::msg)?;
    // A text that is continued as it is has no place for calls; the environment is for all that have.
    let tools = match (args.raw, &args.tools.mcp_config) {
        (true, Some(_)) if std::env::var_os("MCP_CONFIG_PATH").is_none() => {
            bail!("--mcp-config is for conversations; leave out --raw or --mcp-config")
        }
        (true, _) => None,
        (false, _) => args.tools.connect()?,
    };
    let progress = Progress::new(args.quiet);
    progress.begin(args.model.model.as_deref());
    let mut builder = progress
        .watch(args.model.builder(backend))
        .with_engine(args.engine.config());
    if let Some(file) = &args.chat_template {
        builder = builder.with_chat_template(file);
    }
    let model = builder.build_blocking()?;
    progress.clear();
    let mut request = Request {
        sampling: model.sampling(&changes)?,
        max_tokens: args.sampling.max_tokens,
        constraint,
        continues: args.raw,
        ..Request::default()
    };
    let mut messages = Vec::new();
    messages.extend(args.system.map(|text| Message::new("system", text)));
    let (reason, timings) = match tools {
        Some(tools) => {
            messages.push(Message::new("user", prompt));
            let chat = ChatRequest {
                generation: request,
                sampling: Some(changes),
                ..ChatRequest::new(messages)
            };
            run_tools::answer(&model, chat, tools, args.quiet)?
        }
        None => {
            request.tokens = if args.raw {
                model.prompt_tokens(&prompt)?
            } else {
                messages.push(Message::new("user", prompt));
                model.chat_tokens(&messages)?
            };
            print(model.submit(request)?)?
        }
    };
    if !args.quiet {
        figures(&model, reason, &timings);
    }
    futures::executor::block_on(model.close());
    Ok(())
}

/// The prompt from the argument, or from standard input when it is piped.
fn prompt(argument: Option<&str>) -> anyhow::Result<String> {
    let piped = || -> anyhow::Result<String> {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input is not UTF-8 text")?;
        Ok(text)
    };
    let text = match argument {
        Some("-") => piped()?,
        Some(text) => text.to_owned(),
        None if !std::io::stdin().is_terminal() => piped()?,
        None => bail!("no prompt; write one after the options, or pipe it in"),
    };
    if text.is_empty() {
        bail!("the prompt is empty");
    }
    Ok(text)
}

/// Writes the text as it comes. A reader that goes away ends the answer without an error.
fn print(
    mut events: tokio::sync::mpsc::Receiver<Event>,
) -> anyhow::Result<(FinishReason, Timings)> {
    let mut out = std::io::stdout().lock();
    let mut show = |text: &str| -> std::io::Result<()> {
        out.write_all(text.as_bytes())?;
        out.flush()
    };
    while let Some(event) = events.blocking_recv() {
        let shown = match event {
            Event::Token { text, .. } => show(&text),
            Event::Prompt(_) => Ok(()),
            Event::Done {
                text,
                reason,
                timings,
            } => {
                let newline = if text.ends_with('\n') { "" } else { "\n" };
                let _ = show(&format!("{text}{newline}"));
                return Ok((reason, timings));
            }
            Event::Failed(error) => return Err(error.into()),
        };
        match shown {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                return Ok((FinishReason::Cancelled, Timings::default()));
            }
            other => other.context("standard output")?,
        }
    }
    bail!("the engine stopped without an answer")
}

fn figures(model: &biplane::Model, reason: FinishReason, t: &Timings) {
    if reason == FinishReason::Cancelled {
        return;
    }
    let memory = biplane::memory::peak_resident_bytes().map_or_else(String::new, |peak| {
        format!(" · peak memory {}", report::bytes(peak))
    });
    let cut = if reason == FinishReason::Length {
        " (cut at the limit)"
    } else {
        ""
    };
    report::note(&format!(
        "{} on {} · prompt {} tokens, {:.1} tok/s · first token {:.0} ms · {} tokens{cut}, {:.1} tok/s{memory}",
        model.info().backend,
        model.info().device,
        t.prompt_tokens,
        t.prompt_tokens_per_second(),
        t.time_to_first_token.as_secs_f64() * 1e3,
        t.generated_tokens,
        t.decode_tokens_per_second(),
    ));
}
