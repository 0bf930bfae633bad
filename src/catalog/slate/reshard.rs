//! The marker while the number of shards is changed: what it says at the root of the store, and of each catalog that others take the
//! place of.
//!
//! | at the root | means |
//! | --- | --- |
//! | `shards 16, routing 1` | these shards are the store |
//! | the same, `resharding to 4, generation 12, by ..` | they still are, and nobody opens them: others are being filled |
//! | `shards 4, routing 1, generation 12`, `replaces 16, generation 0` | the others are the store; what was there before is still to be deleted |
//! | `shards 4, routing 1, generation 12` | that is done |
//! | `shards 16, routing 1`, `resharding to 4, generation 12, by .., given up` | somebody gives that up: nobody goes on with it |
//! | `shards 16, routing 1`, `given up 12` | that was given up, and nobody begins it again |
//!
//! A store that is not divided has no line of shards at first. Each change is made on the condition that the marker is as it was read: of
//! two who change the number of shards, the second one takes the place of the first with its name, and the first changes nothing more.
//!
//! The catalogs that others take the place of keep their line for good.
//!
//! # Given up
//! A generation is used once. Who gives it up says so at the root first, and last in the marker of each catalog and at the root once more, where
//! it stays until another change is made. A command that stood still meanwhile finds it there with each of its own changes of a marker: it
//! marks nothing, and opens nothing to write. No text of a marker ever comes back, so a change that was sent before and arrives late is refused.

use futures::{StreamExt, TryStreamExt};
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use super::giving_way::{Replaced, Resharding};
use super::marker::{Divided, JournalMarker, Marked};
use super::room::delete_all;
use super::{Haste, Journal, JournalError, marker_of};
use crate::catalog::record::RecordKey;
use crate::catalog::state::DividedRecord;
use crate::model::{SegmentId, StoreShards};
use crate::store::{CATALOG_SIDE, Placement};

/// Tries of a change whose outcome nobody knows.
const TRIES: u32 = 5;
/// The marker, and the log, of a catalog.
const MARKER: &str = "FORMAT";
const LOG: &str = "wal";
/// Where a database keeps what it writes.
const FOLDERS: [&str; 5] = ["manifest", LOG, "compacted", "compactions", "gc"];
/// Objects that are deleted at a time.
const DELETES_AT_ONCE: usize = 32;

/// What the root of a store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootMark {
    /// Its shards: those that it has until the change is made, if one has begun.
    pub shards: StoreShards,
    /// The generation of the last change that was given up, since which there was none; 0 if there is no such.
    pub given_up: u64,
    /// A change that has begun.
    pub resharding: Option<Resharding>,
    /// What was there before.
    pub replaces: Option<Replaced>,
}

/// How far shards are deleted that others have taken the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HowFarDeleted {
    /// No physical file is left.
    Emptied,
    /// Nothing is.
    Gone,
}

impl RootMark {
    /// Whether a change to these shards was given up, or is being.
    pub fn has_given_up(&self, to: StoreShards) -> bool {
        let is_being = |begun: &Resharding| begun.to == to && begun.given_up;
        self.given_up >= to.generation || self.resharding.as_ref().is_some_and(is_being)
    }
}

impl Journal {
    /// What the root of a store says; `None` if there is no store.
    ///
    /// # Errors
    /// `Unavailable` if storage does not tell; `WrongFormat` if it is not understood; `Invalid` where a store has one shard.
    pub async fn root_mark(placement: &Placement) -> Result<Option<RootMark>, JournalError> {
        let marker = root_of(placement).await?;
        let Some(found) = marker.read().await? else { return Ok(None) };
        let marked = marker.marked(&found)?;
        let shards = match marked.divided {
            Divided::No => StoreShards::UNDIVIDED,
            Divided::Into(shards) => shards,
            Divided::Shard(_) => return Err(marker.wrong(&found)),
        };
        let Marked { given_up, resharding, replaces, .. } = marked;
        Ok(Some(RootMark { shards, given_up, resharding, replaces }))
    }

