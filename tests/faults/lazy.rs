//! What is answered before it is durable, and a daemon that dies then: temporary names, and lazy deletes. Nothing else may be
//! touched by that.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use esker::runtime::Clock;
use futures::TryStreamExt;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{CopyOptions, Error, ObjectStore, ObjectStoreExt, PutMode};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::crashes::commits;
use crate::s3_server::S3Server;
use crate::support::{INLINE, Running, SIGNED, SOON, bytes_of, eventually, seed, settings};

const BUCKET: &str = "engines";
const JOB: &str = "d/0123456789abcdef0123456789abcdef";
const U: &str = "5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f";

/// As by default, and lazy in everything; what is lazy becomes durable by itself only after longer than a test waits.
const LAZY: [(&str, &str); 4] = [
    (INLINE, "20 kb"),
    ("merging.inline-group-max", "256 kb"),
    ("merging.delete-durability", "lazy"),
    ("merging.lazy-linger", "10 s"),
];

async fn start(server: &S3Server, changed: &[(&str, &str)]) -> Running {
    Running::start(settings(server, &[&SIGNED[..], &LAZY[..], changed].concat())).await
}

async fn server_daemon_and_client(changed: &[(&str, &str)]) -> (S3Server, Running, AmazonS3) {
    let server = S3Server::start().await;
    let daemon = start(&server, changed).await;
    let client = daemon.s3_client(BUCKET).await;
    (server, daemon, client)
}

/// Kills a daemon and starts another one.
async fn crash(server: &S3Server, daemon: Running) -> (Running, AmazonS3) {
    daemon.kill().await;
    let daemon = start(server, &[]).await;
    assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
    let client = daemon.s3_client_of(BUCKET);
    (daemon, client)
}

async fn put(client: &AmazonS3, key: &str, data: Bytes) {
    client.put(&Path::from(key), data.into()).await.unwrap();
}

async fn delete(client: &AmazonS3, key: &str) {
    client.delete(&Path::from(key)).await.unwrap();
}

async fn rename(client: &AmazonS3, from: &str, to: &str) -> Result<(), Error> {
    client.copy_opts(&Path::from(from), &Path::from(to), CopyOptions::default()).await
}

async fn get(client: &AmazonS3, key: &str) -> Option<Bytes> {
    match client.get(&Path::from(key)).await {
        Ok(found) => Some(found.bytes().await.unwrap()),
        Err(Error::NotFound { .. }) => None,
        Err(error) => panic!("{key}: {error}"),
    }
}

async fn listed(client: &AmazonS3) -> Vec<String> {
    let all: Vec<_> = client.list(None).try_collect().await.unwrap();
    let mut keys: Vec<String> = all.into_iter().map(|meta| meta.location.to_string()).collect();
    keys.sort();
    keys
}

fn temporary(number: u64) -> String {
    format!("q/state/0/{number}/.1.delta.{U}.TID{number}.tmp")
}

