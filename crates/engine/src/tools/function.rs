//! Functions in Rust as tools: their parameters' schema comes from their types.

use std::{fmt::Display, future::Future, pin::Pin, sync::Arc};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    ToolDefinition,
    arguments::{Function, generator, in_order, plain_numbers, schema_of},
};

/// What a tool gives: its result as text, or what went wrong.
pub type ToolOutcome = Result<String, String>;

/// A tool at work.
pub type ToolFuture = Pin<Box<dyn Future<Output = ToolOutcome> + Send>>;

type Run = Arc<dyn Fn(Value) -> ToolFuture + Send + Sync>;
type RunListed = Arc<dyn Fn(Vec<Value>, &[String]) -> ToolFuture + Send + Sync>;

/// A tool that this program runs.
///
/// ```
/// use biplane::tools::Tool;
///
/// let add = Tool::new("add", |a: f64, b: f64| a + b)
///     .with_description("Adds two numbers.")
///     .with_parameter_names(["first", "second"])
///     .with_parameter_description("first", "Any number");
/// assert_eq!(add.definition().parameters["required"][1], "second");
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let sum = add.run(serde_json::json!({"first": 15, "second": 27})).await;
/// assert_eq!(sum, Ok("42.0".into()));
/// # });
/// ```
#[derive(Clone)]
pub struct Tool {
    definition: ToolDefinition,
    /// The parameters' names, where they are this tool's to choose.
    names: Option<Vec<String>>,
    run: Body,
    problem: Option<String>,
}

#[derive(Clone)]
enum Body {
    /// Takes the arguments in order.
    Listed(RunListed),
    /// Takes the object of arguments.
    Whole(Run),
}

impl Tool {
    /// A function of up to six arguments, called `a`, `b` and so on unless
    /// [`with_parameter_names`](Self::with_parameter_names) says otherwise. A result that is a text is
    /// given to the model as it is, any other as JSON. It runs on a thread where it may block.
    pub fn new<Args: 'static, F>(name: impl Into<String>, f: F) -> Self
    where
        F: Function<Args>,
        F::Output: Serialize,
    {
        Self::blocking(name, f, |output| written(&output))
    }

