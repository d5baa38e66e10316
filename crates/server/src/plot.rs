//! Bars of figures as an SVG file.

use std::fmt::Write as _;

use biplane::bench::BenchResult;

/// Colours that differ for those who see few, too.
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];
const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 20.0;
const TOP: f64 = 64.0;

/// A figure of a measurement: what it is called, and how it is read.
type Figure = (&'static str, fn(&BenchResult) -> f64);

const FIGURES: [Figure; 4] = [
    ("prefill, tokens/s", |r| r.prefill_tokens_per_second),
    ("decode, tokens/s", |r| r.decode_tokens_per_second),
    ("first token, ms", |r| r.time_to_first_token_ms),
    ("peak memory, MiB", |r| {
        r.peak_memory_bytes as f64 / f64::from(1 << 20)
    }),
];

/// The figures side by side, a bar for every result; each figure has its own scale.
pub fn svg(title: &str, results: &[BenchResult]) -> Result<String, std::fmt::Error> {
    let width = LEFT.mul_add(2.0, WIDTH * FIGURES.len() as f64);
    let height = TOP + HEIGHT + 60.0;
    let mut out = String::new();
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="12">"#
    )?;
    writeln!(out, r#"<rect width="100%" height="100%" fill="white"/>"#)?;
    let title = escaped(title);
    writeln!(
        out,
        r#"<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{title}</text>"#
    )?;
    for (i, result) in results.iter().enumerate() {
        let x = 220.0f64.mul_add(i as f64, LEFT);
        let name = escaped(&format!(
            "{} on {}, {}",
            result.backend, result.device, result.dtype
        ));
        let colour = COLOURS[i % COLOURS.len()];
        writeln!(
            out,
            r#"<rect x="{x}" y="36" width="12" height="12" fill="{colour}"/>"#
        )?;
        writeln!(out, r#"<text x="{}" y="46">{name}</text>"#, x + 18.0)?;
    }
    for (n, (name, figure)) in FIGURES.iter().enumerate() {
        let left = WIDTH.mul_add(n as f64, LEFT);
        let values: Vec<f64> = results.iter().map(figure).collect();
        let most = values
            .iter()
            .copied()
            .filter(|v| v.is_finite())
            .fold(0.0, f64::max);
        let base = TOP + HEIGHT + 20.0;
        let step = (WIDTH - 40.0) / results.len().max(1) as f64;
        for (i, value) in values.iter().enumerate() {
            let value = if value.is_finite() { *value } else { 0.0 };
            let tall = if most > 0.0 {
                HEIGHT * value / most
            } else {
                0.0
            };
            let x = step.mul_add(i as f64, left + 10.0);
            let wide = (step * 0.8).min(60.0);
            let colour = COLOURS[i % COLOURS.len()];
            writeln!(
                out,
                r#"<rect x="{x:.1}" y="{:.1}" width="{wide:.1}" height="{tall:.1}" fill="{colour}"/>"#,
                base - tall
            )?;
            writeln!(
                out,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                x + wide / 2.0,
                base - tall - 4.0,
                short(value)
            )?;
        }
        writeln!(
            out,
            r#"<line x1="{left}" y1="{base}" x2="{}" y2="{base}" stroke="black"/>"#,
            left + WIDTH - 30.0
        )?;
        writeln!(out, r#"<text x="{left}" y="{}">{name}</text>"#, base + 20.0)?;
    }
    writeln!(out, "</svg>")?;
    Ok(out)
}

fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

/// Text in XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(backend: &str, speed: f64) -> BenchResult {
        BenchResult {
            backend: backend.into(),
            device: "cpu".into(),
            dtype: "f32".into(),
            kv_format: "f16".into(),
            threads: 1,
            prompt_tokens: 8,
            generated_tokens: 8,
            prefill_tokens_per_second: speed,
            streams: 1,
            decode_tokens_per_second: speed,
            time_to_first_token_ms: speed,
            load_ms: 1.0,
            peak_memory_bytes: 1 << 20,
            launch_ms: 1.0,
            wait_ms: 1.0,
        }
    }

    #[test]
    fn bars_are_as_tall_as_their_figures() {
        let svg = svg("a <b> & c", &[result("candle", 200.0), result("mlx", 50.0)]).unwrap();
        assert!(
            svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
            "{svg}"
        );
        assert!(svg.contains("a &lt;b&gt; &amp; c"), "{svg}");
        assert!(svg.contains("candle on cpu, f32") && svg.contains("mlx on cpu, f32"));
        // The tallest bar, and one a quarter of it.
        assert!(svg.contains(r##"height="180.0" fill="#0072b2""##), "{svg}");
        assert!(svg.contains(r##"height="45.0" fill="#e69f00""##), "{svg}");
        assert!(svg.contains(">200<") && svg.contains(">50.0<"), "{svg}");
    }

    #[test]
    fn figures_that_are_none_are_drawn_as_nothing() {
        let svg = svg("t", &[result("candle", f64::NAN), result("mlx", 0.0)]).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
