//! Jobs whose checkpoints the daemon coordinates, as their workers see it.

mod anew;
mod bounds;
mod commands;
mod deletes;
mod ends;
mod kept;
mod statements;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use esker_client::wire::{
    AckRequest, AckState, BatchHead, EndRequest, EventPage, EventsParams, JobEnd, JobEvent, JobOperator,
    JobOperatorInput, JobSettings, JobStateInfo, KeyGroups, NewJob, PutParams, RestoreJob, SavepointRequest,
    StopRequest, TaskReport, TasksReport, TriggerRequest,
};
use esker_client::{Client, ClientError, Worker, WorkerEvent};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::daemon::TestDaemon;

/// Nothing in these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

async fn daemon() -> TestDaemon {
    TestDaemon::start(&[("server.buckets", "checkpoints"), ("reclaim.delete-grace", "0")]).await
}

fn operator(id: &str, parallelism: u32) -> JobOperator {
    JobOperator { id: id.to_owned(), parallelism, ..JobOperator::default() }
}

fn job(name: &str, settings: &[(&str, Value)], operators: Vec<JobOperator>) -> NewJob {
    let settings = settings.iter().map(|(key, value)| {
        let prefix = if key.starts_with("heartbeat") { "" } else { "execution.checkpointing." };
        (format!("{prefix}{key}"), value.clone())
    });
    NewJob {
        job: name.to_owned(),
        coordinated: true,
        settings: Some(settings.collect()),
        operators: Some(operators),
        iterative: None,
    }
}

fn tasks_of(attempt: u64, tasks: &[(&str, u32)], state: &str) -> TasksReport {
    let task = |(operator, subtask): &(&str, u32)| TaskReport {
        operator: (*operator).to_owned(),
        subtask: *subtask,
        state: state.to_owned(),
    };
    TasksReport { attempt, worker: Some("w".to_owned()), tasks: tasks.iter().map(task).collect(), message: None }
}

/// The number that the attempts of a job begin with.
async fn first_attempt(client: &Client, job: &str) -> u64 {
    let info = client.job(job).await.unwrap().coordinator.unwrap();
    info.attempt - info.restarts
}

/// The events of a job, one by one.
struct Events<'a> {
    client: &'a Client,
    job: &'static str,
    /// The job's first attempt.
    first: u64,
    at: Option<String>,
    waiting: Vec<esker_client::wire::EventInfo>,
}

impl<'a> Events<'a> {
    async fn of(client: &'a Client, job: &'static str) -> Self {
        let first = first_attempt(client, job).await;
        Self { client, job, first, at: None, waiting: vec![] }
    }

    async fn page(&mut self) -> EventPage {
        let params =
            EventsParams { worker: Some("w".to_owned()), after: self.at.clone(), wait: Some("10 s".to_owned()) };
        self.client.events(self.job, &params).await.unwrap()
    }

    async fn next(&mut self) -> JobEvent {
        let next = async {
            while self.waiting.is_empty() {
                self.waiting = self.page().await.events;
            }
            let info = self.waiting.remove(0);
            self.at = Some(info.id);
            info.event
        };
        tokio::time::timeout(PATIENCE, next).await.expect("no event comes")
    }

    /// The first event that `wanted` takes; others are passed over.
    async fn find<T>(&mut self, wanted: impl Fn(&JobEvent) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.next().await) {
                return found;
            }
        }
    }

    async fn triggered(&mut self) -> u64 {
        self.find(|event| match event {
            JobEvent::Trigger(trigger) => Some(trigger.checkpoint),
            _ => None,
        })
        .await
    }

    async fn completed(&mut self) -> u64 {
        self.find(|event| match event {
            JobEvent::Complete(complete) => Some(complete.checkpoint),
            _ => None,
        })
        .await
    }
}

fn ack(attempt: u64, subtask: u32, state: Vec<AckState>) -> AckRequest {
    AckRequest { operator: "count".to_owned(), subtask, attempt, state, ..AckRequest::default() }
}

fn riding(part: u32, name: &str) -> AckState {
    AckState { name: Some(name.to_owned()), part: Some(part), ..AckState::default() }
}

async fn ack_with(client: &Client, job: &str, checkpoint: u64, (attempt, subtask): (u64, u32), text: &str) {
    let parts = [(BatchHead::default(), Bytes::from(text.to_owned()))];
    let ack = ack(attempt, subtask, vec![riding(0, "count")]);
    client.acknowledge(job, checkpoint, &ack, &parts).await.unwrap();
}

