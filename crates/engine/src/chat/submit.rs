//! Asking a model in a conversation.

use super::{
    ChatRequest, ChatResponse, ChatStream,
    prompt::{Prompter, unknown_format},
    reader::Reader,
};
use crate::{
    Constraint, Error, Model, Request, Result,
    tokenizer::{MARK, Specials},
    tools::{AnswerForm, Grammar, Reasoning, ToolChoice, ToolDefinition, ToolFormat, ToolParser},
};

/// A conversation that is ready to be computed, by [`Model::submit_prepared`].
#[derive(Clone, Debug)]
pub struct PreparedChat {
    /// The prompt as the chat template wrote it.
    pub prompt: String,
    /// The prompt's tokens, and how to generate; its constraint is a grammar of calls where the
    /// conversation's tools ask for one.
    pub request: Request,
    reader: Reader,
}

impl Model {
    /// How this model calls tools: as [`ModelBuilder::with_tool_format`] says, otherwise as its chat
    /// template does. None where that is not known.
    ///
    /// [`ModelBuilder::with_tool_format`]: crate::ModelBuilder::with_tool_format
    ///
    /// # Errors
    /// [`Error::Template`] for a model without a template.
    pub fn tool_format(&self) -> Result<Option<ToolFormat>> {
        let template = self.template()?;
        Ok(self.chosen_tool_format().or(template.tool_format()))
    }

    /// Makes a conversation's prompt and what its answer is held to and read by.
    ///
    /// # Errors
    /// [`Error::Request`] naming what cannot be asked, [`Error::Template`] for a model without a
    /// template or a conversation that it refuses.
    pub fn prepare_chat(&self, chat: ChatRequest) -> Result<PreparedChat> {
        chat.validate()?;
        let tokenizer = self.tokenizer();
        let prompter = Prompter {
            template: self.template()?,
            tokenizer,
            format: self.tool_format()?,
        };
        let offered = chat.offered()?;
        let prompt = prompter.prompt(&chat, &offered)?;
        let reasoning = prompter.reasoning(&chat, &prompt);
        let special = |name: &str| {
            let id = tokenizer.id_of(name)?;
            tokenizer.is_special(id).then_some(id)
        };
        let format = match offered.is_empty() {
            true => None,
            false => Some(prompter.format.ok_or_else(unknown_format)?),
        };

        let markers = format.map_or(&[][..], ToolFormat::markers).iter().copied();
        let tags = prompter.template.reasoning();
        let tags = tags.into_iter().flat_map(|tags| [tags.open, tags.close]);
        let marks = markers.chain(tags).filter(|name| !name.is_empty());
        let (names, ids): (Vec<String>, Vec<u32>) = marks
            .filter_map(|name| Some((name.to_owned(), special(name)?)))
            .unzip();

        let tools: Vec<ToolDefinition> = offered.iter().map(|tool| (*tool).clone()).collect();
        let constraint = constraint(&chat, format, &offered, reasoning, &special)?;
        let mut request = chat.generation;
        if let Some(changes) = &chat.sampling {
            request.sampling = self.sampling(changes)?;
        }
        request.tokens = tokenizer.encode_with_bos(&prompt, Specials::Guarded)?;
        request.constraint = constraint;
        request.shown_tokens.extend(ids);
        request.continues = !chat.add_generation_prompt;
        request.validate()?;
        let parser = ToolParser::new(format, &tools).with_reasoning(reasoning);
        Ok(PreparedChat {
            prompt: prompt.replace(MARK, ""),
            request,
            reader: Reader::new(parser, names),
        })
    }

    /// Starts the `choice`th of several answers to a conversation: a seed counts up, so that they
    /// differ. A constraint is compiled here first, as in [`Model::submit`].
    ///
    /// # Errors
    /// As [`Model::submit`].
    pub fn submit_prepared(&self, prepared: &PreparedChat, choice: u64) -> Result<ChatStream> {
        let events = self.submit(prepared.request.choice(choice))?;
        Ok(ChatStream::new(events, prepared.reader.clone()))
    }

    /// Starts an answer to a conversation; dropping the stream cancels it. Tools are not run.
    ///
    /// # Errors
    /// As [`Model::prepare_chat`] and [`Model::submit`].
    pub fn submit_chat(&self, chat: ChatRequest) -> Result<ChatStream> {
        self.submit_prepared(&self.prepare_chat(chat)?, 0)
    }

    /// As [`Model::submit_chat`], away from the caller's thread: rendering and tokenizing a long
    /// conversation and compiling a grammar take their time.
    ///
    /// # Errors
    /// As [`Model::submit_chat`].
    pub async fn start_chat(&self, chat: ChatRequest) -> Result<ChatStream> {
        let model = self.clone();
        tokio::task::spawn_blocking(move || model.submit_chat(chat))
            .await
            .map_err(|e| Error::Stopped(format!("preparing the prompt: {e}")))?
    }

    /// Answers a conversation. Tools are not run: what the model calls is in
    /// [`ChatResponse::tool_calls`].
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn complete_chat(&self, chat: ChatRequest) -> Result<ChatResponse> {
        self.start_chat(chat).await?.collect().await
    }
}

/// What the answer is held to.
fn constraint(
    chat: &ChatRequest,
    format: Option<ToolFormat>,
    offered: &[&ToolDefinition],
    reasoning: Reasoning,
    special: &dyn Fn(&str) -> Option<u32>,
) -> Result<Option<Constraint>> {
    let own = chat.generation.constraint.as_ref();
    let required = chat.tool_choice.is_required();
    let named = matches!(chat.tool_choice, ToolChoice::Named(_));
    let held = required
        || matches!(chat.tool_choice, ToolChoice::Allowed { .. })
        || !chat.parallel_tool_calls
        || offered.iter().any(|tool| tool.strict)
        || own.is_some();
    let calls = match format {
        Some(format) if held => Some((format, offered)),
        _ => None,
    };
    // A grammar of the user's own says itself where reasoning may be.
    let begun = matches!(reasoning, Reasoning::Begun(_));
    let lark = matches!(own, Some(Constraint::Lark(_)));
    let alone = reasoning == Reasoning::None || (lark && !begun);
    if calls.is_none() && (own.is_none() || alone) {
        return Ok(own.cloned());
    }
    let grammar = Grammar {
        calls,
        all_strict: required,
        several: chat.parallel_tool_calls && !named,
        answer: match own {
            Some(constraint) => AnswerForm::Like(constraint),
            None if required => AnswerForm::None,
            None => AnswerForm::Text,
        },
        reasoning,
        special,
    };
    let lark = grammar.lark();
    let lark = lark.map_err(|e| Error::Request(format!("generation.constraint: {e}")))?;
    Ok(Some(Constraint::Lark(lark)))
}
