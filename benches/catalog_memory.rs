//! The catalog at rest: what an item takes in memory and on disk, and how long a start takes to read them all.
//!
//! ```text
//! cargo bench --bench catalog_memory -- [items, default 100000] [shape ...]
//! ```
//!
//! Each shape is written through the catalog's own commands into a folder of its own, by a process that is killed or closes
//! the catalog, and opened again by another one, whose memory is what is told. Segments have no bytes in files: only the
//! catalog is there. `B/item` is resident memory, `told` what the catalog says it takes, `open` the whole start, of which
//! `read` is until everything was read, `load` the time in which that was taken in, and `cpu` what all cores did.

// A bench has no callers to inform, and may spawn and read a clock.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::catalog::Catalog;
use esker::catalog::command::{
    Bind, Command, Condition, NewSegment, ObjectContent, Outcome, PutObject, Store, StoreFile, StoreItem,
};
use esker::catalog::slate::{Journal, JournalSettings};
use esker::catalog::state::CatalogState;
use esker::metrics::Metrics;
use esker::model::{
    About, CheckpointId, JobId, KeyLayout, Label, Lane, LaneOf, Location, Millis, ObjectChecksum, ObjectHead,
    ObjectHeaders, PhysicalFileId, Segment, SegmentCrc, SegmentId, StateScope, SubtaskKey, Writer,
};
use esker::runtime::{Clock, TaskGroup};
use esker::store::{DiskSpace, Placement, Traffic};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BUCKET: &str = "checkpoints";
/// Bytes of an S3 object.
const OBJECT_BYTES: usize = 100;
/// Bytes of a native segment.
const SEGMENT_BYTES: u64 = 4096;
/// Items of one command, as of requests that come together.
const ITEMS_PER_COMMAND: u64 = 16;
const SEGMENTS_PER_FILE: u64 = 1024;
const COMMANDS_AT_ONCE: usize = 64;
/// Longer than the allocator (10 s) and the database take to give back what a start needed.
const SETTLED_AFTER: Duration = Duration::from_secs(15);

const SHAPES: [&str; 3] = ["s3-one-folder", "s3-folder-each", "native"];
const ENDS: [&str; 2] = ["killed", "closed"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fill", shape, items, end, folder] => fill(shape, items.parse().unwrap(), end, Path::new(folder)),
        ["open", folder] => open(Path::new(folder)),
        [] => measure(100_000, &SHAPES),
        [items, ref shapes @ ..] => {
            measure(items.parse().expect("a number of items"), if shapes.is_empty() { &SHAPES } else { shapes });
        }
    }
}

fn measure(items: u64, shapes: &[&str]) {
    println!(
        "{:<16} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "shape", "end", "items", "B/item", "peak", "told", "disk", "open s", "read s", "load s", "cpu s", "fill s"
    );
    for shape in shapes {
        for end in ENDS {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let begun = Instant::now();
            itself(&["fill", shape, &items.to_string(), end, folder.path().to_str().unwrap()]);
            let filled = begun.elapsed().as_secs_f64();
            let disk = bytes_below(folder.path());
            let told = itself(&["open", folder.path().to_str().unwrap()]);
            let told: Vec<f64> = told.split_whitespace().map(|number| number.parse().unwrap()).collect();
            let [open, resident, peak, estimate, read, loading, cpu] = told[..] else { panic!("seven numbers") };
            let each = |bytes: f64| bytes / items as f64;
            println!(
                "{shape:<16} {end:>8} {items:>9} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {open:>8.2} {read:>8.2} {loading:>8.2} \
                 {cpu:>8.2} {filled:>8.1}",
                each(resident),
                each(peak),
                each(estimate),
                each(disk as f64),
            );
        }
    }
}

