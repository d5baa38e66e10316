//! A chat template of one's own: `cargo run --release --example custom_template [MODEL]`.

use biplane::{ChatRequest, ModelBuilder};

const TEMPLATE: &str = "{% for message in messages %}\
    {{ message.role | upper }}: {{ message.content }}\n\
    {% endfor %}\
    {% if add_generation_prompt %}ASSISTANT:{% endif %}";

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let model = model.with_chat_template_literal(TEMPLATE).build().await?;
    let mut request = ChatRequest::from("What is the capital of France?");
    request.generation.max_tokens = Some(40);
    request.generation.stop = vec!["\nUSER:".into()];
    let prompt = model.prepare_chat(request.clone())?.prompt;
    eprintln!("The prompt is\n{prompt}");
    let response = model.send_chat_request(request).await?;
    println!("{}", response.text);
    Ok(())
}
