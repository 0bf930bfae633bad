//! The framing of aws-chunked bodies, watched before s3s takes it apart.
//!
//! s3s holds a chunk in memory until it is complete, and a client may declare chunks of any size. So unsigned chunks
//! are cut into small ones, which changes nothing; signed ones are limited to [`SIGNED_CHUNK_BYTES_MAX`], far above
//! what clients send. Where no signatures are checked, s3s does not look at the framing at all, and it is removed here.
//!
//! ```text
//! chunk*   <size in hex>[;chunk-signature=<64 hex>] CRLF <data> CRLF
//! end      0[;chunk-signature=<64 hex>] CRLF (<trailer>: <value> CRLF)* CRLF
//! ```
//!
//! # Source
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html> and `sigv4-streaming-trailers.html`

use std::collections::VecDeque;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use s3s::StdError;

use super::errors::{self, BodyFault};
use super::intake::Unchecked;

/// Bytes of a signed chunk at most; clients send 64 or 128 KiB.
pub(super) const SIGNED_CHUNK_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the line before a chunk.
const LINE_BYTES_MAX: usize = 1024;
/// Bytes of all trailers.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// The treatment of the framing.
#[derive(Debug, Clone)]
pub(super) enum Framing {
    /// It stays as it is: it is signed.
    Watched,
    /// It is made anew, in chunks as small as they arrive.
    Renewed,
    /// It goes; trailers are put down.
    Removed(Unchecked),
}

/// The framing is not what it should be.
#[derive(Debug, thiserror::Error)]
enum MalformedChunk {
    #[error("aws-chunked framing: {0}")]
    Framing(&'static str),
    #[error("a signed chunk is too large")]
    SignedTooLarge,
}

/// Applies `framing` to a body. A signed chunk that is too large is told to `fault`.
pub(super) fn framed(
    body: impl Stream<Item = Result<Bytes, StdError>> + Send + 'static,
    framing: Framing,
    fault: BodyFault,
) -> impl Stream<Item = Result<Bytes, StdError>> + Send {
    let start = (Box::pin(body), Some(Parser::new(framing)), VecDeque::new(), fault);
    futures::stream::unfold(start, |(mut body, mut parser, mut out, fault)| async move {
        loop {
            if let Some(bytes) = out.pop_front() {
                return Some((Ok(bytes), (body, parser, out, fault)));
            }
            let mut now = parser.take()?;
            let done = match body.next().await {
                Some(Ok(bytes)) => now.push(bytes, &mut out).map(|()| parser = Some(now)),
                Some(Err(error)) => return Some((Err(error), (body, None, out, fault))),
                None => now.end(),
            };
            if let Err(error) = done {
                if matches!(error, MalformedChunk::SignedTooLarge) {
                    fault.set(errors::signed_chunk_too_large(SIGNED_CHUNK_BYTES_MAX));
                }
                return Some((Err(error.into()), (body, None, VecDeque::new(), fault)));
            }
        }
    })
}

#[derive(Debug)]
struct Parser {
    framing: Framing,
    state: ChunkState,
    /// The line or the trailers as far as they have arrived.
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Line,
    Data {
        left: u64,
    },
    /// Between the data and the next line, with so many bytes of CRLF to come.
    AfterData {
        left: usize,
    },
    Trailers,
}

impl Parser {
    fn new(framing: Framing) -> Self {
        Self { framing, state: ChunkState::Line, held: vec![] }
    }