/// A job of two tasks that both run.
async fn running<'a>(daemon: &'a TestDaemon, name: &'static str, settings: &[(&str, Value)]) -> Events<'a> {
    daemon.client.create(&job(name, settings, vec![operator("count", 2)])).await.unwrap();
    let mut events = Events::of(&daemon.client, name).await;
    daemon.client.report_tasks(name, &tasks_of(events.first, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    assert!(matches!(events.next().await, JobEvent::Hello(hello) if hello.status == "running"));
    events
}

async fn checkpoint_of(events: &mut Events<'_>, texts: [&str; 2]) -> u64 {
    let (client, job, attempt) = (events.client, events.job, events.first);
    client.trigger_checkpoint(job, &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    for (subtask, text) in (0_u32..).zip(texts) {
        ack_with(client, job, id, (attempt, subtask), text).await;
    }
    assert_eq!(events.completed().await, id);
    id
}

/// What each task of `count` starts from, as text.
async fn starts(client: &Client, state: &JobStateInfo) -> Vec<Vec<String>> {
    let mut all = vec![];
    for task in &state.tasks {
        let mut texts = vec![];
        for state in &task.state {
            let bytes = client.get(&state.segment).await.unwrap();
            for (start, end) in &state.ranges {
                texts.push(String::from_utf8(bytes[*start as usize..*end as usize].to_vec()).unwrap());
            }
        }
        all.push(texts);
    }
    all
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, status: StatusCode, field: &str, words: &str) {
    match answer.unwrap_err() {
        ClientError::Refused { status: is, field: Some(of), message, .. } => {
            assert_eq!((is, &*of), (status, field), "{message}");
            assert!(message.contains(words), "{message}");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn periodic_checkpoints_complete_are_subsumed_and_go_on_after_a_restart_of_the_daemon() {
    let mut daemon = daemon().await;
    let mut last = 0;
    for round in 0..2 {
        let mut events = running(&daemon, "j", &[("interval", "50 ms".into()), ("num-retained", 2.into())]).await;
        for _ in 0..3 {
            let id = events.triggered().await;
            assert!(id > last, "{id} comes after {last}");
            last = id;
            for subtask in 0..2 {
                ack_with(&daemon.client, "j", id, (events.first, subtask), &format!("{id}/{subtask}")).await;
            }
            assert_eq!(events.completed().await, id);
        }
        let subsumed = events
            .find(|event| match event {
                JobEvent::Subsume(subsume) => Some(subsume.checkpoint),
                _ => None,
            })
            .await;
        assert!(subsumed < last);
        let info = daemon.client.job("j").await.unwrap().coordinator.unwrap();
        assert_eq!((info.restarts, info.tasks_running, &*info.status), (0, 2, "running"));
        assert_eq!(info.settings["execution.checkpointing.num-retained"], "2");
        let metadata = daemon.client.checkpoint_metadata("j", last).await.unwrap();
        assert_eq!(metadata["operators"][0]["tasks"][1]["state"][0]["len"], json!(format!("{last}/1").len()));
        if round == 0 {
            assert_eq!(daemon.metric("esker_number_of_completed_checkpoints_total").await, 3.0);
            let kept = daemon.client.checkpoints("j").await.unwrap();
            assert!(
                kept.iter().filter(|known| known.state == esker_client::wire::CheckpointState::Completed).count() >= 2
            );
        }
        daemon = daemon.restart().await;
    }
}

#[tokio::test]
async fn wrong_jobs_are_refused_with_the_field_and_the_same_job_again_changes_nothing() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let create = async |settings: &[(&str, Value)], operators| client.create(&job("j", settings, operators)).await;
    let one = || vec![operator("count", 1)];
    let bad = StatusCode::BAD_REQUEST;

    refused(create(&[("intervall", "1 s".into())], one()).await, bad, "settings", "execution.checkpointing.interval");
    refused(create(&[("interval", "1 ms".into())], one()).await, bad, "settings", "at least 10 ms");
    refused(create(&[("file-merging.enabled", true.into())], one()).await, bad, "settings", "daemon");
    refused(create(&[("dir", "s3://nowhere/x".into())], one()).await, StatusCode::NOT_FOUND, "bucket", "nowhere");
    refused(create(&[], vec![]).await, bad, "operators", "1 to 1000");
    refused(create(&[], vec![operator("a", 1), operator("a", 2)]).await, bad, "operators", "two operators");
    refused(create(&[], vec![operator("a", 0)]).await, bad, "operators", "parallelism");
    let own_input =
        JobOperator { inputs: vec![JobOperatorInput { from: "a".to_owned(), pattern: None }], ..operator("a", 1) };
    refused(create(&[], vec![own_input]).await, bad, "operators", "`iterative`");
    for dir in ["s3://checkpoints/a/../b", "s3://checkpoints/a//b", "s3://checkpoints/./b"] {
        refused(create(&[("savepoint-dir", dir.into())], one()).await, bad, "settings", "empty parts");
    }
    let unaligned = [("unaligned.enabled", Value::from(true))];
    let iterative = NewJob { iterative: Some(true), ..job("j", &unaligned, one()) };
    refused(client.create(&iterative).await, bad, "iterative", "unaligned.forced");
    refused(client.create(&NewJob { coordinated: false, ..iterative }).await, bad, "coordinated", "coordinator");
    assert!(client.jobs().await.unwrap().is_empty(), "nothing is left behind");

    create(&[("interval", "1 h".into())], one()).await.unwrap();
    create(&[("interval", "60 min".into())], one()).await.unwrap();
    refused(create(&[], one()).await, StatusCode::CONFLICT, "job", "settings");
    refused(
        create(&[("interval", "1 h".into())], vec![operator("b", 1)]).await,
        StatusCode::CONFLICT,
        "job",
        "operators",
    );
    client.create_job("plain").await.unwrap();
    let report = client.report_tasks("plain", &tasks_of(1, &[("a", 0)], "running")).await;
    refused(report, StatusCode::NOT_FOUND, "job", "no coordinator");
    let report = client.report_tasks("j", &tasks_of(1, &[("count", 7)], "running")).await;
    refused(report, bad, "subtask", "no task");
}

#[tokio::test]
async fn s5_4_a_late_acknowledgement_is_refused_and_what_it_brings_is_freed() {
    let daemon = daemon().await;
    let keys = [("timeout", Value::from("3 s")), ("tolerable-failed-checkpoints", 9.into())];
    let mut events = running(&daemon, "j", &keys).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    ack_with(&daemon.client, "j", id, (events.first, 0), "in time").await;
    let stored = PutParams { checkpoint: Some(id), ..PutParams::default() };
    daemon.client.put("j", &stored, None, "beforehand".into()).await.unwrap();

    let abort = events.find(|event| if let JobEvent::Abort(abort) = event { Some(abort.clone()) } else { None }).await;
    assert_eq!((abort.checkpoint, &*abort.reason), (id, "CHECKPOINT_EXPIRED"));
    let parts = [(BatchHead::default(), Bytes::from_static(b"too late"))];
    let late = daemon.client.acknowledge("j", id, &ack(events.first, 1, vec![riding(0, "count")]), &parts).await;

    refused(late, StatusCode::CONFLICT, "checkpoint", "CHECKPOINT_EXPIRED");
    let never = daemon.client.acknowledge("j", 77, &ack(events.first, 1, vec![]), &[]).await;
    refused(never, StatusCode::CONFLICT, "checkpoint", "never triggered");
    let free = async {
        while !daemon.client.segments("j", None, None).await.unwrap().segments.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("segments of the expired checkpoint stay");
    refused(
        daemon.client.put("j", &stored, None, "afterwards".into()).await,
        StatusCode::CONFLICT,
        "checkpoint",
        "aborted",
    );
}

#[tokio::test]
async fn an_acknowledgement_may_be_sent_again_and_another_one_of_the_task_is_ignored() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    let attempt = events.first;
    let acknowledge = async |text: &'static str| {
        let parts = [(BatchHead::default(), Bytes::from_static(text.as_bytes()))];
        daemon.client.acknowledge("j", id, &ack(attempt, 0, vec![riding(0, "count")]), &parts).await.unwrap()
    };

    let first = acknowledge("state").await;
    let again = acknowledge("state").await;
    assert_eq!((first.missing, again.missing), (1, 1));
    assert_eq!(first.segments[0].segment, again.segments[0].segment);
    assert!(acknowledge("other").await.segments.is_empty());
    ack_with(&daemon.client, "j", id, (events.first, 1), "b").await;
    assert_eq!(events.completed().await, id);

    assert_eq!(acknowledge("state").await.state, "completed");
    let metadata = daemon.client.checkpoint_metadata("j", id).await.unwrap();
    assert_eq!(metadata["operators"][0]["tasks"][0]["state"][0]["segment"], json!(first.segments[0].segment));
}

#[tokio::test]
async fn wrong_acknowledgements_are_refused_and_the_checkpoint_goes_on() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    let part = || [(BatchHead::default(), Bytes::from_static(b"12345678"))];
    let send = async |request: AckRequest, parts: &[(BatchHead, Bytes)]| {
        daemon.client.acknowledge("j", id, &request, parts).await
    };
    let (bad, conflict) = (StatusCode::BAD_REQUEST, StatusCode::CONFLICT);

    refused(
        send(ack(events.first + 8, 0, vec![]), &[]).await,
        conflict,
        "attempt",
        &format!("attempt {}", events.first),
    );
    refused(send(ack(events.first, 2, vec![]), &[]).await, bad, "subtask", "no task");
    refused(send(ack(events.first, 0, vec![riding(1, "x")]), &part()).await, bad, "state", "part 1");
    refused(send(ack(events.first, 0, vec![]), &part()).await, bad, "state", "no state is in part 0");
    let beyond = AckState { offsets: Some(vec![0, 9]), ..riding(0, "x") };
    refused(send(ack(events.first, 0, vec![beyond]), &part()).await, bad, "state", "offsets");
    let groups =
        AckState { kind: Some("keyed".into()), key_groups: Some(KeyGroups { start: 0, end: 128 }), ..riding(0, "x") };
    refused(send(ack(events.first, 0, vec![groups]), &part()).await, bad, "state", "key groups");
    let finished = AckRequest { finished: true, ..ack(events.first, 0, vec![riding(0, "x")]) };
    refused(send(finished, &part()).await, bad, "state", "finished");
    let elsewhere = [(BatchHead { checkpoint: Some(id + 1), ..BatchHead::default() }, Bytes::from_static(b"1"))];
    refused(send(ack(events.first, 0, vec![riding(0, "x")]), &elsewhere).await, bad, "checkpoint", "another one");
    let torn = [(BatchHead { crc32c: Some("00000000".into()), ..BatchHead::default() }, Bytes::from_static(b"1"))];
    refused(send(ack(events.first, 0, vec![riding(0, "x")]), &torn).await, bad, "crc32c", "CRC-32C");

    ack_with(&daemon.client, "j", id, (events.first, 0), "a").await;
    ack_with(&daemon.client, "j", id, (events.first, 1), "b").await;
    assert_eq!(events.completed().await, id);
}

#[tokio::test]
async fn s5_8_segments_of_completed_checkpoints_are_used_again_if_the_job_is_incremental() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[("incremental", true.into())]).await;
    let shared = |text: &'static str| {
        [(BatchHead { scope: Some("shared".into()), ..BatchHead::default() }, Bytes::from_static(text.as_bytes()))]
    };
    let trigger = async || daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    trigger().await;
    let first = events.triggered().await;
    let stored = daemon
        .client
        .acknowledge("j", first, &ack(events.first, 0, vec![riding(0, "s")]), &shared("base"))
        .await
        .unwrap();
    let base = stored.segments[0].handle.clone();
    ack_with(&daemon.client, "j", first, (events.first, 1), "exclusive").await;
    events.completed().await;
    trigger().await;
    let second = events.triggered().await;

    let of = |segment: &str| AckState { segment: Some(segment.to_owned()), ..AckState::default() };
    let unknown = daemon
        .client
        .acknowledge("j", second, &ack(events.first, 1, vec![of("01ARZ3NDEKTSV4RRFFQ69G5FAV")]), &[])
        .await;
    refused(unknown, StatusCode::CONFLICT, "state", "do not exist");
    let metadata = daemon.client.checkpoint_metadata("j", first).await.unwrap();
    let exclusive = metadata["operators"][0]["tasks"][1]["state"][0]["segment"].as_str().unwrap().to_owned();
    let refusal = daemon.client.acknowledge("j", second, &ack(events.first, 1, vec![of(&exclusive)]), &[]).await;
    refused(refusal, StatusCode::CONFLICT, "state", &exclusive);
    daemon.client.acknowledge("j", second, &ack(events.first, 0, vec![of(&base)]), &[]).await.unwrap();
    daemon.client.acknowledge("j", second, &ack(events.first, 1, vec![]), &[]).await.unwrap();
    assert_eq!(events.completed().await, second);

    assert_eq!(daemon.client.get_handle(&base).await.unwrap(), "base", "it lives on though the first is subsumed");
    let history = daemon.client.checkpoint_history("j").await.unwrap();
    assert_eq!((history[0].checkpoint, history[0].bytes, history[0].bytes_reused), (second, 0, 4));
}

