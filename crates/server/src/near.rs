//! "Did you mean": names that are near to one that is not there.

use biplane::hub;

/// How alike two names must be, of 1.
const ALIKE: f64 = 0.72;

/// At most three of `names` that look like `name`, the most alike first.
pub fn near<'n>(name: &str, names: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
    let wanted = name.to_lowercase();
    let score = |other: &str| {
        let other = other.to_lowercase();
        // The end of a name counts alone as well: people leave out the organisation.
        let end = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
        let ends = strsim::jaro_winkler(&end(&wanted), &end(&other));
        strsim::jaro_winkler(&wanted, &other).max(ends)
    };
    let mut scored: Vec<(f64, &str)> = names
        .into_iter()
        .map(|other| (score(other), other))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// `; did you mean a or b?`, or nothing.
pub fn hint<'n>(name: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    match near(name, names).as_slice() {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(" or ")),
    }
}

/// The same for models: those of the hub's cache, and GGUF files beside the one that is named.
pub fn model_hint(name: &str) -> String {
    let mut names: Vec<String> = hub::stored(&hub::Options::default())
        .into_iter()
        .map(|model| model.name)
        .collect();
    let folder = std::path::Path::new(name).parent();
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    let beside = std::fs::read_dir(folder.unwrap_or(".".as_ref()));
    // A folder may be large; what is wrong must be said soon.
    for entry in beside.into_iter().flatten().flatten().take(1000) {
        let file = entry.file_name();
        let path = folder.map_or_else(|| file.clone().into(), |folder| folder.join(&file));
        let is_model = path.extension().is_some_and(|e| e == "gguf") || path.is_dir();
        if let (true, Some(path)) = (is_model, path.to_str()) {
            names.push(path.to_owned());
        }
    }
    hint(name, names.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let names = ["Qwen/Qwen3-0.6B-GGUF", "google/gemma-3-270m", "temperature"];
        assert_eq!(near("temprature", names), ["temperature"]);
        assert_eq!(near("qwen3-0.6b", names), ["Qwen/Qwen3-0.6B-GGUF"]);
        assert_eq!(near("google/gema-3-270m", names), ["google/gemma-3-270m"]);
        assert!(near("xyz", names).is_empty());
        assert_eq!(hint("temprature", names), "; did you mean temperature?");
        assert_eq!(hint("xyz", names), "");
    }
}
