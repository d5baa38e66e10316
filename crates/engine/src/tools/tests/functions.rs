//! Functions as tools.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::tools::{Tool, ToolBox, ToolCall, ToolDefinition};

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

fn run(tool: &Tool, arguments: Value) -> Result<String, String> {
    runtime().block_on(tool.run(arguments))
}

#[test]
fn arguments_come_in_order_and_results_as_text() {
    let none = Tool::new("now", || "noon");
    assert_eq!(run(&none, json!({})), Ok("noon".into()));
    assert_eq!(none.definition().parameters["properties"], json!({}));
    let six = Tool::new(
        "six",
        |a: u8, b: String, c: Vec<i64>, d: bool, e: Option<f32>, g: char| json!([a, b, c, d, e, g]),
    );
    let arguments = json!({"f": "z", "a": 1, "b": "x", "c": [-1], "d": true});
    assert_eq!(
        run(&six, arguments),
        Ok(r#"[1,"x",[-1],true,null,"z"]"#.into())
    );
    let required = &six.definition().parameters["required"];
    assert_eq!(*required, json!(["a", "b", "c", "d", "f"]));
    let schema = &six.definition().parameters["properties"];
    assert_eq!(
        schema["c"],
        json!({"type": "array", "items": {"type": "integer"}})
    );
}

#[test]
fn wrong_arguments_are_named() {
    let add = Tool::new("add", |a: f64, b: f64| a + b).with_parameter_names(["x", "y"]);
    let error = |arguments| run(&add, arguments).unwrap_err();
    assert!(error(json!({"x": 1})).contains("y is missing"));
    assert!(error(json!({"x": 1, "y": "2"})).contains("y: "));
    assert!(error(json!({"x": 1, "y": 2, "z": 3})).contains("\"z\""));
    assert!(error(json!([1, 2])).contains("no JSON object"));
}

#[test]
fn errors_and_panics_are_outcomes() {
    let root = |a: f64| {
        if a < 0.0 {
            Err("negative")
        } else {
            Ok(a.sqrt())
        }
    };
    let root = Tool::fallible("root", root);
    assert_eq!(run(&root, json!({"a": 4})), Ok("2.0".into()));
    assert_eq!(run(&root, json!({"a": -1})), Err("negative".into()));
    let later = Tool::asynchronous("later", |a: i32| async move { a + 1 });
    assert_eq!(run(&later, json!({"a": 1})), Ok("2".into()));
    let fails = Tool::fallible_asynchronous("fails", |_a: i32| async move { Err::<(), _>("no") });
    assert_eq!(run(&fails, json!({"a": 1})), Err("no".into()));
    let panics = Tool::new("panics", |a: Vec<u8>| a[7]);
    assert!(
        run(&panics, json!({"a": []}))
            .unwrap_err()
            .contains("panicked")
    );
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Weather {
    /// Where.
    city: String,
    #[serde(default)]
    days: u32,
}

#[test]
fn types_are_parameters() {
    let weather = Tool::typed::<Weather>("weather", |w: Weather| format!("{} {}", w.city, w.days));
    let schema = &weather.definition().parameters;
    assert_eq!(schema["properties"]["city"]["description"], "Where.");
    assert_eq!(schema["required"], json!(["city"]));
    assert_eq!(run(&weather, json!({"city": "Oslo"})), Ok("Oslo 0".into()));
    assert!(run(&weather, json!({"days": 1})).is_err());
}

#[test]
fn a_box_refuses_what_cannot_be_and_takes_more_later() {
    let tools = ToolBox::new();
    let other = tools.clone();
    tools.add(Tool::new("add", |a: i64, b: i64| a + b)).unwrap();
    assert!(other.has("add"));
    let twice = other.add(Tool::new("add", || 1)).unwrap_err().to_string();
    assert!(twice.contains("\"add\""), "{twice}");
    assert!(tools.add(Tool::new("a b", || 1)).is_err());
    let names = Tool::new("f", |a: i64| a).with_parameter_names(["x", "y"]);
    let error = tools.add(names).unwrap_err().to_string();
    assert!(error.contains("2 names for 1"), "{error}");
    let twins = Tool::new("f", |a: i64, b: i64| a + b).with_parameter_names(["x", "x"]);
    assert!(tools.add(twins).is_err());
    let unknown = Tool::new("f", |a: i64| a).with_parameter_description("b", "?");
    assert!(tools.add(unknown).is_err());

    let called: Arc<crate::ToolCallback> = Arc::new(|call| Ok(call.arguments.to_uppercase()));
    tools.add_callback("shout", Arc::clone(&called)).unwrap();
    assert_eq!(tools.definitions().len(), 1, "a callback has no definition");
    let definition = ToolDefinition::new("loud", json!({"type": "object"}));
    tools.add(Tool::of_callback(definition, called)).unwrap();
    let call = |name: &str, arguments: &str| {
        runtime().block_on(tools.call(&ToolCall {
            id: String::new(),
            name: name.into(),
            arguments: arguments.into(),
        }))
    };
    assert_eq!(call("add", r#"{"a": 40, "b": 2}"#), Ok("42".into()));
    assert_eq!(call("shout", "{\"a\"}"), Ok("{\"A\"}".into()));
    assert_eq!(call("loud", r#"{"a":"b"}"#), Ok(r#"{"A":"B"}"#.into()));
    assert!(call("add", "{").unwrap_err().contains("no JSON"));
    assert!(call("sub", "{}").unwrap_err().contains("\"sub\""));
    assert!(tools.remove("add") && !tools.remove("add"));
}
