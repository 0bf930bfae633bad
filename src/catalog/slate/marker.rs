//! The marker `FORMAT` beside a database: with which log it was created, whether it is whole, and where its epochs begin.
//!
//! ```text
//! esker journal 1, log <log> 1            or, while it is being rebuilt: esker journal being rebuilt, log <log> 1
//! epochs after <number>                   if it was rebuilt: added to SlateDB's writer epoch
//! shard <n> of <number>, routing 1        of a catalog that has one shard of a store
//! shards <number>, routing 1              where there is no database, because each shard has one of its own
//! given up <g>                            if a change of the number of shards, of this generation, was given up: the last one
//! resharding to <number>, generation <g>  while the number of shards is changed, and for good in those that others take the place of
//! replaces <number>, generation <g>       after that, until what was there before is deleted
//! cluster 1                               if only members of a cluster may open it, as the cluster's map says
//! ```
//!
//! Shards of a later generation than 0 have it in their lines: `shard 3 of 4, routing 1, generation 12`. At the root the one who
//! changes the number of shards stands behind its line, `, by <32 hex digits>`, and behind that `, given up` if it gives the change up;
//! `, emptied` stands behind the last but one when no physical file is left.
//!
//! The last line keeps out daemons that know of no cluster: releases before there were any refuse a line that they do not know. One
//! that says how many shards there are stays for good, and keeps out everybody who takes the store for one that is not divided.
//!
//! # Crash
//! A database that is being rebuilt has that marker before its first record, and the other one after its last. Until then
//! nobody opens it.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::JournalError;
use super::giving_way::{Replaced, Resharding};
use super::settings::JournalClaim;
use crate::model::{ROUTING, SHARDS_MAX, ShardOf, StoreShards};

/// The line of a database that belongs to a cluster.
const OF_CLUSTER: &str = "cluster 1\n";

/// What a marker says beside the log of its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marked {
    /// Epochs before those of the database.
    pub(super) epochs_before: u64,
    pub(super) divided: Divided,
    /// The generation of the last change that was given up, since which there was none; 0 if there is no such.
    pub(super) given_up: u64,
    /// Others are to take its place.
    pub(super) resharding: Option<Resharding>,
    /// It has taken the place of these.
    pub(super) replaces: Option<Replaced>,
    pub(super) of_cluster: bool,
}

impl Marked {
    /// A database by itself.
    const PLAIN: Self = Self {
        epochs_before: 0,
        divided: Divided::No,
        given_up: 0,
        resharding: None,
        replaces: None,
        of_cluster: false,
    };

    /// Its lines, behind the first one.
    fn lines(&self) -> String {
        let Self { epochs_before, divided, given_up, resharding, replaces, of_cluster } = self;
        let mut lines = match epochs_before {
            0 => String::new(),
            epochs => format!("epochs after {epochs}\n"),
        };
        let of = |generation: u64| if generation == 0 { String::new() } else { format!(", generation {generation}") };
        match divided {
            Divided::No => {}
            Divided::Shard(shard) => lines += &format!("{shard}, routing {ROUTING}{}\n", of(shard.generation)),
            Divided::Into(shards) => {
                lines += &format!("shards {}, routing {ROUTING}{}\n", shards.count, of(shards.generation));
            }
        }
        if *given_up > 0 {
            lines += &format!("given up {given_up}\n");
        }
        if let Some(resharding) = resharding {
            lines += &resharding.line();
        }
        if let Some(Replaced { shards, emptied }) = replaces {
            let emptied = if *emptied { ", emptied" } else { "" };
            lines += &format!("replaces {}, generation {}{emptied}\n", shards.count, shards.generation);
        }
        lines + if *of_cluster { OF_CLUSTER } else { "" }
    }

    /// The part of a store that the database has.
    pub(super) fn shard(&self) -> ShardOf {
        match self.divided {
            Divided::Shard(shard) => shard,
            Divided::No | Divided::Into(_) => ShardOf::WHOLE,
        }
    }
}

/// What whoever opens a database has to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checked {
    /// Epochs before those of the database.
    pub(super) epochs_before: u64,
    /// The part of a store that it has.
    pub(super) shard: ShardOf,
}

/// Whether a store is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Divided {
    /// This database has all of it, or does not say.
    No,
    /// This database has one shard.
    Shard(ShardOf),
    /// These shards are elsewhere.
    Into(StoreShards),
}

/// The thing that stands where a journal could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// Nothing.
    Nothing,
    /// The rest of a rebuild that was cut short.
    Unfinished,
    /// A journal.
    Journal,
}