fn renamed(number: u64) -> String {
    format!("q/state/0/{number}/1.delta")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_object_is_there_for_everybody_and_costs_no_commit() {
    let (server, daemon, client) = server_daemon_and_client(&[]).await;
    let before = commits(&server);

    put(&client, &temporary(1), bytes_of(1, 1000)).await;

    assert_eq!(get(&client, &temporary(1)).await, Some(bytes_of(1, 1000)));
    assert_eq!(client.head(&Path::from(temporary(1))).await.unwrap().size, 1000);
    assert_eq!(listed(&client).await, [temporary(1)]);
    let part = client.get_range(&Path::from(temporary(1)), 10..20).await.unwrap();
    assert_eq!(part, bytes_of(1, 1000).slice(10..20));
    assert_eq!(commits(&server), before);
    // One that does not fit beside the catalog's records is stored like others.
    put(&client, &temporary(2), bytes_of(2, 300_000)).await;
    assert!(commits(&server) > before);
    let (_daemon, client) = crash(&server, daemon).await;
    assert_eq!(get(&client, &temporary(2)).await, Some(bytes_of(2, 300_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_object_that_a_crash_has_lost_fails_its_rename_and_nothing_else() {
    let (server, daemon, client) = server_daemon_and_client(&[]).await;
    put(&client, "q/metadata", bytes_of(1, 100)).await;
    put(&client, &temporary(2), bytes_of(2, 1000)).await;

    let (_daemon, client) = crash(&server, daemon).await;

    assert_eq!(listed(&client).await, ["q/metadata"]);
    let lost = rename(&client, &temporary(2), &renamed(2)).await;
    assert!(matches!(lost, Err(Error::NotFound { .. })), "{lost:?}");
    // The engine writes the file again.
    put(&client, &temporary(2), bytes_of(3, 1000)).await;
    rename(&client, &temporary(2), &renamed(2)).await.unwrap();
    assert_eq!(get(&client, &renamed(2)).await, Some(bytes_of(3, 1000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_is_one_commit_and_survives_whatever_comes() {
    let (server, daemon, client) = server_daemon_and_client(&[]).await;
    let before = commits(&server);

    put(&client, &temporary(1), bytes_of(1, 1000)).await;
    rename(&client, &temporary(1), &renamed(1)).await.unwrap();
    delete(&client, &temporary(1)).await;

    assert_eq!(commits(&server), before + 1);
    assert_eq!(listed(&client).await, [renamed(1)]);
    let (daemon, client) = crash(&server, daemon).await;
    assert_eq!(get(&client, &renamed(1)).await, Some(bytes_of(1, 1000)));
    // Its delete was the last, and goes with the next commit.
    assert_eq!(listed(&client).await, [temporary(1), renamed(1)]);
    delete(&client, &temporary(1)).await;
    put(&client, "q/metadata", bytes_of(2, 100)).await;
    let (_daemon, client) = crash(&server, daemon).await;
    assert_eq!(listed(&client).await, ["q/metadata".to_owned(), renamed(1)]);
    assert_eq!(get(&client, &renamed(1)).await, Some(bytes_of(1, 1000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_once_stores_temporary_names_like_others() {
    let (server, daemon, client) = server_daemon_and_client(&[("merging.temporary-names", "at-once")]).await;

    put(&client, &temporary(1), bytes_of(1, 1000)).await;
    let (daemon, client) = crash(&server, daemon).await;

    assert_eq!(get(&client, &temporary(1)).await, Some(bytes_of(1, 1000)));
    drop((daemon, client));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lazy_becomes_durable_by_itself_and_by_a_stop() {
    let (server, daemon, client) = server_daemon_and_client(&[("merging.lazy-linger", "100 ms")]).await;
    let before = commits(&server);
    put(&client, &temporary(1), bytes_of(1, 1000)).await;
    eventually("a commit of its own", SOON, || async { commits(&server) > before }).await;

    let (daemon, client) = crash(&server, daemon).await;
    assert_eq!(get(&client, &temporary(1)).await, Some(bytes_of(1, 1000)));
    delete(&client, &temporary(1)).await;
    put(&client, &temporary(2), bytes_of(2, 1000)).await;
    daemon.shut_down().await.unwrap();

    let daemon = start(&server, &[]).await;
    assert_eq!(listed(&daemon.s3_client_of(BUCKET)).await, [temporary(2)]);
}

fn state(number: u64) -> String {
    format!("{JOB}/chk-{number}/{U}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_undoes_lazy_deletes_from_the_last_one_on() {
    let (server, daemon, client) = server_daemon_and_client(&[]).await;
    for number in 1..=4 {
        put(&client, &state(number), bytes_of(number, 30_000)).await;
    }
    let before = commits(&server);

    delete(&client, &state(1)).await;
    assert_eq!((get(&client, &state(1)).await, commits(&server)), (None, before), "gone at once, for nothing");
    // Answered as durable after it: so both are.
    put(&client, "other/a", bytes_of(9, 100)).await;
    delete(&client, &state(2)).await;
    let keys = [state(3), format!("{JOB}/shared/{U}")].map(|key| Ok(Path::from(key)));
    let deleted: Vec<Path> = client.delete_stream(Box::pin(futures::stream::iter(keys))).try_collect().await.unwrap();
    assert_eq!(deleted.len(), 2);
    assert_eq!(listed(&client).await, [state(4), "other/a".to_owned()]);

    let (_daemon, client) = crash(&server, daemon).await;
    assert_eq!(listed(&client).await, [state(2), state(3), state(4), "other/a".to_owned()]);
    for number in 2..=4 {
        assert_eq!(get(&client, &state(number)).await, Some(bytes_of(number, 30_000)), "whole, though it was deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_over_what_was_deleted_lazily_is_what_is_there() {
    let (server, daemon, client) = server_daemon_and_client(&[]).await;
    for number in 1..=3 {
        put(&client, &state(number), bytes_of(number, 1000)).await;
        delete(&client, &state(number)).await;
    }

    put(&client, &state(1), bytes_of(11, 2000)).await;
    let created = client.put_opts(&Path::from(state(2)), bytes_of(12, 2000).into(), PutMode::Create.into()).await;
    created.unwrap();
    rename(&client, &state(1), &state(3)).await.unwrap();

    let (_daemon, client) = crash(&server, daemon).await;
    for (number, data) in [(1, 11), (2, 12), (3, 11)] {
        assert_eq!(get(&client, &state(number)).await, Some(bytes_of(data, 2000)), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conditional_create_that_a_crash_has_cut_short_meets_the_object_again() {
    let (server, daemon, client) = server_daemon_and_client(&[]).await;
    put(&client, &state(1), bytes_of(1, 1000)).await;
    delete(&client, &state(1)).await;

    let (_daemon, client) = crash(&server, daemon).await;

    let create = client.put_opts(&Path::from(state(1)), bytes_of(2, 1000).into(), PutMode::Create.into()).await;
    assert!(matches!(create, Err(Error::AlreadyExists { .. })), "{create:?}");
    delete(&client, &state(1)).await;
    client.put_opts(&Path::from(state(1)), bytes_of(2, 1000).into(), PutMode::Create.into()).await.unwrap();
    assert_eq!(get(&client, &state(1)).await, Some(bytes_of(2, 1000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_of_other_keys_are_durable_when_they_are_answered() {
    let (server, daemon, client) = server_daemon_and_client(&[]).await;
    let savepoint = format!("sp/savepoint-0a1b2c-0123456789ab/{U}");
    let others = [savepoint.as_str(), "q/offsets/7", "q/commits/7", "pictures/cat.png"];
    for key in others {
        put(&client, key, bytes_of(1, 1000)).await;
    }

    for key in others {
        let before = commits(&server);
        delete(&client, key).await;
        assert!(commits(&server) > before, "{key}");
    }

    let (_daemon, client) = crash(&server, daemon).await;
    assert_eq!(listed(&client).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_shut_out_answers_lazily_for_a_moment_and_changes_nothing() {
    let (server, old, at_old) = server_daemon_and_client(&[("merging.lazy-linger", "300 ms")]).await;
    put(&at_old, &state(1), bytes_of(1, 1000)).await;

    let new = start(&server, &[]).await;
    let at_new = new.s3_client_of(BUCKET);
    // It does not know yet.
    delete(&at_old, &state(1)).await;
    put(&at_old, &temporary(2), bytes_of(2, 1000)).await;

    tokio::time::timeout(SOON, old.lost().cancelled()).await.expect("its next commit is refused");
    assert_eq!(listed(&at_new).await, [state(1)]);
    assert_eq!(get(&at_new, &state(1)).await, Some(bytes_of(1, 1000)));
    let at_old = old.s3_client_that_gives_up(BUCKET);
    assert!(at_old.put(&Path::from(temporary(3)), bytes_of(3, 1000).into()).await.is_err());
}

/// What a writer has renamed, and what it does not know.
#[derive(Default)]
struct Ledger {
    answered: BTreeMap<String, Bytes>,
    deleted: Vec<String>,
    in_doubt: Vec<String>,
}

/// Renames files, and deletes some of them, until the daemon ends.
async fn write_and_rename(client: AmazonS3, first: u64, ledger: &Mutex<Ledger>) {
    for number in first.. {
        let (from, to, data) =
            (temporary(number), renamed(number), bytes_of(number, 500 + (number % 5) as usize * 9000));
        ledger.lock().in_doubt.push(to.clone());
        let written = async {
            client.put(&Path::from(from.as_str()), data.clone().into()).await?;
            client.copy_opts(&Path::from(from.as_str()), &Path::from(to.as_str()), CopyOptions::default()).await?;
            ledger.lock().answered.insert(to.clone(), data);
            client.delete(&Path::from(from.as_str())).await?;
            if number.is_multiple_of(3) {
                ledger.lock().answered.remove(&to);
                ledger.lock().deleted.push(to.clone());
                client.delete(&Path::from(to.as_str())).await?;
            }
            Ok::<(), Error>(())
        };
        if written.await.is_err() {
            return;
        }
        ledger.lock().in_doubt.pop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_renamed_is_there_whenever_the_daemon_is_killed() {
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    let begun = Clock::instant();
    let server = S3Server::start().await;
    let ledgers: Vec<Mutex<Ledger>> = (0..4).map(|_| Mutex::default()).collect();
    let mut daemon = start(&server, &[]).await;
    drop(daemon.s3_client(BUCKET).await);
    let mut rounds = 0;
    while rounds < 10 && begun.elapsed() < Duration::from_secs(20) {
        rounds += 1;
        let client = daemon.s3_client_that_gives_up(BUCKET);
        let writers = ledgers.iter().enumerate().map(|(writer, ledger)| {
            write_and_rename(client.clone(), rounds * 100_000 + writer as u64 * 10_000, ledger)
        });
        let wanted = commits(&server) + dice.random_range(1..20);
        let kill = async {
            eventually("the backend gets commits", SOON, || async { commits(&server) >= wanted }).await;
            daemon.kill().await;
        };

        tokio::join!(futures::future::join_all(writers), kill);

        let linger = if dice.random_bool(0.5) { "20 ms" } else { "10 s" };
        daemon = start(&server, &[("merging.lazy-linger", linger)]).await;
        assert_eq!(daemon.inconsistencies().await, Vec::<String>::new());
        let client = daemon.s3_client_of(BUCKET);
        for ledger in &ledgers {
            let answered = ledger.lock().answered.clone();
            for (key, data) in answered {
                assert!(get(&client, &key).await == Some(data), "{key} was renamed");
            }
        }
    }
    // What is there beside it was deleted, or its writer was not answered, or it is temporary.
    let mut known = vec![];
    for ledger in &ledgers {
        let ledger = ledger.lock();
        known.extend(ledger.answered.keys().chain(&ledger.deleted).chain(&ledger.in_doubt).cloned());
    }
    let client = daemon.s3_client_of(BUCKET);
    let mut strange = listed(&client).await;
    strange.retain(|key| !key.ends_with(".tmp") && !known.contains(key));
    assert_eq!(strange, Vec::<String>::new());
    println!("{rounds} crashes, {} renamed", ledgers.iter().map(|ledger| ledger.lock().answered.len()).sum::<usize>());
}