    /// Marks a store, or a catalog of it: others are to take its place. Whoever had begun that before at the root goes on no more.
    ///
    /// # Errors
    /// As [`Self::root_mark`]; `Resharding` if others again are to, `MarkChanged` if that was given up, or is done, or if somebody else changes
    /// the marker over and over.
    pub async fn mark_resharding(placement: &Placement, resharding: &Resharding) -> Result<(), JournalError> {
        let marker = root_of(placement).await?;
        change(&marker, |marked| {
            let to = resharding.to;
            if marked.is_past(to) || marked.resharding.as_ref().is_some_and(|begun| begun.to == to && begun.given_up) {
                return Err(JournalError::MarkChanged(marker.place()));
            }
            marked.with(resharding, &marker)
        })
        .await
    }

    /// Says at the root that a change is being given up: nobody goes on with it from here on. Nothing changes if that is over already.
    ///
    /// # Errors
    /// As [`Self::mark_resharding`]; `MarkChanged` if the change is done.
    pub async fn begin_giving_up(placement: &Placement, to: StoreShards, by: String) -> Result<(), JournalError> {
        let marker = root_of(placement).await?;
        let resharding = Resharding { to, by: Some(by), given_up: true };
        change(&marker, |marked| match marked.given_up >= to.generation {
            true => Ok(marked),
            false if marked.is_past(to) => Err(JournalError::MarkChanged(marker.place())),
            false => marked.with(&resharding, &marker),
        })
        .await
    }

    /// Takes the mark of a change that was given up back, from a store or a catalog of it, and says that it was: nobody marks it so again.
    ///
    /// # Errors
    /// As [`Self::mark_resharding`].
    pub async fn give_up(placement: &Placement, generation: u64) -> Result<(), JournalError> {
        change(&root_of(placement).await?, |mut marked| {
            marked.resharding.take_if(|begun| begun.to.generation <= generation);
            if marked.generation() < generation {
                marked.given_up = marked.given_up.max(generation);
            }
            Ok(marked)
        })
        .await
    }

    /// The change that a catalog is marked with.
    ///
    /// # Errors
    /// As [`Self::root_mark`].
    pub async fn resharding(placement: &Placement) -> Result<Option<StoreShards>, JournalError> {
        let marker = root_of(placement).await?;
        let Some(found) = marker.read().await? else { return Ok(None) };
        Ok(marker.marked(&found)?.resharding.map(|begun| begun.to))
    }

    /// The others are the store from now on, which is what `resharding` was for.
    ///
    /// # Errors
    /// `MarkChanged` if the root does not say that this is being made, by the same one.
    pub async fn finish_resharding(placement: &Placement, resharding: &Resharding) -> Result<(), JournalError> {
        let marker = root_of(placement).await?;
        change(&marker, |marked| {
            let shards = match marked.divided {
                Divided::Into(shards) => shards,
                Divided::No | Divided::Shard(_) => StoreShards::UNDIVIDED,
            };
            if marked.resharding.as_ref() != Some(resharding) {
                return Err(JournalError::MarkChanged(marker.place()));
            }
            let replaces = Some(Replaced { shards, emptied: false });
            let divided = Divided::Into(resharding.to);
            Ok(Marked { epochs_before: 0, divided, given_up: 0, resharding: None, replaces, of_cluster: true })
        })
        .await
    }

    /// Writes records of a catalog that is being filled, and waits until they are durable.
    ///
    /// # Errors
    /// As [`Self::write`], and [`Commit::durable`](super::Commit::durable).
    pub async fn write_divided(&self, records: Vec<DividedRecord>) -> Result<(), JournalError> {
        let records = records.into_iter().map(|DividedRecord(record)| record).collect();
        self.write(records, Haste::Now).await?.durable().await
    }

