//! JSON Schemas: what is refused before anything is compiled, and what is written differently.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::{Error, Result};

/// Most bytes of a schema's text.
const MOST_BYTES: usize = 64 << 10;

/// Most objects and arrays of a schema's text.
const MOST_NODES: usize = 2000;

/// Deepest nesting of them.
const MOST_DEPTH: usize = 64;

/// Longest way from reference to reference.
const MOST_REFERENCES: usize = 64;

/// Most different references.
const MOST_TARGETS: usize = 512;

/// Most schemas that alternatives and combinations multiply to.
const MOST_COMBINATIONS: u64 = 50_000;

/// White space between parts: one space, or a line break and an indentation.
const WHITESPACE: &str = r" |\r?\n[ ]{0,32}|\r?\n\t{1,16}";

/// Keywords that would have to be checked, and are not.
const UNSUPPORTED: &[&str] = &[
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "x-guidance",
];

/// Keywords whose value is one schema, or for `items` several.
const ONE: &[&str] = &["additionalItems", "additionalProperties", "items"];
const LIST: &[&str] = &["allOf", "anyOf", "oneOf", "prefixItems"];
const MAP: &[&str] = &["$defs", "definitions", "patternProperties", "properties"];

/// Keywords whose value is data.
const DATA: &[&str] = &["const", "default", "enum", "examples"];

/// Most digits after the point of `multipleOf`, and the largest number that several of them multiply to,
/// in units of the last digit: the parser computes in 32 bits.
const MOST_DIGITS: usize = 6;
const MOST_MULTIPLE: f64 = 1e9;

/// Formats that the parser takes wider than they are: a leap second at any time, 29 February in any year,
/// names of any length. These have no leap seconds, no year 0, and no long or oddly hyphenated names.
fn narrower(format: &str) -> Option<String> {
    const YEAR: &str = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})";
    const LEAP: &str =
        "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
    const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    const HOST: &str = "[a-zA-Z0-9]{1,15}(?:-[a-zA-Z0-9]{1,15})?(?:[.][a-zA-Z0-9]{1,15}(?:-[a-zA-Z0-9]{1,15})?){0,6}";
    const ATOM: &str = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,30}";
    let date = format!(
        "(?:{YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{LEAP}-02-29)"
    );
    match format {
        "date" => Some(format!("^{date}$")),
        "time" => Some(format!("^{TIME}$")),
        "hostname" => Some(format!("^{HOST}$")),
        "email" => Some(format!("^{ATOM}(?:[.]{ATOM})?@{HOST}$")),
        "date-time" => Some(format!("^{date}T{TIME}$")),
        _ => None,
    }
}

/// Whole numbers below this are exact in the parser.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The greatest bound: the parser's are 64 bits wide.
const FARTHEST: f64 = 9_223_372_036_854_774_784.0;

/// The schema as the parser takes it.
pub(super) fn prepare(schema: &Value) -> Result<Value> {
    measure(schema)?;
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    let mut multiples = Vec::new();
    rewrite(&mut schema, &mut multiples)?;
    bound_multiples(multiples)?;
    follow(&schema)?;
    let mut costs = Costs {
        root: &schema,
        known: HashMap::new(),
    };
    let (alternatives, size) = costs.of(&schema);
    let combined = alternatives.max(size).max(costs.defined());
    if combined > MOST_COMBINATIONS {
        return Err(large(
            "combined alternatives",
            combined as usize,
            MOST_COMBINATIONS as usize,
        ));
    }
    let Value::Object(object) = &mut schema else {
        return Err(invalid("it must be an object or true".into()));
    };
    object.insert(
        "x-guidance".into(),
        json!({"whitespace_flexible": true, "whitespace_pattern": WHITESPACE}),
    );
    Ok(schema)
}

fn invalid(reason: String) -> Error {
    Error::Invalid {
        what: "JSON schema",
        reason,
    }
}

fn large(measure: &'static str, value: usize, most: usize) -> Error {
    Error::TooLarge {
        what: "JSON schema",
        measure,
        value,
        most,
    }
}

