//! What the checkpoints of Flink name, compared with what is there. The `_metadata` are files that Flink has written
//! (`tests/data/flink-metadata`), and so are the lists of what is in them.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use esker_client::wire::{
    AuditParams, AuditedCheckpoint, OrphanLine, OrphanObject, OrphansEnd, OrphansOfJob, OrphansParams,
};
use object_store::{ClientOptions, ObjectStoreExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::daemon::TestDaemon;
use crate::process;
use crate::raw::{Answer, Raw};

const JOB: &str = "flink/0123456789abcdef0123456789abcdef";
const OTHER_JOB: &str = "flink/00000000000000000000000000000000";
const UUID: &str = "5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f";

/// A `_metadata`, and what Flink's own reader finds in it.
struct Sample {
    bytes: &'static [u8],
    names: &'static str,
}

macro_rules! sample {
    ($name:literal) => {
        Sample {
            bytes: include_bytes!(concat!("../data/flink-metadata/", $name, ".bin")),
            names: include_str!(concat!("../data/flink-metadata/", $name, ".txt")),
        }
    };
}

const SAMPLES: [Sample; 5] = [
    sample!("flink-1.13-v3"),
    sample!("flink-1.20-v4"),
    sample!("flink-2.3-v4"),
    sample!("flink-2.3-v5"),
    sample!("flink-2.3-v6"),
];
const NEWEST: &Sample = &SAMPLES[4];

impl Sample {
    /// The objects that it names if it is checkpoint 7 of the job, with the bytes that they must have.
    fn objects(&self) -> BTreeMap<String, usize> {
        let mut objects = BTreeMap::new();
        for line in self.names.lines().skip(1) {
            let fields: Vec<&str> = line.split('\t').collect();
            let key = match fields[0] {
                "absolute" => fields[1].strip_prefix("s3://state/").unwrap().to_owned(),
                _ => format!("{JOB}/chk-7/{}", fields[1]),
            };
            let end = fields[2].parse::<usize>().unwrap() + fields[3].parse::<usize>().unwrap();
            let needed = objects.entry(key).or_insert(0);
            *needed = end.max(*needed);
        }
        objects
    }
}

/// A daemon with a bucket, and a connection to it.
struct Store {
    daemon: TestDaemon,
    s3: Raw,
}

impl Store {
    async fn open() -> Self {
        let daemon = TestDaemon::start(&[]).await;
        let s3 = Raw::connect(daemon.s3()).await;
        let mut store = Self { daemon, s3 };
        assert_eq!(store.ask("PUT", "state", "", b"").await.status, 200);
        store
    }

    async fn ask(&mut self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let len = body.len();
        self.s3
            .send(format!("{method} /{target} HTTP/1.1\r\nhost: esker\r\ncontent-length: {len}\r\n{headers}\r\n"))
            .await;
        self.s3.send(body).await;
        self.s3.answer().await.unwrap()
    }

    async fn put(&mut self, key: &str, body: &[u8]) {
        let answer = self.ask("PUT", &target(key), "", body).await;
        assert_eq!(answer.status, 200, "{key}: {}", answer.text());
    }

    async fn delete(&mut self, key: &str) {
        assert_eq!(self.ask("DELETE", &target(key), "", b"").await.status, 204);
    }

    async fn is_there(&mut self, key: &str) -> bool {
        self.ask("GET", &target(key), "", b"").await.status == 200
    }

    /// Puts everything that a checkpoint 7 names, then its `_metadata`.
    async fn complete(&mut self, sample: &Sample) {
        for (key, len) in sample.objects() {
            self.put(&key, &vec![7; len]).await;
        }
        next_millisecond();
        self.put(&format!("{JOB}/chk-7/_metadata"), sample.bytes).await;
    }

    async fn audit(&self) -> Vec<AuditedCheckpoint> {
        let mut found = vec![];
        let mut params = AuditParams { limit: Some(1), ..AuditParams::default() };
        loop {
            let page = self.daemon.client.audit(&params).await.unwrap();
            found.extend(page.checkpoints);
            params.after = page.next;
            if params.after.is_none() {
                return found;
            }
        }
    }

    async fn orphans(&self, params: OrphansParams) -> Told {
        Told::read(self.daemon.client.orphans(&params).await.unwrap()).await
    }

    /// The program against this daemon.
    fn run(&self, arguments: &[&str]) -> Output {
        let api = format!("http://{}", self.daemon.api());
        process::esker().args(arguments).args(["--api", &api]).output().unwrap()
    }

    /// A checkpoint came in and was looked at.
    async fn looked_at(&self, outcome: &str, times: f64) {
        self.daemon.metric_becomes(&format!("esker_checkpoint_audits_total{{outcome=\"{outcome}\"}}"), times).await;
    }
}

/// Everything that is told of orphans.
#[derive(Debug, Default)]
struct Told {
    orphans: Vec<OrphanObject>,
    kept: BTreeMap<String, String>,
    unreadable: Vec<String>,
    jobs: BTreeMap<String, OrphansOfJob>,
    end: OrphansEnd,
}

impl Told {
    async fn read(mut lines: esker_client::OrphanLines) -> Self {
        let mut told = Self::default();
        while let Some(line) = lines.next().await.unwrap() {
            match line {
                OrphanLine::Orphan(orphan) => told.orphans.push(orphan),
                OrphanLine::Kept(kept) => drop(told.kept.insert(kept.key, kept.why)),
                OrphanLine::Unreadable(metadata) => told.unreadable.push(metadata.key),
                OrphanLine::Job(job) => drop(told.jobs.insert(job.folder.clone(), job)),
                OrphanLine::End(end) => told.end = end,
                OrphanLine::Broken(why) => panic!("{why}"),
            }
        }
        told
    }

    /// Keys and reasons.
    fn orphans(&self) -> Vec<(&str, &str)> {
        self.orphans.iter().map(|orphan| (orphan.key.as_str(), orphan.why.as_str())).collect()
    }
}

fn target(key: &str) -> String {
    format!("state/{}", utf8_percent_encode(key, NON_ALPHANUMERIC).to_string().replace("%2F", "/"))
}

/// All ages count.
fn any_age() -> OrphansParams {
    OrphansParams { older_than_ms: Some(0), ..OrphansParams::default() }
}

/// What is put from now on is younger than what was put before, by the clock that stamps it.
fn next_millisecond() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let begun = now();
    while now() <= begun {
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_every_version_is_complete_when_what_it_names_is_there() {
    for sample in &SAMPLES {
        let mut store = Store::open().await;
        store.complete(sample).await;

        store.looked_at("complete", 1.0).await;
        let found = store.audit().await;
        let [checkpoint] = &found[..] else { panic!("{found:?}") };
        assert_eq!((checkpoint.missing, checkpoint.elsewhere, &checkpoint.unreadable), (0, 0, &None), "{checkpoint:?}");
        assert_eq!((checkpoint.checkpoint, checkpoint.folder.as_str()), (7, JOB));
        assert_eq!(checkpoint.objects, sample.objects().len() as u64);
        let told = store.orphans(any_age()).await;
        assert_eq!(told.orphans(), [], "a job in order has none");
        assert_eq!(told.end.objects, sample.objects().len() as u64 + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_deleted_or_too_short_is_missing() {
    let mut store = Store::open().await;
    store.complete(NEWEST).await;
    let (gone, short) = (format!("{JOB}/shared/shared ü"), format!("{JOB}/shared/job_j_op_o_0_4/operator"));

    store.delete(&gone).await;
    store.put(&short, &[7; 39]).await;

    let found = store.audit().await;
    let missing: BTreeMap<&str, _> = found[0]
        .missing_objects
        .iter()
        .map(|object| (object.key.as_str(), (object.len, object.needed_bytes, object.merged_by_flink)))
        .collect();
    assert_eq!(missing, BTreeMap::from([(&*gone, (None, 100, false)), (&*short, (Some(39), 40, true))]));
    assert_eq!(found[0].missing, 2);

    let told = store.run(&["audit"]);
    let text = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("missing   s3://state/{gone}")), "{text}");
    assert!(text.contains("39 of 40 bytes") && text.contains("1 checkpoints: 1 incomplete, 0 unreadable"), "{text}");
    let elsewhere = store.run(&["audit", "s3://state/other/"]);
    assert_eq!(elsewhere.status.code(), Some(0));
    let other_job = store.run(&["audit", "--job", "00000000000000000000000000000000", "--json"]);
    assert_eq!((other_job.status.code(), other_job.stdout), (Some(0), vec![]));
    assert_eq!(store.run(&["audit", "state/x"]).status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_comes_in_before_what_it_names_is_told_of() {
    let mut store = Store::open().await;
    let objects = NEWEST.objects().len() as f64;

    store.put(&format!("{JOB}/chk-7/_metadata"), NEWEST.bytes).await;
    store.looked_at("incomplete", 1.0).await;
    assert_eq!(store.daemon.metric("esker_checkpoint_missing_objects_total").await, objects);

    // As a copy, whose relative paths mean other objects.
    let from = format!("x-amz-copy-source: {}\r\n", target(&format!("{JOB}/chk-7/_metadata")));
    assert_eq!(store.ask("PUT", &target("copies/_metadata"), &from, b"").await.status, 200);
    store.looked_at("incomplete", 2.0).await;

    // As a multipart upload.
    let key = format!("{JOB}/chk-8/_metadata");
    let begun = store.ask("POST", &format!("{}?uploads", target(&key)), "", b"").await.text();
    let upload = begun.split_once("<UploadId>").unwrap().1.split_once('<').unwrap().0.to_owned();
    let part = store.ask("PUT", &format!("{}?partNumber=1&uploadId={upload}", target(&key)), "", NEWEST.bytes).await;
    assert_eq!(part.status, 200);
    let list = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
        part.header("etag").unwrap()
    );
    let done = store.ask("POST", &format!("{}?uploadId={upload}", target(&key)), "", list.as_bytes()).await;
    assert_eq!(done.status, 200, "{}", done.text());
    store.looked_at("incomplete", 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_checkpoint_is_told_as_one() {
    let mut store = Store::open().await;
    store.complete(NEWEST).await;
    for key in
        ["pinned/before/_metadata", &format!("{JOB}/chk-9/_metadata"), "sp/savepoint-0a1b2c-0123456789ab/_metadata"]
    {
        let from = format!("x-amz-copy-source: {}\r\n", target(&format!("{JOB}/chk-7/_metadata")));
        assert_eq!(store.ask("PUT", &target(key), &from, b"").await.status, 200, "{key}");
    }

    let found = store.audit().await;

    let original = format!("s3://state/{JOB}/chk-7");
    let told: Vec<_> = found.iter().map(|audit| (audit.key.as_str(), audit.copy_of.as_deref())).collect();
    let expected = [
        (&*format!("{JOB}/chk-7/_metadata"), None),
        (&*format!("{JOB}/chk-9/_metadata"), Some(&*original)),
        ("pinned/before/_metadata", Some(&*original)),
        ("sp/savepoint-0a1b2c-0123456789ab/_metadata", Some(&*original)),
    ];
    assert_eq!(told, expected);
    assert_eq!((found[0].of_others, found[1].of_others), (0, 0));
    assert!(found[2].of_others > 0 && found[2].missing > 0, "its relative paths name nothing: {:?}", found[2]);
    let text = String::from_utf8(store.run(&["audit"]).stdout).unwrap();
    assert_eq!(text.matches(&format!("a copy of {original}, whose files it names")).count(), 3, "{text}");
}

/// What operators read, with the metric that they alert on: of a daemon as it is started.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_warns_of_a_checkpoint_that_names_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let buckets = [("ESKER__SERVER__BUCKETS", r#"["state"]"#.to_owned())];
    let mut daemon = process::Process::spawn(folder.path(), &buckets);
    let ready = daemon.wait_ready();
    let store = ready.s3_builder(ClientOptions::new()).build().unwrap();
    let key = format!("{JOB}/chk-7/_metadata");

    store.put(&key.as_str().into(), NEWEST.bytes.into()).await.unwrap();

    let client = esker_client::Client::new(&ready.api, None).unwrap();
    let begun = Instant::now();
    let objects = NEWEST.objects().len();
    let incomplete = "esker_checkpoint_audits_total{outcome=\"incomplete\"} 1\n";
    let missing = format!("esker_checkpoint_missing_objects_total {objects}\n");
    // One is counted after the other.
    loop {
        let metrics = client.metrics().await.unwrap();
        if metrics.contains(incomplete) && metrics.contains(&missing) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Some of them are merged by Flink itself, so it says what to do about that.
    let log = daemon.log();
    let warning = log.lines().find(|line| line.contains("a checkpoint names objects that are not there")).expect(&log);
    for part in [
        "WARN",
        "cannot be restored",
        "execution.checkpointing.file-merging.enabled to false",
        &format!("key=\"{key}\""),
        &format!("job=state/{JOB}"),
        &format!("missing={objects} objects={objects} first=\"{JOB}/"),
    ] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    // Once for each job.
    store.put(&format!("{JOB}/chk-8/_metadata").into(), NEWEST.bytes.into()).await.unwrap();
    let twice = incomplete.replace(" 1\n", " 2\n");
    while !client.metrics().await.unwrap().contains(&twice) {
        assert!(begun.elapsed() < Duration::from_secs(40));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.log().matches("a checkpoint names objects that are not there").count(), 1);
    daemon.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_checkpoint_is_told_of_and_files_of_others_are_not() {
    let mut store = Store::open().await;
    store.complete(NEWEST).await;
    store.put(&format!("{JOB}/shared/{UUID}"), b"left").await;
    next_millisecond();

    store.put(&format!("{JOB}/chk-8/_metadata"), &NEWEST.bytes[..1000]).await;
    store.put("table/_metadata", b"PAR1 and more").await;

    store.looked_at("unreadable", 1.0).await;
    let found = store.audit().await;
    assert_eq!(found.len(), 2, "{found:?}");
    let why = found[1].unreadable.as_deref().unwrap();
    assert!(why.starts_with("is damaged at byte") && why.contains("of 1000"), "{why}");
    assert_eq!(store.run(&["audit"]).status.code(), Some(1));

    let told = store.orphans(OrphansParams { kept: Some(true), ..any_age() }).await;
    assert_eq!(told.orphans(), [], "it may be named in what is torn off");
    assert_eq!(told.kept[&format!("{JOB}/shared/{UUID}")], "unreadable");
    assert_eq!(told.unreadable, [format!("{JOB}/chk-8/_metadata")]);
    assert_eq!(told.end.others, 1);
}

/// A job with a completed checkpoint, and one of each kind of orphan. Returns their keys and kinds, in order.
async fn job_with_orphans(store: &mut Store) -> Vec<(String, &'static str)> {
    let orphans = [
        (format!("{JOB}/chk-6/{UUID}"), "aborted_checkpoint"),
        (format!("{JOB}/chk-7/{UUID}"), "late_upload"),
        (format!("{JOB}/shared/{UUID}"), "unnamed"),
        (format!("{JOB}/shared/job_ab_op_x_1_2/{UUID}"), "unnamed_merged"),
        (format!("{JOB}/taskowned/job_ab_tm_x/{UUID}"), "unnamed_merged"),
    ];
    for (key, _) in &orphans {
        store.put(key, b"left").await;
    }
    orphans.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_of_each_kind_is_found_and_deleted_and_nothing_else_is() {
    let mut store = Store::open().await;
    let orphans = job_with_orphans(&mut store).await;
    let kept = [
        (format!("{JOB}/taskowned/{UUID}"), "task_owned"),
        (format!("{JOB}/dstl/{UUID}"), "changelog"),
        (format!("{JOB}/shared/op_x_attempt_1/db/{UUID}"), "working"),
        (format!("{JOB}/chk-8/"), "folder"),
        (format!("{OTHER_JOB}/shared/{UUID}"), "no_checkpoint"),
        ("sp/savepoint-0a1b2c-0123456789ab/state".to_owned(), "savepoint"),
    ];
    for (key, _) in &kept[..3] {
        store.put(key, b"kept").await;
    }
    next_millisecond();
    // Checkpoint 8 is in progress: the one before 7 is what objects have to be older than.
    store.put(&format!("{JOB}/chk-5/_metadata"), &empty(5)).await;
    store.complete(NEWEST).await;
    for (key, _) in &kept[3..] {
        store.put(key, b"").await;
    }
    let young = format!("{JOB}/shared/young");
    store.put(&young, b"kept").await;
    let running = format!("{JOB}/chk-8/{UUID}");
    store.put(&running, b"kept").await;
    store.put("logs/a.txt", b"none of Flink's").await;

    let told = store.orphans(OrphansParams { kept: Some(true), ..any_age() }).await;
    let expected: Vec<(&str, &str)> = orphans.iter().map(|(key, why)| (key.as_str(), *why)).collect();
    assert_eq!(told.orphans(), expected);
    for (key, why) in kept.iter().map(|(key, why)| (key, *why)).chain([(&young, "young"), (&running, "running")]) {
        assert_eq!(told.kept[key], why, "{key}");
    }
    assert!(NEWEST.objects().keys().all(|key| told.kept[key] == "named"));
    assert_eq!((told.end.orphans, told.end.orphan_bytes, told.end.deleted, told.end.others), (5, 20, 0, 1));
    assert_eq!(told.jobs[JOB].orphans, 5);

    // Nothing is old enough, or of this job.
    assert_eq!(store.orphans(OrphansParams::default()).await.orphans(), []);
    assert_eq!(store.orphans(OrphansParams { job: Some("other".into()), ..any_age() }).await.end.objects, 0);

    let dry = store.run(&["orphans", "--older-than", "0s"]);
    let text = String::from_utf8(dry.stdout).unwrap();
    assert_eq!(dry.status.code(), Some(0), "{text}");
    assert!(
        text.contains("5 orphans with 20 B, 0 deleted") && text.contains("of a checkpoint that was aborted"),
        "{text}"
    );
    for (key, _) in &orphans {
        assert!(store.is_there(key).await, "{key}");
    }

    let refused = store.run(&["orphans", "--older-than", "599s", "--delete"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && text.contains("--risk-running-checkpoints"), "{text}");
    let refused = store.daemon.client.delete_orphans(&any_age()).await.err().unwrap().to_string();
    assert!(refused.contains("risk_running_checkpoints"), "{refused}");

    let deleted = store.run(&["orphans", "--older-than", "0s", "--delete", "--risk-running-checkpoints", "--json"]);
    assert_eq!(deleted.status.code(), Some(0));
    let text = String::from_utf8(deleted.stdout).unwrap();
    let lines: Vec<OrphanLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(matches!(lines.last(), Some(OrphanLine::End(OrphansEnd { deleted: 5, orphans: 5, .. }))), "{text}");
    for (key, _) in &orphans {
        assert!(!store.is_there(key).await, "{key}");
    }
    for key in NEWEST.objects().keys().chain(kept.iter().map(|(key, _)| key)).chain([&young, &running]) {
        assert!(store.is_there(key).await, "{key}");
    }
    assert!(store.audit().await.iter().all(|checkpoint| checkpoint.missing == 0));
    assert_eq!(store.orphans(any_age()).await.orphans(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_took_over_a_checkpoint_keeps_the_files_of_the_job_before() {
    let mut store = Store::open().await;
    let orphans = job_with_orphans(&mut store).await;
    store.complete(NEWEST).await;
    // Checkpoint 7 of the other job names what the first one has stored, in its own words: absolute paths.
    store.put(&format!("{OTHER_JOB}/chk-7/_metadata"), NEWEST.bytes).await;
    next_millisecond();
    // The first job has a checkpoint of its own since that names none of it.
    store.delete(&format!("{JOB}/chk-7/_metadata")).await;
    store.put(&format!("{JOB}/chk-9/_metadata"), &empty(9)).await;

    let told = store.orphans(any_age()).await;
    let found = store.audit().await;

    // It says so, and does not call it a copy: the other job has a checkpoint of its own.
    let other = found.iter().find(|checkpoint| checkpoint.folder == OTHER_JOB).unwrap();
    let absolute = NEWEST.names.lines().filter(|line| line.starts_with("absolute")).count() as u64;
    assert_eq!((&other.copy_of, other.of_others), (&None, absolute));
    assert_eq!(other.of_others_first.as_deref(), Some(&*format!("s3://state/{JOB}")));
    let shared = |key: &&str| key.starts_with(&format!("{JOB}/shared/"));
    let found: Vec<&str> = told.orphans().into_iter().map(|(key, _)| key).filter(shared).collect();
    let expected: Vec<&str> = orphans.iter().map(|(key, _)| key.as_str()).filter(shared).collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_whole_copy_of_a_checkpoint_is_an_orphan() {
    let mut store = Store::open().await;
    store.complete(NEWEST).await;
    let to_copy = |key: &str| format!("backup/{}", key.strip_prefix("flink/").unwrap());
    for (key, len) in NEWEST.objects() {
        store.put(&to_copy(&key), &vec![7; len]).await;
    }
    let left = to_copy(&format!("{JOB}/shared/{UUID}"));
    store.put(&left, b"left").await;
    next_millisecond();
    store.put(&to_copy(&format!("{JOB}/chk-7/_metadata")), NEWEST.bytes).await;

    let told = store.orphans(OrphansParams { kept: Some(true), ..any_age() }).await;

    assert_eq!(told.orphans(), [(left.as_str(), "unnamed")]);
    for key in NEWEST.objects().keys() {
        assert_eq!((told.kept[key].as_str(), told.kept[&to_copy(key)].as_str()), ("named", "named"), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_an_orphan_while_a_pinned_copy_cannot_be_read() {
    let mut store = Store::open().await;
    let orphans = job_with_orphans(&mut store).await;
    store.complete(NEWEST).await;
    store.put("pinned/before/_metadata", &NEWEST.bytes[..1000]).await;

    let told = store.orphans(OrphansParams { kept: Some(true), ..any_age() }).await;

    assert_eq!(told.orphans(), []);
    for (key, _) in &orphans {
        assert_eq!(told.kept[key], "unreadable_copy", "{key}");
    }
    assert_eq!(told.unreadable, ["pinned/before/_metadata"]);
}

/// The `_metadata` of a checkpoint without state.
fn empty(checkpoint: i64) -> Vec<u8> {
    [&NEWEST.bytes[..8], &checkpoint.to_be_bytes()[..], &[0; 8][..], &properties()[..]].concat()
}

/// The properties at the end of a `_metadata`.
fn properties() -> Vec<u8> {
    let at = NEWEST.bytes.windows(4).rposition(|window| window == [0xac, 0xed, 0, 5]).unwrap();
    NEWEST.bytes[at..].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_of_a_stopped_daemon_is_audited_too() {
    let mut store = Store::open().await;
    let orphans = job_with_orphans(&mut store).await;
    store.complete(NEWEST).await;
    let Store { daemon, s3 } = store;
    drop(s3);
    let folder = daemon.shut_down().await;
    let on = |arguments: &[&str]| {
        let folder = folder.path().to_str().unwrap();
        let output = process::esker().args(arguments).args(["--data-dir", folder, "--json"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };

    let (code, text) = on(&["audit", "--names"]);
    assert_eq!(code, Some(0), "{text}");
    let checkpoint: AuditedCheckpoint = serde_json::from_str(&text).unwrap();
    let named: std::collections::BTreeSet<_> = checkpoint.named.into_iter().map(|part| part.key).collect();
    assert!(named.iter().eq(NEWEST.objects().keys()), "{named:?}");
    let (code, text) = on(&["orphans", "--older-than", "0s", "--delete", "--risk-running-checkpoints"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&format!("\"deleted\":{}", orphans.len())), "{text}");
    let (_, text) = on(&["orphans", "--older-than", "0s"]);
    assert!(text.lines().last().unwrap().contains("\"orphans\":0"), "{text}");

    // Keys and tokens of a file are those of the doors, and its access log tells of clients.
    let elsewhere = tempfile::tempdir().unwrap();
    let keys = elsewhere.path().join("keys.toml");
    std::fs::write(&keys, "[[keys]]\naccess-key = \"a\"\nsecret-key = \"of-the-daemon\"\n").unwrap();
    let (store, keys) =
        (format!("store.url=file:{}", folder.path().display()), format!("auth.keys-file={}", keys.display()));
    let set = ["audit", "--json", "--set", &store, "--set", &keys, "--set", "telemetry.access-log=stdout"];
    let output = process::esker().args(set).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str::<AuditedCheckpoint>(&text).unwrap();
}

/// Puts so many objects that nothing names, over several connections.
async fn fill(store: &Store, count: usize) {
    const CONNECTIONS: usize = 32;
    let address = store.daemon.s3();
    let fill = |first: usize| async move {
        let mut s3 = Raw::connect(address).await;
        for n in (first..count).step_by(CONNECTIONS) {
            let head =
                format!("PUT /state/{JOB}/shared/{n:036} HTTP/1.1\r\nhost: esker\r\ncontent-length: 4\r\n\r\nleft");
            s3.send(head).await;
            assert_eq!(s3.answer().await.unwrap().status, 200);
        }
    };
    futures::future::join_all((0..CONNECTIONS).map(fill)).await;
}

/// Run with ESKER_AUDIT_OBJECTS=100000 it makes a figure of docs/figures.md.
#[tokio::test(flavor = "multi_thread")]
async fn objects_of_many_pages_are_judged() {
    let mut store = Store::open().await;
    let count = std::env::var("ESKER_AUDIT_OBJECTS").map_or(2500, |count| count.parse().unwrap());
    fill(&store, count).await;
    store.complete(NEWEST).await;

    let begun = Instant::now();
    let told = store.orphans(any_age()).await;
    let orphans = begun.elapsed();
    let begun = Instant::now();
    let found = store.audit().await;
    println!("{count} objects: orphans in {orphans:?}, audit in {:?}", begun.elapsed());

    assert_eq!(told.orphans.len(), count);
    assert_eq!(told.end.objects, (count + NEWEST.objects().len() + 1) as u64);
    assert_eq!(found.len(), 1);
}