    /// Whether there is a segment of this identity.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn has_segment(&self, id: SegmentId) -> Result<bool, JournalError> {
        Ok(self.get(&RecordKey::Segment(id).encode()).await?.is_some())
    }

    /// Deletes a catalog that others have taken the place of: what the database has written, and the identity of the store beside it. The
    /// marker stays, and so do the fences of its log, which are empty: a daemon that stood still for all the time finds its next name taken,
    /// and not free. Returns what else is there.
    ///
    /// # Errors
    /// `WrongFormat` if nothing has taken its place; `Unavailable` if storage does not delete it. It can be repeated.
    pub async fn delete_replaced(placement: &Placement) -> Result<Vec<String>, JournalError> {
        let marker = root_of(placement).await?;
        let found = marker.read().await?.unwrap_or_default();
        let marked = marker.marked(&found)?;
        // A store that is divided has no catalog at its root.
        let is_root = matches!(marked.divided, Divided::Into(_));
        if marked.resharding.is_none() && !is_root {
            return Err(marker.wrong(&found));
        }
        let Placement::Object { store, prefix, .. } = placement else { return Ok(vec![]) };
        let (mut own, mut others) = (vec![], vec![]);
        let mut listed = store.list(Some(prefix));
        while let Some(meta) = listed.try_next().await? {
            let names: Vec<String> =
                meta.location.prefix_match(prefix).into_iter().flatten().map(|part| part.as_ref().to_owned()).collect();
            match names.first().map(String::as_str) {
                Some(MARKER) => {}
                Some(LOG) if meta.size == 0 => {}
                Some(name) if names.len() > 1 && FOLDERS.contains(&name) => own.push(meta.location),
                Some(CATALOG_SIDE) => own.push(meta.location),
                _ => others.push(meta.location.to_string()),
            }
        }
        let deletes = own.into_iter().map(|path| async move {
            match store.delete(&path).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        });
        futures::stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE).try_collect::<()>().await?;
        Ok(others)
    }

    /// Deletes a catalog that was being filled, and that nobody is to have: all of it.
    ///
    /// # Errors
    /// `Unavailable` if storage does not delete it. It can be repeated.
    pub async fn delete_unfinished(placement: &Placement) -> Result<(), JournalError> {
        match placement {
            Placement::Object { store, prefix, .. } => delete_all(store, prefix).await,
            Placement::Local { .. } => Ok(()),
        }
    }

    /// Says how far these shards, which were there before, are deleted. Changes nothing if that is over, or they are none of those.
    ///
    /// # Errors
    /// As [`Self::mark_resharding`].
    pub async fn mark_replaced(
        placement: &Placement,
        shards: StoreShards,
        how_far: HowFarDeleted,
    ) -> Result<(), JournalError> {
        change(&root_of(placement).await?, |mut marked| {
            if let Some(replaced) = marked.replaces.take_if(|replaced| replaced.shards == shards) {
                marked.replaces = match how_far {
                    HowFarDeleted::Emptied => Some(Replaced { emptied: true, ..replaced }),
                    HowFarDeleted::Gone => None,
                };
            }
            Ok(marked)
        })
        .await
    }
}

impl Marked {
    /// The generation of the shards, as the root says; 0 of a catalog that has one of a later generation than that.
    fn generation(&self) -> u64 {
        match self.divided {
            Divided::Into(shards) => shards.generation,
            Divided::Shard(shard) => shard.generation,
            Divided::No => 0,
        }
    }

    /// Whether a change to these shards was given up, or is done.
    fn is_past(&self, to: StoreShards) -> bool {
        self.given_up.max(self.generation()) >= to.generation
    }

    /// With this mark in place of an earlier one of the same change.
    fn with(self, resharding: &Resharding, marker: &JournalMarker) -> Result<Self, JournalError> {
        match &self.resharding {
            Some(Resharding { to, .. }) if *to != resharding.to => {
                Err(JournalError::Resharding { place: marker.place(), to: *to })
            }
            _ => Ok(Self { resharding: Some(resharding.clone()), ..self }),
        }
    }
}

async fn root_of(placement: &Placement) -> Result<JournalMarker, JournalError> {
    match placement {
        Placement::Object { store, prefix, log: None, .. } => marker_of(store, prefix, false).await,
        _ => {
            Err(JournalError::Invalid(format!("{placement} has one shard: only on an object store there are several")))
        }
    }
}

