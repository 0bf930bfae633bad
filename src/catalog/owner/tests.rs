//! The owner as its callers see it, on an object store in memory.

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::catalog::Catalog;
use crate::catalog::command::{
    Bind, Condition, NewSegment, ObjectContent, ObjectToDelete, PutObject, RestorePoint, StoreItem,
};
use crate::catalog::slate::{CompanyWait, Journal, JournalSettings};
use crate::catalog::state::CatalogState;
use crate::model::{
    About, CheckpointId, Claim, JobEnd, JobId, Leavings, Location, ObjectHead, ObjectHeaders, SegmentCrc, SegmentId,
    StateScope, Writer,
};
use crate::runtime::TaskGroup;
use crate::store::{Capabilities, Placement};

const MANY: u64 = 3000;

fn job(name: &str) -> JobId {
    name.parse().unwrap()
}

fn items(job: &JobId, numbers: std::ops::Range<u64>) -> Store {
    let items = numbers.map(|number| {
        let about = About {
            job: job.clone(),
            scope: StateScope::Shared,
            writer: Writer::default(),
            checkpoint: Some(CheckpointId(1)),
            name: None,
        };
        let location = Location::Inline { len: 1 };
        let inline = Some(Bytes::from_static(b"x"));
        let (id, crc) = (SegmentId(number.into()), SegmentCrc::default());
        let bind = Bind::Checkpoint { idempotency_key: None, run: None };
        StoreItem { segments: vec![NewSegment { id, about, location, inline, crc }], bind }
    });
    Store { file: None, items: items.collect() }
}

async fn open(store: &Arc<InMemory>) -> Catalog {
    open_with(store, JournalSettings::default()).await
}

async fn open_with(store: &Arc<InMemory>, settings: JournalSettings) -> Catalog {
    let placement = Placement::Object {
        store: Arc::<InMemory>::clone(store),
        prefix: Path::from("catalog"),
        can: Capabilities::OBJECT,
        log: None,
    };
    let mut state = CatalogState::default();
    let load = |key, value: Bytes| state.load(&key, &value);
    let journal = Journal::open(placement, settings, load).await.unwrap();
    state.end_loading(Millis(1));
    let tasks = TaskGroup::new(CancellationToken::new());
    Catalog::start(state, journal, Clock::System, &Metrics::new(), &tasks)
}

/// A catalog with a completed checkpoint of many segments.
async fn filled(store: &Arc<InMemory>) -> Catalog {
    let (catalog, a) = (open(store).await, job("a"));
    catalog.execute(Command::CreateJob(a.clone())).await.unwrap();
    let stored = catalog.store(items(&a, 0..MANY)).await.unwrap();
    assert!(stored.len() as u64 == MANY && stored.iter().all(Result::is_ok));
    catalog.execute(Command::CompleteCheckpoint(a, CheckpointId(1))).await.unwrap();
    catalog
}

/// An object of one byte under each of these keys.
fn objects(numbers: std::ops::Range<u64>) -> Store {
    let items = numbers.map(|number| {
        let head = ObjectHead {
            len: 1,
            etag: "e".to_owned(),
            modified: Millis(1),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: vec![],
        };
        let StoreItem { segments, .. } = items(&job("a"), number..number + 1).items.remove(0);
        let content = ObjectContent::Segments { segments: vec![segments[0].id], head, upload: None };
        let (bucket, key) = ("bucket".to_owned(), number.to_string());
        let put = PutObject { bucket, key, condition: Condition::None, content };
        StoreItem { segments, bind: Bind::Object(Box::new(put)) }
    });
    Store { file: None, items: items.collect() }
}

fn delete(number: u64) -> Command {
    let object = ObjectToDelete { key: number.to_string(), if_match: None, if_put_at: None };
    Command::DeleteObjects("bucket".to_owned(), vec![object])
}

/// Deletes objects, of each of which is said what its delete has to reach.
async fn delete_reaching(catalog: &Catalog, numbers: &[(u64, DeleteReach)]) {
    let objects = numbers
        .iter()
        .map(|(number, reach)| (ObjectToDelete { key: number.to_string(), if_match: None, if_put_at: None }, *reach));
    let outcome = catalog.delete_objects("bucket", objects.collect()).await.unwrap();
    assert!(matches!(outcome, Outcome::Deleted(answers) if answers.iter().all(Result::is_ok)));
}

async fn delete_lazily(catalog: &Catalog, number: u64) {
    delete_reaching(catalog, &[(number, DeleteReach::Memory)]).await;
}

