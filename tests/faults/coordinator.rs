//! A coordinator that dies at each of its requests to storage, and another one in its place. What was told is so; nothing else is
//! asked of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_client::wire::{
    AckRequest, AckState, BatchHead, CheckpointState, DeclineRequest, EndRequest, EventsParams, JobEnd, JobEvent,
    JobOperator, JobSettings, NewJob, PutParams, RestoreJob, TaskReport, TasksReport, TriggerRequest,
};
use esker_client::{Client, ClientError};
use http::StatusCode;

use crate::cluster::{member_with, owned_by};
use crate::faults::{Fault, Gate, Op, Rule, any, data, eventually};
use crate::s3_server::S3Server;
use crate::support::{INLINE, Running, SOON, server_and_daemon, settings};

const COORDINATED: &str = "coordinated";
/// More than a checkpoint takes.
const REQUESTS: u64 = 9;

/// What workers were told.
#[derive(Debug, Default)]
struct Told {
    triggered: BTreeSet<u64>,
    completed: BTreeSet<u64>,
}

async fn create(client: &Client) -> Result<(), ClientError> {
    let settings = [
        ("execution.checkpointing.num-retained".to_owned(), 2.into()),
        ("execution.checkpointing.dir".to_owned(), "s3://checkpoints/meta".into()),
    ];
    let job = NewJob {
        job: COORDINATED.to_owned(),
        coordinated: true,
        settings: Some(settings.into()),
        operators: Some(vec![JobOperator { id: "a".into(), parallelism: 1, ..JobOperator::default() }]),
        iterative: None,
    };
    client.create(&job).await.map(drop)
}

async fn attempt(client: &Client) -> Result<u64, ClientError> {
    Ok(client.job(COORDINATED).await?.coordinator.unwrap().attempt)
}

async fn runs(client: &Client) -> Result<(), ClientError> {
    let task = TaskReport { operator: "a".into(), subtask: 0, state: "running".into() };
    let worker = Some("w".to_owned());
    let report = TasksReport { attempt: attempt(client).await?, worker, tasks: vec![task], message: None };
    client.report_tasks(COORDINATED, &report).await.map(drop)
}

/// One checkpoint, as far as it gets. What is told goes into `told`.
async fn checkpoint(client: &Client, told: &mut Told) -> Result<(), ClientError> {
    let hello = client.events(COORDINATED, &EventsParams::default()).await?;
    let (mut after, attempt) = (hello.next, attempt(client).await?);
    client.trigger_checkpoint(COORDINATED, &TriggerRequest::default(), None).await?;
    loop {
        let params = EventsParams { worker: None, after: Some(after), wait: Some("20 s".into()) };
        let page = client.events(COORDINATED, &params).await?;
        after = page.next;
        for info in page.events {
            match info.event {
                JobEvent::Trigger(trigger) => {
                    assert!(told.triggered.insert(trigger.checkpoint), "{} is told twice", trigger.checkpoint);
                    let state = AckState { part: Some(0), ..AckState::default() };
                    let (operator, state) = ("a".to_owned(), vec![state]);
                    let ack = AckRequest { operator, attempt, state, ..AckRequest::default() };
                    let parts = [(BatchHead::default(), Bytes::from(trigger.checkpoint.to_string()))];
                    client.acknowledge(COORDINATED, trigger.checkpoint, &ack, &parts).await?;
                }
                JobEvent::Complete(complete) => {
                    told.completed.insert(complete.checkpoint);
                    return Ok(());
                }
                _ => {}
            }
        }
    }
}

/// What was told to be complete can be restored, unless newer ones have taken its place; nothing is in progress.
async fn assert_as_told(client: &Client, told: &Told) {
    let known = client.checkpoints(COORDINATED).await.unwrap();
    let completed: BTreeSet<u64> =
        known.iter().filter(|known| known.state == CheckpointState::Completed).map(|known| known.checkpoint).collect();
    let newest = completed.last().copied();
    assert!(told.completed.last() <= newest.as_ref(), "told {:?}, there are {completed:?}", told.completed);
    assert!(completed.iter().all(|id| told.triggered.contains(id)), "{completed:?} of {:?}", told.triggered);
    for id in &completed {
        // An older one may go meanwhile: the new owner subsumes what the old one had no time for.
        let gone = |error: &ClientError| Some(*id) != newest && error.status() == Some(StatusCode::NOT_FOUND);
        let metadata = match client.checkpoint_metadata(COORDINATED, *id).await {
            Err(error) if gone(&error) => continue,
            metadata => metadata.unwrap(),
        };
        let segment = metadata["operators"][0]["tasks"][0]["state"][0]["segment"].as_str().unwrap();
        match client.get(segment).await {
            Err(error) if gone(&error) => {}
            bytes => assert_eq!(bytes.unwrap(), id.to_string(), "checkpoint {id}"),
        }
    }
}

