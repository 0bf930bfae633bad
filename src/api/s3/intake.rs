//! Receiving a body: its length is known and paid for before more than its first bytes are asked for, and what the client
//! said of it is compared before anything becomes visible. See [`crate::api::body`] on the first bytes.
//!
//! A body up to `store.part-size` is received whole into one buffer of exactly its length. A larger one passes through
//! in pieces of [`PIECE_BYTES`], so it is never held whole, whatever its size.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderMap;
use http::header::EXPECT;
use parking_lot::Mutex;
use s3s::dto::StreamingBlob;
use s3s::{S3ErrorCode, S3Request, S3Result, TrailingHeaders};

use super::super::body::FIRST_BYTES;
use super::S3Door;
use super::checksums::{Claims, Digests, EtagNeeds};
use super::errors::{self, OrS3, incomplete_body, refuse};
use crate::catalog::command::{About, Bind, Item, Store, Stored};
use crate::config::EtagKind;
use crate::merge::{BigSegment, Parcel, Piece};
use crate::model::{SegmentCrc, SegmentHasher, SegmentId};
use crate::runtime::{Buffer, PaidBytes};

/// Bytes of a piece of a body that passes through.
const PIECE_BYTES: usize = 1 << 20;

/// Goes with a request whose signature nobody checked, because no keys are configured.
#[derive(Debug, Clone, Default)]
pub(super) struct Unchecked {
    /// Trailers of an aws-chunked body, once it is read.
    pub trailers: Arc<Mutex<Option<HeaderMap>>>,
}

/// A body that has not been asked for yet.
pub(super) struct Intake {
    body: Pin<Box<dyn Stream<Item = S3Result<Bytes>> + Send>>,
    len: u64,
    /// How many bytes must have come before memory is taken.
    first: u64,
    claims: Claims,
    trailers: Trailers,
}

enum Trailers {
    None,
    Checked(TrailingHeaders),
    Unchecked(Unchecked),
}

/// A body that is in memory, and is what the client said.
pub(super) struct Whole {
    pub data: Bytes,
    pub crc: SegmentCrc,
    pub digests: Digests,
}

/// A body that arrived: what an object or a part is told of it.
pub(super) struct Received {
    /// None if it has no bytes.
    pub segment: Option<SegmentId>,
    pub len: u64,
    pub etag: String,
    pub digests: Digests,
}

impl Intake {
    /// The body of a request.
    ///
    /// # Errors
    /// `MissingContentLength`; `InvalidDigest` or `InvalidRequest` for checksums that cannot be any.
    pub(super) fn of<T>(request: &mut S3Request<T>, body: Option<StreamingBlob>) -> S3Result<Self> {
        let len = declared_len(&request.headers)?;
        let mut claims = Claims::of(&request.headers)?;
        let trailers = match (request.trailing_headers.take(), request.extensions.remove::<Unchecked>()) {
            (Some(trailers), _) => Trailers::Checked(trailers),
            (None, Some(unchecked)) => {
                claims.check_payload_hash(&request.headers);
                Trailers::Unchecked(unchecked)
            }
            (None, None) => Trailers::None,
        };
        let body: Pin<Box<dyn Stream<Item = _> + Send>> = match body {
            Some(body) => Box::pin(body.map(|chunk| chunk.map_err(|error| errors::body(&error))).fuse()),
            None => Box::pin(futures::stream::empty()),
        };
        let first = if request.headers.contains_key(EXPECT) { 0 } else { len.min(FIRST_BYTES) };
        Ok(Self { body, len, first, claims, trailers })
    }

    /// Bytes that come from storage.
    pub(super) fn of_stored(body: impl Stream<Item = S3Result<Bytes>> + Send + 'static, len: u64) -> Self {
        Self { body: Box::pin(body), len, first: 0, claims: Claims::default(), trailers: Trailers::None }
    }

    /// Bytes that were declared.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What is said of the body.
    pub(super) fn claims_mut(&mut self) -> &mut Claims {
        &mut self.claims
    }

    /// Waits for the first bytes, before memory is taken for all of them. What is wrong with them is told when they are
    /// read.
    pub(super) async fn await_first(&mut self) {
        let (mut first, mut came) = (vec![], 0);
        while came < self.first {
            let Some(chunk) = self.body.next().await else { break };
            came = chunk.as_ref().map_or(u64::MAX, |chunk| came + chunk.len() as u64);
            first.push(chunk);
        }
        if !first.is_empty() {
            let rest = std::mem::replace(&mut self.body, Box::pin(futures::stream::empty()));
            self.body = Box::pin(futures::stream::iter(first).chain(rest));
        }
    }

