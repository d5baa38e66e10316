//! Conversations as prompts, and answers as they come.

mod messages;
mod prompts;
mod reading;
