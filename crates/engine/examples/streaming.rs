//! Shows an answer as it comes: `cargo run --release --example streaming [MODEL]`.

use std::io::Write;

use biplane::{ChatEvent, ModelBuilder, RequestBuilder, tools::Delta};

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let model = model.build().await?;
    let request = RequestBuilder::from_text("Tell me a very short story.").set_max_len(200);
    let mut stream = model.stream_chat_request(request).await?;
    while let Some(event) = stream.next().await {
        let deltas = match event {
            ChatEvent::Token { deltas, .. } | ChatEvent::Round { deltas } => deltas,
            ChatEvent::Done { deltas, .. } => deltas,
            ChatEvent::ToolResult(run) => {
                eprintln!("[{}: {:?}]", run.call.name, run.result);
                continue;
            }
            ChatEvent::Failed(error) => return Err(error),
        };
        for delta in deltas {
            if let Delta::Content(text) = delta {
                print!("{text}");
            }
        }
        let _ = std::io::stdout().flush();
    }
    println!();
    Ok(())
}
