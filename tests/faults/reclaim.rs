//! Reclaiming on a backend that fails: every request of it is lost once, before and after it was carried out, and the
//! daemon dies there. What lives can be read, and nothing leaks.

use std::collections::BTreeSet;

use bytes::Bytes;
use esker_client::Client;
use esker_client::wire::{BatchAnswer, BatchHead, SegmentInfo};
use http::StatusCode;

use crate::faults::{Fault, Gate, Op, Rule, any, data};
use crate::s3_server::S3Server;
use crate::support::{
    JOB, Running, SOON, assert_sound, bytes_of, create_job, data_files, eventually, listed, metric, object_key, put,
    settings,
};

/// Reclaiming and deleting happen when the test says so, and nothing waits for a grace.
const WHEN_TOLD: [(&str, &str); 2] = [("reclaim.interval", "1 h"), ("reclaim.delete-grace", "0 ms")];
const SEGMENT_BYTES: usize = 40_000;

/// A request that is held, and whether before or after it is carried out.
type Step = (Op, fn(Gate) -> Fault);
/// Segments that live, and their bytes.
type Living = Vec<(SegmentInfo, Bytes)>;

/// Stores segments `numbers` of one subtask for a checkpoint, in one request.
async fn put_shared(client: &Client, checkpoint: u64, numbers: std::ops::Range<u64>) -> Living {
    put_shared_of(client, checkpoint, numbers, SEGMENT_BYTES).await
}

async fn put_shared_of(client: &Client, checkpoint: u64, numbers: std::ops::Range<u64>, len: usize) -> Living {
    let head = |len| BatchHead {
        len,
        checkpoint: Some(checkpoint),
        scope: Some("shared".to_owned()),
        operator: Some("window".to_owned()),
        subtask: Some(0),
        parallelism: Some(1),
        ..BatchHead::default()
    };
    let bytes: Vec<Bytes> = numbers.map(|number| bytes_of(number, len)).collect();
    let segments: Vec<_> = bytes.iter().map(|bytes| (head(bytes.len() as u64), bytes.clone())).collect();
    let answers = client.put_many(JOB, &segments).await.unwrap();
    let stored = answers.into_iter().map(|answer| match answer {
        BatchAnswer::Stored(info) => info,
        BatchAnswer::Error(error) => panic!("{error:?}"),
    });
    stored.zip(bytes).collect()
}

/// A job that uses 8 of the 40 segments of its first checkpoint still: most of that file is dead.
async fn mostly_dead(client: &Client) -> Living {
    create_job(client).await;
    let mut living = put_shared(client, 1, 0..40).await;
    client.complete(JOB, 1).await.unwrap();
    living = living.into_iter().step_by(5).collect();
    let kept = living.iter().map(|(info, _)| info.segment.clone()).collect();
    let reused = client.reuse(JOB, 2, kept).await.unwrap();
    assert!(reused.refused.is_empty(), "{reused:?}");
    living.extend(put_shared(client, 2, 100..104).await);
    client.complete(JOB, 2).await.unwrap();
    client.subsume(JOB, 1).await.unwrap();
    living
}

async fn assert_living(client: &Client, living: &Living) {
    for (info, bytes) in living {
        let read = client.get(&info.segment).await.unwrap_or_else(|error| panic!("{}: {error}", info.segment));
        assert!(read == *bytes, "{} has other bytes", info.segment);
    }
}

/// Nothing is on storage that no living segment needs, and nothing is missing.
async fn assert_no_leak(server: &S3Server, daemon: &Running) {
    eventually("what nobody needs is deleted", SOON, || async {
        daemon.client.gc(false).await.is_ok_and(|report| report.forgotten_files == 0)
    })
    .await;
    let needed: BTreeSet<String> =
        listed(&daemon.client).await.iter().filter_map(|info| info.file.as_deref().map(object_key)).collect();
    let there: BTreeSet<String> = data_files(server).into_iter().collect();
    assert_eq!(there, needed);
    assert_sound(server, daemon).await;
}

