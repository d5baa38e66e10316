//! Grammars of calls take what the formats write, and nothing else.

use std::{collections::HashMap, path::Path, sync::Arc};

use serde_json::{Map, Value, json};

use crate::{
    grammar::{Constraint, GrammarEngine, GrammarState},
    tokenizer::{Specials, Tokenizer},
    tools::{
        AnswerForm, Grammar, Reasoning, ReasoningTags, ToolCall, ToolDefinition, ToolFormat,
        ToolParser,
    },
};

struct Bench {
    tokenizer: Arc<Tokenizer>,
    engine: GrammarEngine,
    stops: Vec<u32>,
    /// Markers that other control tokens of the vocabulary stand for.
    specials: HashMap<&'static str, u32>,
}

impl Bench {
    fn new() -> Self {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/hf");
        let tokenizer = Arc::new(Tokenizer::from_dir(Path::new(dir)).unwrap());
        let stops = tokenizer.stop_ids([]).unwrap();
        let width = tokenizer.vocab_size().next_multiple_of(64);
        let engine = GrammarEngine::new(Arc::clone(&tokenizer), &stops, width).unwrap();
        Bench {
            tokenizer,
            engine,
            stops,
            specials: HashMap::new(),
        }
    }

    /// The same, a format's first marker a control token.
    fn with_special(mut self, marker: &'static str) -> Self {
        let free = |id: &u32| self.tokenizer.is_special(*id) && !self.stops.contains(id);
        let id = (0..self.tokenizer.vocab_size() as u32).find(free).unwrap();
        self.specials = HashMap::from([(marker, id)]);
        self
    }

    fn grammar(&self, grammar: &Plan<'_>) -> String {
        let special = |name: &str| self.specials.get(name).copied();
        let tools: Vec<&ToolDefinition> = grammar.tools.iter().collect();
        let grammar = Grammar {
            calls: Some((grammar.format, &tools)),
            all_strict: grammar.required,
            several: grammar.several,
            answer: match (grammar.required, grammar.like) {
                (true, _) => AnswerForm::None,
                (false, Some(constraint)) => AnswerForm::Like(constraint),
                (false, None) => AnswerForm::Text,
            },
            reasoning: grammar.reasoning,
            special: &special,
        };
        grammar.lark().unwrap()
    }

    fn state(&self, lark: &str) -> GrammarState {
        let constraint = Constraint::Lark(lark.to_owned());
        let state = self.engine.state(&constraint);
        state.unwrap_or_else(|e| panic!("{e}\n{lark}"))
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut rest = text;
        while let Some((at, name, id)) = self
            .specials
            .iter()
            .filter_map(|(name, id)| Some((rest.find(name)?, name, id)))
            .min()
        {
            ids.extend(self.tokenizer.encode(&rest[..at], Specials::Plain).unwrap());
            ids.push(*id);
            rest = &rest[at + name.len()..];
        }
        ids.extend(self.tokenizer.encode(rest, Specials::Plain).unwrap());
        ids
    }

    fn takes(&self, lark: &str, text: &str) -> bool {
        let mut state = self.state(lark);
        for id in self.ids(text) {
            if state.is_finished() || state.accept(id).is_err() {
                return false;
            }
        }
        state.may_end().unwrap()
    }
}

#[derive(Clone, Copy)]
struct Plan<'a> {
    format: ToolFormat,
    tools: &'a [ToolDefinition],
    required: bool,
    several: bool,
    like: Option<&'a Constraint>,
    reasoning: Reasoning,
}

fn tools() -> Vec<ToolDefinition> {
    let numbers = json!({
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
        "additionalProperties": false,
    });
    vec![
        ToolDefinition::new("add", numbers.clone()).with_strict(true),
        ToolDefinition::new("add.all", numbers).with_strict(true),
        ToolDefinition::new("now", json!({"type": "object"})),
    ]
}

fn call(name: &str, arguments: &str) -> ToolCall {
    ToolCall {
        id: String::new(),
        name: name.into(),
        arguments: arguments.into(),
    }
}

const RIGHT: &str = r#"{"a": 1, "b": -2.5}"#;

/// Each format, its markers as text and, where it has any, as a control token.
fn benches() -> impl Iterator<Item = (ToolFormat, Bench)> {
    ToolFormat::ALL.into_iter().flat_map(|format| {
        let marked = format.markers().first();
        let marked = marked.map(|marker| (format, Bench::new().with_special(marker)));
        [Some((format, Bench::new())), marked].into_iter().flatten()
    })
}

