//! Answers held to a form, alone and among others.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

use super::*;
use crate::grammar::{Constraint, GrammarEngine, GrammarState};

/// A constraint's state in the fake model's vocabulary.
pub fn state(constraint: &Constraint) -> GrammarState {
    static ENGINE: LazyLock<GrammarEngine> = LazyLock::new(|| {
        let tokenizer = vocabulary().tokenizer;
        GrammarEngine::new(Arc::clone(&tokenizer), &[fake::STOP], fake::VOCAB).unwrap()
    });
    ENGINE.state(constraint).unwrap()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "the name of it": {"type": "string", "maxLength": 6},
            "how many": {"type": "integer", "minimum": 0, "maximum": 999},
            "kind": {"enum": ["large", "small"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
        },
        "required": ["the name of it", "how many", "kind"],
        "additionalProperties": false
    })
}

fn constrained(seed: u32, constraint: Constraint) -> Request {
    Request {
        constraint: Some(constraint),
        ..seeded(seed, 40 + seed as usize, 200)
    }
}

fn mixed() -> Vec<Request> {
    (0..6)
        .flat_map(|i| {
            [
                constrained(i, Constraint::JsonSchema(schema())),
                seeded(i, 30, 40),
                constrained(
                    i,
                    Constraint::Choice(vec!["yes, always".into(), "no".into()]),
                ),
                request(i, 20, 20),
            ]
        })
        .collect()
}

#[test]
fn answers_keep_their_form_in_any_company() {
    let vocabulary = vocabulary();
    let requests = mixed();
    let want = solo(&vocabulary, None, &requests);
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for (request, answer) in requests.iter().zip(&want) {
        match &request.constraint {
            Some(Constraint::JsonSchema(_)) => {
                assert_eq!(answer.end, Some(Ok(FinishReason::Stop)));
                let value = serde_json::from_str(&answer.text).unwrap();
                assert!(validator.is_valid(&value), "{}", answer.text);
                assert!(!answer.tokens.contains(&fake::STOP));
            }
            Some(_) => assert!(["yes, always", "no"].contains(&answer.text.as_str())),
            None => {}
        }
    }
    for n in [2, 5, 64] {
        for speculates in [false, true] {
            let config = EngineConfig {
                max_sequences: n,
                ..EngineConfig::default()
            };
            let guesser = speculates.then(|| Guesser::prompt_lookup(4));
            let mut bench = Bench::guessing(&vocabulary, None, config.clone(), guesser);
            assert_alike(&bench.answers(&requests), &want);
            assert_alike(&bench.answers(&requests), &want);
            bench.nothing_leaks();
            let (draft, _) = FakeRunner::right(None, 70);
            let guesser = speculates.then(|| Guesser::draft(4, Box::new(draft)));
            let mut bench = Bench::guessing(&vocabulary, None, config, guesser);
            assert_alike(&bench.answers(&requests), &want);
            bench.nothing_leaks();
        }
    }
}

#[test]
fn a_constraint_that_explodes_fails_alone() {
    let vocabulary = vocabulary();
    let bomb = "(((((a{9,999}){9,999}){9,999}){9,999}){9,999})";
    let bomb = constrained(2, Constraint::Regex(bomb.into()));
    let mut requests = vec![request(1, 20, 60), bomb];
    let want = solo(&vocabulary, None, &requests[..1]);
    for together in [true, false] {
        let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
        let answers = bench.answers(&requests);
        let failed = answers.last().unwrap();
        assert!(
            matches!(&failed.end, Some(Err(e)) if e.contains("too complex")),
            "{failed:?}"
        );
        if together {
            assert_alike(&answers[..1], &want);
            requests.remove(0);
        }
        // And the engine goes on.
        assert_alike(&bench.answers(&[request(1, 20, 60)]), &want);
        bench.nothing_leaks();
    }
}

#[test]
fn what_is_forced_takes_no_steps() {
    let vocabulary = vocabulary();
    let text = "all of this must be said word for word";
    let r = constrained(1, Constraint::Choice(vec![text.into()]));
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    let answer = bench.answers(std::slice::from_ref(&r)).remove(0);
    assert_eq!(answer.text, text);
    assert_eq!(answer.end, Some(Ok(FinishReason::Stop)));
    assert!(answer.tokens.len() > 5);
    // The prompt's own step gives the first token, and the rest follows.
    assert_eq!(bench.scheduler.counters.read().steps, 1);
    // With log probabilities each token's logits are needed, and the answer is the same.
    let slow = Request {
        logprobs: Some(2),
        ..r
    };
    let again = bench.answers(std::slice::from_ref(&slow)).remove(0);
    assert_alike(&[again], &[answer]);
    assert!(bench.scheduler.counters.read().steps > 5);
    bench.nothing_leaks();
}

#[test]
fn a_constrained_answer_is_cut_and_ended_as_others_are() {
    let vocabulary = vocabulary();
    let mut bench = Bench::new(&vocabulary, None, EngineConfig::default());
    let whole = constrained(3, Constraint::JsonSchema(schema()));
    let cut = Request {
        max_tokens: Some(4),
        ..whole.clone()
    };
    let answer = bench.answers(&[cut]).remove(0);
    assert_eq!(answer.end, Some(Ok(FinishReason::Length)));
    assert_eq!(answer.tokens.len(), 4);
    let stopped = Request {
        stop: vec!["how many".into()],
        // A constraint ends at its end, whatever is said of end-of-turn tokens.
        ignore_eos: true,
        ..whole.clone()
    };
    let answer = bench.answers(&[stopped]).remove(0);
    assert_eq!(
        answer.end,
        Some(Ok(FinishReason::StopText("how many".into())))
    );
    let endless = Request {
        ignore_eos: true,
        ..whole
    };
    let answer = bench.answers(&[endless]).remove(0);
    assert_eq!(answer.end, Some(Ok(FinishReason::Stop)));
    bench.nothing_leaks();
}

#[test]
fn the_models_stop_token_ends_what_could_go_on() {
    let vocabulary = vocabulary();
    let r = Request {
        // The fake model rarely ends by itself.
        sampling: SamplingParams {
            logit_bias: vec![(fake::STOP, 30.0)],
            ..SamplingParams::default()
        },
        ..constrained(5, Constraint::Regex("ab?c*".into()))
    };
    let answer = solo(&vocabulary, None, &[r]).remove(0);
    assert_eq!(answer.text, "a");
    assert_eq!(answer.end, Some(Ok(FinishReason::Stop)));
    assert_eq!(answer.tokens.last(), Some(&fake::STOP));
}
