//! One body, whole or streamed, for every door.
//!
//! A body's length is known, and it is paid for, before more than its first bytes are asked for. Memory is taken once its
//! first bytes are here: a client that announces a body and sends next to nothing holds nothing. Until then they are where
//! HTTP has read them to, in the buffers that every connection has. A client that waits to be asked for its body gets the
//! memory first, so that nobody is asked for one that there is no room for.
//!
//! A body up to `store.part-size` is received whole into one buffer of exactly its length. A larger one passes through in
//! pieces of [`PIECE_BYTES`], so it is never held whole, whatever its size. What a client said of it is compared before
//! anything becomes visible.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Engine, EngineError};
use crate::catalog::command::{Bind, Store, StoreItem, Stored};
use crate::error::ErrorKind;
use crate::merge::{BigSegment, Parcel, WholeSegment};
use crate::metrics::labels::{DoorLabel, SegmentOutcome};
use crate::model::{About, ObjectChecksum, SegmentCrc, SegmentHasher, SegmentId};
use crate::runtime::{Buffer, PaidBytes};

/// Bytes of a piece of a body that passes through.
const PIECE_BYTES: usize = 1 << 20;

/// First bytes of a body that are waited for before memory is taken for it; no more than HTTP reads ahead.
const FIRST_BYTES: u64 = 4 << 10;

/// A body as a door hands it over.
pub trait Body: Send {
    /// The fault of a body, as the door says it.
    type Fault: Send;

    /// Bytes that it is said to have.
    fn announced(&self) -> u64;

    /// Whether its client waits to be asked for it.
    fn waits(&self) -> bool;

    /// The next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Self::Fault>> + Send;

    /// Compares what was said of it with its bytes, which all have come and have this CRC-32C.
    ///
    /// # Errors
    /// They are not what was said.
    fn check(self, crc32c: u32) -> Result<Digests, Self::Fault>;

    /// Whether the client has to do something about a fault.
    fn is_of_client(fault: &Self::Fault) -> bool;
}

/// The checksums that the bytes of a body turned out to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digests {
    /// MD5, if it was asked for.
    pub md5: Option<[u8; 16]>,
    /// The checksums that the client sent or asked for, in that order, then those that were computed besides.
    pub checksums: Vec<ObjectChecksum>,
}

impl Digests {
    /// The value of the checksum of one algorithm, if it was computed.
    pub fn get(&self, algorithm: &str) -> Option<&str> {
        let found = self.checksums.iter().find(|checksum| checksum.algorithm == algorithm);
        found.map(|checksum| checksum.value.as_str())
    }
}

/// A body in memory.
#[derive(Debug)]
pub struct Whole {
    /// Its bytes.
    pub data: Bytes,
    /// Their checksums.
    pub crc: SegmentCrc,
    /// The memory they are in, if somebody paid for it.
    pub paid: Option<PaidBytes>,
}

/// Why a body was not taken in. Nothing of it is visible.
#[derive(Debug)]
pub enum Rejected<F> {
    /// Something is wrong with it.
    Body(F),
    /// It could not be stored.
    Engine(EngineError),
}

impl<F> From<EngineError> for Rejected<F> {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// A body that arrived.
pub(super) struct Arrived {
    /// None if it has no bytes.
    pub segment: Option<SegmentId>,
    pub len: u64,
    pub digests: Digests,
}

/// The kind under which a body is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// A segment of a checkpoint.
    Segment,
    /// An S3 object or a part of one.
    Object,
}

impl Counts {
    fn door(self) -> DoorLabel {
        match self {
            Self::Segment => DoorLabel::Native,
            Self::Object => DoorLabel::S3,
        }
    }
}

/// A body on its way. Its length is checked here.
struct IncomingBody<B> {
    body: B,
    /// The pieces that came before memory was taken.
    first: VecDeque<Bytes>,
    announced: u64,
    received: u64,
    hasher: SegmentHasher,
}

impl<B: Body> IncomingBody<B> {
    /// Waits for the first bytes of a body.
    async fn begin(mut body: B) -> Result<Self, Rejected<B::Fault>> {
        let (mut first, mut came) = (VecDeque::new(), 0);
        let announced = body.announced();
        let wanted = if body.waits() { 0 } else { announced.min(FIRST_BYTES) };
        while came < wanted {
            let Some(piece) = body.next().await.map_err(Rejected::Body)? else { break };
            came += piece.len() as u64;
            first.push_back(piece);
        }
        Ok(Self { body, first, announced, received: 0, hasher: SegmentHasher::default() })
    }

