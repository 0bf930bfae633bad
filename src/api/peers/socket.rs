//! A socket that counts what it moves.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use super::Peer;

/// Bytes that are read at once while bodies wait for memory, a little less than 16 KiB. hyper doubles a connection's read
/// buffer when a read fills it, and halves it when two leave most of it empty; what waits for memory waits in two such
/// buffers, which would be the most that a connection costs. With memory for everybody fewer and longer reads are cheaper.
const READ_BYTES_WHEN_SHORT: u64 = (16 << 10) - 1;

/// A socket whose traffic its [`Peer`] knows of.
pub struct CountedSocket<S> {
    socket: Take<S>,
    peer: Arc<Peer>,
}

crate::runtime::opaque_debug!(CountedSocket<S>);

impl<S: AsyncRead> CountedSocket<S> {
    /// `socket`, which belongs to `peer`.
    pub fn new(socket: S, peer: Arc<Peer>) -> Self {
        Self { socket: socket.take(u64::MAX), peer }
    }

    fn wrote(&self, wrote: &Poll<Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = wrote {
            self.peer.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        self.peer.write_waits.store(wrote.is_pending(), Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let limit = if self.peer.memory.is_short() { READ_BYTES_WHEN_SHORT } else { u64::MAX };
        self.socket.set_limit(limit);
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        self.peer.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for CountedSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let wrote = Pin::new(self.socket.get_mut()).poll_write(cx, buf);
        self.wrote(&wrote);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let wrote = Pin::new(self.socket.get_mut()).poll_write_vectored(cx, bufs);
        self.wrote(&wrote);
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(self.socket.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(self.socket.get_mut()).poll_shutdown(cx)
    }
}
