//! What a tool is to a model, what a call of it is, and which tools a model may call.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

/// A function that a model may call. As JSON it has OpenAI's form, which chat templates expect:
/// `{"type": "function", "function": {"name": .., "description": .., "parameters": ..}}`; reading
/// takes the inner object alone as well.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolDefinition {
    /// What the model calls it.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
    /// Whether calls must follow the schema even where no call is demanded: a grammar enforces it.
    pub strict: bool,
}

impl ToolDefinition {
    /// A tool without a description.
    pub fn new(name: impl Into<String>, parameters: Value) -> Self {
        Self {
            name: name.into(),
            description: None,
            parameters,
            strict: false,
        }
    }

    /// Describes it.
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// See [`strict`](Self::strict).
    pub fn with_strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// The parameters' names, in the schema's order.
    pub(super) fn parameter_names(&self) -> Vec<String> {
        let properties = self.parameters.get("properties");
        let properties = properties.and_then(Value::as_object);
        properties.map_or_else(Vec::new, |p| p.keys().cloned().collect())
    }

    /// Whether a name can be written in every format: letters, digits, and `_ - . / :`.
    pub(crate) fn has_good_name(&self) -> bool {
        let good = |c: char| c.is_alphanumeric() || "_-./:".contains(c);
        !self.name.is_empty() && self.name.len() <= 128 && self.name.chars().all(good)
    }
}

impl Serialize for ToolDefinition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut function = Map::new();
        function.insert("name".into(), self.name.clone().into());
        if let Some(description) = &self.description {
            function.insert("description".into(), description.clone().into());
        }
        function.insert("parameters".into(), self.parameters.clone());
        if self.strict {
            function.insert("strict".into(), true.into());
        }
        json!({"type": "function", "function": function}).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ToolDefinition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Function {
            name: String,
            #[serde(default)]
            description: Option<String>,
            #[serde(default)]
            parameters: Option<Value>,
            #[serde(default)]
            strict: Option<bool>,
        }
        let mut value = Value::deserialize(deserializer)?;
        if let Some(function) = value.get_mut("function") {
            value = function.take();
        }
        let function = Function::deserialize(value).map_err(serde::de::Error::custom)?;
        Ok(Self {
            name: function.name,
            description: function.description,
            parameters: function.parameters.unwrap_or_else(no_parameters),
            strict: function.strict.unwrap_or(false),
        })
    }
}

/// The schema of no arguments.
pub(super) fn no_parameters() -> Value {
    json!({"type": "object", "properties": {}, "additionalProperties": false})
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ToolCall {
    /// What its result is matched by.
    pub id: String,
    /// What is called.
    pub name: String,
    /// A JSON object as text; what the model wrote where it made a mistake.
    pub arguments: String,
}

/// As a message's `tool_calls` have it:
/// `{"id": .., "type": "function", "function": {"name": .., "arguments": ".."}}`.
impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": self.id, "type": "function", "function": function}).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Outer {
            #[serde(default)]
            id: String,
            function: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            name: String,
            #[serde(default)]
            arguments: Value,
        }
        let Outer { id, function } = Outer::deserialize(deserializer)?;
        let arguments = match function.arguments {
            Value::String(text) => text,
            Value::Null => "{}".into(),
            value => value.to_string(),
        };
        Ok(Self {
            id,
            name: function.name,
            arguments,
        })
    }
}

/// Which tools a model may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// None.
    None,
    /// Any or none, as the model sees fit.
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
    /// Of these.
    Allowed {
        /// The tools' names.
        names: Vec<String>,
        /// Whether the model must call at least one.
        required: bool,
    },
}

impl ToolChoice {
    /// Whether the answer must be a call.
    pub fn is_required(&self) -> bool {
        match self {
            Self::None | Self::Auto => false,
            Self::Required | Self::Named(_) => true,
            Self::Allowed { required, .. } => *required,
        }
    }

    /// The tools that may be called.
    ///
    /// # Errors
    /// The name of a chosen tool that there is not.
    pub fn select<'t>(
        &self,
        tools: &'t [ToolDefinition],
    ) -> Result<Vec<&'t ToolDefinition>, String> {
        let names = match self {
            Self::None => return Ok(Vec::new()),
            Self::Auto | Self::Required => return Ok(tools.iter().collect()),
            Self::Named(name) => std::slice::from_ref(name),
            Self::Allowed { names, .. } => names,
        };
        let tool = |name: &String| {
            let tool = tools.iter().find(|tool| tool.name == *name);
            tool.ok_or_else(|| name.clone())
        };
        names.iter().map(tool).collect()
    }
}
