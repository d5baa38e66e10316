//! `biplane quantize` and `biplane convert`

use anyhow::{Context, bail};
use biplane::{OutputFormat, memory};

use crate::{
    cli::ConvertArgs,
    model_args::builder_of,
    report::{self, Progress},
};

/// What shells give for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

pub fn quantize(args: ConvertArgs) -> anyhow::Result<()> {
    if args.isq.isq.is_none() && args.isq.isq_override.is_empty() {
        bail!(
            "say what to quantize to, as --isq Q4K (GGUF) or --isq AFQ4 (MLX); `biplane convert` keeps the values"
        );
    }
    convert(args)
}

pub fn convert(args: ConvertArgs) -> anyhow::Result<()> {
    let is_gguf = args
        .output
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let format = args.format.unwrap_or(match is_gguf {
        true => OutputFormat::Gguf,
        false => OutputFormat::Mlx,
    });
    let builder = builder_of(args.model.as_deref());
    // What is unfinished must not stay behind.
    ctrlc::set_handler(|| {
        biplane::remove_unfinished();
        std::process::exit(INTERRUPTED);
    })
    .context("the handler of Ctrl-C")?;
    let progress = Progress::new(false);
    let builder = progress.watch(args.isq.apply(builder));
    let converted = biplane::convert(builder, &args.output, format, args.force)?;
    progress.clear();
    let bits = converted.weight_bytes as f64 * 8.0 / converted.parameters.max(1) as f64;
    report::note(&format!(
        "{}: {} of weights, {bits:.2} bits a parameter, {} matrices quantized · peak memory {}",
        args.output.display(),
        report::bytes(converted.weight_bytes as u64),
        converted.quantized,
        report::bytes(memory::peak_resident_bytes().unwrap_or(0)),
    ));
    Ok(())
}