/// Reads server-sent events by hand.
struct Sse {
    lines: BufReader<TcpStream>,
}

impl Sse {
    async fn open(daemon: &TestDaemon, job: &str, last: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(daemon.api()).await.unwrap();
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request =
            format!("GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{last}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut sse = Self { lines: BufReader::new(stream) };
        let head = sse.line().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        while !sse.line().await.is_empty() {}
        sse
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.lines.read_line(&mut line)).await;
        read.expect("the stream is silent").unwrap();
        line.trim_end().to_owned()
    }

    /// The next event: its id, name and data.
    async fn next(&mut self) -> (String, String, Value) {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let line = self.line().await;
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.to_owned();
            } else if let Some(text) = line.strip_prefix("event: ") {
                name = text.to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                return (id, name, serde_json::from_str(text).unwrap());
            }
        }
    }
}

#[tokio::test]
async fn events_are_streamed_and_a_broken_stream_goes_on_where_it_was() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    let mut stream = Sse::open(&daemon, "j", None).await;
    let (hello, name, data) = stream.next().await;
    assert_eq!((&*name, &data["status"], &data["pending"]), ("hello", &json!("running"), &json!([])));

    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let (trigger, name, data) = stream.next().await;
    assert_eq!((&*name, &data["checkpoint"], &data["kind"]), ("trigger", &json!(1), &json!("checkpoint")));
    drop(stream);
    let id = events.triggered().await;
    for subtask in 0..2 {
        ack_with(&daemon.client, "j", id, (events.first, subtask), "x").await;
    }
    events.completed().await;

    let mut again = Sse::open(&daemon, "j", Some(&trigger)).await;
    let (_, name, data) = again.next().await;
    assert_eq!((&*name, &data["checkpoint"]), ("complete", &json!(1)));
    let mut before = Sse::open(&daemon, "j", Some(&hello)).await;
    assert_eq!(before.next().await.1, "trigger");
    let mut strange = Sse::open(&daemon, "j", Some("of-another-daemon-7")).await;
    let (_, name, data) = strange.next().await;
    assert_eq!((&*name, &data["completed"]), ("hello", &json!(1)));
}

