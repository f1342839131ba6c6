//! Accepts HTTP connections. Their number and duration are limited, so that clients cannot use up the resources of
//! passes.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The maximum number of connections. A further one replaces the oldest, so that clients that hang do not block a
/// health check.
const MAX_CONNECTIONS: usize = 64;
/// The time limit for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit for a connection, which serves one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests here have no body and few headers.
const MAX_BUFFER_BYTES: usize = 16 * 1024;
/// The pause after a connection could not be accepted: too many files may be open.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves each connection until `stop`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = VecDeque::with_capacity(MAX_CONNECTIONS);
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                make_room(&mut connections).await;
                connections.push_back(tokio::spawn(answer(stream, router.clone())));
            }
            Err(error) if is_about_the_client(&error) => {}
            Err(error) => {
                warn!(%error, "a connection to --listen could not be accepted");
                stop.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
}

async fn make_room(connections: &mut VecDeque<JoinHandle<()>>) {
    connections.retain(|connection| !connection.is_finished());
    while connections.len() >= MAX_CONNECTIONS
        && let Some(oldest) = connections.pop_front()
    {
        oldest.abort();
        // Its file is closed only after this.
        let _aborted = oldest.await;
    }
}

/// Answers the request of one connection.
pub async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Errors of a connection concern only its client.
    let _ended = timeout(CONNECTION_TIMEOUT, connection).await;
}

fn is_about_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
