//! Giving dead ranges of closed files back to a local disk, in place.
//!
//! The data of dead segments becomes holes; headers, footer and everything that lives stay where they are, so handles and
//! the format hold. What is lost is less than a page at either end of each dead segment.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{ReclaimError, Reclaimer, Round};
use crate::catalog::command::Command;
use crate::model::{FileState, PhysicalFileId};
use crate::runtime::{Clock, Ticket};
use crate::store::{DataStore, StoreError};

/// Files that are punched at a time: each waits for the disk.
const FILES_AT_ONCE: usize = 4;
/// The time that a round waits for those who read what died just now.
const READERS_PAUSE: Duration = Duration::from_millis(500);

impl Reclaimer {
    pub(super) async fn punch(
        &mut self,
        files: &[PhysicalFileId],
        stop: &CancellationToken,
        round: &mut Round,
    ) -> Result<(), ReclaimError> {
        if files.is_empty() {
            return Ok(());
        }
        let store = self.parts.store.clone();
        // What is dead by now must be dead after a crash, too, and unknown to every reader.
        let work: Vec<PunchWork> = files.iter().filter_map(|file| self.dead_in(file)).collect();
        // After the look: a reader with an older lease may have found what is dead now, a later one cannot.
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
        let mut done: Vec<(PunchWork, u64)> = vec![];
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
        // After the fact: a crash between the two leaves holes that the catalog does not count, and they are punched again.
        self.parts.catalog.execute(Command::FilesPunched(holes)).await?;
        round.punched_bytes += done.iter().map(|(work, holes)| holes.saturating_sub(work.holes)).sum::<u64>();
        if let Some(punched) = &mut self.punched {
            punched.extend(done.into_iter().map(|(work, _)| (work.file, work.living.len() as u64)));
            for gone in self.parts.catalog.unknown_files(punched.keys().cloned().collect()) {
                punched.remove(&gone);
            }
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
        let known = self.parts.catalog.file(file);
        let closed = known.is_some_and(|view| matches!(view.state, FileState::Closed { .. }));
        if closed {
            tracing::error!(%file, error = crate::error::chain(error), "a file cannot be reclaimed and is left as it is");
            self.damaged.insert(file.clone());
        }
    }

    /// Returns a closed file with the places of its living segments, those that are not visible yet among them.
    fn dead_in(&self, file: &PhysicalFileId) -> Option<PunchWork> {
        let (view, living) = self.parts.catalog.living_places(file)?;
        let FileState::Closed { len } = view.state else { return None };
        Some(PunchWork { file: file.clone(), holes: len - view.occupied, living })
    }

    /// The files in which nobody reads what is dead. Most reads end within a moment, which the others are given; files with
    /// slower ones are left for a later round.
    async fn without_readers(&self, work: Vec<PunchWork>, ticket: Ticket) -> Vec<PunchWork> {
        let is_read = |work: &PunchWork| self.leases.is_read_since_before(&work.file, ticket);
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
async fn punch_one(store: &DataStore, work: &PunchWork) -> Result<u64, StoreError> {
    let frames = store.frames(&work.file).await?;
    let dead = frames.iter().filter(|frame| work.living.binary_search(&frame.offset).is_err());
    let ranges = dead.map(|frame| frame.offset..frame.offset + frame.len).collect();
    store.punch(&work.file, ranges).await
}

/// A file to be punched.
struct PunchWork {
    file: PhysicalFileId,
    /// Bytes that are holes already.
    holes: u64,
    /// Where its living segments begin, in order.
    living: Vec<u64>,
}
