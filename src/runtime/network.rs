//! The network that a daemon is on: where it listens, whom it reaches, and whether another process of its machine is there.
//!
//! [`ThisMachine`] is the real one. Whoever runs many daemons in one process, to see what they do together, brings another.

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::presence::{self, Presence, ProcessSeen};

/// A connection.
pub trait NetworkSocket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> NetworkSocket for S {}

/// Where connections come in, on another network than that of [`ThisMachine`].
pub trait Accept: fmt::Debug + Send + Sync {
    /// The next one, and whence it comes.
    ///
    /// # Errors
    /// The network's; the next call may succeed.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn NetworkSocket>, SocketAddr)>>;
}

/// A network, and the machine on it.
pub trait Network: fmt::Debug + Send + Sync {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// The network's: `ConnectionRefused` if nobody listens there.
    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Box<dyn NetworkSocket>>>;

    /// Listens. `None` if that is left to the operating system.
    ///
    /// # Errors
    /// The network's.
    fn listen(&self, address: SocketAddr) -> Option<io::Result<(Box<dyn Accept>, SocketAddr)>>;

    /// The machine, as [`presence::host`] tells.
    fn host(&self) -> String;

    /// Shows other processes of the machine that this one is there, until what is returned is dropped.
    ///
    /// # Errors
    /// The machine's.
    fn show(&self, incarnation: &str) -> io::Result<Box<dyn Any + Send + Sync>>;

    /// Looks for a process, as [`presence::look`] does.
    fn look(&self, incarnation: &str, host: &str) -> ProcessSeen;
}

/// The machine that this process is on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisMachine;

impl Network for ThisMachine {
    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<Box<dyn NetworkSocket>>> {
        async move {
            let socket = TcpStream::connect(authority).await?;
            // Without it things only take longer.
            drop(socket.set_nodelay(true));
            Ok(Box::new(socket) as Box<dyn NetworkSocket>)
        }
        .boxed()
    }

    fn listen(&self, _: SocketAddr) -> Option<io::Result<(Box<dyn Accept>, SocketAddr)>> {
        None
    }

    fn host(&self) -> String {
        presence::host()
    }

    fn show(&self, incarnation: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        Ok(Box::new(Presence::show(incarnation)?))
    }

    fn look(&self, incarnation: &str, host: &str) -> ProcessSeen {
        presence::look(incarnation, host)
    }
}
