//! The JSON Schema Test Suite, where `BIPLANE_JSON_SCHEMA_SUITE` names a folder of its files: what a
//! constraint takes is valid, and what is supported takes most of what is valid.

use std::path::{Path, PathBuf};

use super::*;

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, out),
            false if path.extension().is_some_and(|e| e == "json") => out.push(path),
            false => {}
        }
    }
}

#[test]
fn the_suites_instances_are_judged_alike() {
    let Some(dir) = std::env::var_os("BIPLANE_JSON_SCHEMA_SUITE") else {
        println!("skipped: BIPLANE_JSON_SCHEMA_SUITE names no folder");
        return;
    };
    let bench = Bench::small();
    let mut paths = Vec::new();
    files(Path::new(&dir), &mut paths);
    paths.sort();
    let (mut schemas, mut refused, mut right, mut strict, mut wrong) = (0, 0, 0, 0, Vec::new());
    for path in paths {
        let groups: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for group in groups.as_array().unwrap() {
            schemas += 1;
            let constraint = Constraint::JsonSchema(group["schema"].clone());
            let state = match bench.engine.state(&constraint) {
                Ok(state) => state,
                Err(Error::Invalid { reason, .. }) => {
                    println!("refused {}: {reason}", group["description"]);
                    refused += 1;
                    continue;
                }
                Err(other) => panic!("{other}"),
            };
            drop(state);
            for test in group["tests"].as_array().unwrap() {
                let takes = bench.takes(&constraint, &test["data"].to_string());
                match (takes, test["valid"] == true) {
                    (true, false) => {
                        wrong.push(format!("{path:?} {} {}", group["schema"], test["data"]))
                    }
                    (false, true) => {
                        println!("strict {} {}", group["schema"], test["data"]);
                        strict += 1;
                    }
                    _ => right += 1,
                }
            }
        }
    }
    println!(
        "{schemas} schemas, {refused} refused; {right} judged alike, {strict} valid ones not taken"
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}