#[tokio::test]
async fn streams_end_when_the_daemon_does() {
    let daemon = daemon().await;
    daemon.client.create(&job("j", &[], vec![operator("count", 1)])).await.unwrap();
    let mut stream = Sse::open(&daemon, "j", None).await;
    stream.next().await;

    let begun = std::time::Instant::now();
    daemon.shut_down().await;

    assert!(begun.elapsed() < Duration::from_secs(10), "it waits for the stream");
    let mut rest = vec![];
    drop(stream.lines.read_to_end(&mut rest).await);
}

#[tokio::test]
async fn s5_11_a_savepoint_is_restored_by_another_job_at_another_parallelism() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[]).await;
    let client = &daemon.client;
    refused(
        client.trigger_savepoint("j", &SavepointRequest::default(), None).await,
        StatusCode::BAD_REQUEST,
        "dir",
        "savepoint-dir",
    );
    let request = SavepointRequest { dir: Some("s3://checkpoints/sp".into()), ..SavepointRequest::default() };
    let begun = client.trigger_savepoint("j", &request, Some("key-1")).await.unwrap();
    let id = events.triggered().await;
    ack_with(client, "j", id, (events.first, 0), "one").await;
    ack_with(client, "j", id, (events.first, 1), "two").await;
    let waiting = SavepointRequest { wait: Some("20 s".into()), ..request };
    let done = client.trigger_savepoint("j", &waiting, Some("key-1")).await.unwrap();

    assert_eq!((&done.request, &*done.state, done.checkpoint), (&begun.request, "completed", Some(id)));
    let path = done.path.unwrap();
    assert!(path.starts_with("s3://checkpoints/sp/savepoint-j-"), "{path}");
    checkpoint_of(&mut events, ["three", "four"]).await;
    client.create(&job("other", &[("incremental", true.into())], vec![operator("count", 3)])).await.unwrap();
    let from = RestoreJob { savepoint: Some(path), ..RestoreJob::default() };
    let state = client.restore_coordinated("other", &from).await.unwrap();
    assert_eq!((state.from.as_deref(), state.checkpoint), (Some("j"), Some(id)));
    assert_eq!(starts(client, &state).await, [vec!["one"], vec!["two"], vec![]]);

    let tasks = [("count", 0), ("count", 1), ("count", 2)];
    client.report_tasks("other", &tasks_of(state.attempt, &tasks, "running")).await.unwrap();
    let mut others = Events::of(client, "other").await;
    assert!(matches!(others.next().await, JobEvent::Hello(_)));
    client.trigger_checkpoint("other", &TriggerRequest::default(), None).await.unwrap();
    let full =
        others.find(|event| if let JobEvent::Trigger(trigger) = event { Some(trigger.full) } else { None }).await;
    assert!(full, "the first checkpoint after no-claim is full");
    assert_eq!(client.checkpoints("j").await.unwrap().iter().filter(|known| known.checkpoint == id).count(), 1);
}

#[tokio::test]
async fn a_job_is_rescaled_and_rescaled_again() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    let id = checkpoint_of(&mut events, ["one", "two"]).await;

    for (restarts, parallelism) in [(1, 5), (2, 1), (3, 2)] {
        let attempt = events.first + restarts;
        let rescale = RestoreJob { operators: Some(vec![operator("count", parallelism)]), ..RestoreJob::default() };
        let state = client.restore_coordinated("j", &rescale).await.unwrap();
        assert_eq!((state.attempt, state.checkpoint), (attempt, Some(id)));
        let mut texts: Vec<String> = starts(client, &state).await.into_iter().flatten().collect();
        texts.sort();
        assert_eq!(texts, ["one", "two"]);
        let restore =
            events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
        assert_eq!((restore.attempt, &*restore.cause, restore.checkpoint), (attempt, "RESTORE", Some(id)));
    }
    let given = JobOperator { max_parallelism: Some(64), ..operator("count", 2) };
    let other_groups = RestoreJob { operators: Some(vec![given]), ..RestoreJob::default() };
    refused(client.restore_coordinated("j", &other_groups).await, StatusCode::CONFLICT, "operators", "max_parallelism");
    let renamed = RestoreJob { operators: Some(vec![operator("sum", 2)]), ..RestoreJob::default() };
    refused(client.restore_coordinated("j", &renamed).await, StatusCode::CONFLICT, "operators", "count");
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().restarts, 3, "nothing changed");
    let allowed = RestoreJob { allow_non_restored_state: Some(true), ..renamed };
    assert_eq!(client.restore_coordinated("j", &allowed).await.unwrap().attempt, events.first + 4);
}

