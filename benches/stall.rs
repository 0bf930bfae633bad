//! How long others wait while somebody asks the catalog something large, or tells it to.
//!
//! ```text
//! cargo bench --bench stall -- [segments, default 1000000]
//! ```
//!
//! An engine on a local disk has so many segments of one job, and a tenth as many S3 objects. Beside each question another
//! client puts a segment of 1 KiB every 5 ms, whether or not the one before was answered; what it waits is counted from when
//! it was due. `lock` is how long a thread waits that wants to change the state once a millisecond. The segments are in the
//! catalog alone: no file is written for them. At the end, how fast old inline segments go into files, and come in.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::catalog::Catalog;
use esker::catalog::command::{
    Bind, Command, Condition, NewSegment, ObjectContent, Outcome, PutObject, Store, StoreFile, StoreItem,
};
use esker::config::Config;
use esker::config::Retention;
use esker::engine::intake::Whole;
use esker::engine::jobs::{CheckpointStep, GoOn};
use esker::engine::space::SpaceBy;
use esker::engine::{Background, Engine, EngineOptions, ListQuery, Running};
use esker::model::{
    About, CheckpointId, Claim, JobEnd, JobId, Label, Lane, LaneOf, Location, Millis, ObjectHead, ObjectHeaders,
    PhysicalFileId, Segment, SegmentCrc, SegmentId, StateScope, SubtaskKey, Writer,
};
use futures::StreamExt;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BUCKET: &str = "stall";
const SEGMENTS_PER_FILE: u64 = 1024;
const OBJECTS_PER_COMMAND: u64 = 64;
const COMMANDS_AT_ONCE: usize = 16;
const PUT_EVERY: Duration = Duration::from_millis(5);
const PUT_BYTES: usize = 1024;
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A question is asked again until it was asked for so long.
const ASKED_FOR: Duration = Duration::from_secs(3);
/// Puts that are still waiting when a question has ended are counted, and those of a moment after it.
const AFTER: Duration = Duration::from_millis(100);
const INLINE_SEGMENTS: u64 = 50_000;
const ROUNDS_MAX: u32 = 100;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Cargo's tests run benches, too.
    if !args.iter().any(|argument| argument == "--bench") {
        return;
    }
    let segments = args.iter().find(|argument| !argument.starts_with("--"));
    let segments = segments.map_or(1_000_000, |segments| segments.parse().expect("a number of segments"));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let running = open(&folder.path().join("stall"), &[]).await;
    stalls(&running, segments).await;
    running.stop().await.unwrap();
    for bytes in [100, 4096] {
        drain(&folder.path().join(format!("drain-{bytes}")), bytes).await;
    }
}

async fn open(folder: &Path, more: &[(&str, &str)]) -> Running {
    let mut flags = vec![("store.url".to_owned(), format!("file:{}", folder.display()))];
    flags.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let settings = Config::load(None, &flags).unwrap().settings().unwrap();
    Engine::open(settings, EngineOptions { background: Background::OnCall, ..EngineOptions::default() }).await.unwrap()
}

async fn stalls(running: &Running, segments: u64) {
    let (engine, catalog) = (running.engine(), running.catalog());
    let [first, second, other] = ["first", "second", "other"].map(job);
    engine.create_job(&job("puts")).await.unwrap();
    let begun = Instant::now();
    fill(catalog, &first, 0, segments).await;
    put_objects(catalog, segments / 10).await;
    println!("{segments} segments, {} objects, filled in {:.1} s", segments / 10, begun.elapsed().as_secs_f64());
    println!(
        "{:<28} {:>6} {:>9} {:>6} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "question", "asked", "seconds", "puts", "p50 ms", "p99 ms", "max ms", "lock p99", "lock max"
    );
    let bench = Bench { engine: engine.clone(), catalog: catalog.clone() };
    bench.ask("nothing", async || tokio::time::sleep(ASKED_FOR).await).await;
    bench.ask("verify", async || assert!(engine.recount().await.unwrap().faults.is_empty())).await;
    bench.ask("space by lane", async || drop(engine.space(Some(SpaceBy::Lane), None).await.unwrap())).await;
    bench.ask("space by checkpoint", async || drop(engine.space(Some(SpaceBy::Checkpoint), None).await.unwrap())).await;
    bench.ask("jobs", async || drop(engine.jobs().await.unwrap())).await;
    bench.ask("checkpoints of a job", async || drop(engine.checkpoints(&first).unwrap())).await;
    bench.ask("files", async || drop(engine.files())).await;
    let page = async |checkpoint| engine.segments_of(&first, checkpoint, None, 10_000).await.unwrap().len();
    bench.ask("segments of a job", async || assert!(page(None).await > 0)).await;
    bench.ask("an empty filtered page", async || assert_eq!(page(Some(CheckpointId(9))).await, 0)).await;
    let of_a_prefix = ListQuery { prefix: "flink/1", delimiter: "", after: "", max: 1000 };
    bench.ask("S3 list of a prefix", async || drop(engine.list(BUCKET, &of_a_prefix).await.unwrap())).await;
    let folders = ListQuery { prefix: "flink/", delimiter: "/", after: "", max: 1000 };
    bench.ask("S3 list of folders", async || drop(engine.list(BUCKET, &folders).await.unwrap())).await;
    bench.ask("what metrics tell", async || engine.refresh_metrics()).await;

    let restore = |claim, to: &JobId| GoOn { job: to.clone(), from: first.clone(), checkpoint: None, claim };
    bench.tell("restore", async || drop(engine.go_on(restore(Claim::NoClaim, &second), None).await.unwrap())).await;
    bench.tell("claim", async || drop(engine.go_on(restore(Claim::Claim, &second), None).await.unwrap())).await;
    bench
        .tell("job end", async || {
            engine.end_job(&second, JobEnd::Finished, Some(Retention::DeleteOnCancellation)).await.unwrap();
        })
        .await;
    fill(catalog, &other, segments, segments).await;
    bench
        .tell("subsume", async || {
            engine.step(&other, CheckpointId(1), CheckpointStep::Subsume).await.unwrap();
        })
        .await;
    assert!(engine.recount().await.unwrap().faults.is_empty());
}

