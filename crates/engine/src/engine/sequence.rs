//! One sequence on its way: its tokens, what is computed of them, and what is to be done with them.

use std::{sync::Arc, time::Instant};

use biplane_models::{SlotId, SpanOutput, Want};
use tokio::sync::{mpsc, oneshot};

use super::{Vocabulary, answer::Answer, metrics::Counters, outbox::Outbox, prefix_cache::common};
use crate::{Error, Event, FinishReason, Request, Result, grammar::GrammarState};

/// How hidden states become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The last token's.
    Last,
}

/// What the engine is asked to do.
pub(crate) enum Job {
    /// An answer, token by token.
    Answer {
        request: Box<Request>,
        grammar: Option<GrammarState>,
        events: mpsc::Sender<Event>,
        submitted: Instant,
    },
    /// A vector.
    Embed {
        tokens: Vec<u32>,
        pooling: Pooling,
        reply: oneshot::Sender<Result<Vec<f32>>>,
    },
}

/// What becomes of the hidden states.
pub(super) struct Embedding {
    pooling: Pooling,
    sum: Vec<f64>,
    reply: Option<oneshot::Sender<Result<Vec<f32>>>>,
}

pub(super) enum Task {
    Answer(Box<Answer>),
    Embed(Embedding),
}

pub(super) struct Sequence {
    pub id: u64,
    /// Its cache, while it runs.
    pub slot: Option<SlotId>,
    /// The prompt and what was generated.
    pub tokens: Vec<u32>,
    /// How many of them the cache holds.
    pub computed: usize,
    /// Lengths at which the cache is copied for others that begin alike, rising.
    pub branches: Vec<usize>,
    /// A step with this sequence failed: it runs alone until one goes through.
    pub alone: bool,
    pub task: Task,
}

/// Whether a sequence goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    Ended,
}

impl Sequence {
    /// A sequence for a job; for one that is done already, or impossible, what its reader has not
    /// taken yet.
    pub fn new(
        job: Job,
        id: u64,
        vocabulary: &Vocabulary,
        context: usize,
        counters: &Arc<Counters>,
    ) -> Result<Self, Option<Outbox>> {
        let (tokens, task) = match job {
            Job::Answer {
                request,
                grammar,
                events,
                submitted,
            } => {
                let outbox = Outbox::new(events);
                let tokens = request.tokens.clone();
                let answer =
                    Answer::new(*request, grammar, outbox, submitted, vocabulary, counters);
                (tokens, Task::Answer(Box::new(answer)))
            }
            Job::Embed {
                tokens,
                pooling,
                reply,
            } => (
                tokens,
                Task::Embed(Embedding {
                    pooling,
                    sum: Vec::new(),
                    reply: Some(reply),
                }),
            ),
        };
        let mut sequence = Sequence {
            id,
            slot: None,
            tokens,
            computed: 0,
            branches: Vec::new(),
            alone: false,
            task,
        };
        match sequence.begin(context) {
            Ok(Flow::On) => Ok(sequence),
            Ok(Flow::Ended) => Err(sequence.into_outbox()),
            Err(error) => {
                sequence.fail(error);
                Err(sequence.into_outbox())
            }
        }
    }

    fn begin(&mut self, context: usize) -> Result<Flow> {
        let n = self.tokens.len();
        if n == 0 {
            return Err(Error::Request("the prompt has no tokens".into()));
        }
        match &mut self.task {
            Task::Answer(_) if n >= context => Err(Error::Request(format!(
                "the prompt's {n} tokens leave no room in the context of {context}; shorten the prompt"
            ))),
            Task::Embed(_) if n > context => Err(Error::Request(format!(
                "the text's {n} tokens do not fit the context of {context}; split it"
            ))),
            Task::Answer(answer) => answer.begin(context - n),
            Task::Embed(_) => Ok(Flow::On),
        }
    }

    /// Computation begins, with `cached` tokens already there.
    pub fn start(&mut self, cached: usize) {
        if let Task::Answer(answer) = &mut self.task {
            answer.start(cached);
        }
    }

    /// Tokens that the cache does not hold yet.
    pub fn pending(&self) -> &[u32] {
        self.tokens.get(self.computed..).unwrap_or_default()
    }

    /// Whether its prompt is computed, and at most `most` tokens wait for a step.
    pub fn decodes(&self, most: usize) -> bool {
        self.pending().len() <= most && matches!(&self.task, Task::Answer(a) if a.has_begun())
    }

    /// Pending tokens for its next step, at most `limit`.
    pub fn chunk(&self, limit: usize) -> usize {
        let branch = self
            .branches
            .first()
            .map_or(usize::MAX, |at| at - self.computed);
        let wanted = match &self.task {
            Task::Answer(answer) => limit.min(answer.most_rows()),
            Task::Embed(_) => limit,
        };
        self.pending().len().min(wanted).min(branch)
    }

