//! `esker jobs`, `checkpoints`, `savepoint` and `stop`, as people use them.

use std::process::Output;

use super::*;
use crate::process::esker;

/// The command at work, beside what the test does.
fn begin(daemon: &TestDaemon, arguments: &[&str]) -> tokio::task::JoinHandle<Output> {
    let mut command = esker();
    command.args(arguments).args(["--api", &format!("http://{}", daemon.api())]);
    tokio::task::spawn_blocking(move || command.output().unwrap())
}

/// What the command printed and told, and its status.
async fn said(daemon: &TestDaemon, arguments: &[&str]) -> (Option<i32>, String, String) {
    texts(begin(daemon, arguments).await.unwrap())
}

fn texts(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn acknowledged(events: &mut Events<'_>, texts: [&str; 2]) -> u64 {
    let id = events.triggered().await;
    for (subtask, text) in (0_u32..).zip(texts) {
        ack_with(events.client, events.job, id, (events.first, subtask), text).await;
    }
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_their_checkpoints_are_shown() {
    let daemon = daemon().await;
    daemon.client.create_job("plain").await.unwrap();
    let mut events = running(&daemon, "team/count", &[]).await;
    let first = checkpoint_of(&mut events, ["one", "three"]).await;
    daemon.client.trigger_checkpoint("team/count", &TriggerRequest::default(), None).await.unwrap();
    let second = events.triggered().await;
    ack_with(&daemon.client, "team/count", second, (events.first, 0), "four").await;

    let (code, jobs, _) = said(&daemon, &["jobs"]).await;
    let line = format!(
        "team/count  running, 0 restarts, tasks 2 of 2 running, 0 finished, checkpoint {first}, 1 pending, 0 failed in a row\n"
    );
    assert_eq!((code, jobs), (Some(0), line), "those without a coordinator have `esker ls`");
    let (_, jobs, _) = said(&daemon, &["jobs", "--json"]).await;
    let jobs: Vec<Value> = serde_json::from_str(&jobs).unwrap();
    let of = jobs.iter().find(|job| job["job"] == "team/count").unwrap();
    assert_eq!((&of["coordinator"]["status"], &of["coordinator"]["pending"]), (&json!("running"), &json!([second])));

    let (code, shown, _) = said(&daemon, &["checkpoints", "--job", "team/count"]).await;
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!((code, lines.len()), (Some(0), 2), "{shown}");
    assert!(lines[0].starts_with(&format!("checkpoint {first}  completed  ")), "{shown}");
    assert!(lines[0].contains(" 2 of 2 tasks, 8 bytes, last count/1 after "), "{shown}");
    assert!(lines[1].starts_with(&format!("checkpoint {second}  pending  ")), "{shown}");
    assert!(lines[1].contains(" 1 of 2 tasks, 4 bytes") && lines[1].ends_with(", missing count/1"), "{shown}");

    daemon.client.report_tasks("team/count", &tasks_of(events.first, &[("count", 1)], "failed")).await.unwrap();
    let (_, shown, _) = said(&daemon, &["checkpoints", "--job", "team/count", "--json"]).await;
    let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&shown[1]["state"], &shown[1]["reason"]), (&json!("failed"), &json!("CHECKPOINT_COORDINATOR_SUSPEND")));
    let (_, jobs, _) = said(&daemon, &["jobs"]).await;
    assert!(jobs.contains("restarting, 1 restarts, tasks 0 of 2 running"), "{jobs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_followed_until_the_job_ends() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[("interval", "20 ms".into())]).await;
    let following = begin(&daemon, &["checkpoints", "--job", "j", "--follow"]);
    let mut last = 0;
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < until {
        last = acknowledged(&mut events, ["a", "b"]).await;
        assert_eq!(events.completed().await, last);
    }
    daemon.client.end_job("j", &EndRequest { state: JobEnd::Canceled, retention: None }).await.unwrap();

    let (code, shown, told) = texts(tokio::time::timeout(PATIENCE, following).await.expect("it ends").unwrap());
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("job j has ended"), "{told}");
    let numbers = shown.lines().map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap());
    let numbers: Vec<u64> = numbers.collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "each once, in order: {shown}");
    assert!(numbers.len() > 1 && numbers.last().is_some_and(|shown| *shown <= last), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_is_taken_and_a_job_stopped_by_hand() {
    let daemon = daemon().await;
    let mut events = running(&daemon, "j", &[("savepoint-dir", "s3://checkpoints/usual".into())]).await;

    let taking = begin(&daemon, &["savepoint", "--job", "j", "--dir", "s3://checkpoints/mine"]);
    acknowledged(&mut events, ["one", "two"]).await;
    let (code, path, told) = texts(taking.await.unwrap());
    assert_eq!(code, Some(0), "{told}");
    let path = path.trim().to_owned();
    assert!(path.starts_with("s3://checkpoints/mine/savepoint-j-"), "{path}");

    let failing = begin(&daemon, &["savepoint", "--job", "j"]);
    events.triggered().await;
    daemon.client.report_tasks("j", &tasks_of(events.first, &[("count", 1)], "failed")).await.unwrap();
    let (code, printed, told) = texts(failing.await.unwrap());
    assert_eq!((code, &*printed), (Some(1), ""));
    assert!(told.contains("it failed: CHECKPOINT_COORDINATOR_SUSPEND"), "{told}");

    events.first += 1;
    let both = [("count", 0), ("count", 1)];
    daemon.client.report_tasks("j", &tasks_of(events.first, &both, "running")).await.unwrap();
    let stopping = begin(&daemon, &["stop", "--job", "j", "--drain"]);
    acknowledged(&mut events, ["three", "four"]).await;
    let stop = events.find(|event| if let JobEvent::Stop(stop) = event { Some(stop.drain) } else { None }).await;
    assert!(stop);
    daemon.client.report_tasks("j", &tasks_of(events.first, &both[..1], "finished")).await.unwrap();
    daemon.client.report_tasks("j", &tasks_of(events.first, &both[1..], "failed")).await.unwrap();
    let (code, stopped, told) = texts(stopping.await.unwrap());
    assert_eq!(code, Some(1), "{told}");
    assert!(stopped.starts_with("s3://checkpoints/usual/savepoint-j-"), "it is there all the same: {stopped}");
    assert!(told.contains("the job has not stopped"), "{told}");

    events.first += 1;
    daemon.client.report_tasks("j", &tasks_of(events.first, &both, "running")).await.unwrap();
    let stopping = begin(&daemon, &["stop", "--job", "j"]);
    acknowledged(&mut events, ["three", "four"]).await;
    daemon.client.report_tasks("j", &tasks_of(events.first, &both, "finished")).await.unwrap();
    let (code, stopped, told) = texts(stopping.await.unwrap());
    assert_eq!(code, Some(0), "{told}");
    assert!(stopped.starts_with("s3://checkpoints/usual/savepoint-j-"), "{stopped}");
    let (_, _, told) = said(&daemon, &["checkpoints", "--job", "j"]).await;
    assert!(told.contains("job j has ended"), "{told}");

    daemon.client.create(&job("next", &[], vec![operator("count", 2)])).await.unwrap();
    let from = RestoreJob { savepoint: Some(path), ..RestoreJob::default() };
    let state = daemon.client.restore_coordinated("next", &from).await.unwrap();
    assert_eq!(starts(&daemon.client, &state).await, [["one"], ["two"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_of_a_job_is_said() {
    let daemon = daemon().await;
    daemon.client.create_job("plain").await.unwrap();
    daemon.client.create(&job("j", &[], vec![operator("count", 1)])).await.unwrap();

    for (arguments, words) in [
        (&["checkpoints", "--job", "nobody"][..], "nobody"),
        (&["checkpoints", "--job", "nobody", "--follow"], "nobody"),
        (&["checkpoints", "--job", "plain"], "no coordinator"),
        (&["savepoint", "--job", "plain", "--dir", "s3://checkpoints/x"], "no coordinator"),
        (&["stop", "--job", "nobody", "--dir", "s3://checkpoints/x"], "nobody"),
        (&["savepoint", "--job", "j"], "savepoint-dir"),
        (&["savepoint", "--job", "j", "--dir", "s3://nowhere/x"], "nowhere"),
        (&["savepoint", "--job", "j", "--dir", "/tmp/x"], "s3://bucket/prefix"),
    ] {
        let (code, printed, told) = said(&daemon, arguments).await;
        assert!(code.is_some_and(|code| code != 0) && printed.is_empty(), "{arguments:?}: {code:?} {printed}");
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
}
