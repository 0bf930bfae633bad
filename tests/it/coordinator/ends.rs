//! Requests that come, or whose body comes, when the job that they are about has ended, and there is another one of its name.

use super::*;
use crate::raw::Raw;

/// A request whose head is there and whose body is not: the daemon waits for it.
struct HalfHeld {
    raw: Raw,
    body: String,
}

impl HalfHeld {
    async fn begin(daemon: &TestDaemon, path: &str, body: &Value) -> Self {
        let mut raw = Raw::connect(daemon.api()).await;
        let body = body.to_string();
        let len = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len}\r\nExpect: 100-continue\r\n\r\n"
        );
        raw.send(head).await;
        assert_eq!(raw.answer().await.unwrap().status, 100, "{path}: it asks for the body");
        Self { raw, body }
    }

    async fn end(mut self) -> crate::raw::Answer {
        self.raw.send(self.body).await;
        self.raw.answer().await.unwrap()
    }
}

fn canceled() -> EndRequest {
    EndRequest { state: JobEnd::Canceled, retention: None }
}

#[tokio::test]
async fn what_was_asked_of_a_job_that_has_ended_is_not_done_to_the_next_one_of_its_name() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let interval = json!({"settings": {"execution.checkpointing.interval": "3 h"}});
    let requests = [
        ("end", json!({"state": "CANCELED"})),
        ("restore", json!({})),
        ("settings", interval),
        ("stop", json!({"dir": "s3://checkpoints/sp"})),
        ("checkpoints:trigger", json!({})),
    ];
    for (what, body) in requests {
        drop(running(&daemon, "j", &[("interval", "1 h".into())]).await);
        let held = HalfHeld::begin(&daemon, &format!("/v1/jobs/j/{what}"), &body).await;
        client.end_job("j", &canceled()).await.unwrap();
        let next = running(&daemon, "j", &[("interval", "1 h".into())]).await;

        let answer = held.end().await;

        assert_eq!((answer.status, answer.error()), (409, ("conflict".into(), "job".into())), "{what}");
        assert!(answer.text().contains("begun anew"), "{what}: {}", answer.text());
        let info = client.job("j").await.unwrap().coordinator.unwrap();
        assert_eq!((info.attempt, &*info.status, info.queued), (next.first, "running", 0), "{what}");
        assert_eq!(info.settings["execution.checkpointing.interval"], "1 h", "{what}");
        assert_eq!(info.pending, [0; 0], "{what}");
        client.end_job("j", &canceled()).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_asked_of_a_job_without_a_coordinator_is_not_done_to_one_that_has_one() {
    let daemon = daemon().await;
    let client = &daemon.client;
    client.create_job("other").await.unwrap();
    client.put("other", &PutParams { checkpoint: Some(1), ..PutParams::default() }, None, "x".into()).await.unwrap();
    client.complete("other", 1).await.unwrap();
    for (what, body) in [
        ("end", json!({"state": "CANCELED"})),
        ("checkpoints/1/subsume", json!({})),
        ("checkpoints/1/abort", json!({})),
        ("restore", json!({"from": "other", "mode": "no-claim"})),
    ] {
        client.create_job("j").await.unwrap();
        let held = HalfHeld::begin(&daemon, &format!("/v1/jobs/j/{what}"), &body).await;
        client.end_job("j", &canceled()).await.unwrap();
        let mut next = running(&daemon, "j", &[]).await;
        client.trigger_checkpoint("j", &TriggerRequest::default(), None).await.unwrap();
        let id = next.triggered().await;
        ack_with(client, "j", id, (next.first, 0), "one").await;

        let answer = held.end().await;

        assert_eq!((answer.status, answer.error()), (409, ("conflict".into(), "job".into())), "{what}");
        ack_with(client, "j", id, (next.first, 1), "two").await;
        assert_eq!(next.completed().await, id, "{what}");
        client.end_job("j", &canceled()).await.unwrap();
    }
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
