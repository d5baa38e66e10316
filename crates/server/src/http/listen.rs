//! Connections, and the server's end.

use std::{future::Future, pin::pin};

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
                let connection = connection(stream, &service);
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
    let mut drained = pin!(tokio::time::timeout(limits::DRAIN, graceful.shutdown()));
    loop {
        tokio::select! {
            _ = &mut drained => break,
            // Whoever comes now is told that the server ends.
            stream = accept(&listener) => {
                tokio::spawn(connection(stream, &service));
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
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

type Connection =
    http1::Connection<TokioIo<limits::Patient<TcpStream>>, TowerToHyperService<axum::Router>>;

fn connection(stream: TcpStream, service: &axum::Router) -> Connection {
    // Tokens are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    let stream = limits::Patient::new(stream, limits::STALLED);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIME)
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
