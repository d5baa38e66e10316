//! The models that a server gives to MCP clients.

use futures::future::BoxFuture;

use crate::Model;

/// A model that a server has.
#[derive(Clone, Debug)]
pub struct McpModel {
    /// What it is called.
    pub name: String,
    /// The model, where it is loaded.
    pub model: Option<Model>,
}

/// Where an [`McpServer`](super::McpServer) finds its models.
pub trait McpModels: Send + Sync + 'static {
    /// All of them; the first is asked where none is named.
    fn list(&self) -> Vec<McpModel>;

    /// The model of a name, or the first; why there is none.
    fn find<'a>(&'a self, name: Option<&'a str>) -> BoxFuture<'a, Result<Model, String>>;
}

/// One model, which is there.
pub(super) struct One {
    pub name: String,
    pub model: Model,
}

impl McpModels for One {
    fn list(&self) -> Vec<McpModel> {
        vec![McpModel {
            name: self.name.clone(),
            model: Some(self.model.clone()),
        }]
    }

    fn find<'a>(&'a self, name: Option<&'a str>) -> BoxFuture<'a, Result<Model, String>> {
        let found = match name {
            Some(name) if name != self.name => Err(format!(
                "there is no model {name:?} here; there is {:?}",
                self.name
            )),
            _ => Ok(self.model.clone()),
        };
        Box::pin(std::future::ready(found))
    }
}
