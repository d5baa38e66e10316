//! The same question to every engine of this build: `cargo run --release --example compare_backends
//! --features mlx [MODEL]`.

use biplane::{BackendKind, ModelBuilder, RequestBuilder};

#[tokio::main]
async fn main() -> biplane::Result<()> {
    for backend in [BackendKind::Candle, BackendKind::Mlx] {
        let model = match std::env::args().nth(1) {
            Some(model) => ModelBuilder::new(model),
            None => ModelBuilder::starter(),
        };
        let model = match model.with_backend(backend).build().await {
            Ok(model) => model,
            Err(error) => {
                println!("{backend}: {error}");
                continue;
            }
        };
        let request = RequestBuilder::from_text("Write a haiku about aeroplanes.")
            .set_deterministic_sampler()
            .set_max_len(60);
        let response = model.send_chat_request(request).await?;
        println!(
            "{backend}: first token after {:.0} ms, then {:.1} tokens/s\n{}\n",
            response.timings.time_to_first_token.as_secs_f64() * 1e3,
            response.tokens_per_second,
            response.text
        );
    }
    Ok(())
}
