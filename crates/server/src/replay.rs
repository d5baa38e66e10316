//! `biplane replay`

use std::process::ExitCode;

use anyhow::Context;
use biplane::Recorded;

use crate::{cli::ReplayArgs, report};

/// Computes every recorded request again; exit code 1 where one gives something else.
pub fn replay(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let recorded = Recorded::read(&args.file)?;
    let backend = args.backend.kind()?;
    let model = args.model.builder(backend).build_blocking()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .context("no runtime can be started")?;
    let mut same = true;
    for (number, recorded) in recorded.iter().enumerate() {
        let replayed = runtime.block_on(biplane::replay(&model, recorded))?;
        same &= replayed.same;
        let verdict = match (replayed.same, replayed.parts_at) {
            (true, _) => "the same".into(),
            (false, Some(at)) => format!("another token at {at}"),
            (false, None) => "another text".into(),
        };
        report::data(&format!(
            "{}: {} tokens, {verdict}\n",
            number + 1,
            replayed.response.tokens.len()
        ))?;
    }
    Ok(ExitCode::from(u8::from(!same)))
}
