//! A stand-in for the hub: one repository, on a port of this machine.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Every request gets this status and error code.
    Status(u16, &'static str),
    /// Every file is refused with this status.
    Files(u16),
    /// Connections end in the middle of what is left of a file of LFS.
    Cut,
    /// They stay open there, and nothing more comes.
    Stall,
    /// Files of LFS are a byte too long, or too short.
    Long,
    Short,
    /// Headers that name files outside of the cache.
    Headers,
    /// So does the list of files.
    Hashes,
    /// The list of files comes in two parts, the second from here or from elsewhere.
    Pages,
    Elsewhere,
    /// Files of LFS have other bytes than their sum says.
    Corrupt,
    /// Other files have.
    CorruptSmall,
    /// The whole of a file of LFS is sent where a part of it was asked for.
    NoRanges,
    /// The list of files has files that lie outside of a model's folder.
    Outside,
    /// Everything is to be had at another server, named by [`Server::send_away`].
    Away,
    /// In place of every file of LFS there is an error page, sent with status 500.
    ErrorPage,
}

struct Shared {
    url: String,
    files: Vec<(&'static str, Vec<u8>)>,
    trouble: Mutex<Trouble>,
    requests: Mutex<Vec<String>>,
    /// The `Authorization` of each request that had one.
    tokens: Mutex<Vec<String>>,
    away: Mutex<String>,
    /// Connections that stay open.
    held: Mutex<Vec<TcpStream>>,
    stop: AtomicBool,
}

pub struct Server {
    pub url: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(files: &[(&'static str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            url: url.clone(),
            files: files.iter().map(|(n, b)| (*n, b.to_vec())).collect(),
            trouble: Mutex::new(Trouble::None),
            requests: Mutex::default(),
            tokens: Mutex::default(),
            away: Mutex::default(),
            held: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if served.stop.load(Ordering::SeqCst) {
                    break;
                }
                // A client that goes away is its own affair.
                let _ = served.answer(stream.unwrap());
            }
        });
        Self {
            url,
            shared,
            thread: Some(thread),
        }
    }

    pub fn trouble(&self, trouble: Trouble) {
        *self.shared.trouble.lock().unwrap() = trouble;
    }

    /// From now on everything is at the server of this URL.
    pub fn send_away(&self, url: &str) {
        *self.shared.away.lock().unwrap() = url.to_owned();
        self.trouble(Trouble::Away);
    }

    /// Takes what requests since the last time had as `Authorization`.
    pub fn tokens(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.tokens.lock().unwrap())
    }

    /// Takes the requests since the last time.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.requests.lock().unwrap())
    }
}

/// From then on connections are refused.
impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn is_lfs(name: &str) -> bool {
    name.ends_with(".gguf") || name.ends_with(".safetensors")
}

