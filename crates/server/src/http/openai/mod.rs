//! OpenAI's API.

mod answer;
pub mod chat;
pub mod completions;
pub mod embeddings;
mod legacy;
pub mod models;
mod parse;
mod stream;
pub mod tokenize;
mod tools;
