//! A server's tools in the model's tool box, under names that fit.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rmcp::{
    model::{
        ClientRequest, ListToolsRequest, PaginatedRequestParams, ServerResult, Tool as Listed,
    },
    service::{Peer, RoleClient},
};
use serde_json::{Value, json};

use super::connection::Connection;
use crate::tools::{Tool, ToolBox, ToolDefinition};

/// Most pages and tools of one server: a list without end must not fill the memory.
const MOST_PAGES: usize = 100;
const MOST_TOOLS: usize = 1000;

/// Most characters of a name, as other programs have it.
const LONGEST_NAME: usize = 64;

type LeftOut = Vec<String>;

/// Where a server's tools go.
pub(super) struct Register {
    /// The model's, unless tools are not offered to it.
    tools: Option<ToolBox>,
    connection: Weak<Connection>,
    /// The names that this server's tools have there.
    own: Mutex<Vec<String>>,
}

impl Register {
    pub fn new(tools: Option<ToolBox>, connection: &Arc<Connection>) -> Self {
        Register {
            tools,
            connection: Arc::downgrade(connection),
            own: Mutex::default(),
        }
    }

    /// All pages of a server's tools, and those that cannot be used, with the reasons.
    pub async fn list(&self, peer: &Peer<RoleClient>) -> Result<(Vec<Listed>, LeftOut), String> {
        let (mut tools, mut left_out) = (Vec::new(), Vec::new());
        let mut cursor: Option<String> = None;
        let mut seen = HashSet::new();
        for _ in 0..MOST_PAGES {
            let params = PaginatedRequestParams::default().with_cursor(cursor);
            let request = ListToolsRequest::with_param(params);
            let sent = peer
                .send_request(ClientRequest::ListToolsRequest(request))
                .await;
            cursor = match sent.map_err(|e| e.to_string())? {
                ServerResult::ListToolsResult(page) => {
                    tools.extend(page.tools);
                    page.next_cursor
                }
                // One tool that cannot be read makes the whole page be read as any JSON.
                ServerResult::CustomResult(page) => {
                    let Some(Value::Array(list)) = page.0.get("tools") else {
                        return Err("the answer has no list of tools".into());
                    };
                    for tool in list {
                        let name = tool.get("name").and_then(Value::as_str).unwrap_or("?");
                        match serde_json::from_value(tool.clone()) {
                            Ok(tool) => tools.push(tool),
                            Err(error) => left_out.push(format!("{name}: {error}")),
                        }
                    }
                    let next = page.0.get("nextCursor").and_then(Value::as_str);
                    next.map(str::to_owned)
                }
                _ => return Err("the answer is no list of tools".into()),
            };
            if tools.len() > MOST_TOOLS {
                return Err(format!("there are more than {MOST_TOOLS} of them"));
            }
            match &cursor {
                None => return Ok((tools, left_out)),
                Some(next) if !seen.insert(next.clone()) => {
                    return Err(format!("the page {next:?} comes twice"));
                }
                Some(_) => {}
            }
        }
        Err(format!("there are more than {MOST_PAGES} pages of them"))
    }

    /// Puts a server's tools in place of those it had before; their names.
    pub fn put(&self, of: &Connection, tools: Vec<Listed>, left_out: &mut LeftOut) -> Vec<String> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = Vec::new();
        let target = self.tools.clone().unwrap_or_default();
        let before = std::mem::take(&mut *own);
        for name in &before {
            target.remove(name);
        }
        let Some(connection) = self.connection.upgrade() else {
            return names;
        };
        for tool in tools {
            let name = self.name(of, &target, &tool.name);
            let mut schema = Value::Object((*tool.input_schema).clone());
            if let Some(schema) = schema.as_object_mut() {
                schema.entry("type").or_insert_with(|| json!("object"));
            }
            let mut definition = ToolDefinition::new(name.clone(), schema);
            definition.description = tool.description.as_deref().map(str::to_owned);
            let (connection, called) = (Arc::clone(&connection), tool.name.to_string());
            let run = Tool::of(definition, move |arguments| {
                Box::pin(Arc::clone(&connection).call(called.clone(), arguments))
            });
            match target.add(run) {
                Ok(()) => names.push(name),
                Err(error) => left_out.push(format!("{}: {error}", tool.name)),
            }
        }
        own.clone_from(&names);
        names
    }

    fn name(&self, of: &Connection, taken: &ToolBox, tool: &str) -> String {
        if let Some(prefix) = &of.config.tool_prefix {
            return fit(&format!("{prefix}_{tool}"));
        }
        let plain = fit(tool);
        if !taken.has(&plain) {
            return plain;
        }
        fit(&format!("{}_{tool}", of.config.name))
    }
}

/// A name of the letters that all formats can write, and no longer than they allow.
pub(super) fn fit(name: &str) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let letters = name.chars().map(|c| if good(c) { c } else { '_' });
    letters.take(LONGEST_NAME).collect()
}
