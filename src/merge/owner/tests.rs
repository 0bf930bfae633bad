//! Owners that end before their work does: nobody waits for ever, nothing that was answered is lost, and the lane serves
//! on with a new file. And what an owner decides when things happen to it, step by step.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot::{Receiver, channel};

use super::*;
use crate::catalog::command::Bind;
use crate::catalog::state::FileView;
use crate::error::ErrorKind;
use crate::format;
use crate::merge::lane::LaneKey;
use crate::merge::pool::PendingParcel;
use crate::merge::{MergeResult, Merger, Parcel, WholeSegment};
use crate::metrics::Metrics;
use crate::model::{About, CheckpointId, FileState, IdempotencyKey, SegmentCrc, StateScope, Writer};
use crate::store::memory::{Fault, MemoryFiles};
use crate::store::{DataStore, LocalStore, ObjectFiles, Traffic};

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

fn parcel(merger: &Merger, number: u8) -> Parcel {
    let about = About {
        job: JOB.parse().unwrap(),
        scope: StateScope::Shared,
        writer: Writer::default(),
        checkpoint: Some(CheckpointId(1)),
        name: None,
    };
    let data = Bytes::from(vec![number; 1000]);
    let piece = WholeSegment { id: merger.new_id(), about, crc: SegmentCrc::of(&data), data };
    let key: IdempotencyKey = format!("segment-{number}").parse().unwrap();
    Parcel { pieces: vec![piece], bind: Bind::Checkpoint { idempotency_key: Some(key), run: None }, paid: None }
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
async fn assert_settled(context: &WriteContext, segments: usize) {
    context.pools.close_all();
    context.tasks.wait().await;
    assert_eq!(context.pools.open_files(), 0);
    context.catalog.sync().await.unwrap();
    let (counted, figures) = (context.catalog.recount(), context.catalog.figures());
    assert_eq!(counted.faults, Vec::<String>::new());
    assert_eq!(figures.file_counts[0], 0, "no file is open");
    assert_eq!((counted.segments, figures.space.live_bytes), (segments, 1000 * segments as u64));
    let jobs = context.catalog.jobs().into_iter();
    let visible = jobs.flat_map(|job| context.catalog.segments_of(&job.id, None, None, usize::MAX).unwrap());
    assert_eq!(visible.count(), segments);
}

#[tokio::test]
async fn an_owner_that_panics_refuses_what_it_holds_and_its_lane_serves_on_with_a_new_file() {
    let panicking = Arc::new(Panicking::default());
    let files = ObjectFiles::with_retries(Arc::<Panicking>::clone(&panicking), Path::default(), Duration::ZERO);
    let context = WriteContext::for_tests(DataStore::Object(files)).await;
    let merger = Merger::new(context.clone());
    store(&merger, 1).await;

    panicking.next.store(true, Ordering::Relaxed);
    let refused = tokio::join!(merger.store(parcel(&merger, 2)), merger.store(parcel(&merger, 3)));

    for refused in [refused.0, refused.1] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    for number in 1..=4 {
        store(&merger, number).await;
    }
    assert_settled(&context, 4).await;
}

/// Whatever drops an owner of a growing file: what was answered stays, what collects is refused.
#[tokio::test]
async fn a_growing_file_whose_owner_is_gone_is_closed_and_its_lane_serves_on_with_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let local = LocalStore::new(folder.path().to_owned(), Traffic::data(Metrics::new()));
    let context = WriteContext::for_tests(DataStore::Local(local.clone())).await;
    let merger = Merger::new(context.clone());
    let (reply, answer) = channel();
    let first = parcel(&merger, 1);
    let lane = LaneKey::of(&first.pieces[0].about, &context.settings.merging);
    let open = context.pools.put(&lane, PendingParcel { parcel: first, reply }).await.unwrap().unwrap();
    let owner = tokio::spawn(Owner::new(context.clone(), open, FileWrites::Growing(Arc::new(local))).run());
    answer.await.unwrap().unwrap();
    assert_eq!(context.pools.open_files(), 1);

    let (reply, answer) = channel();
    let into = context.pools.put(&lane, PendingParcel { parcel: parcel(&merger, 2), reply }).await.unwrap();
    assert!(into.is_none(), "it collects in the open file");
    owner.abort();
    assert!(owner.await.unwrap_err().is_cancelled());

    assert_eq!(answer.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(context.pools.open_files(), 0);
    for number in 1..=3 {
        store(&merger, number).await;
    }
    assert_eq!(context.pools.open_files(), 1);
    assert_settled(&context, 3).await;
}

/// An owner whose group holds one parcel, and what waits for that.
struct Alone {
    context: WriteContext,
    merger: Merger,
    lane: LaneKey,
    owner: Owner,
    answer: Receiver<MergeResult>,
}

impl Alone {
    async fn new(writes: FileWrites) -> Self {
        let objects = ObjectFiles::with_retries(Arc::new(InMemory::new()), Path::default(), Duration::ZERO);
        let context = WriteContext::for_tests(DataStore::Object(objects)).await;
        let merger = Merger::new(context.clone());
        let (reply, answer) = channel();
        let first = parcel(&merger, 1);
        let lane = LaneKey::of(&first.pieces[0].about, &context.settings.merging);
        let open = context.pools.put(&lane, PendingParcel { parcel: first, reply }).await.unwrap().unwrap();
        let owner = Owner::new(context.clone(), open, writes);
        Self { context, merger, lane, owner, answer }
    }

    /// One that has written its first group, into a file that grows.
    async fn growing() -> (Self, MemoryFiles) {
        let files = MemoryFiles::default();
        let mut alone = Self::new(FileWrites::Growing(Arc::new(files.clone()))).await;
        alone.steps(3).await;
        assert!(matches!(alone.owner.phase, Phase::Collecting));
        alone.answer.try_recv().unwrap().unwrap();
        (alone, files)
    }

    /// Waits and applies, so many times.
    async fn steps(&mut self, count: usize) {
        for _ in 0..count {
            let event = self.owner.next_event().await.expect("the owner has not ended");
            self.owner.apply(event);
        }
    }

    /// Puts another parcel into the group.
    async fn put(&mut self, number: u8) {
        let (reply, answer) = channel();
        let pending = PendingParcel { parcel: parcel(&self.merger, number), reply };
        assert!(self.context.pools.put(&self.lane, pending).await.unwrap().is_none());
        self.answer = answer;
    }

    /// The owner's knowledge when its group was written and committed, before it decides anything.
    async fn settling(&mut self) -> Box<Settling> {
        loop {
            match self.owner.next_event().await.unwrap() {
                OwnerEvent::Written(settling) => return settling,
                event => self.owner.apply(event),
            }
        }
    }

    fn refusal(&mut self) -> MergeError {
        self.answer.try_recv().unwrap().unwrap_err()
    }

    fn has_ended(&self) -> bool {
        matches!(self.owner.phase, Phase::Ended)
    }

    /// The only file, as the catalog sees it.
    fn file(&self) -> FileView {
        let files = self.context.catalog.files();
        let [file] = &files[..] else { panic!("{files:?}") };
        file.clone()
    }
}

fn broken() -> StoreError {
    StoreError::Failed { operation: "append", path: "a file".to_owned(), source: "made up".into() }
}

#[tokio::test]
async fn a_group_for_which_there_is_no_room_is_cut_off_and_the_file_ends_with_what_it_had() {
    let (mut alone, files) = Alone::growing().await;
    let written = alone.owner.file.as_ref().unwrap().len();

    files.plan(Some(Fault::Full));
    alone.put(2).await;
    alone.steps(2).await;
    assert!(alone.answer.try_recv().is_err(), "nobody is told before the file has its end");
    alone.steps(1).await;

    assert!(matches!(alone.refusal(), MergeError::Full(_)));
    assert!(alone.has_ended());
    let file = alone.file();
    let bytes = files.durable(&file.id);
    let (trailer, entries) = format::read_end(&bytes[..], bytes.len() as u64).unwrap();
    assert_eq!((trailer.footer_offset, entries.len()), (written, 1));
    assert!(matches!(file.state, FileState::Closed { len } if len == bytes.len() as u64), "{:?}", file.state);
    let context = alone.context.clone();
    drop(alone);
    assert_settled(&context, 1).await;
}

#[tokio::test]
async fn a_file_that_failed_for_good_is_closed_with_what_was_durable() {
    let (mut alone, files) = Alone::growing().await;
    let written = alone.owner.file.as_ref().unwrap().len();

    files.plan(Some(Fault::Torn));
    alone.put(2).await;
    alone.steps(2).await;

    assert_eq!(alone.refusal().kind(), ErrorKind::Unavailable);
    assert!(alone.has_ended());
    let (context, lane) = (alone.context.clone(), alone.lane.clone());
    drop(alone);
    let state = context.catalog.files()[0].state;
    assert!(matches!(state, FileState::Closed { len } if len == written), "{state:?}");
    let (reply, _answer) = channel();
    let next = PendingParcel { parcel: parcel(&Merger::new(context.clone()), 3), reply };
    assert!(context.pools.put(&lane, next).await.unwrap().is_some(), "the next one gets another file");
}

#[tokio::test]
async fn a_file_that_cannot_be_created_refuses_its_group() {
    let mut alone = Alone::new(FileWrites::Growing(Arc::new(MemoryFiles::default()))).await;
    let group = alone.context.pools.take_group(&alone.owner.open);

    alone.owner.apply(OwnerEvent::Created(Err(broken()), group));

    assert_eq!(alone.refusal().kind(), ErrorKind::Unavailable);
    assert!(alone.has_ended());
    assert_eq!(alone.context.catalog.files().len(), 0);
}

#[tokio::test]
async fn a_group_that_was_written_and_not_committed_is_refused_and_its_bytes_stay() {
    let mut alone = Alone::new(FileWrites::Growing(Arc::new(MemoryFiles::default()))).await;
    let mut settling = alone.settling().await;
    let len = settling.file.len();
    settling.committed = Err(CatalogError::Closed);

    alone.owner.apply(OwnerEvent::Written(settling));

    assert!(matches!(alone.refusal(), MergeError::Catalog(CatalogError::Closed)));
    assert!(alone.has_ended());
    assert_eq!(alone.owner.begun.as_ref().unwrap().len, len);
}

#[tokio::test]
async fn a_file_to_which_nothing_comes_gets_its_end() {
    let (mut alone, files) = Alone::growing().await;

    alone.owner.apply(OwnerEvent::Idle);
    assert!(alone.owner.open.is_closed());
    alone.steps(2).await;

    assert!(alone.has_ended() && alone.owner.next_event().await.is_none());
    let file = alone.file();
    let bytes = files.durable(&file.id);
    assert_eq!(format::read_end(&bytes[..], bytes.len() as u64).unwrap().1.len(), 1);
    assert!(matches!(file.state, FileState::Closed { len } if len == bytes.len() as u64), "{:?}", file.state);
}

/// A store that keeps what is in open files has no memory for it: it may wait for what this very file gives back.
#[tokio::test(start_paused = true)]
async fn an_idle_file_ends_soon_when_the_store_wants_its_room() {
    let (mut alone, files) = Alone::growing().await;

    let early = tokio::time::timeout(3 * LOOK_EVERY, alone.owner.next_event()).await;
    assert!(early.is_err(), "nobody wants its room");
    files.get_short();
    let begun = tokio::time::Instant::now();
    let event = alone.owner.next_event().await.unwrap();

    assert!(matches!(event, OwnerEvent::Idle));
    assert!(begun.elapsed() <= LOOK_EVERY, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_end_of_a_file_and_nothing_else_of_it_is_appended_as_what_nobody_reads_yet() {
    let (mut alone, files) = Alone::growing().await;
    let written = alone.owner.file.as_ref().unwrap().len() as usize;

    alone.owner.apply(OwnerEvent::Idle);
    alone.steps(2).await;

    let id = alone.file().id;
    assert_eq!(files.end(&id), files.durable(&id)[written..]);
    assert!(!files.end(&id).is_empty());
}

#[tokio::test]
async fn a_bell_without_a_group_changes_nothing() {
    let (mut alone, _files) = Alone::growing().await;

    alone.owner.apply(OwnerEvent::Collected);

    assert!(matches!(alone.owner.phase, Phase::Collecting));
    assert!(alone.owner.file.is_some());
}

/// What is over is a bell, too: without it these would wait for as long as a group may.
#[tokio::test]
async fn a_few_that_missed_a_commit_stay_open_until_it_is_over() {
    let hour = Duration::from_secs(3600);
    let alone = Alone::new(FileWrites::Growing(Arc::new(MemoryFiles::default()))).await;
    let (open, pace) = (&alone.owner.open, &alone.context.pace);
    let mut merging = alone.context.settings.merging.clone();
    merging.linger.max = hour;

    let committing = Arc::clone(pace).begin(open.key.clone(), 64, GroupIn::Commit, hour);
    let mut over = std::pin::pin!(group_is_over(open, pace, &merging));
    let early = tokio::time::timeout(merging.linger.min * 5, &mut over).await;
    assert!(early.is_err(), "they would be a commit of their own behind this one");
    committing.answers(64);
    drop(committing);
    tokio::time::timeout(Duration::from_secs(60), over).await.expect("nobody has come back");

    let _file = Arc::clone(pace).begin(open.key.clone(), 64, GroupIn::File, hour);
    let over = group_is_over(open, pace, &merging);
    tokio::time::timeout(Duration::from_secs(60), over).await.expect("the next file waits for none");
}

/// One whose group is put whole, up to the end of put and commit.
async fn put_whole(took: Duration) -> Alone {
    let objects = ObjectFiles::with_retries(Arc::new(InMemory::new()), Path::default(), Duration::ZERO);
    let mut alone = Alone::new(FileWrites::Whole(objects)).await;
    let mut settling = alone.settling().await;
    settling.took = took;
    alone.owner.apply(OwnerEvent::Written(settling));
    alone
}

#[tokio::test]
async fn a_group_that_was_put_in_time_is_answered_at_once() {
    let mut alone = put_whole(Duration::from_secs(1)).await;

    alone.answer.try_recv().unwrap().unwrap();
    assert!(alone.has_ended());
    assert!(!alone.context.pace.latency().is_zero());
}

#[tokio::test]
async fn a_group_that_went_into_the_catalog_tells_how_fast_the_store_is() {
    let objects = ObjectFiles::with_retries(Arc::new(InMemory::new()), Path::default(), Duration::ZERO);
    let mut alone = Alone::new(FileWrites::Whole(objects)).await;
    let nobody = || Waiters::of(Group { parcels: vec![], last: false });

    alone.owner.apply(OwnerEvent::Inlined(nobody(), Err(CatalogError::Closed), Duration::from_secs(9)));
    assert!(alone.context.pace.latency().is_zero(), "a commit that failed tells nothing");
    alone.owner.apply(OwnerEvent::Inlined(nobody(), Ok(vec![]), Duration::from_millis(40)));

    assert_eq!(alone.context.pace.latency(), Duration::from_millis(40));
    assert!(alone.has_ended());
}

#[tokio::test]
async fn a_put_that_took_long_is_answered_only_if_the_catalog_is_still_ours() {
    let long = Duration::from_secs(86_400);
    let mut ours = put_whole(long).await;
    let mut lost = put_whole(long).await;
    assert!(ours.answer.try_recv().is_err(), "it is asked first");

    ours.steps(1).await;
    let Some(OwnerEvent::Checked(settling, Ok(()))) = lost.owner.next_event().await else { panic!("not asked") };
    lost.owner.apply(OwnerEvent::Checked(settling, Err(CatalogError::Closed)));

    ours.answer.try_recv().unwrap().unwrap();
    assert!(matches!(lost.refusal(), MergeError::Catalog(_)));
    assert!(ours.has_ended() && lost.has_ended());
    assert_eq!(lost.context.catalog.recount().segments, 0, "it is taken back");
}
