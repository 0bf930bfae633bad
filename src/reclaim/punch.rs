//! Giving dead ranges of closed files back to a local disk, in place.
//!
//! The data of dead segments becomes holes; headers, footer and everything that lives stay where they are, so handles and
//! the format hold. What is lost is less than a page at either end of each dead segment.

use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{ReclaimError, Reclaimer, Round};
use crate::catalog::command::Command;
use crate::catalog::record::FileState;
use crate::model::PhysicalFileId;
use crate::store::{DataStore, LocalStore, StoreError};

/// Files that are punched at a time: each waits for the disk.
const FILES_AT_ONCE: usize = 4;

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
        self.parts.catalog.sync().await?;
        let ticket = self.leases.ticket();
        if !self.wait_for_readers(ticket, stop).await {
            return Ok(());
        }
        let punching = work.into_iter().take_while(|_| !stop.is_cancelled()).map(|work| {
            let store = store.clone();
            async move {
                let punched = punch_one(&store, &work).await;
                (work, punched)
            }
        });
        let mut done: Vec<(Work, u64)> = vec![];
        for (work, punched) in stream::iter(punching).buffered(FILES_AT_ONCE).collect::<Vec<_>>().await {
            match punched {
                Ok(holes) => done.push((work, holes)),
                Err(StoreError::Unsupported(what)) => {
                    tracing::warn!("the file system does not support {what}: dead bytes are given back by copying");
                    self.punched = None;
                    return Ok(());
                }
                // Whatever is wrong with one file, the others are not kept from their turn.
                Err(error) => self.leave_alone(&work.file, &error),
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

    /// Waits until nobody reads what is dead; false if that takes too long.
    async fn wait_for_readers(&self, ticket: crate::runtime::Ticket, stop: &CancellationToken) -> bool {
        const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
        let patience = self.parts.settings.reclaim.interval;
        let begun = crate::runtime::Clock::instant();
        while !self.leases.all_began_after(ticket) {
            if stop.is_cancelled() || begun.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        true
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
