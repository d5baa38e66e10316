//! Measuring a model: what `biplane bench` and the README's tables are made with.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{Error, Event, Metrics, Model, ModelBuilder, Request, Result, memory};

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct BenchSettings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens to generate after it.
    pub generate: usize,
    /// Runs whose medians are reported, after one that is not counted.
    pub repeat: usize,
    /// Requests at once.
    pub streams: usize,
}

/// One backend's figures: medians.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BenchResult {
    /// The backend's name.
    pub backend: String,
    /// The device.
    pub device: String,
    /// Element type of activations.
    pub dtype: String,
    /// How keys and values are kept.
    #[serde(default)]
    pub kv_format: String,
    /// Threads that compute.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Prompt tokens a second.
    pub prefill_tokens_per_second: f64,
    /// Requests at once.
    #[serde(default)]
    pub streams: usize,
    /// Generated tokens a second, of all requests together while all decode.
    pub decode_tokens_per_second: f64,
    /// From submission to the last request's first token.
    pub time_to_first_token_ms: f64,
    /// From opening the files to a model that answers.
    pub load_ms: f64,
    /// The most memory the process had resident.
    pub peak_memory_bytes: u64,
    /// What the engine's thread took to describe a step of decoding and hand it to the device; on a processor
    /// it computes meanwhile.
    #[serde(default)]
    pub launch_ms: f64,
    /// What it then waited for the device.
    #[serde(default)]
    pub wait_ms: f64,
}

/// A loaded model, to be measured more than once.
#[derive(Debug)]
pub struct Bench {
    model: Model,
    load: Duration,
}

/// Loads a model and measures it.
///
/// # Errors
/// What loading and generating report; [`Error::Request`] for a prompt that does not fit.
pub fn bench(builder: ModelBuilder, settings: &BenchSettings) -> Result<BenchResult> {
    Bench::load(builder)?.measure(settings)
}

impl Bench {
    /// Loads a model.
    ///
    /// # Errors
    /// What loading reports.
    pub fn load(builder: ModelBuilder) -> Result<Self> {
        let start = Instant::now();
        let model = builder.build_blocking()?;
        let load = start.elapsed();
        Ok(Bench { model, load })
    }

    /// Measures it.
    ///
    /// # Errors
    /// As [`bench()`].
    pub fn measure(&self, settings: &BenchSettings) -> Result<BenchResult> {
        measure(&self.model, self.load, settings)
    }
}

fn measure(model: &Model, load: Duration, settings: &BenchSettings) -> Result<BenchResult> {
    let vocab = model.info().vocab_size as u64;
    if settings.prompt_tokens == 0
        || settings.generate == 0
        || settings.repeat == 0
        || settings.streams == 0
    {
        return Err(Error::Request(
            "prompt tokens, tokens to generate, repeats and streams must be at least 1".into(),
        ));
    }
    let context = model.info().context_length;
    if settings.prompt_tokens.saturating_add(settings.generate) > context {
        return Err(Error::Request(format!(
            "{} prompt tokens and {} to generate do not fit the context of {context}; ask for fewer",
            settings.prompt_tokens, settings.generate
        )));
    }
    // Ordinary tokens in no order: no backend may profit from a regular prompt.
    let prompt = |stream: usize| -> Vec<u32> {
        (0..settings.prompt_tokens as u64)
            .map(|i| i + ((stream as u64) << 32))
            .map(|i| (i.wrapping_mul(6_364_136_223_846_793_005) >> 33) % vocab)
            .map(|id| id as u32)
            .collect()
    };
    let request = |tokens: Vec<u32>, generate| Request {
        max_tokens: Some(generate),
        ignore_eos: true,
        // Every run computes its prompt.
        keep_prefix: false,
        ..Request::new(tokens)
    };
    let warm = prompt(0).into_iter().take(8).collect();
    run(model, vec![request(warm, 2)])?;
    let mut runs = Vec::new();
    for _ in 0..settings.repeat {
        let requests = (0..settings.streams).map(|i| request(prompt(i), settings.generate));
        runs.push(run(model, requests.collect())?);
    }
    let info = model.info();
    let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure));
    let first = of(|r| r.first);
    Ok(BenchResult {
        backend: info.backend.to_owned(),
        device: info.device.to_string(),
        dtype: info.dtype.to_string(),
        kv_format: info.kv_format.to_string(),
        threads: model.threads(),
        prompt_tokens: settings.prompt_tokens,
        generated_tokens: settings.generate,
        streams: settings.streams,
        prefill_tokens_per_second: (settings.prompt_tokens * settings.streams) as f64 / first,
        decode_tokens_per_second: of(|r| r.rate),
        time_to_first_token_ms: first * 1e3,
        load_ms: load.as_secs_f64() * 1e3,
        peak_memory_bytes: memory::peak_resident_bytes().unwrap_or(0),
        launch_ms: of(|r| r.launch) * 1e3,
        wait_ms: of(|r| r.wait) * 1e3,
    })
}

