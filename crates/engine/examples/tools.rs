//! A model that calls Rust functions: `cargo run --release --example tools [MODEL]`.

use biplane::{ModelBuilder, Tool, ToolChoice, ToolConfig};

#[tokio::main]
async fn main() -> biplane::Result<()> {
    let model = match std::env::args().nth(1) {
        Some(model) => ModelBuilder::new(model),
        None => ModelBuilder::starter(),
    };
    let add = Tool::new("add", |a: f64, b: f64| a + b)
        .with_description("Adds two numbers.")
        .with_parameter_names(["first", "second"]);
    let divide = Tool::fallible("divide", |a: f64, b: f64| match b {
        0.0 => Err("division by zero"),
        b => Ok(a / b),
    })
    .with_description("Divides a by b.");
    let model = model
        .with_tools([add, divide])
        .with_tool_config(ToolConfig {
            // Small models often forget their tools: this one must call in its first round.
            choice: ToolChoice::Required,
            ..ToolConfig::default()
        })
        .build()
        .await?;
    let response = model.send_chat_request("Calculate 15 + 27").await?;
    for run in &response.trace {
        eprintln!(
            "{}({}) gave {:?}",
            run.call.name, run.call.arguments, run.result
        );
    }
    println!("{}", response.text);
    Ok(())
}