/// A catalog with objects, in which nothing lazy is flushed by itself.
async fn with_objects(store: &Arc<InMemory>, numbers: std::ops::Range<u64>) -> Catalog {
    let company_wait = CompanyWait { lazy: Duration::from_secs(3600), ..CompanyWait::default() };
    let settings = JournalSettings { company_wait, ..JournalSettings::default() };
    let catalog = open_with(store, settings).await;
    catalog.execute(Command::CreateBucket("bucket".to_owned())).await.unwrap();
    let stored = catalog.store(objects(numbers)).await.unwrap();
    assert!(stored.iter().all(Result::is_ok));
    // What confirming it left to be written.
    catalog.sync().await.unwrap();
    catalog
}

/// Commits on storage.
async fn commits(store: &InMemory) -> usize {
    let all: Vec<_> = store.list(Some(&Path::from("catalog/wal"))).try_collect().await.unwrap();
    all.len()
}

async fn is_there(catalog: &Catalog, number: u64) -> bool {
    catalog.object("bucket", &number.to_string()).await.unwrap().is_some()
}

/// A copy of the object `from`.
fn copy(from: u64, to: u64) -> Store {
    let content = ObjectContent::CopyOf {
        bucket: "bucket".to_owned(),
        key: from.to_string(),
        if_match: None,
        headers: None,
        tags: None,
        modified: Millis(2),
        storage_class: None,
        checksum: None,
    };
    let put = PutObject { bucket: "bucket".to_owned(), key: to.to_string(), condition: Condition::None, content };
    Store { file: None, items: vec![StoreItem { segments: vec![], bind: Bind::Object(Box::new(put)) }] }
}

#[tokio::test]
async fn lazy_commands_cost_no_commit_and_are_durable_with_the_next_one() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..10).await;
    let before = commits(&store).await;

    for number in 0..5 {
        delete_lazily(&catalog, number).await;
        assert!(!is_there(&catalog, number).await, "{number} is gone at once");
    }
    catalog.store_lazily(objects(20..21)).await.unwrap();
    assert!(is_there(&catalog, 20).await, "visible once it is answered");
    assert_eq!(catalog.inline_data(SegmentId(20)).await.unwrap(), Some(Bytes::from_static(b"x")));
    assert_eq!(commits(&store).await, before);
    catalog.store(copy(20, 21)).await.unwrap().remove(0).unwrap();
    delete_lazily(&catalog, 20).await;

    assert_eq!(commits(&store).await, before + 1);
    // As after a crash: the other owner finds what is durable.
    let next = open(&store).await;
    for number in 0..5 {
        assert!(!is_there(&next, number).await, "{number} was deleted before something durable");
    }
    assert!(is_there(&next, 20).await, "its delete was the last, and lazy");
    assert!(is_there(&next, 21).await);
    assert_eq!(next.recount().faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_crash_undoes_lazy_commands_from_the_last_one_on() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..4).await;

    delete_lazily(&catalog, 0).await;
    delete_lazily(&catalog, 1).await;
    delete_lazily(&catalog, 2).await;
    catalog.store_lazily(objects(30..31)).await.unwrap();

    let next = open(&store).await;
    for (number, there) in [(0, true), (1, true), (2, true), (3, true), (30, false)] {
        assert_eq!(is_there(&next, number).await, there, "{number}");
    }
    assert_eq!(next.recount().faults, Vec::<String>::new());
    assert!(catalog.execute(delete(3)).await.is_err(), "it was shut out");
}

#[tokio::test]
async fn a_refusal_that_is_founded_on_a_lazy_delete_makes_it_durable() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..4).await;

    delete_lazily(&catalog, 0).await;
    let refused = catalog.store(copy(0, 9)).await.unwrap().remove(0);

    assert!(matches!(refused, Err(Refusal::NoSuchKey(_))), "{refused:?}");
    assert!(!is_there(&open(&store).await, 0).await);
}

#[tokio::test]
async fn deleting_what_was_deleted_lazily_makes_that_durable_and_other_keys_do_not() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..4).await;
    let before = commits(&store).await;

    delete_lazily(&catalog, 0).await;
    // A folder's marker, which was never there.
    catalog.execute(delete(77)).await.unwrap();
    assert_eq!(commits(&store).await, before);
    catalog.execute(delete(0)).await.unwrap();

    assert_eq!(commits(&store).await, before + 1);
    assert!(!is_there(&open(&store).await, 0).await);
}