/// Changes a marker on the condition that it is as it was read.
async fn change(
    marker: &JournalMarker,
    edit: impl Fn(Marked) -> Result<Marked, JournalError>,
) -> Result<(), JournalError> {
    let mut sent = None;
    for _ in 0..TRIES {
        let found = marker.store.get(&marker.path()).await?;
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let text = String::from_utf8_lossy(&found.bytes().await?).into_owned();
        // An answer that was lost.
        if sent.as_ref() == Some(&text) {
            return Ok(());
        }
        let wanted = marker.text(&edit(marker.marked(&text)?)?);
        if wanted == text {
            return Ok(());
        }
        let put = PutOptions::from(PutMode::Update(version));
        match marker.store.put_opts(&marker.path(), wanted.clone().into(), put).await {
            Ok(_) => return Ok(()),
            // Somebody else's change, or this one, whose answer was lost, or none: the next look tells.
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => sent = Some(wanted),
            Err(error) => return Err(error.into()),
        }
    }
    Err(JournalError::MarkChanged(marker.place()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::super::settings::JournalClaim;
    use super::*;
    use crate::store::Capabilities;

    fn place(store: &Arc<InMemory>) -> (Placement, JournalMarker) {
        let prefix = Path::from("c/catalog");
        let marker = JournalMarker::new(Arc::<InMemory>::clone(store), prefix.clone(), "objects");
        let store = Arc::<InMemory>::clone(store);
        (Placement::Object { store, prefix, can: Capabilities::OBJECT, log: None }, marker)
    }

    fn to(count: u32, generation: u64, by: &str) -> Resharding {
        Resharding { to: StoreShards { count, generation }, by: Some(by.to_owned()), given_up: false }
    }

    #[tokio::test]
    async fn a_store_is_opened_by_nobody_else_until_its_new_shards_are_the_store() {
        let store = Arc::new(InMemory::new());
        let (place, marker) = place(&store);
        assert_eq!(Journal::root_mark(&place).await.unwrap(), None);
        marker.check_claim(JournalClaim::Alone).await.unwrap();

        Journal::mark_resharding(&place, &to(4, 12, "a")).await.unwrap();

        let text = marker.read().await.unwrap().unwrap();
        assert_eq!(text, "esker journal 1, log objects 1\nresharding to 4, generation 12, by a\n");
        let shard = StoreShards::UNDIVIDED.shard(0);
        let wrong = JournalClaim::Reshard { generation: 11 };
        for claim in [JournalClaim::Alone, JournalClaim::Member { epoch_before: 0, shard }, wrong] {
            let error = marker.check_claim(claim).await.unwrap_err();
            assert!(error.is_damage() && error.to_string().contains("--shards 4 --run"), "{error}");
        }
        assert!(Journal::shards(&place).await.is_err());
        marker.check_claim(JournalClaim::Reshard { generation: 12 }).await.unwrap();
        assert!(Journal::mark_resharding(&place, &to(5, 13, "b")).await.is_err(), "one at a time");

        Journal::mark_resharding(&place, &to(4, 12, "b")).await.unwrap();
        let error = Journal::finish_resharding(&place, &to(4, 12, "a")).await.unwrap_err();
        assert!(matches!(error, JournalError::MarkChanged(_)), "{error}");
        Journal::finish_resharding(&place, &to(4, 12, "b")).await.unwrap();

        let text = marker.read().await.unwrap().unwrap();
        let lines = "shards 4, routing 1, generation 12\nreplaces 1, generation 0\ncluster 1\n";
        assert_eq!(text, format!("esker journal 1, log objects 1\n{lines}"));
        let shards = StoreShards { count: 4, generation: 12 };
        assert_eq!(Journal::shards(&place).await.unwrap(), Some(shards));
        let before = StoreShards::UNDIVIDED;
        let replaces = async || Journal::root_mark(&place).await.unwrap().unwrap().replaces;
        Journal::mark_replaced(&place, before, HowFarDeleted::Emptied).await.unwrap();
        assert_eq!(replaces().await, Some(Replaced { shards: before, emptied: true }));
        Journal::mark_replaced(&place, StoreShards::first(2), HowFarDeleted::Gone).await.unwrap();
        assert!(replaces().await.is_some(), "others were there before");
        Journal::mark_replaced(&place, before, HowFarDeleted::Gone).await.unwrap();
        let found = Journal::root_mark(&place).await.unwrap().unwrap();
        assert_eq!(found, RootMark { shards, given_up: 0, resharding: None, replaces: None });
        Journal::mark_replaced(&place, before, HowFarDeleted::Emptied).await.unwrap();
        assert_eq!(replaces().await, None, "it is over");
        let error = Journal::mark_resharding(&place, &to(4, 12, "c")).await.unwrap_err();
        assert!(matches!(error, JournalError::MarkChanged(_)), "it is done: {error}");
    }

    #[tokio::test]
    async fn what_was_given_up_is_never_begun_again() {
        let store = Arc::new(InMemory::new());
        let (place, marker) = place(&store);
        marker.divide(16).await.unwrap();
        let text = async || marker.read().await.unwrap().unwrap();
        let (late, shards) = (to(4, 12, "a"), "esker journal 1, log objects 1\nshards 16, routing 1\n");
        Journal::mark_resharding(&place, &late).await.unwrap();

        Journal::begin_giving_up(&place, late.to, "b".to_owned()).await.unwrap();

        assert_eq!(text().await, format!("{shards}resharding to 4, generation 12, by b, given up\ncluster 1\n"));
        assert!(Journal::root_mark(&place).await.unwrap().unwrap().has_given_up(late.to));
        let refused = async |refused: Result<(), JournalError>| {
            let error = refused.unwrap_err();
            assert!(matches!(error, JournalError::MarkChanged(_)), "{error}");
        };
        refused(Journal::mark_resharding(&place, &late).await).await;
        refused(Journal::finish_resharding(&place, &late).await).await;

        Journal::give_up(&place, 12).await.unwrap();

        assert_eq!(text().await, format!("{shards}given up 12\ncluster 1\n"));
        assert_eq!(Journal::shards(&place).await.unwrap(), Some(StoreShards::first(16)), "it is opened as before");
        refused(Journal::mark_resharding(&place, &late).await).await;

        // Whoever gave it up, and is late, too, leaves the next change alone.
        let next = to(8, 14, "c");
        Journal::mark_resharding(&place, &next).await.unwrap();
        let begun = text().await;
        Journal::begin_giving_up(&place, late.to, "d".to_owned()).await.unwrap();
        Journal::give_up(&place, 12).await.unwrap();
        assert_eq!(text().await, begun);
        Journal::finish_resharding(&place, &next).await.unwrap();
        refused(Journal::begin_giving_up(&place, next.to, "d".to_owned()).await).await;
        assert!(!text().await.contains("given up"));
    }

    #[tokio::test]
    async fn a_catalog_is_not_marked_by_who_was_given_up_and_opened_by_nobody_for_that() {
        let store = Arc::new(InMemory::new());
        let (place, marker) = place(&store);
        let shard = StoreShards::first(16).shard(7);
        let member = JournalClaim::Member { epoch_before: 0, shard };
        marker.check_claim(member).await.unwrap();
        let mark = Resharding { by: None, ..to(4, 12, "") };

        // It was not marked yet.
        Journal::give_up(&place, 12).await.unwrap();

        assert!(Journal::mark_resharding(&place, &mark).await.is_err());
        assert!(marker.check_claim(JournalClaim::Reshard { generation: 12 }).await.is_err());
        marker.check_claim(member).await.unwrap();
        assert_eq!(Journal::resharding(&place).await.unwrap(), None);
        let later = Resharding { by: None, ..to(4, 13, "") };
        Journal::mark_resharding(&place, &later).await.unwrap();
        assert_eq!(Journal::resharding(&place).await.unwrap(), Some(later.to));
        marker.check_claim(JournalClaim::Reshard { generation: 13 }).await.unwrap();
    }
}
