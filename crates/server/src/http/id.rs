//! Names of requests and answers.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

static NEXT: AtomicU64 = AtomicU64::new(0);
/// Seeded by the system: one process's names are not another's.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id, as handlers may ask for it.
#[derive(Clone)]
pub struct RequestId(pub HeaderValue);

/// A name that no other has, as `chatcmpl-1f…`.
pub fn new(prefix: &str) -> String {
    let n = NEXT.fetch_add(1, Relaxed);
    let mut hasher = SEED.build_hasher();
    hasher.write_u64(n);
    format!("{prefix}{:016x}{n:08x}", hasher.finish())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// Gives each request an id, its client's where that is decent, and notes how it ended.
pub async fn request(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(HEADER).filter(|value| {
        let decent = |b: &u8| b.is_ascii_graphic();
        !value.is_empty() && value.len() <= 128 && value.as_bytes().iter().all(decent)
    });
    let id = given
        .cloned()
        .or_else(|| HeaderValue::from_str(&new("req-")).ok());
    if let Some(id) = &id {
        request.extensions_mut().insert(RequestId(id.clone()));
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = Instant::now();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let ms = start.elapsed().as_millis() as u64;
    tracing::info!(%method, path, status, ms, id = ?id, "request");
    if let Some(id) = id {
        response.headers_mut().insert(HEADER, id);
    }
    response
}
