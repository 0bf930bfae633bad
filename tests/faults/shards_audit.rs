//! Checkpoints of Flink that name objects of other shards: compared with them, and nothing that they name is an orphan, whichever
//! shard does not answer.

use std::collections::{BTreeMap, BTreeSet};

use esker::cluster::upkeep;
use esker::model::Routing;
use esker_client::wire::{AuditParams, AuditedCheckpoint, OrphanLine, OrphansParams};
use http::Method;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use crate::s3_server::{BUCKET as STORE_BUCKET, S3Server};
use crate::shards::{SHARDS, api, balanced, member_with};
use crate::support::{PREFIX, Running, SOON, eventually, settings};

const BUCKET: &str = "state";
const JOB: &str = "flink/0123456789abcdef0123456789abcdef";
const METADATA: &[u8] = include_bytes!("../data/flink-metadata/flink-2.3-v6.bin");
const NAMES: &str = include_str!("../data/flink-metadata/flink-2.3-v6.txt");

fn shard_of(key: &str) -> u32 {
    Routing::over(SHARDS).of_key(BUCKET, key)
}

/// The folder of a job whose shard is neither the first one nor that of [`JOB`].
fn other_job() -> String {
    let mut folders = (0..).map(|n| format!("flink/{n:032x}"));
    folders.find(|folder| ![0, shard_of(&format!("{JOB}/x"))].contains(&shard_of(&format!("{folder}/x")))).unwrap()
}

/// What the sample names, if it is checkpoint 7 of the job in `folder`, and the bytes that are needed; whether [`JOB`] is named for it.
fn named(folder: &str) -> BTreeMap<String, (usize, bool)> {
    let mut objects = BTreeMap::new();
    for line in NAMES.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (key, absolute) = match fields[0] {
            "absolute" => (fields[1].strip_prefix("s3://state/").unwrap().to_owned(), true),
            _ => (format!("{folder}/chk-7/{}", fields[1]), false),
        };
        let end = fields[2].parse::<usize>().unwrap() + fields[3].parse::<usize>().unwrap();
        let needed = objects.entry(key).or_insert((0, absolute));
        needed.0 = end.max(needed.0);
    }
    objects
}

/// Under exactly this key.
async fn put(client: &AmazonS3, key: &str, bytes: impl Into<PutPayload>) {
    client.put(&Path::parse(key).unwrap(), bytes.into()).await.unwrap();
}

async fn member(server: &S3Server, id: &str) -> Running {
    Running::start(member_with(server, id, &[("server.buckets", BUCKET)])).await
}

/// Two jobs whose checkpoint 7 names the same objects of the first one, and others of their own.
async fn two_jobs(client: &AmazonS3, other: &str) {
    for folder in [JOB, other] {
        for (key, (len, _)) in named(folder) {
            put(client, &key, vec![7; len]).await;
        }
    }
    for folder in [JOB, other] {
        put(client, &format!("{folder}/chk-7/_metadata"), METADATA).await;
    }
}

async fn audit(daemon: &Running, params: AuditParams) -> BTreeMap<String, AuditedCheckpoint> {
    let mut params = AuditParams { limit: Some(1), ..params };
    let mut found = BTreeMap::new();
    loop {
        let page = daemon.client.audit(&params).await.unwrap();
        for checkpoint in page.checkpoints {
            let twice = found.insert(checkpoint.folder.clone(), checkpoint);
            assert!(twice.is_none(), "{twice:?}");
        }
        params.after = page.next;
        if params.after.is_none() {
            return found;
        }
    }
}

