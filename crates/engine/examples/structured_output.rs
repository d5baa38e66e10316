//! An answer as a Rust value: `cargo run --release --example structured_output [MODEL]`.

use biplane::{
    ModelBuilder, RequestBuilder,
    schemars::{self, JsonSchema},
};
use serde::Deserialize;

#[derive(Deserialize, JsonSchema)]
struct City {
    // Limits hold a small model to the point.
    #[schemars(length(min = 1, max = 30))]
    name: String,
    #[schemars(length(min = 1, max = 30))]
    country: String,
    /// In millions.
    #[schemars(range(max = 50))]
    inhabitants: u32,
    is_capital: bool,
}

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let model = model.build().await?;
    let request = RequestBuilder::from_text("Describe a large city, as JSON.").set_max_len(200);
    let city: City = model.generate_structured(request).await?;
    let capital = if city.is_capital {
        "the capital"
    } else {
        "a city"
    };
    println!(
        "{} is {capital} of {}, with {} million inhabitants",
        city.name, city.country, city.inhabitants
    );
    Ok(())
}