/// Bounds size and depth without recursion: what follows may recurse.
fn measure(schema: &Value) -> Result<()> {
    let (mut bytes, mut nodes) = (0, 0);
    let mut open = vec![(schema, 1)];
    while let Some((value, depth)) = open.pop() {
        if depth > MOST_DEPTH {
            return Err(large("a nesting of", depth, MOST_DEPTH));
        }
        bytes += 1;
        match value {
            Value::String(text) => bytes += text.len() + 2,
            Value::Array(items) => {
                nodes += 1;
                open.extend(items.iter().map(|item| (item, depth + 1)));
            }
            Value::Object(members) => {
                nodes += 1;
                bytes += members.keys().map(|key| key.len() + 4).sum::<usize>();
                open.extend(members.values().map(|member| (member, depth + 1)));
            }
            _ => bytes += 4,
        }
        if bytes > MOST_BYTES {
            return Err(large("bytes", bytes, MOST_BYTES));
        }
        if nodes > MOST_NODES {
            return Err(large("objects and arrays", nodes, MOST_NODES));
        }
    }
    Ok(())
}

/// Refuses what is not supported, and takes out what says nothing.
fn rewrite(schema: &mut Value, multiples: &mut Vec<f64>) -> Result<()> {
    let object = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(object) => object,
        other => {
            return Err(invalid(format!(
                "a schema is an object or true, not {other}"
            )));
        }
    };
    object.remove("deprecated");
    if object.get("uniqueItems") == Some(&Value::Bool(false)) {
        object.remove("uniqueItems");
    }
    if let Some(Value::String(format)) = object.get("format")
        && let Some(pattern) = narrower(format)
    {
        object.remove("format");
        let narrow = json!({"type": ["string", "number", "boolean", "null", "array", "object"], "pattern": pattern});
        match object.get("pattern") {
            None => drop(object.insert("pattern".into(), json!(pattern))),
            Some(_) => match object.entry("allOf").or_insert_with(|| json!([])) {
                Value::Array(all) => all.push(narrow),
                _ => return Err(invalid("\"allOf\" must be a list".into())),
            },
        }
    }
    for (key, value) in object.iter_mut() {
        let key = key.as_str();
        if UNSUPPORTED.contains(&key) {
            return Err(invalid(format!("the keyword {key:?} is not supported")));
        }
        match (key, &mut *value) {
            ("$ref", Value::String(to)) if !to.starts_with('#') => {
                return Err(invalid(format!(
                    "nothing is fetched for the reference {to:?}; write the schema into \"$defs\" and refer to it by \"#/$defs/..\""
                )));
            }
            ("const" | "enum", data) => exact(data)?,
            ("multipleOf", Value::Number(n)) => multiples.extend(n.as_f64()),
            ("minimum" | "exclusiveMinimum", bound) => inwards(bound, -1.0),
            ("maximum" | "exclusiveMaximum", bound) => inwards(bound, 1.0),
            (key, Value::Array(items)) if LIST.contains(&key) || key == "items" => {
                items
                    .iter_mut()
                    .try_for_each(|one| rewrite(one, multiples))?;
            }
            (key, Value::Object(members)) if MAP.contains(&key) => {
                members
                    .values_mut()
                    .try_for_each(|one| rewrite(one, multiples))?;
            }
            (key, one) if ONE.contains(&key) => rewrite(one, multiples)?,
            _ => {}
        }
    }
    Ok(())
}

/// Several of `multipleOf` may meet in one number, which is then a multiple of their product.
fn bound_multiples(mut multiples: Vec<f64>) -> Result<()> {
    multiples.sort_by(f64::total_cmp);
    multiples.dedup();
    let digits = |f: &f64| f.to_string().split_once('.').map_or(0, |(_, d)| d.len());
    let most = multiples.iter().map(digits).max().unwrap_or(0);
    let scale = 10f64.powi(most.min(i32::MAX as usize) as i32);
    let product: f64 = multiples.iter().map(|f| f.abs() * scale).product();
    match most > MOST_DIGITS || product > MOST_MULTIPLE {
        true => Err(invalid(
            "\"multipleOf\" has too many digits; write fewer or leave it out".into(),
        )),
        false => Ok(()),
    }
}

/// Numbers are the parser's `f64`: one that is not would silently be another.
fn exact(data: &Value) -> Result<()> {
    match data {
        Value::Number(n) if !n.is_f64() && n.as_f64().is_none_or(|f| f.abs() >= EXACT) => {
            Err(invalid(format!(
                "the number {n} is beyond ±2^53; write it as a string"
            )))
        }
        Value::Array(items) => items.iter().try_for_each(exact),
        Value::Object(members) => members.values().try_for_each(exact),
        _ => Ok(()),
    }
}

/// A bound that the parser cannot hold moves to a number within; `side` is 1 for an upper one.
fn inwards(bound: &mut Value, side: f64) {
    let Value::Number(n) = bound else { return };
    let Some(f) = n.as_f64().map(|f| f * side) else {
        return;
    };
    if f >= FARTHEST {
        *bound = json!(FARTHEST * side);
    } else if !n.is_f64() && f.abs() >= EXACT {
        *bound = json!(f.next_down() * side);
    }
}

