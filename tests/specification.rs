//! The specification's programs, word for word but for the models' paths, a template where the model
//! has none, and a limit to what a model of random weights says; on both backends where they name none.

#![cfg(all(feature = "candle", feature = "mcp"))]

use std::sync::Arc;
#[cfg(feature = "mlx")]
use std::time::Instant;

use biplane::{
    ChatMessage, GgufModelBuilder, IsqType, McpConfig, McpServer, Model, RequestBuilder, Tool,
    ToolCallback, ToolChoice, ToolConfig, ToolDefinition,
};
#[cfg(feature = "mlx")]
use biplane::{MlxDevice, MlxModelBuilder, MlxSpecificConfig};
use biplane_tests::{fixture, real_model};
use serde_json::{Value, json};

const CUSTOM_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Tokens of prompt and answer together.
const CONTEXT: usize = 128;

/// A builder for a fixture.
macro_rules! small {
    ($builder:ident, $path:expr) => {
        $builder::new(fixture($path).display().to_string())
            .with_chat_template_literal(CUSTOM_TEMPLATE)
            .with_context_length(CONTEXT)
    };
}

/// Its tests, for one builder.
macro_rules! specified {
    ($backend:ident, $builder:ident, $path:literal) => {
        mod $backend {
            use super::*;

            async fn load_test_model() -> Model {
                small!($builder, $path).build().await.unwrap()
            }

            #[tokio::test]
            async fn test_model_loading() {
                let model = small!($builder, $path).build().await.unwrap();

                assert!(model.is_loaded());
            }

            #[tokio::test]
            async fn test_basic_generation() {
                let model = load_test_model().await;
                let response = model.generate("Hello").await.unwrap();

                assert!(!response.text.is_empty());
                assert!(response.tokens_per_second > 0.0);
            }

            #[tokio::test]
            async fn test_chat_template_compatibility() {
                let model = load_test_model().await;

                let messages = vec![
                    ChatMessage::System("You are a helpful assistant".to_string()),
                    ChatMessage::User("What is Rust?".to_string()),
                ];

                let response = model.send_chat_request(messages).await.unwrap();
                assert!(!response.text.is_empty());
            }

            /// The call is forced, as a model this small does not choose it.
            #[tokio::test]
            async fn test_tool_calling() {
                let Some(path) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
                    return;
                };
                let calculator = Tool::new("add", |a: f64, b: f64| a + b);

                let model = $builder::new(path.display().to_string())
                    .with_tools(vec![calculator])
                    .with_tool_config(ToolConfig {
                        choice: ToolChoice::Named("add".into()),
                        max_rounds: 1,
                        ..ToolConfig::default()
                    })
                    .build()
                    .await
                    .unwrap();

                let response = model
                    .send_chat_request(vec![ChatMessage::User("Calculate 15 + 27".to_string())])
                    .await
                    .unwrap();

                let run = &response.trace[0];
                let arguments: Value = serde_json::from_str(&run.call.arguments).unwrap();
                let sum = arguments["a"].as_f64().unwrap() + arguments["b"].as_f64().unwrap();
                let result = run.result.as_ref().unwrap();
                assert_eq!(result.parse::<f64>().unwrap(), sum, "{:?}", response.trace);
                // What a model this small makes of the bare number is its own affair.
                assert!(!response.text.is_empty(), "{response:?}");
            }

            /// What a callback gives is what the model answers with.
            #[tokio::test]
            async fn test_tool_callback() {
                let Some(path) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
                    return;
                };
                let callback: Arc<ToolCallback> = Arc::new(|called| {
                    let arguments: Value = serde_json::from_str(&called.arguments)?;
                    let number = |name: &str| arguments[name].as_f64().ok_or("no number");
                    let (a, b) = (number("a")?, number("b")?);
                    Ok(format!("{a} + {b} = {}", a + b))
                });
                let model = $builder::new(path.display().to_string())
                    .with_tool_callback("add", callback)
                    .with_tool_config(ToolConfig {
                        max_rounds: 1,
                        ..ToolConfig::default()
                    })
                    .build()
                    .await
                    .unwrap();
                let number = json!({"type": "number"});
                let add = ToolDefinition::new(
                    "add",
                    json!({
                        "type": "object",
                        "properties": {"a": number, "b": number},
                        "required": ["a", "b"]
                    }),
                );

                let response = model
                    .send_chat_request(
                        RequestBuilder::from_text("Calculate 15 + 27")
                            .set_tools(vec![add])
                            .set_tool_choice(ToolChoice::Named("add".into())),
                    )
                    .await
                    .unwrap();

                assert_eq!(response.trace[0].result, Ok("15 + 27 = 42".into()));
                assert!(response.text.contains("42"), "{response:?}");
            }

            #[tokio::test]
            async fn test_mcp_compatibility() {
                let model = small!($builder, $path)
                    .with_mcp_config(McpConfig::default())
                    .build()
                    .await
                    .unwrap();

                // Test MCP server functionality
                let mcp_server = McpServer::new(model);
                assert!(mcp_server.start().await.is_ok());
            }

            /// Section 2: the builder's options.
            #[tokio::test]
            async fn basic_usage() {
                let model = small!($builder, $path)
                    .with_logging()
                    .with_isq(IsqType::Q4K)
                    .build()
                    .await
                    .unwrap();

                assert!(model.is_loaded());
            }
        }
    };
}

specified!(candle, GgufModelBuilder, "llama/gguf/llama-q4_0.gguf");
#[cfg(feature = "mlx")]
specified!(mlx, MlxModelBuilder, "llama/mlx-4bit");

/// Section 2: advanced configuration.
#[cfg(feature = "mlx")]
#[tokio::test]
async fn advanced_configuration() {
    let tool_config = ToolConfig::default();
    let model = MlxModelBuilder::new(fixture("llama/mlx-8bit").display().to_string())
        .with_mlx_config(MlxSpecificConfig {
            device_preference: MlxDevice::Auto,
            lazy_evaluation: true,
            unified_memory: true,
        })
        .with_chat_template_literal(CUSTOM_TEMPLATE)
        .with_tool_config(tool_config)
        .build()
        .await
        .unwrap();

    assert!(model.is_loaded());
}

#[cfg(feature = "mlx")]
#[tokio::test]
async fn benchmark_mlx_vs_candle() {
    let mlx_model = small!(MlxModelBuilder, "llama/mlx-4bit")
        .build()
        .await
        .unwrap();
    let candle_model = small!(GgufModelBuilder, "llama/gguf/llama-q4_0.gguf")
        .build()
        .await
        .unwrap();

    let prompt = "Write a hello world program in Rust";

    let mlx_start = Instant::now();
    let mlx_response = mlx_model.generate(prompt).await.unwrap();
    let mlx_time = mlx_start.elapsed();

    let candle_start = Instant::now();
    let candle_response = candle_model.generate(prompt).await.unwrap();
    let candle_time = candle_start.elapsed();

    println!("MLX: {mlx_time:.2?}, Candle: {candle_time:.2?}");
    assert!(mlx_response.tokens_per_second > 0.0);
    assert!(candle_response.tokens_per_second > 0.0);
}
