//! Owners that end before their work does: nobody waits for ever, nothing that was answered is lost, and the lane serves
//! on with a new file.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::catalog::command::Bind;
use crate::catalog::slate::{Journal, JournalSettings, Placement};
use crate::catalog::state::State;
use crate::config::Config;
use crate::error::ErrorKind;
use crate::merge::lane::LaneKey;
use crate::merge::{Merger, Parcel};
use crate::metrics::Metrics;
use crate::model::{CheckpointId, IdempotencyKey, StateScope, Writer};
use crate::runtime::{ByteBudget, Entropy, TaskGroup};
use crate::store::{DataStore, Traffic};

const JOB: &str = "wordcount";

/// An object store below which a bug panics in the next put.
#[derive(Debug, Default)]
struct Panicking {
    inner: InMemory,
    next: AtomicBool,
}

impl fmt::Display for Panicking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Panicking {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if self.next.swap(false, Ordering::Relaxed) {
            tokio::task::yield_now().await;
            panic!("a bug below the owner");
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The write path on `store`, where every segment goes into a file of the one lane.
async fn parts(store: DataStore) -> MergerParts {
    let flags = [
        ("execution.checkpointing.data-inline-threshold", "0"),
        ("merging.inline-group-max", "0"),
        ("execution.checkpointing.file-merging.pool-blocking", "true"),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
    let placement = Placement::Object { store: Arc::new(InMemory::new()), prefix: Path::from("catalog") };
    let visit = |_, _| Ok::<(), std::convert::Infallible>(());
    let journal = Journal::open(placement, JournalSettings::default(), visit).await.unwrap();
    let (metrics, clock) = (Metrics::new(), Clock::System);
    let tasks = || TaskGroup::new(CancellationToken::new());
    let catalog = Catalog::start(State::default(), journal, clock.clone(), &metrics, &tasks());
    catalog.execute(Command::CreateJob(JOB.parse().unwrap())).await.unwrap();
    let budget = ByteBudget::new(settings.limits.memory_bytes, metrics.in_flight_bytes.clone());
    MergerParts::new(Arc::new(settings), store, catalog, budget, Entropy::from_os(clock), metrics, tasks())
}

fn parcel(merger: &Merger, number: u8) -> Parcel {
    let about = About {
        job: JOB.parse().unwrap(),
        scope: StateScope::Shared,
        writer: Writer::default(),
        checkpoint: Some(CheckpointId(1)),
        name: None,
    };
    let data = Bytes::from(vec![number; 1000]);
    let piece = Piece { id: merger.new_id(), about, crc: SegmentCrc::of(&data), data };
    let key: IdempotencyKey = format!("segment-{number}").parse().unwrap();
    Parcel { pieces: vec![piece], bind: Bind::Checkpoint { idempotency_key: Some(key) }, paid: None }
}

/// Stores a segment; what may be repeated is repeated.
async fn store(merger: &Merger, number: u8) -> Stored {
    loop {
        match merger.store(parcel(merger, number)).await {
            Ok(stored) => return stored,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// So many segments live, and every file's owner has ended.
async fn assert_settled(parts: &MergerParts, segments: usize) {
    parts.pools.close_all();
    parts.tasks.wait().await;
    assert_eq!(parts.pools.open_files(), 0);
    parts.catalog.sync().await.unwrap();
    let state = parts.catalog.view();
    assert_eq!(state.check(), Vec::<String>::new());
    assert_eq!(state.file_counts()[0], 0, "no file is open");
    assert_eq!((state.all_segments().count(), state.space().live_bytes), (segments, 1000 * segments as u64));
    let visible = state.all_segments().filter(|(id, _)| state.segment(*id).is_some());
    assert_eq!(visible.count(), segments);
}

#[tokio::test]
async fn an_owner_that_panics_refuses_what_it_holds_and_its_lane_serves_on_with_a_new_file() {
    let panicking = Arc::new(Panicking::default());
    let files = ObjectFiles::with_retries(panicking.clone(), Path::default(), Duration::ZERO);
    let parts = parts(DataStore::Object(files)).await;
    let merger = Merger::new(parts.clone());
    store(&merger, 1).await;

    panicking.next.store(true, Ordering::Relaxed);
    let refused = tokio::join!(merger.store(parcel(&merger, 2)), merger.store(parcel(&merger, 3)));

    for refused in [refused.0, refused.1] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    for number in 1..=4 {
        store(&merger, number).await;
    }
    assert_settled(&parts, 4).await;
}

/// Whatever drops an owner of a growing file: what was answered stays, what collects is refused.
#[tokio::test]
async fn a_growing_file_whose_owner_is_gone_is_closed_and_its_lane_serves_on_with_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let local = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
    let parts = parts(DataStore::Local(local.clone())).await;
    let merger = Merger::new(parts.clone());
    let (reply, answer) = oneshot::channel();
    let first = parcel(&merger, 1);
    let lane = LaneKey::of(&first.pieces[0].about, &parts.settings.merging);
    let open = parts.pools.put(&lane, Pending { parcel: first, reply }).await.unwrap().unwrap();
    let owner = tokio::spawn(own_growing_file(Owned::new(parts.clone(), open), local));
    answer.await.unwrap().unwrap();
    assert_eq!(parts.pools.open_files(), 1);

    let (reply, answer) = oneshot::channel();
    let into = parts.pools.put(&lane, Pending { parcel: parcel(&merger, 2), reply }).await.unwrap();
    assert!(into.is_none(), "it collects in the open file");
    owner.abort();
    assert!(owner.await.unwrap_err().is_cancelled());

    assert_eq!(answer.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(parts.pools.open_files(), 0);
    for number in 1..=3 {
        store(&merger, number).await;
    }
    assert_eq!(parts.pools.open_files(), 1);
    assert_settled(&parts, 3).await;
}