/// One run of some requests.
struct Run {
    /// Seconds until every request has its first token.
    first: f64,
    /// Tokens a second of all together from there until the first one ends.
    rate: f64,
    /// Seconds of launching a step from there on.
    launch: f64,
    /// Seconds of waiting for it.
    wait: f64,
}

fn run(model: &Model, requests: Vec<Request>) -> Result<Run> {
    let start = Instant::now();
    let streams: Vec<_> = requests
        .into_iter()
        .map(|request| Ok((request.max_tokens.unwrap_or(0), model.submit(request)?)))
        .collect::<Result<_>>()?;
    // One reader a stream: a token's time is when it came.
    let times: Vec<(Vec<Duration>, Metrics)> = std::thread::scope(|scope| {
        let readers: Vec<_> = streams
            .into_iter()
            .map(|(wanted, events)| scope.spawn(move || times(model, start, wanted, events)))
            .collect();
        readers
            .into_iter()
            .map(|reader| {
                reader
                    .join()
                    .unwrap_or_else(|_| Err(Error::Stopped("a reader failed".into())))
            })
            .collect::<Result<_>>()
    })?;
    let after = model.metrics();
    let first = times
        .iter()
        .filter_map(|(t, then)| Some((*t.first()?, then)));
    let first = first.max_by_key(|(time, _)| *time);
    let last = times.iter().filter_map(|(t, _)| t.last()).min();
    let (Some((first, then)), Some(&last)) = (first, last) else {
        return Err(Error::Request("nothing was generated".into()));
    };
    let between = times
        .iter()
        .flat_map(|(t, _)| t)
        .filter(|t| **t > first && **t <= last);
    let time = last.saturating_sub(first).as_secs_f64();
    let rate = between.count() as f64 / time.max(f64::EPSILON);
    let steps = (after.steps - then.steps).max(1) as f64;
    Ok(Run {
        first: first.as_secs_f64(),
        rate,
        launch: (after.launching - then.launching).as_secs_f64() / steps,
        wait: (after.waiting - then.waiting).as_secs_f64() / steps,
    })
}

/// When each token came, and the engine's figures at the first.
fn times(
    model: &Model,
    start: Instant,
    wanted: usize,
    mut events: tokio::sync::mpsc::Receiver<Event>,
) -> Result<(Vec<Duration>, Metrics)> {
    let mut at_first = None;
    let mut times = Vec::with_capacity(wanted);
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Token { .. } => {
                times.push(start.elapsed());
                at_first.get_or_insert_with(|| model.metrics());
            }
            Event::Prompt(_) => {}
            Event::Done { .. } => break,
            Event::Failed(error) => return Err(error),
        }
    }
    if times.len() < wanted {
        return Err(Error::Request(format!(
            "the context ended after {} of {wanted} tokens; ask for fewer",
            times.len()
        )));
    }
    Ok((times, at_first.unwrap_or_default()))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match (values.get(n.wrapping_sub(1) / 2), values.get(n / 2)) {
        (Some(a), Some(b)) => (a + b) / 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        let median = |v: &[f64]| super::median(v.iter().copied());
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[5.0]), 5.0);
    }
}
