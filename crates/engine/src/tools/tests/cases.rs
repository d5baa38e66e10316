//! Answers of models, and what is in them.

use serde_json::{Value, json};

use crate::tools::{Reasoning, ReasoningTags, ToolDefinition, ToolFormat};

pub(super) const THINK: ReasoningTags = ReasoningTags {
    open: "<think>",
    close: "</think>",
};

pub(super) struct Case {
    pub format: ToolFormat,
    pub reasoning: Reasoning,
    pub text: &'static str,
    pub content: &'static str,
    pub thoughts: &'static str,
    /// Names, and arguments: as text where they are no JSON.
    pub calls: Vec<(&'static str, Value)>,
}

/// The tools that the answers know of.
pub(super) fn tools() -> Vec<ToolDefinition> {
    let tool = |name, parameters: &[&str]| {
        let properties: serde_json::Map<_, _> =
            parameters.iter().map(|&p| (p.into(), json!({}))).collect();
        ToolDefinition::new(name, json!({"type": "object", "properties": properties}))
    };
    vec![
        tool("add", &["a", "b"]),
        tool("get_weather", &["city", "days"]),
        tool("now", &[]),
    ]
}

fn case(format: ToolFormat, text: &'static str, content: &'static str) -> Case {
    Case {
        format,
        reasoning: Reasoning::None,
        text,
        content,
        thoughts: "",
        calls: Vec::new(),
    }
}

impl Case {
    fn call(mut self, name: &'static str, arguments: Value) -> Self {
        self.calls.push((name, arguments));
        self
    }

    fn thought(mut self, reasoning: Reasoning, thoughts: &'static str) -> Self {
        (self.reasoning, self.thoughts) = (reasoning, thoughts);
        self
    }

    /// The same of another text.
    pub fn with(&self, text: &'static str) -> Self {
        Self {
            reasoning: self.reasoning,
            ..case(self.format, text, "")
        }
    }