struct Bench {
    engine: Engine,
    catalog: Catalog,
}

impl Bench {
    /// Asks until it was asked for some seconds.
    async fn ask(&self, name: &str, question: impl AsyncFn()) {
        self.measure(name, ASKED_FOR, question).await;
    }

    /// Tells once.
    async fn tell(&self, name: &str, command: impl AsyncFn()) {
        self.measure(name, Duration::ZERO, command).await;
    }

    async fn measure(&self, name: &str, at_least: Duration, question: impl AsyncFn()) {
        let ended = Arc::new(AtomicBool::new(false));
        let puts = tokio::spawn(puts(self.engine.clone(), Arc::clone(&ended)));
        let (catalog, until) = (self.catalog.clone(), Arc::clone(&ended));
        let looks = std::thread::spawn(move || lock_waits(&catalog, &until));
        let begun = Instant::now();
        let mut asked = 0;
        while asked == 0 || begun.elapsed() < at_least {
            question().await;
            asked += 1;
        }
        let seconds = begun.elapsed().as_secs_f64() / f64::from(asked);
        tokio::time::sleep(AFTER).await;
        ended.store(true, Ordering::Relaxed);
        let (puts, locks) = (puts.await.unwrap(), looks.join().unwrap());
        let ms = |all: &[Duration], part: f64| all[((all.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        println!(
            "{name:<28} {asked:>6} {seconds:>9.4} {:>6} {:>8.1} {:>8.1} {:>8.1} {:>9.2} {:>9.2}",
            puts.len(),
            ms(&puts, 0.5),
            ms(&puts, 0.99),
            ms(&puts, 1.0),
            ms(&locks, 0.99),
            ms(&locks, 1.0),
        );
    }
}

/// Another client. Returns how long each put took from when it was due, in order.
async fn puts(engine: Engine, ended: Arc<AtomicBool>) -> Vec<Duration> {
    let data = Bytes::from(vec![0x5a; PUT_BYTES]);
    let crc = SegmentCrc::of(&data);
    let mut due = Instant::now();
    let mut on_their_way = JoinSet::new();
    while !ended.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        let (engine, whole) = (engine.clone(), Whole { data: data.clone(), crc: crc.clone(), paid: None });
        on_their_way.spawn(async move {
            engine.store(about(&job("puts"), StateScope::Exclusive, 1), None, None, whole).await.unwrap();
            due.elapsed()
        });
        due += PUT_EVERY;
    }
    let mut waited = on_their_way.join_all().await;
    waited.sort_unstable();
    waited
}

/// Changes nothing, but takes the lock as if. Returns how long each took, in order.
fn lock_waits(catalog: &Catalog, ended: &AtomicBool) -> Vec<Duration> {
    let mut waited = vec![];
    while !ended.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        let begun = Instant::now();
        catalog.note(Command::FilesDeleted(vec![])).unwrap();
        waited.push(begun.elapsed());
    }
    waited.sort_unstable();
    waited
}

/// A completed checkpoint of so many segments, in files that are not there.
async fn fill(catalog: &Catalog, job: &JobId, first: u64, segments: u64) {
    catalog.execute(Command::CreateJob(job.clone())).await.unwrap();
    let commands = (first..first + segments).step_by(SEGMENTS_PER_FILE as usize).map(|number| {
        let command = file(job, number..(first + segments).min(number + SEGMENTS_PER_FILE));
        async move {
            let Outcome::Stored(token, _) = catalog.execute(command).await.unwrap() else { panic!("a store") };
            catalog.confirm(token);
        }
    });
    futures::stream::iter(commands).buffer_unordered(COMMANDS_AT_ONCE).collect::<Vec<()>>().await;
    catalog.execute(Command::CompleteCheckpoint(job.clone(), CheckpointId(1))).await.unwrap();
}

fn file(job: &JobId, numbers: std::ops::Range<u64>) -> Command {
    let file = PhysicalFileId::new(Some(job), 1, id(numbers.start).0);
    let lane = Lane { job: Some(job.clone()), scope: StateScope::Exclusive, of: LaneOf::All };
    let len = (numbers.end - numbers.start + 1) * 4096;
    let items = numbers.clone().map(|number| {
        let place = Segment { file: file.clone(), offset: (number - numbers.start) * 4096 + 64, len: 4032 };
        item(job, number, Location::File(place), None)
    });
    let items = items.collect();
    Command::Store(Store { file: Some(StoreFile { id: file, lane, len, closes: true, upload: None }), items })
}

fn item(job: &JobId, number: u64, location: Location, inline: Option<Bytes>) -> StoreItem {
    let crc = inline
        .as_ref()
        .map_or(SegmentCrc { whole: number as u32, ..SegmentCrc::default() }, |data| SegmentCrc::of(data));
    let scope = if inline.is_some() { StateScope::Shared } else { StateScope::Exclusive };
    let new = NewSegment { id: id(number), about: about(job, scope, number), location, inline, crc };
    StoreItem { segments: vec![new], bind: Bind::Checkpoint { idempotency_key: None, run: None } }
}

async fn put_objects(catalog: &Catalog, objects: u64) {
    catalog.execute(Command::CreateBucket(BUCKET.to_owned())).await.unwrap();
    let commands = (0..objects).step_by(OBJECTS_PER_COMMAND as usize).map(|first| async move {
        let items = (first..objects.min(first + OBJECTS_PER_COMMAND)).map(object).collect();
        catalog.store(Store { file: None, items }).await.unwrap();
    });
    futures::stream::iter(commands).buffer_unordered(COMMANDS_AT_ONCE).collect::<Vec<()>>().await;
}

fn object(number: u64) -> StoreItem {
    let data = Bytes::from(vec![0x5a; 100]);
    // Apart from those of segments.
    let id = SegmentId(id(number).0 | 1);
    let segment = NewSegment {
        id,
        about: About { checkpoint: None, ..about(&job("objects"), StateScope::Shared, number) },
        location: Location::Inline { len: data.len() as u64 },
        crc: SegmentCrc::of(&data),
        inline: Some(data),
    };
    let head = ObjectHead {
        len: 100,
        etag: format!("{number:032x}"),
        modified: Millis(number),
        headers: ObjectHeaders::default(),
        checksum: None,
        part_lens: vec![],
    };
    let content = ObjectContent::Segments { segments: vec![id], head, upload: None };
    let (bucket, key) = (BUCKET.to_owned(), format!("flink/{}/chk-1/{number}", number % 5000));
    let put = PutObject { bucket, key, condition: Condition::None, content };
    StoreItem { segments: vec![segment], bind: Bind::Object(Box::new(put)) }
}

/// How fast segments of so many bytes come in, and go from the catalog into files.
async fn drain(folder: &Path, bytes: usize) {
    let job = job("drain");
    let running = open(folder, &[("catalog.inline-max", "1 mb")]).await;
    let (engine, catalog) = (running.engine(), running.catalog());
    engine.create_job(&job).await.unwrap();
    let begun = Instant::now();
    let data = Bytes::from(vec![0x5a; bytes]);
    let stores = (0..INLINE_SEGMENTS).map(|number| {
        let location = Location::Inline { len: bytes as u64 };
        let items = vec![item(&job, number, location, Some(data.clone()))];
        async move { catalog.store(Store { file: None, items }).await.unwrap() }
    });
    futures::stream::iter(stores).buffer_unordered(64).for_each(|_| std::future::ready(())).await;
    let came = INLINE_SEGMENTS as f64 / begun.elapsed().as_secs_f64();
    let (begun, before) = (Instant::now(), engine.space_usage().inline_bytes);
    let mut left = before;
    // A round ends early while the store is slower than usual.
    for _ in 0..ROUNDS_MAX {
        let round = engine.reclaim_now().await.unwrap();
        left = engine.space_usage().inline_bytes;
        if left == 0 {
            break;
        }
        if round.written_bytes == 0 {
            tokio::time::sleep(AFTER).await;
        }
    }
    let went = (before - left) as f64 / bytes as f64 / begun.elapsed().as_secs_f64();
    println!(
        "inline segments of {bytes} B: {came:.0}/s come in, 64 at a time, {went:.0}/s go into files, {left} B are left"
    );
    running.stop().await.unwrap();
}

fn job(name: &str) -> JobId {
    name.parse().unwrap()
}

/// Identities as they are made: in the order of their time.
fn id(number: u64) -> SegmentId {
    SegmentId(((1_700_000_000_000 + u128::from(number / 16)) << 80) | (u128::from(number) << 8))
}

fn about(job: &JobId, scope: StateScope, number: u64) -> About {
    let operator = Label::parse("operator", &format!("operator-{}", number % 5)).unwrap();
    let subtask = Some(SubtaskKey { operator, index: (number % 64) as u32, parallelism: 64 });
    let name = Label::parse("name", &format!("{number:032x}")).ok();
    let writer = Writer { subtask, task_manager: None };
    About { job: job.clone(), scope, writer, checkpoint: Some(CheckpointId(1)), name }
}
