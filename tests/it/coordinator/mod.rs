//! Jobs whose checkpoints the daemon coordinates, as their workers see it.

mod acks;
mod anew;
mod bounds;
mod commands;
mod deletes;
mod ends;
mod kept;
mod restores;
mod statements;
mod stops;
mod streams;
mod workers;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use esker_client::wire::{
    AckRequest, AckState, BacklogReport, BatchHead, EndRequest, EventPage, EventsParams, JobEnd, JobEvent, JobOperator,
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