async fn looked_at(daemons: &[Running], outcome: &str) -> f64 {
    let mut sum = 0.0;
    for daemon in daemons {
        let text = daemon.client.metrics().await.unwrap();
        let name = format!("esker_checkpoint_audits_total{{outcome=\"{outcome}\"}} ");
        let found = text.lines().find_map(|line| line.strip_prefix(&name));
        sum += found.map_or(0.0, |value| value.parse::<f64>().unwrap());
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_compared_with_objects_of_all_shards() {
    let server = S3Server::start().await;
    let daemons = [member(&server, "a").await, member(&server, "b").await, member(&server, "c").await];
    balanced(&daemons[0], &["a", "b", "c"]).await;
    let (client, other) = (daemons[1].s3_client_of(BUCKET), other_job());
    two_jobs(&client, &other).await;

    eventually("both were looked at", SOON, || async { looked_at(&daemons, "complete").await == 2.0 }).await;
    assert_eq!(looked_at(&daemons, "incomplete").await, 0.0);
    for daemon in &daemons {
        let found = audit(daemon, AuditParams::default()).await;
        assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from([JOB, other.as_str()]));
        for (folder, checkpoint) in &found {
            assert_eq!((checkpoint.missing, checkpoint.elsewhere), (0, 0), "{checkpoint:?}");
            assert_eq!(checkpoint.objects, named(folder).len() as u64);
        }
    }

    // One that is gone is missed by both, one that is too short, too.
    let objects = named(&other);
    let of_job: Vec<&String> =
        objects.iter().filter(|(_, (len, absolute))| *absolute && *len > 1).map(|(key, _)| key).collect();
    client.delete(&Path::parse(of_job[0]).unwrap()).await.unwrap();
    put(&client, of_job[1], vec![7; 1]).await;
    let found = audit(&daemons[2], AuditParams { bucket: Some(BUCKET.to_owned()), ..AuditParams::default() }).await;
    for (folder, checkpoint) in &found {
        let mut missing: Vec<_> = checkpoint.missing_objects.iter().map(|object| (&object.key, object.len)).collect();
        missing.sort();
        let mut expected = vec![(of_job[0], None), (of_job[1], Some(1))];
        expected.sort();
        assert_eq!(missing, expected, "{folder}");
    }
    // The operator is told when it arrives.
    put(&client, &format!("{other}/chk-8/_metadata"), METADATA).await;
    eventually("it was looked at", SOON, || async { looked_at(&daemons, "incomplete").await == 1.0 }).await;
    let with_names =
        AuditParams { names: Some(true), job: Some(format!("{BUCKET}/{other}")), ..AuditParams::default() };
    let mut page = daemons[0].client.audit(&with_names).await.unwrap();
    while page.checkpoints.is_empty() {
        assert!(page.next.is_some(), "it is in no shard");
        let next = AuditParams { after: page.next, ..with_names.clone() };
        page = daemons[0].client.audit(&next).await.unwrap();
    }
    assert!(page.checkpoints[0].named.iter().any(|part| part.key == *of_job[0]), "{page:?}");

    for (path, expected) in [
        ("/v1/audit?bucket=none", 404),
        ("/v1/audit?after=nonsense", 400),
        ("/v1/audit?after=state%2Fa", 400),
        ("/v1/audit?after=3%3Anonsense", 400),
        ("/v1/orphans?bucket=none", 404),
    ] {
        assert_eq!(api(&daemons[0], Method::GET, path, "").await.0, expected, "{path}");
    }
}

/// Orphans, and how many were deleted; `None` if the answer has no end, with why.
async fn orphans(daemon: &Running, delete: bool) -> Result<(BTreeSet<String>, u64), String> {
    let params =
        OrphansParams { older_than_ms: Some(0), risk_running_checkpoints: Some(true), ..OrphansParams::default() };
    let lines = match delete {
        true => daemon.client.delete_orphans(&params).await,
        false => daemon.client.orphans(&params).await,
    };
    let (mut lines, mut found) = (lines.map_err(|error| error.to_string())?, BTreeSet::new());
    while let Some(line) = lines.next().await.map_err(|error| error.to_string())? {
        match line {
            OrphanLine::Orphan(orphan) => assert!(found.insert(orphan.key)),
            OrphanLine::End(end) => return Ok((found, end.deleted)),
            OrphanLine::Broken(why) => return Err(why),
            OrphanLine::Unreadable(metadata) => panic!("{metadata:?}"),
            OrphanLine::Kept(_) | OrphanLine::Job(_) => {}
        }
    }
    Err("no end".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_checkpoint_in_any_shard_names_is_no_orphan_and_nothing_is_deleted_while_a_shard_does_not_answer() {
    let server = S3Server::start().await;
    let first = member(&server, "a").await;
    let (client, other) = (first.s3_client_of(BUCKET), other_job());
    let left = [format!("{JOB}/shared/left"), format!("{other}/shared/left")];
    for key in &left {
        put(&client, key, "left").await;
    }
    two_jobs(&client, &other).await;
    // The first job has gone on, and names none of it any more: only the checkpoint of the other one does.
    client.delete(&Path::from(format!("{JOB}/chk-7/_metadata"))).await.unwrap();
    let at = METADATA.windows(4).rposition(|window| window == [0xac, 0xed, 0, 5]).unwrap();
    let empty = [&METADATA[..8], &9_i64.to_be_bytes()[..], &[0; 8][..], &METADATA[at..]].concat();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    put(&client, &format!("{JOB}/chk-9/_metadata"), empty).await;
    let all: BTreeSet<String> = named(JOB).into_keys().chain(named(&other).into_keys()).collect();
    let needed: BTreeSet<String> = named(&other).into_keys().collect();
    let expected: BTreeSet<String> = all.difference(&needed).chain(&left).cloned().collect();

    assert_eq!(orphans(&first, false).await.unwrap(), (expected.clone(), 0));
    first.shut_down().await.unwrap();

    // The shard of the checkpoint that names them is not served.
    let name = format!("esker/shards/{}/catalog/FORMAT", shard_of(&format!("{other}/x")));
    let format = server.objects().get(&name).unwrap();
    server.objects().set(&name, "nothing that can be read".into());
    let second = member(&server, "a").await;
    let there =
        async |daemon: &Running, key: &str| daemon.s3_client_of(BUCKET).head(&Path::parse(key).unwrap()).await.is_ok();
    for delete in [false, true] {
        let refused = orphans(&second, delete).await.unwrap_err();
        assert!(!refused.contains("no end"), "{refused}");
    }
    let in_others = all.iter().chain(&left).filter(|key| shard_of(key) != shard_of(&format!("{other}/x")));
    for key in in_others {
        assert!(there(&second, key).await, "{key} was deleted");
    }
    second.shut_down().await.unwrap();

    server.objects().set(&name, format);
    let daemons = [member(&server, "a").await, member(&server, "b").await];
    balanced(&daemons[0], &["a", "b"]).await;
    assert_eq!(orphans(&daemons[1], true).await.unwrap(), (expected.clone(), expected.len() as u64));
    for key in &all {
        assert_eq!(there(&daemons[0], key).await, needed.contains(key), "{key}");
    }
    assert_eq!(orphans(&daemons[0], true).await.unwrap(), (BTreeSet::new(), 0));
    let found = audit(&daemons[1], AuditParams::default()).await;
    assert!(found.values().all(|checkpoint| checkpoint.missing == 0), "{found:?}");

    // A daemon that has one shard by itself cannot tell.
    for daemon in daemons {
        daemon.shut_down().await.unwrap();
    }
    upkeep::dissolve(&member_with(&server, "a", &[]), false).await.unwrap();
    let url = format!("s3://{STORE_BUCKET}/{PREFIX}/shards/{}", shard_of(&format!("{JOB}/x")));
    let alone = Running::start(settings(&server, &[("store.url", &url)])).await;
    for delete in [false, true] {
        let refused = orphans(&alone, delete).await.unwrap_err();
        assert!(refused.contains("of 4 alone"), "{refused}");
    }
    assert!(alone.client.audit(&AuditParams::default()).await.unwrap().next.is_none());
}
