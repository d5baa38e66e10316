//! Grammars of answers that must be calls of tools, or may be only right ones, in the Lark dialect of
//! [`Constraint::Lark`].

use serde_json::{Value, json};

use super::{Reasoning, ReasoningTags, ToolDefinition, ToolFormat, format::Layout, markers::*};
use crate::grammar::Constraint;

/// Most calls of one answer that is held to a grammar.
const MOST_CALLS: usize = 16;

/// Any text but none.
const SOME: &str = "/(?s:.)+/";

/// What an answer may be.
pub(crate) struct Grammar<'a> {
    /// How calls are written, and the tools that may be called; none where calls are not possible.
    pub calls: Option<(ToolFormat, &'a [&'a ToolDefinition])>,
    /// Whether every call follows its tool's schema, and not only a strict one's.
    pub all_strict: bool,
    /// Whether there may be several calls.
    pub several: bool,
    /// What is not a call.
    pub answer: AnswerForm<'a>,
    pub reasoning: Reasoning,
    /// The id of a control token by its name: written as such, not as its letters.
    pub special: &'a dyn Fn(&str) -> Option<u32>,
}

/// What an answer that is not a call may be.
#[derive(Clone, Copy)]
pub(crate) enum AnswerForm<'a> {
    /// Nothing: it must be a call.
    None,
    Text,
    Like(&'a Constraint),
}

