//! A job that goes on from a checkpoint of another shard, claimed or not, while owners die at each step; and buckets whose end was
//! begun by an owner that is gone.

use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::model::Routing;
use esker_client::wire::{EndRequest, JobEnd, RestoreJob, RestoreRequest, RestoredJob};
use esker_client::{Client, ClientError};
use http::Method;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::faults::{Fault, Gate, Keys, Op, Rule, log};
use crate::restore::all;
use crate::s3_server::S3Server;
use crate::shards::{SHARDS, api, balanced, get, owners, put, signed, start, status, three};
use crate::support::{Running, SOON, bytes_of, eventually, params};

/// Where the job is that is restored from, and where the other one would be.
const OLD: u32 = 1;
const NEW: u32 = 2;

fn log_of_first(key: &str) -> bool {
    log(key) && key.contains("shards/0/")
}

fn log_of_old(key: &str) -> bool {
    log(key) && key.contains("shards/1/")
}

fn log_of_new(key: &str) -> bool {
    log(key) && key.contains("shards/2/")
}

/// The id of a job in a shard.
fn job_in(shard: u32, name: &str) -> String {
    let mut groups = (0..).map(|n| format!("g{n}/x"));
    let group = groups.find(|group| Routing::over(SHARDS).of_job(group) == shard).unwrap();
    format!("{group}/{name}")
}

fn from(job: &str, checkpoint: Option<u64>, mode: &str) -> RestoreJob {
    RestoreJob { from: Some(job.to_owned()), checkpoint, mode: Some(mode.to_owned()), ..RestoreJob::default() }
}

/// A job with a completed checkpoint: its segments, in the order of their names.
async fn with_checkpoint(client: &Client, job: &str, checkpoint: u64) -> Vec<(String, Bytes)> {
    client.create_job(job).await.unwrap();
    client.begin(job, checkpoint).await.unwrap();
    let mut stored = vec![];
    for n in 0..5 {
        let bytes = bytes_of(checkpoint * 100 + n, 20_000);
        let of = esker_client::wire::PutParams { checkpoint: Some(checkpoint), name: Some(n.to_string()), ..params() };
        stored.push((client.put(job, &of, None, bytes.clone()).await.unwrap().segment, bytes));
    }
    client.complete(job, checkpoint).await.unwrap();
    stored
}

fn ids(restored: &RestoredJob) -> Vec<String> {
    let mut ids: Vec<String> = restored.segments.iter().map(|listed| listed.info.segment.clone()).collect();
    ids.sort();
    ids
}

fn ids_of(stored: &[(String, Bytes)]) -> Vec<String> {
    let mut ids: Vec<String> = stored.iter().map(|(id, _)| id.clone()).collect();
    ids.sort();
    ids
}

async fn assert_there(client: &Client, stored: &[(String, Bytes)]) {
    for (id, bytes) in stored {
        assert!(client.get(id).await.unwrap() == bytes, "{id}");
    }
}

fn status_of(error: &ClientError) -> Option<u16> {
    error.status().map(|status| status.as_u16())
}

