//! Segments of several shards in one answer, in the order in which they were asked for (`POST /v1/restore`).
//!
//! Each owner is asked for those of its shard as a client would ask it, and its frames ([`crate::api::native`]) are handed on. Segments
//! that follow each other in one shard and have many bytes come straight from its owner; a mixture of small ones is asked for in
//! parts, of all owners at once, and each part is read into memory before it is handed out.
//!
//! # Memory
//! A part is paid for before it is asked for. Where there is no memory, the next segments of one shard come straight from their
//! owner instead. So nobody waits for memory here, and no owner waits for the answer of another one: one that did would keep its
//! memory from others that are waited for.
//!
//! # Invariants
//! - What is wrong before the first byte is the owner's error. Later the answer breaks off, without its last frame.

use std::collections::{BTreeMap, VecDeque};

use axum::body::{Body as AxumBody, BodyDataStream};
use bytes::{Buf, Bytes, BytesMut};
use esker_client::wire::{ErrorBody, ErrorDetail, ErrorKind as WireKind, RestoreBroken, RestoreEnd, RestoreHead};
use futures::future::try_join_all;
use futures::{Stream, StreamExt, stream};
use http::request::Parts;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Limited};

use super::dispatch::{Dispatcher, Unanswered};
use crate::api::exchange::Exchange;
use crate::api::shards::siblings::IDEMPOTENT;
use crate::api::wire::frame;
use crate::runtime::PaidBytes;

/// Bytes of segments in one part, and segments.
const PART_BYTES_MAX: u64 = 4 << 20;
const PART_SEGMENTS_MAX: usize = 4096;
/// Segments of one shard that follow each other come straight from its owner, if they have so many bytes.
const STRAIGHT_BYTES_MIN: u64 = 1 << 20;
/// What the head of a frame takes, about, and at most.
const HEAD_BYTES: u64 = 512;
const HEAD_BYTES_MAX: usize = 1 << 20;
/// An error is at most so long.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// A segment that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedSegment {
    /// Its identity.
    pub id: String,
    /// The shard that it is in.
    pub shard: u32,
    /// Number of bytes.
    pub len: u64,
}

/// Why an answer breaks off.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatherError {
    /// An owner breaks off, and has said why.
    #[error("the owner of shard {0} broke off")]
    Broken(u32),
    /// Bytes of an owner do not come.
    #[error("bytes of shard {shard} did not come, its owner may have logged why: {why}")]
    Cut {
        /// The shard.
        shard: u32,
        /// What is known.
        why: String,
    },
    /// The next segments are not given.
    #[error("{0}")]
    Refused(String),
}

