//! Two daemons on one catalog. The second shuts the first out; whatever the first still answered, the second has.

use std::process::Stdio;
use std::time::Duration;

use esker::runtime::Clock;
use esker_client::{Client, ClientError};
use esker_test_support::process;
use http::StatusCode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::crashes::{Ledger, Writers, data_puts, put_held};
use crate::faults::{Fault, Gate, Op, Rule, any};
use crate::offline;
use crate::s3_server::S3Server;
use crate::support::{
    INLINE, JOB, Running, SOON, Threads, Written, assert_exactly, assert_readable, bytes_of, create_job, data_files,
    eventually, listed, params, put, put_until_answered, seed, server_and_daemon, settings,
};

fn assert_unavailable<T: std::fmt::Debug>(answer: Result<T, ClientError>, what: &str) {
    let status = answer.as_ref().err().and_then(ClientError::status);
    assert_eq!(status, Some(StatusCode::SERVICE_UNAVAILABLE), "{what}: {answer:?}");
}

/// A daemon that was shut out answers neither puts nor gets.
async fn assert_shut_out(old: &Running, answered: &Written) {
    assert_unavailable(put(&old.client, 999_999, 100).await, "a put at the old daemon");
    tokio::time::timeout(SOON, old.lost().cancelled()).await.expect("the old daemon does not know that it lost");
    assert_unavailable(old.client.get(&answered.info.segment).await, "a get at the old daemon");
    assert_unavailable(old.client.get_handle(&answered.info.handle).await, "a get by handle at the old daemon");
    assert_unavailable(old.client.segments(JOB, None, None).await, "a listing at the old daemon");
    assert_unavailable(old.client.complete(JOB, 1).await, "a completion at the old daemon");
    assert_unavailable(put(&old.client, 999_998, 100).await, "a second put at the old daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_daemon_shuts_the_first_out_and_has_all_it_answered() {
    for inline in ["0", "20 kb"] {
        let (server, first) = server_and_daemon(&[(INLINE, inline)]).await;
        let written = put(&first.client, 1, 1000).await.unwrap();

        let second = Running::start(settings(&server, &[(INLINE, inline)])).await;

        assert_readable(&second.client, std::slice::from_ref(&written)).await;
        assert_shut_out(&first, &written).await;
        assert!(first.shut_down().await.is_err(), "a daemon that was shut out says that it stopped well");
        let later = put(&second.client, 2, 1000).await.unwrap();
        assert_exactly(&server, &second, &[written, later]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_that_was_shut_out_notices_without_a_request() {
    let (server, first) = server_and_daemon(&[("catalog.poll-interval", "500 ms")]).await;
    let written = put(&first.client, 1, 1000).await.unwrap();

    let _second = Running::start(settings(&server, &[])).await;

    tokio::time::timeout(SOON, first.lost().cancelled()).await.expect("an idle daemon never notices its successor");
    assert_unavailable(first.client.get(&written.info.segment).await, "a get at the old daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_is_one_error_in_the_log_of_the_first() {
    let server = S3Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (log, ready) = (folder.path().join("log"), folder.path().join("ready.json"));
    let mut command = process::esker();
    command.args(["serve", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0", "--ready-file"]).arg(&ready);
    command.args(offline::keys(&server)).stdin(Stdio::null()).stdout(Stdio::null());
    command.env_remove("STATE_DIRECTORY").env("XDG_STATE_HOME", folder.path());
    let mut first = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    eventually("the first daemon is ready", SOON, || async { ready.exists() }).await;

    let _second = Running::start(settings(&server, &[])).await;

    let status = tokio::task::spawn_blocking(move || first.wait().unwrap()).await.unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(errors.len() == 1 && errors[0].contains("the catalog is lost"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_daemon_does_not_answer_a_put_that_its_successor_has_given_up() {
    let (server, first) = server_and_daemon(&[]).await;
    let (gate, stale) = put_held(&server, &first, 1, 1, Fault::Held).await;

    let second = Running::start(settings(&server, &[])).await;
    gate.open();

    assert_unavailable(stale.await.unwrap(), "the put whose segment was dropped");
    assert_eq!(data_puts(&server, StatusCode::PRECONDITION_FAILED), 1);
    assert_exactly(&server, &second, &[]).await;
    let repeated = put(&second.client, 1, 1000).await.unwrap();
    assert_exactly(&server, &second, &[repeated]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_daemon_may_answer_a_put_only_if_its_successor_has_the_segment() {
    let (server, first) = server_and_daemon(&[]).await;
    let (gate, stale) = put_held(&server, &first, 1, 1, Fault::AnswerHeld).await;

    let second = Running::start(settings(&server, &[])).await;
    gate.open();

    let repeated = put(&second.client, 1, 1000).await.unwrap();
    match stale.await.unwrap() {
        Ok(written) => assert_eq!(written.info.handle, repeated.info.handle),
        Err(error) => assert!(error.is_transient(), "{error}"),
    }
    assert_exactly(&server, &second, &[repeated]).await;
}

/// The first daemon is stopped between its commit and its second try to put the bytes. Meanwhile the second takes over,
/// drops the segment, and deletes the file that it put in its place: the name is free when the first goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_stopped_for_longer_than_the_grace_does_not_answer_what_was_dropped() {
    let hasty = [("reclaim.delete-grace", "300 ms"), ("reclaim.interval", "50 ms")];
    let server = S3Server::start().await;
    let first = Running::try_start(settings(&server, &hasty), Threads::One).await.unwrap();
    create_job(&first.client).await;
    let (gate, stale) = put_held(&server, &first, 1, 1, Fault::HeldThenRefused).await;
    let go_on = first.pause().await;

    let second = Running::start(settings(&server, &hasty)).await;
    let deleted = |logged: &crate::faults::Logged| logged.op == Op::Delete && logged.status == Some(StatusCode::OK);
    eventually("the tombstone is put and deleted", SOON, || async {
        data_puts(&server, StatusCode::OK) == 1 && data_files(&server).is_empty() && server.faults().count(deleted) > 1
    })
    .await;
    gate.open();
    drop(go_on);

    let answer = stale.await.unwrap();
    assert!(answer.is_err(), "answered, and the catalog does not have it: {answer:?}");
    assert_exactly(&server, &second, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_daemon_does_not_answer_a_big_segment_and_its_file_is_deleted() {
    let hasty = [("store.part-size", "5 mb"), ("reclaim.delete-grace", "2 s"), ("reclaim.interval", "100 ms")];
    let (server, first) = server_and_daemon(&hasty).await;
    let gate = Gate::closed();
    server.faults().add(Rule::on(Op::CompleteUpload, any).times(1), Fault::Held(gate.clone()));
    let client = first.new_client();
    let stale = tokio::spawn(async move { put(&client, 1, 6 << 20).await });
    gate.arrived(1).await;

    let second = Running::start(settings(&server, &hasty)).await;
    gate.open();

    assert_unavailable(stale.await.unwrap(), "the big segment");
    assert_exactly(&server, &second, &[]).await;
    eventually("nothing is left", SOON, || async {
        data_files(&server).is_empty() && server.objects().open_uploads().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_daemons_that_start_at_once_one_answers_and_nothing_answered_is_lost() {
    for round in 0..4 {
        let server = S3Server::start().await;
        // Each may have been shut out by the next one before it was up; then they are started again.
        let mut daemons: Vec<Running> = vec![];
        for _ in 0..5 {
            let starts = (0..3).map(|_| Running::try_start(settings(&server, &[]), Threads::Two));
            let started = futures::future::join_all(starts).await;
            daemons = started.into_iter().filter_map(Result::ok).collect();
            if !daemons.is_empty() {
                break;
            }
        }
        assert!(!daemons.is_empty(), "round {round}: none came up");

        let mut answered = vec![];
        for (number, daemon) in daemons.iter().enumerate() {
            if daemon.client.create_job(JOB).await.is_ok()
                && daemon.client.begin(JOB, 1).await.is_ok()
                && let Ok(written) = put(&daemon.client, number as u64, 1000).await
            {
                answered.push(written);
            }
        }

        assert_eq!(answered.len(), 1, "round {round}: daemons that answer");
        for daemon in daemons.drain(..) {
            daemon.kill().await;
        }
        let last = Running::start(settings(&server, &[])).await;
        assert_exactly(&server, &last, &answered).await;
    }
}

/// Gets that run beside the writers: right bytes or an error, whatever happens.
async fn read_until_error(client: Client, written: Written) -> u64 {
    let mut reads = 0;
    loop {
        match client.get(&written.info.segment).await {
            Ok(bytes) => assert!(bytes == written.data, "wrong bytes from a stale daemon"),
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                return reads;
            }
        }
        reads += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn takeovers_under_load_lose_nothing_that_was_answered() {
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    let begun = Clock::instant();
    let (mut rounds, mut segments) = (0, 0);
    while rounds < 2 || rounds < 8 && begun.elapsed() < Duration::from_secs(20) {
        rounds += 1;
        segments += one_takeover_under_load(&mut dice).await;
    }
    println!("{rounds} takeovers, {segments} segments answered before them");
}

async fn one_takeover_under_load(dice: &mut StdRng) -> usize {
    let inline = if dice.random_bool(0.5) { "0" } else { "2 kb" };
    let (server, first) = server_and_daemon(&[(INLINE, inline)]).await;
    server.faults().seed(dice.random());
    server.faults().set_latency(Duration::from_millis(dice.random_range(0..8)));
    if dice.random_bool(0.5) {
        server.faults().add(Rule::everything(any).chance(0.02), Fault::AckLost);
        server.faults().add(Rule::everything(any).chance(0.02), Fault::Refused);
    }
    let (known, _) = put_until_answered(&first.client, 0, 300, SOON).await;
    let reader = tokio::spawn(read_until_error(first.new_client(), known.clone()));
    let writers = Writers::start(&first.client, dice.random_range(1..12), 1);
    let wanted = dice.random_range(0..40);
    eventually("the writers are answered", SOON, || async { writers.answered() >= wanted || writers.idle() }).await;

    // A start may fail on a lost answer, as it does on any store that is not well; then it is started again.
    let second = loop {
        match Running::try_start(settings(&server, &[(INLINE, inline)]), Threads::Two).await {
            Ok(second) => break second,
            Err(reason) => println!("a start failed: {reason}"),
        }
    };

    let Ledger { mut answered, unanswered } = writers.end().await;
    server.faults().clear();
    let count = answered.len();
    answered.push(known.clone());
    assert_readable(&second.client, &answered).await;
    assert_shut_out(&first, &known).await;
    tokio::time::timeout(SOON, reader).await.expect("the reader never had an error").unwrap();
    for number in unanswered {
        answered.push(put_until_answered(&second.client, number, 300, SOON).await.0);
    }
    assert_exactly(&server, &second, &answered).await;
    first.kill().await;
    second.kill().await;
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_takeovers_keeps_every_segment() {
    let server = S3Server::start().await;
    let mut daemons: Vec<Running> = vec![];
    let mut answered = vec![];
    for number in 0..6 {
        let daemon = Running::start(settings(&server, &[])).await;
        create_job(&daemon.client).await;
        answered.push(put(&daemon.client, number, 700).await.unwrap());
        daemons.push(daemon);
    }

    let last = daemons.pop().unwrap();
    for stale in &daemons {
        let repeat = stale.client.put(JOB, &params(), None, bytes_of(77, 700)).await;
        assert_unavailable(repeat, "a put at a daemon that was shut out");
    }

    assert_eq!(listed(&last.client).await.len(), answered.len());
    assert_exactly(&server, &last, &answered).await;
}
