//! Random JSON Schemas.

use serde_json::{Map, Value, json};

use super::Random;

const NAMES: [&str; 10] = [
    "a", "name", "größe", "日本", "a b", "q\"uote", "x/y", "$ref2", "🙂", "id",
];
const PATTERNS: [&str; 8] = [
    "^[a-z]{2,5}$",
    "^\\d{3}-\\d{4}$",
    "foo",
    "^(yes|no)$",
    "^[A-Z][a-z]*( [A-Z][a-z]*)?$",
    "^\\w+@\\w+\\.com$",
    "[0-9]$",
    "^.{3}$",
];
const FORMATS: [&str; 10] = [
    "ipv6",
    "duration",
    "uri",
    "date",
    "time",
    "date-time",
    "uuid",
    "ipv4",
    "email",
    "hostname",
];

/// A schema, with definitions that its parts may refer to.
pub fn schema(random: &mut Random) -> Value {
    let definitions = random.below(4);
    let mut root = object_or_any(random, 3, definitions);
    if let Value::Object(members) = &mut root
        && definitions > 0
    {
        let mut defs = Map::new();
        for i in 0..definitions {
            defs.insert(format!("d{i}"), any(random, 2, i));
        }
        // A list that refers to itself.
        if random.chance(30) {
            defs.insert(
                "list".into(),
                json!({
                    "type": "object",
                    "properties": {"v": any(random, 0, 0), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}},
                    "required": ["v", "next"], "additionalProperties": false
                }),
            );
            if let Some(Value::Object(properties)) = members.get_mut("properties") {
                properties.insert("list".into(), json!({"$ref": "#/$defs/list"}));
            }
        }
        members.insert("$defs".into(), Value::Object(defs));
    }
    root
}

fn object_or_any(random: &mut Random, depth: usize, definitions: usize) -> Value {
    match random.chance(70) {
        true => object(random, depth, definitions),
        false => any(random, depth, definitions),
    }
}

fn any(random: &mut Random, depth: usize, definitions: usize) -> Value {
    let kinds = if depth == 0 { 9 } else { 15 };
    match random.below(kinds) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"type": ["string", "null"]}),
        3 => number(random),
        4 | 5 => string(random),
        6 => json!({"enum": values(random)}),
        7 => json!({"const": value(random)}),
        8 if definitions > 0 => json!({"$ref": format!("#/$defs/d{}", random.below(definitions))}),
        8 => json!(true),
        9 | 10 => object(random, depth - 1, definitions),
        11 => array(random, depth - 1, definitions),
        12 => json!({"anyOf": list(random, depth - 1, definitions)}),
        13 => json!({"oneOf": list(random, depth - 1, definitions)}),
        _ => json!({"allOf": [any(random, depth - 1, definitions)], "description": "d"}),
    }
}

fn list(random: &mut Random, depth: usize, definitions: usize) -> Vec<Value> {
    (0..1 + random.below(3))
        .map(|_| any(random, depth, definitions))
        .collect()
}

fn value(random: &mut Random) -> Value {
    match random.below(8) {
        0 => json!(random.below(1000)),
        1 => json!(-(random.below(100) as i64)),
        2 => json!("text"),
        3 => json!("with \"quotes\", \\ and\nlines"),
        4 => json!("日本🙂"),
        5 => json!(null),
        6 => json!([1, "a", {"k": true}]),
        _ => json!({"a": 1, "b": [false]}),
    }
}

fn values(random: &mut Random) -> Vec<Value> {
    (0..1 + random.below(4)).map(|_| value(random)).collect()
}

fn number(random: &mut Random) -> Value {
    let mut schema = Map::new();
    let whole = random.chance(60);
    schema.insert(
        "type".into(),
        json!(if whole { "integer" } else { "number" }),
    );
    let low = random.below(200) as i64 - 100;
    let high = low + random.below(300) as i64;
    if random.chance(60) {
        let key = *random.pick(&["minimum", "exclusiveMinimum"]);
        schema.insert(key.into(), json!(low));
    }
    if random.chance(60) {
        let key = *random.pick(&["maximum", "exclusiveMaximum"]);
        schema.insert(
            key.into(),
            if whole {
                json!(high)
            } else {
                json!(high as f64 + 0.5)
            },
        );
    }
    if whole && random.chance(15) {
        schema.insert("multipleOf".into(), json!(1 + random.below(7)));
        // The validator divides in f64.
        schema.entry("minimum").or_insert(json!(low));
        schema.entry("maximum").or_insert(json!(high));
    }
    Value::Object(schema)
}

fn string(random: &mut Random) -> Value {
    let mut schema = Map::from_iter([("type".to_owned(), json!("string"))]);
    match random.below(4) {
        0 => {
            schema.insert("pattern".into(), json!(*random.pick(&PATTERNS)));
        }
        1 => {
            schema.insert("format".into(), json!(*random.pick(&FORMATS)));
        }
        2 => {
            let least = random.below(5);
            schema.insert("minLength".into(), json!(least));
            schema.insert("maxLength".into(), json!(least + random.below(8)));
        }
        _ => {}
    }
    Value::Object(schema)
}

fn array(random: &mut Random, depth: usize, definitions: usize) -> Value {
    let mut schema = Map::from_iter([("type".to_owned(), json!("array"))]);
    schema.insert("items".into(), any(random, depth, definitions));
    if random.chance(30) {
        let first: Vec<Value> = (0..1 + random.below(2))
            .map(|_| any(random, 0, 0))
            .collect();
        schema.insert("prefixItems".into(), json!(first));
    }
    let least = random.below(3);
    if random.chance(50) {
        schema.insert("minItems".into(), json!(least));
    }
    if random.chance(60) {
        schema.insert("maxItems".into(), json!(least + random.below(3)));
    }
    Value::Object(schema)
}

fn object(random: &mut Random, depth: usize, definitions: usize) -> Value {
    let mut properties = Map::new();
    for _ in 0..random.below(5) {
        let name = random.pick(&NAMES).to_string();
        properties.insert(name, any(random, depth, definitions));
    }
    let required: Vec<String> = properties
        .keys()
        .filter(|_| random.chance(50))
        .cloned()
        .collect();
    let mut schema = Map::from_iter([
        ("type".to_owned(), json!("object")),
        ("properties".to_owned(), Value::Object(properties)),
        ("required".to_owned(), json!(required)),
    ]);
    match random.below(4) {
        0 => {}
        1 => {
            schema.insert("additionalProperties".into(), any(random, 0, 0));
        }
        2 => {
            schema.insert(
                "patternProperties".into(),
                json!({"^p_[a-z]+$": any(random, 0, 0)}),
            );
            schema.insert("additionalProperties".into(), json!(false));
        }
        _ => {
            schema.insert("additionalProperties".into(), json!(false));
        }
    }
    Value::Object(schema)
}
