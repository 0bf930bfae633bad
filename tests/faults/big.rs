//! Segments over the part size, streamed as multipart uploads: whole or nothing.

use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::faults::{Fault, Gate, Op, Rule, any, log};
use crate::s3_server::S3Server;
use crate::support::{
    JOB, LITTLE_MEMORY, Running, SOON, Written, assert_exactly, data_files, eventually, metric, object_key, put,
    put_until_answered, server_and_daemon, settings,
};

const BIG: usize = (12 << 20) + 12_345;
const HASTY: [(&str, &str); 5] = [
    ("store.part-size", "5 mb"),
    ("store.request-timeout", "10 s"),
    ("store.retry-timeout", "500 ms"),
    ("reclaim.delete-grace", "300 ms"),
    ("reclaim.interval", "100 ms"),
];

/// Only the files of these segments are left, and no upload is open.
async fn assert_left(server: &S3Server, written: &[Written]) {
    let mut needed: Vec<String> =
        written.iter().filter_map(|written| written.info.file.as_ref()).map(|file| object_key(file)).collect();
    needed.sort();
    eventually("nothing but what is needed is left", SOON, || async {
        server.objects().open_uploads().is_empty() && data_files(server) == needed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_segment_is_uploaded_in_parts_and_survives_a_crash() {
    let (server, daemon) = server_and_daemon(&HASTY).await;

    let written = put(&daemon.client, 1, BIG).await.unwrap();

    assert_eq!(server.faults().count(|logged| logged.op == Op::UploadPart), 3);
    let range = daemon.client.get_range(&written.info.segment, 5_242_000..5_243_500).await.unwrap();
    assert_eq!(range, written.data.slice(5_242_000..5_243_500));
    daemon.kill().await;
    let daemon = Running::start(settings(&server, &HASTY)).await;
    assert_exactly(&server, &daemon, std::slice::from_ref(&written)).await;
    assert_left(&server, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_segment_survives_faults_that_pass() {
    for (op, fault) in [
        (Op::CreateUpload, Fault::Refused),
        (Op::UploadPart, Fault::Refused),
        (Op::UploadPart, Fault::ResetBeforeBody),
        (Op::UploadPart, Fault::AckLost),
        (Op::CompleteUpload, Fault::Refused),
        (Op::CompleteUpload, Fault::ResetAfterBody),
    ] {
        let (server, daemon) = server_and_daemon(&HASTY).await;
        let hit = server.faults().add(Rule::on(op, any).times(1), fault.clone());

        let (written, _) = put_until_answered(&daemon.client, 1, BIG, SOON).await;

        assert_eq!(hit.hits(), 1, "{op:?} {fault:?}");
        assert_exactly(&server, &daemon, std::slice::from_ref(&written)).await;
        assert_left(&server, &[written]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_completion_leaves_one_segment_and_no_rubbish() {
    for fault in [Fault::AckLost, Fault::AckReplaced] {
        let (server, daemon) = server_and_daemon(&HASTY).await;
        let hit = server.faults().add(Rule::on(Op::CompleteUpload, any).times(1), fault.clone());

        let (written, tries) = put_until_answered(&daemon.client, 1, BIG, SOON).await;

        println!("{fault:?}: answered at try {tries}");
        assert_eq!(hit.hits(), 1);
        assert_exactly(&server, &daemon, std::slice::from_ref(&written)).await;
        assert_left(&server, &[written]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_segment_that_cannot_be_uploaded_is_refused_and_leaves_nothing() {
    for (op, after) in [(Op::CreateUpload, 0), (Op::UploadPart, 0), (Op::UploadPart, 2), (Op::CompleteUpload, 0)] {
        let (server, daemon) = server_and_daemon(&HASTY).await;
        let kept = put(&daemon.client, 1, 1000).await.unwrap();
        let outage = server.faults().add(Rule::on(op, any).after(after), Fault::Refused);

        let refused = put(&daemon.client, 2, BIG).await.unwrap_err();

        // A daemon that gives up while the body still arrives may be heard as a broken connection.
        assert!(refused.is_transient(), "{op:?}: {refused}");
        if let Some(status) = refused.status() {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_left(&server, std::slice::from_ref(&kept)).await;
        assert_exactly(&server, &daemon, std::slice::from_ref(&kept)).await;
        outage.lift();
        let repeated = put(&daemon.client, 2, BIG).await.unwrap();
        assert_exactly(&server, &daemon, &[kept, repeated]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_big_segment_leaves_nothing() {
    let (server, daemon) = server_and_daemon(&HASTY).await;
    let mut client = TcpStream::connect(daemon.address()).await.unwrap();
    let head =
        format!("POST /v1/jobs/{JOB}/segments?checkpoint=1 HTTP/1.1\r\nhost: esker\r\ncontent-length: {BIG}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&vec![7; 6 << 20]).await.unwrap();
    eventually("a part is uploaded", SOON, || async {
        server.faults().count(|logged| logged.op == Op::UploadPart && logged.status.is_some()) > 0
    })
    .await;

    drop(client);

    assert_left(&server, &[]).await;
    assert_exactly(&server, &daemon, &[]).await;
}

/// What a daemon has asked of the server when it is killed in the middle of a streamed segment.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_in_the_middle_of_a_big_segment_leaves_no_upload() {
    let stages = [
        // The file is being named.
        (Rule::on(Op::Put, log), Fault::AnswerHeld(Gate::closed())),
        (Rule::on(Op::UploadPart, any), Fault::AnswerHeld(Gate::closed())),
        (Rule::on(Op::UploadPart, any).after(1), Fault::AnswerHeld(Gate::closed())),
        (Rule::on(Op::UploadPart, any).after(2), Fault::AnswerHeld(Gate::closed())),
        (Rule::on(Op::CompleteUpload, any), Fault::AnswerHeld(Gate::closed())),
        (Rule::on(Op::CompleteUpload, any), Fault::HeldThenRefused(Gate::closed())),
        // The segment is being committed.
        (Rule::on(Op::Put, log).after(1), Fault::AnswerHeld(Gate::closed())),
    ];
    for (number, (rule, fault)) in stages.into_iter().enumerate() {
        let stage = format!("{rule:?} {fault:?}");
        let (server, daemon) = server_and_daemon(&HASTY).await;
        let kept = put(&daemon.client, 1, 1000).await.unwrap();
        let held = server.faults().add(rule.times(1), fault);
        let (client, begun) = (daemon.new_client(), held.clone());
        let stream = tokio::spawn(async move { put(&client, 2, BIG).await });
        eventually("it stands there", SOON, || async { begun.hits() > 0 }).await;

        daemon.kill().await;
        server.faults().clear();
        let open = server.objects().open_uploads().len();
        assert!(open == 1 || matches!(number, 4 | 6), "the server completes it in these: {stage}");
        let daemon = Running::start(settings(&server, &HASTY)).await;

        assert_eq!(server.objects().open_uploads(), Vec::<String>::new(), "{stage}");
        assert!(stream.await.unwrap().is_err());
        eventually("nothing leaks", SOON, || async {
            let listed = crate::support::listed(&daemon.client).await;
            let mut needed: Vec<String> =
                listed.iter().filter_map(|info| info.file.as_ref()).map(|file| object_key(file)).collect();
            needed.sort();
            data_files(&server) == needed
        })
        .await;
        crate::support::assert_readable(&daemon.client, std::slice::from_ref(&kept)).await;
        crate::support::assert_sound(&server, &daemon).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_cannot_be_aborted_is_aborted_by_the_next_start() {
    let (server, daemon) = server_and_daemon(&HASTY).await;
    let outage = server.faults().add(Rule::on(Op::AbortUpload, any), Fault::Refused);
    let broken = server.faults().add(Rule::on(Op::UploadPart, any).after(1), Fault::Refused);
    put(&daemon.client, 2, BIG).await.unwrap_err();
    eventually("it was tried", SOON, || async { outage.hits() > 0 }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.objects().open_uploads().len(), 1);
    outage.lift();
    broken.lift();

    daemon.kill().await;
    let daemon = Running::start(settings(&server, &HASTY)).await;

    assert_left(&server, &[]).await;
    assert_exactly(&server, &daemon, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_share_memory_for_two_of_them_all_get_through() {
    let (server, daemon) = server_and_daemon(&[&HASTY[..], &LITTLE_MEMORY[..]].concat()).await;
    server.faults().set_latency(Duration::from_millis(20));

    let streams = (0..8).map(|number| put(&daemon.client, number, BIG));
    let written: Vec<Written> = futures::future::try_join_all(streams).await.unwrap();

    assert_exactly(&server, &daemon, &written).await;
    assert_eq!(metric(&daemon.client, "esker_in_flight_bytes").await, 0.0);
}
