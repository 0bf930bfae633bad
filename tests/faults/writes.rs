//! Writing to a store that loses answers, refuses and resets: answered once, stored once.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::StatusCode;

use crate::faults::{Fault, Gate, Keys, Logged, Op, Rule, any, data, log};
use crate::s3_server::S3Server;
use crate::support::{
    INLINE, JOB, Running, SLOW_BACKEND, SOON, Written, assert_exactly, bytes_of, data_files, eventually, listed,
    object_key, params, put, put_until_answered, seed, server_and_daemon, settings,
};

/// Puts `count` segments, each from a task of its own, all at once.
async fn put_at_once(daemon: &Running, count: u64, len: usize) -> Vec<Written> {
    let puts: FuturesUnordered<_> = (0..count)
        .map(|seed| {
            let client = daemon.client.clone();
            tokio::spawn(async move { put_until_answered(&client, seed, len, SOON).await.0 })
        })
        .collect();
    puts.map(Result::unwrap).collect().await
}

fn writes_of(server: &S3Server) -> usize {
    server.faults().count(|logged: &Logged| logged.op.writes())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_is_read_back_whole_and_in_part_and_by_any_s3_client() {
    let (server, daemon) = server_and_daemon(&[]).await;

    let written = put(&daemon.client, 1, 100_000).await.unwrap();

    let part = daemon.client.get_range(&written.info.segment, 50_000..50_010).await.unwrap();
    assert_eq!(part, written.data.slice(50_000..50_010));
    let file = server.objects().get(&object_key(written.info.file.as_ref().unwrap())).unwrap();
    let place = written.info.offset as usize..(written.info.offset + written.info.len) as usize;
    assert_eq!(file.slice(place), written.data, "the handle does not lead to the bytes");
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_survive_a_restart() {
    for inline in ["0", "20 kb"] {
        let (server, daemon) = server_and_daemon(&[(INLINE, inline)]).await;
        let written = put_at_once(&daemon, 20, 500).await;
        daemon.shut_down().await.unwrap();

        let daemon = Running::start(settings(&server, &[(INLINE, inline)])).await;

        assert_exactly(&server, &daemon, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_segments_become_few_backend_writes() {
    for inline in ["0", "20 kb"] {
        // Longer than 257 tasks of a busy machine are apart: a file and its commit, and perhaps a group before it.
        let waits = [(INLINE, inline), ("merging.linger-min", "500 ms"), ("merging.linger-max", "5 s")];
        let (server, daemon) = server_and_daemon(&waits).await;
        server.faults().set_latency(SLOW_BACKEND);
        let known = put(&daemon.client, 1_000_000, 30_000).await.unwrap();
        let before = writes_of(&server);

        let mut written = put_at_once(&daemon, 257, 2000).await;

        let writes = writes_of(&server) - before;
        assert!(writes <= 5, "{writes} backend writes for 257 segments, inline below {inline}");
        written.push(known);
        server.faults().set_latency(Duration::ZERO);
        assert_exactly(&server, &daemon, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_keep_writing_share_backend_writes() {
    let (server, daemon) = server_and_daemon(&[]).await;
    server.faults().set_latency(Duration::from_millis(20));
    let before = writes_of(&server);

    let rounds: FuturesUnordered<_> = (0..32u64)
        .map(|writer| {
            let client = daemon.client.clone();
            tokio::spawn(async move {
                let mut written = vec![];
                for round in 0..8 {
                    written.push(put(&client, writer * 100 + round, 1000).await.unwrap());
                }
                written
            })
        })
        .collect();
    let written: Vec<Written> = rounds.flat_map(|written| futures::stream::iter(written.unwrap())).collect().await;

    let writes = writes_of(&server) - before;
    assert!(writes * 4 <= written.len(), "{writes} backend writes for {} segments", written.len());
    assert_exactly(&server, &daemon, &written).await;
}

/// One put whose backend write is hit by `fault` once: answered, stored once, and a repeat gets the same handle.
async fn one_put_is_hit(keys: Keys, fault: Fault, inline: &str) {
    let (server, daemon) = server_and_daemon(&[(INLINE, inline)]).await;
    let hit = server.faults().add(Rule::on(Op::Put, keys).times(1), fault.clone());

    let first = put(&daemon.client, 1, 1000).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    let files = data_files(&server);
    let repeat = put(&daemon.client, 1, 1000).await.unwrap();

    assert_eq!(hit.hits(), 1, "{fault:?} did not happen");
    assert_eq!(files, first.info.file.iter().map(|file| object_key(file)).collect::<Vec<_>>(), "{fault:?}");
    assert_eq!(repeat.info.handle, first.info.handle, "{fault:?}: the repeat is another segment");
    assert_exactly(&server, &daemon, std::slice::from_ref(&first)).await;
    daemon.kill().await;
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, std::slice::from_ref(&first)).await;
    assert_eq!(put(&daemon.client, 1, 1000).await.unwrap().info.handle, first.info.handle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_data_put_is_repaired() {
    one_put_is_hit(data, Fault::AckLost, "0").await;
    one_put_is_hit(data, Fault::AckReplaced, "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_commit_is_repaired() {
    for inline in ["0", "20 kb"] {
        one_put_is_hit(log, Fault::AckLost, inline).await;
        one_put_is_hit(log, Fault::AckReplaced, inline).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_or_reset_write_is_repeated() {
    for keys in [data as Keys, log] {
        for fault in [Fault::Refused, Fault::SlowDown, Fault::ResetBeforeBody, Fault::ResetAfterBody] {
            one_put_is_hit(keys, fault, "0").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_hangs_is_given_up_and_its_late_arrival_changes_nothing() {
    let (server, daemon) =
        server_and_daemon(&[("store.request-timeout", "500 ms"), ("store.retry-timeout", "5 s")]).await;
    let gate = Gate::closed();
    server.faults().add(Rule::on(Op::Put, data).times(1), Fault::Held(gate.clone()));

    let written = put(&daemon.client, 1, 1000).await.unwrap();

    let refused = |logged: &Logged| logged.was(Op::Put, data, StatusCode::PRECONDITION_FAILED);
    gate.open();
    eventually("the late put is refused", SOON, || async { server.faults().count(refused) == 1 }).await;
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_slows_writers_down_and_every_segment_is_stored_once() {
    let (server, daemon) = server_and_daemon(&[]).await;
    server.faults().add(Rule::on(Op::Put, data).times(12), Fault::Refused);
    server.faults().add(Rule::on(Op::Put, log).times(12), Fault::SlowDown);

    let written = put_at_once(&daemon, 64, 3000).await;

    assert_exactly(&server, &daemon, &written).await;
    daemon.shut_down().await.unwrap();
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_on_the_wire_neither_lose_nor_double_a_segment() {
    let seed = seed();
    let (server, daemon) = server_and_daemon(&[]).await;
    server.faults().seed(seed);
    for fault in [
        Fault::AckLost,
        Fault::AckReplaced,
        Fault::Refused,
        Fault::ResetBeforeBody,
        Fault::ResetAfterBody,
        Fault::SlowDown,
    ] {
        server.faults().add(Rule::everything(any).chance(0.04), fault);
    }

    let mut written = vec![];
    for round in 0..10 {
        let puts = (0..16).map(|n| put_until_answered(&daemon.client, round * 100 + n, 2000, SOON));
        written.extend(futures::future::join_all(puts).await.into_iter().map(|(written, _)| written));
    }

    server.faults().clear();
    assert_exactly(&server, &daemon, &written).await;
    daemon.kill().await;
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_whose_data_cannot_be_written_is_refused_and_nothing_refers_to_it() {
    let (server, daemon) = server_and_daemon(&[("store.retry-timeout", "500 ms")]).await;
    let kept = put(&daemon.client, 1, 1000).await.unwrap();
    let outage = server.faults().add(Rule::on(Op::Put, data), Fault::Refused);

    let refused = put(&daemon.client, 2, 1000).await.unwrap_err();

    assert_eq!(refused.status(), Some(StatusCode::SERVICE_UNAVAILABLE), "{refused}");
    assert_eq!(listed(&daemon.client).await.len(), 1, "what was refused is visible");
    assert_exactly(&server, &daemon, std::slice::from_ref(&kept)).await;
    daemon.kill().await;
    outage.lift();
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, std::slice::from_ref(&kept)).await;
    let repeated = put(&daemon.client, 2, 1000).await.unwrap();
    assert_exactly(&server, &daemon, &[kept, repeated]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_the_repeat_is_stored_once_by_the_same_daemon() {
    let (server, daemon) = server_and_daemon(&[("store.retry-timeout", "300 ms")]).await;
    // Every try is carried out and none is heard of: the daemon has to say 503, and the bytes are there.
    let silence = server.faults().add(Rule::on(Op::Put, data), Fault::AckLost);
    let blindness = server.faults().add(Rule::on(Op::Head, data), Fault::Refused);
    let refused = put(&daemon.client, 1, 1000).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    silence.lift();
    blindness.lift();

    let written = put(&daemon.client, 1, 1000).await.unwrap();

    assert_exactly(&server, &daemon, std::slice::from_ref(&written)).await;
    daemon.kill().await;
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_used_for_other_bytes_is_refused_and_the_first_bytes_stay() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let written = put(&daemon.client, 1, 1000).await.unwrap();

    let other = daemon.client.put(JOB, &params(), Some(&written.key), bytes_of(2, 1000)).await.unwrap_err();

    assert_eq!(other.status(), Some(StatusCode::CONFLICT), "{other}");
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_files_are_deleted_though_deletes_fail_and_live_ones_stay() {
    let (server, daemon) =
        server_and_daemon(&[("reclaim.delete-grace", "100 ms"), ("reclaim.interval", "100 ms")]).await;
    let dead = put(&daemon.client, 1, 1000).await.unwrap();
    server.faults().add(Rule::on(Op::Delete, data).times(2), Fault::Refused);
    server.faults().add(Rule::on(Op::Delete, data).times(1), Fault::AckLost);
    daemon.client.begin(JOB, 2).await.unwrap();
    let params = esker_client::wire::PutParams { checkpoint: Some(2), ..params() };
    let data = bytes_of(2, 1000);
    let info = daemon.client.put(JOB, &params, Some("key-2"), data.clone()).await.unwrap();
    let living = Written { key: "key-2".to_owned(), data, info };

    daemon.client.subsume(JOB, 1).await.unwrap();

    let file = object_key(dead.info.file.as_ref().unwrap());
    eventually("the dead file is deleted", SOON, || async { server.objects().get(&file).is_none() }).await;
    assert_exactly(&server, &daemon, &[living]).await;
}
