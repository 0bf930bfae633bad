//! The number of shards is changed, and changed back; and the command that does so dies at each of its requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use esker::cluster::reshard::{self, ReshardError, ReshardOptions, ReshardReport, ReshardState};
use esker::config::Settings;
use esker::engine::rebuild::{RebuildOptions, rebuild};
use esker::engine::recover::Missing;
use esker::engine::stopped::Stopped;
use esker::engine::verify::verify;
use esker::error::chain;
use esker::model::{Routing, StoreShards};
use esker_client::Client;
use esker_client::wire::{JobOperator, NewJob, PutParams, RestoreJob};
use futures::{StreamExt, TryStreamExt};
use http::Method;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio_util::sync::CancellationToken;

use crate::faults::{Fault, Gate, Op, Rule, any};
use crate::offline;
use crate::s3_server::S3Server;
use crate::shards::{BUCKET, get, member_with, put, signed};
use crate::support::{INLINE, PREFIX, Running, SIGNED, SOON, Threads, bytes_of, eventually, params, settings};

/// One more bucket than the configuration names.
const OTHER: &str = "other";
const EMPTY: &str = "empty";
/// Objects of several shards in one file, and small ones in the catalog.
const MIXED: [(&str, &str); 3] =
    [(INLINE, "1 kb"), ("merging.s3-boundary", "daemon"), ("server.buckets", "states,other,empty")];

/// A daemon by itself.
pub fn alone(server: &S3Server) -> Settings {
    settings(server, &[&SIGNED[..], &MIXED[..]].concat())
}

pub async fn member(server: &S3Server, id: &str) -> Running {
    Running::start(member_with(server, id, &MIXED)).await
}

pub fn nobody(_: reshard::ReshardProgress) {}