/// The marker of one database.
#[derive(Debug, Clone)]
pub(super) struct JournalMarker {
    pub(super) store: Arc<dyn ObjectStore>,
    prefix: Path,
    log: &'static str,
    /// The folder of `store`, if it is one.
    folder: Option<PathBuf>,
}

impl JournalMarker {
    /// The marker of the database below `prefix` with the log called `log`.
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: Path, log: &'static str) -> Self {
        Self { store, prefix, log, folder: None }
    }

    /// The marker of the database below `prefix`, whichever of the logs it has; a new one gets `new`.
    pub(super) async fn find(
        store: &Arc<dyn ObjectStore>,
        prefix: &Path,
        new: &'static str,
        other: &'static str,
    ) -> Result<Self, JournalError> {
        let marker = |log| Self::new(Arc::clone(store), prefix.clone(), log);
        let found = marker(new).read().await?;
        let has_other = found.is_some_and(|found| marker(other).is_of_its_log(&found));
        Ok(marker(if has_other { other } else { new }))
    }

    fn is_of_its_log(&self, found: &str) -> bool {
        found == self.unfinished() || found.starts_with(&self.whole())
    }

    /// The log of the database.
    pub(super) fn log(&self) -> &'static str {
        self.log
    }

    /// The store is this folder.
    pub(super) fn in_folder(self, folder: &FilePath) -> Self {
        Self { folder: Some(folder.to_owned()), ..self }
    }

    pub(super) fn place(&self) -> String {
        let path = self.path();
        self.folder.as_ref().map_or_else(|| path.to_string(), |folder| folder.join(path.as_ref()).display().to_string())
    }

    /// Whether something is there that is no file: reading a named pipe would never end.
    fn is_no_file(&self) -> bool {
        let file = self.folder.as_ref().map(|folder| folder.join(self.path().as_ref()));
        file.and_then(|file| file.metadata().ok()).is_some_and(|there| !there.is_file())
    }

    pub(super) fn path(&self) -> Path {
        self.prefix.clone().join("FORMAT")
    }

    fn whole(&self) -> String {
        format!("esker journal 1, log {} 1\n", self.log)
    }

    fn unfinished(&self) -> String {
        format!("esker journal being rebuilt, log {} 1\n", self.log)
    }

    pub(super) async fn read(&self) -> Result<Option<String>, JournalError> {
        if self.is_no_file() {
            return Ok(Some("(not a regular file)".to_owned()));
        }
        match self.store.get(&self.path()).await {
            Ok(found) => Ok(Some(String::from_utf8_lossy(&found.bytes().await?).into_owned())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn has_manifest(&self) -> Result<bool, JournalError> {
        let manifests = self.prefix.clone().join("manifest");
        Ok(self.store.list(Some(&manifests)).next().await.transpose()?.is_some())
    }

    async fn create(&self, text: String) -> Result<bool, JournalError> {
        match self.store.put_opts(&self.path(), text.into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The text of one that says this.
    pub(super) fn text(&self, marked: &Marked) -> String {
        self.whole() + &marked.lines()
    }

    pub(super) fn wrong(&self, found: &str) -> JournalError {
        let (found, expected) = (found.trim().to_owned(), self.whole().trim().to_owned());
        JournalError::WrongFormat { place: self.place(), found, expected }
    }

    /// What the marker of a whole database says.
    pub(super) fn marked(&self, found: &str) -> Result<Marked, JournalError> {
        if found == self.unfinished() {
            return Err(JournalError::Unfinished);
        }
        let wrong = || self.wrong(found);
        let (alone, of_cluster) = match found.strip_suffix(OF_CLUSTER) {
            Some(alone) => (alone, true),
            None => (found, false),
        };
        let mut marked = Marked { of_cluster, ..Marked::PLAIN };
        let rest = alone.strip_prefix(&self.whole()).ok_or_else(wrong)?;
        let mut lines = rest.lines().peekable();
        if let Some(number) = lines.peek().and_then(|line| line.strip_prefix("epochs after ")) {
            marked.epochs_before = number.parse().map_err(|_| wrong())?;
            lines.next();
        }
        if let Some(line) = lines.next_if(|line| line.starts_with("shard")) {
            marked.divided = divided(line).ok_or_else(wrong)?;
        }
        if let Some(number) = lines.peek().and_then(|line| line.strip_prefix("given up ")) {
            marked.given_up = number.parse().ok().filter(|generation| *generation > 0).ok_or_else(wrong)?;
            lines.next();
        }
        if let Some(line) = lines.next_if(|line| line.starts_with("resharding ")) {
            marked.resharding = Some(Resharding::parse(line).ok_or_else(wrong)?);
        } else if let Some(line) = lines.next_if(|line| line.starts_with("replaces ")) {
            marked.replaces = Some(Replaced::parse(line).ok_or_else(wrong)?);
        }
        if lines.next().is_some() { Err(wrong()) } else { Ok(marked) }
    }

    /// Checks that the database may be looked at, or records it if it is new. Returns how many epochs went before its own.
    pub(super) async fn check(&self, claim: JournalClaim) -> Result<u64, JournalError> {
        let found = self.found_or_made().await?;
        let marked = self.marked(&found)?;
        self.check_openable(&marked, claim)?;
        Ok(marked.epochs_before)
    }

    /// Refuses what has no database, and one that others take the place of, unless that is what it is opened for.
    fn check_openable(&self, marked: &Marked, claim: JournalClaim) -> Result<(), JournalError> {
        let is_for = |generation| matches!(claim, JournalClaim::Reshard { generation: wanted } if wanted == generation);
        match (marked.divided, &marked.resharding) {
            (_, Some(Resharding { to, .. })) if !is_for(to.generation) => {
                Err(JournalError::Resharding { place: self.place(), to: *to })
            }
            // What an undivided store had, while it is deleted.
            (Divided::Into(shards), None)
                if is_for(shards.generation)
                    && marked.replaces.as_ref().is_some_and(|replaced| replaced.shards.is_undivided()) =>
            {
                Ok(())
            }
            (Divided::Into(shards), _) => Err(JournalError::Divided { place: self.place(), shards: shards.count }),
            (Divided::No | Divided::Shard(_), _) => Ok(()),
        }
    }

    /// The same for the one who opens it with this claim.
    pub(super) async fn check_claim(&self, claim: JournalClaim) -> Result<Checked, JournalError> {
        if let JournalClaim::Fill { shard, epochs_before } = claim {
            return self.found_or_filled(shard, epochs_before).await;
        }
        let found = self.found_or_made().await?;
        let marked = self.marked(&found)?;
        self.check_openable(&marked, claim)?;
        // A command that stood still, and goes on when its change was given up, shuts nobody out.
        if let JournalClaim::Reshard { generation } = claim
            && !marked.resharding.as_ref().is_some_and(|begun| begun.to.generation == generation && !begun.given_up)
        {
            return Err(JournalError::MarkChanged(self.place()));
        }
        let as_it_is = Checked { epochs_before: marked.epochs_before, shard: marked.shard() };
        let shard = match claim {
            JournalClaim::Member { shard, .. } => shard,
            JournalClaim::Alone if marked.of_cluster => return Err(JournalError::OfCluster(self.place())),
            JournalClaim::Alone | JournalClaim::Reshard { .. } | JournalClaim::Fill { .. } => return Ok(as_it_is),
        };
        let divided = match marked.divided {
            Divided::Shard(found) if found != shard => {
                return Err(JournalError::WrongShard { place: self.place(), found, expected: shard });
            }
            // Of a database that was rebuilt, too.
            Divided::No if shard.folder().is_some() => Divided::Shard(shard),
            as_it_was => as_it_was,
        };
        // From here on nobody opens it who does not know of the map.
        if !marked.of_cluster || divided != marked.divided {
            let epochs_before = marked.epochs_before;
            self.put_back(self.text(&Marked { divided, of_cluster: true, ..marked })).await?;
            return Ok(Checked { epochs_before, shard });
        }
        Ok(Checked { epochs_before: marked.epochs_before, shard })
    }

    /// A new database of a shard that is filled before anybody else opens it. Whoever had begun to has said how many epochs went before.
    async fn found_or_filled(&self, shard: ShardOf, epochs_before: u64) -> Result<Checked, JournalError> {
        let (divided, resharding, replaces) = (Divided::Shard(shard), None, None);
        let new = Marked { epochs_before, divided, given_up: 0, resharding, replaces, of_cluster: true };
        if self.read().await?.is_none() {
            self.create(self.text(&new)).await?;
        }
        let found = self.read().await?.unwrap_or_default();
        let marked = self.marked(&found)?;
        let epochs_before = marked.epochs_before;
        if (Marked { epochs_before, ..new }) != marked {
            return Err(self.wrong(&found));
        }
        Ok(Checked { epochs_before, shard })
    }

    /// The shards that a store is divided into, if the marker at its root says so.
    pub(super) async fn shards(&self) -> Result<Option<StoreShards>, JournalError> {
        let Some(found) = self.read().await? else { return Ok(None) };
        let Ok(marked) = self.marked(&found) else { return Ok(None) };
        if let Some(Resharding { to, .. }) = marked.resharding {
            return Err(JournalError::Resharding { place: self.place(), to });
        }
        Ok(match marked.divided {
            Divided::Into(shards) => Some(shards),
            Divided::No | Divided::Shard(_) => None,
        })
    }

    /// Says that a store is divided into so many shards, unless something is there. Returns what is so then; `None` if it is not
    /// divided.
    pub(super) async fn divide(&self, shards: u32) -> Result<Option<StoreShards>, JournalError> {
        if !self.has_manifest().await? {
            let divided = Divided::Into(StoreShards::first(shards));
            let (resharding, replaces) = (None, None);
            let divided = Marked { epochs_before: 0, divided, given_up: 0, resharding, replaces, of_cluster: true };
            self.create(self.text(&divided)).await?;
        }
        self.shards().await
    }

    /// The text of the marker. A new database gets one.
    async fn found_or_made(&self) -> Result<String, JournalError> {
        if let Some(found) = self.read().await? {
            return Ok(found);
        }
        if self.has_manifest().await? {
            return Err(self.wrong(""));
        }
        if self.create(self.whole()).await? {
            return Ok(self.whole());
        }
        // Another daemon was faster, or the answer to our own first try was lost.
        Ok(self.read().await?.unwrap_or_default())
    }

    /// Whether only members of a cluster may open the database.
    pub(super) async fn is_of_cluster(&self) -> Result<bool, JournalError> {
        Ok(self.read().await?.is_some_and(|found| found.ends_with(OF_CLUSTER)))
    }

    /// Whoever is alone may open the database again.
    pub(super) async fn leave_cluster(&self) -> Result<(), JournalError> {
        let found = self.read().await?.unwrap_or_default();
        match found.strip_suffix(OF_CLUSTER) {
            Some(alone) => self.put_back(alone.to_owned()).await,
            None => Ok(()),
        }
    }

    /// Looks at the place.
    pub(super) async fn present(&self) -> Result<Present, JournalError> {
        Ok(match self.read().await? {
            Some(found) if found == self.unfinished() => Present::Unfinished,
            Some(_) => Present::Journal,
            None if self.has_manifest().await? => Present::Journal,
            None => Present::Nothing,
        })
    }

    /// Nobody opens the database from now on.
    pub(super) async fn begin_rebuild(&self) -> Result<(), JournalError> {
        if self.has_manifest().await? || !self.create(self.unfinished()).await? {
            return Err(self.wrong(&self.read().await?.unwrap_or_default()));
        }
        Ok(())
    }

    /// Marks the rest of the database as of no use.
    pub(super) async fn shut(&self) -> Result<(), JournalError> {
        self.store.put(&self.path(), self.unfinished().into()).await?;
        Ok(())
    }

    /// It is of use after all, and has the marker that it had.
    pub(super) async fn put_back(&self, text: String) -> Result<(), JournalError> {
        self.store.put(&self.path(), text.into()).await?;
        Ok(())
    }

    /// The database is whole.
    pub(super) async fn finish_rebuild(&self, epochs_before: u64) -> Result<(), JournalError> {
        let text = format!("{}epochs after {epochs_before}\n", self.whole());
        self.store.put(&self.path(), text.into()).await?;
        Ok(())
    }
}

/// A line about shards.
fn divided(line: &str) -> Option<Divided> {
    let (what, routing) = line.split_once(", routing ")?;
    let number = |text: &str| text.parse::<u32>().ok();
    let (routing, generation) = match routing.split_once(", generation ") {
        Some((routing, generation)) => (routing, generation.parse().ok().filter(|generation| *generation > 0)?),
        None => (routing, 0),
    };
    if number(routing)? != ROUTING {
        return None;
    }
    let of = |text: &str| {
        let count = number(text).filter(|count| (1..=SHARDS_MAX).contains(count))?;
        Some(StoreShards { count, generation })
    };
    if let Some(shards) = what.strip_prefix("shards ") {
        return of(shards).map(Divided::Into);
    }
    let (shard, shards) = what.strip_prefix("shard ")?.split_once(" of ")?;
    let found = of(shards)?.shard(number(shard)?);
    (found.shard < found.of).then_some(Divided::Shard(found))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    const SEVENTH: ShardOf = ShardOf { shard: 7, of: 16, generation: 0 };
    const MEMBER: JournalClaim = JournalClaim::Member { epoch_before: 0, shard: SEVENTH };

    fn marker(store: &Arc<InMemory>, prefix: &str) -> JournalMarker {
        JournalMarker::new(Arc::<InMemory>::clone(store), Path::from(prefix), "objects")
    }

    #[tokio::test]
    async fn a_shard_is_opened_as_what_it_is_and_nothing_else() {
        let store = Arc::new(InMemory::new());
        let of_shard = marker(&store, "c/shards/7/catalog");

        assert_eq!(of_shard.check_claim(MEMBER).await.unwrap().epochs_before, 0);
        let text = of_shard.read().await.unwrap().unwrap();
        assert_eq!(text, "esker journal 1, log objects 1\nshard 7 of 16, routing 1\ncluster 1\n");
        assert_eq!(of_shard.check_claim(MEMBER).await.unwrap().epochs_before, 0);
        assert_eq!(of_shard.read().await.unwrap().unwrap(), text);

        let of_later_generation = StoreShards { count: 16, generation: 3 };
        for wrong in [
            StoreShards::first(16).shard(6),
            StoreShards::first(8).shard(7),
            of_later_generation.shard(7),
            ShardOf::WHOLE,
        ] {
            let claim = JournalClaim::Member { epoch_before: 0, shard: wrong };
            let error = of_shard.check_claim(claim).await.unwrap_err();
            assert!(error.is_damage() && error.to_string().contains("shard 7 of 16"), "{error}");
        }
        assert!(matches!(of_shard.check_claim(JournalClaim::Alone).await, Err(JournalError::OfCluster(_))));
        of_shard.leave_cluster().await.unwrap();
        let alone = of_shard.check_claim(JournalClaim::Alone).await.unwrap();
        assert_eq!((alone.epochs_before, alone.shard), (0, SEVENTH), "it stays one of several");
        of_shard.finish_rebuild(5).await.unwrap();
        assert_eq!(of_shard.check_claim(MEMBER).await.unwrap().epochs_before, 5);
        let text = of_shard.read().await.unwrap().unwrap();
        assert!(text.ends_with("epochs after 5\nshard 7 of 16, routing 1\ncluster 1\n"), "{text}");
    }

    #[tokio::test]
    async fn a_store_is_divided_once_and_nobody_opens_its_root() {
        let store = Arc::new(InMemory::new());
        let root = marker(&store, "c/catalog");
        assert_eq!(root.shards().await.unwrap(), None);

        let divided = Some(StoreShards::first(16));
        assert_eq!(root.divide(16).await.unwrap(), divided);
        assert_eq!(root.divide(8).await.unwrap(), divided, "it was decided");

        for claim in [JournalClaim::Alone, MEMBER] {
            let error = root.check_claim(claim).await.unwrap_err();
            assert!(matches!(error, JournalError::Divided { shards: 16, .. }), "{error}");
        }
        assert!(root.check(JournalClaim::Alone).await.is_err());
        root.leave_cluster().await.unwrap();
        assert_eq!(root.shards().await.unwrap(), divided, "that stays");
    }

    #[tokio::test]
    async fn a_store_that_has_a_catalog_is_not_divided() {
        let store = Arc::new(InMemory::new());
        let root = marker(&store, "c/catalog");
        root.check_claim(JournalClaim::Alone).await.unwrap();

        assert_eq!(root.divide(16).await.unwrap(), None);
        assert_eq!(root.check_claim(JournalClaim::Alone).await.unwrap().epochs_before, 0);
    }

    #[tokio::test]
    async fn lines_that_nobody_wrote_are_refused() {
        let store = Arc::new(InMemory::new());
        let of_shard = marker(&store, "c");
        for line in [
            "shard 16 of 16, routing 1",
            "shard 7 of 16, routing 2",
            "shards 0, routing 1",
            "shards 257, routing 1",
            "shard 7 of 16, routing 1\nshards 16, routing 1",
            "epochs after x",
            "shard 7 of 16, routing 1, generation 0",
            "shards 16, routing 1, generation x",
            "resharding to 0, generation 2",
            "resharding to 4, generation 0",
            "resharding to 4, generation 2, given up",
            "given up 0",
            "given up 3, by a",
            "resharding to 4, generation 2\ngiven up 2",
            "resharding to 4, generation 2\nreplaces 4, generation 2",
            "replaces 4",
        ] {
            of_shard.put_back(format!("esker journal 1, log objects 1\n{line}\n")).await.unwrap();
            let error = of_shard.check(JournalClaim::Alone).await.unwrap_err();
            assert!(matches!(error, JournalError::WrongFormat { .. }), "{line}: {error}");
        }
    }
}
