//! Configurations for the other format.

use std::collections::HashMap;

use biplane_backend::{AffineSpec, GgmlKind, RopeScaling, rope_inv_freqs};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::plan::Plan;
use crate::{
    IsqType, Result,
    checkpoint::write::MetadataValue,
    gguf_config::{FLOATS, INTEGERS},
    rope_config::RopeConfig,
    source::Source,
};

/// RoPE of the layers that see everything.
fn rope(config: &Value) -> Result<RopeConfig, String> {
    let rope = RopeConfig::deserialize(config).map_err(|e| e.to_string())?;
    Ok(rope.of_layers("full_attention").unwrap_or(rope))
}

fn head_dim(config: &Value) -> Option<u64> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64);
    size("head_dim").or_else(|| size("hidden_size")?.checked_div(size("num_attention_heads")?))
}

/// A configuration as the keys of a GGUF header.
pub(super) fn to_gguf(arch: &str, config: &Value) -> Result<Vec<(String, MetadataValue)>, String> {
    let mut pairs = Vec::new();
    let mut push = |key: &str, value| pairs.push((format!("{arch}.{key}"), value));
    let integer = |n: u64, key: &str| {
        u32::try_from(n)
            .map(MetadataValue::U32)
            .map_err(|_| format!("{key} is {n}"))
    };
    for (hf, gguf) in INTEGERS {
        if let Some(n) = config.get(hf).and_then(Value::as_u64)
            && hf != "head_dim"
        {
            push(gguf, integer(n, hf)?);
        }
    }
    if let Some(window) = config.pointer("/variant/window/0").and_then(Value::as_u64) {
        push(
            "attention.sliding_window",
            integer(window, "sliding_window")?,
        );
    }
    for (hf, gguf) in FLOATS {
        if let Some(x) = config.get(hf).and_then(Value::as_f64)
            && hf != "rope_theta"
        {
            push(gguf, MetadataValue::F32(x as f32));
        }
    }
    let rope = rope(config)?;
    push(
        "rope.freq_base",
        MetadataValue::F32(rope.theta().unwrap_or(1e4)),
    );
    if let Some(head_dim) = head_dim(config) {
        let part = config.get("partial_rotary_factor").and_then(Value::as_f64);
        let part = rope.partial().map(f64::from).or(part).unwrap_or(1.0);
        push("attention.key_length", integer(head_dim, "head_dim")?);
        push("attention.value_length", integer(head_dim, "head_dim")?);
        let rotary = (head_dim as f64 * part) as u64;
        push("rope.dimension_count", integer(rotary, "head_dim")?);
    }
    if let RopeScaling::Linear { factor } = rope.scaling()? {
        push("rope.scaling.type", MetadataValue::String("linear".into()));
        push("rope.scaling.factor", MetadataValue::F32(factor));
    }
    if let Some(parallel) = config.get("use_parallel_residual").and_then(Value::as_bool) {
        push("use_parallel_residual", MetadataValue::Bool(parallel));
    }
    pairs.push(("general.quantization_version".into(), MetadataValue::U32(2)));
    Ok(pairs)
}

/// The divisors that GGUF keeps of Llama 3's scaling; empty for another one.
pub(super) fn rope_freqs(config: &Value) -> Result<Vec<f32>, String> {
    let rope = rope(config)?;
    let scaling = rope.scaling()?;
    if !matches!(scaling, RopeScaling::Llama3 { .. }) {
        return Ok(Vec::new());
    }
    let dim = head_dim(config).unwrap_or(0) as usize;
    divisors(dim, rope.theta().unwrap_or(1e4), &scaling)
}

fn divisors(dim: usize, theta: f32, scaling: &RopeScaling) -> Result<Vec<f32>, String> {
    let freqs = |s: &RopeScaling| rope_inv_freqs(dim, theta, s).map_err(|e| e.to_string());
    let (plain, scaled) = (freqs(&RopeScaling::None)?, freqs(scaling)?);
    Ok(plain.iter().zip(&scaled).map(|(p, s)| p / s).collect())
}

/// What a GGUF header does not say of a `config.json`: Llama 3's scaling, which is only there as its
/// outcome.
pub(super) fn complete_for_hf(json: &mut Value, source: &Source<'_>) -> Result<()> {
    let Some((_, wanted)) = source.f32s("rope_freqs.weight")? else {
        return Ok(());
    };
    let error = |e: String| source.config_error(e);
    let theta = rope(json).map_err(error)?.theta().unwrap_or(1e4);
    let dim = head_dim(json).unwrap_or(0) as usize;
    let largest = wanted.iter().copied().fold(1.0, f32::max);
    for original_context in [8192.0, 4096.0, 2048.0, 1024.0, 512.0, 256.0, 128.0] {
        let factor = largest.round();
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context,
        };
        let got = divisors(dim, theta, &scaling).map_err(error)?;
        let near = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-3;
        if got.len() == wanted.len() && got.iter().zip(&wanted).all(near) {
            if let Some(object) = json.as_object_mut() {
                object.insert(
                    "rope_scaling".into(),
                    json!({
                        "rope_type": "llama3", "factor": factor,
                        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": original_context as u32,
                    }),
                );
            }
            return Ok(());
        }
    }
    Err(source.config_error(
        "rope_freqs.weight is no scaling that config.json has a name for; keep the GGUF format",
    ))
}

