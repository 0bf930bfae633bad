//! The requests that the journal costs on an object store.

use std::fmt::Formatter;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result as StoreResult,
};

use super::*;

/// Counts requests, refuses puts when asked to, and leaves the last files of the log out of a list.
#[derive(Debug)]
struct CountingStore {
    inner: InMemory,
    requests: AtomicU64,
    puts: AtomicU64,
    heads: AtomicU64,
    refuses_puts: AtomicBool,
    left_out: AtomicUsize,
}

impl CountingStore {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            requests: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            heads: AtomicU64::new(0),
            refuses_puts: AtomicBool::new(false),
            left_out: AtomicUsize::new(0),
        })
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Display for CountingStore {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.count();
        self.puts.fetch_add(1, Ordering::Relaxed);
        if self.refuses_puts.load(Ordering::Relaxed) {
            return Err(object_store::Error::Generic { store: "refusing", source: "503 slow down".into() });
        }
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.count();
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.count();
        self.heads.fetch_add(u64::from(options.head), Ordering::Relaxed);
        self.inner.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.count();
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.count();
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.count();
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.count();
        let (listed, left_out) = (self.inner.list_with_offset(prefix, offset), self.left_out.load(Ordering::Relaxed));
        let cut = listed.try_collect::<Vec<_>>().map_ok(move |mut files| {
            files.sort_by(|one, other| one.location.cmp(&other.location));
            files.truncate(files.len().saturating_sub(left_out));
            futures::stream::iter(files.into_iter().map(Ok))
        });
        cut.try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.count();
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.count();
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_group_is_one_put() {
    let store = CountingStore::new();
    let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
    let (journal, _) = open(object(&shared)).await.unwrap();
    let before = store.puts.load(Ordering::Relaxed);

    for n in 0..20 {
        commit(&journal, vec![put(n, n)]).await.unwrap();
    }

    let puts = store.puts.load(Ordering::Relaxed) - before;
    assert_eq!(puts, 20);
}

/// A journal with so many commits after whose owner died.
async fn left_with(commits: u64) -> Arc<CountingStore> {
    let store = CountingStore::new();
    let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
    let (journal, _) = open(object(&shared)).await.unwrap();
    for n in 0..commits {
        commit(&journal, vec![put(format!("{n:03}"), n)]).await.unwrap();
    }
    drop(journal);
    store
}

#[tokio::test]
async fn the_end_of_the_log_is_found_by_one_list() {
    let store = left_with(200).await;
    let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
    let before = store.heads.load(Ordering::Relaxed);

    let (_, records) = open(object(&shared)).await.unwrap();

    assert_eq!(records.len(), 200);
    let heads = store.heads.load(Ordering::Relaxed) - before;
    assert!(heads <= 4, "{heads} questions for files of the log");
}

/// The owner before wrote on after the log was listed: what it was answered is there, and it is shut out.
#[tokio::test]
async fn a_list_of_the_log_that_is_out_of_date_loses_nothing() {
    for left_out in [1, 2, 7, 60, 100] {
        let store = left_with(60).await;
        let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
        let (before, _) = open(object(&shared)).await.unwrap();
        commit(&before, vec![put("last", 1)]).await.unwrap();
        store.left_out.store(left_out, Ordering::Relaxed);

        let (journal, records) = open(object(&shared)).await.unwrap();

        assert_eq!(records.len(), 61, "{left_out} files were not in the list");
        assert!(matches!(commit(&before, vec![put("late", 1)]).await, Err(JournalError::Fenced)));
        commit(&journal, vec![put("next", 1)]).await.unwrap();
        drop((before, journal));
        let (_, records) = open(object(&shared)).await.unwrap();
        assert_eq!(records.len(), 62);
    }
}

fn patient(deletes: Duration) -> JournalSettings {
    let company_wait = CompanyWait { deletes, ..CompanyWait::default() };
    JournalSettings { company_wait, ..JournalSettings::default() }
}

async fn delete(journal: &Journal, key: impl Display) {
    let delete = Mutation::Delete { key: Bytes::from(key.to_string()) };
    journal.write(vec![delete], Haste::Deletes(1)).await.unwrap().durable().await.unwrap();
}

#[tokio::test]
async fn deletes_of_several_threads_share_a_put() {
    const THREADS: u64 = 8;
    const EACH: u64 = 10;
    let store = CountingStore::new();
    let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
    let (journal, _) = open_with(object(&shared), patient(Duration::from_secs(1))).await.unwrap();
    let before = store.puts.load(Ordering::Relaxed);

    join_all((0..THREADS).map(async |thread| {
        for n in 0..EACH {
            delete(&journal, format!("{thread}-{n}")).await;
        }
    }))
    .await;

    // Once half of them have come together, no group is smaller.
    let puts = store.puts.load(Ordering::Relaxed) - before;
    assert!(puts <= 2 + 2 * EACH, "{puts} puts");
}

#[tokio::test]
async fn a_thread_that_deletes_alone_waits_for_nobody() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (journal, _) = open_with(object(&store), patient(Duration::from_secs(3600))).await.unwrap();

    for n in 0..20 {
        delete(&journal, n).await;
    }

    assert_eq!(groups_of(&*store).await, 21, "each in a group of its own, and the fence");
}

