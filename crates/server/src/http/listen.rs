//! Connections, and the server's end.

use std::{future::Future, pin::pin, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};

use super::{Shared, limits, router};

/// Serves until `stop` ends; then running answers may end too, but not for long.
pub async fn serve(listener: TcpListener, app: Shared, stop: impl Future<Output = ()>) {
    serve_router(listener, router(app.clone()), app, stop).await;
}

/// As [`serve`], other routes.
pub async fn serve_router(
    listener: TcpListener,
    service: axum::Router,
    app: Shared,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            stream = accept(&listener) => {
                let connection = connection(stream, &service, limits::HEAD_TIME);
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!("connection: {error}");
                    }
                });
            }
        }
    }
    app.drain();
    let ending = async {
        // A connection without a request is closed at once; one on its way is to be answered first.
        if graceful.count() > 0 {
            tokio::time::sleep(limits::LATE).await;
        }
        graceful.shutdown().await;
    };
    let mut drained = pin!(tokio::time::timeout(limits::DRAIN, ending));
    loop {
        tokio::select! {
            _ = &mut drained => break,
            // Whoever comes now is told that the server ends.
            stream = accept(&listener) => {
                tokio::spawn(connection(stream, &service, limits::HEAD_TIME));
            }
        }
    }
}

/// The next connection. One that could not be made is no reason to end.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                // Without open files to spare the same would come at once again.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

type Connection =
    http1::Connection<TokioIo<limits::Patient<TcpStream>>, TowerToHyperService<axum::Router>>;

fn connection(stream: TcpStream, service: &axum::Router, head: Duration) -> Connection {
    // Tokens are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    let stream = limits::Patient::new(stream, limits::STALLED);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .serve_connection(
            TokioIo::new(stream),
            TowerToHyperService::new(service.clone()),
        )
}

/// Ends when the system asks the program to end; the second time ends the program at once.
pub async fn stopped() {
    asked().await;
    tokio::spawn(async {
        asked().await;
        std::process::exit(130);
    });
}

async fn asked() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_head_that_does_not_end_closes_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
        let stream = accept(&listener).await;
        let served = connection(stream, &axum::Router::new(), Duration::from_millis(20)).await;
        assert!(served.unwrap_err().is_timeout());
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        assert!(!said.starts_with(b"HTTP/1.1 2"), "{said:?}");
    }
}
