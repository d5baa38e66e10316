//! From a constraint to a parser, within limits.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    earley::SlicedBiasComputer,
};
use serde_json::json;
use toktrie::{InferenceCapabilities, TokEnv, TokenizerEnv as _};

use super::{
    Constraint, Error, GrammarState, Result, cache::Cache, lark, schema, vocabulary::Vocabulary,
};
use crate::tokenizer::Tokenizer;

/// How long a caller waits.
const DEADLINE: Duration = Duration::from_secs(2);

/// Stack of a thread that compiles: the parser's compiler recurses along references and rules.
const STACK: usize = 64 << 20;

/// Threads that compile at once; one that missed its deadline counts until it ends.
const THREADS: usize = 4;

/// Most bytes of a regular expression, a grammar or all choices.
pub(super) const MOST_BYTES: usize = 64 << 10;

/// Most choices.
const MOST_CHOICES: usize = 2000;

/// Deepest parentheses of a regular expression or a grammar.
pub(super) const MOST_DEPTH: usize = 64;

/// Bytes of compiled constraints that are kept.
const CACHE: usize = 64 << 20;

/// Compiles constraints for one tokenizer.
pub struct GrammarEngine {
    shared: Arc<Shared>,
    cache: Mutex<Cache>,
}

struct Shared {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
    compiling: Mutex<usize>,
    done: Condvar,
}

impl GrammarEngine {
    /// For a tokenizer, the tokens that end a model's answer, and the number of its logits.
    ///
    /// # Errors
    /// [`Error::Vocabulary`].
    pub fn new(tokenizer: Arc<Tokenizer>, stop_ids: &[u32], width: usize) -> Result<Self> {
        let vocabulary = Arc::new(Vocabulary::new(tokenizer, stop_ids, width)?);
        let env: TokEnv = Arc::clone(&vocabulary) as TokEnv;
        let capabilities = InferenceCapabilities {
            ff_tokens: vocabulary.tokenize_is_canonical(),
            ..InferenceCapabilities::default()
        };
        let slices = SlicedBiasComputer::json_slices();
        let mut factory =
            ParserFactory::new(&env, capabilities, &slices).map_err(|e| Error::Vocabulary {
                reason: e.to_string(),
            })?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: 1000,
            step_lexer_fuel: 100_000,
            step_max_items: 50_000,
            max_lexer_states: 50_000,
            max_grammar_size: 100_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(GrammarEngine {
            shared: Arc::new(Shared {
                vocabulary,
                factory,
                compiling: Mutex::new(0),
                done: Condvar::new(),
            }),
            cache: Mutex::new(Cache::new(CACHE)),
        })
    }

    /// A constraint's state before its first token. Waits up to two seconds for one that is new.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Invalid`], [`Error::Deadline`], [`Error::Busy`].
    pub fn state(&self, constraint: &Constraint) -> Result<GrammarState> {
        let grammar = self.grammar(constraint)?;
        let what = constraint.what();
        let key = serde_json::to_string(&grammar).map_err(|e| Error::Invalid {
            what,
            reason: e.to_string(),
        })?;
        if let Some(matcher) = lock(&self.cache).get(&key) {
            return Ok(GrammarState::new(matcher));
        }
        let (matcher, bytes) = Shared::compile(&self.shared, grammar, what)?;
        let state = GrammarState::new(matcher.deep_clone());
        lock(&self.cache).put(key, matcher, bytes);
        Ok(state)
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        lock(&self.cache).len()
    }

