//! What most programs need of a model.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{ChatFinish, ChatRequest, ChatResponse, ChatStream};
use crate::{
    Constraint, Error, Model, Result,
    tokenizer::Specials,
    tools::{ToolChoice, closed_schema_of},
};

impl Model {
    /// Answers a conversation; tools of [`Model::tools`] are run on the way.
    ///
    /// ```no_run
    /// # async fn example(model: biplane::Model) -> biplane::Result<()> {
    /// use biplane::ChatMessage;
    ///
    /// let messages = vec![ChatMessage::User("Write a Python function".to_string())];
    /// let response = model.send_chat_request(messages).await?;
    /// println!("{}", response.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn send_chat_request(&self, request: impl Into<ChatRequest>) -> Result<ChatResponse> {
        self.stream_chat_request(request).await?.collect().await
    }

    /// As [`send_chat_request`](Self::send_chat_request), as it comes. Dropping the stream cancels.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub async fn stream_chat_request(&self, request: impl Into<ChatRequest>) -> Result<ChatStream> {
        self.tools().start(self, request.into()).await
    }

    /// An answer as a value: the model is held to its type's JSON schema. Tools are not offered.
    ///
    /// ```no_run
    /// # async fn example(model: biplane::Model) -> biplane::Result<()> {
    /// #[derive(serde::Deserialize, biplane::schemars::JsonSchema)]
    /// # #[schemars(crate = "biplane::schemars")]
    /// struct City {
    ///     name: String,
    ///     country: String,
    /// }
    ///
    /// let city = model.generate_structured::<City>("Name a large city.").await?;
    /// println!("{}, {}", city.name, city.country);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Request`] for a request with another constraint, and for an answer that was cut off
    /// before its end; whatever else the request fails with.
    pub async fn generate_structured<T: DeserializeOwned + JsonSchema>(
        &self,
        prompt: impl Into<ChatRequest>,
    ) -> Result<T> {
        let mut chat = prompt.into();
        if chat.generation.constraint.is_some() {
            return Err(Error::Request(
                "generation.constraint is set, but generate_structured sets the type's own schema; \
                 leave it out, or use send_chat_request"
                    .into(),
            ));
        }
        if !chat.tools.is_empty() {
            return Err(Error::Request(
                "generate_structured calls no tools; leave out tools, or use send_chat_request"
                    .into(),
            ));
        }
        chat.generation.constraint = Some(Constraint::JsonSchema(closed_schema_of::<T>()));
        chat.tool_choice = ToolChoice::None;
        let answer = self.complete_chat(chat).await?;
        serde_json::from_str(&answer.text).map_err(|error| {
            Error::Request(match answer.finish_reason {
                ChatFinish::Stop => format!("the answer is not of the type asked for: {error}"),
                reason => format!(
                    "the answer ended ({reason:?}) before it was whole; allow more tokens, or a \
                     longer context"
                ),
            })
        })
    }

    /// The tokens of a text, names of control tokens in it taken as text; without a
    /// beginning-of-sequence token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer().encode(text, Specials::Plain)?)
    }

    /// The text of tokens, control tokens left out.
    pub fn detokenize(&self, tokens: &[u32]) -> String {
        self.tokenizer().decode(tokens, true)
    }
}
