//! What is on storage, file by file: footers, frames where there is no footer, holes; and the bytes of segments.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::merge::format::{self, Entry, FormatError, Frame, ReadAt};
use crate::model::{PhysicalFileId, SegmentCrc, SegmentHasher};
use crate::store::{DataStore, TOMBSTONE};

/// Bytes at the end of a file of an object store that are read at once: footers are rarely larger.
const TAIL_BYTES: u64 = 256 << 10;
/// Bytes that are read at once of data.
const WINDOW_BYTES: u64 = 4 << 20;
/// Files that are looked at or read at a time.
const FILES_AT_ONCE_LOCAL: usize = 4;
const FILES_AT_ONCE_REMOTE: usize = 16;

/// A file below `data/`.
#[derive(Debug)]
pub(in crate::daemon) struct Found {
    pub id: PhysicalFileId,
    pub len: u64,
    pub content: Content,
    /// Given back to a local disk.
    pub holes: Vec<Range<u64>>,
}

/// What a file has to say.
#[derive(Debug)]
pub(in crate::daemon) enum Content {
    /// It was closed.
    Index(Vec<Entry>),
    /// It has no footer that can be read, but whole frames.
    Frames(Vec<Frame>, String),
    /// Nothing in it can be made out.
    Nothing(String),
    /// It never was a file: a daemon took the name.
    Tombstone,
    /// Storage does not give its bytes.
    Unreadable(String),
}

/// What the bytes of a segment turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) enum Bytewise {
    /// These, with this MD5 if it was asked for.
    Read(SegmentCrc, Option<[u8; 16]>),
    /// Storage does not give them.
    Unreadable(String),
}

/// Bytes to be read.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Wanted {
    pub range: Range<u64>,
    pub md5: bool,
}

/// Looks at a file.
pub(in crate::daemon) async fn look(store: &DataStore, id: PhysicalFileId, len: u64) -> Found {
    let (reader, file) = (store.clone(), id.clone());
    let content = on_a_thread(move || content(&reader, &file, len)).await;
    let content = content.unwrap_or_else(|error| Content::Unreadable(crate::error::chain(&error)));
    let holes = match store {
        DataStore::Local(local) => local.holes(&id).await.unwrap_or_default(),
        DataStore::Object(_) => vec![],
    };
    Found { id, len, content, holes }
}

fn content(store: &DataStore, id: &PhysicalFileId, len: u64) -> Result<Content, FormatError> {
    let file = Opened::open(store, id, len, TAIL_BYTES)?;
    let why = match format::read_end(&file, len) {
        Ok((trailer, entries)) if trailer.ulid == id.ulid() => return Ok(Content::Index(entries)),
        Ok(_) => "its trailer is that of another file".to_owned(),
        Err(FormatError::Read(error)) => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    let mut first = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(TOMBSTONE.len() + 1)];
    if file.read_at(0, &mut first)? == TOMBSTONE.len() && first == TOMBSTONE {
        return Ok(Content::Tombstone);
    }
    let scan = format::scan(&file, 0, len)?;
    Ok(if scan.frames.is_empty() { Content::Nothing(why) } else { Content::Frames(scan.frames, why) })
}

/// Reads segments of one file, in the order of their places.
pub(in crate::daemon) async fn read(store: &DataStore, file: PhysicalFileId, wanted: Vec<Wanted>) -> Vec<Bytewise> {
    let (store, count) = (store.clone(), wanted.len());
    let read = on_a_thread(move || {
        let len = wanted.iter().map(|wanted| wanted.range.end).max().unwrap_or(0);
        let file = Opened::open(&store, &file, len, 0)?;
        let unreadable = |error: io::Error| Bytewise::Unreadable(crate::error::chain(&error));
        Ok::<_, io::Error>(wanted.iter().map(|wanted| read_one(&file, wanted).unwrap_or_else(unreadable)).collect())
    });
    read.await.unwrap_or_else(|error| vec![Bytewise::Unreadable(crate::error::chain(&error)); count])
}

fn read_one(file: &Opened, wanted: &Wanted) -> io::Result<Bytewise> {
    let Range { start: mut at, end } = wanted.range;
    let (mut hasher, mut digest) = (SegmentHasher::default(), wanted.md5.then(Md5::new));
    let mut buffer = vec![0; usize::try_from((end - at).min(1 << 20)).unwrap_or(0)];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        if file.read_at(at, &mut buffer[..want])? < want {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..want]);
        if let Some(digest) = &mut digest {
            digest.update(&buffer[..want]);
        }
        at += want as u64;
    }
    Ok(Bytewise::Read(hasher.finish(), digest.map(|digest| digest.finalize().into())))
}

async fn on_a_thread<T: Send + 'static, E: From<io::Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(io::Error::other(error).into()),
    }
}

/// The frames of a file by their headers alone: also those whose data was given back.
pub(in crate::daemon) async fn frames(
    store: &DataStore,
    id: &PhysicalFileId,
    len: u64,
) -> Result<Vec<Frame>, FormatError> {
    let (store, id) = (store.clone(), id.clone());
    on_a_thread(move || format::walk(&Opened::open(&store, &id, len, 0)?, len)).await
}

/// How many files are looked at or read at a time.
pub(in crate::daemon) fn at_once(store: &DataStore) -> usize {
    match store {
        DataStore::Local(_) => FILES_AT_ONCE_LOCAL,
        DataStore::Object(_) => FILES_AT_ONCE_REMOTE,
    }
}

/// A file on storage, read from a blocking thread.
enum Opened {
    Local(std::fs::File),
    Remote(Box<Remote>),
}

/// A file on an object store, and what of it was read last.
struct Remote {
    store: DataStore,
    id: PhysicalFileId,
    len: u64,
    /// From here on one read takes everything up to the end.
    tail: u64,
    handle: Handle,
    window: Mutex<(u64, Bytes)>,
}

impl Opened {
    fn open(store: &DataStore, id: &PhysicalFileId, len: u64, tail_bytes: u64) -> io::Result<Self> {
        Ok(match store {
            DataStore::Local(local) => Self::Local(local.open(id)?),
            DataStore::Object(_) => Self::Remote(Box::new(Remote {
                store: store.clone(),
                id: id.clone(),
                len,
                tail: len.saturating_sub(tail_bytes),
                handle: Handle::current(),
                window: Mutex::default(),
            })),
        })
    }
}

impl ReadAt for Opened {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(file) => ReadAt::read_at(file, offset, buffer),
            Self::Remote(file) => file.read_at(offset, buffer),
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