/// Has segments answered by their owners. `head` is that of the client's request.
///
/// # Errors
/// [`Unanswered`], before anything of an answer.
pub(super) async fn gather(
    dispatcher: Dispatcher,
    head: Parts,
    wanted: Vec<WantedSegment>,
) -> Result<Response<AxumBody>, Unanswered> {
    let mut gathering = Gathering {
        owners: Owners { dispatcher, head },
        wanted: wanted.into(),
        at: At::Next,
        sent: RestoreEnd { end: 0, bytes: 0 },
    };
    if let Some(refused) = gathering.ask_next().await? {
        return Ok(refused);
    }
    let mut answer = Response::new(AxumBody::from_stream(gathering.frames()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(answer)
}

/// What is asked for next.
#[derive(Debug, PartialEq, Eq)]
enum Portion {
    /// So many segments, which are in one shard.
    Straight(usize),
    /// So many, with so many bytes.
    Part(usize, u64),
}

/// The next portion, if memory is not counted.
fn next_portion(wanted: &VecDeque<WantedSegment>) -> Portion {
    let Some(first) = wanted.front() else { return Portion::Straight(0) };
    let (mut run, mut run_bytes) = (0, 0_u64);
    for segment in wanted.iter().take_while(|segment| segment.shard == first.shard) {
        run += 1;
        run_bytes = run_bytes.saturating_add(segment.len);
    }
    if run == wanted.len() || run_bytes >= STRAIGHT_BYTES_MIN {
        return Portion::Straight(run);
    }
    let (mut count, mut bytes) = (0, 0_u64);
    for segment in wanted.iter().take(PART_SEGMENTS_MAX) {
        let more = bytes.saturating_add(segment.len).saturating_add(HEAD_BYTES);
        if more > PART_BYTES_MAX && count > 0 {
            break;
        }
        (count, bytes) = (count + 1, more);
    }
    // One run that is long, but not in bytes, is no mixture.
    if count <= run { Portion::Straight(run) } else { Portion::Part(count, bytes) }
}

/// The frames of one owner, as they come.
struct OwnerFrames {
    shard: u32,
    body: BodyDataStream,
    read: BytesMut,
}

impl OwnerFrames {
    fn cut(&self, why: impl Into<String>) -> GatherError {
        GatherError::Cut { shard: self.shard, why: why.into() }
    }

    async fn more(&mut self) -> Result<(), GatherError> {
        match self.body.next().await {
            Some(Ok(bytes)) => {
                self.read.extend_from_slice(&bytes);
                Ok(())
            }
            Some(Err(error)) => Err(self.cut(error.to_string())),
            None => Err(self.cut("the answer has no end")),
        }
    }

    /// The head of the next frame, and the bytes in which it came.
    async fn head(&mut self) -> Result<(RestoreHead, Bytes), GatherError> {
        while self.read.len() < 4 {
            self.more().await?;
        }
        let len = (&self.read[..4]).get_u32_le() as usize;
        if len > HEAD_BYTES_MAX {
            return Err(self.cut(format!("a head has {len} bytes")));
        }
        while self.read.len() < 4 + len {
            self.more().await?;
        }
        let frame = self.read.split_to(4 + len).freeze();
        let head = serde_json::from_slice(&frame[4..]).map_err(|error| self.cut(error.to_string()))?;
        Ok((head, frame))
    }

    /// Some of the `left` bytes that follow a head.
    async fn bytes(&mut self, left: u64) -> Result<Bytes, GatherError> {
        if self.read.is_empty() {
            match self.body.next().await {
                Some(Ok(bytes)) if bytes.len() as u64 <= left => return Ok(bytes),
                Some(Ok(bytes)) => self.read.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(self.cut(error.to_string())),
                None => return Err(self.cut("the answer has no end")),
            }
        }
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.read.len());
        Ok(self.read.split_to(len).freeze())
    }

    /// The frames of so many segments, each with its bytes: up to the first that does not come, and why it does not.
    async fn segments(mut self, count: usize) -> OwnerSegments {
        let mut read = OwnerSegments { frames: VecDeque::with_capacity(count), failed: None };
        for _ in 0..count {
            match self.segment().await {
                Ok(frames) => read.frames.push_back(frames),
                Err(failed) => return OwnerSegments { failed: Some(failed), ..read },
            }
        }
        read
    }

    async fn segment(&mut self) -> Result<Vec<Bytes>, NotGathered> {
        let (mut left, frame) = self.begun().await?;
        let mut frames = vec![frame];
        while left > 0 {
            let piece = self.bytes(left).await?;
            left -= piece.len() as u64;
            frames.push(piece);
        }
        Ok(frames)
    }

    /// The length of the segment that comes next, and the frame that says so.
    async fn begun(&mut self) -> Result<(u64, Bytes), NotGathered> {
        let (head, frame) = self.head().await?;
        match head {
            RestoreHead::Segment(segment) => Ok((segment.info.len, frame)),
            RestoreHead::Broken(_) => Err(NotGathered { said: Some(frame), why: GatherError::Broken(self.shard) }),
            RestoreHead::End(_) => Err(self.cut("the answer ended early").into()),
        }
    }

    async fn end(&mut self) -> Result<(), GatherError> {
        match self.head().await?.0 {
            RestoreHead::End(_) => Ok(()),
            _ => Err(self.cut("the answer goes on behind its end")),
        }
    }
}

/// Why there is no more, and the frame that says so to the client, if it can be told.
struct NotGathered {
    said: Option<Bytes>,
    why: GatherError,
}

impl NotGathered {
    /// It befell this segment, before its first byte. An owner that breaks off does not always get to say so.
    fn said_before(self, id: &str) -> Self {
        let said = self.said.unwrap_or_else(|| broken(id.to_owned(), unavailable(self.why.to_string())));
        Self { said: Some(said), why: self.why }
    }
}

impl From<GatherError> for NotGathered {
    fn from(why: GatherError) -> Self {
        Self { said: None, why }
    }
}

/// What was read of one owner.
struct OwnerSegments {
    /// Of each segment, in order.
    frames: VecDeque<Vec<Bytes>>,
    /// Why the next one did not come.
    failed: Option<NotGathered>,
}

/// The owners, and the head of what the client has asked for.
struct Owners {
    dispatcher: Dispatcher,
    head: Parts,
}

impl Owners {
    async fn ask(&self, shard: u32, ids: &[&str]) -> Result<Result<OwnerFrames, Response<AxumBody>>, Unanswered> {
        let body = serde_json::json!({ "segments": ids }).to_string();
        let mut head = self.head.clone();
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        head.headers.remove(header::TRANSFER_ENCODING);
        // It only reads.
        head.headers.insert(IDEMPOTENT, HeaderValue::from_static("restore"));
        let answer = self.dispatcher.api(shard, Request::from_parts(head, AxumBody::from(body))).await?;
        if !answer.status().is_success() {
            return Ok(Err(answer));
        }
        Ok(Ok(OwnerFrames { shard, body: answer.into_body().into_data_stream(), read: BytesMut::new() }))
    }
}

/// Where an answer is.
enum At {
    /// Between two portions.
    Next,
    /// The owner's frames are handed on as they come: of these segments, after so many bytes of the one that was begun.
    Straight { frames: Box<OwnerFrames>, asked: VecDeque<WantedSegment>, left: u64 },
    /// Frames in memory, and why nothing follows, if nothing does.
    Ready { frames: VecDeque<Bytes>, paid: PaidBytes, breaks: Option<GatherError> },
    /// It breaks off.
    Breaks(GatherError),
    /// Everything was sent.
    Over,
}

struct Gathering {
    owners: Owners,
    /// Not asked for yet.
    wanted: VecDeque<WantedSegment>,
    at: At,
    sent: RestoreEnd,
}

impl Gathering {
    fn frames(self) -> impl Stream<Item = Result<Bytes, GatherError>> + Send {
        stream::unfold(self, |mut gathering| async move {
            let next = gathering.next().await;
            next.map(|next| (next, gathering))
        })
    }

    async fn next(&mut self) -> Option<Result<Bytes, GatherError>> {
        loop {
            match std::mem::replace(&mut self.at, At::Over) {
                At::Over => return None,
                At::Breaks(why) => {
                    tracing::error!(error = crate::error::chain(&why), "a restore over several shards broke off");
                    // The connection writes out what it has before it hears of the error, or it would never say why.
                    tokio::task::yield_now().await;
                    return Some(Err(why));
                }
                At::Ready { mut frames, paid, breaks } => match frames.pop_front() {
                    Some(bytes) => {
                        self.at = At::Ready { frames, paid, breaks };
                        return Some(Ok(bytes));
                    }
                    None => self.at = breaks.map_or(At::Next, At::Breaks),
                },
                At::Straight { frames, asked, left } => match self.straight(frames, asked, left).await {
                    Ok(Some(bytes)) => return Some(Ok(bytes)),
                    Ok(None) => {}
                    Err(NotGathered { said, why }) => {
                        self.at = At::Breaks(why);
                        if let Some(frame) = said {
                            return Some(Ok(frame));
                        }
                    }
                },
                At::Next if self.wanted.is_empty() => {
                    let RestoreEnd { end, bytes } = self.sent;
                    return Some(Ok(frame(&RestoreHead::End(RestoreEnd { end, bytes }))));
                }
                At::Next => {
                    let next = self.wanted.front().map(|next| next.id.clone()).unwrap_or_default();
                    let refused = match self.ask_next().await {
                        Ok(None) => continue,
                        Ok(Some(refused)) => said_by(refused).await,
                        Err(error) => unavailable(error.to_string()),
                    };
                    self.at = At::Breaks(GatherError::Refused(refused.message.clone()));
                    return Some(Ok(broken(next, refused)));
                }
            }
        }
    }

    /// The next bytes of one owner; `None` behind its last segment.
    async fn straight(
        &mut self,
        mut frames: Box<OwnerFrames>,
        mut asked: VecDeque<WantedSegment>,
        left: u64,
    ) -> Result<Option<Bytes>, NotGathered> {
        if left > 0 {
            let bytes = frames.bytes(left).await?;
            let left = left - bytes.len() as u64;
            self.at = At::Straight { frames, asked, left };
            return Ok(Some(bytes));
        }
        let Some(next) = asked.pop_front() else {
            frames.end().await?;
            self.at = At::Next;
            return Ok(None);
        };
        let (left, frame) = frames.begun().await.map_err(|failed| failed.said_before(&next.id))?;
        self.sent.end += 1;
        self.sent.bytes += left;
        self.at = At::Straight { frames, asked, left };
        Ok(Some(frame))
    }

    /// Asks for the next portion. Returns the answer of an owner that refuses.
    async fn ask_next(&mut self) -> Result<Option<Response<AxumBody>>, Unanswered> {
        let (count, paid) = match next_portion(&self.wanted) {
            Portion::Straight(count) => (count, None),
            Portion::Part(count, bytes) => match self.owners.dispatcher.try_pay(bytes) {
                Some(paid) => (count, Some(paid)),
                None => {
                    let first = self.wanted.front().map(|first| first.shard);
                    (self.wanted.iter().take_while(|next| Some(next.shard) == first).count(), None)
                }
            },
        };
        let asked: Vec<WantedSegment> = self.wanted.drain(..count).collect();
        let Some(paid) = paid else {
            let shard = asked.first().map_or(0, |first| first.shard);
            self.at =
                match self.owners.ask(shard, &asked.iter().map(|next| next.id.as_str()).collect::<Vec<_>>()).await? {
                    Ok(frames) => At::Straight { frames: Box::new(frames), asked: asked.into(), left: 0 },
                    Err(refused) => return Ok(Some(refused)),
                };
            return Ok(None);
        };
        let mut by_shard: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
        for segment in &asked {
            by_shard.entry(segment.shard).or_default().push(&segment.id);
        }
        let owners = &self.owners;
        let read = by_shard.iter().map(|(shard, ids)| async move {
            Ok::<_, Unanswered>(match owners.ask(*shard, ids).await? {
                Ok(frames) => (*shard, Ok(frames.segments(ids.len()).await)),
                Err(refused) => (*shard, Err(refused)),
            })
        });
        let mut segments = BTreeMap::new();
        for (shard, read) in try_join_all(read).await? {
            match read {
                Ok(of) => drop(segments.insert(shard, of)),
                Err(refused) => return Ok(Some(refused)),
            }
        }
        self.take_in(&asked, segments, paid);
        Ok(None)
    }

    /// What was read of a part is handed out in order, up to the first that did not come.
    fn take_in(&mut self, asked: &[WantedSegment], mut read: BTreeMap<u32, OwnerSegments>, paid: PaidBytes) {
        let (mut frames, mut breaks) = (VecDeque::new(), None);
        for WantedSegment { id, shard, len } in asked {
            if let Some(next) = read.get_mut(shard).and_then(|of| of.frames.pop_front()) {
                self.sent.end += 1;
                self.sent.bytes += len;
                frames.extend(next);
                continue;
            }
            let failed = read.remove(shard).and_then(|of| of.failed);
            let early =
                || NotGathered::from(GatherError::Cut { shard: *shard, why: "the answer ended early".to_owned() });
            let NotGathered { said, why } = failed.unwrap_or_else(early).said_before(id);
            frames.extend(said);
            breaks = Some(why);
            break;
        }
        self.at = At::Ready { frames, paid, breaks };
    }
}

/// The error that an owner answers with.
async fn said_by(refused: Response<AxumBody>) -> ErrorDetail {
    let status = refused.status();
    let read = Limited::new(refused.into_body(), ERROR_BYTES_MAX).collect().await;
    let body = read.ok().and_then(|read| serde_json::from_slice::<ErrorBody>(&read.to_bytes()).ok());
    body.map_or_else(|| unavailable(format!("the owner of a shard answers {status}")), |body| body.error)
}

fn unavailable(message: String) -> ErrorDetail {
    ErrorDetail {
        kind: WireKind::Unavailable,
        field: Some("segments".to_owned()),
        message,
        request_id: Exchange::current_id(),
    }
}

/// The last frame of an answer that breaks off at a segment.
fn broken(segment: String, error: ErrorDetail) -> Bytes {
    frame(&RestoreHead::Broken(RestoreBroken { broken: segment, error }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(segments: &[(u32, u64)]) -> VecDeque<WantedSegment> {
        segments.iter().map(|(shard, len)| WantedSegment { id: String::new(), shard: *shard, len: *len }).collect()
    }

    #[test]
    fn many_bytes_of_one_shard_come_straight_and_mixtures_in_parts_that_have_a_bound() {
        let (small, large) = (1000, STRAIGHT_BYTES_MIN);

        assert_eq!(next_portion(&wanted(&[(1, small); 3])), Portion::Straight(3));
        assert_eq!(next_portion(&wanted(&[(1, large), (2, small)])), Portion::Straight(1));
        assert_eq!(next_portion(&wanted(&[(1, large / 2), (1, large / 2), (2, small)])), Portion::Straight(2));
        let mixture = [(1, small), (2, small), (1, small)];
        assert_eq!(next_portion(&wanted(&mixture)), Portion::Part(3, 3 * (small + HEAD_BYTES)));
        // One that alone is too large is no part of it.
        let before = [(1, small), (2, small), (3, PART_BYTES_MAX)];
        assert_eq!(next_portion(&wanted(&before)), Portion::Part(2, 2 * (small + HEAD_BYTES)));
        assert_eq!(next_portion(&wanted(&[(1, small), (3, PART_BYTES_MAX)])), Portion::Straight(1));
        let many: Vec<_> = (0..10_000).map(|n| (n % 2, 1)).collect();
        assert!(matches!(next_portion(&wanted(&many)), Portion::Part(PART_SEGMENTS_MAX, _)));
        let long: Vec<_> = (0..10_000).map(|n| (n / 9_000, 1)).collect();
        assert_eq!(next_portion(&wanted(&long)), Portion::Straight(9_000));
    }
}
