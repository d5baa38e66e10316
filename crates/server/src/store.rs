//! `biplane pull`, `biplane list` and `biplane rm`

use std::{
    fmt::Write as _,
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use biplane::hub::{self, Options};
use clap::Args;
use serde::Serialize;

use crate::{
    model_args::STARTER,
    report::{self, Progress},
};

/// Arguments of `biplane pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A Hugging Face id (`org/name`, `org/name:Q4_K_M`, `org/name@revision`), or a path, which is here
    /// already; without it the small starter model.
    #[arg(default_value = STARTER, hide_default_value = true)]
    pub model: String,

    /// A JSON object instead of the path.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `biplane list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// GGUF files and model directories of this folder, too; may be given several times.
    #[arg(long, value_name = "DIR", env = "BIPLANE_MODELS_DIR")]
    pub models_dir: Vec<PathBuf>,

    /// A JSON array instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `biplane rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Models as `biplane list` names them; `org/name` is all that the cache has of it.
    #[arg(required = true)]
    pub models: Vec<String>,

    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}

/// A model on this machine.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    format: &'static str,
    bytes: u64,
    /// Seconds since 1970.
    modified: Option<u64>,
    complete: bool,
    path: PathBuf,
}

/// Downloads a model.
pub fn pull(args: PullArgs) -> anyhow::Result<()> {
    let progress = Progress::new(false);
    let show = progress.shower();
    let mut told = |p: hub::Progress<'_>| {
        show(biplane::Progress {
            task: p.file,
            done: p.done,
            total: p.total,
        });
    };
    let here = Path::new(&args.model).exists();
    let found = match args.model.as_str() {
        STARTER if !here => hub::starter(&mut told),
        model => hub::resolve(model, &Options::default(), &mut told),
    };
    let path = found.map_err(biplane::Error::from)?;
    progress.clear();
    if here {
        report::note("a path: there is nothing to download");
    }
    report::data(&match args.json {
        true => {
            let bytes = size(&path);
            let pulled = serde_json::json!({"name": args.model, "path": path, "bytes": bytes});
            format!("{pulled:#}\n")
        }
        false => format!("{}\n", path.display()),
    })
}

/// Lists the models.
pub fn list(args: ListArgs) -> anyhow::Result<()> {
    let models = all(&args.models_dir)?;
    report::data(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&models)?),
        false => table(&models)?,
    })?;
    if models.is_empty() && !args.json {
        report::note("no models yet; `biplane pull` brings a small one");
    }
    Ok(())
}

fn all(folders: &[PathBuf]) -> anyhow::Result<Vec<Listed>> {
    let options = Options::default();
    let mut models = Vec::new();
    let starter = hub::starter_file().filter(|path| !path.starts_with(options.hub_cache()));
    models.extend(starter.map(|path| local(STARTER.into(), path, "gguf")));
    models.extend(hub::stored(&options).into_iter().map(|model| Listed {
        modified: model.modified.and_then(seconds),
        name: model.name,
        format: model.format,
        bytes: model.bytes,
        complete: model.complete,
        path: model.path,
    }));
    for folder in folders {
        let entries = fs::read_dir(folder);
        let entries = entries.with_context(|| format!("--models-dir {}", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.display().to_string();
            if path.is_file() && path.extension().is_some_and(|e| e == "gguf") {
                models.push(local(name, path, "gguf"));
            } else if path.join("config.json").is_file() {
                models.push(local(name, path, "safetensors"));
            }
        }
    }
    Ok(models)
}

fn local(name: String, path: PathBuf, format: &'static str) -> Listed {
    let modified = fs::metadata(&path).and_then(|meta| meta.modified());
    Listed {
        name,
        format,
        bytes: size(&path),
        modified: modified.ok().and_then(seconds),
        complete: true,
        path,
    }
}

fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

/// Bytes of a file, or of the files in a folder.
fn size(path: &Path) -> u64 {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            let files = entries.filter_map(|entry| fs::metadata(entry.path()).ok());
            files
                .filter(|meta| meta.is_file())
                .map(|meta| meta.len())
                .sum()
        }
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}

fn table(models: &[Listed]) -> anyhow::Result<String> {
    let names = models.iter().map(|model| model.name.chars().count());
    let width = names.max().unwrap_or(0).max("NAME".len());
    let mut out = String::new();
    writeln!(
        out,
        "{:width$}  {:>10}  {:11}  WRITTEN",
        "NAME", "SIZE", "FORMAT"
    )?;
    let now = seconds(SystemTime::now()).unwrap_or(0);
    for model in models {
        let age = model
            .modified
            .map_or_else(String::new, |then| age(now.saturating_sub(then)));
        let broken = if model.complete { "" } else { "  (incomplete)" };
        writeln!(
            out,
            "{:width$}  {:>10}  {:11}  {age}{broken}",
            model.name,
            report::bytes(model.bytes),
            model.format,
        )?;
    }
    Ok(out)
}

fn age(seconds: u64) -> String {
    let (n, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

/// What is to be removed.
enum Doomed {
    Cached(hub::Removal),
    File(PathBuf),
}

/// Removes models from the cache.
pub fn rm(args: RmArgs) -> anyhow::Result<()> {
    let options = Options::default();
    // All names are looked up before anything is removed.
    let mut doomed = Vec::new();
    for name in &args.models {
        let starter = hub::starter_file().filter(|_| name == STARTER);
        let of_hub = starter
            .as_ref()
            .is_some_and(|path| path.starts_with(options.hub_cache()));
        doomed.push(match starter {
            Some(path) if !of_hub => (name, size(&path), Doomed::File(path)),
            Some(_) => {
                bail!("the starter model lies in the hub's cache: `biplane list` has its name")
            }
            None => {
                let removal = hub::removal(name, &options).map_err(biplane::Error::from)?;
                (name, removal.bytes, Doomed::Cached(removal))
            }
        });
    }
    for (name, bytes, doomed) in doomed {
        let what = format!("{name} ({})", report::bytes(bytes));
        if !args.yes && !confirmed(&what)? {
            report::note(&format!("{name} stays"));
            continue;
        }
        match doomed {
            Doomed::Cached(removal) => removal.carry_out().map_err(biplane::Error::from)?,
            Doomed::File(path) => {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        report::note(&format!("removed {what}"));
    }
    Ok(())
}

fn confirmed(what: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("removing {what} needs --yes where nobody can be asked; nothing was removed");
    }
    report::note(&format!("remove {what}? [y/N]"));
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .context("standard input")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ages_for_people() {
        assert_eq!(super::age(5), "just now");
        assert_eq!(super::age(60), "1 minute ago");
        assert_eq!(super::age(7300), "2 hours ago");
        assert_eq!(super::age(86400 * 40), "40 days ago");
    }
}
