//! `/openapi.json`: the API's description, written by hand.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};

const TEXT: &str = include_str!("openapi.json");

pub async fn handle() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], TEXT).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_description_is_whole() {
        let text: Value = serde_json::from_str(TEXT).unwrap();
        assert_eq!(text["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut places = vec![&text];
        let mut found = 0;
        while let Some(place) = places.pop() {
            if let Some(target) = place.get("$ref").and_then(Value::as_str) {
                let pointer = target.strip_prefix('#').unwrap();
                assert!(text.pointer(pointer).is_some(), "{target}");
                found += 1;
            }
            match place {
                Value::Object(fields) => places.extend(fields.values()),
                Value::Array(items) => places.extend(items),
                _ => {}
            }
        }
        assert!(found > 50, "{found}");
        // Each route of the router is described, and nothing else.
        let routes = include_str!("mod.rs").split(".route(").skip(1);
        let mut routes: Vec<String> = routes
            .map(|rest| rest.split('"').nth(1).unwrap().replace("{*", "{"))
            .collect();
        let mut described: Vec<String> =
            text["paths"].as_object().unwrap().keys().cloned().collect();
        routes.sort_unstable();
        described.sort_unstable();
        assert_eq!(routes, described);
    }
}
