use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize, Serializer};

use super::Dry;

/// A bias from here down bans a token, as OpenAI's API says of its smallest.
pub(super) const BAN: f32 = -100.0;

/// Most tokens that may have a bias.
const MAX_BIASES: usize = 1024;

/// How to choose tokens.
///
/// Applied in this order, each on what the one before left: repetition penalty, frequency and presence
/// penalties, DRY, logit bias, the grammar's mask, temperature, top-k, typical, top-p, min-p. That is
/// llama.cpp's order but for the temperature, which comes before the filters as in transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Logits are divided by this; 0 takes the most likely token always.
    pub temperature: f32,
    /// Only the `k` most likely tokens; 0 for all. Among equals the lower ids.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1 for all
    /// (Holtzman et al. 2020).
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0 for all
    /// (Nguyen et al. 2024).
    pub min_p: f32,
    /// Only the tokens whose information is nearest to the distribution's entropy and that together
    /// have this probability; 1 for all (Meister et al. 2022).
    pub typical_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens that the prompt or the output
    /// has; 1 for none (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// How many of the last tokens the repetition penalty looks at; `None` for all.
    pub repetition_window: Option<usize>,
    /// Taken from the logits of tokens that the output has, -2 to 2 (OpenAI).
    pub presence_penalty: f32,
    /// Taken from a token's logit once for each time the output has it, -2 to 2 (OpenAI).
    pub frequency_penalty: f32,
    /// Penalizes going on with a repeated sequence.
    pub dry: Option<Dry>,
    /// Added to the logits of tokens; -100 and less, minus infinity too, bans a token. Ids outside the
    /// vocabulary mean nothing.
    #[serde(serialize_with = "finite_biases")]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers; `None` for one from the system. A seed and the same logits give the
    /// same tokens on every backend and platform.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            repetition_window: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Whether the most likely token is always taken, after penalties and biases; no random number is
    /// drawn then.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether the largest of the model's own logits is always taken, so that the device may look for it.
    pub fn is_plain_greedy(&self) -> bool {
        self.is_greedy()
            && !self.penalizes_repetition()
            && !self.penalizes_output()
            && self.dry.as_ref().is_none_or(|dry| dry.multiplier == 0.0)
            && self.logit_bias.is_empty()
    }

    pub(super) fn penalizes_repetition(&self) -> bool {
        self.repetition_penalty != 1.0 && self.repetition_window != Some(0)
    }

    pub(super) fn penalizes_output(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Refuses what is no probability, no temperature and no penalty.
    ///
    /// # Errors
    /// The parameter's name, its value and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        within("temperature", self.temperature, 0.0..=100.0)?;
        within("top_p", self.top_p, 0.0..=1.0)?;
        within("min_p", self.min_p, 0.0..=1.0)?;
        within("typical_p", self.typical_p, 0.0..=1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01..=100.0)?;
        within("presence_penalty", self.presence_penalty, -2.0..=2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?;
        if let Some(dry) = &self.dry {
            dry.validate()?;
        }
        if self.logit_bias.len() > MAX_BIASES {
            return Err(format!(
                "logit_bias names {} tokens, expected at most {MAX_BIASES}",
                self.logit_bias.len()
            ));
        }
        match self.logit_bias.iter().find(|(_, bias)| !is_bias(*bias)) {
            Some((id, bias)) => Err(format!(
                "logit_bias of token {id} is {bias}, expected a number, or minus infinity for never"
            )),
            None => Ok(()),
        }
    }
}

fn is_bias(bias: f32) -> bool {
    bias.is_finite() || bias == f32::NEG_INFINITY
}

pub(super) fn within(name: &str, value: f32, range: RangeInclusive<f32>) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{name} is {value}, expected {} to {}",
        range.start(),
        range.end()
    ))
}

/// JSON has no infinity; every ban is the same.
fn finite_biases<S: Serializer>(biases: &[(u32, f32)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(biases.iter().map(|&(id, bias)| (id, bias.max(BAN))))
}
