//! `biplane run`

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, bail};
use biplane::{BackendKind, Event, FinishReason, Message, Request, SamplingChanges, Timings};

use crate::{
    cli::RunArgs,
    report::{self, Progress},
};

pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let backend = match args.backend {
        Some(backend) => backend,
        None => BackendKind::default_here()?,
    };
    let prompt = prompt(args.prompt.as_deref())?;
    let constraint = args.form.constraint()?;
    let progress = Progress::new(args.quiet);
    let mut builder = progress
        .watch(args.model.builder(backend))
        .with_engine(args.engine.config());
    if let Some(file) = &args.chat_template {
        builder = builder.with_chat_template(file);
    }
    let model = builder.build_blocking()?;
    progress.clear();
    let tokens = if args.raw {
        model.prompt_tokens(&prompt)?
    } else {
        let mut messages = Vec::new();
        messages.extend(args.system.map(|text| Message::new("system", text)));
        messages.push(Message::new("user", prompt));
        model.chat_tokens(&messages)?
    };
    let changes = SamplingChanges {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        seed: args.seed,
        ..SamplingChanges::default()
    };
    let events = model.submit(Request {
        sampling: model.sampling(&changes)?,
        max_tokens: args.max_tokens,
        constraint,
        ..Request::new(tokens)
    })?;
    let (reason, timings) = print(events)?;
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