async fn amplification(client: &Client) -> f64 {
    client.space(None, None).await.unwrap().total.amplification.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_too_much_dead_in_them_are_rewritten_and_deleted() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &WHEN_TOLD)).await;
    let living = mostly_dead(&daemon.client).await;
    assert!(amplification(&daemon.client).await > 2.0);
    let planned = daemon.client.reclaim_plan().await.unwrap();
    assert_eq!(planned.copy.len(), 1);

    let round = daemon.client.reclaim().await.unwrap();

    assert_eq!(round.rewritten_files, 1);
    assert_eq!(round.written_bytes, 8 * SEGMENT_BYTES as u64);
    assert!(amplification(&daemon.client).await > 2.0, "what waits to be deleted is on storage");
    assert_eq!(daemon.client.gc(false).await.unwrap().deleted, 1);
    assert!(amplification(&daemon.client).await < 1.1);
    assert_living(&daemon.client, &living).await;
    assert_no_leak(&server, &daemon).await;
    assert_eq!(metric(&daemon.client, "esker_reclaim_files_total").await, 1.0);
    let again = daemon.client.reclaim().await.unwrap();
    assert_eq!((again.rewritten_files, again.written_bytes), (0, 0), "nothing is rewritten twice");
    assert_eq!(again.jobs_above, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_deleted_counts_in_every_figure_and_is_told_with_its_reason() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[WHEN_TOLD[0], ("reclaim.delete-grace", "1 h")])).await;
    mostly_dead(&daemon.client).await;

    let round = daemon.client.reclaim().await.unwrap();

    assert_eq!((round.rewritten_files, round.jobs_above), (1, 1));
    assert_eq!(daemon.client.gc(false).await.unwrap().deleted, 0);
    let total = daemon.client.space(None, None).await.unwrap().total;
    let on_storage: u64 = data_files(&server).iter().map(|key| server.objects().get(key).unwrap().len() as u64).sum();
    assert_eq!(total.physical_bytes, on_storage);
    assert!(total.forgotten_bytes > 0 && total.waiting.grace == total.forgotten_bytes, "{total:?}");
    assert!(total.amplification.unwrap() > 2.0, "{total:?}");
    assert_eq!(metric(&daemon.client, "esker_physical_bytes").await, on_storage as f64);
    let ratio = metric(&daemon.client, "esker_space_amplification").await;
    assert!((ratio - total.amplification.unwrap()).abs() < 1e-9, "{ratio}, {total:?}");
    assert_eq!(metric(&daemon.client, "esker_forgotten_bytes").await, total.forgotten_bytes as f64);
    assert!(metric(&daemon.client, "esker_reclaim_lag_seconds").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_die_are_deleted_together_before_the_next_round() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[("reclaim.interval", "3 s")])).await;
    create_job(&daemon.client).await;
    for number in 1..=3 {
        put(&daemon.client, number, 1000).await.unwrap();
    }
    daemon.client.complete(JOB, 1).await.unwrap();
    assert_eq!(data_files(&server).len(), 3);
    let deletes = || server.faults().count(|logged| logged.was(Op::Delete, any, StatusCode::OK));
    let before = deletes();

    daemon.client.subsume(JOB, 1).await.unwrap();

    eventually("they are deleted", SOON, || async {
        metric(&daemon.client, "esker_physical_files_deleted_total").await == 3.0
    })
    .await;
    assert_eq!(data_files(&server).len(), 0);
    assert_eq!(deletes() - before, 1, "requests");
}

/// Counts the requests of a round of reclaiming and deleting.
async fn requests_of_a_round() -> u64 {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &WHEN_TOLD)).await;
    mostly_dead(&daemon.client).await;
    let before = server.faults().requests().len();
    daemon.client.reclaim().await.unwrap();
    daemon.client.gc(false).await.unwrap();
    (server.faults().requests().len() - before) as u64
}