#[test]
fn forced_calls_are_what_the_formats_write() {
    let tools = tools();
    for (format, bench) in benches() {
        let plan = Plan {
            format,
            tools: &tools,
            required: true,
            several: true,
            like: None,
            reasoning: Reasoning::None,
        };
        let lark = bench.grammar(&plan);
        let takes = |calls: &[ToolCall]| bench.takes(&lark, &format.write(calls));
        assert!(takes(&[call("add", RIGHT)]), "{format}:\n{lark}");
        assert!(takes(&[call("add.all", RIGHT)]), "{format}:\n{lark}");
        let two = [call("add", RIGHT), call("now", "{}")];
        assert_eq!(takes(&two), format.is_parallel(), "{format}:\n{lark}");
        assert!(!takes(&[call("add", r#"{"a": 1}"#)]), "{format}:\n{lark}");
        assert!(!takes(&[call("sub", RIGHT)]), "{format}:\n{lark}");
        assert!(!bench.takes(&lark, "I cannot."), "{format}:\n{lark}");
        assert!(!bench.takes(&lark, ""), "{format}:\n{lark}");

        let one = bench.grammar(&Plan {
            several: false,
            ..plan
        });
        assert!(
            bench.takes(&one, &format.write(&two[..1])),
            "{format}:\n{one}"
        );
        assert!(!bench.takes(&one, &format.write(&two)), "{format}:\n{one}");
    }
}

#[test]
fn free_answers_hold_right_calls_only() {
    let tools = tools();
    for (format, bench) in benches() {
        let lark = bench.grammar(&Plan {
            format,
            tools: &tools,
            required: false,
            several: true,
            like: None,
            reasoning: Reasoning::None,
        });
        let takes = |text: &str| bench.takes(&lark, text);
        assert!(takes("It is 3 < 4.\n"), "{format}:\n{lark}");
        let right = format.write(&[call("add", RIGHT)]);
        assert!(takes(&right), "{format}:\n{lark}");
        assert!(
            !takes(&format.write(&[call("add", "{}")])),
            "{format}:\n{lark}"
        );
        let bare = matches!(
            format,
            ToolFormat::Llama | ToolFormat::Gemma | ToolFormat::Json
        );
        if !bare {
            assert!(takes(&format!("Let me add.\n{right}")), "{format}:\n{lark}");
        }
        // One that is not strict takes any object.
        let now = format.write(&[call("now", r#"{"zone": "UTC"}"#)]);
        assert!(takes(&now), "{format}:\n{lark}");
    }
}

#[test]
fn reasoning_comes_before() {
    let tools = tools();
    let think = ReasoningTags::detect("</think>").unwrap();
    for bench in [Bench::new(), Bench::new().with_special("</think>")] {
        for format in [ToolFormat::Hermes, ToolFormat::Json] {
            let plan = |reasoning| Plan {
                format,
                tools: &tools,
                required: true,
                several: true,
                like: None,
                reasoning,
            };
            let right = format.write(&[call("add", RIGHT)]);
            let begun = bench.grammar(&plan(Reasoning::Begun(think)));
            assert!(
                bench.takes(&begun, &format!("I add.\n</think>\n\n{right}")),
                "{begun}"
            );
            assert!(!bench.takes(&begun, &right), "{begun}");
            let possible = bench.grammar(&plan(Reasoning::Possible(think)));
            let thought = format!("<think>\nI add.\n</think>\n\n{right}");
            assert!(bench.takes(&possible, &thought), "{possible}");
            assert!(bench.takes(&possible, &right), "{possible}");
        }
    }
}

#[test]
fn a_response_format_stands_beside_calls() {
    let tools = tools();
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": false});
    let forms = [
        (Constraint::JsonSchema(schema), r#"{"sum": 3}"#),
        (Constraint::JsonObject, r#"{"any": [true]}"#),
        (
            Constraint::Choice(vec!["yes".into(), "no \"x\"".into()]),
            "no \"x\"",
        ),
        (Constraint::Regex("[0-9]+/[0-9]".into()), "12/3"),
    ];
    for (format, bench) in benches() {
        for (constraint, fits) in &forms {
            let lark = bench.grammar(&Plan {
                format,
                tools: &tools,
                required: false,
                several: true,
                like: Some(constraint),
                reasoning: Reasoning::None,
            });
            assert!(bench.takes(&lark, fits), "{format} {fits}:\n{lark}");
            assert!(!bench.takes(&lark, "Hello"), "{format} {fits}:\n{lark}");
            let right = format.write(&[call("add", RIGHT)]);
            assert!(bench.takes(&lark, &right), "{format} {fits}:\n{lark}");
        }
    }
}

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % n as u64) as usize
    }
}

/// What [`schema`] and [`object`] draw; all of it must turn up.
const KINDS: [&str; 5] = [
    "enum",
    "nested object",
    "array",
    "optional field",
    "unicode name",
];

/// Marks the kinds that are in a schema.
fn note_kinds(schema: &Value, depth: usize, seen: &mut [usize; KINDS.len()]) {
    let mut mark = |kind: &str| {
        let at = KINDS.iter().position(|k| *k == kind).unwrap();
        seen[at] += 1;
    };
    if schema.get("enum").is_some() {
        mark("enum");
    }
    if let Some(items) = schema.get("items") {
        mark("array");
        note_kinds(items, depth + 1, seen);
        return;
    }
    let Some(fields) = schema["properties"].as_object() else {
        return;
    };
    if depth > 0 {
        mark("nested object");
    }
    if fields.len() > schema["required"].as_array().unwrap().len() {
        mark("optional field");
    }
    if fields.keys().any(|name| !name.is_ascii()) {
        mark("unicode name");
    }
    for field in fields.values() {
        note_kinds(field, depth + 1, seen);
    }
}

fn schema(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth > 2 { 5 } else { 8 }) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "integer", "minimum": -9, "maximum": 99}),
        2 => json!({"enum": ["red", "grün", 3, null]}),
        3 => json!({"type": "string", "maxLength": random.below(6)}),
        4 => json!({"type": ["string", "null"], "pattern": "^[a-c]{1,3}$"}),
        5 => json!({"type": "array", "items": schema(random, depth + 1), "maxItems": 2}),
        6 => {
            json!({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 1}]})
        }
        _ => object(random, depth + 1),
    }
}