#[tokio::test]
async fn a_task_that_fails_or_falls_silent_begins_a_new_attempt_from_the_newest_checkpoint() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let beats = [("heartbeat.interval", Value::from("100 ms")), ("heartbeat.timeout", "1 s".into())];
    let mut events = running(&daemon, "j", &beats).await;
    let id = checkpoint_of(&mut events, ["one", "two"]).await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    events.triggered().await;

    client.report_tasks("j", &tasks_of(events.first, &[("count", 1)], "failed")).await.unwrap();
    let abort = events.find(|event| if let JobEvent::Abort(abort) = event { Some(abort.reason.clone()) } else { None });
    assert_eq!(abort.await, "CHECKPOINT_COORDINATOR_SUSPEND");
    let restore = events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!((restore.attempt, &*restore.cause, restore.checkpoint), (events.first + 1, "TASK_FAILURE", Some(id)));
    let old = client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "running")).await;
    refused(old, StatusCode::CONFLICT, "attempt", &format!("attempt {}", events.first + 1));
    let state = client.job_state("j", Some(("count", 1))).await.unwrap();
    assert_eq!((state.attempt, starts(client, &state).await), (events.first + 1, vec![vec!["two".to_owned()]]));

    client.report_tasks("j", &tasks_of(events.first + 1, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    let silent = EventsParams { worker: None, after: events.at.clone(), wait: Some("20 s".into()) };
    let lost = loop {
        let page = client.events("j", &silent).await.unwrap();
        if let Some(JobEvent::Restore(restore)) = page.events.into_iter().map(|info| info.event).next() {
            break restore;
        }
    };
    assert_eq!((lost.attempt, &*lost.cause), (events.first + 2, "TASK_LOST"));
}

#[tokio::test]
async fn a_job_stops_with_a_savepoint_and_ends_with_its_tasks() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let keys = [("interval", Value::from("1 h")), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    checkpoint_of(&mut events, ["one", "two"]).await;

    let request = StopRequest { drain: true, ..StopRequest::default() };
    client.stop_job("j", &request, None).await.unwrap();
    let trigger = events.find(|event| if let JobEvent::Trigger(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!((trigger.stop.as_deref(), &*trigger.kind), (Some("drain"), "savepoint"));
    for subtask in 0..2 {
        ack_with(client, "j", trigger.checkpoint, (events.first, subtask), "end").await;
    }
    assert_eq!(events.completed().await, trigger.checkpoint);
    let stop = events.find(|event| if let JobEvent::Stop(stop) = event { Some(stop.clone()) } else { None }).await;
    assert!(stop.drain && stop.path.as_deref().is_some_and(|path| path.starts_with("s3://checkpoints/sp/savepoint-")));
    client.report_tasks("j", &tasks_of(events.first, &[("count", 0), ("count", 1)], "finished")).await.unwrap();
    let end = events.find(|event| if let JobEvent::End(end) = event { Some(end.clone()) } else { None }).await;

    assert_eq!((&*end.state, end.kept), ("FINISHED", false));
    let left = client.checkpoints("j").await.unwrap();
    assert_eq!(
        left.iter().map(|known| known.checkpoint).collect::<Vec<_>>(),
        [trigger.checkpoint],
        "the savepoint stays"
    );
    assert!(client.job("j").await.unwrap().coordinator.is_none());
}

/// What its tasks have committed with the savepoint must not be done once more.
#[tokio::test]
async fn a_job_that_stops_with_a_savepoint_begins_from_that_if_a_task_fails_after_the_daemon_has_died() {
    let daemon = daemon().await;
    let keys = [("interval", Value::from("1 h")), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    daemon.client.stop_job("j", &StopRequest::default(), None).await.unwrap();
    let savepoint = events.triggered().await;
    for subtask in 0..2 {
        ack_with(&daemon.client, "j", savepoint, (events.first, subtask), "end").await;
    }
    assert_eq!(events.completed().await, savepoint);

    let daemon = daemon.restart().await;

    let mut events = Events::of(&daemon.client, "j").await;
    assert!(matches!(events.next().await, JobEvent::Hello(hello) if hello.completed == Some(savepoint)));
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "failed")).await.unwrap();
    let restore = events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!((restore.attempt, restore.checkpoint), (events.first + 1, Some(savepoint)));
    let state = daemon.client.job_state("j", None).await.unwrap();
    assert_eq!(starts(&daemon.client, &state).await, [["end"], ["end"]]);
}

#[tokio::test]
async fn numbers_that_nobody_triggered_are_refused_and_leave_a_job_that_starts() {
    const HIGHEST: u64 = u64::MAX;
    let daemon = daemon().await;
    // Before there is a coordinator any number may be used.
    daemon.client.create_job("j").await.unwrap();
    let highest = PutParams { checkpoint: Some(HIGHEST), ..PutParams::default() };
    daemon.client.put("j", &highest, None, "x".into()).await.unwrap();
    daemon.client.complete("j", HIGHEST).await.unwrap();
    let mut events = running(&daemon, "j", &[]).await;

    for id in [7, HIGHEST - 1] {
        let params = PutParams { checkpoint: Some(id), ..PutParams::default() };
        let put = daemon.client.put("j", &params, None, "x".into()).await;
        refused(put, StatusCode::CONFLICT, "checkpoint", "never triggered");
    }
    let first = checkpoint_of(&mut events, ["one", "two"]).await;
    let daemon = daemon.restart().await;

    let mut events = Events::of(&daemon.client, "j").await;
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 0), ("count", 1)], "running")).await.unwrap();
    events.next().await;
    let next = checkpoint_of(&mut events, ["three", "four"]).await;
    assert!(first < next && next < 1000, "{next} after {first}");
}

