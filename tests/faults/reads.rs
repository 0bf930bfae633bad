//! Reading from a store that breaks off, lies or loses objects: right bytes or an error.

use std::time::Duration;

use esker_client::ClientError;
use esker_client::wire::ErrorKind;
use http::StatusCode;

use crate::faults::{Fault, Op, Rule, data};
use crate::support::{assert_exactly, data_files, metric, object_key, put, server_and_daemon};

const CORRUPT: &str = "esker_corrupt_reads_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_cut_refused_or_reset_once_is_repeated() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let written = put(&daemon.client, 1, 300_000).await.unwrap();
    for fault in [Fault::Truncated, Fault::Refused, Fault::SlowDown, Fault::ResetBeforeBody, Fault::AckLost] {
        let hit = server.faults().add(Rule::on(Op::Get, data).times(1), fault.clone());

        let read = daemon.client.get(&written.info.segment).await;

        assert_eq!(hit.hits(), 1);
        assert_eq!(read.unwrap_or_else(|error| panic!("{fault:?}: {error}")), written.data);
    }
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_always_cut_or_refused_is_an_error() {
    let (server, daemon) = server_and_daemon(&[("store.retry-timeout", "300 ms")]).await;
    let written = put(&daemon.client, 1, 300_000).await.unwrap();
    for fault in [Fault::Truncated, Fault::Refused] {
        let always = server.faults().add(Rule::on(Op::Get, data), fault.clone());

        let read = tokio::time::timeout(Duration::from_secs(30), daemon.client.get(&written.info.segment)).await;

        let error = read.expect("a read waits for ever").expect_err("a read succeeded without its bytes");
        assert!(error.status().is_some_and(|status| status.is_server_error()), "{fault:?}: {error}");
        always.lift();
    }
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_are_an_error_and_counted_and_never_handed_out() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let written = put(&daemon.client, 1, 300_000).await.unwrap();
    let before = metric(&daemon.client, CORRUPT).await;
    let flips = server.faults().add(Rule::on(Op::Get, data), Fault::BitFlipped);

    let whole = daemon.client.get(&written.info.segment).await.unwrap_err();
    let part = daemon.client.get_range(&written.info.segment, 10..20).await.unwrap_err();

    for error in [whole, part] {
        assert_eq!(error.status(), Some(StatusCode::INTERNAL_SERVER_ERROR), "{error}");
        assert!(matches!(&error, ClientError::Refused { kind: ErrorKind::Corrupt, .. }), "{error}");
    }
    assert!(metric(&daemon.client, CORRUPT).await >= before + 2.0);
    flips.lift();
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_read_whose_middle_is_damaged_breaks_off_before_it() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let mut all = vec![];
    for (seed, fault) in [(1, Fault::BitFlipped), (2, Fault::Truncated)] {
        let written = put(&daemon.client, seed, 3 << 20).await.unwrap();
        let always = server.faults().add(Rule::on(Op::Get, data).after(1), fault.clone());

        let read = tokio::time::timeout(Duration::from_secs(30), daemon.client.get(&written.info.segment)).await;

        let error = read.expect("a read waits for ever").expect_err("a damaged read succeeded");
        assert!(matches!(error, ClientError::Connection { .. }), "{fault:?}: {error}");
        assert!(always.hits() > 0);
        always.lift();
        all.push(written);
    }
    assert_exactly(&server, &daemon, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_deleted_is_an_error_and_other_segments_stay() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let lost = put(&daemon.client, 1, 1000).await.unwrap();
    let kept = put(&daemon.client, 2, 1000).await.unwrap();
    server.objects().remove(&object_key(lost.info.file.as_ref().unwrap()));

    let error = daemon.client.get(&lost.info.segment).await.unwrap_err();

    assert!(matches!(&error, ClientError::Refused { kind: ErrorKind::Corrupt, .. }), "{error}");
    assert_eq!(daemon.client.get(&kept.info.segment).await.unwrap(), kept.data);
    assert_eq!(data_files(&server).len(), 1);
}