    /// The next bytes; `None` once all that were announced have come, and no more.
    async fn next(&mut self) -> Result<Option<Bytes>, Rejected<B::Fault>> {
        let next = match self.first.pop_front() {
            Some(piece) => Some(piece),
            None => self.body.next().await.map_err(Rejected::Body)?,
        };
        self.received += next.as_ref().map_or(0, |piece| piece.len() as u64);
        let wrong = if next.is_some() { self.received > self.announced } else { self.received != self.announced };
        if wrong {
            return Err(EngineError::Length { announced: self.announced, received: self.received }.into());
        }
        if let Some(piece) = &next {
            self.hasher.update(piece);
        }
        Ok(next)
    }

    /// The whole body in one buffer; its bytes must be paid for.
    async fn whole(mut self, paid: Option<PaidBytes>) -> Result<(Whole, Digests), Rejected<B::Fault>> {
        let capacity = usize::try_from(self.announced).map_err(|_| EngineError::TooLong(self.announced))?;
        let mut data = Buffer::with_capacity(capacity);
        while let Some(piece) = self.next().await? {
            data.extend_from_slice(&piece);
        }
        let crc = self.hasher.finish();
        let digests = self.body.check(crc.whole).map_err(Rejected::Body)?;
        Ok((Whole { data: data.freeze(), crc, paid }, digests))
    }

    /// Passes the body on in pieces; one piece must be paid for.
    async fn through(mut self, big: &mut BigSegment) -> Result<Digests, Rejected<B::Fault>> {
        let mut piece = Buffer::with_capacity(PIECE_BYTES);
        while let Some(mut chunk) = self.next().await? {
            while !chunk.is_empty() {
                let now = chunk.split_to(chunk.len().min(PIECE_BYTES - piece.len()));
                piece.extend_from_slice(&now);
                if piece.len() == PIECE_BYTES {
                    let full = std::mem::replace(&mut piece, Buffer::with_capacity(PIECE_BYTES));
                    big.write(full.freeze()).await.map_err(EngineError::from)?;
                }
            }
        }
        if !piece.is_empty() {
            big.write(piece.freeze()).await.map_err(EngineError::from)?;
        }
        self.body.check(self.hasher.finish().whole).map_err(Rejected::Body)
    }
}

impl Engine {
    /// Receives a body whole.
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn receive<B: Body>(&self, body: B) -> Result<(Whole, Digests), Rejected<B::Fault>> {
        self.receive_rest(IncomingBody::begin(body).await?).await
    }

    async fn receive_rest<B: Body>(&self, body: IncomingBody<B>) -> Result<(Whole, Digests), Rejected<B::Fault>> {
        // What has no bytes takes its place in the catalog all the same.
        self.catalog.check_room().map_err(EngineError::from)?;
        self.admit_write().await?;
        let paid = match body.announced {
            0 => None,
            len => {
                self.merger.space().admit(len).map_err(EngineError::from)?;
                Some(self.pay(len).await?)
            }
        };
        body.whole(paid).await
    }

    /// Lets a new write in.
    ///
    /// # Errors
    /// [`EngineError::Stalled`] if others have waited for too long, and still do after `limits.admission-timeout`.
    pub(super) async fn admit_write(&self) -> Result<(), EngineError> {
        self.writes.admit(self.settings.limits.admission_timeout).await
    }

    /// Waits for memory for `len` bytes that are to come in.
    ///
    /// # Errors
    /// [`EngineError::Memory`].
    pub async fn pay(&self, len: u64) -> Result<PaidBytes, EngineError> {
        Ok(self.budgets.writes.pay(len, self.settings.limits.admission_timeout).await?)
    }

    /// Receives a body and stores it as one segment `id`; `bind` says what it means once it is known. Resolves once
    /// everything is durable and visible.
    ///
    /// # Errors
    /// [`Rejected`].
    pub(super) async fn take_in<B: Body>(
        &self,
        id: SegmentId,
        about: About,
        body: B,
        bind: impl FnOnce(&Arrived) -> Bind,
    ) -> Result<(Stored, Arrived), Rejected<B::Fault>> {
        let body = IncomingBody::begin(body).await?;
        let len = body.announced;
        if len <= self.settings.store.part_bytes {
            let (whole, digests) = self.receive_rest(body).await?;
            let arrived = Arrived { segment: (len > 0).then_some(id), len, digests };
            let stored = self.store_whole(id, about, whole, bind(&arrived)).await?;
            return Ok((stored, arrived));
        }
        self.admit_write().await?;
        let _piece = self.pay(PIECE_BYTES as u64).await?;
        let mut big = self.merger.begin(id, about, len).await.map_err(EngineError::from)?;
        let digests = body.through(&mut big).await?;
        let arrived = Arrived { segment: Some(big.id()), len, digests };
        let stored = big.finish(bind(&arrived)).await.map_err(EngineError::from)?;
        Ok((stored, arrived))
    }

