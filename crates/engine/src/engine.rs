//! The thread that owns a model: requests come by a channel, tokens go back by bounded channels.

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak, mpsc as std_mpsc},
    thread,
    time::Instant,
};

use biplane_models::{ModelInfo, ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Error, Event, FinishReason, Request, Result, Timings,
    backends::{self, RunnerSpec},
    sampling::Sampler,
    tokenizer::Tokenizer,
};

/// Tokens of a prompt computed in one step: bounds memory, and the wait of a cancelled request.
const PREFILL_CHUNK: usize = 512;

/// Events that may wait for a reader before the request does.
const EVENTS: usize = 64;

struct Job {
    request: Request,
    events: mpsc::Sender<Event>,
}

/// A handle to the engine's thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Engine {
    jobs: std_mpsc::Sender<Job>,
    /// Held by the thread as long as it runs.
    alive: Weak<()>,
    pub info: Arc<ModelInfo>,
}

/// What the engine needs besides the model.
pub(crate) struct Vocabulary {
    pub tokenizer: Arc<Tokenizer>,
    pub stop_ids: HashSet<u32>,
}

impl Engine {
    /// Starts the thread and loads the model on it; the caller makes the `vocabulary` meanwhile.
    pub fn start(
        spec: RunnerSpec,
        vocabulary: oneshot::Receiver<Vocabulary>,
    ) -> Result<oneshot::Receiver<Result<Engine>>> {
        let (ready, loaded) = oneshot::channel();
        thread::Builder::new()
            .name(format!("biplane-{}", spec.backend))
            .spawn(move || {
                let runner = match guarded(|| backends::load(&spec)) {
                    Ok(runner) => runner,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                drop(spec);
                // Without a vocabulary the caller has failed and says so itself.
                let Ok(vocabulary) = vocabulary.blocking_recv() else {
                    return;
                };
                let (jobs, queue) = std_mpsc::channel();
                let running = Arc::new(());
                let engine = Engine {
                    jobs,
                    alive: Arc::downgrade(&running),
                    info: Arc::new(runner.info().clone()),
                };
                if ready.send(Ok(engine)).is_ok() {
                    serve(runner, &vocabulary, &queue);
                }
            })
            .map_err(|e| Error::Stopped(format!("no thread can be started: {e}")))?;
        Ok(loaded)
    }

    /// Whether the thread still runs.
    pub fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }

    /// Queues a request; its events come through the channel. Dropping the channel cancels it.
    pub fn submit(&self, request: Request) -> Result<mpsc::Receiver<Event>> {
        let (events, receiver) = mpsc::channel(EVENTS);
        self.jobs
            .send(Job { request, events })
            .map_err(|_| Error::Stopped("its thread has ended".into()))?;
        Ok(receiver)
    }
}

/// Turns a panic below into an error, so that one request's fault is not the next one's.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(Error::Stopped(format!("internal fault: {text}")))
    })
}

fn serve(
    mut runner: Box<dyn ModelRunner>,
    vocabulary: &Vocabulary,
    queue: &std_mpsc::Receiver<Job>,
) {
    while let Ok(job) = queue.recv() {
        let slot = match runner.open() {
            Ok(slot) => slot,
            Err(error) => {
                let _ = job.events.blocking_send(Event::Failed(error.into()));
                continue;
            }
        };
        let result = guarded(|| generate(&mut *runner, vocabulary, slot, &job));
        runner.close(slot);
        let last = match result {
            Ok(last) => last,
            Err(error) => Event::Failed(error),
        };
        let _ = job.events.blocking_send(last);
    }
}

fn generate(
    runner: &mut dyn ModelRunner,
    vocabulary: &Vocabulary,
    slot: SlotId,
    job: &Job,
) -> Result<Event> {
    let Job { request, events } = job;
    request.sampling.validate().map_err(Error::Request)?;
    let context = runner.info().context_length;
    let room = context.saturating_sub(request.tokens.len());
    if request.tokens.is_empty() {
        return Err(Error::Request("the prompt has no tokens".into()));
    }
    if room == 0 {
        return Err(Error::Request(format!(
            "the prompt's {} tokens leave no room in the context of {context}; shorten the prompt",
            request.tokens.len()
        )));
    }
    let limit = request.max_tokens.unwrap_or(room).min(room);
    let mut timings = Timings {
        prompt_tokens: request.tokens.len(),
        ..Timings::default()
    };
    let done = |text, reason, timings| {
        Ok(Event::Done {
            text,
            reason,
            timings,
        })
    };
    if limit == 0 {
        return done(String::new(), FinishReason::Length, timings);
    }
    let want = if request.sampling.is_plain_greedy() {
        Want::Argmax
    } else {
        Want::LastLogits
    };
    let mut sampler = Sampler::new(&request.sampling, &request.tokens);
    let mut text = vocabulary.tokenizer.detokenizer(true);
    let start = Instant::now();
    let mut first = start;
    let chunks = request.tokens.chunks(PREFILL_CHUNK);
    let count = chunks.len();
    let mut output = SpanOutput::Nothing;
    for (i, chunk) in chunks.enumerate() {
        if events.is_closed() {
            return done(String::new(), FinishReason::Cancelled, timings);
        }
        // The first logits are looked at on the host, where no number among them is noticed.
        let want = if i + 1 == count {
            Want::LastLogits
        } else {
            Want::Nothing
        };
        output = step(runner, slot, chunk.to_vec(), want)?;
    }
    loop {
        let id = match &output {
            SpanOutput::Token(id) => *id,
            SpanOutput::Logits(logits) => {
                let choice = sampler.sample(logits, None, None).ok_or_else(|| {
                    Error::Request(
                        "the model's logits are no numbers: its weights are broken, or too large for this element type; try --dtype f32"
                            .into(),
                    )
                })?;
                choice.token
            }
            SpanOutput::Nothing => return Err(Error::Stopped("a step gave nothing".into())),
        };
        sampler.accept(id);
        timings.generated_tokens += 1;
        if timings.generated_tokens == 1 {
            timings.time_to_first_token = start.elapsed();
            first = Instant::now();
        }
        timings.decode = first.elapsed();
        let stops = !request.ignore_eos && vocabulary.stop_ids.contains(&id);
        let piece = if stops {
            String::new()
        } else {
            text.push(id).unwrap_or_default()
        };
        let event = Event::Token { id, text: piece };
        if events.blocking_send(event).is_err() {
            return done(String::new(), FinishReason::Cancelled, timings);
        }
        if stops || timings.generated_tokens == limit {
            let reason = if stops {
                FinishReason::Stop
            } else {
                FinishReason::Length
            };
            return done(text.finish().unwrap_or_default(), reason, timings);
        }
        output = step(runner, slot, vec![id], want)?;
    }
}

fn step(
    runner: &mut dyn ModelRunner,
    slot: SlotId,
    tokens: Vec<u32>,
    want: Want,
) -> Result<SpanOutput> {
    let plan = StepPlan {
        spans: vec![SpanPlan { slot, tokens, want }],
    };
    Ok(runner.step(&plan)?.pop().unwrap_or(SpanOutput::Nothing))
}
