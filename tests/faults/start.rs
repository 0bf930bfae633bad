//! What a daemon asks of a store before it answers anything.

use crate::faults::{Fault, Op, Rule, any};
use crate::s3_server::{Conditions, S3Server};
use crate::support::{Running, Threads, assert_exactly, create_job, put, settings};

async fn refusal_on(conditions: Conditions) -> (S3Server, String) {
    let server = S3Server::start_with(conditions).await;
    let started = Running::try_start(settings(&server, &[]), Threads::Two).await;
    let reason = started.err().expect("the daemon started on a store that breaks its word");
    (server, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_if_none_match_is_refused_with_the_reason() {
    let (server, reason) = refusal_on(Conditions::CreateIgnored).await;

    assert!(reason.contains("If-None-Match"), "{reason}");
    assert!(reason.contains("s3://state/esker"), "{reason}");
    assert_eq!(server.objects().keys(""), Vec::<String>::new(), "something was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_if_match_is_refused_with_the_reason() {
    let (server, reason) = refusal_on(Conditions::UpdateIgnored).await;

    assert!(reason.contains("If-Match"), "{reason}");
    assert_eq!(server.objects().keys(""), Vec::<String>::new(), "something was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_the_credentials_is_named_in_the_error() {
    let server = S3Server::start().await;

    let started = Running::try_start(settings(&server, &[("store.secret-key", "wrong")]), Threads::Two).await;

    let reason = started.err().unwrap();
    assert!(reason.contains("s3://state/esker"), "{reason}");
    assert_eq!(server.objects().keys(""), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_rides_out_a_store_that_refuses_every_third_request() {
    let server = S3Server::start().await;
    server.faults().seed(3);
    let hiccups = server.faults().add(Rule::everything(any).chance(0.33), Fault::Refused);

    let daemon = Running::start(settings(&server, &[("store.retry-timeout", "5 s")])).await;

    assert!(hiccups.hits() > 0);
    hiccups.lift();
    create_job(&daemon.client).await;
    let written = put(&daemon.client, 1, 1000).await.unwrap();
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_read_the_catalog_fails_and_the_next_one_loses_nothing() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[])).await;
    create_job(&daemon.client).await;
    let written = put(&daemon.client, 1, 1000).await.unwrap();
    daemon.kill().await;
    // The file is uncertain after a crash: it cannot be looked up, so the daemon must not answer.
    let outage = server.faults().add(Rule::on(Op::Put, crate::faults::data), Fault::Refused);

    let failed = Running::try_start(settings(&server, &[]), Threads::Two).await;

    assert!(failed.is_err() && outage.hits() > 0);
    outage.lift();
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &[written]).await;
}
