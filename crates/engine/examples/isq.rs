//! Quantizes a model while it loads: `cargo run --release --example isq [MODEL [FORM]]`, FORM as Q4K.

use biplane::{IsqType, ModelBuilder};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = match arguments.next() {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let form: IsqType = arguments.next().as_deref().unwrap_or("Q4K").parse()?;
    let model = model.with_logging().with_isq(form).build().await?;
    let response = model.send_chat_request("Name three colours.").await?;
    println!("{}", response.text);
    eprintln!("{:.1} tokens/s in {form:?}", response.tokens_per_second);
    Ok(())
}