#[tokio::test]
async fn what_workers_of_a_job_say_that_has_ended_is_nothing_to_another_one_of_its_name() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let old = running(&daemon, "j", &[]).await;
    let end = EndRequest { state: JobEnd::Canceled, retention: None };
    client.end_job("j", &end).await.unwrap();

    let mut events = running(&daemon, "j", &[]).await;
    client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;
    let conflict = StatusCode::CONFLICT;

    let stale = client.acknowledge("j", id, &ack(old.first, 0, vec![]), &[]).await;
    refused(stale, conflict, "attempt", &format!("attempt {}", events.first));
    let stale = client.report_tasks("j", &tasks_of(old.first, &[("count", 0)], "failed")).await;
    refused(stale, conflict, "attempt", &format!("attempt {}", events.first));
    for subtask in 0..2 {
        ack_with(client, "j", id, (events.first, subtask), "mine").await;
    }
    assert_eq!(events.completed().await, id);
}

#[tokio::test]
async fn what_a_running_job_still_needs_is_not_taken_from_it() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    client.create(&job("k", &[], vec![operator("count", 2)])).await.unwrap();

    for mode in [None, Some("claim"), Some("no-claim")] {
        let from = RestoreJob { from: Some("j".into()), mode: mode.map(str::to_owned), ..RestoreJob::default() };
        let taken = client.restore_coordinated("k", &from).await;
        refused(taken, StatusCode::CONFLICT, "from", "has not ended");
    }
    checkpoint_of(&mut events, ["three", "four"]).await;
}

#[tokio::test]
async fn s5_9_the_end_of_a_job_keeps_or_frees_its_checkpoints_as_its_settings_say() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let names = ["a", "b", "c", "d", "e", "f"];
    let modes = ["NO_EXTERNALIZED_CHECKPOINTS", "DELETE_ON_CANCELLATION", "RETAIN_ON_CANCELLATION"];
    let table = [(JobEnd::Canceled, [false, false, true]), (JobEnd::Failed, [false, true, true])];
    let mut names = names.into_iter();
    for (end, kept) in table {
        for (mode, kept) in modes.into_iter().zip(kept) {
            let name = names.next().unwrap();
            let mut events = running(&daemon, name, &[("externalized-checkpoint-retention", mode.into())]).await;
            checkpoint_of(&mut events, ["one", "two"]).await;

            let ended = client.end_job(name, &EndRequest { state: end, retention: None }).await.unwrap();

            assert_eq!(ended.kept, kept, "{mode} {end:?}");
            let there = client.checkpoints(name).await.map_or(0, |known| known.len());
            assert_eq!(there > 0, kept, "{mode} {end:?}");
        }
    }
}

#[tokio::test]
async fn metadata_is_published_where_the_job_says_and_goes_with_the_checkpoint() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[("dir", "s3://checkpoints/meta".into())]).await;
    let mut last = 0;
    for _ in 0..2 {
        last = checkpoint_of(&mut events, ["one", "two"]).await;
    }

    let keys = async || {
        let page = client.objects("checkpoints", "meta/", None).await.unwrap();
        page.objects.into_iter().map(|object| object.key).collect::<Vec<_>>()
    };
    let only = vec![format!("meta/j/metadata-{last}.json")];
    let becomes = async {
        while keys().await != only {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, becomes).await.expect("the first one stays");
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    assert!(keys().await.is_empty());
}

#[tokio::test]
async fn settings_change_while_the_job_runs() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[("interval", "1 h".into())]).await;
    let change = |key: &str, value: Value| JobSettings {
        settings: BTreeMap::from([(format!("execution.checkpointing.{key}"), value)]),
    };

    refused(
        daemon.client.change_settings("j", &change("timeout", "1 ms".into())).await,
        StatusCode::BAD_REQUEST,
        "settings",
        "at least 10 ms",
    );
    refused(
        daemon.client.change_settings("j", &change("dir", "s3://checkpoints/x".into())).await,
        StatusCode::BAD_REQUEST,
        "settings",
        "cannot change",
    );
    daemon.client.change_settings("j", &change("interval", "20 ms".into())).await.unwrap();

    assert_eq!(events.triggered().await, 1);
    let daemon = daemon.restart().await;
    let settings = daemon.client.job("j").await.unwrap().coordinator.unwrap().settings;
    assert_eq!(settings["execution.checkpointing.interval"], "20 ms");
}

/// The next event, for which nobody waits longer than a moment: whoever computes has other things to do.
async fn told(worker: &mut Worker) -> Result<WorkerEvent, ClientError> {
    loop {
        if let Ok(event) = tokio::time::timeout(Duration::from_millis(1), worker.next()).await {
            return event;
        }
    }
}

/// Takes what `worker` says that it counted, for as long as `goes_on` says.
async fn count(mut worker: Worker, mut goes_on: impl FnMut(u64) -> bool) -> Result<u64, ClientError> {
    let (mut count, mut taken, mut committed) = (0_u64, BTreeMap::new(), 0);
    loop {
        match told(&mut worker).await? {
            WorkerEvent::Start(state) => {
                count = 0;
                for state in &state.state {
                    for element in worker.elements(state).await? {
                        count += std::str::from_utf8(&element).unwrap().parse::<u64>().unwrap();
                    }
                }
                taken.clear();
                worker.running().await?;
            }
            WorkerEvent::Snapshot(trigger) => {
                count += 1;
                taken.insert(trigger.checkpoint, count);
                let state = AckState::default();
                worker.acknowledge(trigger.checkpoint, vec![(state, Bytes::from(count.to_string()))]).await?;
            }
            WorkerEvent::Complete(checkpoint) => {
                if let Some(count) = taken.remove(&checkpoint) {
                    committed = count;
                    if !goes_on(committed) {
                        return Ok(committed);
                    }
                }
            }
            WorkerEvent::Abort(_) | WorkerEvent::Subsume(_) => {}
            WorkerEvent::Stop(_) => worker.finished().await?,
            WorkerEvent::End(_) => return Ok(committed),
        }
    }
}