/// Dies at the request `number`, which arrives late or whose answer is lost, and goes on as another one.
async fn dies_at(number: u64, fault: fn(Gate) -> Fault, inline: &'static str) {
    let changed = [(INLINE, inline)];
    let (server, old) = server_and_daemon(&changed).await;
    create(&old.client).await.unwrap();
    runs(&old.client).await.unwrap();
    let mut told = Told::default();
    for _ in 0..2 {
        checkpoint(&old.client, &mut told).await.unwrap();
    }

    let gate = Gate::closed();
    let rule = server.faults().add(Rule::on(Op::Put, any).after(number), fault(gate.clone()));
    let client = old.new_client();
    let mut last = tokio::spawn(async move {
        let mut told = Told::default();
        let ended = checkpoint(&client, &mut told).await;
        (told, ended)
    });
    tokio::select! {
        () = gate.arrived(1) => {}
        _ = &mut last => panic!("a checkpoint takes fewer than {number} requests: nothing would be tried"),
        () = tokio::time::sleep(SOON) => panic!("request {number} does not come"),
    }
    rule.lift();
    old.kill().await;
    let (more, ended) = last.await.unwrap();
    assert!(ended.is_err() || !more.completed.is_empty());
    told.triggered.extend(more.triggered);
    told.completed.extend(more.completed);

    let new = Running::start(settings(&server, &changed)).await;
    gate.open();
    // Whoever was cut off hears how things stand.
    runs(&new.client).await.unwrap();
    eventually("what was in progress is given up", SOON, || async {
        let known = new.client.checkpoints(COORDINATED).await.unwrap();
        known.iter().all(|known| known.state != CheckpointState::Pending)
    })
    .await;
    assert_as_told(&new.client, &told).await;
    checkpoint(&new.client, &mut told).await.unwrap();
    checkpoint(&new.client, &mut told).await.unwrap();
    assert_as_told(&new.client, &told).await;
    new.kill().await;
}

