//! Server-sent events.

use std::{convert::Infallible, future::Future, panic::AssertUnwindSafe};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures::{FutureExt, Stream, StreamExt};
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use super::{error::ApiError, limits};

/// The reader has gone away.
#[derive(Debug)]
pub struct Gone;

/// The sending end of a stream of events.
pub struct Sse(mpsc::Sender<Bytes>);

impl Sse {
    /// Sends an event of data.
    pub async fn data(&self, value: &Value) -> Result<(), Gone> {
        self.raw(format!("data: {value}\n\n")).await
    }

    /// Sends an event whose name is its type.
    pub async fn typed(&self, value: &Value) -> Result<(), Gone> {
        let name = value.get("type").and_then(Value::as_str);
        let name = name.unwrap_or("message");
        self.raw(format!("event: {name}\ndata: {value}\n\n")).await
    }

    /// Sends OpenAI's mark of a stream's end.
    pub async fn done(&self) -> Result<(), Gone> {
        self.raw("data: [DONE]\n\n".into()).await
    }

    async fn raw(&self, text: String) -> Result<(), Gone> {
        self.0.send(text.into()).await.map_err(|_| Gone)
    }

    /// The next item; comments keep the connection alive until it comes.
    pub async fn next<S: Stream + Unpin>(&self, items: &mut S) -> Result<Option<S::Item>, Gone> {
        loop {
            let next = timeout(limits::KEEP_ALIVE, items.next());
            let item = tokio::select! {
                () = self.0.closed() => return Err(Gone),
                item = next => item,
            };
            match item {
                Ok(item) => return Ok(item),
                Err(_) => self.raw(": still here\n\n".into()).await?,
            }
        }
    }
}

/// A response whose events `write` sends. What `write` holds is dropped as soon as it notices that the
/// reader is gone.
pub fn respond<F, W>(write: F) -> Response
where
    F: FnOnce(Sse) -> W,
    W: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(8);
    let last = sender.clone();
    let writing = AssertUnwindSafe(write(Sse(sender))).catch_unwind();
    tokio::spawn(async move {
        // A reader that goes away is nothing to report.
        if writing.await.is_err() {
            let error = ApiError::internal("the server failed at this request; others go on");
            let _ = last
                .send(format!("data: {}\n\n", error.body()).into())
                .await;
        }
    });
    let bytes = futures::stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(bytes), receiver))
    });
    let mut response = Response::new(Body::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather a response before they pass it on would undo the streaming.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