async fn listed(client: &Client) -> Vec<String> {
    client.jobs().await.unwrap().into_iter().filter(|job| job.ended.is_none()).map(|job| job.job).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_claim_reads_a_checkpoint_of_another_shard_and_changes_nothing_there() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let old = job_in(OLD, "old");
    let stored = with_checkpoint(&daemons[0].client, &old, 4).await;
    let savepoint = 9;
    daemons[0].client.begin_savepoint(&old, savepoint).await.unwrap();
    daemons[0].client.complete(&old, savepoint).await.unwrap();

    for (n, daemon) in daemons.iter().enumerate() {
        let (client, new) = (&daemon.client, job_in(NEW, &format!("new{n}")));
        if n == 1 {
            // What it had begun is aborted.
            client.create_job(&new).await.unwrap();
            client.begin(&new, 2).await.unwrap();
        }
        let restored = client.restore_job(&new, &from(&old, Some(4), "no-claim")).await.unwrap();
        let again = client.restore_job(&new, &from(&old, Some(4), "no-claim")).await.unwrap();

        assert_eq!((&restored.job, restored.checkpoint, ids(&restored)), (&old, 4, ids_of(&stored)));
        assert_eq!(ids(&again), ids(&restored));
        let newest = client.restore_job(&new, &from(&old, None, "no-claim")).await.unwrap();
        assert_eq!(newest.checkpoint, savepoint);
        if n == 1 {
            assert_eq!(client.checkpoints(&new).await.unwrap()[0].state, esker_client::wire::CheckpointState::Aborted);
        }
        // They are the other job's, and cannot be reused.
        let reused = client.reuse(&new, 10, ids_of(&stored)).await.unwrap();
        assert_eq!(reused.refused.len(), stored.len(), "{reused:?}");
        with_checkpoint(client, &new, 11).await;
    }
    assert_there(&daemons[2].client, &stored).await;
    assert_eq!(daemons[1].client.latest_checkpoint(&old).await.unwrap().checkpoint, savepoint);
    // As in one shard: what is not there is no reason to make a job.
    let nobody = job_in(NEW, "nobody");
    for (wanted, expected, field) in [
        (from(&job_in(OLD, "none"), None, "no-claim"), 404, "from"),
        (from(&job_in(OLD, "none"), Some(1), "claim"), 404, "from"),
        (from(&old, Some(77), "no-claim"), 404, "checkpoint"),
        (from(&old, Some(77), "claim"), 404, "checkpoint"),
    ] {
        let body = serde_json::to_string(&wanted).unwrap();
        let path = format!("/v1/jobs/{}/restore", nobody.replace('/', "%2F"));
        let (status, text) = api(&daemons[0], Method::POST, &path, &body).await;
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, told["error"]["field"].as_str()), (expected, Some(field)), "{text}");
    }
    assert!(!listed(&daemons[0].client).await.contains(&nobody));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_claims_a_checkpoint_of_another_shard_goes_there_and_all_members_find_it() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let client = |n: usize| &daemons[n % 3].client;
    let (old, new) = (job_in(OLD, "old"), job_in(NEW, "new"));
    let stored = with_checkpoint(client(0), &old, 4).await;
    client(1).create_job(&new).await.unwrap();
    client(1).begin(&new, 1).await.unwrap();
    let begun = client(1).put(&new, &params(), None, bytes_of(1, 5000)).await.unwrap();

    let claimed = client(2).restore_job(&new, &from(&old, None, "claim")).await.unwrap();
    assert_eq!((&claimed.job, claimed.checkpoint, ids(&claimed)), (&new, 4, ids_of(&stored)));
    for n in 0..3 {
        let again = client(n).restore_job(&new, &from(&old, None, "claim")).await.unwrap();
        assert_eq!((&again.job, again.checkpoint, ids(&again)), (&new, 4, ids_of(&stored)));
        assert_there(client(n), &stored).await;
        assert_eq!(listed(client(n)).await.iter().filter(|job| **job == new).count(), 1);
        let space = client(n).space(Some("checkpoint"), Some(&new)).await.unwrap();
        assert!(space.rows.iter().any(|row| row.segments > 0), "{space:?}");
        let wanted = RestoreRequest { job: Some(new.clone()), checkpoint: Some(4), ..RestoreRequest::default() };
        assert_eq!(all(client(n).restore(&wanted).await.unwrap()).await.unwrap().len(), stored.len());
    }
    assert_eq!(
        status_of(&client(0).get(&begun.segment).await.unwrap_err()),
        Some(404),
        "it was begun, and is given up"
    );
    assert_eq!(status_of(&client(0).restore_job(&old, &from(&old, None, "claim")).await.unwrap_err()), Some(404));

    // It goes on there: what it has claimed is its own. The job before may end meanwhile.
    client(0).end_job(&old, &EndRequest { state: JobEnd::Finished, retention: None }).await.unwrap();
    client(1).create_job(&new).await.unwrap();
    client(1).begin(&new, 5).await.unwrap();
    let reused = client(2).reuse(&new, 5, ids_of(&stored)[..3].to_vec()).await.unwrap();
    assert!(reused.refused.is_empty(), "{reused:?}");
    client(0).complete(&new, 5).await.unwrap();
    client(1).subsume(&new, 4).await.unwrap();
    let kept = ids_of(&stored)[..3].to_vec();
    for (id, bytes) in &stored {
        match kept.contains(id) {
            true => assert!(client(2).get(id).await.unwrap() == bytes),
            false => assert_eq!(status_of(&client(2).get(id).await.unwrap_err()), Some(404)),
        }
    }

    // The next one claims from it, and goes to the same shard; it may be there already.
    let (third, fourth) = (job_in(3, "third"), job_in(OLD, "fourth"));
    let claimed = client(0).restore_job(&third, &from(&new, Some(5), "claim")).await.unwrap();
    assert_eq!((&claimed.job, ids(&claimed)), (&third, kept.clone()));
    let claimed = client(1).restore_job(&fourth, &from(&third, Some(5), "claim")).await.unwrap();
    assert_eq!((&claimed.job, ids(&claimed)), (&fourth, kept.clone()));
    let read = client(2).restore_job(&new, &from(&fourth, Some(5), "no-claim")).await.unwrap();
    assert_eq!((&read.job, ids(&read)), (&fourth, kept.clone()));

    // A job that was placed is there for good, also when it has ended and begins anew.
    client(0).end_job(&third, &EndRequest { state: JobEnd::Finished, retention: None }).await.unwrap();
    let anew = with_checkpoint(client(1), &third, 1).await;
    assert_there(client(2), &anew).await;
    assert_eq!(client(0).latest_checkpoint(&third).await.unwrap().checkpoint, 1);
    for daemon in daemons {
        daemon.shut_down().await.unwrap();
    }
    let alone = start(&server, "a").await;
    assert_eq!(alone.client.latest_checkpoint(&third).await.unwrap().checkpoint, 1);
    assert_eq!(alone.client.latest_checkpoint(&fourth).await.unwrap().checkpoint, 5);
    assert!(alone.client.verify().await.unwrap().faults.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_refused_leaves_both_jobs_as_they_were() {
    let server = S3Server::start().await;
    let daemons = three(&server).await;
    let client = &daemons[1].client;
    let (old, new) = (job_in(OLD, "old"), job_in(NEW, "new"));
    with_checkpoint(client, &old, 4).await;
    with_checkpoint(client, &old, 5).await;
    client.begin(&old, 6).await.unwrap();
    client.create_job(&new).await.unwrap();
    client.begin(&new, 1).await.unwrap();

    for (checkpoint, what) in [(4, "a newer one has completed"), (6, "it is not complete")] {
        let refused = client.restore_job(&new, &from(&old, Some(checkpoint), "claim")).await.unwrap_err();
        assert_eq!(status_of(&refused), Some(409), "{what}: {refused}");
    }
    // It is where it was: its checkpoint goes on.
    client.complete(&new, 1).await.unwrap();
    let refused = client.restore_job(&new, &from(&old, Some(5), "claim")).await.unwrap_err();
    assert_eq!(status_of(&refused), Some(409), "{refused}");
    assert!(refused.to_string().contains("another shard"), "{refused}");
    let read = client.restore_job(&new, &from(&old, Some(5), "no-claim")).await.unwrap();
    assert_eq!((&read.job, read.segments.len()), (&old, 5));
    assert_eq!(client.latest_checkpoint(&new).await.unwrap().checkpoint, 1);

    // One that is with what it has claimed stays there.
    let (third, other) = (job_in(3, "third"), job_in(0, "other"));
    client.restore_job(&third, &from(&old, Some(5), "claim")).await.unwrap();
    with_checkpoint(client, &other, 20).await;
    let refused = client.restore_job(&third, &from(&other, None, "claim")).await.unwrap_err();
    assert!(status_of(&refused) == Some(409) && refused.to_string().contains("has claimed"), "{refused}");
    assert_eq!(client.latest_checkpoint(&third).await.unwrap().checkpoint, 5);
    assert_eq!(client.latest_checkpoint(&other).await.unwrap().checkpoint, 20);
}

/// Repeats a request until it is answered well.
async fn until_answered(client: &Client, job: &str, wanted: &RestoreJob) -> RestoredJob {
    let begun = Instant::now();
    loop {
        match client.restore_job(job, wanted).await {
            Ok(restored) => return restored,
            Err(error) => assert!(begun.elapsed() < 2 * SOON, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_owners_die_at_each_step_is_carried_out_once_when_it_is_repeated() {
    let server = S3Server::start().await;
    let mut daemons: Vec<(&str, Running)> = ["a", "b", "c"].into_iter().zip(three(&server).await).collect();
    // Where the commit is that an owner dies with, and after how many others: the job is made known there, placed, and claims.
    let steps: [(u32, Keys, u64); 3] = [(OLD, log_of_old, 0), (NEW, log_of_new, 0), (OLD, log_of_old, 1)];
    let mut round = 0;
    for (shard, commits, skip) in steps {
        let held: [fn(Gate) -> Fault; 3] = [Fault::HeldThenRefused, Fault::AnswerHeld, Fault::Held];
        for fault in held {
            round += 1;
            let (old, new) = (job_in(OLD, &format!("old{round}")), job_in(NEW, &format!("new{round}")));
            let stored = with_checkpoint(&daemons[0].1.client, &old, 4).await;
            daemons[0].1.client.create_job(&new).await.unwrap();
            let known = owners(&status(&daemons[0].1).await);
            let victim = daemons.iter().position(|(id, _)| *id == known[&shard]).unwrap();
            let other = (victim + 1) % daemons.len();
            let gate = Gate::closed();
            let rule = server.faults().add(Rule::on(Op::Put, commits).after(skip).times(1), fault(gate.clone()));

            let (client, wanted, job) = (daemons[other].1.new_client(), from(&old, Some(4), "claim"), new.clone());
            let asked = tokio::spawn(async move { client.restore_job(&job, &wanted).await });
            gate.arrived(1).await;
            let (id, dead) = daemons.remove(victim);
            dead.kill().await;
            rule.lift();
            gate.open();
            let first = asked.await.unwrap();
            let client = &daemons[0].1.client;
            let claimed = until_answered(client, &new, &from(&old, Some(4), "claim")).await;

            println!("shard {shard} after {skip}: {:?}", first.as_ref().map(|_| ()).map_err(ToString::to_string));
            assert_eq!((&claimed.job, ids(&claimed)), (&new, ids_of(&stored)));
            assert_there(client, &stored).await;
            client.begin(&new, 5).await.unwrap();
            assert!(client.reuse(&new, 5, ids_of(&stored)).await.unwrap().refused.is_empty());
            client.complete(&new, 5).await.unwrap();
            assert_eq!(listed(client).await.iter().filter(|job| **job == new).count(), 1);
            assert!(client.checkpoints(&old).await.unwrap().iter().all(|checkpoint| checkpoint.checkpoint != 4));
            daemons.push((id, start(&server, id).await));
            let all: Vec<&str> = daemons.iter().map(|(id, _)| *id).collect();
            balanced(&daemons[0].1, &all).await;
        }
    }
    let (_, daemon) = &daemons[0];
    assert!(daemon.client.verify().await.unwrap().faults.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_whose_end_was_begun_ends_in_all_shards_though_the_first_owner_died() {
    let server = S3Server::start().await;
    let mut daemons: Vec<(&str, Running)> = ["a", "b", "c"].into_iter().zip(three(&server).await).collect();
    for (bucket, meanwhile) in [("ends", false), ("stays", true)] {
        let routing = Routing::over(SHARDS);
        let key_in = |shard: u32| {
            let mut keys = (0..).map(|n| format!("d{n}/x"));
            keys.find(|key| routing.of_key(bucket, key) == shard).unwrap()
        };
        let known = owners(&status(&daemons[0].1).await);
        let victim = daemons.iter().position(|(id, _)| *id == known[&0]).unwrap();
        let other = (victim + 1) % daemons.len();
        let client = daemons[other].1.s3_client_of(bucket);
        assert_eq!(signed(&client, Method::PUT).await, 200);
        for shard in 0..SHARDS {
            put(&client, &key_in(shard), "x").await;
            client.delete(&Path::from(key_in(shard))).await.unwrap();
        }
        let commits = |shard: u32| {
            let folder = format!("shards/{shard}/");
            server.faults().count(|logged| logged.op == Op::Put && log(&logged.key) && logged.key.contains(&folder))
        };
        // Deletes that were answered before they are durable are by now.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before: Vec<usize> = (0..SHARDS).map(commits).collect();

        // It is deleted in the first shard, whose owner never knows, and tells nobody.
        let gate = Gate::closed();
        let rule = server.faults().add(Rule::on(Op::Put, log_of_first).times(1), Fault::AnswerHeld(gate.clone()));
        let asked = {
            let client = client.clone();
            tokio::spawn(async move { signed(&client, Method::DELETE).await })
        };
        gate.arrived(1).await;
        let left = routing.of_key(bucket, &key_in(3));
        if meanwhile {
            put(&client, &key_in(left), "was answered").await;
        }
        let (id, dead) = daemons.remove(victim);
        dead.kill().await;
        rule.lift();
        gate.open();

        println!("the delete was answered {}", asked.await.unwrap());
        let client = daemons[0].1.s3_client_of(bucket);
        match meanwhile {
            false => {
                eventually("all shards have deleted it", 2 * SOON, || async {
                    (1..SHARDS).all(|shard| commits(shard) > before[shard as usize])
                })
                .await;
                assert_eq!(signed(&client, Method::HEAD).await, 404);
                for shard in 0..SHARDS {
                    let refused = client.put(&Path::from(key_in(shard)), "x".into()).await;
                    assert!(matches!(refused, Err(object_store::Error::NotFound { .. })), "{refused:?}");
                }
                // It is another one when it is created again, and stays.
                assert_eq!(signed(&client, Method::PUT).await, 200);
                put(&client, &key_in(3), "anew").await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(get(&client, &key_in(3)).await, "anew");
            }
            true => {
                eventually("it is there again", 2 * SOON, || async { signed(&client, Method::HEAD).await == 200 })
                    .await;
                assert_eq!(get(&client, &key_in(left)).await, "was answered");
                for shard in 0..SHARDS {
                    put(&client, &key_in(shard), "y").await;
                }
            }
        }
        daemons.push((id, start(&server, id).await));
        let all: Vec<&str> = daemons.iter().map(|(id, _)| *id).collect();
        balanced(&daemons[0].1, &all).await;
    }
}