#[tokio::test]
async fn deletes_that_wait_for_others_share_the_put_of_what_is_urgent() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (journal, _) = open_with(object(&store), patient(Duration::from_secs(3600))).await.unwrap();
    journal.write(vec![put("a", 1)], Haste::Deletes(2)).await.unwrap().durable().await.unwrap();
    let before = groups_of(&*store).await;

    let mut waiting = Box::pin(delete(&journal, "a"));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err(), "the second has not come");
    commit(&journal, vec![put("b", 1)]).await.unwrap();
    waiting.await;

    assert_eq!(groups_of(&*store).await, before + 1);
}

fn lazy(lazy: Duration) -> JournalSettings {
    let company_wait = CompanyWait { lazy, ..CompanyWait::default() };
    JournalSettings { company_wait, ..JournalSettings::default() }
}

#[tokio::test]
async fn what_nobody_waits_for_goes_with_the_next_commit_and_not_without_one() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (journal, _) = open_with(object(&store), lazy(Duration::from_secs(3600))).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    let before = groups_of(&*store).await;

    for n in 0..20 {
        journal.write(vec![put(format!("lazy-{n}"), n)], Haste::Lazy).await.unwrap();
    }
    journal.write(vec![Mutation::Delete { key: Bytes::from("a") }], Haste::Lazy).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(groups_of(&*store).await, before);
    commit(&journal, vec![put("b", 1)]).await.unwrap();

    assert_eq!(groups_of(&*store).await, before + 1);
    journal.write(vec![put("c", 1)], Haste::Lazy).await.unwrap();
    assert_eq!(journal.get(&Bytes::from("c")).await.unwrap(), Some(Bytes::from("1")), "it is there to be read");
    drop(journal);
    let (_, records) = open(object(&store)).await.unwrap();
    assert_eq!(records.len(), 21, "a prefix: neither `a`, which was deleted before the commit, nor `c`: {records:?}");
    assert!(records.contains_key(&Bytes::from("lazy-19")) && records.contains_key(&Bytes::from("b")));
}

#[tokio::test]
async fn what_nobody_waits_for_is_flushed_by_itself_after_a_while() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (journal, _) = open_with(object(&store), lazy(Duration::from_millis(50))).await.unwrap();
    let before = groups_of(&*store).await;

    journal.write(vec![put("a", 1)], Haste::Lazy).await.unwrap();
    let written = journal.write(vec![put("b", 1)], Haste::Lazy).await.unwrap();

    tokio::time::timeout(Duration::from_secs(20), written.durable()).await.expect("nothing else comes").unwrap();
    assert_eq!(groups_of(&*store).await, before + 1);
}

#[tokio::test]
async fn an_owner_that_writes_only_what_nobody_waits_for_notices_that_it_was_shut_out() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (old, _) = open_with(object(&store), lazy(Duration::from_millis(50))).await.unwrap();
    let (new, _) = open(object(&store)).await.unwrap();

    // It may have noticed already.
    let written = old.write(vec![put("a", 1)], Haste::Lazy).await.map(|_| ());
    let ended = tokio::time::timeout(Duration::from_secs(20), old.ended()).await.expect("its flush is refused");

    assert!(matches!(written, Ok(()) | Err(JournalError::Fenced)), "{written:?}");
    assert!(matches!(ended, Some(JournalError::Fenced)), "{ended:?}");
    assert_eq!(new.get(&Bytes::from("a")).await.unwrap(), None);
}

#[tokio::test]
async fn an_idle_journal_makes_few_requests() {
    const POLLS: u32 = 10;
    let store = CountingStore::new();
    let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
    // A minute in a fifth of a second; the collector's turn is every ten minutes.
    let settings = JournalSettings {
        poll_interval: Duration::from_millis(200),
        gc_interval: Duration::from_secs(2),
        ..JournalSettings::default()
    };
    let (journal, _) = open_with(object(&shared), settings).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = store.requests();

    tokio::time::sleep(Duration::from_millis(200) * POLLS).await;

    let per_poll = (store.requests() - before) as f64 / f64::from(POLLS);
    println!("{per_poll} requests a minute");
    assert!(per_poll <= 16.0, "{per_poll} requests a minute");
}

#[tokio::test]
async fn an_outage_ends_as_unavailable_and_loses_nothing_acknowledged() {
    let store = CountingStore::new();
    let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
    let settings = JournalSettings { object_retries_max: 2, ..JournalSettings::default() };
    let (journal, _) = open_with(object(&shared), settings).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    let ended = journal.ended();
    assert!(journal.failure().await.is_none());

    store.refuses_puts.store(true, Ordering::Relaxed);
    let error = commit(&journal, vec![put("b", 2)]).await.unwrap_err();

    assert!(matches!(error, JournalError::Unavailable(_)), "{error:?}");
    // Whoever does not write learns of the end alone, and asks for the reason.
    assert!(ended.await.is_some());
    assert!(matches!(journal.failure().await, Some(JournalError::Unavailable(_))), "{:?}", journal.failure().await);
    let error = commit(&journal, vec![put("c", 3)]).await.unwrap_err();
    assert!(matches!(error, JournalError::Unavailable(_)), "{error:?}");
    drop(journal);
    store.refuses_puts.store(false, Ordering::Relaxed);
    let (_, records) = open(object(&shared)).await.unwrap();
    assert_eq!(records, Records::from([record("a", "1")]));
}

#[tokio::test]
async fn a_dropped_journal_leaves_storage_alone() {
    let store = CountingStore::new();
    let shared: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
    let settings = JournalSettings { poll_interval: Duration::from_millis(20), ..JournalSettings::default() };
    let (journal, _) = open_with(object(&shared), settings).await.unwrap();
    drop(journal);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = store.requests();

    tokio::time::sleep(Duration::from_millis(200)).await;

    assert_eq!(store.requests(), before);
}
