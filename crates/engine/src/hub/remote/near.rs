//! Names on the hub that are like one that it does not know.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{
    super::Error,
    client::{CHECK, Hub},
    spec::Spec,
};

/// So many names are shown.
const MOST: usize = 3;

#[derive(Deserialize)]
struct Named {
    #[serde(alias = "id")]
    name: String,
}

impl Hub {
    /// The error that a name is not known, with those that may have been meant. Where the hub says no
    /// more, the error stays as it is.
    pub(super) fn with_names_alike(&self, error: Error) -> Error {
        match error {
            Error::NotFound { spec, .. } => {
                let names = self.models_alike();
                let hint = match names.split_last() {
                    None => CHECK.to_owned(),
                    Some((only, [])) => format!("did you mean {only}? Or {CHECK}"),
                    Some((last, others)) => {
                        format!("did you mean {} or {last}? Or {CHECK}", others.join(", "))
                    }
                };
                Error::NotFound { spec, hint }
            }
            Error::NoRevision { id, revision, .. } => Error::NoRevision {
                known: self.revisions_alike(&revision),
                id,
                revision,
            },
            other => other,
        }
    }

    fn models_alike(&self) -> Vec<String> {
        let (org, name) = self.id.split_once('/').unwrap_or(("", &self.id));
        // The organisation's own, and those of others with this name.
        let mut found = BTreeSet::new();
        for query in [
            format!("?author={org}&limit=200"),
            format!("?search={name}&limit=20"),
        ] {
            let answer: Result<Vec<Vec<Named>>, _> = self.ask_of_all(&query, None, 1);
            let models = answer.unwrap_or_default().into_iter().flatten();
            found.extend(models.map(|model| model.name));
        }
        // What is no name could write anything on the terminal.
        found.retain(|name| Spec::parse(name).is_some_and(|spec| spec.id == name));
        alike(&self.id, found)
    }

    fn revisions_alike(&self, revision: &str) -> Vec<String> {
        #[derive(Deserialize)]
        struct Refs {
            #[serde(default)]
            branches: Vec<Named>,
            #[serde(default)]
            tags: Vec<Named>,
        }
        let answer: Result<Vec<Refs>, _> = self.ask_of_all(&format!("/{}/refs", self.id), None, 1);
        let refs = answer.unwrap_or_default().into_iter();
        let mut names: Vec<String> = refs
            .flat_map(|refs| refs.branches.into_iter().chain(refs.tags))
            .map(|named| named.name)
            .filter(|name| Spec::parse(&format!("a/b@{name}")).is_some())
            .collect();
        names.sort_by_cached_key(|name| distance(name, revision));
        names.truncate(MOST);
        names
    }
}

/// The names of which at least half of the letters are as in `wanted`, the most alike first.
fn alike(wanted: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut near: Vec<(usize, String)> = names
        .into_iter()
        .map(|name| (distance(&name, wanted), name))
        .filter(|(far, name)| *far <= name.len().max(wanted.len()) / 2)
        .collect();
    near.sort();
    near.into_iter().take(MOST).map(|(_, name)| name).collect()
}

/// Letters to put in, leave out or replace, without regard to their case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let (mut left, mut next) = (i + 1, vec![i + 1]);
        for ((y, above), corner) in b.chars().zip(row.iter().skip(1)).zip(&row) {
            left = (corner + usize::from(x != y)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_changes() {
        for (a, b, far) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("Llama-3.2", "llama-3.1", 1),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), far, "{a} {b}");
        }
    }

    #[test]
    fn the_most_alike_come_first_and_strangers_not_at_all() {
        let names = [
            "a/quite-another-one",
            "a/smol-3",
            "b/smol-2",
            "a/smol-22",
            "a/smol-24",
        ];
        let near = alike("a/smol-2", names.map(str::to_owned));
        assert_eq!(near, ["a/smol-22", "a/smol-24", "a/smol-3"]);
    }
}
