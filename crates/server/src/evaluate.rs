//! `biplane verify` and `biplane perplexity`

use std::{fmt::Write as _, path::Path, process::ExitCode};

use anyhow::{Context, bail};
use biplane::{
    BackendKind,
    evaluate::{self, PerplexitySettings, Tolerances, VerifyReport, VerifySettings},
};

use crate::{
    cli::{PerplexityArgs, VerifyArgs},
    report::{self, Progress},
};

pub fn perplexity(args: PerplexityArgs) -> anyhow::Result<()> {
    let backend = args.backend.kind()?;
    let text = read(&args.file)?;
    let settings = PerplexitySettings {
        window: args.window,
    };
    let progress = Progress::new(false);
    progress.begin(args.model.model.as_deref());
    let builder = progress.watch(args.model.builder(backend));
    let result = evaluate::perplexity(builder, &text, &settings)?;
    progress.clear();
    report::data(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&result)?),
        false => format!(
            "perplexity {:.4} (NLL {:.5} ± {:.5} over {} tokens, windows of {})\n",
            result.perplexity, result.nll, result.standard_error, result.tokens, result.window
        ),
    })
}

pub fn verify(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let backends = match args.backends.as_slice() {
        [] => {
            let all: Vec<_> = BackendKind::compiled().collect();
            match <[_; 2]>::try_from(all) {
                Ok(both) => both,
                Err(_) => bail!("this build has not both backends; build with --features mlx"),
            }
        }
        [a, b] => [*a, *b],
        _ => bail!("--backends takes two, as candle,mlx"),
    };
    let mut settings = VerifySettings {
        backends,
        generate: args.generate,
        tolerances: Tolerances {
            nll: args.max_nll_difference,
            top1: args.min_top1,
        },
        ..VerifySettings::default()
    };
    if !args.prompt.is_empty() {
        settings.prompts = args.prompt;
    }
    if let Some(file) = &args.text {
        settings.text = read(file)?;
    }
    let progress = Progress::new(false);
    progress.begin(args.model.model.as_deref());
    let builder = progress.watch(args.model.builder(backends[0]));
    let report = evaluate::verify(builder, &settings)?;
    progress.clear();
    report::data(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&report)?),
        false => table(&report)?,
    })?;
    Ok(match report.agree {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn table(r: &VerifyReport) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let [a, b] = [0, 1].map(|i| format!("{} ({}, {})", r.backends[i], r.devices[i], r.dtypes[i]));
    writeln!(out, "{a} against {b}\n")?;
    writeln!(
        out,
        "{:42} {:>6} {:>10} {:>9}  first difference",
        "prompt", "same", "max logit", "KL"
    )?;
    for p in &r.prompts {
        let first = match &p.divergence {
            None => "none".to_owned(),
            Some(d) => format!(
                "token {}: {:?} (lead {:.4}) and {:?} (lead {:.4})",
                d.at, d.tokens[0], d.gaps[0], d.tokens[1], d.gaps[1]
            ),
        };
        let mut prompt = format!("{:?}", p.prompt);
        if prompt.chars().count() > 42 {
            prompt = prompt.chars().take(41).chain(['…']).collect();
        }
        writeln!(
            out,
            "{prompt:42} {:>6} {:>10.2e} {:>9.2e}  {first}",
            p.same_tokens, p.max_logit_difference, p.kl
        )?;
    }
    let t = &r.text;
    writeln!(
        out,
        "\ntext of {} predicted tokens\n  top-1 agreement  {:.2} %{}\n  max logit        {:.2e}\n  KL               {:.2e}\n  NLL              {:.6} and {:.6}, difference {:.2e}\n  perplexity       {:.4} and {:.4}\n  seconds          {:.1} and {:.1}",
        t.tokens,
        100.0 * t.top1_agreement,
        if t.top1_agreement < 1.0 {
            format!(" (largest lead overruled: {:.4})", t.worst_disagreement)
        } else {
            String::new()
        },
        t.max_logit_difference,
        t.kl,
        t.nll[0],
        t.nll[1],
        (t.nll[0] - t.nll[1]).abs(),
        t.perplexity[0],
        t.perplexity[1],
        t.seconds[0],
        t.seconds[1],
    )?;
    writeln!(
        out,
        "\n{}: the limits are an NLL difference of {} and a top-1 agreement of {} %",
        if r.agree {
            "the backends agree"
        } else {
            "THE BACKENDS DO NOT AGREE"
        },
        r.tolerances.nll,
        100.0 * r.tolerances.top1
    )?;
    Ok(out)
}
