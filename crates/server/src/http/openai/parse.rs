//! Fields that several requests share: sampling, limits, the form of the answer.

use biplane::{Constraint, Dry, Request, SamplingChanges};
use serde_json::{Map, Value};

use crate::http::{
    error::ApiError,
    fields::{Fields, wrong},
    limits,
};

type Result<T> = std::result::Result<T, ApiError>;

/// What is asked for elsewhere under other names, or not at all here.
const REFUSED: [(&str, &str); 21] = [
    ("guided_json", FORM),
    ("guided_regex", FORM),
    ("guided_choice", FORM),
    ("guided_grammar", FORM),
    ("structured_outputs", FORM),
    ("grammar", FORM),
    ("json_schema", FORM),
    ("use_beam_search", "leave it out"),
    ("length_penalty", "leave it out"),
    ("min_tokens", "leave it out"),
    ("bad_words", "use logit_bias"),
    ("mirostat", "use top_p or min_p"),
    ("xtc_probability", "use top_p or min_p"),
    ("dynatemp_range", "use temperature"),
    ("lora", "serve the merged model"),
    ("truncate_prompt_tokens", "cut the prompt before sending it"),
    (
        "prompt_logprobs",
        "use echo and logprobs of /v1/completions",
    ),
    ("prediction", "start the server with --prompt-lookup"),
    ("audio", "the model writes text only"),
    ("moderation", "leave it out"),
    ("store", "answers are kept by /v1/responses only"),
];

const FORM: &str = "use response_format, of type json_schema, regex, choice or lark";

/// Refuses what cannot be honoured.
pub fn refuse(fields: &Fields) -> Result<()> {
    let mut all = REFUSED.iter();
    all.try_for_each(|(name, instead)| fields.refuse(name, instead))?;
    let unsupported = |name: &str, message: &str| {
        let error = ApiError::field(name, format!("not supported; {message}"));
        Err(error.with_code("unsupported_parameter"))
    };
    // An empty object asks for a search as well.
    if !fields.peek("web_search_options").is_null() {
        return unsupported("web_search_options", "offer a tool");
    }
    match fields.peek("verbosity") {
        Value::Null => Ok(()),
        Value::String(usual) if usual == "medium" => Ok(()),
        _ => unsupported(
            "verbosity",
            "say in the prompt how long the answer should be",
        ),
    }
}

/// The changes of sampling that a request asks for.
pub fn sampling(fields: &mut Fields) -> Result<SamplingChanges> {
    let repetition = fields.float("repetition_penalty")?;
    let repeat = fields.float("repeat_penalty")?;
    let window = last(fields, "repetition_window")?;
    let last_n = last(fields, "repeat_last_n")?;
    let (dry, dry_breakers) = dry(fields)?.unzip();
    Ok(SamplingChanges {
        temperature: fields.float("temperature")?,
        top_k: top_k(fields)?,
        top_p: fields.float("top_p")?,
        min_p: fields.float("min_p")?,
        typical_p: fields.float("typical_p")?,
        repetition_penalty: repetition.or(repeat),
        repetition_window: window.or(last_n),
        presence_penalty: fields.float("presence_penalty")?,
        frequency_penalty: fields.float("frequency_penalty")?,
        dry,
        dry_breakers,
        logit_bias: fields.object("logit_bias")?.map(biases).transpose()?,
        seed: fields.seed("seed")?,
    })
}

/// -1 is vLLM's word for all.
fn top_k(fields: &mut Fields) -> Result<Option<usize>> {
    match fields.value("top_k") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => Fields::of(serde_json::json!({"top_k": value}), "top_k")?.count("top_k"),
    }
}

/// How many of the last tokens; -1 is llama.cpp's word for all.
fn last(fields: &mut Fields, name: &str) -> Result<Option<usize>> {
    match fields.peek(name).as_i64() {
        Some(-1) => Ok(fields.value(name).map(|_| usize::MAX)),
        _ => fields.count(name),
    }
}

/// DRY under llama.cpp's names and with its values where they are absent: off without `dry_multiplier`.
fn dry(fields: &mut Fields) -> Result<Option<(Dry, Vec<String>)>> {
    let multiplier = fields.float("dry_multiplier")?;
    let base = fields.float("dry_base")?;
    let allowed_length = fields.count("dry_allowed_length")?;
    let range = last(fields, "dry_penalty_last_n")?;
    let breakers = fields.texts("dry_sequence_breakers")?;
    let bad = |message: String| Err(ApiError::field("dry_sequence_breakers", message));
    for text in breakers.iter().flatten() {
        if text.is_empty() || text.len() > limits::BREAKER {
            let (most, length) = (limits::BREAKER, text.len());
            return bad(format!("one has {length} bytes, expected 1 to {most}"));
        }
    }
    if let Some(many) = breakers.as_ref().filter(|b| b.len() > limits::BREAKERS) {
        let most = limits::BREAKERS;
        return bad(format!("{} texts, expected at most {most}", many.len()));
    }
    let numbers = base.is_some() || allowed_length.is_some() || range.is_some();
    if multiplier.is_none() && !numbers && breakers.is_none() {
        return Ok(None);
    }
    let usual = Dry::default();
    let dry = Dry {
        multiplier: multiplier.unwrap_or(0.0),
        base: base.unwrap_or(usual.base),
        allowed_length: allowed_length.unwrap_or(usual.allowed_length),
        range: range.filter(|tokens| *tokens < usize::MAX),
        sequence_breakers: Vec::new(),
    };
    let breakers = breakers.unwrap_or_else(|| ["\n", ":", "\"", "*"].map(str::to_owned).into());
    Ok(Some((dry, breakers)))
}

