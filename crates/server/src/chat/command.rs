//! What a line means.

use std::path::PathBuf;

use crate::near;

/// A line that is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Clear,
    /// The system message: another, or what it is.
    System(Option<String>),
    /// A setting and its value.
    Set(String, String),
    Show,
    Save(PathBuf),
    Load(PathBuf),
    Regenerate,
    Exit,
}

/// What is said for `/help`.
pub const HELP: &str = "\
/system TEXT      set the system message (nothing shows it, \"\" removes it)
/set NAME VALUE   change a setting, `default` for the model's own; /set alone lists them
/show             the model, the settings and the conversation's length
/regen            answer the last message again
/clear            begin anew, with the same system message and settings
/save FILE        write the conversation to a file
/load FILE        go on with one
/exit             leave; so does Ctrl-D
\"\"\"               begins and ends a message of many lines
Ctrl-C            stops an answer; what came of it stays";

const NAMES: [&str; 11] = [
    "/help", "/clear", "/system", "/set", "/show", "/save", "/load", "/regen", "/exit", "/quit",
    "/bye",
];

/// A command, where the line begins with `/` and a letter; else it is a message. Two slashes begin a
/// message with one.
pub fn command(line: &str) -> Option<Result<Command, String>> {
    let line = line.trim();
    let name = line.split_whitespace().next()?;
    if !name.starts_with('/') || !name.chars().nth(1).is_some_and(char::is_alphabetic) {
        return None;
    }
    // A path is no command.
    if name.chars().skip(1).any(|c| c == '/') {
        return None;
    }
    let rest = line.strip_prefix(name).unwrap_or_default().trim();
    Some(read(name, rest))
}

fn read(name: &str, rest: &str) -> Result<Command, String> {
    let file = || match rest {
        "" => Err(format!("{name} needs a file's name")),
        path => Ok(PathBuf::from(path)),
    };
    let alone = |command| match rest {
        "" => Ok(command),
        _ => Err(format!("{name} takes nothing after it")),
    };
    match name {
        "/help" => alone(Command::Help),
        "/clear" => alone(Command::Clear),
        "/show" => alone(Command::Show),
        "/regen" => alone(Command::Regenerate),
        "/exit" | "/quit" | "/bye" => alone(Command::Exit),
        "/save" => file().map(Command::Save),
        "/load" => file().map(Command::Load),
        "/system" => Ok(Command::System(match rest {
            "" => None,
            "\"\"" => Some(String::new()),
            text => Some(text.to_owned()),
        })),
        "/set" => match rest.split_once(char::is_whitespace) {
            Some((key, value)) => Ok(Command::Set(key.into(), value.trim().into())),
            None => Ok(Command::Set(rest.into(), String::new())),
        },
        other => Err(format!(
            "there is no {other}{}; /help lists what there is",
            near::hint(other, NAMES)
        )),
    }
}
