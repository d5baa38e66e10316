//! Asks a model one question: `cargo run --release --example simple [MODEL]`.

use biplane::{ChatMessage, ModelBuilder};

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let model = model.build().await?;
    let messages = vec![
        ChatMessage::System("You answer in one sentence.".to_string()),
        ChatMessage::User("Why is the sky blue?".to_string()),
    ];
    let response = model.send_chat_request(messages).await?;
    println!("{}", response.text);
    eprintln!("{:.1} tokens/s", response.tokens_per_second);
    Ok(())
}
