//! A conversation at the terminal, until the end of input: `cargo run --release --example chat_loop [MODEL]`.

use std::io::{BufRead, Write};

use biplane::{ChatMessage, ModelBuilder};

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let model = model.build().await?;
    let mut messages = Vec::new();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        print!("> ");
        let _ = std::io::stdout().flush();
        let Some(Ok(line)) = lines.next() else {
            return Ok(());
        };
        messages.push(ChatMessage::User(line));
        let response = model.send_chat_request(messages.clone()).await?;
        println!("{}", response.text);
        messages.push(ChatMessage::Assistant(response.text));
    }
}
