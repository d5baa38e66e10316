//! `biplane run` with tools of MCP servers.

use std::io::{ErrorKind, Write};

use anyhow::{Context, bail};
use biplane::{
    ChatEvent, ChatFinish, ChatRequest, FinishReason, McpClient, Model, Timings, ToolConfig,
    ToolLoop, ToolRun, tools::Delta,
};

use crate::report;

/// Answers, and writes the text as it comes; what tools were run goes to standard error.
pub fn answer(
    model: &Model,
    chat: ChatRequest,
    (client, config): (McpClient, ToolConfig),
    quiet: bool,
) -> anyhow::Result<(FinishReason, Timings)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the tools' thread")?;
    runtime.block_on(async {
        client.settled().await;
        let tools = ToolLoop::new(client.tools().clone(), config);
        let mut stream = tools.start(model, chat).await?;
        let mut ends_line = false;
        while let Some(event) = stream.next().await {
            let (deltas, end) = match event {
                ChatEvent::Token { deltas, .. } | ChatEvent::Round { deltas } => (deltas, None),
                ChatEvent::ToolResult(run) => {
                    if !quiet {
                        report::note(&said(&run));
                    }
                    continue;
                }
                ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                } => (deltas, Some((finish(&reason), timings))),
                ChatEvent::Failed(error) => return Err(error.into()),
            };
            let texts = deltas.into_iter().filter_map(|delta| match delta {
                Delta::Content(text) => Some(text),
                _ => None,
            });
            let mut text: String = texts.collect();
            if !text.is_empty() {
                ends_line = text.ends_with('\n');
            }
            if end.is_some() && !ends_line {
                text.push('\n');
            }
            match write(&text) {
                // A reader that goes away ends the answer without an error.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                    return Ok((FinishReason::Cancelled, Timings::default()));
                }
                other => other.context("standard output")?,
            }
            if let Some(end) = end {
                return Ok(end);
            }
        }
        bail!("the engine stopped without an answer")
    })
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn finish(reason: &ChatFinish) -> FinishReason {
    match reason {
        ChatFinish::Length => FinishReason::Length,
        ChatFinish::Cancelled => FinishReason::Cancelled,
        _ => FinishReason::Stop,
    }
}

fn said(run: &ToolRun) -> String {
    let (result, mark) = match &run.result {
        Ok(text) => (text, ""),
        Err(text) => (text, "failed: "),
    };
    let short: String = result.chars().take(200).collect();
    let more = if short.len() < result.len() {
        " …"
    } else {
        ""
    };
    format!(
        "{}({}): {mark}{short}{more}",
        run.call.name, run.call.arguments
    )
}
