//! Files of a repository, into the cache: written beside the place of the finished file, checked, and
//! only then given its name. What a broken connection leaves is the beginning of the next try.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, Sender},
    thread,
    time::Duration,
};

use futures::StreamExt;
use hf_hub::HFError;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{
    super::{Error, Progress, Result, hex, sha256},
    choose::{Hash, Listed},
    client::{Hub, runtime},
};

const POLL: Duration = Duration::from_millis(100);

/// Connections of one download that may break, as long as each has brought something.
const TRIES: usize = 3;

/// Why a file did not come.
enum Failure {
    Hub(HFError),
    Disk(io::Error),
    Stalled,
    TooLong(u64),
}

/// What is fetched, and where to.
struct Wanted<'a> {
    commit: &'a str,
    name: &'a str,
    size: u64,
    hash: &'a Hash,
    partial: &'a Path,
}

impl Hub {
    /// A file in the cache, of the right size and, where it was downloaded now, with the right sum.
    pub(super) fn get(
        &self,
        commit: &str,
        name: &str,
        listed: &Listed,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        let path = self.cache.snapshot(commit).join(name);
        let whole =
            |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == listed.size);
        if whole(&path) {
            return Ok(path);
        }
        let Some(hash) = &listed.hash else {
            return Err(self.failed(name, "the hub gives no hash of it"));
        };
        let failed = |source| Error::io(&self.cache.root, source, listed.size);
        let _lock = self
            .cache
            .lock(hash, || {
                tracing::info!(file = name, "another process is downloading it; waiting");
            })
            .map_err(failed)?;
        if whole(&path) {
            return Ok(path);
        }
        if path.exists() {
            tracing::warn!(path = %path.display(), "of the wrong size; downloading it again");
            self.cache.discard(&path);
        }
        let blob = self.cache.blob(hash);
        if !whole(&blob) {
            let wanted = Wanted {
                commit,
                name,
                size: listed.size,
                hash,
                partial: &self.cache.partial(hash),
            };
            self.fetch(&wanted, progress)?;
            fs::rename(wanted.partial, &blob).map_err(failed)?;
        }
        self.cache.link(commit, name, hash).map_err(failed)?;
        progress(Progress {
            file: name,
            done: listed.size,
            total: listed.size,
        });
        Ok(path)
    }

    /// Brings the whole file to its partial name, and checks it.
    fn fetch(&self, wanted: &Wanted<'_>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
        let length = || fs::metadata(wanted.partial).map_or(0, |meta| meta.len());
        let discard = |error| {
            let _ = fs::remove_file(wanted.partial);
            error
        };
        let mut tries = 0;
        loop {
            let start = length();
            tries += 1;
            if start < wanted.size || wanted.size == 0 {
                match self.stream(wanted, start, progress) {
                    Ok(()) => {}
                    // A server that sends the whole file where its rest was asked for.
                    Err(Failure::TooLong(_)) if start > 0 && tries < TRIES => {
                        let _ = fs::remove_file(wanted.partial);
                        continue;
                    }
                    Err(Failure::TooLong(got)) => {
                        return Err(discard(self.wrong_size(wanted, got)));
                    }
                    Err(_) if tries < TRIES && length() > start => continue,
                    Err(failure) => return Err(self.failure(failure, wanted)),
                }
            }
            return match self.check(wanted) {
                // Perhaps the part that was here before is of another file.
                Err(_) if start > 0 && tries < TRIES => {
                    let _ = fs::remove_file(wanted.partial);
                    continue;
                }
                checked => checked.map_err(discard),
            };
        }
    }

    /// Appends what the hub sends from byte `start` on.
    fn stream(
        &self,
        wanted: &Wanted<'_>,
        start: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let runtime = runtime().map_err(Failure::Disk)?;
                let result = runtime.block_on(self.append(wanted, start, sender));
                runtime.shutdown_background();
                result
            });
            while !worker.is_finished() {
                let first = receiver.recv_timeout(POLL).ok();
                if let Some(done) = receiver.try_iter().last().or(first) {
                    progress(Progress {
                        file: wanted.name,
                        done,
                        total: wanted.size,
                    });
                }
            }
            let panicked = |_| {
                let text = "the downloading thread panicked".to_owned();
                Err(Failure::Hub(HFError::Other(text)))
            };
            worker.join().unwrap_or_else(panicked)
        })
    }

    async fn append(
        &self,
        wanted: &Wanted<'_>,
        start: u64,
        progress: Sender<u64>,
    ) -> Result<(), Failure> {
        let range = (start > 0).then_some(start..wanted.size);
        let request = self
            .repo
            .download_file_stream()
            .filename(wanted.name)
            .revision(wanted.commit)
            .maybe_range(range)
            .send();
        let (_, mut stream) = self.in_time(request).await?.map_err(Failure::Hub)?;
        let mut file = open(wanted.partial, start).map_err(Failure::Disk)?;
        let mut done = start;
        while let Some(bytes) = self.in_time(stream.next()).await? {
            let bytes = bytes.map_err(Failure::Hub)?;
            done += bytes.len() as u64;
            if done > wanted.size {
                return Err(Failure::TooLong(done));
            }
            file.write_all(&bytes).map_err(Failure::Disk)?;
            let _ = progress.send(done);
        }
        file.sync_all().map_err(Failure::Disk)
    }

    /// What comes before the download counts as stalled.
    async fn in_time<T>(&self, coming: impl Future<Output = T>) -> Result<T, Failure> {
        let limited = tokio::time::timeout(self.stall, coming);
        limited.await.map_err(|_| Failure::Stalled)
    }

    /// Neither the client nor every server checks what was sent.
    fn check(&self, wanted: &Wanted<'_>) -> Result<()> {
        let io = |source| Error::io(wanted.partial, source, 0);
        let got = fs::metadata(wanted.partial).map_err(io)?.len();
        if got != wanted.size {
            return Err(self.wrong_size(wanted, got));
        }
        let expected = wanted.hash.text();
        let got = match wanted.hash {
            Hash::Sha256(_) => sha256(wanted.partial).map_err(io)?,
            // Files outside of LFS are small.
            Hash::Git(_) => git_sum(&fs::read(wanted.partial).map_err(io)?, expected.len()),
        };
        if got != expected {
            return Err(Error::Checksum {
                what: self.named(wanted.name),
                expected: expected.to_owned(),
                got,
            });
        }
        Ok(())
    }

    fn wrong_size(&self, wanted: &Wanted<'_>, got: u64) -> Error {
        Error::Size {
            what: self.named(wanted.name),
            expected: wanted.size,
            got,
        }
    }

    fn failure(&self, failure: Failure, wanted: &Wanted<'_>) -> Error {
        match failure {
            Failure::Hub(error) => self.download_error(&error, wanted.name, wanted.commit),
            Failure::Disk(source) => Error::io(&self.cache.root, source, wanted.size),
            Failure::Stalled => {
                let stall = self.stall.as_secs();
                self.unreachable(format!("nothing of {} came for {stall} s", wanted.name))
            }
            Failure::TooLong(got) => self.wrong_size(wanted, got),
        }
    }
}

/// The partial file, to be written from byte `start` on.
fn open(path: &Path, start: u64) -> io::Result<File> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    if file.metadata()?.len() != start {
        file.set_len(start)?;
    }
    file.seek(SeekFrom::Start(start))?;
    Ok(file)
}

/// What git knows a file by, of so many digits.
fn git_sum(bytes: &[u8], digits: usize) -> String {
    let head = format!("blob {}\0", bytes.len());
    let parts = [head.as_bytes(), bytes];
    match digits {
        40 => hex(&parts
            .iter()
            .fold(Sha1::new(), |sum, part| sum.chain_update(part))
            .finalize()),
        _ => hex(&parts
            .iter()
            .fold(Sha256::new(), |sum, part| sum.chain_update(part))
            .finalize()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_that_git_prints() {
        // `printf 'hello\n' | git hash-object --stdin`, and the same with --object-format=sha256.
        assert_eq!(
            git_sum(b"hello\n", 40),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
        assert_eq!(
            git_sum(b"hello\n", 64),
            "2cf8d83d9ee29543b34a87727421fdecb7e3f3a183d337639025de576db9ebb4"
        );
    }
}