    /// Takes in bytes, and gives out what the framing says.
    fn push(&mut self, mut bytes: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), MalformedChunk> {
        if matches!(self.framing, Framing::Watched) {
            out.push_back(bytes.clone());
        }
        while !bytes.is_empty() {
            match self.state {
                ChunkState::Line => self.line(&mut bytes, out)?,
                ChunkState::Data { left } => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let left = left - take as u64;
                    self.data(bytes.split_to(take), out);
                    self.state = if left == 0 { ChunkState::AfterData { left: 2 } } else { ChunkState::Data { left } };
                }
                ChunkState::AfterData { left } => {
                    let expected = if left == 2 { b'\r' } else { b'\n' };
                    if bytes.split_to(1)[0] != expected {
                        return Err(MalformedChunk::Framing("a chunk is longer than it says"));
                    }
                    self.state = if left == 1 { ChunkState::Line } else { ChunkState::AfterData { left: left - 1 } };
                }
                ChunkState::Trailers => {
                    if self.held.len() + bytes.len() > TRAILER_BYTES_MAX {
                        return Err(MalformedChunk::Framing("the trailers are too long"));
                    }
                    self.held.extend_from_slice(&bytes);
                    if matches!(self.framing, Framing::Renewed) {
                        out.push_back(bytes);
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, bytes: &mut Bytes, out: &mut VecDeque<Bytes>) -> Result<(), MalformedChunk> {
        let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let part = bytes.split_to(end.unwrap_or(bytes.len()));
        if self.held.len() + part.len() > LINE_BYTES_MAX {
            return Err(MalformedChunk::Framing("the line before a chunk is too long"));
        }
        self.held.extend_from_slice(&part);
        if end.is_none() {
            return Ok(());
        }
        let size = chunk_size(&self.held).ok_or(MalformedChunk::Framing("the line before a chunk has no size"))?;
        self.held.clear();
        if matches!(self.framing, Framing::Watched) && size > SIGNED_CHUNK_BYTES_MAX {
            return Err(MalformedChunk::SignedTooLarge);
        }
        self.state = if size == 0 { ChunkState::Trailers } else { ChunkState::Data { left: size } };
        if size == 0 && matches!(self.framing, Framing::Renewed) {
            out.push_back(Bytes::from_static(b"0\r\n"));
        }
        Ok(())
    }

    fn data(&self, data: Bytes, out: &mut VecDeque<Bytes>) {
        match self.framing {
            Framing::Watched => {}
            Framing::Removed(_) => out.push_back(data),
            Framing::Renewed => {
                out.push_back(Bytes::from(format!("{:x}\r\n", data.len())));
                out.push_back(data);
                out.push_back(Bytes::from_static(b"\r\n"));
            }
        }
    }

    /// The body has ended.
    fn end(self) -> Result<(), MalformedChunk> {
        if self.state != ChunkState::Trailers {
            return Err(MalformedChunk::Framing("the body ends within a chunk"));
        }
        if let Framing::Removed(unchecked) = &self.framing {
            *unchecked.trailers.lock() = Some(trailers(&self.held)?);
        }
        Ok(())
    }
}

/// The number before `;` or the end of the line.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r\n")?;
    let digits = line.split(|byte| *byte == b';').next()?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn trailers(text: &[u8]) -> Result<HeaderMap, MalformedChunk> {
    let malformed = || MalformedChunk::Framing("a trailer is not a header");
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        let at = line.iter().position(|byte| *byte == b':').ok_or_else(malformed)?;
        let name = HeaderName::from_bytes(&line[..at]).map_err(|_| malformed())?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).map_err(|_| malformed())?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use proptest::prelude::*;

    use super::*;

    fn apply(body: &[u8], step: usize, framing: Framing) -> Result<Vec<u8>, String> {
        apply_and_tell(body, step, framing, BodyFault::default())
    }

    fn apply_and_tell(body: &[u8], step: usize, framing: Framing, fault: BodyFault) -> Result<Vec<u8>, String> {
        let pieces: Vec<Result<Bytes, StdError>> =
            body.chunks(step).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let out = framed(futures::stream::iter(pieces), framing, fault);
        let joined = out.try_fold(vec![], |mut all, bytes| async move {
            all.extend_from_slice(&bytes);
            Ok(all)
        });
        futures::executor::block_on(joined).map_err(|error| error.to_string())
    }

    const BODY: &[u8] = b"5\r\nhello\r\n6;chunk-signature=x\r\n world\r\n0\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n";

    #[test]
    fn however_it_arrives_the_data_and_the_trailers_come_out() {
        for step in 1..=BODY.len() {
            let unchecked = Unchecked::default();

            let data = apply(BODY, step, Framing::Removed(unchecked.clone())).unwrap();
            let renewed = apply(BODY, step, Framing::Renewed).unwrap();

            assert_eq!(data, b"hello world", "{step}");
            assert_eq!(unchecked.trailers.lock().take().unwrap()["x-amz-checksum-crc32"], "AAAAAA==");
            assert_eq!(apply(&renewed, 7, Framing::Removed(Unchecked::default())).unwrap(), b"hello world");
            assert!(renewed.ends_with(b"0\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n"));
            assert_eq!(apply(BODY, step, Framing::Watched).unwrap(), BODY);
        }
    }

    #[test]
    fn malformed_framing_is_refused() {
        for bad in [
            &b"hello\r\nworld\r\n"[..],
            b"ffffffffffffffffff\r\nx\r\n",
            b"-5\r\nhello\r\n",
            b"5\r\nhello world\r\n0\r\n\r\n",
            b"5\r\nhel",
            b"5\r\nhello\r\n",
            b"\r\n",
            &[b'5'; 2000],
        ] {
            assert!(apply(bad, 3, Framing::Renewed).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn signed_chunks_are_limited() {
        let fault = BodyFault::default();

        apply_and_tell(b"7fffffff;chunk-signature=x\r\n", 5, Framing::Watched, fault.clone()).unwrap_err();

        let answer = fault.take().unwrap();
        assert_eq!(answer.code().as_str(), "InvalidRequest", "IncompleteBody would be repeated");
        assert!(answer.message().is_some_and(|text| text.contains("4194304 bytes")), "{answer:?}");
    }

    #[test]
    fn endless_trailers_are_refused() {
        let body = [&b"0\r\n"[..], &[b'x'; TRAILER_BYTES_MAX + 1]].concat();

        assert!(apply(&body, 1000, Framing::Renewed).is_err());
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            for framing in [Framing::Watched, Framing::Renewed, Framing::Removed(Unchecked::default())] {
                let _ = apply(&body, step, framing);
            }
        }
    }
}
