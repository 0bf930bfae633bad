//! Connections: how they are accepted, served, and ended.
//!
//! [`Peers`] decides who gets a place, and who has to go.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use prometheus::IntGauge;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::exchange::Exchanges;
use super::peers::socket::CountedSocket;
use super::peers::{Peer, Peers, Seat};
use super::socket::SocketName;
use super::tls::Tls;
use super::unread::{Orderly, RequestBody};
use crate::config::LimitsSettings;
use crate::metrics::labels::HandshakeFailure;
use crate::runtime::network::{Accept, NetworkSocket};
use crate::runtime::{Failure, TaskGroup};

/// Bytes of a connection's read buffer: enough for a head, and for a body to arrive in pieces of some size.
const READ_BUFFER_BYTES: usize = 32 << 10;
/// Bytes that one HTTP/2 stream, and one connection, may send before they are read.
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
const H2_STREAMS_MAX: u32 = 256;
/// Bytes of an answer that wait in the system before they are sent. It would take megabytes, and say that there is room
/// again once a third of them is gone: a reader that is slow, but reads, would look as if it did not.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// The place where a door listens.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port, with TLS or without.
    Tcp(TcpListener, Option<Tls>),
    /// On a network that is not the operating system's.
    Given(Box<dyn Accept>),
    /// A Unix socket; its name is removed when the door closes.
    Unix(UnixListener, SocketName),
}

impl Listener {
    /// The address, for a TCP port.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener, _) => listener.local_addr().ok(),
            Self::Given(_) | Self::Unix(..) => None,
        }
    }
}

/// What answers at a door.
#[derive(Debug, Clone)]
pub struct Services<S> {
    /// To whom has a place.
    pub usual: S,
    /// To whom has a reserved place.
    pub when_full: S,
    /// To whom speaks plain HTTP where TLS is spoken.
    pub without_tls: S,
}

/// Serves the connections of a door.
#[derive(Clone)]
pub struct Serving {
    limits: LimitsSettings,
    peers: Peers,
    exchanges: Exchanges,
    open: IntGauge,
    tasks: TaskGroup,
    /// No new connections and requests from here on.
    drain: CancellationToken,
    /// Connections that are still open are cut.
    cut: CancellationToken,
}

crate::runtime::opaque_debug!(Serving);

impl Serving {
    /// Serves connections in `tasks` until `drain`, then lets requests end until `cut`.
    pub fn new(
        limits: LimitsSettings,
        peers: Peers,
        exchanges: Exchanges,
        open: IntGauge,
        tasks: TaskGroup,
        drain: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        Self { limits, peers, exchanges, open, tasks, drain, cut }
    }

