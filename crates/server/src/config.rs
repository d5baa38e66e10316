//! The configuration file: TOML whose keys are the names of long options.
//!
//! Keys at the top are for every command that has such an option, those of a table `[serve]` for that
//! command. A value stands for the option's default, so that flags and environment variables count
//! before it.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{Arg, ArgMatches, Command, error::ContextKind, parser::ValueSource};
use toml::{Table, Value};

use crate::near;

/// Options that say what is asked for this once; they are no configuration.
const NOT_HERE: [&str; 18] = [
    "help",
    "version",
    "verbose",
    "json",
    "yes",
    "force",
    "output",
    "raw",
    "plot",
    "ids",
    "tools",
    "json-schema",
    "json-object",
    "regex",
    "lark",
    "choice",
    "dir",
    "prompt",
];

/// No configuration is longer.
const LONGEST: u64 = 1 << 20;

/// What a file says.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The file; none where there is none.
    pub path: Option<PathBuf>,
    table: Table,
}

/// The file to read: `BIPLANE_CONFIG`, which must be there, else `biplane/config.toml` in the user's
/// folder of configuration. An empty `BIPLANE_CONFIG` means none.
fn place() -> (Option<PathBuf>, bool) {
    if let Some(path) = std::env::var_os("BIPLANE_CONFIG") {
        return (
            Some(path.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty()),
            true,
        );
    }
    let folder = |key| {
        std::env::var_os(key)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    (
        config.map(|folder| folder.join("biplane/config.toml")),
        false,
    )
}

impl Config {
    /// Reads the file, if there is one.
    pub fn find() -> anyhow::Result<Self> {
        let (Some(path), named) = place() else {
            return Ok(Self::default());
        };
        let at = || path.display().to_string();
        let size = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
                return Ok(Self::default());
            }
            Err(error) if named => {
                return Err(error).with_context(|| format!("BIPLANE_CONFIG: {}", at()));
            }
            Err(error) => return Err(error).with_context(at),
        };
        if size > LONGEST {
            bail!(
                "{}: {size} bytes, a configuration has at most {LONGEST}",
                at()
            );
        }
        let text = std::fs::read_to_string(&path).with_context(at)?;
        let table = toml::from_str(&text).map_err(|error| anyhow!("{}: {error}", at()))?;
        let path = Some(path);
        Ok(Self { path, table })
    }

    /// Refuses keys that no command has.
    pub fn check(&self, program: &Command) -> anyhow::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let commands: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
        let mut all = Vec::new();
        options(program, &mut all);
        for (key, value) in &self.table {
            let Value::Table(table) = value else {
                known(path, "", key, &all, &commands)?;
                text(path, key, value)?;
                continue;
            };
            let Some(command) = program.find_subcommand(key) else {
                let hint = near::hint(key, commands.iter().copied());
                bail!("{}: there is no command {key:?}{hint}", path.display());
            };
            let mut own = Vec::new();
            options(command, &mut own);
            for (name, value) in table {
                known(path, &format!(" of {key}"), name, &own, &[])?;
                text(path, &format!("{key}.{name}"), value)?;
            }
        }
        Ok(())
    }

    /// Parses a command line on top of what the file says.
    pub fn parse(
        &self,
        program: Command,
        line: &[std::ffi::OsString],
    ) -> Result<ArgMatches, Failure> {
        let Some(path) = &self.path else {
            return Ok(program.try_get_matches_from(line)?);
        };
        // What is given counts, and what excludes it in the file does not.
        let given = program
            .clone()
            .ignore_errors(true)
            .try_get_matches_from(line);
        let given = given.ok();
        let mut applied = Vec::new();
        let verb = given.as_ref().and_then(|given| given.subcommand());
        let mut program = program;
        if let Some(format) = self.table.get("log-format") {
            let values = text(path, "log-format", format)?;
            program = program.mut_arg("log_format", |arg| arg.default_values(values));
        }
        if let Some((name, matches)) = verb {
            let own = self.table.get(name).and_then(Value::as_table);
            let name = name.to_owned();
            let matches = matches.clone();
            let mut failed = None;
            program = program.mut_subcommand(name, |command| {
                match self.defaults(command.clone(), own, &matches, &mut applied) {
                    Ok(command) => command,
                    Err(error) => {
                        failed = Some(error);
                        command
                    }
                }
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        program.try_get_matches_from(line).map_err(|error| {
            let wrong = error.get(ContextKind::InvalidArg).map(ToString::to_string);
            let of_file = wrong.is_some_and(|wrong| {
                let name = wrong.split([' ', '=']).next().unwrap_or_default();
                applied.iter().any(|key| name == format!("--{key}"))
            });
            match of_file {
                true => anyhow!("{}: {}", path.display(), first_lines(&error)).into(),
                false => error.into(),
            }
        })
    }

    fn defaults(
        &self,
        mut command: Command,
        own: Option<&Table>,
        given: &ArgMatches,
        applied: &mut Vec<String>,
    ) -> anyhow::Result<Command> {
        let path = self.path.as_deref().unwrap_or("configuration".as_ref());
        let is_given = |id: &str| {
            let source = given
                .try_contains_id(id)
                .ok()
                .and_then(|_| given.value_source(id));
            matches!(
                source,
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            )
        };
        let mut built = command.clone();
        built.build();
        let found: Vec<(String, String)> = command
            .get_arguments()
            .filter(|arg| !arg.is_global_set())
            .filter_map(|arg| Some((arg.get_id().to_string(), configurable(arg)?.to_owned())))
            .collect();
        for (id, key) in found {
            let at = own
                .and_then(|own| own.get(&key))
                .or_else(|| self.table.get(&key));
            let Some(value) = at.filter(|value| !value.is_table()) else {
                continue;
            };
            let excluded = built
                .get_arguments()
                .find(|arg| arg.get_id() == id.as_str());
            let excluded = excluded.is_some_and(|arg| {
                let others = built.get_arguments();
                let others = others.filter(|other| is_given(other.get_id().as_str()));
                let excludes = |a: &Arg, b: &Arg| {
                    let conflicts = built.get_arg_conflicts_with(a);
                    conflicts.iter().any(|c| c.get_id() == b.get_id())
                };
                others
                    .into_iter()
                    .any(|o| excludes(arg, o) || excludes(o, arg))
            });
            if is_given(&id) || excluded {
                continue;
            }
            let values = text(path, &key, value)?;
            command = command.mut_arg(id, |arg| {
                let takes_values = arg.get_action().takes_values();
                let arg = arg.default_values(values);
                match takes_values {
                    true => arg.hide_default_value(true),
                    false => arg,
                }
            });
            applied.push(key);
        }
        let nested = given
            .subcommand()
            .map(|(name, given)| (name.to_owned(), given));
        if let Some((name, given)) = nested
            && let Some(inner) = command.find_subcommand(&name).cloned()
        {
            let inner = self.defaults(inner, own, given, applied)?;
            command = command.mut_subcommand(name, |_| inner);
        }
        Ok(command)
    }
}

/// Why a command line cannot be used.
pub enum Failure {
    /// Itself, or a request for help.
    Line(clap::Error),
    /// The file.
    File(anyhow::Error),
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        Self::Line(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::File(error)
    }
}

/// An option's name, if it may be in the file.
fn configurable(arg: &Arg) -> Option<&str> {
    arg.get_long().filter(|name| !NOT_HERE.contains(name))
}

fn options<'c>(command: &'c Command, names: &mut Vec<&'c str>) {
    names.extend(command.get_arguments().filter_map(configurable));
    command
        .get_subcommands()
        .for_each(|inner| options(inner, names));
}

fn known(
    path: &Path,
    of: &str,
    key: &str,
    names: &[&str],
    commands: &[&str],
) -> anyhow::Result<()> {
    if names.contains(&key) {
        return Ok(());
    }
    let all = names.iter().chain(commands).copied();
    // Underscores are the likeliest slip.
    let hint = near::hint(&key.replace('_', "-"), all);
    bail!(
        "{}: there is no option {key:?}{of} for a configuration{hint}",
        path.display()
    )
}

/// A value as it would be written on the command line.
fn text(path: &Path, key: &str, value: &Value) -> anyhow::Result<Vec<String>> {
    Ok(match value {
        Value::String(text) => vec![text.clone()],
        Value::Integer(number) => vec![number.to_string()],
        Value::Float(number) => vec![number.to_string()],
        Value::Boolean(flag) => vec![flag.to_string()],
        Value::Array(items) if !items.iter().any(|i| i.is_array() || i.is_table()) => {
            let items = items.iter().map(|item| text(path, key, item));
            items.collect::<anyhow::Result<Vec<_>>>()?.concat()
        }
        other => bail!(
            "{}: {key} is {}, expected a text, a number, true or false, or an array of those",
            path.display(),
            match other.type_str() {
                "array" => "an array of arrays or tables",
                "datetime" => "a date",
                _ => "a table",
            }
        ),
    })
}

/// clap's words without the hint to `--help`.
fn first_lines(error: &clap::Error) -> String {
    let words = error.to_string();
    let words = words.strip_prefix("error: ").unwrap_or(&words);
    words
        .split("\n\n")
        .next()
        .unwrap_or(words)
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests;
