//! What `/set` changes.

use std::collections::BTreeMap;

use biplane::{Request, SamplingChanges, SamplingParams};

use crate::{form_args::SamplingArgs, near};

/// Names of settings.
pub const NAMES: [&str; 10] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
];

/// Settings that differ from the model's own, as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// What the command line says.
    pub fn of(args: &SamplingArgs) -> anyhow::Result<Self> {
        let text = |value: Option<&dyn ToString>| value.map(ToString::to_string);
        let mut settings = Self::default();
        for (name, value) in [
            (
                "temperature",
                text(args.temperature.as_ref().map(|v| v as _)),
            ),
            ("top_p", text(args.top_p.as_ref().map(|v| v as _))),
            ("top_k", text(args.top_k.as_ref().map(|v| v as _))),
            ("min_p", text(args.min_p.as_ref().map(|v| v as _))),
            ("seed", text(args.seed.as_ref().map(|v| v as _))),
            ("max_tokens", text(args.max_tokens.as_ref().map(|v| v as _))),
        ] {
            if let Some(value) = value {
                settings.set(name, &value).map_err(anyhow::Error::msg)?;
            }
        }
        Ok(settings)
    }

    /// Changes a setting; `default` gives it back to the model.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name = name.replace('-', "_");
        if !NAMES.contains(&name.as_str()) {
            let hint = near::hint(&name, NAMES);
            return Err(format!(
                "there is no setting {name:?}{hint}; /set alone lists them"
            ));
        }
        if value == "default" {
            self.0.remove(&name);
            return Ok(());
        }
        if value.is_empty() {
            return Err(format!("/set {name} needs a value, or `default`"));
        }
        let mut changed = self.clone();
        changed.0.insert(name, value.to_owned());
        changed.sampling()?;
        *self = changed;
        Ok(())
    }

    /// The changes to the model's own sampling, and the most tokens of an answer.
    ///
    /// # Errors
    /// A value that is none, named.
    pub fn sampling(&self) -> Result<(SamplingChanges, Option<usize>), String> {
        let changes = SamplingChanges {
            temperature: self.get("temperature")?,
            top_p: self.get("top_p")?,
            top_k: self.get("top_k")?,
            min_p: self.get("min_p")?,
            typical_p: self.get("typical_p")?,
            repetition_penalty: self.get("repetition_penalty")?,
            presence_penalty: self.get("presence_penalty")?,
            frequency_penalty: self.get("frequency_penalty")?,
            seed: self.get("seed")?,
            ..SamplingChanges::default()
        };
        let most = self.get("max_tokens")?;
        if most == Some(0) {
            return Err("max_tokens is 0, at least 1 is needed".into());
        }
        let request = Request {
            sampling: changes.apply(SamplingParams::default()),
            ..Request::default()
        };
        request.validate().map_err(|error| error.to_string())?;
        Ok((changes, most))
    }

    fn get<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let read = |text: &String| {
            let wrong = |_| format!("{name} is {text:?}, expected a number");
            text.parse().map_err(wrong)
        };
        self.0.get(name).map(read).transpose()
    }

    /// Names and values.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}