/// Runs this program again. What it says counts, not how it ends.
fn itself(args: &[&str]) -> String {
    let program = std::env::current_exe().unwrap();
    let output = Process::new(program).args(args).stderr(Stdio::inherit()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let sizes = entries.map(|entry| {
        let about = entry.metadata().unwrap();
        if about.is_dir() { bytes_below(&entry.path()) } else { about.len() }
    });
    sizes.sum()
}

fn placement(folder: &Path, metrics: &Metrics) -> Placement {
    let traffic = Traffic::catalog(metrics.clone());
    Placement::Local { folder: folder.join("catalog"), traffic, space: DiskSpace::default() }
}

#[tokio::main]
async fn fill(shape: &str, items: u64, end: &str, folder: &Path) {
    let (metrics, tasks) = (Metrics::new(), TaskGroup::new(CancellationToken::new()));
    let visit = |_, _| Ok::<(), std::convert::Infallible>(());
    let journal = Journal::open(placement(folder, &metrics), JournalSettings::local(), visit).await.unwrap();
    let catalog = Catalog::start(CatalogState::default(), journal, Clock::System, &metrics, &tasks);
    catalog.execute(Command::CreateBucket(BUCKET.to_owned())).await.unwrap();
    catalog.execute(Command::CreateJob(native_job())).await.unwrap();
    let step = if shape == "native" { SEGMENTS_PER_FILE } else { ITEMS_PER_COMMAND };
    let commands = (0..items).step_by(step as usize).map(|first| {
        let (catalog, shape) = (catalog.clone(), shape.to_owned());
        async move { store(&catalog, &shape, first..items.min(first + step)).await }
    });
    futures::stream::iter(commands).buffer_unordered(COMMANDS_AT_ONCE).collect::<Vec<()>>().await;
    catalog.sync().await.unwrap();
    match end {
        "closed" => catalog.close().await.unwrap(),
        _ => rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap(),
    }
}

async fn store(catalog: &Catalog, shape: &str, numbers: std::ops::Range<u64>) {
    if shape == "native" {
        let Outcome::Stored(token, _) = catalog.execute(native(numbers)).await.unwrap() else { panic!("a store") };
        catalog.confirm(token);
    } else {
        let items = numbers.map(|number| object(shape, number)).collect();
        catalog.store(Store { file: None, items }).await.unwrap();
    }
}

#[tokio::main]
async fn open(folder: &Path) {
    let (metrics, tasks) = (Metrics::new(), TaskGroup::new(CancellationToken::new()));
    let begun = Instant::now();
    let mut state = CatalogState::default();
    let mut loading = Duration::ZERO;
    let load = |key: Bytes, value: Bytes| {
        let begun = Instant::now();
        let loaded = state.load(&key, &value);
        loading += begun.elapsed();
        loaded
    };
    let journal = Journal::open(placement(folder, &metrics), JournalSettings::local(), load).await.unwrap();
    let read = begun.elapsed().as_secs_f64();
    state.finish_recovery(Clock::System.now());
    let estimate = state.memory_bytes();
    let catalog = Catalog::start(state, journal, Clock::System, &metrics, &tasks);
    let (opened, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds());
    tokio::time::sleep(SETTLED_AFTER).await;
    let loading = loading.as_secs_f64();
    println!("{opened} {} {} {estimate} {read} {loading} {cpu}", status("VmRSS:"), status("VmHWM:"));
    catalog.check().unwrap();
}

/// proc(5): fields 14 and 15 count clock ticks of 1/100 s.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

/// proc(5), in bytes.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Identities as they are made: in the order of their time.
fn id(number: u64) -> SegmentId {
    let time = 1_790_000_000_000 + u128::from(number / 16);
    SegmentId((time << 80) | (u128::from(number) << 40) | u128::from(scrambled(number) >> 24))
}

fn scrambled(number: u64) -> u64 {
    number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn uuid(number: u64) -> String {
    let hex = format!("{:016x}{:016x}", scrambled(number), scrambled(!number));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn object(shape: &str, number: u64) -> StoreItem {
    let key = match shape {
        "s3-one-folder" => format!("flink/{:032x}/shared/{}", 7, uuid(number)),
        "s3-folder-each" => format!("flink/{:032x}/chk-1/{}", scrambled(number), uuid(number)),
        other => panic!("no shape {other}, there are {SHAPES:?}"),
    };
    let id = id(number);
    let data = Bytes::from(vec![0x5a; OBJECT_BYTES]);
    let segment = NewSegment {
        id,
        about: KeyLayout::of(BUCKET, &key).about,
        location: Location::Inline { len: data.len() as u64 },
        crc: SegmentCrc::of(&data),
        inline: Some(data),
    };
    let head = ObjectHead {
        len: OBJECT_BYTES as u64,
        etag: format!("{:016x}{:016x}", scrambled(number), scrambled(number + 1)),
        modified: Millis(1_790_000_000_000 + number),
        headers: ObjectHeaders { content_type: Some("application/octet-stream".to_owned()), ..Default::default() },
        checksum: Some(ObjectChecksum {
            algorithm: "CRC32".to_owned(),
            value: "AAAAAA==".to_owned(),
            composite: false,
            parts: vec![],
        }),
        part_lens: vec![],
    };
    let content = ObjectContent::Segments { segments: vec![id], head, upload: None };
    let put = PutObject { bucket: BUCKET.to_owned(), key, condition: Condition::None, content };
    StoreItem { segments: vec![segment], bind: Bind::Object(Box::new(put)) }
}

fn native_job() -> JobId {
    format!("{:032x}", 7).parse().unwrap()
}

/// A file of a task manager, with the segments of its subtasks.
fn native(numbers: std::ops::Range<u64>) -> Command {
    let file = PhysicalFileId::new(Some(&native_job()), 1, id(numbers.start).0);
    let task_manager = Label::parse("task-manager", &format!("taskmanager-{}", numbers.start / 1024 % 8)).unwrap();
    let lane = Lane { job: Some(native_job()), scope: StateScope::Exclusive, of: LaneOf::TaskManager(task_manager) };
    let len = (numbers.end - numbers.start + 1) * SEGMENT_BYTES;
    let items = numbers.clone().map(|number| {
        let offset = (number - numbers.start) * SEGMENT_BYTES + 64;
        native_segment(number, Segment { file: file.clone(), offset, len: SEGMENT_BYTES - 64 })
    });
    let items = items.collect();
    Command::Store(Store { file: Some(StoreFile { id: file, lane, len, closes: true, upload: None }), items })
}

fn native_segment(number: u64, place: Segment) -> StoreItem {
    let operator = Label::parse("operator", &format!("{:032x}", number % 5)).unwrap();
    let subtask = SubtaskKey { operator, index: (number % 64) as u32, parallelism: 64 };
    let task_manager = Label::parse("task-manager", &format!("taskmanager-{}", number / 1024 % 8)).unwrap();
    let about = About {
        job: native_job(),
        scope: StateScope::Exclusive,
        writer: Writer { subtask: Some(subtask), task_manager: Some(task_manager) },
        checkpoint: Some(CheckpointId(1 + number / 100_000)),
        name: Some(Label::parse("name", &uuid(number)).unwrap()),
    };
    let crc = SegmentCrc { whole: scrambled(number) as u32, ..SegmentCrc::default() };
    let location = Location::File(place);
    let new = NewSegment { id: id(number), about, location, inline: None, crc };
    StoreItem { segments: vec![new], bind: Bind::Checkpoint { idempotency_key: None, run: None } }
}