    /// Stores what is in memory. What has no bytes is no segment.
    pub(super) async fn store_whole(
        &self,
        id: SegmentId,
        about: About,
        whole: Whole,
        bind: Bind,
    ) -> Result<Stored, EngineError> {
        let Whole { data, crc, paid } = whole;
        if data.is_empty() {
            return self.store_without_bytes(bind).await;
        }
        let pieces = vec![WholeSegment { id, about, data, crc }];
        Ok(self.merger.store(Parcel { pieces, bind, paid }).await?)
    }

    /// Stores what has no bytes, or only such as are stored.
    pub(super) async fn store_without_bytes(&self, bind: Bind) -> Result<Stored, EngineError> {
        self.admit_write().await?;
        let store = Store { file: None, items: vec![StoreItem { segments: vec![], bind }] };
        let answer = self.catalog.store(store).await?.into_iter().next();
        Ok(answer.ok_or(EngineError::NoAnswerGiven)??)
    }

    /// Counts a body by what became of it.
    pub(super) fn counted<B: Body, T>(
        &self,
        counts: Counts,
        result: Result<T, Rejected<B::Fault>>,
    ) -> Result<T, Rejected<B::Fault>> {
        let outcome = match &result {
            Ok(_) => SegmentOutcome::Answered,
            Err(Rejected::Body(fault)) => outcome(B::is_of_client(fault)),
            Err(Rejected::Engine(error)) => outcome(is_of_client(error)),
        };
        self.metrics.segments.of((counts.door(), outcome)).inc();
        result
    }

    /// Counts the bytes of a body that was answered.
    pub(super) fn count_bytes(&self, counts: Counts, len: u64) {
        self.metrics.segment_bytes.of(counts.door()).inc_by(len);
    }

    /// Counts what was stored without a body of its own.
    pub(super) fn counted_store<T>(&self, counts: Counts, result: Result<T, EngineError>) -> Result<T, EngineError> {
        let outcome = result.as_ref().map_or_else(|error| outcome(is_of_client(error)), |_| SegmentOutcome::Answered);
        self.metrics.segments.of((counts.door(), outcome)).inc();
        result
    }
}

fn outcome(of_client: bool) -> SegmentOutcome {
    if of_client { SegmentOutcome::Refused } else { SegmentOutcome::Failed }
}

fn is_of_client(error: &EngineError) -> bool {
    use crate::runtime::BudgetError;
    match error {
        EngineError::Memory(BudgetError::TooLarge { .. }) => true,
        other => matches!(
            other.kind(),
            ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Precondition
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces that are there, and nothing that was said of them.
    struct Pieces {
        announced: u64,
        pieces: VecDeque<&'static [u8]>,
        waits: bool,
    }

    impl Pieces {
        fn of(announced: u64, pieces: &[&'static [u8]]) -> Self {
            Self { announced, pieces: pieces.iter().copied().collect(), waits: false }
        }
    }

    impl Body for Pieces {
        type Fault = ();

        fn announced(&self) -> u64 {
            self.announced
        }

        fn waits(&self) -> bool {
            self.waits
        }

        async fn next(&mut self) -> Result<Option<Bytes>, ()> {
            Ok(self.pieces.pop_front().map(Bytes::from_static))
        }

        fn check(self, _: u32) -> Result<Digests, ()> {
            Ok(Digests::default())
        }

        fn is_of_client((): &()) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn a_whole_body_is_what_arrived_in_a_buffer_of_its_size() {
        let body = IncomingBody::begin(Pieces::of(9, &[b"1234", b"", b"56789"])).await.unwrap();

        let (whole, _) = body.whole(None).await.unwrap();

        assert_eq!(&whole.data[..], b"123456789");
        assert_eq!(whole.crc, SegmentCrc::of(b"123456789"));
    }

    #[tokio::test]
    async fn bodies_of_another_length_than_announced_are_refused() {
        for len in [0, 3, 5] {
            let body = IncomingBody::begin(Pieces::of(len, &[b"12", b"34"])).await.unwrap();

            let Err(Rejected::Engine(error)) = body.whole(None).await else { panic!("{len} was taken") };

            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[tokio::test]
    async fn nothing_is_asked_of_a_client_that_waits() {
        let waiting = Pieces { waits: true, ..Pieces::of(4, &[b"1234"]) };

        assert!(IncomingBody::begin(waiting).await.unwrap().first.is_empty());
        assert_eq!(IncomingBody::begin(Pieces::of(4, &[b"12", b"34"])).await.unwrap().first.len(), 2);
    }
}