#[tokio::test]
async fn a_delete_of_several_waits_for_a_commit_only_if_one_that_was_there_asks_for_it() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..8).await;
    let before = commits(&store).await;
    let batch = |state, marker| [(state, DeleteReach::Memory), (marker, DeleteReach::Storage)];

    // Folders above an object, whose markers never were.
    delete_reaching(&catalog, &batch(0, 77)).await;
    delete_reaching(&catalog, &batch(1, 77)).await;
    assert_eq!(commits(&store).await, before, "nobody asked for more than memory of what was there");
    delete_reaching(&catalog, &batch(2, 3)).await;
    assert_eq!(commits(&store).await, before + 1, "3 was there");
    delete_reaching(&catalog, &batch(4, 3)).await;
    assert_eq!(commits(&store).await, before + 1, "and its delete is durable");

    let next = open(&store).await;
    for (number, there) in [(0, false), (1, false), (2, false), (3, false), (4, true), (5, true)] {
        assert_eq!(is_there(&next, number).await, there, "{number}");
    }
}

#[tokio::test]
async fn a_delete_of_what_another_is_deleting_is_not_answered_before_it() {
    let company_wait = CompanyWait { deletes: Duration::from_millis(300), ..CompanyWait::default() };
    let store = Arc::default();
    let catalog = open_with(&store, JournalSettings { company_wait, ..JournalSettings::default() }).await;
    catalog.execute(Command::CreateBucket("bucket".to_owned())).await.unwrap();
    catalog.store(objects(0..2)).await.unwrap();
    catalog.sync().await.unwrap();

    let first = delete_reaching(&catalog, &[(0, DeleteReach::Storage), (1, DeleteReach::Storage)]);
    let second = async {
        while catalog.shared.state.read().has_versions("bucket", "0") {
            tokio::task::yield_now().await;
        }
        delete_reaching(&catalog, &[(0, DeleteReach::Storage)]).await;
        assert!(!is_there(&open(&store).await, 0).await, "answered, and yet not durable");
    };
    tokio::join!(first, second);
}

/// The object of number `id`, under the key of another.
fn object_over(key: u64, id: u64) -> Store {
    let mut store = objects(id..id + 1);
    if let Bind::Object(put) = &mut store.items[0].bind {
        put.key = key.to_string();
    }
    store
}

#[tokio::test]
async fn a_lazy_store_in_the_place_of_something_waits_until_it_is_durable() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..2).await;
    let before = commits(&store).await;

    catalog.store_lazily(object_over(0, 10)).await.unwrap();
    assert_eq!(commits(&store).await, before + 1);
    delete_lazily(&catalog, 1).await;
    catalog.store_lazily(object_over(1, 11)).await.unwrap();
    assert_eq!(commits(&store).await, before + 2);
    catalog.store_lazily(objects(12..13)).await.unwrap();
    assert_eq!(commits(&store).await, before + 2, "nothing stood there");

    let next = open(&store).await;
    for (key, id) in [(0, 10), (1, 11)] {
        assert!(is_there(&next, key).await);
        assert!(next.inline_data(SegmentId(id)).await.unwrap().is_some(), "{key} has the bytes of before");
    }
}

#[tokio::test]
async fn a_sync_makes_lazy_commands_durable() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..4).await;

    delete_lazily(&catalog, 0).await;
    catalog.sync().await.unwrap();

    assert!(!is_there(&open(&store).await, 0).await);
}

#[tokio::test]
async fn lazy_commands_have_a_bound_beyond_which_they_wait_like_others() {
    let store = Arc::default();
    let catalog = with_objects(&store, 0..1).await;
    let before = commits(&store).await;
    let large = |number: u64| {
        let mut store = objects(number..number + 1);
        let segment = &mut store.items[0].segments[0];
        (segment.location, segment.inline) = (Location::Inline { len: 1 << 20 }, Some(vec![7; 1 << 20].into()));
        store
    };

    let mut lazy = 0;
    while commits(&store).await == before {
        assert!(lazy < 10, "no bound");
        catalog.store_lazily(large(100 + lazy)).await.unwrap();
        lazy += 1;
    }

    assert!(lazy > 2, "{lazy} were let in");
    let next = open(&store).await;
    for number in 100..100 + lazy {
        assert!(is_there(&next, number).await, "{number} of {lazy}");
    }
}