/// Bounds the way along references, by which the compiler recurses.
fn follow(root: &Value) -> Result<()> {
    let mut seen = HashSet::new();
    let mut open = vec![(root, 0)];
    while let Some((value, depth)) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth))),
            Value::Object(members) => {
                for (key, member) in members {
                    match member {
                        Value::String(to) if key == "$ref" => {
                            if !seen.insert(to.as_str()) {
                                continue;
                            }
                            if depth == MOST_REFERENCES {
                                return Err(large(
                                    "chained references",
                                    depth + 1,
                                    MOST_REFERENCES,
                                ));
                            }
                            open.extend(target(root, to).map(|value| (value, depth + 1)));
                        }
                        // Definitions are read where they are referred to.
                        _ if key == "$defs" || key == "definitions" => {}
                        _ if DATA.contains(&key.as_str()) => {}
                        _ => open.push((member, depth)),
                    }
                }
            }
            _ => {}
        }
    }
    match seen.len() > MOST_TARGETS {
        true => Err(large("different references", seen.len(), MOST_TARGETS)),
        false => Ok(()),
    }
}

fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// How many schemas the compiler may make of one: `allOf` combines every alternative with every other.
struct Costs<'a> {
    root: &'a Value,
    known: HashMap<&'a str, (u64, u64)>,
}

impl<'a> Costs<'a> {
    /// Alternatives of a schema, and the size of all of them.
    fn of(&mut self, schema: &'a Value) -> (u64, u64) {
        let Value::Object(object) = schema else {
            return (1, 1);
        };
        let mut inner = 1u64;
        let mut parts = Vec::new();
        for (key, value) in object {
            match (key.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(members)) => {
                    for member in members.values() {
                        inner = inner.saturating_add(self.child(member));
                    }
                }
                ("items" | "prefixItems", Value::Array(items)) => {
                    for item in items {
                        inner = inner.saturating_add(self.child(item));
                    }
                }
                ("items" | "additionalProperties" | "additionalItems", one) => {
                    inner = inner.saturating_add(self.child(one));
                }
                ("enum", Value::Array(items)) => {
                    parts.push((items.len() as u64, items.len() as u64));
                }
                ("anyOf" | "oneOf", Value::Array(items)) => {
                    let each = items.iter().map(|item| self.of(item));
                    parts.push(each.fold((0, 0), |(a, b), (c, d): (u64, u64)| {
                        (a.saturating_add(c), b.saturating_add(d))
                    }));
                }
                ("allOf", Value::Array(items)) => {
                    parts.extend(items.iter().map(|item| self.of(item)));
                }
                ("$ref", Value::String(to)) => parts.push(self.referred(to)),
                _ => {}
            }
        }
        if inner > 1 || parts.is_empty() {
            parts.push((1, inner));
        }
        let alternatives = parts
            .iter()
            .fold(1u64, |all, (n, _)| all.saturating_mul((*n).max(1)));
        let sizes = parts.iter().map(|(n, size)| size.div_ceil((*n).max(1)));
        let size = sizes.fold(0u64, u64::saturating_add);
        (alternatives, alternatives.saturating_mul(size))
    }

    /// A schema within another; one that is only a reference is made once for all.
    fn child(&mut self, schema: &'a Value) -> u64 {
        if let Value::Object(object) = schema
            && let Some(Value::String(to)) = only_reference(object)
        {
            self.referred(to);
            return 1;
        }
        self.of(schema).1
    }

    fn referred(&mut self, to: &'a str) -> (u64, u64) {
        if let Some(&known) = self.known.get(to) {
            return known;
        }
        self.known.insert(to, (1, 1));
        let cost = match target(self.root, to) {
            Some(schema) => self.of(schema),
            None => (1, 1),
        };
        self.known.insert(to, cost);
        cost
    }

    /// The size of all that is referred to.
    fn defined(&self) -> u64 {
        let sizes = self.known.values().map(|(_, size)| *size);
        sizes.fold(0, u64::saturating_add)
    }
}

fn only_reference(object: &Map<String, Value>) -> Option<&Value> {
    let constrains = |key: &&String| {
        ![
            "$ref",
            "title",
            "description",
            "default",
            "$comment",
            "examples",
        ]
        .contains(&key.as_str())
    };
    object
        .get("$ref")
        .filter(|_| object.keys().find(constrains).is_none())
}