    /// Receives the body whole; its bytes must be paid for.
    ///
    /// # Errors
    /// `IncompleteBody`, `BadDigest` and what else a body can do wrong.
    pub(super) async fn whole(mut self, etag: EtagNeeds) -> S3Result<Whole> {
        let capacity = usize::try_from(self.len).map_err(|_| too_long())?;
        let mut data = Buffer::with_capacity(capacity);
        let (mut crc, mut hasher) = (SegmentHasher::default(), std::mem::take(&mut self.claims).hasher(etag));
        while let Some(chunk) = self.body.next().await.transpose()? {
            if data.len() + chunk.len() > capacity {
                return Err(longer());
            }
            crc.update(&chunk);
            hasher.update(&chunk);
            data.extend_from_slice(&chunk);
        }
        if data.len() != capacity {
            return Err(shorter(self.len, data.len() as u64));
        }
        let digests = hasher.finish(self.trailers.take().as_ref())?;
        Ok(Whole { data: data.freeze(), crc: crc.finish(), digests })
    }

    /// Passes the body on in pieces; one piece must be paid for.
    async fn through(mut self, etag: EtagNeeds, big: &mut BigSegment) -> S3Result<Digests> {
        let mut hasher = std::mem::take(&mut self.claims).hasher(etag);
        let (mut received, mut piece) = (0u64, Buffer::with_capacity(PIECE_BYTES));
        while let Some(mut chunk) = self.body.next().await.transpose()? {
            received += chunk.len() as u64;
            if received > self.len {
                return Err(longer());
            }
            hasher.update(&chunk);
            while !chunk.is_empty() {
                let now = chunk.split_to(chunk.len().min(PIECE_BYTES - piece.len()));
                piece.extend_from_slice(&now);
                if piece.len() == PIECE_BYTES {
                    let full = std::mem::replace(&mut piece, Buffer::with_capacity(PIECE_BYTES));
                    big.write(full.freeze()).await.or_s3()?;
                }
            }
        }
        if received != self.len {
            return Err(shorter(self.len, received));
        }
        if !piece.is_empty() {
            big.write(piece.freeze()).await.or_s3()?;
        }
        hasher.finish(self.trailers.take().as_ref())
    }
}

impl Trailers {
    fn take(&self) -> Option<HeaderMap> {
        match self {
            Self::None => None,
            Self::Checked(trailers) => trailers.take(),
            Self::Unchecked(unchecked) => unchecked.trailers.lock().take(),
        }
    }
}

impl S3Door {
    /// Waits for memory for a body of `len` bytes.
    pub(super) async fn pay(&self, len: u64) -> S3Result<PaidBytes> {
        self.budget.pay(len, self.settings.limits.admission_timeout).await.or_s3()
    }

    /// Receives a body and stores it as one segment `id`; `bind` says what it means once it is known.
    ///
    /// Resolves once everything is durable and visible.
    ///
    /// # Errors
    /// Nothing is stored then, as far as anybody can see.
    pub(super) async fn store_body(
        &self,
        id: SegmentId,
        mut intake: Intake,
        about: About,
        bind: impl FnOnce(&Received) -> Bind,
    ) -> S3Result<(Stored, Received)> {
        let len = intake.len();
        if len == 0 {
            let whole = intake.whole(self.etag_needs()).await?;
            let received = self.received(None, 0, whole.digests);
            let stored = self.store_without_bytes(bind(&received)).await?;
            return Ok((stored, received));
        }
        intake.await_first().await;
        if len <= self.settings.store.part_bytes {
            self.merger.space().admit(len).or_s3()?;
            let paid = self.pay(len).await?;
            let Whole { data, crc, digests } = intake.whole(self.etag_needs()).await?;
            let received = self.received(Some(id), len, digests);
            let parcel =
                Parcel { pieces: vec![Piece { id, about, data, crc }], bind: bind(&received), paid: Some(paid) };
            return Ok((self.merger.store(parcel).await.or_s3()?, received));
        }
        let _piece = self.pay(PIECE_BYTES as u64).await?;
        let mut big = self.merger.begin(id, about, len).await.or_s3()?;
        let digests = intake.through(self.etag_needs(), &mut big).await?;
        let received = self.received(Some(big.id()), len, digests);
        let stored = big.finish(bind(&received)).await.or_s3()?;
        Ok((stored, received))
    }