#[tokio::test]
async fn workers_count_through_the_loss_of_a_worker() {
    let daemon = daemon().await;
    let keys = [("interval", Value::from("30 ms")), ("tolerable-failed-checkpoints", 1000.into())];
    daemon.client.create(&job("j", &keys, vec![operator("count", 2)])).await.unwrap();
    let worker = |subtask| Worker::new(daemon.client.clone(), "j", "count", subtask);

    let first = async {
        // It ends without a word after five checkpoints; another one takes its place.
        let lost = count(worker(0), |committed| committed < 5).await.unwrap();
        let last = count(worker(0), |committed| committed < 12).await.unwrap();
        (lost, last)
    };
    let other = count(worker(1), |_| true);
    let ((lost, last), ()) = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            both = first => (both, ()),
            other = other => panic!("the other one ended: {other:?}"),
        }
    })
    .await
    .expect("they do not count");

    assert_eq!((lost, last), (5, 12), "each checkpoint counts once");
    let info = daemon.client.job("j").await.unwrap().coordinator.unwrap();
    assert_eq!(info.restarts, 1, "the new worker had the job begin anew");
}

/// Only what all tasks have reported together is remembered.
#[tokio::test]
async fn a_worker_tells_the_next_daemon_that_it_runs() {
    let daemon = daemon().await;
    daemon.client.create(&job("j", &[("interval", "20 ms".into())], vec![operator("count", 2)])).await.unwrap();
    let mut first = Worker::new(daemon.client.clone(), "j", "count", 0);
    assert!(matches!(first.next().await.unwrap(), WorkerEvent::Start(_)));
    first.running().await.unwrap();
    let events = first.next();
    tokio::pin!(events);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut events).await.is_err(), "nothing happens");

    let api = daemon.api().to_string();
    let daemon = daemon.restart_with(&[("server.api", &api)]).await;
    let mut second = Worker::new(daemon.client.clone(), "j", "count", 1);
    assert!(matches!(second.next().await.unwrap(), WorkerEvent::Start(_)));
    second.running().await.unwrap();

    let event = tokio::time::timeout(PATIENCE, events).await.expect("no checkpoint is triggered").unwrap();
    assert!(matches!(event, WorkerEvent::Snapshot(_)), "{event:?}");
}

/// Whoever begins then is told what to do by status and attempt; the state of all others is in use.
#[tokio::test]
async fn what_a_running_job_began_from_may_be_gone() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    let both = [("count", 0), ("count", 1)];
    client.report_tasks("j", &tasks_of(events.first, &both[..1], "failed")).await.unwrap();
    let state = client.job_state("j", None).await.unwrap();
    assert_eq!((&*state.status, state.tasks.len()), ("restarting", 2));
    events.first += 1;
    client.report_tasks("j", &tasks_of(events.first, &both, "running")).await.unwrap();
    checkpoint_of(&mut events, ["three", "four"]).await;

    let told = async |client: &Client| {
        let state = client.job_state("j", Some(("count", 1))).await.unwrap();
        (state.status, state.attempt, state.tasks.len())
    };
    let gone = ("running".to_owned(), events.first, 0);
    let begun = std::time::Instant::now();
    while told(client).await != gone {
        assert!(begun.elapsed() < PATIENCE, "{:?}", told(client).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let first = events.first;
    let daemon = daemon.restart().await;
    assert_eq!(told(&daemon.client).await, ("running".to_owned(), first, 0), "nobody has read it there before");
    daemon.client.report_tasks("j", &tasks_of(first, &both[1..], "failed")).await.unwrap();
    let state = daemon.client.job_state("j", None).await.unwrap();
    assert_eq!(starts(&daemon.client, &state).await, [["three"], ["four"]]);
}

#[tokio::test]
async fn an_acknowledgement_may_have_as_many_key_groups_as_there_are() {
    let daemon = daemon().await;
    let wide = JobOperator { max_parallelism: Some(32_768), ..operator("count", 1) };
    daemon.client.create(&job("j", &[], vec![wide])).await.unwrap();
    let mut events = Events::of(&daemon.client, "j").await;
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "running")).await.unwrap();
    assert!(matches!(events.next().await, JobEvent::Hello(_)));
    daemon.client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
    let id = events.triggered().await;

    let keyed = AckState {
        kind: Some("keyed".into()),
        offsets: Some((0..32_768).collect()),
        key_groups: Some(KeyGroups { start: 0, end: 32_768 }),
        ..riding(0, "s")
    };
    let parts = [(BatchHead::default(), Bytes::from(vec![7; 32_768]))];
    daemon.client.acknowledge("j", id, &ack(events.first, 0, vec![keyed]), &parts).await.unwrap();

    assert_eq!(events.completed().await, id);
}

/// Whatever completes just then: the state that was told to be complete last is where the job goes on.
#[tokio::test]
async fn a_restore_goes_on_from_what_completes_meanwhile() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut events = running(&daemon, "j", &[]).await;
    checkpoint_of(&mut events, ["0", "0"]).await;
    let both = [("count", 0), ("count", 1)];
    for round in 1..=25 {
        client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
        let id = events.triggered().await;
        let text = round.to_string();
        ack_with(client, "j", id, (events.first, 0), &text).await;
        let last = async {
            tokio::time::sleep(Duration::from_micros(200 * (round % 10))).await;
            let parts = [(BatchHead::default(), Bytes::from(text.clone()))];
            drop(client.acknowledge("j", id, &ack(events.first, 1, vec![riding(0, "count")]), &parts).await);
        };
        let restore = async {
            tokio::time::sleep(Duration::from_micros(150 * round)).await;
            client.restore_coordinated("j", &RestoreJob::default()).await
        };
        let ((), state) = tokio::join!(last, restore);
        let state = state.unwrap();

        let completed = events
            .find(|event| match event {
                JobEvent::Complete(complete) if complete.checkpoint == id => Some(true),
                JobEvent::Restore(_) => Some(false),
                _ => None,
            })
            .await;
        if completed {
            assert_eq!(state.checkpoint, Some(id), "round {round}: it was told to be complete");
        }
        assert!(starts(client, &state).await.concat().iter().all(|text| !text.is_empty()), "it is there");
        events.first = state.attempt;
        client.report_tasks("j", &tasks_of(state.attempt, &both, "running")).await.unwrap();
    }
}

