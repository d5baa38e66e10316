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
    /// Files of LFS end in the middle.
    Cut,
    /// Files of LFS have other bytes than their sum says.
    Corrupt,
    /// The body of every file is an error page, sent with status 500.
    ErrorPage,
}

struct Shared {
    files: Vec<(&'static str, Vec<u8>)>,
    trouble: Mutex<Trouble>,
    requests: Mutex<Vec<String>>,
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
            files: files.iter().map(|(n, b)| (*n, b.to_vec())).collect(),
            trouble: Mutex::new(Trouble::None),
            requests: Mutex::default(),
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

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or(Ok(String::new()))?;
        while lines.next().transpose()?.is_some_and(|l| !l.is_empty()) {}
        self.requests.lock().unwrap().push(request.clone());
        let trouble = *self.trouble.lock().unwrap();
        let (method, path) = request.split_once(' ').unwrap_or_default();
        let path = path.split([' ', '?']).next().unwrap_or_default();
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
        let api = "/api/models/org/name";
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
            let body = self.tree();
            return send(200, "", body.as_bytes(), body.len());
        }
        let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
        let found = self.files.iter().find(|(name, _)| Some(*name) == file);
        let Some((name, bytes)) = found else {
            return send(404, "X-Error-Code: RevisionNotFound\r\n", b"", 0);
        };
        if let Trouble::Files(status) = trouble {
            return send(status, "X-Error-Code: GatedRepo\r\n", b"", 0);
        }
        let mut etag = sum(bytes);
        etag.truncate(if is_lfs(name) { 64 } else { 40 });
        let headers = format!(
            "ETag: \"{etag}\"\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {COMMIT}\r\n",
            bytes.len()
        );
        match trouble {
            Trouble::Cut if is_lfs(name) => send(
                200,
                &headers,
                bytes.get(..bytes.len() / 2).unwrap(),
                bytes.len(),
            ),
            Trouble::Corrupt if is_lfs(name) => {
                let other: Vec<u8> = bytes.iter().map(|b| b ^ 1).collect();
                send(200, &headers, &other, other.len())
            }
            Trouble::ErrorPage if method == "GET" => send(500, "", b"sorry", 5),
            _ => send(200, &headers, bytes, bytes.len()),
        }
    }

    fn tree(&self) -> String {
        let entries = self.files.iter().map(|(name, bytes)| {
            let size = bytes.len();
            let lfs = match is_lfs(name) {
                true => format!(
                    r#","lfs":{{"oid":"{}","size":{size},"pointerSize":1}}"#,
                    sum(bytes)
                ),
                false => String::new(),
            };
            format!(r#"{{"type":"file","oid":"0","size":{size},"path":"{name}"{lfs}}}"#)
        });
        let folder = r#"{"type":"directory","oid":"0","path":"onnx"}"#.to_owned();
        let entries: Vec<String> = entries.chain([folder]).collect();
        format!("[{}]", entries.join(","))
    }
}