pub fn sum(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What git knows a file by.
fn git_sum(bytes: &[u8]) -> String {
    let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    let sum = Sha1::digest(blob);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Models that are here in name only, the last of them to spoil a terminal.
const OTHERS: &str = r#"[{"id":"org/name-2"},{"id":"org/names"},{"id":"org/quite-another-thing"},
    {"id":"else/name"},{"id":"org/na\u001b[2Jme"}]"#;

const REFS: &str = r#"{"branches":[{"name":"main"},{"name":"v1.0"}],"converts":[],
    "tags":[{"name":"v1.1"},{"name":"refs/pr/1"}]}"#;

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or(Ok(String::new()))?;
        let mut start = 0;
        while let Some(line) = lines.next().transpose()?.filter(|l| !l.is_empty()) {
            if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                start = range.split_once('-').unwrap().0.parse().unwrap();
            }
            if line.to_lowercase().starts_with("authorization:") {
                let token = line.split_once(": ").unwrap().1.to_owned();
                self.tokens.lock().unwrap().push(token);
            }
        }
        let ranged = match start {
            0 => request.clone(),
            start => format!("{request} from {start}"),
        };
        self.requests.lock().unwrap().push(ranged);
        let trouble = *self.trouble.lock().unwrap();
        let (method, path) = request.split_once(' ').unwrap_or_default();
        let (path, query) = path.split_once([' ', '?']).unwrap_or_default();
        let mut send = |status: u16, headers: &str, body: &[u8], length: usize| {
            let head = format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
            );
            stream.write_all(head.as_bytes())?;
            stream.write_all(if method == "HEAD" { b"" } else { body })
        };
        if let Trouble::Status(status, code) = trouble {
            return send(status, &format!("X-Error-Code: {code}\r\n"), b"", 0);
        }
        if trouble == Trouble::Away {
            let target = request.split(' ').nth(1).unwrap_or_default();
            let away = format!("Location: {}{target}\r\n", self.away.lock().unwrap());
            return send(307, &away, b"", 0);
        }
        if path == "/api/models" {
            return send(200, "", OTHERS.as_bytes(), OTHERS.len());
        }
        let api = "/api/models/org/name";
        if path == format!("{api}/refs") {
            return send(200, "", REFS.as_bytes(), REFS.len());
        }
        if [
            api,
            &format!("{api}/revision/{COMMIT}"),
            &format!("{api}/revision/main"),
        ]
        .contains(&path)
        {
            let body = format!(r#"{{"id":"org/name","sha":"{COMMIT}"}}"#);
            return send(200, "", body.as_bytes(), body.len());
        }
        if path == format!("{api}/tree/{COMMIT}") {
            let mut entries = self.tree(trouble);
            let mut link = String::new();
            if let Trouble::Pages | Trouble::Elsewhere = trouble {
                let second = entries.split_off(1);
                if query.contains("cursor=2") {
                    entries = second;
                } else {
                    let host = match trouble {
                        Trouble::Pages => self.url.as_str(),
                        _ => "http://localhost:9",
                    };
                    link = format!("Link: <{host}{path}?cursor=2>; rel=\"next\"\r\n");
                }
            }
            let body = format!("[{}]", entries.join(","));
            return send(200, &link, body.as_bytes(), body.len());
        }
        let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
        let found = self.files.iter().find(|(name, _)| Some(*name) == file);
        let Some((name, bytes)) = found else {
            return send(404, "X-Error-Code: RevisionNotFound\r\n", b"", 0);
        };
        if let Trouble::Files(status) = trouble {
            return send(status, "X-Error-Code: GatedRepo\r\n", b"", 0);
        }
        let (etag, commit) = match trouble {
            Trouble::Headers => ("../../../../outside", "../../../outside"),
            _ => ("0", COMMIT),
        };
        let headers = format!(
            "ETag: \"{etag}\"\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {commit}\r\n",
            bytes.len()
        );
        if trouble == Trouble::NoRanges {
            start = 0;
        }
        let status = if start == 0 { 200 } else { 206 };
        let rest = bytes.get(start..).unwrap();
        let half = rest.get(..rest.len() / 2).unwrap();
        match trouble {
            Trouble::CorruptSmall if !is_lfs(name) => {
                let other = vec![b' '; rest.len()];
                send(status, &headers, &other, other.len())
            }
            _ if !is_lfs(name) => send(status, &headers, rest, rest.len()),
            Trouble::Cut => send(status, &headers, half, rest.len()),
            Trouble::Stall => {
                send(status, &headers, half, rest.len())?;
                self.held.lock().unwrap().push(stream);
                Ok(())
            }
            Trouble::Corrupt => {
                let other: Vec<u8> = rest.iter().map(|b| b ^ 1).collect();
                send(status, &headers, &other, other.len())
            }
            Trouble::Long => {
                let more = [rest, b"!"].concat();
                send(status, &headers, &more, more.len())
            }
            Trouble::Short => send(status, &headers, half, half.len()),
            Trouble::ErrorPage if method == "GET" => send(500, "", b"sorry", 5),
            _ => send(status, &headers, rest, rest.len()),
        }
    }

    fn tree(&self, trouble: Trouble) -> Vec<String> {
        let entries = self.files.iter().map(|(name, bytes)| {
            let size = bytes.len();
            let (oid, sum) = match trouble {
                Trouble::Hashes => ("../../../outside".to_owned(), "../../../outside".to_owned()),
                _ => (git_sum(bytes), sum(bytes)),
            };
            let lfs = match is_lfs(name) {
                true => format!(r#","lfs":{{"oid":"{sum}","size":{size},"pointerSize":1}}"#),
                false => String::new(),
            };
            let name = match trouble {
                Trouble::Outside => format!("../../../../outside/{name}"),
                _ => (*name).to_owned(),
            };
            format!(r#"{{"type":"file","oid":"{oid}","size":{size},"path":"{name}"{lfs}}}"#)
        });
        let folder = r#"{"type":"directory","oid":"0","path":"onnx"}"#.to_owned();
        [folder].into_iter().chain(entries).collect()
    }
}