    /// As [`new`](Self::new), of a function whose errors go to the model.
    pub fn fallible<Args: 'static, F, T: Serialize + 'static, E: Display + 'static>(
        name: impl Into<String>,
        f: F,
    ) -> Self
    where
        F: Function<Args, Output = Result<T, E>>,
    {
        Self::blocking(name, f, flat)
    }

    /// As [`new`](Self::new), of an asynchronous function.
    pub fn asynchronous<Args: 'static, F, T: Serialize + 'static>(
        name: impl Into<String>,
        f: F,
    ) -> Self
    where
        F: Function<Args>,
        F::Output: Future<Output = T> + Send + 'static,
    {
        Self::awaited(name, f, |output| written(&output))
    }

    /// As [`asynchronous`](Self::asynchronous), of a function whose errors go to the model.
    pub fn fallible_asynchronous<Args: 'static, F, T: Serialize + 'static, E: Display + 'static>(
        name: impl Into<String>,
        f: F,
    ) -> Self
    where
        F: Function<Args>,
        F::Output: Future<Output = Result<T, E>> + Send + 'static,
    {
        Self::awaited(name, f, flat)
    }

    /// A function of one argument whose fields are the parameters: their names, descriptions and
    /// defaults are the type's own.
    ///
    /// ```
    /// use biplane::{schemars, tools::Tool};
    ///
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct Weather {
    ///     /// Where.
    ///     city: String,
    ///     #[serde(default)]
    ///     days: u32,
    /// }
    ///
    /// let weather = Tool::typed("weather", |at: Weather| format!("{}: rain", at.city));
    /// assert_eq!(weather.definition().parameters["required"], serde_json::json!(["city"]));
    /// ```
    pub fn typed<Args: DeserializeOwned + JsonSchema + 'static>(
        name: impl Into<String>,
        f: impl Function<(Args,), Output: Serialize>,
    ) -> Self {
        Self::whole::<Args, _, _>(name, f, |output| written(&output))
    }

    /// As [`typed`](Self::typed), of a function whose errors go to the model.
    pub fn typed_fallible<Args, T, E>(
        name: impl Into<String>,
        f: impl Function<(Args,), Output = Result<T, E>>,
    ) -> Self
    where
        Args: DeserializeOwned + JsonSchema + 'static,
        T: Serialize + 'static,
        E: Display + 'static,
    {
        Self::whole::<Args, _, _>(name, f, flat)
    }

    /// A tool of any kind: `run` is given the object of arguments as the model wrote it.
    pub fn of(
        definition: ToolDefinition,
        run: impl Fn(Value) -> ToolFuture + Send + Sync + 'static,
    ) -> Self {
        Tool {
            definition,
            names: None,
            run: Body::Whole(Arc::new(run)),
            problem: None,
        }
    }

    /// Says what the tool does, for the model.
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.definition.description = Some(description.into());
        self
    }

    /// Names the parameters, in order.
    pub fn with_parameter_names(
        mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let new: Vec<String> = names.into_iter().map(Into::into).collect();
        let repeated = |(i, name): (usize, &String)| new.iter().take(i).any(|n| n == name);
        let wrong = match &self.names {
            Some(old) if old.len() != new.len() => {
                Some(format!("{} names for {} parameters", new.len(), old.len()))
            }
            None => Some("its parameters' names are its type's own".into()),
            _ if new.iter().enumerate().any(repeated) => Some("a name comes twice".into()),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return self.wrong("with_parameter_names", &wrong);
        }
        let old = self.names.replace(new.clone()).unwrap_or_default();
        let renamed = |name: &String| {
            let at = old.iter().position(|n| n == name);
            at.and_then(|at| new.get(at)).unwrap_or(name).clone()
        };
        let parameters = &mut self.definition.parameters;
        if let Some(Value::Object(properties)) = parameters.get_mut("properties") {
            let fields = std::mem::take(properties).into_iter();
            *properties = fields
                .map(|(name, schema)| (renamed(&name), schema))
                .collect();
        }
        if let Some(Value::Array(required)) = parameters.get_mut("required") {
            for name in required {
                if let Value::String(name) = name {
                    *name = renamed(name);
                }
            }
        }
        self
    }

    /// Says what a parameter means, for the model.
    pub fn with_parameter_description(mut self, name: &str, description: &str) -> Self {
        let properties = self.definition.parameters.get_mut("properties");
        match properties.and_then(|p| p.get_mut(name)) {
            Some(Value::Object(schema)) => {
                schema.insert("description".into(), description.into());
                self
            }
            Some(schema) => {
                *schema = json!({"description": description});
                self
            }
            None => self.wrong(
                "with_parameter_description",
                &format!("it has no parameter {name:?}"),
            ),
        }
    }

    /// Holds the model to the parameters' schema by a grammar.
    pub fn with_strict(mut self, strict: bool) -> Self {
        self.definition.strict = strict;
        self
    }

    /// What the model is told of it.
    pub fn definition(&self) -> &ToolDefinition {
        &self.definition
    }

    /// What was wrong in its making, which [`ToolBox::add`](super::ToolBox::add) refuses.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Runs it, on a Tokio runtime.
    ///
    /// # Errors
    /// What is wrong with the arguments, or what the function says.
    pub async fn run(&self, arguments: Value) -> ToolOutcome {
        match &self.run {
            Body::Whole(run) => run(arguments).await,
            Body::Listed(run) => {
                let names = self.names.as_deref().unwrap_or_default();
                run(in_order(arguments, names)?, names).await
            }
        }
    }

    fn blocking<Args: 'static, F: Function<Args>>(
        name: impl Into<String>,
        f: F,
        finish: fn(F::Output) -> ToolOutcome,
    ) -> Self {
        let f = Arc::new(f);
        Self::listed::<Args, F>(name, move |values, names| {
            let (f, names) = (Arc::clone(&f), names.to_vec());
            off_thread(move || finish(f.call(values, &names)?))
        })
    }

    fn awaited<Args: 'static, F, T: 'static>(
        name: impl Into<String>,
        f: F,
        finish: fn(T) -> ToolOutcome,
    ) -> Self
    where
        F: Function<Args>,
        F::Output: Future<Output = T> + Send + 'static,
    {
        Self::listed::<Args, F>(name, move |values, names| {
            let started = f.call(values, names);
            Box::pin(async move { finish(started?.await) })
        })
    }

    fn listed<Args: 'static, F: Function<Args>>(
        name: impl Into<String>,
        run: impl Fn(Vec<Value>, &[String]) -> ToolFuture + Send + Sync + 'static,
    ) -> Self {
        let mut generator = generator();
        let parameters = F::parameters(&mut generator);
        let names: Vec<String> = ('a'..='z')
            .map(String::from)
            .take(parameters.len())
            .collect();
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (name, (mut schema, needed)) in names.iter().zip(parameters) {
            plain_numbers(&mut schema);
            properties.insert(name.clone(), schema);
            if needed {
                required.push(Value::from(name.as_str()));
            }
        }
        let mut schema = json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        });
        let definitions = generator.take_definitions(true);
        if let Some(schema) = schema.as_object_mut()
            && !definitions.is_empty()
        {
            schema.insert("$defs".into(), definitions.into());
        }
        Tool {
            definition: ToolDefinition::new(name, schema),
            names: Some(names),
            run: Body::Listed(Arc::new(run)),
            problem: None,
        }
    }

    fn whole<Args, F, Out>(name: impl Into<String>, f: F, finish: fn(Out) -> ToolOutcome) -> Self
    where
        Args: DeserializeOwned + JsonSchema + 'static,
        F: Function<(Args,), Output = Out>,
        Out: 'static,
    {
        let f = Arc::new(f);
        let definition = ToolDefinition::new(name, schema_of::<Args>());
        Self::of(definition, move |arguments| {
            let f = Arc::clone(&f);
            off_thread(move || finish(f.call(vec![arguments], &["arguments".into()])?))
        })
    }

    fn wrong(mut self, method: &str, reason: &str) -> Self {
        let name = &self.definition.name;
        self.problem = Some(format!("{method} of the tool {name:?}: {reason}"));
        self
    }
}

impl std::fmt::Debug for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut tool = f.debug_struct("Tool");
        tool.field("definition", &self.definition)
            .finish_non_exhaustive()
    }
}

fn off_thread(work: impl FnOnce() -> ToolOutcome + Send + 'static) -> ToolFuture {
    Box::pin(async move {
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err("it panicked".into()))
    })
}

fn flat<T: Serialize + 'static, E: Display + 'static>(output: Result<T, E>) -> ToolOutcome {
    written(&output.map_err(|error| error.to_string())?)
}

fn written<T: Serialize>(output: &T) -> ToolOutcome {
    match serde_json::to_value(output) {
        Ok(Value::String(text)) => Ok(text),
        Ok(value) => Ok(value.to_string()),
        Err(error) => Err(format!("its result is no JSON: {error}")),
    }
}