    /// The constraint in the parser's terms, once it is known to be of bounded size.
    fn grammar(&self, constraint: &Constraint) -> Result<TopLevelGrammar> {
        let what = constraint.what();
        let bounded = |measure, value, most| match value > most {
            true => Err(Error::TooLarge {
                what,
                measure,
                value,
                most,
            }),
            false => Ok(()),
        };
        Ok(match constraint {
            Constraint::JsonSchema(schema) => {
                TopLevelGrammar::from_json_schema(schema::prepare(schema)?)
            }
            Constraint::JsonObject => {
                TopLevelGrammar::from_json_schema(schema::prepare(&json!({"type": "object"}))?)
            }
            Constraint::Regex(regex) => {
                bounded("bytes", regex.len(), MOST_BYTES)?;
                bounded("nested groups", lark::regex_depth(regex), MOST_DEPTH)?;
                TopLevelGrammar::from_lark(lark::of_regex(regex)?)
            }
            Constraint::Lark(text) => {
                TopLevelGrammar::from_lark(lark::prepare(text, self.shared.vocabulary.tokenizer())?)
            }
            Constraint::Choice(choices) => {
                bounded("choices", choices.len(), MOST_CHOICES)?;
                bounded("bytes", choices.iter().map(String::len).sum(), MOST_BYTES)?;
                TopLevelGrammar::from_lark(lark::of_choices(choices)?)
            }
        })
    }
}

impl Shared {
    /// Compiles on a thread of its own, which may outlive the deadline but not by its result.
    fn compile(
        this: &Arc<Self>,
        grammar: TopLevelGrammar,
        what: &'static str,
    ) -> Result<(Matcher, usize)> {
        let start = Instant::now();
        let slot = Slot::take(this, DEADLINE).ok_or(Error::Busy)?;
        let (send, result) = mpsc::channel();
        thread::Builder::new()
            .name("biplane-grammar".into())
            .stack_size(STACK)
            .spawn(move || {
                let built = slot.0.build(grammar, what);
                drop(slot);
                let _ = send.send(built);
            })
            .map_err(|e| Error::Fault {
                reason: format!("no thread can be started: {e}"),
            })?;
        match result.recv_timeout(DEADLINE.saturating_sub(start.elapsed())) {
            Ok(built) => built,
            Err(RecvTimeoutError::Timeout) => Err(Error::Deadline {
                what,
                seconds: DEADLINE.as_secs(),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Fault {
                reason: "the compiler ended without a result".into(),
            }),
        }
    }

    fn build(&self, grammar: TopLevelGrammar, what: &'static str) -> Result<(Matcher, usize)> {
        let invalid = |error: String| Error::Invalid {
            what,
            reason: words(&error),
        };
        let parser = self
            .factory
            .create_parser(grammar)
            .map_err(|e| invalid(format!("{e:#}")))?;
        let bytes = parser.parser.lexer_stats().num_bytes;
        let mut matcher = Matcher::new(Ok(parser));
        // A grammar without a beginning is refused here; and the first step finds its work done.
        matcher
            .compute_mask_or_eos()
            .map_err(|e| match super::state::failure(e) {
                Error::Fault { reason } => invalid(reason),
                Error::Stuck => invalid("nothing fulfils it".into()),
                other => other,
            })?;
        Ok((matcher, bytes + (64 << 10)))
    }
}

/// One of the threads that may compile at once.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>, wait: Duration) -> Option<Self> {
        let count = lock(&shared.compiling);
        let full = |count: &mut usize| *count >= THREADS;
        let (mut count, timeout) = shared
            .done
            .wait_timeout_while(count, wait, full)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return None;
        }
        *count += 1;
        Some(Slot(Arc::clone(shared)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *lock(&self.0.compiling) -= 1;
        self.0.done.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The compiler's words in ours, and no more of them than a reader wants.
fn words(error: &str) -> String {
    let error = error.split("\n<").next().unwrap_or_default();
    let error = error
        .replace("Unimplemented keys", "these keywords are not supported")
        .replace(
            "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf",
            "oneOf is supported only for alternatives that exclude each other by their types or \
             constants; use anyOf",
        )
        .replace("Unsatisfiable schema", "nothing fulfils it");
    let mut short: String = error.chars().take(500).collect();
    if short.len() < error.len() {
        short.push('…');
    }
    short
}
