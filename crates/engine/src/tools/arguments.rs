//! Arguments of Rust's types: their JSON schemas, and their values from JSON.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A function whose arguments can be read from JSON: up to six.
pub trait Function<Args>: Send + Sync + 'static {
    /// What it gives.
    type Output;

    /// The parameters' schemas, and whether they must be given.
    fn parameters(generator: &mut SchemaGenerator) -> Vec<(Value, bool)>;

    /// Calls it with values in the parameters' order.
    ///
    /// # Errors
    /// Which argument is missing or wrong.
    fn call(&self, values: Vec<Value>, names: &[String]) -> Result<Self::Output, String>;
}

macro_rules! function {
    ($($arg:ident)*) => {
        impl<F, Out, $($arg),*> Function<($($arg,)*)> for F
        where
            F: Fn($($arg),*) -> Out + Send + Sync + 'static,
            $($arg: DeserializeOwned + JsonSchema + 'static,)*
        {
            type Output = Out;

            fn parameters(_generator: &mut SchemaGenerator) -> Vec<(Value, bool)> {
                vec![$((
                    _generator.subschema_for::<$arg>().to_value(),
                    // What nothing stands for may be left out.
                    serde_json::from_value::<$arg>(Value::Null).is_err(),
                )),*]
            }

            #[allow(non_snake_case)]
            fn call(&self, values: Vec<Value>, names: &[String]) -> Result<Out, String> {
                let mut _given = names.iter().zip(values);
                $(let $arg: $arg = argument(_given.next())?;)*
                Ok(self($($arg),*))
            }
        }
    };
}

function!();
function!(A);
function!(A B);
function!(A B C);
function!(A B C D);
function!(A B C D E);
function!(A B C D E G);

fn argument<T: DeserializeOwned>(given: Option<(&String, Value)>) -> Result<T, String> {
    let (name, value) = given.ok_or("an argument is missing")?;
    let missing = value.is_null();
    serde_json::from_value(value).map_err(|error| match missing {
        true => format!("{name} is missing"),
        false => format!("{name}: {error}"),
    })
}

/// The values of an object in the parameters' order; null for what is missing.
pub(super) fn in_order(arguments: Value, names: &[String]) -> Result<Vec<Value>, String> {
    let Value::Object(mut fields) = arguments else {
        return Err(format!("the arguments are no JSON object: {arguments}"));
    };
    let values = names
        .iter()
        .map(|name| fields.remove(name).unwrap_or_default())
        .collect();
    match fields.keys().next() {
        Some(unknown) => Err(format!(
            "there is no parameter {unknown:?}; there are {}",
            names.join(", ")
        )),
        None => Ok(values),
    }
}

pub(super) fn generator() -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.into_generator()
}

/// A type's JSON schema, in the form that models and grammars read best.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    let mut schema = generator().into_root_schema_for::<T>().to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
        schema.remove("title");
    }
    plain_numbers(&mut schema);
    schema
}

/// As [`schema_of`], where objects have the type's own fields alone: a model that may add others of
/// its own does not come to an end.
pub(crate) fn closed_schema_of<T: JsonSchema>() -> Value {
    let mut schema = schema_of::<T>();
    close(&mut schema);
    schema
}

/// Objects whose fields a combination of schemas has part of stay open.
fn close(schema: &mut Value) {
    const COMBINATIONS: [&str; 3] = ["oneOf", "anyOf", "allOf"];
    let Value::Object(fields) = schema else {
        return;
    };
    let has_fields = fields.contains_key("properties");
    let combined = COMBINATIONS.iter().any(|key| fields.contains_key(*key));
    let elsewhere = ["additionalProperties", "patternProperties", "$ref"];
    if has_fields && !combined && !elsewhere.iter().any(|key| fields.contains_key(*key)) {
        fields.insert("additionalProperties".into(), false.into());
    }
    for (key, value) in fields.iter_mut() {
        match (key.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().for_each(close);
            }
            ("items" | "additionalProperties", value) => close(value),
            ("prefixItems", Value::Array(schemas)) => schemas.iter_mut().for_each(close),
            (key, Value::Array(schemas)) if COMBINATIONS.contains(&key) && !has_fields => {
                schemas.iter_mut().for_each(close);
            }
            _ => {}
        }
    }
}

/// Leaves out numbers' formats (`double`, `int32`), which JSON Schema does not know.
pub(super) fn plain_numbers(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let kind = fields.get("type").map(Value::to_string).unwrap_or_default();
            if kind.contains("\"number\"") || kind.contains("\"integer\"") {
                fields.remove("format");
            }
            fields.values_mut().for_each(plain_numbers);
        }
        Value::Array(items) => items.iter_mut().for_each(plain_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_closed_but_where_others_have_part_of_their_fields() {
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        struct Inner {
            properties: Vec<Inner>,
        }
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        #[serde(tag = "kind")]
        enum Kind {
            One { a: u8 },
            Two { b: u8 },
        }
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        struct Whole {
            inner: Inner,
            kind: Kind,
        }
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        struct Open {
            name: String,
            #[serde(flatten)]
            kind: Kind,
        }
        let whole = closed_schema_of::<Whole>();
        assert_eq!(whole["additionalProperties"], false, "{whole}");
        let text = whole.to_string();
        // Itself, `Inner` at its place and at its name, and both variants.
        assert_eq!(
            text.matches(r#""additionalProperties":false"#).count(),
            5,
            "{whole}"
        );
        let open = closed_schema_of::<Open>();
        assert!(!open.to_string().contains("additionalProperties"), "{open}");
    }
}
