//! Giving dead ranges of closed files back to a local disk, in place.
//!
//! The data of dead segments becomes holes; headers, footer and everything that lives stay where they are, so handles and
//! the format hold. What is lost is less than a page at either end of each dead segment.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{ReclaimError, Reclaimer, Round};
use crate::catalog::command::Command;
use crate::catalog::record::FileState;
use crate::model::PhysicalFileId;
use crate::runtime::{Clock, Ticket};
use crate::store::{DataStore, LocalStore, StoreError};

/// Files that are punched at a time: each waits for the disk.
const FILES_AT_ONCE: usize = 4;
/// How long a round waits for those who read what died just now.
const READERS_PAUSE: Duration = Duration::from_millis(500);

impl Reclaimer {
    pub(super) async fn punch(
        &mut self,
        files: &[PhysicalFileId],
        stop: &CancellationToken,
        round: &mut Round,
    ) -> Result<(), ReclaimError> {
        let DataStore::Local(store) = self.parts.store.clone() else { return Ok(()) };
        if files.is_empty() {
            return Ok(());
        }
        // What is dead by now must be dead after a crash, too, and unknown to every reader.
        let work: Vec<Work> = files.iter().filter_map(|file| self.dead_in(file)).collect();
        let ticket = self.leases.ticket();
        self.parts.catalog.sync().await?;
        let work = self.without_readers(work, ticket).await;
        let punching = work.into_iter().take_while(|_| !stop.is_cancelled()).map(|work| {
            let store = store.clone();
            async move {
                let punched = punch_one(&store, &work).await;
                (work, punched)
            }
        });
        let mut done: Vec<(Work, u64)> = vec![];
        let mut failed = None;
        for (work, punched) in stream::iter(punching).buffered(FILES_AT_ONCE).collect::<Vec<_>>().await {
            match punched {
                Ok(holes) => done.push((work, holes)),
                Err(StoreError::Unsupported(what)) => {
                    tracing::warn!("the file system does not support {what}: dead bytes are given back by copying");
                    self.punched = None;
                    return Ok(());
                }
                Err(error) => failed = self.put_off(work.file, &error).await.err().or(failed),
            }
        }
        let holes = done.iter().map(|(work, holes)| (work.file.clone(), *holes)).collect();
        self.parts.catalog.execute(Command::FilesPunched(holes)).await?;
        round.punched_bytes += done.iter().map(|(work, holes)| holes.saturating_sub(work.holes)).sum::<u64>();
        if let Some(punched) = &mut self.punched {
            punched.extend(done.into_iter().map(|(work, _)| (work.file, work.living.len() as u64)));
            let state = self.parts.catalog.view();
            punched.retain(|file, _| state.file(file).is_some());
        }
        failed.map_or(Ok(()), Err)
    }

    /// A file that could not be punched waits for a later round: nothing says that it is damaged. Whatever is wrong with one
    /// file, the others are not kept from their turn, unless the store is gone.
    async fn put_off(&mut self, file: PhysicalFileId, error: &StoreError) -> Result<(), ReclaimError> {
        self.parts.store.look().await?;
        tracing::warn!(%file, error = crate::error::chain(error), "a file could not be punched, it will be tried again");
        let interval = self.parts.settings.reclaim.interval;
        self.put_off.retain(|_, at| at.elapsed() < interval);
        self.put_off.insert(file, Clock::instant());
        Ok(())
    }

    /// A file with which something is wrong is not touched again, unless it has died meanwhile.
    pub(super) fn leave_alone(&mut self, file: &PhysicalFileId, error: &(dyn std::error::Error + 'static)) {
        let closed =
            self.parts.catalog.view().file(file).is_some_and(|view| matches!(view.state, FileState::Closed { .. }));
        if closed {
            tracing::error!(%file, error = crate::error::chain(error), "a file cannot be reclaimed and is left as it is");
            self.damaged.insert(file.clone());
        }
    }

    /// What lives in a closed file; segments that are not visible yet among it.
    fn dead_in(&self, file: &PhysicalFileId) -> Option<Work> {
        let state = self.parts.catalog.view();
        let view = state.file(file)?;
        let FileState::Closed { len } = view.state else { return None };
        let places = state.living_in(file).filter_map(|record| record.location.segment());
        let mut living: Vec<u64> = places.map(|place| place.offset).collect();
        living.sort_unstable();
        Some(Work { file: file.clone(), holes: len - view.occupied, living })
    }

    /// The files in which nobody reads what is dead. Most reads end within a moment, which the others are given; files with
    /// slower ones are left for a later round.
    async fn without_readers(&self, work: Vec<Work>, ticket: Ticket) -> Vec<Work> {
        let is_read = |work: &Work| self.leases.is_read_since_before(&work.file, ticket);
        let (mut read, mut free): (Vec<_>, Vec<_>) = work.into_iter().partition(is_read);
        if !read.is_empty() {
            tokio::time::sleep(READERS_PAUSE).await;
            read.retain(|work| !is_read(work));
            free.append(&mut read);
        }
        free
    }
}

/// Returns how many bytes of the file are holes now.
async fn punch_one(store: &LocalStore, work: &Work) -> Result<u64, StoreError> {
    let frames = store.frames(&work.file).await?;
    let dead = frames.iter().filter(|frame| work.living.binary_search(&frame.offset).is_err());
    let ranges = dead.map(|frame| frame.offset..frame.offset + frame.len).collect();
    store.punch(&work.file, ranges).await
}

/// A file to be punched.
struct Work {
    file: PhysicalFileId,
    /// Bytes that are holes already.
    holes: u64,
    /// Where its living segments begin, in order.
    living: Vec<u64>,
}
