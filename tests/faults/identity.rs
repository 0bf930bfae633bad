//! A daemon on a prefix that is not the store that its catalog belongs to, and recovery of many files at once.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::crashes::put_held;
use crate::faults::{Fault, Gate, Op, Rule, data};
use crate::s3_server::{BUCKET, S3Server};
use crate::support::{
    PREFIX, Running, SOON, Threads, Written, assert_exactly, assert_readable, create_job, data_files, put, settings,
};

/// A daemon with its catalog under a prefix of its own, and what it was answered.
async fn catalog_elsewhere() -> (S3Server, Running, Vec<Written>, String) {
    let server = S3Server::start().await;
    let url = format!("s3://{BUCKET}/elsewhere");
    let daemon = Running::start(settings(&server, &[("catalog.url", &url)])).await;
    create_job(&daemon.client).await;
    let mut written = vec![];
    for seed in 0..5 {
        written.push(put(&daemon.client, seed, 1000).await.unwrap());
    }
    (server, daemon, written, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_prefix_for_one_start_shuts_nobody_out_and_nothing_is_written_there() {
    let (server, daemon, mut written, url) = catalog_elsewhere().await;
    let wrong = format!("s3://{BUCKET}/wrong");
    let identity = server.objects().get(&format!("{PREFIX}/ESKER")).unwrap();
    let identity = String::from_utf8(identity.to_vec()).unwrap();
    let id = identity.split('"').nth(3).unwrap();

    for _ in 0..2 {
        let changed = [("catalog.url", url.as_str()), ("store.url", wrong.as_str())];
        let refused = Running::try_start(settings(&server, &changed), Threads::Two).await.err().unwrap();
        assert!(refused.contains(id) && refused.contains("wrong/ESKER"), "{refused}");
        assert_eq!(server.objects().keys("wrong"), Vec::<String>::new());
        // The healthy owner has not lost its catalog.
        let seed = 100 + written.len() as u64;
        written.push(put(&daemon.client, seed, 1000).await.unwrap());
    }

    daemon.kill().await;
    let changed = [("catalog.url", url.as_str()), ("store.url", wrong.as_str())];
    assert!(Running::try_start(settings(&server, &changed), Threads::Two).await.is_err());
    assert_eq!(server.objects().keys("wrong"), Vec::<String>::new());
    let daemon = Running::start(settings(&server, &[("catalog.url", &url)])).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_without_its_first_word_of_the_store_is_refused_over_used_data() {
    let (server, daemon, written, url) = catalog_elsewhere().await;
    daemon.kill().await;
    let files = data_files(&server);

    // Beside the data, where none is.
    let refused = Running::try_start(settings(&server, &[]), Threads::Two).await.err().unwrap();

    assert!(refused.contains("esker rebuild") && refused.contains("catalog.url"), "{refused}");
    assert_eq!(data_files(&server), files);
    assert!(server.objects().keys(&format!("{PREFIX}/catalog")).is_empty());
    let daemon = Running::start(settings(&server, &[("catalog.url", &url)])).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_was_restored_from_an_older_copy_is_refused_and_deletes_nothing() {
    let (server, daemon, mut written, url) = catalog_elsewhere().await;
    daemon.shut_down().await.unwrap();
    let catalog = |server: &S3Server| -> BTreeMap<String, Bytes> {
        let keys = server.objects().keys("elsewhere/");
        keys.into_iter().map(|key| (key.clone(), server.objects().get(&key).unwrap())).collect()
    };
    let replace = |with: &BTreeMap<String, Bytes>| {
        server.objects().keys("elsewhere/").iter().for_each(|key| server.objects().remove(key));
        with.iter().for_each(|(key, bytes)| server.objects().insert(key, bytes.clone()));
    };
    let older = catalog(&server);
    let daemon = Running::start(settings(&server, &[("catalog.url", &url)])).await;
    for seed in 5..15 {
        written.push(put(&daemon.client, seed, 1000).await.unwrap());
    }
    daemon.kill().await;
    let newest = catalog(&server);
    let files = data_files(&server);
    replace(&older);

    for _ in 0..2 {
        let refused =
            Running::try_start(settings(&server, &[("catalog.url", &url)]), Threads::Two).await.err().unwrap();
        assert!(refused.contains("older than its data"), "{refused}");
    }

    assert_eq!(data_files(&server), files);
    replace(&newest);
    let daemon = Running::start(settings(&server, &[("catalog.url", &url)])).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_file_that_is_missing_refuses_the_start() {
    let (server, daemon, written, url) = catalog_elsewhere().await;
    // In order, so that the catalog knows all of them to be durable.
    daemon.shut_down().await.unwrap();
    let key = crate::support::object_key(written[0].info.file.as_ref().unwrap());
    let bytes = server.objects().get(&key).unwrap();
    server.objects().remove(&key);

    let refused = Running::try_start(settings(&server, &[("catalog.url", &url)]), Threads::Two).await.err().unwrap();

    assert!(refused.contains("--drop-lost") && refused.contains(written[0].info.file.as_ref().unwrap()), "{refused}");
    assert!(server.objects().get(&key).is_none(), "its name was taken");
    server.objects().insert(&key, bytes);
    let daemon = Running::start(settings(&server, &[("catalog.url", &url)])).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uncertain_files_are_looked_at_side_by_side() {
    const FILES: u64 = 8;
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[])).await;
    create_job(&daemon.client).await;
    let kept = put(&daemon.client, 0, 1000).await.unwrap();
    let mut held = vec![];
    for number in 1..=FILES {
        held.push(put_held(&server, &daemon, number, 1, Fault::HeldThenRefused).await);
    }
    daemon.kill().await;
    let claims = Gate::closed();
    server.faults().add(Rule::on(Op::Put, data).times(FILES), Fault::Held(claims.clone()));

    let starting = tokio::spawn(Running::try_start(settings(&server, &[]), Threads::Two));

    // One after the other, the second would not come before the first had its answer.
    tokio::time::timeout(SOON, claims.arrived(FILES)).await.unwrap();
    claims.open();
    let daemon = starting.await.unwrap().unwrap();
    for (gate, put) in held {
        gate.open();
        assert!(put.await.unwrap().is_err());
    }
    assert_readable(&daemon.client, std::slice::from_ref(&kept)).await;
    assert_exactly(&server, &daemon, &[kept]).await;
}
