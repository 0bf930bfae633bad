//! Segments that are read one after the other, block by block.
//!
//! The next block is read when the receiver asks for it. A segment whose last block was read is let go, and its file with
//! the last segment of it: a receiver that is slow with bytes that are in memory keeps no file.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use super::find::FoundMany;
use super::{Paid, ReadError, Reader, to_usize};
use crate::catalog::questions::FoundSegment;
use crate::catalog::state::ObjectView;
use crate::model::{BLOCK_BYTES, SegmentId};
use crate::runtime::{PaidBytes, Reading};

/// Checked bytes in order. An error ends it.
pub type ByteStream = BoxStream<'static, Result<Bytes, ReadError>>;

impl Reader {
    /// The bytes `range` of a segment.
    ///
    /// The first block is read before this returns, so that what is missing or damaged is an error, not a stream that
    /// breaks off. A later block may still end the stream with an error.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn segment(&self, id: SegmentId, range: Range<u64>) -> Result<ByteStream, ReadError> {
        let reading = self.leases.begin();
        let segment = self.find(id, &reading).ok_or(ReadError::Freed(id))?;
        let found = FoundMany { segments: vec![segment], skip: range.start, paid: None };
        self.walk(found, range.end.saturating_sub(range.start), reading).await
    }

    /// The bytes `range` of an object, as it was when it was looked up: whatever becomes of it meanwhile, it is read to its
    /// end.
    ///
    /// # Errors
    /// As [`Self::segment`]; [`ReadError::Freed`] also if the object was replaced since it was looked up.
    pub async fn object(&self, object: &ObjectView, range: Range<u64>) -> Result<ByteStream, ReadError> {
        let reading = self.leases.begin();
        let found = self.find_range(object, &range, &reading).await?;
        self.walk(found, range.end.saturating_sub(range.start), reading).await
    }

    async fn walk(&self, found: FoundMany, len: u64, reading: Reading) -> Result<ByteStream, ReadError> {
        let FoundMany { segments, skip, paid } = found;
        let mut segments = segments.into_iter();
        let now = segments.next();
        let mut walk = Walk { reader: self.clone(), reading, now, at: skip, rest: segments, left: len, _paid: paid };
        let Some(first) = walk.next().await? else { return Ok(stream::empty().boxed()) };
        let first = stream::once(std::future::ready(Ok(first)));
        if walk.left == 0 {
            // All of it is in memory: no file is kept for whoever takes it.
            return Ok(first.boxed());
        }
        let rest = stream::unfold(Some(walk), |walk| async move {
            let mut walk = walk?;
            let next = walk.next().await.transpose()?;
            let goes_on = next.is_ok() && walk.left > 0;
            Some((next, goes_on.then_some(walk)))
        });
        Ok(first.chain(rest).boxed())
    }

    /// The part `hand_out` of the block `fetch` of a segment, paid for.
    async fn read(
        &self,
        segment: &FoundSegment,
        fetch: Range<u64>,
        hand_out: Range<u64>,
        reading: &Reading,
    ) -> Result<Bytes, ReadError> {
        let paid = self.budget.pay(fetch.end - fetch.start, self.patience).await?;
        let bytes = self.read_checked(segment, &fetch, reading).await?;
        let bytes = bytes.slice(to_usize(hand_out.start - fetch.start)..to_usize(hand_out.end - fetch.start));
        Ok(Bytes::from_owner(Paid { bytes, _paid: paid }))
    }
}

/// A read in progress.
struct Walk {
    reader: Reader,
    reading: Reading,
    /// The segment that is read, and its next byte.
    now: Option<FoundSegment>,
    at: u64,
    rest: std::vec::IntoIter<FoundSegment>,
    /// Bytes to hand out.
    left: u64,
    _paid: Option<PaidBytes>,
}

impl Walk {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        self.reading.progressed();
        while self.left > 0
            && let Some(segment) = &self.now
        {
            let len = segment.location.len();
            if self.at >= len {
                self.next_segment();
                continue;
            }
            let block = self.at / BLOCK_BYTES * BLOCK_BYTES;
            let fetch = block..(block + BLOCK_BYTES).min(len);
            let hand_out = self.at..fetch.end.min(self.at.saturating_add(self.left));
            let bytes = self.reader.read(segment, fetch, hand_out.clone(), &self.reading).await?;
            self.left -= hand_out.end - hand_out.start;
            self.at = hand_out.end;
            if self.at == len {
                self.next_segment();
            }
            self.reading.progressed();
            return Ok(Some(bytes));
        }
        Ok(None)
    }

    fn next_segment(&mut self) {
        self.now = self.rest.next();
        self.at = 0;
    }
}