impl Grammar<'_> {
    /// The grammar.
    ///
    /// # Errors
    /// Why there is none.
    pub fn lark(&self) -> Result<String, String> {
        let mut rules = Rules::default();
        let mut bodies = Vec::new();
        if let Some((format, tools)) = self.calls {
            let opener = opener(format);
            let json = matches!(
                self.answer,
                AnswerForm::Like(Constraint::JsonSchema(_) | Constraint::JsonObject)
            );
            match opener.is_empty() && json {
                true => self.json_rules(format, tools, &mut rules),
                false => self.call_rules(format, opener, tools, &mut rules),
            }
            rules.add(
                "calls",
                &sequence(&[self.text(opener), "rest_of_calls".into()]),
            );
            match self.answer {
                AnswerForm::Text => bodies.extend(self.text_or_calls(format, opener, &mut rules)),
                _ => bodies.push("calls".to_owned()),
            }
        }
        match self.answer {
            AnswerForm::None => {}
            AnswerForm::Text if self.calls.is_some() => {}
            AnswerForm::Text => bodies.push(format!("({SOME})?")),
            AnswerForm::Like(constraint) => {
                rules.add("answer", &like(constraint)?);
                bodies.push("answer".into());
            }
        }
        rules.add("body", &bodies.join(" | "));
        let start = match self.reasoning {
            Reasoning::None => "body",
            Reasoning::Possible(tags) => {
                self.thought(tags, true, &mut rules);
                "body | thought body"
            }
            Reasoning::Begun(tags) => {
                self.thought(tags, false, &mut rules);
                "thought body"
            }
        };
        rules.add("start", start);
        Ok(rules.0)
    }

    /// The rule of thoughts before the answer, with the white space after them.
    fn thought(&self, tags: ReasoningTags, opens: bool, rules: &mut Rules) {
        let open = if opens {
            self.text(tags.open)
        } else {
            String::new()
        };
        let thinking = match (self.special)(tags.close) {
            Some(_) => {
                rules.add("THOUGHT", SOME);
                sequence(&["THOUGHT?".into(), self.text(tags.close)])
            }
            None => {
                rules.until("until_thought", tags.close);
                "until_thought".into()
            }
        };
        rules.add(
            "thought",
            &sequence(&[open, thinking, "/[ \\n]{0,4}/".into()]),
        );
    }

    /// The rules of calls, without what opens the first.
    fn call_rules(
        &self,
        format: ToolFormat,
        opener: &str,
        tools: &[&ToolDefinition],
        rules: &mut Rules,
    ) {
        let layout = format.layout(false);
        let [before, after_name, after] = &layout.call;
        let unopened = before.strip_prefix(opener).unwrap_or(before);
        let mut names = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let head = format!("{unopened}{}{after_name}", layout.name(&tool.name));
            let call = [self.text(&head), format!("arguments{i}"), self.text(after)];
            rules.add(&format!("call{i}"), &sequence(&call));
            rules.add(&format!("arguments{i}"), &self.arguments(tool));
            names.push(format!("call{i}"));
        }
        rules.add("call", &names.join(" | "));
        let listed = format.layout(true);
        let block = |layout: &Layout, least: usize, most: usize| {
            let begin = layout.begin.strip_prefix(opener);
            // What does not open the block opens each call.
            let again = if begin.is_none() { opener } else { "" };
            let between = self.text(&format!("{}{again}", layout.between));
            let repeated = match most {
                0 => String::new(),
                _ => format!(
                    "({}){{{least},{most}}}",
                    sequence(&[between, "call".into()])
                ),
            };
            let begin = self.text(begin.unwrap_or(&layout.begin));
            sequence(&[begin, "call".into(), repeated, self.text(&layout.end)])
        };
        let calls = match self.several && format.is_parallel() {
            false => block(&layout, 0, 0),
            true if listed.begin == layout.begin => block(&layout, 0, MOST_CALLS - 1),
            true => format!(
                "{} | {}",
                block(&layout, 0, 0),
                block(&listed, 1, MOST_CALLS - 1)
            ),
        };
        rules.add("rest_of_calls", &calls);
    }

    /// The rules of one call as JSON throughout: a JSON answer beside it could not be told from a
    /// text that begins with the same bracket.
    fn json_rules(&self, format: ToolFormat, tools: &[&ToolDefinition], rules: &mut Rules) {
        let arguments_key = match format {
            ToolFormat::Llama => "parameters",
            _ => "arguments",
        };
        let mut names = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let mut arguments = self.schema(tool);
            let mut call = json!({
                "type": "object",
                "properties": {"name": {"const": tool.name}},
                "required": ["name", arguments_key],
                "additionalProperties": false,
            });
            // References count from the root.
            for key in ["$defs", "definitions"] {
                let definitions = arguments.as_object_mut().and_then(|a| a.remove(key));
                if let (Some(definitions), Some(call)) = (definitions, call.as_object_mut()) {
                    call.insert(key.into(), definitions);
                }
            }
            if let Some(Value::Object(properties)) = call.get_mut("properties") {
                properties.insert(arguments_key.into(), arguments);
            }
            rules.add(&format!("call{i}"), &format!("%json {call}"));
            names.push(format!("call{i}"));
        }
        rules.add("rest_of_calls", &names.join(" | "));
    }

    /// Text, and after it or instead of it calls: nothing else can be taken for a call.
    fn text_or_calls(&self, format: ToolFormat, opener: &str, rules: &mut Rules) -> Vec<String> {
        if opener.is_empty() {
            // What begins with a bracket, and fences of the kinds that hold calls, are for calls only.
            let other = match format {
                ToolFormat::Llama => escaped(PYTHON_TAG),
                _ => "```(json|tool_code|tool_call)".into(),
            };
            let text = "/\\s*([^\\s\\[{](?s:.*))?/";
            rules.add("TEXT", &format!("{text} & ~/(?s:.*){other}(?s:.*)/"));
            return vec!["TEXT".into(), "calls".into()];
        }
        if (self.special)(opener).is_some() {
            // A control token is no text: it can only begin calls.
            rules.add("TEXT", SOME);
            return vec!["TEXT? calls?".into()];
        }
        let opened = format!("/(?s:.*){}(?s:.*)/", escaped(opener));
        rules.add("TEXT", &format!("{SOME} & ~{opened}"));
        rules.until("until_calls", opener);
        vec!["TEXT?".into(), "until_calls rest_of_calls".into()]
    }

    fn arguments(&self, tool: &ToolDefinition) -> String {
        format!("%json {}", self.schema(tool))
    }

    fn schema(&self, tool: &ToolDefinition) -> Value {
        match self.all_strict || tool.strict {
            true => tool.parameters.clone(),
            false => json!({"type": "object"}),
        }
    }

    /// A text as a sequence of literals and control tokens.
    fn text(&self, text: &str) -> String {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((at, name, id)) = self.next_special(rest) {
            parts.extend(literal(rest.get(..at).unwrap_or_default()));
            parts.push(format!("<[{id}]>"));
            rest = rest.get(at + name.len()..).unwrap_or_default();
        }
        parts.extend(literal(rest));
        parts.join(" ")
    }
}