pub async fn reshard_to(server: &S3Server, shards: u32) -> ReshardReport {
    let options = ReshardOptions { shards, force: false };
    reshard::run(&alone(server), options, &nobody).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// What clients have stored, beside what they are told of it.
pub struct Stored {
    objects: BTreeMap<(&'static str, String), Bytes>,
    segments: BTreeMap<String, Bytes>,
    upload: String,
    parts: Vec<PartId>,
}

const UPLOADED: &str = "late/one/object";
const COORDINATED: &str = "team/coordinated";
const CLAIMED: &str = "jobs/before";
const CLAIMS: &str = "work/after";
const PART: usize = 5 << 20;

/// The same jobs and objects each time.
async fn store_history(daemon: &Running) -> Stored {
    let (clients, client) = ([BUCKET, OTHER].map(|bucket| (bucket, daemon.s3_client_of(bucket))), &daemon.client);
    let mut objects = BTreeMap::new();
    let mut wanted = vec![];
    for n in 0..24u64 {
        let (bucket, s3) = &clients[usize::try_from(n % 2).unwrap()];
        let len = [100, 3_000, 40_000][usize::try_from(n % 3).unwrap()];
        let key = match n % 4 {
            0 => format!("flink/{n:032x}/chk-1/state"),
            1 => format!("root-{n}"),
            _ => format!("d{n}/sub/x"),
        };
        wanted.push((*bucket, s3, key, bytes_of(n, len)));
    }
    // Together, so that some share a file.
    let puts = wanted.iter().map(|(_, s3, key, bytes)| put(s3, key, bytes.clone()));
    futures::future::join_all(puts).await;
    objects.extend(wanted.into_iter().map(|(bucket, _, key, bytes)| ((bucket, key), bytes)));
    // Copies share segments, now and in other shards later.
    let s3 = &clients[0].1;
    for n in 0..6 {
        let key = format!("copy{n}/x");
        s3.copy(&Path::from("d6/sub/x"), &Path::from(key.as_str())).await.unwrap();
        objects.insert((BUCKET, key), objects[&(BUCKET, "d6/sub/x".to_owned())].clone());
    }
    put(s3, "gone/x", "deleted").await;
    s3.delete(&Path::from("gone/x")).await.unwrap();
    put(s3, "empty/x", Bytes::new()).await;
    objects.insert((BUCKET, "empty/x".to_owned()), Bytes::new());
    let large = Path::from("large/x");
    let id = s3.create_multipart(&large).await.unwrap();
    let mut parts = vec![];
    let mut whole = vec![];
    for n in 0..2 {
        let part = bytes_of(900 + n, PART);
        whole.extend_from_slice(&part);
        parts.push(s3.put_part(&large, &id, usize::try_from(n).unwrap(), part.into()).await.unwrap());
    }
    s3.complete_multipart(&large, &id, parts).await.unwrap();
    objects.insert((BUCKET, "large/x".to_owned()), whole.into());
    // One that goes on later.
    let upload = s3.create_multipart(&Path::from(UPLOADED)).await.unwrap();
    let parts = vec![s3.put_part(&Path::from(UPLOADED), &upload, 0, bytes_of(990, PART).into()).await.unwrap()];

    let mut segments = BTreeMap::new();
    for n in 0..5u64 {
        let job = format!("native{n}/job");
        with_checkpoints(client, &job, n, &mut segments).await;
    }
    with_checkpoints(client, CLAIMED, 50, &mut segments).await;
    client.create_job(CLAIMS).await.unwrap();
    client.restore_job(CLAIMS, &claim()).await.unwrap();
    let dirs = [
        ("execution.checkpointing.dir".to_owned(), "s3://states/meta/dir".into()),
        ("execution.checkpointing.savepoint-dir".to_owned(), "s3://states/meta/saved".into()),
    ];
    let coordinated = NewJob {
        job: COORDINATED.to_owned(),
        coordinated: true,
        settings: Some(dirs.into()),
        operators: Some(vec![JobOperator { id: "a".into(), parallelism: 1, ..JobOperator::default() }]),
        iterative: None,
    };
    client.create(&coordinated).await.unwrap();
    Stored { objects, segments, upload, parts }
}

fn claim() -> RestoreJob {
    let (from, mode) = (Some(CLAIMED.to_owned()), Some("claim".to_owned()));
    RestoreJob { from, checkpoint: Some(1), mode, ..RestoreJob::default() }
}

/// A completed checkpoint and a savepoint, one that is begun, and one that was aborted.
async fn with_checkpoints(client: &Client, job: &str, seed: u64, segments: &mut BTreeMap<String, Bytes>) {
    client.create_job(job).await.unwrap();
    for checkpoint in 1..=4u64 {
        match checkpoint {
            2 => client.begin_savepoint(job, checkpoint).await.unwrap(),
            _ => client.begin(job, checkpoint).await.unwrap(),
        }
        for n in 0..3u64 {
            let bytes = bytes_of(1_000 * seed + 10 * checkpoint + n, [200, 5_000, 30_000][n as usize]);
            let of = PutParams { checkpoint: Some(checkpoint), name: Some(n.to_string()), ..params() };
            let key = format!("{checkpoint}-{n}");
            let told = client.put(job, &of, Some(&key), bytes.clone()).await.unwrap();
            if checkpoint != 3 {
                segments.insert(told.segment, bytes);
            }
        }
        match checkpoint {
            3 => client.abort(job, checkpoint).await.unwrap(),
            4 => {}
            _ => client.complete(job, checkpoint).await.unwrap(),
        }
    }
    if job == CLAIMED {
        // What had begun is given up by the claim.
        client.abort(job, 4).await.unwrap();
        segments.retain(|_, bytes| (0..3u64).all(|n| *bytes != bytes_of(1_000 * seed + 40 + n, bytes.len())));
    }
}

/// All that can be asked for, but names of files: a line each.
async fn told(daemon: &Running) -> BTreeSet<String> {
    let client = &daemon.client;
    let mut told = BTreeSet::new();
    for bucket in [BUCKET, OTHER, EMPTY] {
        let s3 = daemon.s3_client_of(bucket);
        assert_eq!(signed(&s3, Method::HEAD).await, 200, "{bucket}");
        let listed: Vec<_> = s3.list(None).try_collect().await.unwrap();
        for meta in listed {
            let found = s3.head(&meta.location).await.unwrap();
            assert_eq!((found.size, &found.e_tag), (meta.size, &meta.e_tag));
            told.insert(format!("{bucket} {meta:?} {:?}", found.last_modified));
        }
    }
    for job in client.jobs().await.unwrap().into_iter().filter(|job| job.created_ms.is_some()) {
        let name = &job.job;
        told.insert(format!("{name} {:?} {:?} {:?} {}", job.created_ms, job.subsumed, job.ended, job.segments));
        told.insert(format!("{name} {:?}", job.coordinator.as_ref().map(|coordinator| &coordinator.settings)));
        told.extend(client.checkpoints(name).await.unwrap().iter().map(|checkpoint| format!("{checkpoint:?}")));
        let mut after: Option<String> = None;
        loop {
            let page = client.segments(name, None, after.as_deref()).await.unwrap();
            told.extend(page.segments.iter().map(|listed| {
                let info = &listed.info;
                format!("{name} {} {} {} {:?}", info.segment, info.len, info.crc32c, listed.checkpoint)
            }));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    told
}

pub fn assert_same(found: &BTreeSet<String>, expected: &BTreeSet<String>, when: &str) {
    let missing: Vec<_> = expected.difference(found).take(5).collect();
    let more: Vec<_> = found.difference(expected).take(5).collect();
    assert!(missing.is_empty() && more.is_empty(), "{when}: missing {missing:#?}, and there is {more:#?}");
}

/// All that was stored is there, byte for byte.
pub async fn assert_there(daemon: &Running, stored: &Stored) {
    let clients: BTreeMap<&str, AmazonS3> =
        [BUCKET, OTHER].into_iter().map(|bucket| (bucket, daemon.s3_client_of(bucket))).collect();
    let reads = stored.objects.iter().map(|((bucket, key), bytes)| {
        let s3 = &clients[bucket];
        async move { assert!(get(s3, key).await == bytes, "{bucket} {key}") }
    });
    futures::stream::iter(reads).buffer_unordered(8).collect::<Vec<_>>().await;
    for (id, bytes) in &stored.segments {
        assert!(daemon.client.get(id).await.unwrap() == bytes, "{id}");
    }
}

/// The shards that the store has.
async fn shards_of(server: &S3Server) -> StoreShards {
    let report = reshard::plan(&alone(server), 255, &nobody).await.unwrap();
    assert_eq!(report.state, ReshardState::Planned);
    report.from
}

/// What stands on storage: each shard's catalog agrees with its files, and nothing else is there.
pub async fn assert_clean(server: &S3Server) {
    let shards = shards_of(server).await;
    let mut expected: BTreeSet<String> = BTreeSet::from([format!("{PREFIX}/catalog/FORMAT")]);
    // A store that is tried when it is opened keeps the object of a trial that was cut short.
    let mut prefixes = ["cluster/map/", "probe/"].map(|name| format!("{PREFIX}/{name}")).to_vec();
    for shard in shards.all() {
        let settings = alone(server).at_shard(shard);
        let stopped = Stopped::open(&settings).await.unwrap_or_else(|error| panic!("{shard}: {}", chain(&error)));
        let found = verify(&stopped.state, &stopped.data, &stopped.catalog, 100, &|_| {}).await.unwrap();
        assert_eq!((&found.faults, &found.notes), (&vec![], &vec![]), "{shard}");
        let root = match shard.folder() {
            Some(folders) => format!("{PREFIX}/{}", folders.join("/")),
            None => PREFIX.to_owned(),
        };
        expected.extend(stopped.state.files().map(|file| format!("{root}/{}", file.id)));
        prefixes.extend(["owners/", "catalog/", "ESKER"].map(|name| format!("{root}/{name}")));
        stopped.close().await.unwrap();
    }
    let is_tombstone = |key: &String| {
        let bytes = server.objects().get(key).unwrap();
        key.ends_with("/catalog/FORMAT") || key.contains("/catalog/wal/") && bytes.is_empty()
    };
    let leaked: Vec<String> = server
        .objects()
        .keys(PREFIX)
        .into_iter()
        .filter(|key| !expected.contains(key) && !prefixes.iter().any(|prefix| key.starts_with(prefix)))
        .filter(|key| !is_tombstone(key))
        .collect();
    assert_eq!(leaked, Vec::<String>::new(), "{shards:?}");
    let missing: Vec<&String> = expected.iter().filter(|key| server.objects().get(key).is_none()).collect();
    assert_eq!(missing, Vec::<&String>::new());
    assert_eq!(server.objects().open_uploads(), Vec::<String>::new());
}

pub async fn stop(daemons: impl IntoIterator<Item = Running>) {
    for daemon in daemons {
        daemon.shut_down().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_was_stored_is_there_whatever_the_number_of_shards() {
    let server = S3Server::start().await;
    let daemon = Running::start(alone(&server)).await;
    let mut stored = store_history(&daemon).await;
    let before = told(&daemon).await;
    assert_there(&daemon, &stored).await;
    stop([daemon]).await;

    let planned = reshard::plan(&alone(&server), 4, &nobody).await.unwrap();
    let (untouched, objects) = (server.objects().keys(PREFIX), planned.total);
    assert_eq!((planned.state, planned.from), (ReshardState::Planned, StoreShards::UNDIVIDED));
    assert_eq!(server.objects().keys(PREFIX), untouched, "a plan writes nothing");
    assert!(planned.shards.iter().all(|shard| shard.keys > 0), "{planned:?}");

    for (round, shards) in [4, 3, 1].into_iter().enumerate() {
        let report = reshard_to(&server, shards).await;
        assert_eq!((report.state, report.to.count), (ReshardState::Done, shards));
        assert_eq!(report.total.keys, objects.keys, "{report:?}");
        assert_eq!((report.total.uploads, report.total.jobs), (objects.uploads, objects.jobs));
        assert_clean(&server).await;
        assert_eq!(reshard_to(&server, shards).await.state, ReshardState::NothingToDo);

        let daemons = [member(&server, "a").await, member(&server, "b").await];
        for daemon in &daemons {
            assert_eq!(daemon.client.cluster().await.unwrap().shards.len(), shards as usize);
            assert_there(daemon, &stored).await;
        }
        assert_same(&told(&daemons[1]).await, &before, &format!("with {shards} shards"));
        // It goes on: an upload, a job, a claim that is sent again, a coordinator.
        let (s3, client) = (daemons[0].s3_client_of(BUCKET), &daemons[0].client);
        let (upload, number) = (&stored.upload.clone(), stored.parts.len());
        let (path, bytes) = (Path::from(UPLOADED), bytes_of(990 + number as u64, PART));
        stored.parts.push(s3.put_part(&path, upload, number, bytes.into()).await.unwrap());
        client.restore_job(CLAIMS, &claim()).await.unwrap();
        let of = PutParams { checkpoint: Some(4), name: Some("0".to_owned()), ..params() };
        let again = client.put("native1/job", &of, Some("4-0"), bytes_of(1_040, 200)).await.unwrap();
        assert!(stored.segments.contains_key(&again.segment), "its idempotency key is known");
        assert!(client.job(COORDINATED).await.unwrap().coordinator.is_some());
        if round == 2 {
            s3.complete_multipart(&Path::from(UPLOADED), upload, stored.parts.clone()).await.unwrap();
            let whole: Vec<u8> = (0..4).flat_map(|n| bytes_of(990 + n, PART)).collect();
            assert!(get(&s3, UPLOADED).await == whole);
            assert_eq!(signed(&daemons[1].s3_client_of(EMPTY), Method::DELETE).await, 204);
        }
        stop(daemons).await;
    }
}

/// The command in a runtime of its own, which ends with it.
pub struct Command {
    kill: CancellationToken,
    thread: std::thread::JoinHandle<Option<Result<ReshardReport, String>>>,
}

impl Command {
    pub fn start(settings: Settings, shards: u32) -> Self {
        let kill = CancellationToken::new();
        let killed = kill.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let options = ReshardOptions { shards, force: true };
            let done = runtime.block_on(async {
                tokio::select! {
                    done = reshard::run(&settings, options, &nobody) => Some(done.map_err(|error| chain(&error))),
                    () = killed.cancelled() => None,
                }
            });
            runtime.shutdown_timeout(SOON);
            done
        });
        Self { kill, thread }
    }

    pub async fn ended(&self) {
        eventually("the command ends", 6 * SOON, || async { self.thread.is_finished() }).await;
    }

    pub async fn join(self) -> Option<Result<ReshardReport, String>> {
        tokio::task::spawn_blocking(move || self.thread.join().unwrap()).await.unwrap()
    }
}

/// What is at work when nobody is: what all that is stored looks like, byte by byte, to the catalogs.
pub async fn contents(server: &S3Server) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for shard in shards_of(server).await.all() {
        let stopped = Stopped::open(&alone(server).at_shard(shard)).await.unwrap();
        let state = &stopped.state;
        for view in state.all_segments() {
            all.insert(format!("{} {} {:?} {}", view.id, view.about.job, view.about.checkpoint, view.crc.whole));
        }
        for job in state.jobs().into_iter().filter(|job| job.created.is_some()) {
            let checkpoints = state.checkpoints(&job.id);
            all.insert(format!("{} {:?} {:?} {checkpoints:?}", job.id, job.created, job.ended));
        }
        for upload in state.uploads() {
            let parts: Vec<_> = state.parts(&upload.id).map(|part| (part.number, part.head)).collect();
            all.insert(format!("{} {:?} {parts:?}", upload.id, upload.upload));
        }
        for (bucket, _) in state.buckets() {
            let query = esker::engine::ListQuery { prefix: "", delimiter: "", after: "", max: 1000 };
            all.insert(bucket.clone());
            all.extend(state.list(&bucket, &query).entries.iter().map(|entry| format!("{bucket} {entry:?}")));
        }
        stopped.close().await.unwrap();
    }
    all
}

/// A store with a history, whose daemon has stopped.
pub async fn stopped_store() -> (S3Server, Stored) {
    let server = S3Server::start().await;
    let daemon = Running::start(alone(&server)).await;
    let stored = store_history(&daemon).await;
    stop([daemon]).await;
    (server, stored)
}

/// Dies at the request `number`, which arrives late or whose answer is lost, and is run again. Returns whether it came so far.
pub async fn dies_at(
    server: &S3Server,
    number: u64,
    keys: fn(&str) -> bool,
    shards: u32,
    fault: fn(Gate) -> Fault,
) -> bool {
    let gate = Gate::closed();
    let rule = server.faults().add(Rule::everything(keys).after(number), fault(gate.clone()));
    let command = Command::start(alone(server), shards);
    tokio::select! {
        () = gate.arrived(1) => {}
        () = command.ended() => {
            rule.lift();
            command.join().await.unwrap().unwrap();
            return false;
        }
    }
    // All that is on its way is there, or is not yet, when the command dies.
    tokio::time::sleep(Duration::from_millis(20)).await;
    command.kill.cancel();
    command.join().await;
    rule.lift();
    gate.open();
    true
}

async fn dies_at_each(step: u64, keys: fn(&str) -> bool, from: u32, shards: u32) {
    let (server, _) = stopped_store().await;
    if from > 1 {
        reshard_to(&server, from).await;
    }
    let expected = contents(&server).await;
    let begin = server.objects().contents();
    let mut at = 0;
    for round in 0.. {
        server.objects().put_back(&begin);
        let fault = if round % 2 == 0 { Fault::Held } else { Fault::AnswerHeld };
        let came_so_far = dies_at(&server, at, keys, shards, fault).await;

        let report = reshard_to(&server, shards).await;

        assert_eq!(report.to.count, shards, "after {at} requests");
        assert_clean(&server).await;
        let found = contents(&server).await;
        assert_same(&found, &expected, &format!("after {at} requests"));
        if !came_so_far {
            println!("a run has fewer than {at} requests of that kind");
            return;
        }
        at += step;
    }
}

/// What says which shards are the store.
pub fn marks(key: &str) -> bool {
    key.ends_with("/FORMAT") || key.contains("/cluster/map/")
}

pub fn files(key: &str) -> bool {
    key.contains("/data/")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_dies_at_a_mark_goes_on() {
    dies_at_each(2, marks, 2, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_dies_at_a_file_goes_on() {
    dies_at_each(5, files, 1, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_dies_at_any_request_goes_on() {
    let step = std::env::var("RESHARD_STEP").ok().map_or(37, |text| text.parse().unwrap());
    dies_at_each(step, any, 1, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_opens_a_store_whose_shards_are_being_changed_and_it_can_be_given_up() {
    let (server, stored) = stopped_store().await;
    let (before, keys) = (contents(&server).await, server.objects().keys(PREFIX));
    assert!(dies_at(&server, 3, files, 3, Fault::AnswerHeld).await);

    for (settings, who) in [(alone(&server), "a daemon"), (member_with(&server, "a", &MIXED), "a member")] {
        let refused = Running::try_start(settings, Threads::Two).await.err().expect(who);
        assert!(refused.contains("`esker cluster reshard --shards 3 --run`"), "{who}: {refused}");
    }
    let refused = Box::pin(Stopped::repair(&alone(&server), Missing::Keep)).await.unwrap_err();
    assert!(chain(&refused).contains("--abandon"), "{}", chain(&refused));
    let options = RebuildOptions { replace: true, read_data: false };
    let refused = Box::pin(rebuild(&alone(&server), options, &|_| {})).await.unwrap_err();
    assert!(chain(&refused).contains("--abandon"), "{}", chain(&refused));
    assert_eq!(reshard::plan(&alone(&server), 3, &nobody).await.unwrap().state, ReshardState::Begun);
    let other = ReshardOptions { shards: 5, force: false };
    let refused = reshard::run(&alone(&server), other, &nobody).await.unwrap_err();
    assert!(matches!(refused, ReshardError::Begun(to) if to.count == 3), "{refused}");

    let report = reshard::abandon(&alone(&server)).await.unwrap();

    assert_eq!((report.state, report.from), (ReshardState::Abandoned, StoreShards::UNDIVIDED));
    assert!(matches!(reshard::abandon(&alone(&server)).await, Err(ReshardError::NothingBegun(_))));
    assert_same(&contents(&server).await, &before, "after it was given up");
    assert_clean(&server).await;
    let gone: Vec<&String> = keys.iter().filter(|key| files(key) && server.objects().get(key).is_none()).collect();
    assert_eq!(gone, Vec::<&String>::new());
    let daemon = Running::start(alone(&server)).await;
    assert_there(&daemon, &stored).await;
    stop([daemon]).await;
    // Its generation is not used again.
    assert_eq!(reshard_to(&server, 3).await.to.generation, 3);
    assert_same(&contents(&server).await, &before, "after all");
    assert!(matches!(reshard::abandon(&alone(&server)).await, Err(ReshardError::NothingBegun(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_goes_on_where_it_was_cut_short() {
    let (server, _) = stopped_store().await;
    reshard_to(&server, 2).await;
    let before = contents(&server).await;
    assert!(dies_at(&server, 3, files, 3, Fault::AnswerHeld).await);
    let begun = server.objects().contents();
    for number in 0.. {
        server.objects().put_back(&begun);
        let gate = Gate::closed();
        let rule = server.faults().add(Rule::everything(marks).after(2 * number), Fault::Held(gate.clone()));
        let settings = alone(&server);
        let came_so_far = tokio::select! {
            done = reshard::abandon(&settings) => done.map(|_| false).unwrap(),
            () = gate.arrived(1) => true,
        };
        rule.lift();
        gate.open();
        match reshard::abandon(&settings).await {
            Ok(_) | Err(ReshardError::NothingBegun(_)) => {}
            Err(error) => panic!("{}", chain(&error)),
        }
        assert_same(&contents(&server).await, &before, "after it was given up");
        assert_clean(&server).await;
        if !came_so_far {
            return;
        }
    }
}

/// A daemon looks, and opens the catalog only when others have taken its place.
async fn comes_too_late(server: &S3Server, settings: Settings, manifests: fn(&str) -> bool, shards: u32) -> String {
    let gate = Gate::closed();
    let rule = server.faults().add(Rule::on(Op::Put, manifests).times(1), Fault::Held(gate.clone()));
    let late = tokio::spawn(Running::try_start(settings, Threads::Two));
    gate.arrived(1).await;
    rule.lift();
    let report = Command::start(alone(server), shards).join().await.unwrap().unwrap();
    assert_eq!(report.state, ReshardState::Done);
    gate.open();
    late.await.unwrap().err().expect("it answers for shards that are no more")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_looked_before_and_opens_after_ends() {
    let (server, stored) = stopped_store().await;
    let expected = contents(&server).await;

    let refused = comes_too_late(&server, alone(&server), |key| key.contains("esker/catalog/manifest/"), 2).await;
    println!("{refused}");
    let of_shard: fn(&str) -> bool = |key| key.contains(".1/catalog/manifest/");
    let refused = comes_too_late(&server, member_with(&server, "late", &MIXED), of_shard, 3).await;
    println!("{refused}");

    assert_same(&contents(&server).await, &expected, "after both");
    let daemon = member(&server, "a").await;
    assert_there(&daemon, &stored).await;
    stop([daemon]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_commands_the_second_one_does_it() {
    let (server, stored) = stopped_store().await;
    let expected = contents(&server).await;
    let mut told = vec![];
    for (number, keys) in [(0, files as fn(&str) -> bool), (3, files), (2, marks), (5, marks)] {
        let begin = server.objects().contents();
        let gate = Gate::closed();
        let rule = server.faults().add(Rule::everything(keys).after(number).times(1), Fault::Held(gate.clone()));
        let first = Command::start(alone(&server), 3);
        gate.arrived(1).await;
        rule.lift();

        let second = Command::start(alone(&server), 3).join().await.unwrap().unwrap();
        gate.open();
        let first = first.join().await.unwrap();

        assert_eq!(second.state, ReshardState::Done);
        // It is shut out, and says so, or finds that all is done.
        match &first {
            Ok(first) => assert!(matches!(first.state, ReshardState::Done | ReshardState::NothingToDo), "{first:?}"),
            Err(why) => told.push(why.clone()),
        }
        assert_same(&contents(&server).await, &expected, &format!("{number}: {first:?}"));
        let daemon = member(&server, "a").await;
        assert_there(&daemon, &stored).await;
        stop([daemon]).await;
        server.objects().put_back(&begin);
    }
    assert!(told.iter().any(|why| why.contains("another run of this command was faster")), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_still_runs_is_named_and_shut_out_by_force() {
    let server = S3Server::start().await;
    let daemon = member(&server, "a").await;
    put(&daemon.s3_client_of(BUCKET), "d/x", "kept").await;
    let wanted = ReshardOptions { shards: 2, force: false };
    let refused = reshard::run(&alone(&server), wanted, &nobody).await.unwrap_err();
    assert!(matches!(&refused, ReshardError::Members(who) if who.contains("a (http://")), "{refused}");
    let planned = reshard::plan(&alone(&server), 2, &nobody).await.unwrap();
    for told in [&refused.to_string(), &planned.notes[0]] {
        assert!(told.contains(": it answers)"), "{told}");
    }
    assert_eq!(get(&daemon.s3_client_of(BUCKET), "d/x").await, "kept");

    reshard::run(&alone(&server), ReshardOptions { force: true, ..wanted }, &nobody).await.unwrap();

    let client = daemon.s3_client_that_gives_up(BUCKET);
    eventually("it answers nothing any more", SOON, || async {
        client.put(&Path::from("d/y"), "lost".into()).await.is_err() && client.get(&Path::from("d/x")).await.is_err()
    })
    .await;
    let again = member(&server, "b").await;
    assert_eq!(get(&again.s3_client_of(BUCKET), "d/x").await, "kept");
    assert_eq!(again.client.cluster().await.unwrap().shards.len(), 2);
    stop([again]).await;
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_before_anything_is_given_up() {
    let (server, stored) = stopped_store().await;
    let before = server.objects().contents();
    for key in server.objects().keys(PREFIX).into_iter().filter(|key| files(key)) {
        let mut bytes = server.objects().get(&key).unwrap().to_vec();
        bytes[200] ^= 1;
        server.objects().set(&key, bytes.into());
    }

    let refused = reshard::run(&alone(&server), ReshardOptions { shards: 2, force: false }, &nobody).await.unwrap_err();

    let advice = chain(&refused);
    assert!(advice.contains("has other bytes than were written"), "{advice}");
    assert!(advice.contains("`esker cluster reshard --abandon`") && advice.contains("need no --shard"), "{advice}");
    // It can be followed, in this order.
    let verify = ["verify", "--read-data", "100"];
    assert_eq!(offline::esker(&server, &verify).await.0, Some(2));
    reshard::abandon(&alone(&server)).await.unwrap();
    let (code, output) = offline::esker(&server, &verify).await;
    assert_eq!(code, Some(1), "{}", offline::text(&output));
    server.objects().put_back(&before);
    let daemon = Running::start(alone(&server)).await;
    assert_there(&daemon, &stored).await;
    stop([daemon]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_there_are_named_before_anything_is_begun() {
    let (server, _) = stopped_store().await;
    reshard_to(&server, 2).await;
    let gone = server.objects().keys(PREFIX).into_iter().filter(|key| files(key)).max().unwrap();
    server.objects().remove(&gone);
    let keys = server.objects().keys(PREFIX);
    let name = &gone[gone.find("data/").unwrap()..];

    let planned = reshard::plan(&alone(&server), 3, &nobody).await.unwrap();
    let refused = reshard::run(&alone(&server), ReshardOptions { shards: 3, force: false }, &nobody).await.unwrap_err();

    assert!(planned.missing.iter().any(|missing| missing.contains(name)), "{name}: {:?}", planned.missing);
    assert!(refused.is_refusal() && refused.to_string().contains(name), "{refused}");
    assert_eq!(server.objects().keys(PREFIX), keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_directories_would_be_apart_is_named_before_anything_is_changed() {
    let server = S3Server::start().await;
    let daemon = Running::start(alone(&server)).await;
    let routing = Routing::over(4);
    let apart = (0..).map(|n| format!("f{n}")).find(|folder| {
        routing.of_key(BUCKET, &format!("{folder}/savepoint/x")) != routing.of_key(BUCKET, "meta/dir/x")
    });
    let dirs = [
        ("execution.checkpointing.dir".to_owned(), "s3://states/meta/dir".into()),
        ("execution.checkpointing.savepoint-dir".to_owned(), format!("s3://states/{}", apart.unwrap()).into()),
    ];
    let operators = Some(vec![JobOperator { id: "a".into(), parallelism: 1, ..JobOperator::default() }]);
    let job = COORDINATED.to_owned();
    let new = NewJob { job, coordinated: true, settings: Some(dirs.into()), operators, iterative: None };
    daemon.client.create(&new).await.unwrap();
    stop([daemon]).await;
    let keys = server.objects().keys(PREFIX);

    let refused = reshard::run(&alone(&server), ReshardOptions { shards: 4, force: false }, &nobody).await.unwrap_err();

    assert!(matches!(&refused, ReshardError::Obstacles(why) if why[0].contains(COORDINATED)), "{refused}");
    assert_eq!(server.objects().keys(PREFIX), keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_has_one_shard_and_nothing_is_no_store() {
    let folder = tempfile::tempdir().unwrap();
    let local = [("store.url".to_owned(), format!("file:{}", folder.path().display()))];
    let local = esker::config::Config::load_with(None, [], &local).unwrap().settings().unwrap();
    let refused = reshard::plan(&local, 2, &nobody).await.unwrap_err();
    assert!(matches!(refused, ReshardError::OneShard(_)) && refused.is_refusal(), "{refused}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let server = S3Server::start().await;
    for wrong in [0, 257] {
        assert!(matches!(reshard::plan(&alone(&server), wrong, &nobody).await, Err(ReshardError::Count(_))));
    }
    assert!(matches!(reshard::plan(&alone(&server), 2, &nobody).await, Err(ReshardError::Nothing(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_says_what_it_would_do_and_does_it() {
    let (server, _) = stopped_store().await;
    let (code, output) = offline::esker(&server, &["cluster", "reshard", "--shards", "2", "--json"]).await;
    let planned: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((code, planned["state"].as_str()), (Some(0), Some("planned")), "{}", offline::text(&output));
    assert_eq!(planned["to"]["shards"], 2);
    assert!(planned["transfers"][0]["segments"].as_u64().unwrap() > 0, "{planned}");
    let (code, output) = offline::esker(&server, &["verify"]).await;
    assert_eq!(code, Some(0), "{}", offline::text(&output));

    // It says something while storage takes its time.
    let gate = Gate::closed();
    let rule = server.faults().add(Rule::everything(files).times(1), Fault::Held(gate.clone()));
    let run = ["cluster", "reshard", "--shards", "2", "--run"];
    let slowly = async {
        gate.arrived(1).await;
        rule.lift();
        tokio::time::sleep(Duration::from_secs(5)).await;
        gate.open();
    };
    let ((code, output), ()) = tokio::join!(offline::esker(&server, &run), slowly);

    assert!(offline::text(&output).contains("the store has 2 shards: "), "{}", offline::text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("esker: "), "{}", offline::text(&output));
    assert_eq!(code, Some(0));
    for (shard, expected) in [("0", 0), ("1", 0), ("2", 2)] {
        let (code, output) = offline::esker(&server, &["verify", "--shard", shard, "--read-data", "100"]).await;
        assert_eq!(code, Some(expected), "{}", offline::text(&output));
    }
    let (code, output) = offline::esker(&server, &["cluster", "reshard", "--shards", "300", "--run"]).await;
    assert_eq!(code, Some(2), "{}", offline::text(&output));
    let (code, output) = offline::esker(&server, &["cluster", "reshard", "--abandon"]).await;
    assert_eq!(code, Some(2), "{}", offline::text(&output));
    assert!(offline::text(&output).contains("is not being changed: the store has 2 shards"));
}
