//! The tools that this program runs for a model.

use std::{
    error::Error as StdError,
    sync::{Arc, PoisonError, RwLock},
};

use serde_json::Value;

use super::{Tool, ToolCall, ToolDefinition, function::ToolOutcome};
use crate::{Error, Result};

/// A call as a [`ToolCallback`] is given it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalledFunction {
    /// What is called.
    pub name: String,
    /// The arguments as the model wrote them: a JSON object as text.
    pub arguments: String,
}

/// A function that is given calls as they are; its error's text goes to the model.
pub type ToolCallback =
    dyn Fn(&CalledFunction) -> Result<String, Box<dyn StdError + Send + Sync>> + Send + Sync;

/// Tools by name. Cheap to clone, and all clones are one: what is added later serves from then on.
#[derive(Clone, Default)]
pub struct ToolBox {
    entries: Arc<RwLock<Vec<Entry>>>,
}

#[derive(Clone)]
enum Entry {
    Tool(Tool),
    Callback(String, Arc<ToolCallback>),
}

impl Entry {
    fn name(&self) -> &str {
        match self {
            Self::Tool(tool) => &tool.definition().name,
            Self::Callback(name, _) => name,
        }
    }
}

impl ToolBox {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tool, which is offered to the model from now on.
    ///
    /// # Errors
    /// [`Error::Request`] for a bad name, one that is there already, and parameters that are no
    /// object's.
    pub fn add(&self, tool: Tool) -> Result<()> {
        if let Some(problem) = tool.problem() {
            return Err(Error::Request(problem.to_owned()));
        }
        let name = &tool.definition().name;
        crate::chat::check_tool(tool.definition(), &format!("the tool {name:?}"))?;
        self.insert(Entry::Tool(tool))
    }

    /// Runs a tool that requests define themselves.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that is there already.
    pub fn add_callback(&self, name: impl Into<String>, run: Arc<ToolCallback>) -> Result<()> {
        self.insert(Entry::Callback(name.into(), run))
    }

    /// Takes a tool away; whether there was one.
    pub fn remove(&self, name: &str) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let before = entries.len();
        entries.retain(|entry| entry.name() != name);
        entries.len() < before
    }

    /// The tools that are there now, but for those of these names: a box of its own.
    pub fn without(&self, names: &[&str]) -> ToolBox {
        let others = |entry: &&Entry| !names.contains(&entry.name());
        let entries = self.read(|entries| entries.iter().filter(others).cloned().collect());
        ToolBox {
            entries: Arc::new(RwLock::new(entries)),
        }
    }

    /// What the model is told of the tools; callbacks are not among them.
    pub fn definitions(&self) -> Vec<ToolDefinition> {
        let definition = |entry: &Entry| match entry {
            Entry::Tool(tool) => Some(tool.definition().clone()),
            Entry::Callback(..) => None,
        };
        self.read(|entries| entries.iter().filter_map(definition).collect())
    }

    /// Whether a tool of this name is run here.
    pub fn has(&self, name: &str) -> bool {
        self.read(|entries| entries.iter().any(|entry| entry.name() == name))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.read(<[Entry]>::is_empty)
    }

    /// Runs a call, on a Tokio runtime.
    ///
    /// # Errors
    /// What went wrong, for the model to read.
    pub async fn call(&self, call: &ToolCall) -> ToolOutcome {
        let found = |entries: &[Entry]| entries.iter().find(|e| e.name() == call.name).cloned();
        match self.read(found) {
            Some(Entry::Tool(tool)) => {
                let arguments = match call.arguments.trim() {
                    "" => Ok(Value::Object(serde_json::Map::new())),
                    text => serde_json::from_str(text),
                };
                let arguments = arguments.map_err(|e| format!("the arguments are no JSON: {e}"))?;
                tool.run(arguments).await
            }
            Some(Entry::Callback(name, run)) => {
                let arguments = call.arguments.clone();
                run_callback(run, CalledFunction { name, arguments }).await
            }
            None => Err(format!("there is no tool {:?}", call.name)),
        }
    }

    fn insert(&self, entry: Entry) -> Result<()> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.iter().any(|other| other.name() == entry.name()) {
            return Err(Error::Request(format!(
                "there is a tool {:?} already; each needs a name of its own",
                entry.name()
            )));
        }
        entries.push(entry);
        Ok(())
    }

    fn read<T>(&self, f: impl FnOnce(&[Entry]) -> T) -> T {
        f(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tool {
    /// A tool that is given calls as they are.
    pub fn of_callback(definition: ToolDefinition, callback: Arc<ToolCallback>) -> Self {
        let name = definition.name.clone();
        Self::of(definition, move |arguments| {
            let called = CalledFunction {
                name: name.clone(),
                arguments: arguments.to_string(),
            };
            Box::pin(run_callback(Arc::clone(&callback), called))
        })
    }
}

async fn run_callback(callback: Arc<ToolCallback>, called: CalledFunction) -> ToolOutcome {
    let run = move || callback(&called).map_err(|e| e.to_string());
    let done = tokio::task::spawn_blocking(run).await;
    done.unwrap_or_else(|_| Err("it panicked".into()))
}

impl std::fmt::Debug for ToolBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.read(|entries| {
            f.debug_list()
                .entries(entries.iter().map(Entry::name))
                .finish()
        })
    }
}