impl Grammar<'_> {
    /// The first control token in a text: where, its name and its id.
    fn next_special<'t>(&self, text: &'t str) -> Option<(usize, &'t str, u32)> {
        let (format, _) = self.calls.unzip();
        let markers = format.map_or(&[][..], ToolFormat::markers);
        let tags = match self.reasoning {
            Reasoning::None => [""; 2],
            Reasoning::Possible(tags) | Reasoning::Begun(tags) => [tags.open, tags.close],
        };
        markers
            .iter()
            .chain(&tags)
            .filter(|name| !name.is_empty())
            .filter_map(|name| {
                let id = (self.special)(name)?;
                let at = text.find(name)?;
                Some((at, text.get(at..at + name.len())?, id))
            })
            .min_by_key(|(at, ..)| *at)
    }
}

fn literal(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| Value::from(text).to_string())
}

/// What begins the first call, where anything marks it.
fn opener(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::Hermes => HERMES,
        ToolFormat::Mistral | ToolFormat::MistralArgs => MISTRAL,
        ToolFormat::DeepSeek | ToolFormat::DeepSeekV31 => DEEPSEEK,
        ToolFormat::Phi | ToolFormat::Granite => PHI,
        ToolFormat::Command => COMMAND,
        ToolFormat::Functionary => FUNCTION,
        ToolFormat::Llama | ToolFormat::Gemma | ToolFormat::Json => "",
    }
}

/// An answer that is no call, as a rule's body.
fn like(constraint: &Constraint) -> Result<String, String> {
    Ok(match constraint {
        Constraint::JsonSchema(Value::Bool(true)) => "%json {}".into(),
        Constraint::JsonSchema(schema) => format!("%json {schema}"),
        Constraint::JsonObject => r#"%json {"type": "object"}"#.into(),
        Constraint::Choice(texts) => {
            let literal = |text: &String| Value::from(text.as_str()).to_string();
            texts.iter().map(literal).collect::<Vec<_>>().join(" | ")
        }
        Constraint::Regex(regex) => format!("/{}/", llguidance::regex_to_lark(regex, "")),
        _ => {
            return Err(
                "a Lark grammar cannot be combined with tools or with reasoning that the prompt \
                 begins: write the calls and the reasoning into the grammar, and set tool_choice to \
                 none"
                    .into(),
            );
        }
    })
}

/// A regular expression that matches a text.
fn escaped(text: &str) -> String {
    let mut regex = String::new();
    for letter in text.chars() {
        // `\<` is no letter but the beginning of a word.
        if r"\.+*?()|[]{}^$#&-~/".contains(letter) {
            regex.push('\\');
        }
        regex.push(letter);
    }
    regex
}

fn sequence(parts: &[String]) -> String {
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

#[derive(Default)]
struct Rules(String);

impl Rules {
    /// A rule of the shortest text that ends so.
    fn until(&mut self, name: &str, end: &str) {
        let end = Value::from(end);
        self.add(&format!("{name}[suffix={end}]"), "/(?s:.*)/");
    }

    fn add(&mut self, name: &str, body: &str) {
        self.0.push_str(name);
        self.0.push_str(": ");
        self.0.push_str(body);
        self.0.push('\n');
    }
}
