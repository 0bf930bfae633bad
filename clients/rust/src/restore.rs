//! Many segments in one answer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc_fast::Digest;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::client::CRC32C;
use crate::error::{BoxError, ClientError};
use crate::wire::{ListedSegment, RestoreEnd, RestoreHead};

/// Longest head of a frame that is believed, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The answer to a restore while it arrives: for each segment [`Self::next`], then [`Self::bytes`] until it is whole.
#[derive(Debug)]
pub struct Restore {
    body: Incoming,
    /// Bytes that arrived and were not looked at.
    arrived: Bytes,
    /// The segment whose bytes arrive now.
    current: Option<IncomingSegment>,
    /// Counts of the segments that arrived whole.
    whole: RestoreEnd,
}

#[derive(Debug)]
struct IncomingSegment {
    segment: String,
    crc32c: String,
    left: u64,
    crc: Digest,
}

impl Restore {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, arrived: Bytes::new(), current: None, whole: RestoreEnd { end: 0, bytes: 0 } }
    }

    /// The next segment; `None` when all have arrived, whole and checked. What was not read of the one before is read and
    /// checked first.
    ///
    /// # Errors
    /// [`ClientError::BrokenOff`]; ask for the rest again.
    pub async fn next(&mut self) -> Result<Option<ListedSegment>, ClientError> {
        while self.bytes().await?.is_some() {}
        let len = self.exactly(4).await?.get_u32_le() as usize;
        if !(1..=HEAD_BYTES_MAX).contains(&len) {
            return Err(self.broken_off(format!("a head of {len} bytes was announced")));
        }
        let head = self.exactly(len).await?;
        match serde_json::from_slice(&head)
            .map_err(|error| self.broken_off(format!("a head cannot be read: {error}")))?
        {
            RestoreHead::Segment(segment) => {
                let info = &segment.info;
                self.current = Some(IncomingSegment {
                    segment: info.segment.clone(),
                    crc32c: info.crc32c.clone(),
                    left: info.len,
                    crc: Digest::new(CRC32C),
                });
                Ok(Some(segment))
            }
            RestoreHead::End(end) if (end.end, end.bytes) == (self.whole.end, self.whole.bytes) => Ok(None),
            RestoreHead::End(end) => Err(self.broken_off(format!("the daemon says that it sent {}", end.end))),
            RestoreHead::Broken(broken) => Err(ClientError::BrokenOff {
                whole: self.whole.end,
                segment: Some(broken.broken),
                message: broken.error.message,
                source: None,
            }),
        }
    }

    /// The next bytes of the segment, in pieces of any size; `None` when it is whole and its checksum is right.
    ///
    /// # Errors
    /// [`ClientError::BrokenOff`], also when the checksum is wrong.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>, ClientError> {
        let Some(current) = &self.current else { return Ok(None) };
        if current.left > 0 {
            self.arrive().await?;
        }
        let Some(current) = &mut self.current else { return Ok(None) };
        if current.left > 0 {
            let bytes =
                self.arrived.split_to(usize::try_from(current.left).unwrap_or(usize::MAX).min(self.arrived.len()));
            current.left -= bytes.len() as u64;
            current.crc.update(&bytes);
            self.whole.bytes += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        let Some(IncomingSegment { segment, crc32c, crc, .. }) = self.current.take() else { return Ok(None) };
        let actual = format!("{:08x}", crc.finalize() as u32);
        if actual != crc32c {
            let message = format!("its bytes have CRC-32C {actual}, {crc32c} was announced");
            return Err(ClientError::BrokenOff {
                whole: self.whole.end,
                segment: Some(segment),
                message,
                source: None,
            });
        }
        self.whole.end += 1;
        Ok(None)
    }

    /// Exactly so many bytes, between two segments.
    async fn exactly(&mut self, len: usize) -> Result<Bytes, ClientError> {
        let mut bytes = BytesMut::new();
        while bytes.len() < len {
            self.arrive().await?;
            bytes.put(self.arrived.split_to((len - bytes.len()).min(self.arrived.len())));
        }
        Ok(bytes.freeze())
    }

    /// Waits until bytes are there.
    async fn arrive(&mut self) -> Result<(), ClientError> {
        while self.arrived.is_empty() {
            let data = match self.body.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(self.broken_by("the connection broke".to_owned(), Some(error.into()))),
                None => return Err(self.broken_off("the answer ends too early".to_owned())),
            };
            self.arrived = data;
        }
        Ok(())
    }

    fn broken_off(&self, message: String) -> ClientError {
        self.broken_by(message, None)
    }

    fn broken_by(&self, message: String, source: Option<BoxError>) -> ClientError {
        let segment = self.current.as_ref().map(|current| current.segment.clone());
        ClientError::BrokenOff { whole: self.whole.end, segment, message, source }
    }
}
