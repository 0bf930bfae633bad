//! Connections: over TCP or a Unix socket, with an end to waiting.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep, timeout};
use tower_service::Service;

use crate::client::ClientOptions;
use crate::ended::Living;
use crate::error::{BoxError, ClientError};
use crate::tls::{TlsClient, TlsSocket};

/// Time limits with which a client waits for its daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection; 10 s by default.
    pub connect: Duration,
    /// Without a byte that arrives or leaves; none by default. It has to be longer than the daemon may take for an answer:
    /// a round of reclaiming ends when it ends, and storage that is slow makes a put slow.
    pub silence: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), silence: None }
    }
}

/// Makes connections to one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    to: Endpoint,
    /// There for `https`.
    tls: Option<TlsClient>,
    timeouts: Timeouts,
}

#[derive(Clone, Debug)]
enum Endpoint {
    Tcp(HttpConnector),
    Unix(PathBuf),
}

impl Connector {
    /// Connects to `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`. Returns what the paths of requests are put behind,
    /// too.
    ///
    /// # Errors
    /// [`ClientError::Address`] if the address is none of these, [`ClientError::Tls`] if what is trusted cannot be used.
    pub(crate) fn new(address: &str, options: &ClientOptions) -> Result<(Self, String), ClientError> {
        let timeouts = options.timeouts;
        if let Some(path) = address.strip_prefix("unix:") {
            return Ok((Self { to: Endpoint::Unix(path.into()), tls: None, timeouts }, "http://esker".to_owned()));
        }
        let bad = || ClientError::Address(address.to_owned());
        let base = address.trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|_| bad())?;
        if uri.host().is_none() {
            return Err(bad());
        }
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(TlsClient::new(&options.tls)?),
            _ => return Err(bad()),
        };
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        // It would refuse `https`, which is ours to speak.
        tcp.enforce_http(false);
        Ok((Self { to: Endpoint::Tcp(tcp), tls, timeouts }, base.to_owned()))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TimedSocket>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.to {
            Endpoint::Tcp(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Endpoint::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Timeouts { connect, silence } = self.timeouts;
        let connecting: Pin<Box<dyn Future<Output = Result<Socket, BoxError>> + Send>> = match &mut self.to {
            Endpoint::Tcp(tcp) => {
                let (tls, host) = (self.tls.clone(), uri.host().unwrap_or_default().to_owned());
                let connecting = tcp.call(uri);
                Box::pin(async move {
                    let socket = connecting.await?.into_inner();
                    Ok(match tls {
                        Some(tls) => Socket::Tls(Box::new(tls.connect(&host, socket).await?)),
                        None => Socket::Tcp(socket),
                    })
                })
            }
            Endpoint::Unix(path) => {
                let path = path.clone();
                Box::pin(async move { Ok(Socket::Unix(UnixStream::connect(path).await?)) })
            }
        };
        Box::pin(async move {
            let late = |_| timed_out(format!("no connection within {connect:?}"));
            let socket = timeout(connect, connecting).await.map_err(late)??;
            Ok(TokioIo::new(TimedSocket { socket, silence: silence.map(Silence::new), living: Living::new() }))
        })
    }
}

fn timed_out(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// A connection that ends when nothing has moved on it for too long.
#[derive(Debug)]
pub(crate) struct TimedSocket {
    socket: Socket,
    silence: Option<Silence>,
    living: Living,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsSocket>),
    Unix(UnixStream),
}

#[derive(Debug)]
struct Silence {
    longest: Duration,
    over: Pin<Box<Sleep>>,
}

impl Silence {
    fn new(longest: Duration) -> Self {
        Self { longest, over: Box::pin(sleep(longest)) }
    }
}

impl TimedSocket {
    /// Notes that something moved; if nothing did, looks whether that is so for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(silence) = &mut self.silence else { return moved };
        if moved.is_ready() {
            silence.over.set(sleep(silence.longest));
        }
        // Looked at in any case, so that it wakes the connection: after a write nobody asks again before something arrives.
        let over = silence.over.as_mut().poll(cx);
        if moved.is_pending() && over.is_ready() {
            return Poll::Ready(Err(timed_out(format!("nothing was heard for {:?}", silence.longest))));
        }
        moved
    }

    fn socket(&mut self) -> Pin<&mut dyn ReadWrite> {
        let socket: &mut dyn ReadWrite = match &mut self.socket {
            Socket::Tcp(socket) => socket,
            Socket::Tls(socket) => socket,
            Socket::Unix(socket) => socket,
        };
        Pin::new(socket)
    }
}

trait ReadWrite: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ReadWrite for T {}

impl Connection for TimedSocket {
    fn connected(&self) -> Connected {
        self.living.describe()
    }
}

impl AsyncRead for TimedSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let moved = self.socket().poll_read(cx, buf);
        self.watch(cx, moved)
    }
}

impl AsyncWrite for TimedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let moved = self.socket().poll_write(cx, buf);
        self.watch(cx, moved)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let moved = self.socket().poll_write_vectored(cx, bufs);
        self.watch(cx, moved)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::Client;

    #[tokio::test]
    async fn a_daemon_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let timeouts = Timeouts { silence: Some(Duration::from_millis(50)), ..Timeouts::default() };
        let address = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::with_timeouts(&address, None, timeouts).unwrap();

        let (answer, asked) = tokio::join!(client.jobs(), async {
            let mut socket = listener.accept().await.unwrap().0;
            let mut request = vec![];
            socket.read_to_end(&mut request).await.unwrap();
            request
        });

        assert!(matches!(answer, Err(ClientError::Connection { .. })), "{answer:?}");
        assert!(asked.starts_with(b"GET /v1/jobs "), "{asked:?}");
    }
}
