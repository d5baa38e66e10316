//! stub
use crate::sampling::TokenMask;
use serde::{Deserialize, Serialize};
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
type Result<T> = std::result::Result<T, Error>;
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Constraint {
    JsonSchema(serde_json::Value),
    JsonObject,
    Regex(String),
    Lark(String),
    Choice(Vec<String>),
}
pub struct GrammarState;
impl GrammarState {
    pub fn mask(&mut self) -> Result<&TokenMask> {
        todo!()
    }
    pub fn accept(&mut self, _: u32) -> Result<()> {
        todo!()
    }
    pub fn forced(&mut self) -> Result<Vec<u32>> {
        todo!()
    }
    pub fn is_finished(&self) -> bool {
        true
    }
}

pub struct GrammarEngine;
impl GrammarEngine {
    pub fn state(&self, _: &Constraint) -> Result<GrammarState> {
        todo!()
    }
}
