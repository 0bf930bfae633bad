//! S3 answers a conditional create with 409 though nothing is there: no name is taken, and nobody was shut out.

use http::StatusCode;

use crate::crashes::commits;
use crate::faults::{Fault, Op, Rule, any, data, log};
use crate::s3_server::S3Server;
use crate::support::{Running, SOON, assert_exactly, create_job, eventually, put, server_and_daemon, settings};

#[tokio::test(flavor = "multi_thread")]
async fn a_put_and_a_commit_that_s3_was_too_busy_for_are_repeated() {
    let (server, daemon) = server_and_daemon(&[]).await;
    let file = server.faults().add(Rule::on(Op::Put, data).times(2), Fault::Conflicted);
    let commit = server.faults().add(Rule::on(Op::Put, log).times(2), Fault::Conflicted);

    let written = put(&daemon.client, 1, 1000).await.unwrap();

    assert_eq!((file.hits(), commit.hits()), (2, 2));
    assert!(!daemon.lost().is_cancelled());
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_claimed_though_s3_was_too_busy_at_first() {
    let (server, first) = server_and_daemon(&[]).await;
    let never = server.faults().add(Rule::on(Op::Put, data), Fault::Refused);
    let client = first.new_client();
    let before = commits(&server);
    let lost = tokio::spawn(async move { put(&client, 1, 1000).await });
    // The bytes are refused, and the commit that names their file is durable: in either order.
    let both = || async { never.hits() > 0 && commits(&server) > before };
    eventually("the commit is there", SOON, both).await;
    first.kill().await;
    assert!(lost.await.unwrap().is_err());
    never.lift();
    // The name of the file that did not arrive is taken by the next start.
    let claim = server.faults().add(Rule::on(Op::Put, data).times(1), Fault::Conflicted);

    let second = Running::start(settings(&server, &[])).await;

    assert_eq!(claim.hits(), 1);
    let there = |logged: &crate::faults::Logged| logged.was(Op::Put, data, StatusCode::OK);
    assert_eq!(server.faults().count(there), 1, "the tombstone");
    let repeated = put(&second.client, 1, 1000).await.unwrap();
    assert_exactly(&server, &second, &[repeated]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_of_conflicts_ends_in_nothing_lost() {
    let server = S3Server::start().await;
    server.faults().seed(9);
    let conflicts = server.faults().add(Rule::on(Op::Put, any).chance(0.2), Fault::Conflicted);

    let mut written = vec![];
    for round in 0..3 {
        let daemon = Running::start(settings(&server, &[])).await;
        create_job(&daemon.client).await;
        for number in 0..5 {
            written.push(put(&daemon.client, round * 10 + number, 500).await.unwrap());
        }
        assert_exactly(&server, &daemon, &written).await;
        daemon.shut_down().await.unwrap();
    }

    assert!(conflicts.hits() > 5, "{}", conflicts.hits());
}