/// How many puts a checkpoint takes, so that none of them is left out.
async fn puts_of_a_checkpoint(inline: &'static str) -> u64 {
    let (server, daemon) = server_and_daemon(&[(INLINE, inline)]).await;
    create(&daemon.client).await.unwrap();
    runs(&daemon.client).await.unwrap();
    let mut told = Told::default();
    for _ in 0..2 {
        checkpoint(&daemon.client, &mut told).await.unwrap();
    }
    let puts = || server.faults().count(|logged| logged.op == Op::Put) as u64;
    let before = puts();
    checkpoint(&daemon.client, &mut told).await.unwrap();
    let taken = puts() - before;
    daemon.kill().await;
    taken.min(REQUESTS)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_dies_at_any_request_whose_answer_is_lost_leaves_what_it_told() {
    for number in 0..puts_of_a_checkpoint("0").await {
        dies_at(number, Fault::AnswerHeld, "0").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_dies_at_any_request_that_arrives_late_leaves_what_it_told() {
    for number in 0..puts_of_a_checkpoint("0").await {
        dies_at(number, Fault::Held, "0").await;
    }
}

/// Returns the attempt that is told.
async fn reports(client: Client, attempt: u64, state: &'static str) -> Result<u64, ClientError> {
    let task = TaskReport { operator: "a".into(), subtask: 0, state: state.into() };
    let report = TasksReport { attempt, worker: Some("w".into()), tasks: vec![task], message: None };
    Ok(client.report_tasks(COORDINATED, &report).await?.attempt)
}

async fn acknowledges(client: Client, attempt: u64) -> Result<u64, ClientError> {
    let ack = AckRequest { operator: "a".into(), attempt, ..AckRequest::default() };
    client.acknowledge(COORDINATED, 1, &ack, &[]).await.map(|_| attempt)
}

async fn declines(client: Client, attempt: u64) -> Result<u64, ClientError> {
    let declined = DeclineRequest { operator: "a".into(), subtask: 0, attempt, reason: None, message: None };
    client.decline(COORDINATED, 1, &declined).await.map(|()| attempt)
}

/// Until another attempt is durable another owner may give its number to another one.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_an_attempt_is_told_to_nobody_before_it_is_durable() {
    let (server, daemon) = server_and_daemon(&[("store.request-timeout", "20 s")]).await;
    let client = &daemon.client;
    create(client).await.unwrap();
    runs(client).await.unwrap();
    let first = attempt(client).await.unwrap();

    let gate = Gate::closed();
    let rule = server.faults().add(Rule::on(Op::Put, any), Fault::Held(gate.clone()));
    let failed = tokio::spawn(reports(daemon.new_client(), first, "failed"));
    gate.arrived(1).await;
    let early = [
        tokio::spawn(reports(daemon.new_client(), first, "running")),
        tokio::spawn(acknowledges(daemon.new_client(), first)),
        tokio::spawn(declines(daemon.new_client(), first)),
    ];
    tokio::time::sleep(Duration::from_millis(500)).await;

    assert_eq!(attempt(client).await.unwrap(), first);
    assert!(!failed.is_finished() && early.iter().all(|asked| !asked.is_finished()), "somebody was told");
    rule.lift();
    gate.open();
    assert_eq!(failed.await.unwrap().unwrap(), first + 1);
    for asked in early {
        let error = asked.await.unwrap().unwrap_err();
        assert!(error.to_string().contains(&format!("attempt {}", first + 1)), "{error}");
    }
    assert_eq!(attempt(client).await.unwrap(), first + 1);
    daemon.kill().await;
}

fn canceled(retention: Option<&str>) -> EndRequest {
    EndRequest { state: JobEnd::Canceled, retention: retention.map(str::to_owned) }
}

async fn completed_of(client: &Client, job: &str) -> Vec<u64> {
    let known = client.checkpoints(job).await.unwrap().into_iter();
    known.filter(|known| known.state == CheckpointState::Completed).map(|known| known.checkpoint).collect()
}

/// What was told to whoever asked first holds; the others are told what is under way, or the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_ended_as_was_asked_first_whatever_comes_meanwhile() {
    const KEEPS: &str = "RETAIN_ON_CANCELLATION";
    let retention = ("execution.checkpointing.externalized-checkpoint-retention", KEEPS);
    let (server, daemon) = server_and_daemon(&[("store.request-timeout", "20 s"), retention]).await;
    let client = &daemon.client;
    create(client).await.unwrap();
    runs(client).await.unwrap();
    checkpoint(client, &mut Told::default()).await.unwrap();
    let kept = completed_of(client, COORDINATED).await;
    let first = attempt(client).await.unwrap();
    // One that it could claim.
    let put = PutParams { checkpoint: Some(70), ..PutParams::default() };
    client.create_job("other").await.unwrap();
    client.put("other", &put, None, "x".into()).await.unwrap();
    client.complete("other", 70).await.unwrap();

    let gate = Gate::closed();
    let rule = server.faults().add(Rule::on(Op::Put, any), Fault::Held(gate.clone()));
    let ends = |request: EndRequest| {
        let client = daemon.new_client();
        tokio::spawn(async move { client.end_job(COORDINATED, &request).await.map(|answer| answer.kept) })
    };
    let asked_first = ends(canceled(None));
    gate.arrived(1).await;
    let same = [ends(canceled(None)), ends(canceled(Some(KEEPS)))];
    let others = [
        ends(canceled(Some("NO_EXTERNALIZED_CHECKPOINTS"))),
        ends(EndRequest { state: JobEnd::Finished, retention: None }),
    ];
    let restored = tokio::spawn({
        let (client, from) = (daemon.new_client(), Some("other".to_owned()));
        async move { client.restore_coordinated(COORDINATED, &RestoreJob { from, ..RestoreJob::default() }).await }
    });
    let changed = tokio::spawn({
        let settings = [("execution.checkpointing.num-retained".to_owned(), 5.into())].into();
        let client = daemon.new_client();
        async move { client.change_settings(COORDINATED, &JobSettings { settings }).await }
    });
    let finished = tokio::spawn(reports(daemon.new_client(), first, "finished"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    rule.lift();
    gate.open();

    assert!(asked_first.await.unwrap().unwrap(), "its checkpoints are kept");
    for asked in same {
        assert!(asked.await.unwrap().unwrap(), "the same end is answered as the first time");
    }
    let is_refused = |error: ClientError| {
        assert_eq!(error.status(), Some(StatusCode::CONFLICT), "{error}");
        assert!(error.to_string().contains("is being ended as CANCELED"), "{error}");
    };
    for asked in others {
        is_refused(asked.await.unwrap().unwrap_err());
    }
    is_refused(restored.await.unwrap().unwrap_err());
    is_refused(changed.await.unwrap().unwrap_err());
    drop(finished.await.unwrap());
    eventually("the job is over", SOON, || async { client.job(COORDINATED).await.unwrap().coordinator.is_none() })
        .await;
    assert_eq!(client.job(COORDINATED).await.unwrap().ended, Some(JobEnd::Canceled));
    assert_eq!(completed_of(client, COORDINATED).await, kept);
    assert_eq!(completed_of(client, "other").await, [70], "what was refused has claimed nothing");
    // The answer was lost: what the job itself had said of its checkpoints is not known any more.
    daemon.kill().await;
    let lenient = Running::start(settings(&server, &[])).await;
    assert!(lenient.client.end_job(COORDINATED, &canceled(None)).await.unwrap().kept);
    let otherwise = EndRequest { state: JobEnd::Finished, retention: None };
    let error = lenient.client.end_job(COORDINATED, &otherwise).await.unwrap_err();
    assert!(error.to_string().contains("has ended as CANCELED"), "{error}");
    assert_eq!(completed_of(&lenient.client, COORDINATED).await, kept);
    lenient.kill().await;
}

/// Whatever it has to look at, and however often: a checkpoint that has completed does not change.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_reads_the_metadata_once() {
    let (server, daemon) = server_and_daemon(&[]).await;
    create(&daemon.client).await.unwrap();
    runs(&daemon.client).await.unwrap();
    checkpoint(&daemon.client, &mut Told::default()).await.unwrap();
    let gets = || server.faults().count(|logged| logged.op == Op::Get && data(&logged.key));
    let before = gets();

    let state = daemon.client.restore_coordinated(COORDINATED, &RestoreJob::default()).await.unwrap();

    assert_eq!((state.checkpoint, state.tasks[0].state.len()), (Some(1), 1));
    assert_eq!(gets() - before, 1);
    daemon.client.job_state(COORDINATED, Some(("a", 0))).await.unwrap();
    assert_eq!(gets() - before, 1, "whoever asks for its state then has what was read");
    daemon.kill().await;
}

async fn member(server: &S3Server, id: &str) -> Running {
    Running::start(member_with(server, id, &[("server.buckets", "checkpoints")])).await
}

/// Members of a cluster, the first of which has the catalog, and a job through the second one.
async fn a_job_through_a_member(server: &S3Server) -> (Running, Running, Told) {
    let (owner, other) = (member(server, "a").await, member(server, "b").await);
    create(&other.client).await.unwrap();
    runs(&other.client).await.unwrap();
    let mut told = Told::default();
    checkpoint(&other.client, &mut told).await.unwrap();
    (owner, other, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_with_the_next_owner_of_the_catalog() {
    for is_killed in [false, true] {
        let server = S3Server::start().await;
        let (owner, other, mut told) = a_job_through_a_member(&server).await;

        match is_killed {
            true => owner.kill().await,
            false => owner.shut_down().await.unwrap(),
        }
        owned_by(&other.client, "b").await;

        runs(&other.client).await.unwrap();
        assert_as_told(&other.client, &told).await;
        checkpoint(&other.client, &mut told).await.unwrap();
        assert_as_told(&other.client, &told).await;
        other.shut_down().await.unwrap();
    }
}

/// Who waits for events holds up neither the member that he asks nor the one that has the catalog.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_ends_at_once_though_workers_wait_for_events_through_it() {
    let server = S3Server::start().await;
    let (owner, other, _) = a_job_through_a_member(&server).await;
    let after = async |client: &Client| client.events(COORDINATED, &EventsParams::default()).await.unwrap().next;
    let waiting = |client: Client, after: String| {
        let params = EventsParams { worker: None, after: Some(after), wait: Some("60 s".into()) };
        tokio::spawn(async move { client.events(COORDINATED, &params).await })
    };
    let (here, there) = (after(&owner.client).await, after(&other.client).await);
    let (here, there) = (waiting(owner.new_client(), here), waiting(other.new_client(), there));
    let begun = Instant::now();

    owner.shut_down().await.unwrap();
    owned_by(&other.client, "b").await;
    let third = member(&server, "c").await;
    let through = after(&third.client).await;
    let through = waiting(third.new_client(), through);
    third.shut_down().await.unwrap();

    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    through.await.unwrap().unwrap_err();
    other.shut_down().await.unwrap();
    drop((here.await.unwrap(), there.await.unwrap()));
}
