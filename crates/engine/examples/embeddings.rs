//! Which texts are alike: `cargo run --release --example embeddings [MODEL]`.

use biplane::{ModelBuilder, Pooling};

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let model = model.build().await?;
    let texts = [
        "The cat sleeps on the sofa.",
        "A kitten naps on the couch.",
        "Interest rates rose again.",
    ];
    let vectors = model.embed(&texts, Pooling::Mean).await?;
    for (i, (text, vector)) in texts.iter().zip(&vectors).enumerate() {
        println!("{text}");
        for (other, other_vector) in texts.iter().zip(&vectors).skip(i + 1) {
            let alike: f32 = vector.iter().zip(other_vector).map(|(a, b)| a * b).sum();
            println!("  {alike:.3}  {other}");
        }
    }
    Ok(())
}
