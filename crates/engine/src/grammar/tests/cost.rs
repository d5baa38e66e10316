//! What masks cost; `--nocapture` shows it.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

fn invoice() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kind": {"enum": ["order", "offer", "bill"]},
            "total": {"type": "number", "minimum": 0},
            "date": {"type": "string", "format": "date"},
            "lines": {"type": "array", "items": {
                "type": "object",
                "properties": {"text": {"type": "string", "maxLength": 80}, "count": {"type": "integer"}, "paid": {"type": "boolean"}},
                "required": ["text", "count"], "additionalProperties": false
            }},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]}
        },
        "required": ["name", "kind", "total", "date", "lines", "note"], "additionalProperties": false
    })
}

const TEXT: &str = "{\n  \"name\": \"Müller & Sons, New York\",\n  \"kind\": \"bill\",\n  \"total\": 1234.5,\n  \"date\": \"2024-05-17\",\n  \"lines\": [\n    {\"text\": \"A rather long description of what was bought that day\", \"count\": 3, \"paid\": true},\n    {\"text\": \"Screws\", \"count\": 12000}\n  ],\n  \"note\": \"Thank you for your order; we look forward to the next one.\"\n}";

#[test]
fn masks_are_cheap() {
    let benches = [("49k", Bench::smollm()), ("262k", Bench::gemma())];
    for (name, bench) in benches.into_iter().filter_map(|(name, b)| Some((name, b?))) {
        let start = Instant::now();
        let engine = GrammarEngine::new(
            Arc::clone(&bench.tokenizer),
            &bench.stops,
            bench.tokenizer.vocab_size(),
        )
        .unwrap();
        println!("{name}: engine {:?}", start.elapsed());
        for (what, constraint) in [
            ("schema", Constraint::JsonSchema(invoice())),
            ("object", Constraint::JsonObject),
        ] {
            let start = Instant::now();
            let first = engine.state(&constraint).unwrap();
            let compiled = start.elapsed();
            drop(first);
            let ids = bench.tokenizer.encode(TEXT, Specials::Plain).unwrap();
            let (mut masks, mut others) = (Vec::new(), Vec::new());
            let mut forced = 0;
            for _ in 0..5 {
                let mut state = engine.state(&constraint).unwrap();
                for &id in &ids {
                    let start = Instant::now();
                    forced += usize::from(!state.forced().unwrap().is_empty());
                    others.push(start.elapsed());
                    let start = Instant::now();
                    state.mask().unwrap();
                    masks.push(start.elapsed());
                    let start = Instant::now();
                    state.accept(id).unwrap();
                    others.push(start.elapsed());
                }
                assert!(state.is_finished(), "{what}");
            }
            let quantile = |times: &mut Vec<Duration>, q: f64| {
                times.sort();
                times[((times.len() - 1) as f64 * q) as usize]
            };
            let mean = masks.iter().sum::<Duration>() / masks.len() as u32;
            println!(
                "{name} {what}: compiled in {compiled:?}; mask median {:?}, mean {mean:?}, p99 {:?}, most {:?}; accept and forced median {:?}, p99 {:?}; {} tokens, {forced} forced",
                quantile(&mut masks, 0.5),
                quantile(&mut masks, 0.99),
                quantile(&mut masks, 1.0),
                quantile(&mut others, 0.5),
                quantile(&mut others, 0.99),
                ids.len(),
            );
        }
    }
}