fn biases(biases: Map<String, Value>) -> Result<Vec<(u32, f32)>> {
    let bias = |(id, value): (String, Value)| {
        let number = id.trim().parse().ok();
        let number: u32 = number.ok_or_else(|| {
            ApiError::field(
                "logit_bias",
                format!("{id:?} is not a token id; see /tokenize"),
            )
        })?;
        let bias = value.as_f64().map(|bias| bias as f32);
        let bias = bias.filter(|bias| (-100.0..=100.0).contains(bias));
        let place = format!("logit_bias.{id}");
        Ok((
            number,
            bias.ok_or_else(|| wrong(&place, &value, "a number from -100 to 100"))?,
        ))
    };
    biases.into_iter().map(bias).collect()
}

/// What ends an answer.
pub fn ends(fields: &mut Fields, to: &mut Request) -> Result<()> {
    to.stop = fields.texts("stop")?.unwrap_or_default();
    to.stop_tokens = fields.tokens("stop_token_ids")?.unwrap_or_default();
    to.ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
    Ok(())
}

/// How many answers.
pub fn choices(fields: &mut Fields) -> Result<usize> {
    let n = fields.count("n")?.unwrap_or(1);
    match n {
        1..=limits::CHOICES => Ok(n),
        _ => Err(ApiError::field(
            "n",
            format!("{n} is not allowed, only 1 to {}", limits::CHOICES),
        )),
    }
}

/// Whether a stream is wanted, and usage at its end.
pub fn streaming(fields: &mut Fields) -> Result<(bool, bool)> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let usage = match fields.object("stream_options")? {
        Some(options) => Fields::of(Value::Object(options), "stream_options")?
            .bool("include_usage")
            .map_err(|e| e.with_param("stream_options.include_usage"))?,
        None => None,
    };
    Ok((stream, usage.unwrap_or(false)))
}

/// The form of the answer.
pub fn form(fields: &mut Fields) -> Result<Option<Constraint>> {
    const FORMS: &str = "one of text, json_object, json_schema, regex, choice, lark";
    let Some(format) = fields.object("response_format")? else {
        return Ok(None);
    };
    let mut format = Fields::of(Value::Object(format), "response_format")?;
    let within = |error: ApiError| {
        let param = format!("response_format.{}", error.param.unwrap_or_default());
        ApiError {
            param: Some(param),
            ..error
        }
    };
    let kind = format.text("type").map_err(within)?.unwrap_or_default();
    let missing = |name: &str| {
        let name = format!("response_format.{name}");
        ApiError::field(&name, format!("missing, but the type is {kind}"))
    };
    Ok(Some(match kind.as_str() {
        "text" => return Ok(None),
        "json_object" => Constraint::JsonObject,
        "json_schema" => {
            // OpenAI's place, else the schema itself as some clients send it.
            let outer = format.object("json_schema").map_err(within)?;
            let schema = match outer {
                Some(mut outer) => outer.remove("schema"),
                None => format.value("schema"),
            };
            let schema = schema.filter(|schema| !schema.is_null());
            Constraint::JsonSchema(schema.ok_or_else(|| missing("json_schema.schema"))?)
        }
        "regex" => {
            let pattern = match format.text("regex").map_err(within)? {
                Some(pattern) => Some(pattern),
                None => format.text("pattern").map_err(within)?,
            };
            Constraint::Regex(pattern.ok_or_else(|| missing("regex"))?)
        }
        "choice" => {
            let choice = match format.texts("choice").map_err(within)? {
                Some(choice) => Some(choice),
                None => format.texts("choices").map_err(within)?,
            };
            Constraint::Choice(choice.ok_or_else(|| missing("choice"))?)
        }
        "lark" | "grammar" => {
            let grammar = match format.text("lark").map_err(within)? {
                Some(grammar) => Some(grammar),
                None => format.text("grammar").map_err(within)?,
            };
            Constraint::Lark(grammar.ok_or_else(|| missing("lark"))?)
        }
        _ => {
            let kind = Value::String(kind);
            return Err(wrong("response_format.type", &kind, FORMS));
        }
    }))
}