#[tokio::test]
async fn nobody_waits_behind_deletes_that_wait_for_more_than_are_let_in() {
    const TOGETHER: u64 = 200;
    let company_wait = CompanyWait { deletes: Duration::from_secs(3600), ..CompanyWait::default() };
    let settings = JournalSettings { company_wait, ..JournalSettings::default() };
    let catalog = open_with(&Arc::default(), settings).await;
    catalog.execute(Command::CreateBucket("bucket".to_owned())).await.unwrap();
    catalog.store(objects(0..2 * TOGETHER)).await.unwrap();
    // From now on so many are expected.
    let together = (0..TOGETHER).map(|number| catalog.execute(delete(number)));
    join_all(together).await.into_iter().for_each(|answer| drop(answer.unwrap()));

    // Each is a batch of its own, as far as they are let in.
    let mut waiting = FuturesUnordered::new();
    for number in TOGETHER..TOGETHER + 100 {
        let before = catalog.shared.applied.load(Ordering::Relaxed);
        waiting.push(catalog.execute(delete(number)));
        for _ in 0..20 {
            assert!(waiting.next().now_or_never().is_none() || number > TOGETHER + 60, "{number}");
            if catalog.shared.applied.load(Ordering::Relaxed) > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let stored = tokio::time::timeout(Duration::from_secs(60), catalog.store(objects(1000..1001)));

    assert!(stored.await.expect("it is urgent").unwrap().iter().all(Result::is_ok));
}

#[tokio::test]
async fn others_are_answered_while_a_job_ends_and_a_claim_waits_for_it() {
    let (store, a, b) = (Arc::default(), job("a"), job("b"));
    let catalog = filled(&store).await;
    catalog.execute(Command::CreateJob(b.clone())).await.unwrap();
    let claim = Command::Restore(RestorePoint {
        job: job("c"),
        from: a.clone(),
        checkpoint: CheckpointId(1),
        claim: Claim::Claim,
    });

    let end = catalog.execute(Command::EndJob(a.clone(), JobEnd::Finished, Leavings::Delete));
    let (mut end, mut claim) = (Box::pin(end), Box::pin(catalog.execute(claim)));
    let mut behind = Box::pin(catalog.execute(Command::SubsumeCheckpoint(b.clone(), CheckpointId(0))));
    assert!((&mut end).now_or_never().is_none() && (&mut claim).now_or_never().is_none());
    assert!((&mut behind).now_or_never().is_none());
    catalog.store(items(&b, MANY..MANY + 1)).await.unwrap();

    assert!((&mut end).now_or_never().is_none(), "thousands of segments take longer than one");
    assert!((&mut behind).now_or_never().is_none(), "what may leave more work lets the claim have its turn");
    assert!(matches!(claim.await, Err(CatalogError::Refused(Refusal::UnknownJob(_)))));
    end.await.unwrap();
    behind.await.unwrap();
    let recount = catalog.recount();
    assert_eq!((recount.segments, recount.faults), (1, vec![]));
}

#[tokio::test]
async fn what_a_stop_leaves_of_a_command_is_done_by_the_next_start() {
    let (store, a) = (Arc::default(), job("a"));
    let catalog = filled(&store).await;

    let mut end = Box::pin(catalog.execute(Command::EndJob(a.clone(), JobEnd::Finished, Leavings::Delete)));
    assert!((&mut end).now_or_never().is_none());
    catalog.close().await.unwrap();
    assert!(matches!(end.await, Err(CatalogError::Closed)));
    assert!(catalog.recount().segments > 0, "only a part is done");

    let catalog = open(&store).await;
    assert_eq!(catalog.recount().faults, Vec::<String>::new());
    // The job goes on once nothing of it is left.
    catalog.execute(Command::CreateJob(a.clone())).await.unwrap();
    let recount = catalog.recount();
    assert_eq!((recount.segments, recount.faults), (0, vec![]));
    assert!(catalog.job(&a).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recount_finds_no_fault_in_what_changes_meanwhile() {
    let (store, a) = (Arc::default(), job("a"));
    let catalog = filled(&store).await;
    let counting = catalog.clone();
    let (done, mut counted) = tokio::sync::oneshot::channel();
    let counts = std::thread::scope(|scope| {
        let counts = scope.spawn(|| {
            let counts: Vec<_> = (0..20).map(|_| counting.recount().faults).collect();
            done.send(()).unwrap();
            counts
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let mut next = MANY;
                while counted.try_recv().is_err() {
                    let b: JobId = format!("job-{next}").parse().unwrap();
                    catalog.execute(Command::CreateJob(b.clone())).await.unwrap();
                    catalog.store(items(&b, next..next + 100)).await.unwrap();
                    catalog.execute(Command::CompleteCheckpoint(b.clone(), CheckpointId(1))).await.unwrap();
                    catalog.execute(Command::EndJob(b, JobEnd::Finished, Leavings::Delete)).await.unwrap();
                    next += 100;
                }
            });
        });
        counts.join().unwrap()
    });

    assert_eq!(counts, vec![Vec::<String>::new(); 20]);
    assert_eq!(catalog.segments_to_restore(&a, CheckpointId(1)).unwrap().len() as u64, MANY);
}
