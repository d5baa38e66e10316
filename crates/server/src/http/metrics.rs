//! The engine's figures in Prometheus' text format.

use std::fmt::Write;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use biplane::{BUCKETS, Histogram, Metrics};

use super::{Shared, state::Phase};

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

pub async fn handle(State(app): State<Shared>) -> Response {
    let metrics = match app.phase() {
        Phase::Ready(model) => Some(model.metrics()),
        Phase::Loading { .. } => None,
    };
    let mut text = Text::default();
    let ready = u64::from(app.model().is_ok());
    text.gauge("ready", "Whether requests are taken.", ready as f64);
    if let Some(metrics) = metrics {
        engine(&mut text, &metrics);
    }
    ([(header::CONTENT_TYPE, KIND)], text.0).into_response()
}

fn engine(text: &mut Text, m: &Metrics) {
    text.gauge("requests_queued", "Requests that wait.", m.queued as f64);
    text.gauge(
        "requests_running",
        "Sequences that compute.",
        m.running as f64,
    );
    for (name, help, value) in [
        ("requests", "Requests that ended.", m.finished),
        (
            "requests_cancelled",
            "Requests that nobody listened to any more.",
            m.cancelled,
        ),
        ("requests_failed", "Requests that failed.", m.failed),
        ("steps", "Steps computed.", m.steps),
        ("prompt_tokens", "Prompt tokens computed.", m.prompt_tokens),
        (
            "cached_tokens",
            "Prompt tokens that were computed before.",
            m.cached_tokens,
        ),
        ("generated_tokens", "Tokens generated.", m.generated_tokens),
        (
            "guessed_tokens",
            "Tokens guessed by speculation.",
            m.guessed_tokens,
        ),
        (
            "accepted_tokens",
            "Guessed tokens that were right.",
            m.accepted_tokens,
        ),
        (
            "preemptions",
            "Sequences that gave their memory back.",
            m.preemptions,
        ),
    ] {
        text.sample(&format!("{name}_total"), help, "counter", value as f64);
    }
    for (name, help, value) in [
        (
            "kv_running_bytes",
            "KV caches of running sequences.",
            m.running_bytes,
        ),
        ("kv_cached_bytes", "Kept prefixes.", m.cached_bytes),
        (
            "kv_budget_bytes",
            "What is allowed for both.",
            m.budget_bytes,
        ),
        (
            "kv_cached_prefixes",
            "How many prefixes are kept.",
            m.cached_prefixes,
        ),
    ] {
        text.gauge(name, help, value as f64);
    }
    let silent = m.silent_for.as_secs_f64();
    text.gauge(
        "engine_silent_seconds",
        "Since its last sign of life at work.",
        silent,
    );
    let first = "From submission to the first token.";
    text.histogram("time_to_first_token_seconds", first, &m.time_to_first_token);
    text.histogram("inter_token_seconds", "Between tokens.", &m.inter_token);
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP biplane_{name} {help}");
        let _ = writeln!(self.0, "# TYPE biplane_{name} {kind}");
    }

    fn sample(&mut self, name: &str, help: &str, kind: &str, value: f64) {
        self.head(name, help, kind);
        let _ = writeln!(self.0, "biplane_{name} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.sample(name, help, "gauge", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut sum = 0;
        for (bound, n) in BUCKETS.iter().zip(histogram.buckets) {
            sum += n;
            let _ = writeln!(self.0, "biplane_{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let count = histogram.count;
        let _ = writeln!(self.0, "biplane_{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.0, "biplane_{name}_sum {}", histogram.sum);
        let _ = writeln!(self.0, "biplane_{name}_count {count}");
    }
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
        engine(&mut text, &metrics);
        for line in [
            "biplane_inter_token_seconds_bucket{le=\"0.001\"} 2",
            "biplane_inter_token_seconds_bucket{le=\"0.0025\"} 2",
            "biplane_inter_token_seconds_bucket{le=\"0.005\"} 5",
            "biplane_inter_token_seconds_bucket{le=\"+Inf\"} 6",
            "# TYPE biplane_requests_total counter",
        ] {
            assert!(text.0.lines().any(|l| l == line), "{line}\n{}", text.0);
        }
    }
}
