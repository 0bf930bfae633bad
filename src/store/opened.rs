//! A file that is read from a blocking thread, piece by piece, wherever it is.

use std::io;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::DataStore;
use crate::format::ReadAt;
use crate::model::PhysicalFileId;

/// Bytes of a file on remote storage that are read at once at least.
const WINDOW_BYTES: u64 = 4 << 20;

/// A file on storage.
#[derive(Debug)]
pub struct OpenedFile(OpenedOn);

#[derive(Debug)]
enum OpenedOn {
    Local(std::fs::File),
    Remote(Box<Remote>),
}

/// A file on remote storage, and what of it was read last.
#[derive(Debug)]
struct Remote {
    store: DataStore,
    id: PhysicalFileId,
    len: u64,
    /// From here on one read takes everything up to the end.
    tail: u64,
    handle: Handle,
    window: Mutex<(u64, Bytes)>,
}

impl OpenedFile {
    pub(super) fn local(file: std::fs::File) -> Self {
        Self(OpenedOn::Local(file))
    }

    /// A file of `len` bytes; what is wanted of the last `tail_bytes` brings all of them. Call it where a runtime is.
    pub(super) fn remote(store: &DataStore, id: &PhysicalFileId, len: u64, tail_bytes: u64) -> Self {
        let (store, id, tail) = (store.clone(), id.clone(), len.saturating_sub(tail_bytes));
        let (handle, window) = (Handle::current(), Mutex::default());
        Self(OpenedOn::Remote(Box::new(Remote { store, id, len, tail, handle, window })))
    }
}

impl ReadAt for OpenedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            OpenedOn::Local(file) => ReadAt::read_at(file, offset, buffer),
            OpenedOn::Remote(file) => file.read_at(offset, buffer),
        }
    }
}

impl ReadAt for Remote {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (buffer.len() as u64).min(self.len.saturating_sub(offset));
        if wanted == 0 {
            return Ok(0);
        }
        let mut window = self.window.lock();
        if offset < window.0 || offset + wanted > window.0 + window.1.len() as u64 {
            let ahead = offset..(offset + wanted.max(WINDOW_BYTES)).min(self.len);
            let range = if offset >= self.tail { self.tail..self.len } else { ahead };
            let bytes = self.handle.block_on(self.store.read(&self.id, range.clone())).map_err(io::Error::other)?;
            *window = (range.start, bytes);
        }
        let from = usize::try_from(offset - window.0).map_err(io::Error::other)?;
        let wanted = usize::try_from(wanted).map_err(io::Error::other)?;
        buffer[..wanted].copy_from_slice(&window.1[from..from + wanted]);
        Ok(wanted)
    }
}
