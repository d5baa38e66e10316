//! Many prompts at once share the computation: `cargo run --release --example batch_of_prompts [MODEL]`.

use biplane::{ModelBuilder, RequestBuilder};
use futures::future::join_all;

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let model = model.build().await?;
    let questions = [
        "What is Rust?",
        "What is a biplane?",
        "Who was Ada Lovelace?",
    ];
    let started = std::time::Instant::now();
    let asked = questions.map(|question| {
        let request = RequestBuilder::from_text(question).set_max_len(60);
        model.send_chat_request(request)
    });
    let mut tokens = 0;
    for (question, response) in questions.iter().zip(join_all(asked).await) {
        let response = response?;
        tokens += response.tokens.len();
        println!("{question}\n{}\n", response.text);
    }
    let rate = tokens as f64 / started.elapsed().as_secs_f64();
    eprintln!("{rate:.1} tokens/s in all");
    Ok(())
}