    /// Stores what has no bytes, or only such as are stored.
    pub(super) async fn store_without_bytes(&self, bind: Bind) -> S3Result<Stored> {
        let store = Store { file: None, items: vec![Item { segments: vec![], bind }] };
        let answers = self.catalog.store(store).await.or_s3()?;
        let answer = answers.into_iter().next();
        answer.ok_or_else(|| errors::unavailable("the catalog gave no answer, repeat the request"))?.or_s3()
    }

    fn received(&self, segment: Option<SegmentId>, len: u64, digests: Digests) -> Received {
        let etag = self.etag(segment, &digests);
        Received { segment, len, etag, digests }
    }

    /// The entity tag of what arrived: its MD5, or a name with the `-` that keeps clients from taking it for one.
    pub(super) fn etag(&self, segment: Option<SegmentId>, digests: &Digests) -> String {
        match (self.settings.server.etag, digests.md5) {
            (EtagKind::Md5, Some(md5)) => hex::encode(md5),
            _ => format!("{:032x}-1", segment.unwrap_or_else(|| self.merger.new_id()).0),
        }
    }

    pub(super) fn etag_needs(&self) -> EtagNeeds {
        match self.settings.server.etag {
            EtagKind::Md5 => EtagNeeds::Md5,
            EtagKind::Opaque => EtagNeeds::Nothing,
        }
    }
}

/// The number of bytes that a client says its body has, without the framing of aws-chunked.
fn declared_len(headers: &HeaderMap) -> S3Result<u64> {
    let framed = headers.get("x-amz-content-sha256").is_some_and(|value| value.as_bytes().starts_with(b"STREAMING-"));
    let name = if framed { "x-amz-decoded-content-length" } else { "content-length" };
    let Some(value) = headers.get(name) else {
        return Err(refuse(S3ErrorCode::MissingContentLength, format!("the header {name} is missing")));
    };
    let number = value.to_str().ok().and_then(|value| value.parse().ok());
    number.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, format!("the header {name} is not a length")))
}

fn too_long() -> s3s::S3Error {
    refuse(S3ErrorCode::EntityTooLarge, "the body is too large")
}

fn longer() -> s3s::S3Error {
    incomplete_body("the body has more bytes than declared")
}

fn shorter(declared: u64, received: u64) -> s3s::S3Error {
    incomplete_body(format!("{declared} bytes were declared, {received} arrived"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intake(len: u64, chunks: &[&'static [u8]]) -> Intake {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        Intake::of_stored(futures::stream::iter(chunks), len)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn a_whole_body_is_what_arrived_in_a_buffer_of_its_size() {
        let whole = intake(9, &[b"1234", b"", b"56789"]).whole(EtagNeeds::Md5).await.unwrap();

        assert_eq!(&whole.data[..], b"123456789");
        assert_eq!(whole.crc.whole, 0xe306_9283);
        assert_eq!(hex::encode(whole.digests.md5.unwrap()), "25f9e794323b453885f5181f1b624d0b");
    }

    #[tokio::test]
    async fn bodies_of_another_length_than_declared_are_refused() {
        for len in [0, 3, 5] {
            let error = intake(len, &[b"12", b"34"]).whole(EtagNeeds::Nothing).await.err().unwrap();
            assert_eq!(error.code(), &S3ErrorCode::IncompleteBody, "{len}");
        }
    }

    #[test]
    fn the_length_is_that_without_framing() {
        let framed = [
            ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
            ("content-length", "99"),
            ("x-amz-decoded-content-length", "7"),
        ];

        assert_eq!(declared_len(&headers(&framed)).unwrap(), 7);
        assert_eq!(
            declared_len(&headers(&[("content-length", "5"), ("x-amz-decoded-content-length", "7")])).unwrap(),
            5
        );
        assert_eq!(declared_len(&headers(&framed[..2])).unwrap_err().code(), &S3ErrorCode::MissingContentLength);
        assert_eq!(
            declared_len(&headers(&[("content-length", "-1")])).unwrap_err().code(),
            &S3ErrorCode::InvalidArgument
        );
    }
}
