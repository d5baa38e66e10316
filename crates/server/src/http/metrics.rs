//! The engine's figures in Prometheus' text format.

use std::fmt::Write;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use biplane::{BUCKETS, Histogram, Metrics};

use super::Shared;
use crate::registry::{Stage, Status};

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

pub async fn handle(State(app): State<Shared>) -> Response {
    let mut text = Text::default();
    let ready = u64::from(app.open().is_ok());
    text.gauge(
        "ready",
        "Whether requests are taken.",
        &[("", ready as f64)],
    );
    models(&mut text, &app.models.list());
    engines(&mut text, &app.models.metrics());
    ([(header::CONTENT_TYPE, KIND)], text.0).into_response()
}

/// What is known of models that are not loaded, too.
fn models(text: &mut Text, all: &[Status]) {
    let each = |f: fn(&Status) -> f64| -> Vec<(&str, f64)> {
        all.iter().map(|s| (s.name.as_str(), f(s))).collect()
    };
    let loaded = each(|status| f64::from(u8::from(matches!(status.stage, Stage::Loaded { .. }))));
    text.gauge("model_loaded", "Whether the model is loaded.", &loaded);
    let loads = each(|status| status.loads as f64);
    let help = "How often the model was loaded.";
    text.sample("model_loads_total", help, "counter", &loads);
}

/// The figures of engines by their models' names.
fn engines(text: &mut Text, all: &[(String, Metrics)]) {
    if all.is_empty() {
        return;
    }
    let each = |f: fn(&Metrics) -> f64| -> Vec<(&str, f64)> {
        all.iter().map(|(name, m)| (name.as_str(), f(m))).collect()
    };
    for (name, help, value) in GAUGES {
        text.gauge(name, help, &each(value));
    }
    for (name, help, value) in COUNTERS {
        text.sample(&format!("{name}_total"), help, "counter", &each(value));
    }
    let of = |f: fn(&Metrics) -> &Histogram| -> Vec<(&str, &Histogram)> {
        all.iter().map(|(name, m)| (name.as_str(), f(m))).collect()
    };
    let first = "From submission to the first token.";
    let time = of(|m| &m.time_to_first_token);
    text.histogram("time_to_first_token_seconds", first, &time);
    text.histogram(
        "inter_token_seconds",
        "Between tokens.",
        &of(|m| &m.inter_token),
    );
}

type Figure = (&'static str, &'static str, fn(&Metrics) -> f64);

const GAUGES: [Figure; 7] = [
    ("requests_queued", "Requests that wait.", |m| {
        m.queued as f64
    }),
    ("requests_running", "Sequences that compute.", |m| {
        m.running as f64
    }),
    ("kv_running_bytes", "KV caches of running sequences.", |m| {
        m.running_bytes as f64
    }),
    ("kv_cached_bytes", "Kept prefixes.", |m| {
        m.cached_bytes as f64
    }),
    ("kv_budget_bytes", "What is allowed for both.", |m| {
        m.budget_bytes as f64
    }),
    ("kv_cached_prefixes", "How many prefixes are kept.", |m| {
        m.cached_prefixes as f64
    }),
    (
        "engine_silent_seconds",
        "Since its last sign of life at work.",
        |m| m.silent_for.as_secs_f64(),
    ),
];

const COUNTERS: [Figure; 12] = [
    ("requests", "Requests that ended.", |m| m.finished as f64),
    (
        "requests_cancelled",
        "Requests that nobody listened to any more.",
        |m| m.cancelled as f64,
    ),
    ("requests_failed", "Requests that failed.", |m| {
        m.failed as f64
    }),
    ("steps", "Steps computed.", |m| m.steps as f64),
    (
        "launch_seconds",
        "Describing steps and handing them to the device.",
        |m| m.launching.as_secs_f64(),
    ),
    ("wait_seconds", "Waiting for the device.", |m| {
        m.waiting.as_secs_f64()
    }),
    ("prompt_tokens", "Prompt tokens computed.", |m| {
        m.prompt_tokens as f64
    }),
    (
        "cached_tokens",
        "Prompt tokens that were computed before.",
        |m| m.cached_tokens as f64,
    ),
    ("generated_tokens", "Tokens generated.", |m| {
        m.generated_tokens as f64
    }),
    ("guessed_tokens", "Tokens guessed by speculation.", |m| {
        m.guessed_tokens as f64
    }),
    ("accepted_tokens", "Guessed tokens that were right.", |m| {
        m.accepted_tokens as f64
    }),
    (
        "preemptions",
        "Sequences that gave their memory back.",
        |m| m.preemptions as f64,
    ),
];

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP biplane_{name} {help}");
        let _ = writeln!(self.0, "# TYPE biplane_{name} {kind}");
    }

    /// A figure of each model; an empty name is the server itself.
    fn sample(&mut self, name: &str, help: &str, kind: &str, values: &[(&str, f64)]) {
        self.head(name, help, kind);
        for (model, value) in values {
            let label = match model.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", label(model)),
            };
            let _ = writeln!(self.0, "biplane_{name}{label} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.sample(name, help, "gauge", values);
    }

    fn histogram(&mut self, name: &str, help: &str, all: &[(&str, &Histogram)]) {
        self.head(name, help, "histogram");
        for (model, histogram) in all {
            let model = label(model);
            let mut sum = 0;
            for (bound, n) in BUCKETS.iter().zip(histogram.buckets) {
                sum += n;
                let _ = writeln!(
                    self.0,
                    "biplane_{name}_bucket{{{model},le=\"{bound}\"}} {sum}"
                );
            }
            let count = histogram.count;
            let _ = writeln!(
                self.0,
                "biplane_{name}_bucket{{{model},le=\"+Inf\"}} {count}"
            );
            let _ = writeln!(self.0, "biplane_{name}_sum{{{model}}} {}", histogram.sum);
            let _ = writeln!(self.0, "biplane_{name}_count{{{model}}} {count}");
        }
    }
}

/// A model's name as a label.
fn label(model: &str) -> String {
    let name = model.replace('\\', "\\\\").replace('"', "\\\"");
    format!("model=\"{}\"", name.replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut metrics = Metrics::default();
        metrics.inter_token.buckets[0] = 2;
        metrics.inter_token.buckets[2] = 3;
        metrics.inter_token.count = 6;
        let mut text = Text::default();
        engines(&mut text, &[("a \"b\"".into(), metrics)]);
        for line in [
            "biplane_inter_token_seconds_bucket{model=\"a \\\"b\\\"\",le=\"0.001\"} 2",
            "biplane_inter_token_seconds_bucket{model=\"a \\\"b\\\"\",le=\"0.0025\"} 2",
            "biplane_inter_token_seconds_bucket{model=\"a \\\"b\\\"\",le=\"0.005\"} 5",
            "biplane_inter_token_seconds_bucket{model=\"a \\\"b\\\"\",le=\"+Inf\"} 6",
            "# TYPE biplane_requests_total counter",
            "biplane_requests_total{model=\"a \\\"b\\\"\"} 0",
        ] {
            assert!(text.0.lines().any(|l| l == line), "{line}\n{}", text.0);
        }
    }
}