/// The daemon dies while request `number` of a round is on its way, before or after it was carried out.
async fn dies_at(number: u64, fault: fn(Gate) -> Fault) {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &WHEN_TOLD)).await;
    let living = mostly_dead(&daemon.client).await;
    let gate = Gate::closed();
    server.faults().add(Rule::everything(any).after(number).times(1), fault(gate.clone()));
    let client = daemon.new_client();
    let round = tokio::spawn(async move {
        drop(client.reclaim().await);
        drop(client.gc(false).await);
    });
    eventually("the request arrives, or there was one fewer this time", SOON, || async {
        gate.waiting() > 0 || round.is_finished()
    })
    .await;
    daemon.kill().await;
    round.abort();
    server.faults().clear();

    let daemon = Running::start(settings(&server, &WHEN_TOLD)).await;

    assert_living(&daemon.client, &living).await;
    assert_sound(&server, &daemon).await;
    daemon.client.reclaim().await.unwrap();
    assert_living(&daemon.client, &living).await;
    assert_no_leak(&server, &daemon).await;
    assert!(amplification(&daemon.client).await < 1.1);
    daemon.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_any_request_of_reclaiming_loses_and_leaks_nothing() {
    let requests = requests_of_a_round().await;
    assert!(requests > 5, "{requests} requests");
    for number in 0..requests {
        dies_at(number, Fault::Held).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_any_request_of_reclaiming_loses_and_leaks_nothing() {
    for number in 0..requests_of_a_round().await {
        dies_at(number, Fault::AnswerHeld).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_is_refused_is_tried_until_the_file_is_gone() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &WHEN_TOLD)).await;
    mostly_dead(&daemon.client).await;
    daemon.client.reclaim().await.unwrap();
    let refusing = server.faults().add(Rule::on(Op::Delete, any), Fault::Refused);
    let files = data_files(&server).len();
    let report = daemon.client.gc(false).await.unwrap();
    assert_eq!((report.deleted, report.forgotten_files), (0, 1));
    assert_eq!(report.waiting.refused, report.forgotten_bytes);
    assert_eq!(data_files(&server).len(), files);

    refusing.lift();

    assert_no_leak(&server, &daemon).await;
    let swept = metric(&daemon.client, "esker_physical_files_deleted_total").await;
    assert_eq!(swept, 1.0, "counted once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_arrives_after_it_was_given_up_and_deleted_is_swept() {
    let quick = [
        ("store.request-timeout", "300 ms"),
        ("store.retry-timeout", "100 ms"),
        ("reclaim.interval", "100 ms"),
        ("reclaim.sweep-interval", "100 ms"),
        ("reclaim.delete-grace", "300 ms"),
        ("reclaim.sweep-grace", "300 ms"),
    ];
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &quick)).await;
    create_job(&daemon.client).await;
    let kept = put(&daemon.client, 1, 1000).await.unwrap();
    // The server takes its time with this put, and carries it out whatever became of the client.
    let gate = Gate::closed();
    let held = server.faults().add(Rule::on(Op::Put, data).times(1), Fault::Held(gate.clone()));
    let client = daemon.new_client();
    let lost = tokio::spawn(async move { put(&client, 2, 1000).await });
    gate.arrived(1).await;
    daemon.kill().await;
    drop(lost.await);
    let daemon = Running::start(settings(&server, &quick)).await;
    eventually("the place of the late file is free again", SOON, || async { data_files(&server).len() == 1 }).await;

    gate.open();

    eventually("the put arrives", SOON, || async { held.hits() == 1 && data_files(&server).len() == 2 }).await;
    eventually("it is swept", SOON, || async { data_files(&server).len() == 1 }).await;
    assert_eq!(metric(&daemon.client, "esker_swept_files_total").await, 1.0);
    crate::support::assert_exactly(&server, &daemon, &[kept]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_is_older_than_the_files_sweeps_nothing() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &WHEN_TOLD)).await;
    create_job(&daemon.client).await;
    put(&daemon.client, 1, 1000).await.unwrap();
    let name = "data/wordcount/000000ff-01ARZ3NDEKTSV4RRFFQ69G5FAV";
    server.objects().insert(&object_key(name), Bytes::from_static(b"of a later epoch"));

    let report = daemon.client.gc_report().await.unwrap();

    assert_eq!(report.unnamed, [name]);
    assert!(report.refused.unwrap().contains("the catalog is older than the files"));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_bytes_are_not_copied_and_stay_where_they_are() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &WHEN_TOLD)).await;
    let living = mostly_dead(&daemon.client).await;
    let (damaged, _) = &living[0];
    let key = object_key(damaged.file.as_ref().unwrap());
    let mut bytes = server.objects().get(&key).unwrap().to_vec();
    bytes[damaged.offset as usize + 7] ^= 1;
    server.objects().insert(&key, bytes.into());

    let round = daemon.client.reclaim().await.unwrap();

    assert_eq!((round.rewritten_files, round.written_bytes), (0, 0));
    assert!(daemon.client.get(&damaged.segment).await.is_err());
    assert_living(&daemon.client, &living[1..].to_vec()).await;
    let again = daemon.client.reclaim().await.unwrap();
    assert_eq!(again.read_bytes, 0, "a damaged file is not read at every round");
}

