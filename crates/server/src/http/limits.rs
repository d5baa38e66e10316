//! What a client may take of the server.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Most bytes of a body.
pub const BODY: usize = 32 << 20;
/// Most bytes that are read of a larger one before it is refused.
pub const READ: usize = 256 << 20;
/// How long a body may take to come.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// How long a request's head may take to come.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a reader may take nothing of what is written to it.
pub const STALLED: Duration = Duration::from_secs(30);
/// How long running answers may go on when the server is told to end.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How long a request may be on its way on an open connection when the server is told to end.
pub const LATE: Duration = Duration::from_millis(200);
/// How long an engine with work may give no sign of life.
pub const SILENT: Duration = Duration::from_secs(30);
/// Silence in a stream until a comment says that the server is still there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Most answers to one request.
pub const CHOICES: usize = 8;
/// Most log probabilities beside each token's own; the engine's limit too.
pub const LOGPROBS: usize = 20;
/// Most texts that no repetition goes across.
pub const BREAKERS: usize = 16;
/// Most bytes of one.
pub const BREAKER: usize = 64;
/// Most prompts of a request for completions.
pub const PROMPTS: usize = 64;
/// Most texts of a request for embeddings.
pub const TEXTS: usize = 2048;

/// Most responses that later ones can continue.
pub const KEPT: usize = 1024;
/// Most bytes of their conversations.
pub const KEPT_BYTES: usize = 64 << 20;

/// A connection that fails when its reader takes nothing for too long.
pub struct Patient<S> {
    inner: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub fn new(inner: S, patience: Duration) -> Self {
        Patient {
            inner,
            patience,
            waiting: None,
        }
    }

    /// Lets a result of writing through, or fails where it has been pending for too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let patience = self.patience;
        let timer = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.watch(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(context);
        self.watch(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(context);
        self.watch(context, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (near, _far) = tokio::io::duplex(8);
        let mut near = Patient::new(near, Duration::from_millis(20));
        let error = near.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
