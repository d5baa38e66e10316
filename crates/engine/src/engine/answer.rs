//! An answer in the making: from logits to tokens, text and events.

use std::{sync::Arc, time::Instant};

use biplane_models::{SpanOutput, Want};

use super::{Vocabulary, metrics::Counters, outbox::Outbox, sequence::Flow};
use crate::{
    Error, Event, FinishReason, Request, Result, Timings,
    grammar::GrammarState,
    sampling::{Sampler, TokenLogprobs, logprobs},
    stop::{StopMatcher, StopStrings},
    tokenizer::{Detokenizer, Tokenizer},
};

/// Prompt tokens in a step whose logits all come to the host.
const PROMPT_LOGITS: usize = 32;

pub(super) struct Answer {
    pub request: Request,
    pub outbox: Outbox,
    pub timings: Timings,
    /// What was generated, a final stop token included.
    pub generated: Vec<u32>,
    /// The text so far, as the reader has it.
    pub text: String,
    sampler: Sampler,
    grammar: Option<GrammarState>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    prompt_logprobs: Vec<TokenLogprobs>,
    limit: usize,
    submitted: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Instant,
    counters: Arc<Counters>,
}

fn detokenizer(request: &Request, tokenizer: &Tokenizer) -> Detokenizer {
    let detokenizer = tokenizer
        .detokenizer(!request.show_special)
        .showing(request.shown_tokens.clone());
    let after_text = request.tokens.last();
    match after_text.is_some_and(|&id| !tokenizer.is_special(id)) {
        true if request.continues => detokenizer.continuing(),
        _ => detokenizer,
    }
}

impl Answer {
    pub fn new(
        request: Request,
        grammar: Option<GrammarState>,
        outbox: Outbox,
        submitted: Instant,
        vocabulary: &Vocabulary,
        counters: &Arc<Counters>,
    ) -> Self {
        Answer {
            sampler: Sampler::new(&request.sampling, &request.tokens),
            grammar,
            detokenizer: detokenizer(&request, &vocabulary.tokenizer),
            stops: StopMatcher::new(&StopStrings::new(request.stop.clone()).unwrap_or_default()),
            prompt_logprobs: Vec::new(),
            limit: 0,
            submitted,
            started: None,
            first: None,
            last: submitted,
            timings: Timings {
                prompt_tokens: request.tokens.len(),
                ..Timings::default()
            },
            generated: Vec::new(),
            text: String::new(),
            outbox,
            counters: Arc::clone(counters),
            request,
        }
    }

    /// Refuses what cannot be; `room` is what the prompt leaves of the context.
    pub fn begin(&mut self, room: usize) -> Result<Flow> {
        self.request.validate()?;
        self.limit = self.request.max_tokens.unwrap_or(room).min(room);
        if self.limit == 0 && self.request.prompt_logprobs.is_none() {
            self.end(FinishReason::Length);
            return Ok(Flow::Ended);
        }
        Ok(Flow::On)
    }

