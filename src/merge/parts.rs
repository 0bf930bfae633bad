//! A file that does not fit into memory, on its way to an object store as the parts of a multipart upload.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::oneshot;

use crate::runtime::{ByteBudget, Failure, PaidBytes, TaskGroup, reply};
use crate::store::{FileUpload, StoreError};

/// Parts of one upload that are on their way at a time.
const PARTS_IN_FLIGHT_MAX: usize = 4;

/// Collects parts of at least `part_bytes` and uploads a few of them at a time.
///
/// The part that collects and one on its way are paid for from the start, so that a segment that was begun gets on; each
/// further one on its way is paid for if there is memory.
#[derive(Debug)]
pub(super) struct PartsUpload {
    upload: FileUpload,
    part: Vec<Bytes>,
    part_len: u64,
    part_bytes: u64,
    in_flight: FuturesUnordered<oneshot::Receiver<Result<(), StoreError>>>,
    tasks: TaskGroup,
    budget: ByteBudget,
    _paid: PaidBytes,
}

impl PartsUpload {
    /// An upload of which nothing is sent yet; `paid` is for two parts.
    pub(super) fn new(
        upload: FileUpload,
        part_bytes: u64,
        paid: PaidBytes,
        budget: ByteBudget,
        tasks: TaskGroup,
    ) -> Self {
        let (part, in_flight) = (vec![], FuturesUnordered::new());
        Self { upload, part, part_len: 0, part_bytes, in_flight, tasks, budget, _paid: paid }
    }

    /// Takes the next bytes. Returns when there is room for more.
    pub(super) async fn push(&mut self, all: Vec<Bytes>) -> Result<(), StoreError> {
        for bytes in all {
            self.part_len += bytes.len() as u64;
            self.part.push(bytes);
            if self.part_len >= self.part_bytes {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    /// Sends the part off as soon as its way is paid for.
    async fn send_part(&mut self) -> Result<(), StoreError> {
        let mut paid = None;
        while !self.in_flight.is_empty() && paid.is_none() {
            if self.in_flight.len() < PARTS_IN_FLIGHT_MAX {
                paid = self.budget.try_pay(self.part_bytes);
            }
            if paid.is_none() {
                self.next_part().await?;
            }
        }
        let part = self.upload.part(std::mem::take(&mut self.part));
        self.part_len = 0;
        let (uploader, uploaded) = oneshot::channel();
        // A task of its own, so that a part goes on while the next one arrives.
        self.tasks.spawn("part-upload", Failure::FailsItsWork, async move {
            let sent = part.await;
            drop(paid);
            reply(uploader, sent);
        });
        self.in_flight.push(uploaded);
        Ok(())
    }

    /// Sends the rest: the file is there when this returns.
    pub(super) async fn complete(&mut self) -> Result<(), StoreError> {
        if !self.part.is_empty() {
            self.send_part().await?;
        }
        while !self.in_flight.is_empty() {
            self.next_part().await?;
        }
        self.upload.complete().await
    }

    /// Gives the upload up. Parts that are on their way arrive before, or they would stay. Returns whether nothing is left.
    pub(super) async fn abort(mut self) -> bool {
        while self.in_flight.next().await.is_some() {}
        self.upload.abort().await
    }

    /// Waits for one of the parts that are on their way.
    async fn next_part(&mut self) -> Result<(), StoreError> {
        match self.in_flight.next().await {
            Some(Ok(uploaded)) => uploaded,
            Some(Err(gone)) => Err(StoreError::Failed {
                operation: "multipart_part",
                path: "a large file".to_owned(),
                source: gone.into(),
            }),
            None => Ok(()),
        }
    }
}
