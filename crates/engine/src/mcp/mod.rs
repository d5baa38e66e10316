//! MCP, the Model Context Protocol: tools of other programs for the model, and the model for other
//! programs.

mod client;
mod config;
mod connection;
mod open;
mod register;
mod result;
mod server;
#[cfg(test)]
mod tests;

pub use client::{McpClient, McpError, McpServerState, McpServerStatus};
pub use config::{McpConfig, McpConfigError, McpServerConfig, McpSource};
pub use server::{McpModel, McpModels, McpServer, McpServing};
