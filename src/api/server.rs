//! Connections: how many there may be, how long a head may take, and how they end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use prometheus::IntGauge;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::socket::SocketName;
use super::unread::{Orderly, RequestBody};
use crate::config::LimitsSettings;
use crate::runtime::{Failure, TaskGroup};

/// Bytes of a connection's read buffer: enough for a head, and for a body to arrive in pieces of some size.
const READ_BUFFER_BYTES: usize = 32 << 10;
/// Bytes that one HTTP/2 stream, and one connection, may send before they are read.
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
const H2_STREAMS_MAX: u32 = 256;

/// Where a door listens.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket; its name is removed when the door closes.
    Unix(UnixListener, SocketName),
}

impl Listener {
    /// The address, for a TCP port.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}

/// How the connections of a door are served.
#[derive(Clone)]
pub struct Serving {
    limits: LimitsSettings,
    connections: Arc<Semaphore>,
    open: IntGauge,
    tasks: TaskGroup,
    /// No new connections and requests from here on.
    drain: CancellationToken,
    /// Connections that are still open are cut.
    cut: CancellationToken,
}

impl Serving {
    /// Serves connections in `tasks` until `drain`, then lets requests end until `cut`.
    pub fn new(
        limits: LimitsSettings,
        connections: Arc<Semaphore>,
        open: IntGauge,
        tasks: TaskGroup,
        drain: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        Self { limits, connections, open, tasks, drain, cut }
    }

    /// Accepts connections and serves each with a clone of `service`.
    pub async fn accept<S, B>(self, listener: Listener, service: S)
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        loop {
            // A place first, then the connection: over the limit, clients wait in the listener's queue.
            let place = tokio::select! {
                () = self.drain.cancelled() => break,
                place = Arc::clone(&self.connections).acquire_owned() => place,
            };
            let accepted = tokio::select! {
                () = self.drain.cancelled() => break,
                accepted = accept(&listener) => accepted,
            };
            let (Ok(place), Ok(stream)) = (place, accepted) else {
                // Out of descriptors, most likely: others have to close first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let connection = self.clone().serve(stream, service.clone());
            self.tasks.spawn("connection", Failure::FailsItsWork, async move {
                connection.await;
                drop(place);
            });
        }
        if let Listener::Unix(_, name) = &listener {
            name.remove();
        }
    }

    async fn serve<S, B>(self, stream: Stream, service: S)
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.open.inc();
        let service = Orderly::new(service);
        let builder = self.builder();
        match stream {
            Stream::Tcp(stream) => {
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                self.run(pin!(connection)).await;
            }
            Stream::Unix(stream) => {
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                self.run(pin!(connection)).await;
            }
        }
        self.open.dec();
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        let head = usize::try_from(self.limits.header_bytes_max).unwrap_or(READ_BUFFER_BYTES);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_buf_size(READ_BUFFER_BYTES.max(head))
            .max_headers(256);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(self.limits.header_bytes_max).unwrap_or(u32::MAX))
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_concurrent_streams(H2_STREAMS_MAX);
        builder
    }

    async fn run<C>(&self, mut connection: std::pin::Pin<&mut C>)
    where
        C: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>> + Graceful,
    {
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.drain.cancelled() => {
                connection.as_mut().shut_down();
                tokio::select! {
                    ended = connection => ended,
                    () = self.cut.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// A connection that can be asked to end after the request it is in.
trait Graceful {
    fn shut_down(self: std::pin::Pin<&mut Self>);
}

impl<I, S, E> Graceful for hyper_util::server::conn::auto::Connection<'_, I, S, E>
where
    S: hyper::service::HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    fn shut_down(self: std::pin::Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn accept(listener: &Listener) -> std::io::Result<Stream> {
    Ok(match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Stream::Tcp(stream)
        }
        Listener::Unix(listener, _) => Stream::Unix(listener.accept().await?.0),
    })
}