#[tokio::test(flavor = "multi_thread")]
async fn reclaiming_waits_while_the_backend_refuses_requests() {
    let server = S3Server::start().await;
    let quick = [("reclaim.interval", "50 ms"), ("reclaim.delete-grace", "0 ms"), ("store.retry-timeout", "100 ms")];
    let daemon = Running::start(settings(&server, &quick)).await;
    let refusing = server.faults().add(Rule::on(Op::Get, data), Fault::SlowDown);
    let living = mostly_dead(&daemon.client).await;
    eventually("a round is put off", SOON, || async {
        metric(&daemon.client, "esker_reclaim_paused_total").await > 0.0
    })
    .await;
    assert!(metric(&daemon.client, "esker_reclaim_lag_seconds").await > 0.0);

    refusing.lift();

    eventually("the job is within its limit", SOON, || async { amplification(&daemon.client).await < 1.1 }).await;
    assert_living(&daemon.client, &living).await;
    assert_eq!(server.faults().count(|logged| logged.was(Op::Put, data, StatusCode::SERVICE_UNAVAILABLE)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_advise_mode_workers_are_told_what_to_store_again_and_nothing_is_copied() {
    let server = S3Server::start().await;
    let advise = [WHEN_TOLD[0], WHEN_TOLD[1], ("reclaim.mode", "advise")];
    let daemon = Running::start(settings(&server, &advise)).await;
    let living = mostly_dead(&daemon.client).await;
    daemon.client.reclaim().await.unwrap();

    let named: Vec<String> = living.iter().map(|(info, _)| info.handle.clone()).collect();
    let answer = daemon.client.reuse(JOB, 3, named.clone()).await.unwrap();

    assert_eq!(answer.refused, named[..8], "what is in the file with too much dead in it");
    assert_eq!(answer.reused, 4);
    assert_eq!(metric(&daemon.client, "esker_reclaim_bytes_total").await, 0.0);
    // The worker stores them again; the file dies as a whole.
    put_shared(&daemon.client, 3, 200..208).await;
    daemon.client.complete(JOB, 3).await.unwrap();
    daemon.client.subsume(JOB, 2).await.unwrap();
    assert_no_leak(&server, &daemon).await;
    assert!(amplification(&daemon.client).await < 1.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crowds_the_catalog_is_moved_into_files() {
    let server = S3Server::start().await;
    let inline = [WHEN_TOLD[0], WHEN_TOLD[1], (crate::support::INLINE, "20 kb"), ("catalog.inline-max", "1 mb")];
    let daemon = Running::start(settings(&server, &inline)).await;
    create_job(&daemon.client).await;
    let mut living = vec![];
    for number in 0..60 {
        if number == 30 {
            daemon.client.reclaim().await.unwrap();
            assert_eq!(data_files(&server).len(), 0, "young ones stay as long as there is room");
        }
        living.extend(put_shared_of(&daemon.client, 1, number..number + 1, 15_000).await);
    }
    assert_eq!(data_files(&server).len(), 0);

    daemon.client.reclaim().await.unwrap();

    assert_eq!(data_files(&server).len(), 1);
    assert_eq!(daemon.client.space(None, None).await.unwrap().total.inline_bytes, 0);
    assert_living(&daemon.client, &living).await;
    daemon.kill().await;
    let daemon = Running::start(settings(&server, &inline)).await;
    assert_living(&daemon.client, &living).await;
    assert_sound(&server, &daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_a_sweep_loses_nothing_and_the_next_daemon_sweeps_again() {
    let quick = [
        ("store.request-timeout", "300 ms"),
        ("store.retry-timeout", "100 ms"),
        ("reclaim.interval", "50 ms"),
        ("reclaim.sweep-interval", "50 ms"),
        ("reclaim.delete-grace", "300 ms"),
        ("reclaim.sweep-grace", "300 ms"),
    ];
    let stray = object_key("data/wordcount/00000000-01ARZ3NDEKTSV4RRFFQ69G5FAV");
    let steps: [Step; 4] = [
        (Op::List, Fault::Held),
        (Op::List, Fault::AnswerHeld),
        (Op::Delete, Fault::Held),
        (Op::Delete, Fault::AnswerHeld),
    ];
    for (op, fault) in steps {
        let server = S3Server::start().await;
        let daemon = Running::start(settings(&server, &quick)).await;
        create_job(&daemon.client).await;
        let kept = put(&daemon.client, 1, 1000).await.unwrap();
        server.objects().insert(&stray, Bytes::from_static(b"of a daemon that lost its catalog"));
        let gate = Gate::closed();
        server.faults().add(Rule::on(op, any).after(u64::from(op == Op::List)).times(1), fault(gate.clone()));
        gate.arrived(1).await;
        daemon.kill().await;
        server.faults().clear();

        let daemon = Running::start(settings(&server, &quick)).await;

        eventually("it is swept", SOON, || async { data_files(&server).len() == 1 }).await;
        crate::support::assert_exactly(&server, &daemon, &[kept]).await;
    }
}
