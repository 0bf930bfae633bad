//! Looks at storage file by file: footers, frames where there is no footer, holes; and the bytes of segments.

use std::io;
use std::ops::Range;

use md5::{Digest, Md5};

use crate::format::{self, FooterEntry, FormatError, Frame, ReadAt};
use crate::model::{PhysicalFileId, SegmentCrc, SegmentHasher};
use crate::store::{DataStore, OpenedFile, RequestPrice, TOMBSTONE};

/// Bytes at the end of a file of an object store that are read at once: footers are rarely larger.
const TAIL_BYTES: u64 = 256 << 10;
/// Files that are looked at or read at a time.
const FILES_AT_ONCE_LOCAL: usize = 4;
const FILES_AT_ONCE_REMOTE: usize = 16;

/// A file below `data/`.
#[derive(Debug)]
pub(in crate::engine) struct SurveyedFile {
    pub id: PhysicalFileId,
    pub len: u64,
    pub content: FileContent,
    /// Given back to a local disk.
    pub holes: Vec<Range<u64>>,
}

/// The contents of a file.
#[derive(Debug)]
pub(in crate::engine) enum FileContent {
    /// It was closed.
    Index(Vec<FooterEntry>),
    /// It has no footer that can be read, but whole frames.
    Frames(Vec<Frame>, String),
    /// Nothing in it can be made out.
    Nothing(String),
    /// It never was a file: a daemon took the name.
    Tombstone,
    /// Storage does not give its bytes.
    Unreadable(String),
}

/// The result of reading the bytes of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) enum Bytewise {
    /// These, with this MD5 if it was asked for.
    Read(SegmentCrc, Option<[u8; 16]>),
    /// Storage does not give them.
    Unreadable(String),
}

/// Bytes to be read.
#[derive(Debug, Clone)]
pub(in crate::engine) struct RangeToRead {
    pub range: Range<u64>,
    pub md5: bool,
}

/// Looks at a file.
pub(in crate::engine) async fn look(store: &DataStore, id: PhysicalFileId, len: u64) -> SurveyedFile {
    let (reader, file) = (store.clone(), id.clone());
    let content = on_a_thread(move || content(&reader, &file, len)).await;
    let content = content.unwrap_or_else(|error| FileContent::Unreadable(crate::error::chain(&error)));
    let holes = store.holes(&id).await.unwrap_or_default();
    SurveyedFile { id, len, content, holes }
}

fn content(store: &DataStore, id: &PhysicalFileId, len: u64) -> Result<FileContent, FormatError> {
    let file = store.open(id, len, TAIL_BYTES)?;
    let why = match format::read_end(&file, len) {
        Ok((trailer, entries)) if trailer.ulid == id.ulid() => return Ok(FileContent::Index(entries)),
        Ok(_) => "its trailer is that of another file".to_owned(),
        Err(FormatError::Read(error)) => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    let mut first = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(TOMBSTONE.len() + 1)];
    if file.read_at(0, &mut first)? == TOMBSTONE.len() && first == TOMBSTONE {
        return Ok(FileContent::Tombstone);
    }
    let scan = format::scan(&file, 0, len)?;
    Ok(if scan.frames.is_empty() { FileContent::Nothing(why) } else { FileContent::Frames(scan.frames, why) })
}

/// Reads segments of one file, in the order of their places.
pub(in crate::engine) async fn read(
    store: &DataStore,
    file: PhysicalFileId,
    wanted: Vec<RangeToRead>,
) -> Vec<Bytewise> {
    let (store, count) = (store.clone(), wanted.len());
    let read = on_a_thread(move || {
        let len = wanted.iter().map(|wanted| wanted.range.end).max().unwrap_or(0);
        let file = store.open(&file, len, 0)?;
        let unreadable = |error: io::Error| Bytewise::Unreadable(crate::error::chain(&error));
        Ok::<_, io::Error>(wanted.iter().map(|wanted| read_one(&file, wanted).unwrap_or_else(unreadable)).collect())
    });
    read.await.unwrap_or_else(|error| vec![Bytewise::Unreadable(crate::error::chain(&error)); count])
}

fn read_one(file: &OpenedFile, wanted: &RangeToRead) -> io::Result<Bytewise> {
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

#[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
async fn on_a_thread<T: Send + 'static, E: From<io::Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(io::Error::other(error).into()),
    }
}

/// The frames of a file by their headers alone: also those whose data was given back.
pub(in crate::engine) async fn frames(
    store: &DataStore,
    id: &PhysicalFileId,
    len: u64,
) -> Result<Vec<Frame>, FormatError> {
    let (store, id) = (store.clone(), id.clone());
    on_a_thread(move || format::walk(&store.open(&id, len, 0)?, len)).await
}

/// Number of files that are looked at or read at a time.
pub(in crate::engine) fn at_once(store: &DataStore) -> usize {
    match store.capabilities().request {
        RequestPrice::Free => FILES_AT_ONCE_LOCAL,
        RequestPrice::RoundTrip => FILES_AT_ONCE_REMOTE,
    }
}