    /// Tokens that may be guessed for its next step.
    pub fn guessable(&self) -> usize {
        match &self.task {
            Task::Answer(answer) if self.decodes(1) && !self.alone => answer.guessable(),
            _ => 0,
        }
    }

    /// Work for the processor while the device computes `n` pending tokens.
    pub fn prepare(&mut self, n: usize) -> Result<()> {
        let last = n == self.pending().len();
        match &mut self.task {
            Task::Answer(answer) if last => answer.prepare(),
            _ => Ok(()),
        }
    }

    /// Gives the reader what waits for it.
    pub fn flush(&mut self) {
        if let Task::Answer(answer) = &mut self.task {
            answer.outbox.flush();
        }
    }

    /// Ends it: nobody listens.
    pub fn cancel(&mut self) {
        if let Task::Answer(answer) = &mut self.task {
            answer.end(FinishReason::Cancelled);
        }
    }

    /// What its reader has not taken yet.
    pub fn into_outbox(mut self) -> Option<Outbox> {
        self.flush();
        match self.task {
            Task::Answer(answer) => Some(answer.outbox).filter(|outbox| !outbox.is_empty()),
            Task::Embed(_) => None,
        }
    }

    /// Whether its results wait for a reader.
    pub fn waits_for_reader(&self) -> bool {
        matches!(&self.task, Task::Answer(answer) if !answer.outbox.is_empty())
    }

    /// Whether nobody wants its results any more.
    pub fn is_abandoned(&self) -> bool {
        match &self.task {
            Task::Answer(answer) => answer.outbox.is_abandoned(),
            Task::Embed(embedding) => embedding.reply.as_ref().is_none_or(|r| r.is_closed()),
        }
    }

    /// Whether an earlier sequence's cache may serve this one, and this one's others.
    pub fn shares_prefix(&self) -> bool {
        match &self.task {
            Task::Answer(answer) => {
                answer.request.keep_prefix && answer.request.prompt_logprobs.is_none()
            }
            Task::Embed(_) => false,
        }
    }

    /// What a step should give when `n` of the pending tokens are its span.
    pub fn want(&self, n: usize) -> Want {
        let last = n == self.pending().len();
        match &self.task {
            Task::Answer(answer) => answer.want(last),
            Task::Embed(e) if e.pooling == Pooling::Mean || last => Want::Hidden,
            Task::Embed(_) => Want::Nothing,
        }
    }

    /// A step has computed `n` pending tokens, and after them as many `guessed` ones as the span had.
    /// Gives whether the sequence goes on; the cache holds `self.computed` tokens that count.
    pub fn advance(
        &mut self,
        n: usize,
        guessed: &[u32],
        output: &SpanOutput,
        vocabulary: &Vocabulary,
    ) -> Result<Flow> {
        self.computed += n;
        let last = self.computed == self.tokens.len();
        match (&mut self.task, output) {
            (Task::Answer(answer), output) => {
                let before = self.tokens.len();
                let flow = answer.advance(&mut self.tokens, n, last, guessed, output, vocabulary);
                // Of the tokens that came, all but the last were guessed right, and are in the cache.
                if !guessed.is_empty() {
                    let came = self.tokens.len() - before;
                    let right = common(self.tokens.get(before..).unwrap_or_default(), guessed);
                    self.computed += right.min(came.saturating_sub(1));
                    answer.count_guesses(guessed.len(), right);
                }
                flow
            }
            (Task::Embed(embedding), SpanOutput::Hidden(rows)) => {
                embedding.add(rows, n);
                match last {
                    true => {
                        embedding.reply(self.tokens.len());
                        Ok(Flow::Ended)
                    }
                    false => Ok(Flow::On),
                }
            }
            (Task::Embed(_), _) => Ok(Flow::On),
        }
    }

    /// Ends the sequence with an error.
    pub fn fail(&mut self, error: Error) {
        match &mut self.task {
            Task::Answer(answer) => answer.fail(error),
            Task::Embed(embedding) => {
                if let Some(reply) = embedding.reply.take() {
                    let _ = reply.send(Err(error));
                }
            }
        }
    }
}

impl Embedding {
    fn add(&mut self, rows: &[f32], n: usize) {
        let width = rows.len() / n.max(1);
        self.sum.resize(width, 0.0);
        let skipped = match self.pooling {
            Pooling::Mean => 0,
            Pooling::Last => n.saturating_sub(1),
        };
        for row in rows.chunks_exact(width.max(1)).skip(skipped) {
            for (sum, x) in self.sum.iter_mut().zip(row) {
                *sum += f64::from(*x);
            }
        }
    }

    /// Sends the vector, of length 1.
    fn reply(&mut self, tokens: usize) {
        let count = match self.pooling {
            Pooling::Mean => tokens as f64,
            Pooling::Last => 1.0,
        };
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / count).collect();
        let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        let result = if norm.is_finite() && norm > 0.0 {
            Ok(mean.iter().map(|x| (x / norm) as f32).collect())
        } else {
            Err(Error::broken_numbers())
        };
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(result);
        }
    }
}