    /// Accepts connections and serves each with a clone of one of the services.
    pub async fn accept<S, B>(self, listener: Listener, services: Services<S>)
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        loop {
            let accepted = tokio::select! {
                () = self.drain.cancelled() => break,
                accepted = accept(&listener) => accepted,
            };
            let Ok((stream, address)) = accepted else {
                // Out of descriptors, most likely: others have to close first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let seat = match stream {
                AcceptedStream::Tls(..) => self.peers.admit_tls(address),
                _ => self.peers.admit(address),
            };
            let connection = self.clone().serve(stream, seat, services.clone());
            self.tasks.spawn("connection", Failure::FailsItsWork, connection);
        }
        if let Listener::Unix(_, name) = &listener {
            name.remove();
        }
    }

    async fn serve<S, B>(self, stream: AcceptedStream, seat: Seat, services: Services<S>)
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.open.inc();
        let peer = seat.peer();
        let Services { usual, when_full, without_tls } = services;
        let service = if peer.is_reserved() { when_full } else { usual };
        let counted = || Arc::clone(peer);
        match stream {
            AcceptedStream::Tcp(stream) => self.serve_on(CountedSocket::new(stream, counted()), peer, service).await,
            AcceptedStream::Given(stream) => self.serve_on(CountedSocket::new(stream, counted()), peer, service).await,
            AcceptedStream::Unix(stream) => self.serve_on(CountedSocket::new(stream, counted()), peer, service).await,
            AcceptedStream::Tls(stream, tls) => match self.shake_hands(stream, &tls, peer).await {
                Some(Shaken::Tls(stream)) => self.serve_on(*stream, peer, service).await,
                Some(Shaken::Plain(stream)) => {
                    self.serve_on(CountedSocket::new(stream, counted()), peer, without_tls).await;
                }
                None => {}
            },
        }
        self.open.dec();
    }

    /// Shakes hands, or finds that the client does not mean to. `None`: the connection is over.
    async fn shake_hands(&self, stream: TcpStream, tls: &Tls, peer: &Arc<Peer>) -> Option<Shaken> {
        let shaking = async {
            let mut first = [0];
            match stream.peek(&mut first).await {
                Ok(1) if !Tls::begins(first[0]) && first[0].is_ascii_alphabetic() => {
                    tls.count(HandshakeFailure::Plaintext);
                    return Ok(Shaken::Plain(stream));
                }
                Ok(1) => {}
                // Who only looks whether somebody listens has not begun.
                Ok(_) => return Err(None),
                Err(error) => return Err(Some((HandshakeFailure::Broken, error))),
            }
            let socket = CountedSocket::new(stream, Arc::clone(peer));
            tls.accept(socket).await.map(|stream| Shaken::Tls(Box::new(stream))).map_err(Some)
        };
        let shaken = tokio::select! {
            shaken = shaking => shaken,
            () = peer.cut().cancelled() => Err(Some((HandshakeFailure::Timeout, std::io::ErrorKind::TimedOut.into()))),
            // Nobody has asked for anything yet.
            () = self.drain.cancelled() => Err(None),
        };
        match shaken {
            Ok(shaken) => Some(shaken),
            Err(failed) => {
                if let Some((failure, error)) = failed {
                    tls.count(failure);
                    tracing::debug!(%error, remote = peer.address().map(tracing::field::display), "no handshake");
                }
                None
            }
        }
    }

    async fn serve_on<I, S, B>(&self, socket: I, peer: &Arc<Peer>, service: S)
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let service = Orderly::new(service, Arc::clone(peer), self.exchanges.clone(), &self.limits);
        let builder = self.builder();
        self.run(pin!(builder.serve_connection(TokioIo::new(socket), service)), peer).await;
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        let head = usize::try_from(self.limits.header_bytes_max).unwrap_or(READ_BUFFER_BYTES);
        builder
            .http1()
            // Peers are watched from the first moment on; this would begin once their protocol is known.
            .header_read_timeout(None)
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

    async fn run<C>(&self, mut connection: std::pin::Pin<&mut C>, peer: &Peer)
    where
        C: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>> + Graceful,
    {
        let mut closing = false;
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                () = self.drain.cancelled(), if !closing => closing = true,
                () = peer.close().cancelled(), if !closing => closing = true,
                () = peer.cut().cancelled() => break Ok(()),
                () = self.cut.cancelled() => break Ok(()),
            }
            connection.as_mut().shut_down();
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

/// What came of a connection on which a handshake is due.
enum Shaken {
    Tls(Box<TlsStream<CountedSocket<TcpStream>>>),
    Plain(TcpStream),
}

enum AcceptedStream {
    Tcp(TcpStream),
    Tls(TcpStream, Tls),
    Given(Box<dyn NetworkSocket>),
    Unix(UnixStream),
}

async fn accept(listener: &Listener) -> std::io::Result<(AcceptedStream, Option<SocketAddr>)> {
    Ok(match listener {
        Listener::Tcp(listener, tls) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
                tracing::trace!(%error, "this system does not bound what waits to be sent");
            }
            let stream = match tls {
                Some(tls) => AcceptedStream::Tls(stream, tls.clone()),
                None => AcceptedStream::Tcp(stream),
            };
            (stream, Some(address))
        }
        Listener::Given(listener) => {
            let (stream, address) = listener.accept().await?;
            (AcceptedStream::Given(stream), Some(address))
        }
        Listener::Unix(listener, _) => (AcceptedStream::Unix(listener.accept().await?.0), None),
    })
}
