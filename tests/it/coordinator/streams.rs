//! Events as a stream.

use super::*;

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
