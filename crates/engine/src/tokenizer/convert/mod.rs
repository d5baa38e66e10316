//! Tokenizers between GGUF's metadata and Hugging Face's files.
//!
//! Both directions go through [`Tokenizer`](super::Tokenizer) as the other modules build it, so that
//! a converted vocabulary is read by the same rules as the original.

mod chat_template;
mod scheme;
mod scores;
#[cfg(test)]
mod tests;
mod to_gguf;
mod to_hf;

use super::Error;

pub use self::{to_gguf::gguf_tokenizer_pairs, to_hf::write_hf_files};

const GGUF: &str = "GGUF";
const HUGGING_FACE: &str = "tokenizer.json";

fn inconvertible(origin: &str, format: &'static str, what: impl Into<String>) -> Error {
    Error::Inconvertible {
        origin: origin.to_owned(),
        what: what.into(),
        format,
    }
}
