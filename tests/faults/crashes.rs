//! Daemons that die in the middle of a write. What was answered is there, what was not is whole or absent.

use std::sync::Arc;
use std::time::Duration;

use esker::runtime::Clock;
use esker_client::{Client, ClientError};
use http::StatusCode;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

use crate::faults::{Fault, Gate, Logged, Op, Rule, any, data, log};
use crate::s3_server::S3Server;
use crate::support::{
    INLINE, Running, SOON, Written, assert_exactly, assert_readable, create_job, data_files, eventually, put,
    put_until_answered, seed, server_and_daemon, settings,
};

/// Commits that the backend has carried out.
pub fn commits(server: &S3Server) -> usize {
    server.faults().count(|logged| logged.was(Op::Put, log, StatusCode::OK))
}

/// Puts of physical files that the backend has carried out.
pub fn data_puts(server: &S3Server, status: StatusCode) -> usize {
    server.faults().count(|logged: &Logged| logged.was(Op::Put, data, status))
}

/// A put whose commit is durable, and whose bytes are held as `fault` says, as are those of the next `times - 1` files.
pub async fn put_held(
    server: &S3Server,
    daemon: &Running,
    number: u64,
    times: u64,
    fault: fn(Gate) -> Fault,
) -> (Gate, JoinHandle<Result<Written, ClientError>>) {
    let gate = Gate::closed();
    server.faults().add(Rule::on(Op::Put, data).times(times), fault(gate.clone()));
    let committed = commits(server);
    let client = daemon.new_client();
    let put = tokio::spawn(async move { put(&client, number, 1000).await });
    gate.arrived(1).await;
    eventually("the commit is durable", SOON, || async { commits(server) > committed }).await;
    (gate, put)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_arrives_after_the_takeover_is_refused_and_was_never_answered() {
    let (server, old) = server_and_daemon(&[]).await;
    let kept = put(&old.client, 1, 1000).await.unwrap();
    let (gate, lost) = put_held(&server, &old, 2, 1, Fault::Held).await;
    old.kill().await;
    assert!(lost.await.unwrap().is_err(), "a put was answered without its bytes");

    let new = Running::start(settings(&server, &[])).await;

    assert_exactly(&server, &new, std::slice::from_ref(&kept)).await;
    let refused = data_puts(&server, StatusCode::PRECONDITION_FAILED) + 1;
    gate.open();
    eventually("the late put is refused", SOON, || async {
        data_puts(&server, StatusCode::PRECONDITION_FAILED) == refused
    })
    .await;
    let repeated = put(&new.client, 2, 1000).await.unwrap();
    assert_exactly(&server, &new, &[kept, repeated]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_arrived_before_the_takeover_counts_and_the_repeat_finds_it() {
    let (server, old) = server_and_daemon(&[]).await;
    let (gate, lost) = put_held(&server, &old, 1, 1, Fault::AnswerHeld).await;
    old.kill().await;
    assert!(lost.await.unwrap().is_err());

    let new = Running::start(settings(&server, &[])).await;

    let files = data_files(&server);
    let repeated = put(&new.client, 1, 1000).await.unwrap();
    assert_eq!(files, vec![crate::support::object_key(repeated.info.file.as_ref().unwrap())], "stored twice");
    assert_exactly(&server, &new, &[repeated]).await;
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_arrives_after_the_takeover_is_refused() {
    for inline in ["0", "20 kb"] {
        let (server, old) = server_and_daemon(&[(INLINE, inline)]).await;
        let kept = put(&old.client, 1, 1000).await.unwrap();
        let gate = Gate::closed();
        server.faults().add(Rule::on(Op::Put, log).times(1), Fault::Held(gate.clone()));
        let client = old.new_client();
        let lost = tokio::spawn(async move { put(&client, 2, 1000).await });
        gate.arrived(1).await;
        old.kill().await;
        assert!(lost.await.unwrap().is_err(), "a put was answered without its commit");

        let new = Running::start(settings(&server, &[(INLINE, inline)])).await;

        assert_exactly(&server, &new, std::slice::from_ref(&kept)).await;
        gate.open();
        let refused = |logged: &Logged| logged.was(Op::Put, log, StatusCode::PRECONDITION_FAILED);
        eventually("the late commit is refused", SOON, || async { server.faults().count(refused) > 0 }).await;
        let later = put(&new.client, 3, 1000).await.unwrap();
        new.kill().await;
        let newest = Running::start(settings(&server, &[])).await;
        assert_exactly(&server, &newest, &[kept, later]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_that_dies_half_way_is_done_again_by_the_next() {
    let (server, old) = server_and_daemon(&[]).await;
    let kept = put(&old.client, 1, 1000).await.unwrap();
    let (gate, lost) = put_held(&server, &old, 2, 2, Fault::Held).await;
    old.kill().await;
    assert!(lost.await.unwrap().is_err());
    // The claims of the second daemon hang like the put of the first; it never comes up.
    let second = tokio::spawn(Running::try_start(settings(&server, &[]), crate::support::Threads::Two));
    gate.arrived(2).await;

    let third = Running::start(settings(&server, &[])).await;

    let stored = put(&third.client, 3, 1000).await.unwrap();
    gate.open();
    let late = second.await.unwrap();
    assert_exactly(&server, &third, &[kept, stored]).await;
    if let Ok(late) = late {
        // Whatever it believes, it must not answer.
        assert!(put(&late.client, 4, 1000).await.is_err(), "a daemon answered that was shut out before it was up");
        late.kill().await;
    }
}

/// Writers that put segments one after the other until one fails, and remember what they were answered.
pub struct Writers {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    shared: Arc<Mutex<Ledger>>,
}

/// What writers were answered, and what not.
#[derive(Debug, Default)]
pub struct Ledger {
    pub answered: Vec<Written>,
    pub unanswered: Vec<u64>,
}

impl Writers {
    /// `count` writers, whose segments have the numbers from `first` on.
    pub fn start(client: &Client, count: u64, first: u64) -> Self {
        let shared = Arc::<Mutex<Ledger>>::default();
        let tasks = (0..count).map(|writer| {
            let (client, shared) = (client.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                let mut number = first + writer;
                loop {
                    match put(&client, number, 300).await {
                        Ok(written) => shared.lock().answered.push(written),
                        Err(_) => return shared.lock().unanswered.push(number),
                    }
                    number += count;
                }
            })
        });
        Self { tasks: tasks.collect(), shared }
    }

    /// Segments answered so far.
    pub fn answered(&self) -> usize {
        self.shared.lock().answered.len()
    }

    /// Whether every writer has had an error.
    pub fn idle(&self) -> bool {
        self.tasks.iter().all(|task| task.is_finished())
    }

    /// Stops them in the middle of what they do.
    pub fn stop(self) -> Ledger {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        std::mem::take(&mut *self.shared.lock())
    }

    /// Waits until every writer has had an error.
    pub async fn end(self) -> Ledger {
        let ended = tokio::time::timeout(SOON, futures::future::join_all(self.tasks)).await;
        ended.expect("a writer waits for an answer for ever").into_iter().for_each(Result::unwrap);
        std::mem::take(&mut *self.shared.lock())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_whenever_the_daemon_is_killed() {
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    let begun = Clock::instant();
    let server = S3Server::start().await;
    server.faults().seed(seed);
    let mut all = Ledger::default();
    let mut rounds = 0;
    while rounds < 20 && begun.elapsed() < Duration::from_secs(15) {
        rounds += 1;
        let inline = if dice.random_bool(0.5) { "0" } else { "2 kb" };
        let daemon = Running::start(settings(&server, &[(INLINE, inline)])).await;
        create_job(&daemon.client).await;
        assert_readable(&daemon.client, &all.answered).await;
        if dice.random_bool(0.5) {
            for fault in [Fault::AckLost, Fault::AckReplaced, Fault::ResetAfterBody] {
                server.faults().add(Rule::everything(any).chance(0.05), fault);
            }
        }
        let writers = Writers::start(&daemon.client, 8, rounds * 1_000_000);
        let (requests, more) = (server.faults().requests().len(), dice.random_range(1..60));
        eventually("the backend gets requests", SOON, || async { server.faults().requests().len() >= requests + more })
            .await;

        daemon.kill().await;

        server.faults().clear();
        let ledger = writers.end().await;
        all.answered.extend(ledger.answered);
        all.unanswered.extend(ledger.unanswered);
    }

    let daemon = Running::start(settings(&server, &[])).await;
    assert_readable(&daemon.client, &all.answered).await;
    for number in all.unanswered {
        all.answered.push(put_until_answered(&daemon.client, number, 300, SOON).await.0);
    }
    println!("{rounds} crashes, {} segments", all.answered.len());
    assert_exactly(&server, &daemon, &all.answered).await;
}
