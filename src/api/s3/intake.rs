//! Bodies of the S3 door: what came with a request, and what its client said of it. The engine pays for them and reads
//! them ([`crate::engine::intake`]).

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderMap;
use http::header::EXPECT;
use parking_lot::Mutex;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, TrailingHeaders};

use super::checksums::{BodyHasher, Claims, EtagNeeds};
use super::errors::{self, BodyFault, refuse};
use crate::engine::intake::{Body, Digests};

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
    /// Whether the client waits for `100 Continue`.
    waits: bool,
    claims: Claims,
    trailers: Trailers,
}

enum Trailers {
    None,
    Checked(TrailingHeaders),
    Unchecked(Unchecked),
}

impl Intake {
    /// The body of a request.
    ///
    /// # Errors
    /// `MissingContentLength`; `InvalidDigest` or `InvalidRequest` for checksums that cannot be any.
    pub(super) fn of<T>(request: &mut S3Request<T>, body: Option<StreamingBlob>) -> S3Result<Self> {
        let len = declared_len(&request.headers)?;
        let mut claims = Claims::of(&request.headers)?;
        // Of a request that passed twice, they are where the first pass has put them.
        let first_pass = request.extensions.remove::<TrailingHeaders>();
        let checked = request.trailing_headers.take().or(first_pass);
        let trailers = match (checked, request.extensions.remove::<Unchecked>()) {
            (Some(trailers), _) => Trailers::Checked(trailers),
            (None, Some(unchecked)) => {
                claims.check_payload_hash(&request.headers);
                Trailers::Unchecked(unchecked)
            }
            (None, None) => Trailers::None,
        };
        let fault = request.extensions.remove::<BodyFault>().unwrap_or_default();
        let body: Pin<Box<dyn Stream<Item = _> + Send>> = match body {
            Some(body) => {
                let explain = move |error| fault.take().unwrap_or_else(|| errors::body(&error));
                Box::pin(body.map(move |chunk| chunk.map_err(&explain)).fuse())
            }
            None => Box::pin(futures::stream::empty()),
        };
        let waits = request.headers.contains_key(EXPECT);
        Ok(Self { body, len, waits, claims, trailers })
    }

    /// Bytes that come from storage.
    pub(super) fn of_stored(body: impl Stream<Item = S3Result<Bytes>> + Send + 'static, len: u64) -> Self {
        Self { body: Box::pin(body), len, waits: true, claims: Claims::default(), trailers: Trailers::None }
    }

    /// Bytes that were declared.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The client's claims about the body.
    pub(super) fn claims_mut(&mut self) -> &mut Claims {
        &mut self.claims
    }

    /// The body, which is hashed as it arrives.
    pub(super) fn hashed(self, etag: EtagNeeds) -> Hashed {
        let Self { body, len, waits, claims, trailers } = self;
        Hashed { body, len, waits, hasher: claims.hasher(etag), trailers }
    }
}

/// A body that is hashed as it arrives.
pub(super) struct Hashed {
    body: Pin<Box<dyn Stream<Item = S3Result<Bytes>> + Send>>,
    len: u64,
    waits: bool,
    hasher: BodyHasher,
    trailers: Trailers,
}

impl Body for Hashed {
    type Fault = S3Error;

    fn announced(&self) -> u64 {
        self.len
    }

    fn waits(&self) -> bool {
        self.waits
    }

    async fn next(&mut self) -> S3Result<Option<Bytes>> {
        let next = self.body.next().await.transpose()?;
        if let Some(chunk) = &next {
            self.hasher.update(chunk);
        }
        Ok(next)
    }

    fn check(self, _: u32) -> S3Result<Digests> {
        self.hasher.finish(self.trailers.take().as_ref())
    }

    fn is_of_client(fault: &S3Error) -> bool {
        fault.status_code().is_some_and(|status| status.is_client_error())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn a_body_is_hashed_as_it_arrives() {
        let chunks = [b"1234".as_slice(), b"", b"56789"].map(|chunk| Ok(Bytes::from_static(chunk)));
        let mut body = Intake::of_stored(futures::stream::iter(chunks), 9).hashed(EtagNeeds::Md5);

        while body.next().await.unwrap().is_some() {}

        assert_eq!(hex::encode(body.check(0).unwrap().md5.unwrap()), "25f9e794323b453885f5181f1b624d0b");
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
