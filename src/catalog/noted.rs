//! Keeps the ledger of deletes: notes what the owner hands over, group by group, and answers.
//!
//! What cannot be noted, because the disk fails, is full or does not answer, is answered once its commit is durable, as without
//! a ledger: nobody waits longer than for the next commit, which is asked for then.

use std::io;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::ledger::{DeletedObject, Ledger};
use super::shared::{CatalogShared, NotedBatch};
use super::slate::Commit;
use crate::metrics::Metrics;

/// Batches that are noted together at most.
const BATCHES_MAX: usize = 1024;

/// The ledger, or a thread that is busy with it.
enum Pen {
    Free(Box<Ledger>),
    Busy(JoinHandle<(Box<Ledger>, io::Result<()>)>),
    /// A bug took it away.
    Lost,
}

/// Notes and answers until there is no more.
pub(super) async fn keep(
    ledger: Ledger,
    shared: Arc<CatalogShared>,
    mut inbox: mpsc::Receiver<NotedBatch>,
    metrics: Metrics,
) {
    let mut pen = Pen::Free(Box::new(ledger));
    // That of the last delete which was handed over.
    let mut last: Option<Commit> = None;
    let mut fails = false;
    let mut group = vec![];
    while inbox.recv_many(&mut group, BATCHES_MAX).await > 0 {
        let (mut deleted, mut answers) = (vec![], vec![]);
        let settled = is_durable(last.as_ref());
        for batch in group.drain(..) {
            deleted.extend(batch.deleted);
            answers.extend(batch.answers);
            last = batch.commit.or(last);
        }
        let outcome = pen.note(deleted, settled, last.as_ref()).await;
        match &outcome {
            Ok(()) if std::mem::take(&mut fails) => tracing::info!("deletes are noted in their ledger again"),
            Err(error) if !std::mem::replace(&mut fails, true) => tracing::warn!(
                %error,
                "deletes cannot be noted in merging.delete-ledger: until they can, each waits for its commit"
            ),
            _ => (),
        }
        if outcome.is_err() {
            metrics.delete_ledger_failures.inc();
            shared.journal.hurry();
            if let Some(commit) = &last
                && let Err(error) = commit.durable().await
            {
                shared.lose(error);
            }
        }
        shared.answer_early(answers);
    }
}

fn is_durable(commit: Option<&Commit>) -> bool {
    commit.is_none_or(|commit| commit.durable().now_or_never().is_some_and(|durable| durable.is_ok()))
}

impl Pen {
    /// Notes deletes. Resolves when that is done, or `commit`, which is that of the last of them, is durable.
    async fn note(&mut self, deleted: Vec<DeletedObject>, settled: bool, commit: Option<&Commit>) -> io::Result<()> {
        if deleted.is_empty() {
            // They were not there, and whatever deleted them is noted.
            return Ok(());
        }
        let mut ledger = match std::mem::replace(self, Self::Lost) {
            Self::Free(ledger) => ledger,
            Self::Busy(thread) if thread.is_finished() => thread.await.map_err(io::Error::other)?.0,
            Self::Busy(thread) => {
                *self = Self::Busy(thread);
                return Err(io::Error::other("the disk does not answer"));
            }
            Self::Lost => return Err(io::Error::other("noting a delete panicked")),
        };
        let note = move || {
            let noted = ledger.note(&deleted, settled);
            (ledger, noted)
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a disk that does not answer keeps nobody, and a panic becomes the error"
        )]
        let mut thread = tokio::task::spawn_blocking(note);
        let durable = async {
            match commit.map(Commit::durable) {
                Some(durable) => durable.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            noted = &mut thread => {
                let (ledger, noted) = noted.map_err(io::Error::other)?;
                *self = Self::Free(ledger);
                noted
            }
            durable = durable => {
                *self = Self::Busy(thread);
                // Why it is not, its waiters are told by the journal.
                durable.map_err(io::Error::other)
            }
        }
    }
}