/// llama.cpp's number of a file that is mostly of a type.
pub(super) fn file_type(isq: IsqType) -> Option<u32> {
    Some(match isq.ggml()? {
        GgmlKind::Q4_0 => 2,
        GgmlKind::Q4_1 => 3,
        GgmlKind::Q8_0 => 7,
        GgmlKind::Q5_0 => 8,
        GgmlKind::Q5_1 => 9,
        GgmlKind::Q2K => 10,
        GgmlKind::Q3K => 12,
        GgmlKind::Q4K => 15,
        GgmlKind::Q5K => 17,
        GgmlKind::Q6K => 18,
    })
}

/// Writes the `quantization` entry: the commonest form, and the layers that differ from it.
pub(super) fn set_quantization(json: &mut Value, plan: &Plan) {
    let matrices: Vec<(&str, Option<AffineSpec>)> = plan
        .items
        .iter()
        .filter_map(|item| Some((item.name.as_str(), item.affine()?)))
        .collect();
    let mut counts: HashMap<AffineSpec, usize> = HashMap::new();
    for spec in matrices.iter().filter_map(|(_, spec)| *spec) {
        *counts.entry(spec).or_default() += 1;
    }
    let Some(object) = json.as_object_mut() else {
        return;
    };
    object.remove("quantization");
    object.remove("quantization_config");
    let default = counts
        .into_iter()
        .max_by_key(|(spec, count)| (*count, spec.bits, spec.group_size));
    let Some((default, _)) = default else { return };
    let entry = |spec: AffineSpec| {
        let mut entry = Map::new();
        entry.insert("group_size".into(), spec.group_size.into());
        entry.insert("bits".into(), spec.bits.into());
        entry.insert("mode".into(), "affine".into());
        entry
    };
    let mut quantization = entry(default);
    for (name, spec) in matrices
        .into_iter()
        .filter(|(_, spec)| *spec != Some(default))
    {
        let own = spec.map_or(Value::Bool(false), |spec| entry(spec).into());
        quantization.insert(name.to_owned(), own);
    }
    // mlx-lm writes both.
    object.insert("quantization".into(), quantization.clone().into());
    object.insert("quantization_config".into(), quantization.into());
}

/// Base and scaling of sliding layers, where they have their own.
fn sliding_rope(config: &Value) -> Option<(f32, RopeScaling)> {
    let base = config.get("rope_local_base_freq")?.as_f64()? as f32;
    let local = RopeConfig::deserialize(config).ok()?;
    Some(match local.of_layers("sliding_attention") {
        Some(local) => (
            local.theta().unwrap_or(base),
            local.scaling().unwrap_or_default(),
        ),
        None => (base, RopeScaling::None),
    })
}

/// The first key whose value is another one, RoPE compared by what it comes to.
pub(super) fn difference(expected: &Value, got: &Value) -> Option<String> {
    const ROPE: [&str; 4] = [
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
    ];
    let (Some(a), Some(b)) = (expected.as_object(), got.as_object()) else {
        return Some("it is no JSON object".into());
    };
    let said = |key: &str, value: &Value, other: &Value| {
        format!("{key} is {value}, but would be read as {other}")
    };
    for (key, value) in a.iter().filter(|(key, _)| !ROPE.contains(&key.as_str())) {
        let other = b.get(key).unwrap_or(&Value::Null);
        if let (Value::Object(own), Value::Object(others)) = (value, other) {
            let differs = |(key, value): (&String, &Value)| {
                let other = others.get(key).unwrap_or(&Value::Null);
                (value != other).then(|| said(key, value, other))
            };
            if let Some(what) = own.iter().find_map(differs) {
                return Some(what);
            }
            continue;
        }
        let derived = value.is_null() || other.is_null();
        if !derived && value != other {
            return Some(said(key, value, other));
        }
    }
    let (local, other) = (sliding_rope(expected), sliding_rope(got));
    if local != other {
        return Some(format!(
            "the RoPE of sliding layers is {local:?}, but would be read as {other:?}"
        ));
    }
    let both = (rope(expected), rope(got));
    let (Ok(a), Ok(b)) = both else {
        return Some("its RoPE".into());
    };
    let scaling = |r: &RopeConfig| r.scaling().unwrap_or_default();
    let same_scaling = scaling(&a) == scaling(&b)
        // GGUF keeps only what comes of it, in a tensor.
        || matches!(scaling(&a), RopeScaling::Llama3 { .. }) && scaling(&b) == RopeScaling::None
        || matches!(scaling(&b), RopeScaling::Llama3 { .. }) && scaling(&a) == RopeScaling::None;
    if a.theta().unwrap_or(1e4) != b.theta().unwrap_or(1e4) || !same_scaling {
        return Some(format!("its RoPE is {a:?}, but would be read as {b:?}"));
    }
    None
}