    fn add(self) -> Self {
        self.call("add", json!({"a": 1, "b": 2}))
    }
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let zurich = || json!({"city": "Zürich 🌧", "days": 2});
    let mut all = hermes();
    all.extend(llama());
    all.extend(gemma_and_json());
    all.extend(reasoning());
    use ToolFormat::*;
    all.extend([
        // Mistral.
        case(Mistral, r#"[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}}]"#, "").add(),
        case(Mistral, r#"[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}, "id": "abcdefghi"}, {"arguments": {"city": "Zürich 🌧", "days": 2}, "name": "get_weather"}]"#, "").add().call("get_weather", zurich()),
        case(Mistral, r#"Sure. [TOOL_CALLS][{"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}]"#, "Sure.").add(),
        case(Mistral, r#"[TOOL_CALLS][{"name": "now", "arguments": {}}, oops"#, ", oops").call("now", json!({})),
        case(Mistral, "[TOOL_CALLS][]", "[TOOL_CALLS][]"),
        case(Mistral, "[TOOL_CALLS] I would use add", "[TOOL_CALLS] I would use add"),
        case(Mistral, "[TOOL", "[TOOL"),
        case(MistralArgs, r#"[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}"#, "").add(),
        case(MistralArgs, r#"[TOOL_CALLS]add[CALL_ID]Ab3dEf7hI[ARGS]{"a": 1, "b": 2}[TOOL_CALLS]get_weather[CALL_ID]000000000[ARGS]{"city": "Zürich 🌧", "days": 2}"#, "").add().call("get_weather", zurich()),
        case(MistralArgs, r#"A[TOOL_CALLS]add{"a": 1, "b": 2} B"#, "A B").add(),
        case(MistralArgs, "[TOOL_CALLS]add[ARGS] nothing", "[TOOL_CALLS]add[ARGS] nothing"),
        case(MistralArgs, r#"[TOOL_CALLS]add[ARGS]{"a": 1"#, "").call("add", json!(r#"{"a": 1"#)),
        case(MistralArgs, r#"[TOOL_CALLS]add[ARGS]{"a": 1]} and more"#, "").call("add", json!(r#"{"a": 1]} and more"#)),
        // DeepSeek.
        case(DeepSeek, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1, \"b\": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "").add(),
        case(DeepSeek, "Yes.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1, \"b\": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Zürich 🌧\",\n \"days\": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "Yes.").add().call("get_weather", zurich()),
        case(DeepSeekV31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1, \"b\": 2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "").add().call("now", json!({})),
        case(DeepSeekV31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1; \"b\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "").call("add", json!(r#"{"a": 1; "b"}"#)).call("now", json!({})),
        case(DeepSeek, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1, \"b\": 2}\n```<｜tool▁call▁end｜>", "").add(),
        case(DeepSeek, "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>"),
        // Phi, Granite, Command, Functionary.
        case(Phi, r#"<|tool_call|>[{"name": "add", "arguments": {"a": 1, "b": 2}}]<|/tool_call|>"#, "").add(),
        case(Phi, r#"functools[{"name": "add", "arguments": {"a": 1, "b": 2}}]"#, "").add(),
        case(Phi, "functools is a module", "functools is a module"),
        case(Phi, r#"<|tool_call|>{"name": "add", "arguments": {"a": 1, "b": 2}}<|/tool_call|>done"#, "done").add(),
        case(Granite, r#"<|tool_call|> [{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "now", "arguments": {}}]"#, "").add().call("now", json!({})),
        case(Command, "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}\n]<|END_ACTION|>", "").add(),
        case(Functionary, "<function=add>{\"a\": 1, \"b\": 2}</function>", "").add(),
        case(Functionary, "<function=add>(1, 2)</function>", "<function=add>(1, 2)</function>"),
    ]);
    all
}

#[rustfmt::skip]
fn hermes() -> Vec<Case> {
    use ToolFormat::Hermes;
    vec![
        case(Hermes, "Hello.", "Hello."),
        case(Hermes, "", ""),
        case(Hermes, "  \n ", "  \n "),
        case(Hermes, "\n Hello.\n", "\n Hello.\n"),
        case(Hermes, "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n</tool_call>", "").add(),
        case(Hermes, "<tool_call>{\"arguments\": {\"a\": 1, \"b\": 2}, \"name\": \"add\"}</tool_call>", "").add(),
        case(Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": 1, \\\"b\\\": 2}\"}</tool_call>", "").add(),
        case(Hermes, "Both:\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\nDone.\n", "Both:\n\n\nDone.\n").add().call("now", json!({})),
        case(Hermes, "<tool_call>[{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}, {\"name\": \"now\"}]</tool_call>", "").add().call("now", json!({})),
        // Tools that there are not are called all the same, where the call is marked as one.
        case(Hermes, "<tool_call>{\"name\": \"fly\", \"arguments\": {\"to\": [1, {\"x\": \"}\"}]}}</tool_call>", "").call("fly", json!({"to": [1, {"x": "}"}]})),
        case(Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", "").call("now", json!({})),
        case(Hermes, "<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}}</tool_call>", "").add(),
        // Markers within arguments are data.
        case(Hermes, "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"</tool_call> \\\" <tool_call>\"}}</tool_call>", "").call("get_weather", json!({"city": "</tool_call> \" <tool_call>"})),
        // A bracket too few or too many, no end, no JSON.
        case(Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}</tool_call>", "").add(),
        case(Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}}\n</tool_call>", "").add(),
        case(Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}", "").add(),
        case(Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b", "").call("add", json!("{\"a\": 1, \"b")),
        case(Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": <1>}}</tool_call> ok", "ok").call("add", json!("{\"a\": <1>}}")),
        case(Hermes, "<tool_call>{\"name\": \"add\", \"argu", "<tool_call>{\"name\": \"add\", \"argu"),
        case(Hermes, "<tool_call>{\"title\": \"add\"}</tool_call>", "<tool_call>{\"title\": \"add\"}</tool_call>"),
        case(Hermes, "<tool_call>add(1, 2)</tool_call> then <tool_call>{\"name\": \"now\"}</tool_call>", "<tool_call>add(1, 2)</tool_call> then").call("now", json!({})),
        case(Hermes, "<tool_call></tool_call>", "<tool_call></tool_call>"),
        case(Hermes, "a < b, <tool> and <tool_cal", "a < b, <tool> and <tool_cal"),
        // Without a marker JSON is text.
        case(Hermes, "{\"name\": \"add\", \"arguments\": {\"a\": 1}}", "{\"name\": \"add\", \"arguments\": {\"a\": 1}}"),
    ]
}

#[rustfmt::skip]
fn llama() -> Vec<Case> {
    use ToolFormat::Llama;
    vec![
        case(Llama, r#"{"name": "add", "parameters": {"a": 1, "b": 2}}"#, "").add(),
        case(Llama, r#"<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}"#, "").add(),
        case(Llama, r#"<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1, "b": 2}}"#, "").add(),
        case(Llama, r#"{"type": "function", "function": "add", "parameters": {"a": 1, "b": 2}}"#, "").add(),
        case(Llama, r#"{"name": "add", "parameters": {"a": 1, "b": 2}}; {"name": "now", "parameters": {}}"#, "").add().call("now", json!({})),
        case(Llama, "  \n{\"name\":\"add\",\"parameters\":{\"a\":1,\"b\":2}}\nThat was it.", "That was it.").add(),
        case(Llama, r#"<|python_tag|>brave_search.call(query="weather in Z\u00fcrich")"#, "").call("brave_search", json!({"query": "weather in Zürich"})),
        case(Llama, r#"[get_weather(city='Zürich 🌧', days=2), add(1, b=2)]"#, "").call("get_weather", json!({"city": "Zürich 🌧", "days": 2})).add(),
        case(Llama, "<|python_tag|>print(1 + 1)", "<|python_tag|>print(1 + 1)"),
        case(Llama, r#"{"name": "Ada", "parameters": {"a": 1}}"#, r#"{"name": "Ada", "parameters": {"a": 1}}"#),
        case(Llama, r#"{"name": "add", "age": 3}"#, r#"{"name": "add", "age": 3}"#),
        case(Llama, r#"{"name": "add"}"#, r#"{"name": "add"}"#),
        case(Llama, "{x | x > 1}", "{x | x > 1}"),
        case(Llama, "[a link](https://example.org)", "[a link](https://example.org)"),
        case(Llama, r#"I call {"name": "add", "parameters": {}}"#, r#"I call {"name": "add", "parameters": {}}"#),
        case(Llama, r#"{"name": "add", "parameters": {"a": 1"#, "").call("add", json!(r#"{"a": 1"#)),
    ]
}

#[rustfmt::skip]
fn gemma_and_json() -> Vec<Case> {
    use ToolFormat::{Gemma, Json};
    vec![
        case(Gemma, "```tool_code\nadd(a=1, b=2)\n```", "").add(),
        case(Gemma, "I add.\n```tool_code\nprint(add(a=1, b=2))\n```\n", "I add.").add(),
        case(Gemma, "```tool_code\nprint(default_api.add(1, b=2))\nnow()\n```", "").add().call("now", json!({})),
        case(Gemma, "```tool_code\nget_weather(city=\"\"\"Zürich\n\"here\" \"\"\", days=-2.5e1)\n```", "").call("get_weather", json!({"city": "Zürich\n\"here\" ", "days": -25.0})),
        case(Gemma, "```tool_code\nadd(a=[1, True, None, 'x\\'y', \"\"], b={'k': (1, 2)},)\n```", "").call("add", json!({"a": [1, true, null, "x'y", ""], "b": {"k": [1, 2]}})),
        case(Gemma, "[add(a=1, b=2), now()]", "").add().call("now", json!({})),
        case(Gemma, "```json\n{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}\n```", "").add(),
        case(Gemma, "```json\n[{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}]\n```\nok", "ok").add(),
        case(Gemma, "{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}", "").add(),
        case(Gemma, "```tool_code\nimport os\nadd(1, 2)\n```", "```tool_code\nimport os\nadd(1, 2)\n```"),
        case(Gemma, "```tool_code\nadd(a=x)\n```", "```tool_code\nadd(a=x)\n```"),
        case(Gemma, "```tool_code\nadd(1, 2, 3)\n```", "```tool_code\nadd(1, 2, 3)\n```"),
        case(Gemma, "```tool_code\nadd(a=1, a=2)\n```", "```tool_code\nadd(a=1, a=2)\n```"),
        case(Gemma, "```python\nadd(1, 2)\n```", "```python\nadd(1, 2)\n```"),
        case(Gemma, "```json\n{\"title\": \"add\"}\n```", "```json\n{\"title\": \"add\"}\n```"),
        case(Gemma, "[1, 2]", "[1, 2]"),
        case(Gemma, "```tool_code\nadd(a=1, b=", "```tool_code\nadd(a=1, b="),
        case(Json, "{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}", "").add(),
        case(Json, "[{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}, {\"name\": \"now\", \"arguments\": {}}]", "").add().call("now", json!({})),
        case(Json, "Let me:\n```json\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n```", "Let me:").add(),
        case(Json, "{\"answer\": 42}", "{\"answer\": 42}"),
        case(Json, "{\"name\": \"add\", \"arguments\": [1, 2]}", "").call("add", json!([1, 2])),
        case(Json, "add(1, 2)", "add(1, 2)"),
    ]
}

#[rustfmt::skip]
fn reasoning() -> Vec<Case> {
    use ToolFormat::{DeepSeek, Hermes};
    let possible = Reasoning::Possible(THINK);
    let begun = Reasoning::Begun(THINK);
    vec![
        case(Hermes, "<think>\nWhat is <tool_call>?\n\n</think>\n\nNothing.", "Nothing.").thought(possible, "What is <tool_call>?"),
        case(Hermes, "<think>\n\n</think>\n\nNothing.", "Nothing.").thought(possible, ""),
        case(Hermes, "<think>I add.</think>\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n</tool_call>", "").thought(possible, "I add.").add(),
        case(Hermes, " <think> a  b </thin", "").thought(possible, "a  b </thin"),
        case(Hermes, "Well, <think> is a tag.", "Well, <think> is a tag.").thought(possible, ""),
        case(Hermes, "<thinking>", "<thinking>").thought(possible, ""),
        case(Hermes, " No thought", " No thought").thought(possible, ""),
        case(Hermes, "<think>no</think>", "<think>no</think>"),
        case(DeepSeek, "I think\nso.\n</think>\n\nYes.\n", "Yes.\n").thought(begun, "I think\nso."),
        case(DeepSeek, "</think>Yes.", "Yes.").thought(begun, ""),
        case(DeepSeek, "Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1, \"b\": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "").thought(begun, "Hm.").add(),
    ]
}