#[tokio::test]
async fn a_restore_that_is_refused_leaves_a_savepoint_in_progress() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut others =
        running(&daemon, "other", &[("externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION".into())]).await;
    let of_other = checkpoint_of(&mut others, ["a", "b"]).await;
    client.end_job("other", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    let keys = [("interval", Value::from("1 d")), ("savepoint-dir", "s3://checkpoints/sp".into())];
    let mut events = running(&daemon, "j", &keys).await;
    checkpoint_of(&mut events, ["one", "two"]).await;
    client.trigger_savepoint("j", &SavepointRequest::default(), Some("s")).await.unwrap();
    let savepoint = events.triggered().await;

    let claim = RestoreJob {
        from: Some("other".into()),
        checkpoint: Some(of_other),
        mode: Some("claim".into()),
        ..RestoreJob::default()
    };
    assert_eq!(client.restore_coordinated("j", &claim).await.unwrap_err().status(), Some(StatusCode::CONFLICT));

    for subtask in 0..2 {
        ack_with(client, "j", savepoint, (events.first, subtask), "x").await;
    }
    let waiting = SavepointRequest { wait: Some("20 s".into()), ..SavepointRequest::default() };
    let done = client.trigger_savepoint("j", &waiting, Some("s")).await.unwrap();
    assert_eq!((&*done.state, done.checkpoint), ("completed", Some(savepoint)));
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().restarts, 0);
}

#[tokio::test]
async fn a_job_that_is_created_anew_begins_from_nothing_until_somebody_says_otherwise() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let keeps = [("externalized-checkpoint-retention", Value::from("RETAIN_ON_CANCELLATION"))];
    let mut events = running(&daemon, "j", &keeps).await;
    let kept = checkpoint_of(&mut events, ["one", "two"]).await;
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();

    let mut events = running(&daemon, "j", &keeps).await;
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().completed, None);
    client.report_tasks("j", &tasks_of(events.first, &[("count", 0)], "failed")).await.unwrap();
    let restore = events.find(|event| if let JobEvent::Restore(it) = event { Some(it.clone()) } else { None }).await;
    assert_eq!(restore.checkpoint, None);

    let daemon = daemon.restart().await;
    assert_eq!(daemon.client.job_state("j", None).await.unwrap().checkpoint, None);
    let state = daemon.client.restore_coordinated("j", &RestoreJob::default()).await.unwrap();
    assert_eq!(
        (state.checkpoint, starts(&daemon.client, &state).await),
        (Some(kept), vec![vec!["one".to_owned()], vec!["two".to_owned()]])
    );
}

#[tokio::test]
async fn a_job_that_was_ended_stays_so_whatever_is_asked_of_it_meanwhile() {
    let daemon = daemon().await;
    let client = &daemon.client;
    for round in 0..12 {
        let name: &'static str = Box::leak(format!("j{round}").into_boxed_str());
        let events = running(&daemon, name, &[]).await;
        let changes = JobSettings { settings: [("execution.checkpointing.interval".to_owned(), "1 h".into())].into() };
        let ended = async {
            tokio::time::sleep(Duration::from_micros(100 * round)).await;
            client.end_job(name, &EndRequest { state: JobEnd::Canceled, retention: None }).await
        };
        let other = async {
            if round % 2 == 0 {
                drop(client.change_settings(name, &changes).await);
            } else {
                drop(client.report_tasks(name, &tasks_of(events.first, &[("count", 0)], "failed")).await);
            }
        };
        let (ended, ()) = tokio::join!(ended, other);
        ended.unwrap();
        assert_eq!(client.job(name).await.unwrap_err().status(), Some(StatusCode::NOT_FOUND), "nothing of it is kept");
    }
    let daemon = daemon.restart().await;
    assert!(daemon.client.jobs().await.unwrap().is_empty());
}

#[tokio::test]
async fn two_processes_are_never_the_same_task() {
    let daemon = daemon().await;
    let client = &daemon.client;
    client.create(&job("j", &[], vec![operator("count", 2)])).await.unwrap();
    let first = first_attempt(client, "j").await;
    let by =
        |worker: &str| TasksReport { worker: Some(worker.to_owned()), ..tasks_of(first, &[("count", 0)], "running") };
    client.report_tasks("j", &by("one")).await.unwrap();
    client.report_tasks("j", &by("one")).await.unwrap();

    let refusal = client.report_tasks("j", &by("two")).await;

    refused(refusal, StatusCode::CONFLICT, "attempt", &format!("attempt {}", first + 1));
    assert_eq!(client.job("j").await.unwrap().coordinator.unwrap().status, "restarting");
}

#[tokio::test]
async fn a_worker_of_a_job_that_has_ended_is_none_of_the_next_one() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let one = || job("j", &[], vec![operator("count", 1)]);
    client.create(&one()).await.unwrap();
    let mut old = Worker::new(client.clone(), "j", "count", 0);
    assert!(matches!(old.next().await.unwrap(), WorkerEvent::Start(_)));
    old.running().await.unwrap();
    client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();
    client.create(&one()).await.unwrap();

    let event = tokio::time::timeout(PATIENCE, old.next()).await.expect("it hears of the end").unwrap();

    assert!(matches!(event, WorkerEvent::End(_)), "{event:?}");
}
