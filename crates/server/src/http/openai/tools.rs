//! Tools, and which of them may be called.

use biplane::{ToolChoice, ToolDefinition};
use serde::Deserialize;
use serde_json::Value;

use crate::http::{
    error::ApiError,
    fields::{Fields, wrong},
};

type Result<T> = std::result::Result<T, ApiError>;

pub fn definitions(fields: &mut Fields) -> Result<Vec<ToolDefinition>> {
    let tools = fields.list("tools")?.unwrap_or_default();
    let definition = |(i, tool): (usize, Value)| {
        let place = format!("tools[{i}]");
        let kind = tool.get("type").cloned().unwrap_or("function".into());
        if kind != "function" {
            return Err(wrong(&format!("{place}.type"), &kind, "\"function\""));
        }
        ToolDefinition::deserialize(tool).map_err(|e| {
            let expected = "expected {\"type\": \"function\", \"function\": {\"name\": ..}}";
            ApiError::field(&place, format!("{e}; {expected}"))
        })
    };
    tools.into_iter().enumerate().map(definition).collect()
}

pub fn choice(fields: &mut Fields) -> Result<ToolChoice> {
    const PLACE: &str = "tool_choice";
    let expected = "\"none\", \"auto\", \"required\", {\"type\": \"function\", \"function\": {\"name\": ..}} \
                    or {\"type\": \"allowed_tools\", \"allowed_tools\": {\"mode\": .., \"tools\": ..}}";
    let Some(value) = fields.value(PLACE) else {
        return Ok(ToolChoice::Auto);
    };
    let refuse = || wrong(PLACE, &value, expected);
    match (value.as_str(), value.get("type").and_then(Value::as_str)) {
        (Some("none"), _) => Ok(ToolChoice::None),
        (Some("auto"), _) => Ok(ToolChoice::Auto),
        (Some("required" | "any"), _) => Ok(ToolChoice::Required),
        (None, Some("function")) => Ok(ToolChoice::Named(name(&value).ok_or_else(refuse)?)),
        (None, Some("allowed_tools")) => {
            let inner = value.get("allowed_tools").unwrap_or(&value);
            let required = match inner.get("mode").and_then(Value::as_str) {
                Some("required") => true,
                Some("auto") | None => false,
                Some(_) => return Err(refuse()),
            };
            let names = inner.get("tools").and_then(Value::as_array);
            let names = names.and_then(|tools| tools.iter().map(name).collect());
            Ok(ToolChoice::Allowed {
                names: names.ok_or_else(refuse)?,
                required,
            })
        }
        _ => Err(refuse()),
    }
}

/// The name in `{"function": {"name": ..}}`, or in the object itself.
fn name(value: &Value) -> Option<String> {
    let inner = value.get("function").unwrap_or(value);
    Some(inner.get("name")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<ToolChoice> {
        choice(&mut Fields::of(json!({"tool_choice": value}), "").unwrap())
    }

    #[test]
    fn all_forms_of_a_choice() {
        assert_eq!(read(json!(null)).unwrap(), ToolChoice::Auto);
        assert_eq!(read(json!("none")).unwrap(), ToolChoice::None);
        assert_eq!(read(json!("required")).unwrap(), ToolChoice::Required);
        let f = json!({"type": "function", "function": {"name": "f"}});
        assert_eq!(read(f.clone()).unwrap(), ToolChoice::Named("f".into()));
        let allowed =
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [f]}});
        let names = vec!["f".to_owned()];
        let want = ToolChoice::Allowed {
            names,
            required: true,
        };
        assert_eq!(read(allowed).unwrap(), want);
        for bad in [
            json!("maybe"),
            json!(1),
            json!({"type": "function"}),
            json!({}),
        ] {
            assert_eq!(read(bad).unwrap_err().param.as_deref(), Some("tool_choice"));
        }
    }
}