fn object(random: &mut Random, depth: usize) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for i in 0..random.below(4) {
        let name = format!(
            "{}{i}",
            ["city", "größe", "都市", "🌍", "a b", "x\"y"][random.below(6)]
        );
        properties.insert(name.clone(), schema(random, depth));
        if random.below(2) == 0 {
            required.push(Value::from(name));
        }
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// Whether the keywords that [`schema`] makes hold.
fn holds(schema: &Value, value: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| holds(schema, value));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    let is = |kind: &str| {
        schema["type"] == kind
            || schema["type"]
                .as_array()
                .is_some_and(|t| t.contains(&kind.into()))
    };
    match value {
        Value::Null => is("null"),
        Value::Bool(_) => is("boolean"),
        Value::Number(n) => {
            is("integer")
                && n.as_f64()
                    .is_some_and(|n| (-9.0..=99.0).contains(&n) && n.fract() == 0.0)
        }
        Value::String(text) => {
            let letters = text.chars().count();
            let pattern = schema.get("pattern").is_none()
                || (1..=3).contains(&letters) && text.chars().all(|c| "abc".contains(c));
            is("string")
                && pattern
                && schema["maxLength"]
                    .as_u64()
                    .is_none_or(|m| letters as u64 <= m)
        }
        Value::Array(items) => {
            is("array")
                && items.len() as u64 <= schema["maxItems"].as_u64().unwrap()
                && items.iter().all(|item| holds(&schema["items"], item))
        }
        Value::Object(fields) => {
            let required = schema["required"].as_array().unwrap();
            is("object")
                && required
                    .iter()
                    .all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields.iter().all(|(name, value)| {
                    let schema = schema["properties"].get(name);
                    schema.is_some_and(|schema| holds(schema, value))
                })
        }
    }
}

/// Random tokens within the masks, read as the chat's stream reads them.
#[test]
fn a_thousand_random_tools_are_called_rightly() {
    let bench = Bench::new();
    let mut random = Random(7);
    let mut seen = [0; KINDS.len()];
    for i in 0..1000 {
        let format = ToolFormat::ALL[i % ToolFormat::ALL.len()];
        let tools: Vec<ToolDefinition> = (0..1 + random.below(3))
            .map(|n| ToolDefinition::new(format!("tool_{n}"), object(&mut random, 0)))
            .collect();
        for tool in &tools {
            note_kinds(&tool.parameters, 0, &mut seen);
        }
        let lark = bench.grammar(&Plan {
            format,
            tools: &tools,
            required: true,
            several: random.below(2) == 0,
            like: None,
            reasoning: Reasoning::None,
        });
        let mut state = bench.state(&lark);
        let mut ids = Vec::new();
        while !state.is_finished() {
            assert!(ids.len() < 5000, "{lark}");
            let forced = state.forced().unwrap();
            if !forced.is_empty() {
                for id in forced {
                    state.accept(id).unwrap();
                    ids.push(id);
                }
                continue;
            }
            let allowed: Vec<u32> = state.mask().unwrap().iter().collect();
            let ends = allowed.iter().any(|id| bench.stops.contains(id));
            if ends && random.below(2) == 0 {
                break;
            }
            let id = allowed[random.below(allowed.len())];
            if bench.stops.contains(&id) {
                break;
            }
            state.accept(id).unwrap();
            ids.push(id);
        }
        let text = bench.tokenizer.decode(&ids, true);
        let answer = ToolParser::new(Some(format), &tools).parse(&text);
        assert_eq!(answer.content, "", "{format}: {text}\n{lark}");
        assert!(!answer.calls.is_empty(), "{format}: {text}\n{lark}");
        for call in &answer.calls {
            let tool = tools.iter().find(|tool| tool.name == call.name).unwrap();
            let arguments = serde_json::from_str(&call.arguments).unwrap();
            assert!(
                holds(&tool.parameters, &arguments),
                "{format}: {text}\n{lark}"
            );
        }
    }
    for (kind, times) in KINDS.iter().zip(seen) {
        assert!(times > 100, "{kind}: {times}");
    }
}