    /// Computation begins, with `cached` tokens already there.
    pub fn start(&mut self, cached: usize) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.timings.cached_tokens = cached;
        }
    }

    /// Whether a token has been generated.
    pub fn has_begun(&self) -> bool {
        self.first.is_some()
    }

    /// Tokens that may be guessed for its next step: none where a constraint decides.
    pub fn guessable(&self) -> usize {
        match self.grammar {
            Some(_) => 0,
            None => self.left().saturating_sub(1),
        }
    }

    /// Most rows of a step: of a prompt whose log probabilities are wanted, all logits come to the host.
    pub fn most_rows(&self) -> usize {
        match self.request.prompt_logprobs.is_some() && !self.has_begun() {
            true => PROMPT_LOGITS,
            false => usize::MAX,
        }
    }

    /// Tokens that may still come.
    pub fn left(&self) -> usize {
        self.limit.saturating_sub(self.generated.len())
    }

    /// What a step should give for it; `last` when its span holds all pending tokens.
    pub fn want(&self, last: bool) -> Want {
        if self.request.prompt_logprobs.is_some() && !self.has_begun() {
            return Want::AllLogits;
        }
        let on_device = self.has_begun()
            && self.grammar.is_none()
            && self.request.logprobs.is_none()
            && self.request.sampling.is_plain_greedy();
        match (last, on_device) {
            (false, _) => Want::Nothing,
            (true, true) => Want::Argmax,
            // The first logits are looked at on the host always: there it is seen whether they are
            // numbers.
            (true, false) => Want::LastLogits,
        }
    }

    /// Work for the processor while the device computes.
    pub fn prepare(&mut self) -> Result<()> {
        if let Some(grammar) = &mut self.grammar {
            grammar.mask()?;
        }
        Ok(())
    }

    /// Takes what a step gave for the last `n` of `tokens` computed and the guesses after them.
    pub fn advance(
        &mut self,
        tokens: &mut Vec<u32>,
        n: usize,
        last: bool,
        guessed: &[u32],
        output: &SpanOutput,
        vocabulary: &Vocabulary,
    ) -> Result<Flow> {
        match output {
            SpanOutput::Logits(rows)
                if self.request.prompt_logprobs.is_some() && !self.has_begun() =>
            {
                let vocab = rows.len() / n.max(1);
                self.read_prompt(tokens, rows, vocab);
                if !last {
                    return Ok(Flow::On);
                }
                let prompt = std::mem::take(&mut self.prompt_logprobs);
                self.outbox.send(Event::Prompt(prompt));
                if self.limit == 0 {
                    self.end(FinishReason::Length);
                    return Ok(Flow::Ended);
                }
                let row = rows.get(rows.len() - vocab..).unwrap_or_default();
                self.sample(tokens, row, vocabulary)
            }
            _ if !last => Ok(Flow::On),
            SpanOutput::Token(id) => self.token(tokens, *id, None, vocabulary),
            SpanOutput::Logits(rows) if guessed.is_empty() => self.sample(tokens, rows, vocabulary),
            SpanOutput::Logits(rows) => {
                let vocab = rows.len() / (guessed.len() + 1);
                // A guess only says which logits to compute ahead: each token is the sampler's own.
                for (i, row) in rows.chunks_exact(vocab.max(1)).enumerate() {
                    let flow = self.sample(tokens, row, vocabulary)?;
                    let right = tokens.last() == guessed.get(i);
                    if flow == Flow::Ended || !right {
                        return Ok(flow);
                    }
                }
                Ok(Flow::On)
            }
            _ => Err(Error::Stopped("a step gave nothing".into())),
        }
    }

    /// The log probabilities of the prompt's tokens that follow these rows.
    fn read_prompt(&mut self, tokens: &[u32], rows: &[f32], vocab: usize) {
        let top = self.request.prompt_logprobs.unwrap_or(0);
        for row in rows.chunks_exact(vocab.max(1)) {
            // Row i of the prompt foretells token i + 1.
            if let Some(&next) = tokens.get(self.prompt_logprobs.len() + 1) {
                self.prompt_logprobs.push(logprobs(row, next, top));
            }
        }
    }

    fn sample(
        &mut self,
        tokens: &mut Vec<u32>,
        logits: &[f32],
        vocabulary: &Vocabulary,
    ) -> Result<Flow> {
        let mask = match &mut self.grammar {
            Some(grammar) => Some(grammar.mask()?),
            None => None,
        };
        let choice = self
            .sampler
            .sample(logits, mask, self.request.logprobs)
            .ok_or_else(Error::broken_numbers)?;
        self.token(tokens, choice.token, choice.logprobs, vocabulary)
    }

    /// A token comes; after it those that the grammar leaves no choice about.
    fn token(
        &mut self,
        tokens: &mut Vec<u32>,
        id: u32,
        logprobs: Option<TokenLogprobs>,
        vocabulary: &Vocabulary,
    ) -> Result<Flow> {
        if self.one_token(tokens, id, logprobs, vocabulary)? == Flow::Ended {
            return Ok(Flow::Ended);
        }
        // A forced token's logits are not computed, so that there is nothing to say of them.
        if self.request.logprobs.is_none()
            && let Some(grammar) = &mut self.grammar
        {
            for id in grammar.forced()? {
                if self.one_token(tokens, id, None, vocabulary)? == Flow::Ended {
                    return Ok(Flow::Ended);
                }
            }
        }
        Ok(Flow::On)
    }

    fn one_token(
        &mut self,
        tokens: &mut Vec<u32>,
        id: u32,
        logprobs: Option<TokenLogprobs>,
        vocabulary: &Vocabulary,
    ) -> Result<Flow> {
        self.clock();
        self.generated.push(id);
        self.sampler.accept(id);
        let ends = self.ends(id, vocabulary);
        let mut piece = String::new();
        if !ends {
            tokens.push(id);
            piece = self.detokenizer.push(id).unwrap_or_default();
            if let Some(grammar) = &mut self.grammar {
                grammar.accept(id)?;
            }
        }
        let outcome = self.stops.push(&piece);
        self.text.push_str(&outcome.emit);
        self.outbox.send(Event::Token {
            id,
            text: outcome.emit,
            logprobs,
        });
        let reason = match outcome.stopped {
            Some(which) => {
                FinishReason::StopText(self.request.stop.get(which).cloned().unwrap_or_default())
            }
            None if ends || self.grammar.as_ref().is_some_and(GrammarState::is_finished) => {
                FinishReason::Stop
            }
            None if self.left() == 0 => FinishReason::Length,
            None => return Ok(Flow::On),
        };
        self.end(reason);
        Ok(Flow::Ended)
    }

    /// Whether a token ends the answer. A constraint's end is the model's end-of-turn token, ignored or
    /// not.
    fn ends(&self, id: u32, vocabulary: &Vocabulary) -> bool {
        let ignored = self.request.ignore_eos && self.grammar.is_none();
        self.request.stop_tokens.contains(&id) || (!ignored && vocabulary.stop_ids.contains(&id))
    }

    fn clock(&mut self) {
        let now = Instant::now();
        match self.first {
            None => {
                self.first = Some(now);
                self.timings.time_to_first_token = now - self.submitted;
                self.timings.prefill = now - self.started.unwrap_or(self.submitted);
                self.counters.first_token(self.timings.time_to_first_token);
            }
            Some(first) => {
                self.timings.decode = now - first;
                self.counters.next_token(now - self.last);
            }
        }
        self.last = now;
        self.timings.generated_tokens += 1;
        self.counters.update(|m| m.generated_tokens += 1);
    }

    pub fn count_guesses(&self, guessed: usize, right: usize) {
        self.counters.update(|m| {
            m.guessed_tokens += guessed as u64;
            m.accepted_tokens += right as u64;
        });
    }

    /// The last event. What a stop text's beginning held back is text after all, unless it stopped.
    pub fn end(&mut self, reason: FinishReason) {
        let mut rest = String::new();
        let mut reason = reason;
        if !matches!(reason, FinishReason::StopText(_)) {
            let tail = self.detokenizer.take_rest();
            let outcome = self.stops.push(&tail);
            rest.push_str(&outcome.emit);
            match outcome
                .stopped
                .and_then(|which| self.request.stop.get(which))
            {
                Some(stop) => reason = FinishReason::StopText(stop.clone()),
                None => {
                    let nothing = StopMatcher::new(&StopStrings::default());
                    rest.push_str(&std::mem::replace(&mut self.stops, nothing).finish());
                }
            }
        }
        self.text.push_str(&rest);
        self.counters.update(|m| {
            m.finished += 1;
            m.cancelled += u64::from(reason == FinishReason::Cancelled);
        });
        // It is sent when all is done that a reader may look for after it, as a recording.
        self.outbox.hold(Event::Done {
            text: rest,
            reason,
            timings: self.timings,
        });
    }

    pub fn fail(&mut self, error: Error) {
        self.counters.update(|m| {
            m.finished += 1;
            m.failed += 1;
        });
        self.outbox.hold(Event::Failed(error));
    }
}
