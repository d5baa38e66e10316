//! Looking at a model without loading it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use biplane_models::checkpoint::Metadata;
use serde::Serialize;

use crate::{
    ChatRequest, Error, ModelBuilder, Result,
    chat::prompter,
    memory,
    source::GivenTemplate,
    template::{self, ChatTemplate},
    texts::{Texts, find_template},
    tokenizer::{MARK, Specials, Tokenizer},
    tools::ToolFormat,
};

/// What a model is, read from its files.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Description {
    /// The file or directory.
    pub path: PathBuf,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// The architecture's name.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of the weights.
    pub weight_bytes: usize,
    /// Bytes of the weights by element or block format.
    pub formats: BTreeMap<String, usize>,
    /// Longest sequence it was made for, in tokens.
    pub context_length: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Whether it has a chat template.
    pub chat_template: bool,
    /// How it calls tools, where that is known.
    pub tool_format: Option<String>,
}

/// What loading a model will take, read from the heads of its files.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Outline {
    /// The architecture's name.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of the weights once they are loaded, by what the preflight of memory counts.
    pub weight_bytes: u64,
    /// The element or block formats of the stored weights, that of most bytes first.
    pub formats: Vec<String>,
    /// Longest sequence in tokens, as it will be loaded.
    pub context_length: usize,
}

/// A model's tokenizer and chat template, without its weights.
pub struct PromptMaker {
    tokenizer: Arc<Tokenizer>,
    template: Result<ChatTemplate, Arc<template::Error>>,
    tool_format: Option<ToolFormat>,
}

/// A prompt as text and as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// What the chat template wrote.
    pub text: String,
    /// Its tokens. Names of control tokens in users' text are none.
    pub tokens: Vec<u32>,
}

impl ModelBuilder {
    /// Looks at the model's files: downloads them where needed, and loads nothing.
    ///
    /// # Errors
    /// Whatever is wrong with them, named.
    pub fn describe(self) -> Result<Description> {
        let opened = self.open()?;
        let about = biplane_models::about(&opened)?;
        let texts = Texts::read(&opened)?;
        let template = find_template(&opened, None, &texts.tokenizer)?;
        let format = template.as_ref().ok().and_then(ChatTemplate::tool_format);
        Ok(Description {
            path: opened.checkpoint.path().to_owned(),
            format: match &opened.metadata {
                Metadata::HuggingFace { .. } => "safetensors",
                Metadata::Gguf(_) => "gguf",
            },
            architecture: about.architecture.to_owned(),
            parameters: about.parameters,
            weight_bytes: about.weight_bytes,
            formats: about.formats,
            context_length: about.dimensions.context_length,
            vocab_size: about.dimensions.vocab_size,
            hidden_size: about.dimensions.hidden_size,
            layers: about.dimensions.layers,
            chat_template: template.is_ok(),
            tool_format: format.map(|format| format.name().to_owned()),
        })
    }

    /// As [`describe`](Self::describe), of the weights alone and as this builder loads them: fast enough
    /// to be asked of many models.
    ///
    /// # Errors
    /// Whatever is wrong with the files, named.
    pub fn outline(self) -> Result<Outline> {
        let opened = self.open()?;
        let about = biplane_models::about(&opened)?;
        let mut formats: Vec<(String, usize)> = about.formats.into_iter().collect();
        formats.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let made_for = about.dimensions.context_length;
        Ok(Outline {
            architecture: about.architecture.to_owned(),
            parameters: about.parameters,
            weight_bytes: memory::weights(&*opened.checkpoint, self.isq().default),
            formats: formats.into_iter().map(|(format, _)| format).collect(),
            context_length: self.asked_context().unwrap_or(made_for),
        })
    }

    /// What makes this model's prompts, without its weights.
    ///
    /// # Errors
    /// Whatever is wrong with its files or the given template, named.
    pub fn prompt_maker(self) -> Result<PromptMaker> {
        let opened = self.open()?;
        let texts = Texts::read_with(&opened, self.given_tokenizer())?;
        let given = self.given_template().map(GivenTemplate::source);
        let template = find_template(&opened, given.transpose()?, &texts.tokenizer)?;
        Ok(PromptMaker {
            tool_format: self.given_tool_format(),
            tokenizer: Arc::new(texts.tokenizer),
            template,
        })
    }
}

impl PromptMaker {
    /// The prompt of a conversation, as a served model sees it. Without
    /// [`add_generation_prompt`](ChatRequest::add_generation_prompt) it is what the template writes of
    /// the messages, to their end.
    ///
    /// # Errors
    /// As [`Model::prepare_chat`](crate::Model::prepare_chat).
    pub fn render(&self, chat: &ChatRequest) -> Result<RenderedPrompt> {
        let template = self.template.as_ref();
        let template = template.map_err(|error| Error::Template(Arc::clone(error)))?;
        let format = self.tool_format.or(template.tool_format());
        let text = prompter::render(template, &self.tokenizer, format, chat)?;
        Ok(RenderedPrompt {
            tokens: self.tokenizer.encode_with_bos(&text, Specials::Guarded)?,
            text: text.replace(MARK, ""),
        })
    }
}

#[cfg(test)]
mod tests {
    use biplane_models::IsqType;

    use super::*;

    #[test]
    fn an_outline_is_what_loading_takes() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/");
        let of = |name: &str| ModelBuilder::new(format!("{root}{name}")).offline();
        let stored = of("hf").outline().unwrap();
        assert_eq!(stored.formats, ["bf16"]);
        assert_eq!(stored.context_length, 1024);
        let quantized = of("hf").with_isq(IsqType::Q4K).with_context_length(64);
        let quantized = quantized.outline().unwrap();
        assert!(quantized.weight_bytes < stored.weight_bytes / 2);
        assert_eq!(quantized.context_length, 64);
        // The scales are stored, too.
        let packed = of("mlx-4bit").outline().unwrap();
        assert_eq!(
            packed.formats.first().map(String::as_str),
            Some("affine 4 bits")
        );
        assert_eq!(packed.parameters, stored.parameters);
        assert!(of("not-there").outline().is_err());
    }
}
