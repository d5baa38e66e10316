//! A request's fields, read leniently: what is absent or null is not there, what is unknown does not
//! matter, and what is wrong is named.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures::StreamExt;
use serde_json::{Map, Value};

use super::{error::ApiError, limits};

type Result<T> = std::result::Result<T, ApiError>;

/// The fields of a JSON object.
#[derive(Clone, Debug, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a request's body.
    pub async fn read(body: Body) -> Result<Self> {
        Self::parse(&limited(body, limits::BODY_TIME).await?)
    }

    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| ApiError::bad(format!("the body is not UTF-8: {e}")))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(other) => Err(ApiError::bad(format!(
                "the body is {}, expected a JSON object",
                kind_of(&other)
            ))),
            Err(e) => Err(ApiError::bad(format!("the body is not JSON: {e}"))),
        }
    }

    pub fn of(value: Value, place: &str) -> Result<Self> {
        match value {
            Value::Object(fields) => Ok(Fields(fields)),
            other => Err(wrong(place, &other, "an object")),
        }
    }

    /// Takes a field out; none where it is absent or null.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Adds fields, which replace those of their names.
    pub fn extend(&mut self, more: Map<String, Value>) {
        self.0.extend(more);
    }

    /// What a field is, which stays; null where it is absent.
    pub fn peek(&self, name: &str) -> Value {
        self.0.get(name).cloned().unwrap_or_default()
    }

    pub fn bool(&mut self, name: &str) -> Result<Option<bool>> {
        self.take(name, "true or false", |v| v.as_bool())
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name, "a text", |v| v.as_str().map(str::to_owned))
    }

    pub fn float(&mut self, name: &str) -> Result<Option<f32>> {
        self.take(name, "a number", |v| {
            let number = v.as_f64()? as f32;
            number.is_finite().then_some(number)
        })
    }

    pub fn count(&mut self, name: &str) -> Result<Option<usize>> {
        self.take(name, "a whole number from 0", |v| {
            usize::try_from(whole(v)?).ok()
        })
    }

    /// A whole number of 64 bits; negative ones count too.
    pub fn seed(&mut self, name: &str) -> Result<Option<u64>> {
        self.take(name, "a whole number", |v| {
            v.as_u64().or_else(|| v.as_i64().map(i64::cast_unsigned))
        })
    }

    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>> {
        self.take(name, "a list", |v| v.as_array().cloned())
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        self.take(name, "an object", |v| v.as_object().cloned())
    }

    /// A text, or a list of them.
    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>> {
        self.take(name, "a text or a list of texts", |v| match v {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) => items.iter().map(|v| Some(v.as_str()?.to_owned())).collect(),
            _ => None,
        })
    }

    pub fn tokens(&mut self, name: &str) -> Result<Option<Vec<u32>>> {
        self.take(name, "a list of token ids", tokens)
    }

    /// Refuses a field that asks for something: anything but null, false, 0 and what is empty.
    pub fn refuse(&self, name: &str, instead: &str) -> Result<()> {
        let asks = match self.0.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(fields)) => !fields.is_empty(),
            Some(Value::Bool(true)) => true,
        };
        match asks {
            true => Err(ApiError::field(name, format!("not supported; {instead}"))
                .with_code("unsupported_parameter")),
            false => Ok(()),
        }
    }

    fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong(name, &value, expected)),
        }
    }
}

/// The error of a value that is something else than what a field may be.
pub fn wrong(place: &str, value: &Value, expected: &str) -> ApiError {
    let found = match value {
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => format!("{text:?}"),
        other => kind_of(other).to_owned(),
    };
    ApiError::field(place, format!("{found} is not {expected}"))
}

pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A whole number, also one that is written as 5.0.
pub fn whole(value: &Value) -> Option<u64> {
    let float = || {
        let number = value.as_f64()?;
        (number >= 0.0 && number <= 2f64.powi(53) && number.fract() == 0.0).then_some(number as u64)
    };
    value.as_u64().or_else(float)
}

/// A list of token ids.
pub fn tokens(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| u32::try_from(whole(v)?).ok();
    value.as_array()?.iter().map(id).collect()
}

async fn limited(body: Body, time: Duration) -> Result<Bytes> {
    let mut stream = body.into_data_stream();
    let mut whole: Vec<u8> = Vec::new();
    let mut come = 0;
    let read = async {
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|e| ApiError::bad(format!("the body broke off: {e}")))?;
            come += piece.len();
            if come > limits::READ {
                break;
            }
            if come > limits::BODY {
                // Read all the same: who is still sending would not see the answer.
                whole = Vec::new();
                continue;
            }
            whole.extend_from_slice(&piece);
        }
        if come > limits::BODY {
            let message = format!("the body is larger than {} MiB", limits::BODY >> 20);
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            let error = ApiError::new(status, "invalid_request_error", message);
            return Err(error.with_code("request_too_large"));
        }
        Ok(())
    };
    let late = || {
        let seconds = time.as_secs();
        let message = format!("the body took longer than {seconds} s to come");
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            message,
        )
    };
    tokio::time::timeout(time, read)
        .await
        .map_err(|_| late())??;
    Ok(whole.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of(value, "").unwrap()
    }

    #[test]
    fn null_is_absent_and_wrong_types_are_named() {
        let mut f = fields(json!({"a": null, "b": 5, "c": "x", "d": 64.0, "e": -1, "f": 1e99}));
        assert_eq!(f.bool("a").unwrap(), None);
        let error = f.texts("b").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("b"));
        assert!(error.message.contains('5'), "{}", error.message);
        assert!(f.float("c").is_err());
        assert_eq!(f.count("d").unwrap(), Some(64));
        assert!(f.count("e").is_err());
        assert!(f.float("f").is_err());
        assert_eq!(fields(json!({"s": -1})).seed("s").unwrap(), Some(u64::MAX));
    }

    #[test]
    fn only_what_asks_for_something_is_refused() {
        for harmless in [
            json!(null),
            json!(false),
            json!(0),
            json!(""),
            json!([]),
            json!({}),
        ] {
            let f = fields(json!({"x": harmless}));
            assert!(f.refuse("x", "no").is_ok(), "{harmless}");
        }
        for asking in [
            json!(true),
            json!(1),
            json!("a"),
            json!([1]),
            json!({"a": 1}),
        ] {
            assert!(fields(json!({"x": asking})).refuse("x", "no").is_err());
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let begin = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]);
        let body = Body::from_stream(begin.chain(futures::stream::pending()));
        let error = limited(body, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
    }

    #[test]
    fn bodies_are_objects_in_utf8_and_not_too_deep() {
        for bad in [&b"\xff"[..], b"", b"[]", b"{\"a\": \"\xc3\"}"] {
            assert_eq!(
                Fields::parse(bad).unwrap_err().status,
                StatusCode::BAD_REQUEST
            );
        }
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
