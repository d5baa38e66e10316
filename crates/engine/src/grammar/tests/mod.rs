//! Constraints on the fixtures' tokenizers, and on real ones where `BIPLANE_TEST_MODELS` names them.

mod bombs;
mod cost;
mod forms;
mod generate;
mod lark;
mod schemas;
mod walks;

use std::{path::Path, sync::Arc};

use super::*;
use crate::tokenizer::{Specials, Tokenizer};

/// A tokenizer and its engine.
struct Bench {
    tokenizer: Arc<Tokenizer>,
    engine: GrammarEngine,
    stops: Vec<u32>,
}

impl Bench {
    fn new(tokenizer: Tokenizer, stops: Vec<u32>) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let width = tokenizer.vocab_size().next_multiple_of(64);
        let engine = GrammarEngine::new(Arc::clone(&tokenizer), &stops, width).unwrap();
        Bench {
            tokenizer,
            engine,
            stops,
        }
    }

    /// 507 tokens of bytes.
    fn small() -> Self {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/hf");
        let tokenizer = Tokenizer::from_dir(Path::new(dir)).unwrap();
        let stops = tokenizer.stop_ids([]).unwrap();
        Bench::new(tokenizer, stops)
    }

    /// A real model's, if it is there.
    fn real(file: &str) -> Option<Self> {
        let Some(dir) = std::env::var_os("BIPLANE_TEST_MODELS") else {
            println!("skipped: BIPLANE_TEST_MODELS names no folder of models");
            return None;
        };
        let opened = biplane_models::checkpoint::open(&Path::new(&dir).join(file)).unwrap();
        let texts = crate::texts::Texts::read(&opened).unwrap();
        Some(Bench::new(texts.tokenizer, texts.stop_ids))
    }

    fn smollm() -> Option<Self> {
        Self::real("smollm2-135m-instruct-q4_1.gguf")
    }

    fn gemma() -> Option<Self> {
        Self::real("gemma-3-270m-q4_k_m.gguf")
    }

    fn state(&self, constraint: &Constraint) -> GrammarState {
        self.engine.state(constraint).unwrap()
    }

    fn error(&self, constraint: &Constraint) -> String {
        self.engine.state(constraint).unwrap_err().to_string()
    }

    /// Whether the constraint takes a text as a whole, in the tokenizer's own tokens.
    fn takes(&self, constraint: &Constraint, text: &str) -> bool {
        self.goes(self.state(constraint), text)
    }

    /// Control tokens' names in `text` are control tokens.
    fn goes(&self, mut state: GrammarState, text: &str) -> bool {
        for id in self.tokenizer.encode(text, Specials::Parse).unwrap() {
            // What is forced is the tokenizer's way to write it, which a text's end may differ from.
            if state.is_finished() || state.accept(id).is_err() {
                return false;
            }
        }
        let Ok(end) = state.may_end() else {
            return false;
        };
        let mask = state.mask().unwrap();
        assert!(
            self.stops.iter().all(|id| mask.allows(*id) == end),
            "{text}"
        );
        end
    }
}

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Random choices within the masks until nothing may follow or the answer ends; after `patience` tokens
/// in a hurry. `None` when there is no end within `most`.
fn walk(
    bench: &Bench,
    state: &mut GrammarState,
    random: &mut Random,
    most: usize,
) -> Option<String> {
    let mut ids = Vec::new();
    let patience = 10 + random.below(40);
    while !state.is_finished() {
        if ids.len() >= most {
            return None;
        }
        let forced = state.forced().unwrap();
        let mask = state.mask().unwrap().clone();
        if let Some(&first) = forced.first() {
            assert_eq!(
                mask.iter().collect::<Vec<_>>(),
                [first],
                "a choice beside what is forced"
            );
            for id in forced {
                assert!(state.mask().unwrap().allows(id));
                state.accept(id).unwrap();
                ids.push(id);
            }
            continue;
        }
        let allowed: Vec<u32> = mask.iter().collect();
        assert!(
            allowed
                .iter()
                .all(|id| (*id as usize) < bench.tokenizer.vocab_size())
        );
        let hurry = ids.len() > patience;
        let ends = bench.stops.iter().any(|id| mask.allows(*id));
        if ends && (hurry || random.chance(30)) {
            break;
        }
        let closing = |id: &&u32| {
            let bytes = bench.tokenizer.token_bytes(**id).unwrap_or_default();
            bytes == b"}" || bytes == b"]" || bytes == b"\""
        };
        let id = match allowed.iter().find(closing) {
            Some(id) if hurry || random.chance(25) => *id,
            _ => *random.pick(&allowed),
        };
        if bench.stops.contains(&id) {
            break;
        }
        state.accept(id).unwrap();
        ids.push(id);
    }
    Some(bench.tokenizer.decode(&ids, true))
}
