//! What each access key may, for every operation of the S3 API; and keys and tokens that change while the daemon runs.

use std::time::{Duration, Instant};

use esker::api::s3::surface::{ApiOperation, Named, OPERATIONS};
use esker_client::{Client, ClientError};
use tempfile::TempDir;

use crate::certs::put;
use crate::daemon::TestDaemon;
use crate::raw::{Answer, Raw, ask};
use crate::support::signed::S3Signer;

/// Nothing in these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(30);
const KEYS: &str = r#"
tokens = ["all"]
read-tokens = ["look"]

[[keys]]
access-key = "all"
secret-key = "s"

[[keys]]
access-key = "look"
secret-key = "s"
access = "read"

[[keys]]
access-key = "in"
secret-key = "s"
prefixes = ["bucket/in/"]

[[keys]]
access-key = "look-in"
secret-key = "s"
prefixes = ["bucket/in/"]
access = "read"

[[keys]]
access-key = "whole"
secret-key = "s"
prefixes = ["bucket"]

[[keys]]
access-key = "elsewhere"
secret-key = "s"
prefixes = ["other/"]
"#;
const ALL: [&str; 6] = ["all", "look", "in", "look-in", "whole", "elsewhere"];

struct Door {
    daemon: TestDaemon,
    folder: TempDir,
}

impl Door {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = put(folder.path(), "keys.toml", KEYS).display().to_string();
        let flags = [("auth.keys-file", path.as_str()), ("server.reload-interval", "0 s")];
        let door = Self { daemon: TestDaemon::start(&flags).await, folder };
        for target in ["/bucket", "/other", "/bucket/in/key", "/bucket/out", "/bucket/in/source"] {
            assert_eq!(door.ask("all", "PUT", target, "", b"").await.status, 200, "{target}");
        }
        door
    }

    fn signer(&self, key: &str) -> S3Signer {
        S3Signer::new(self.daemon.s3(), key, "s")
    }

    async fn ask(&self, key: &str, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let headers = format!("connection: close\n{headers}");
        let mut raw = Raw::connect(self.daemon.s3()).await;
        raw.send(self.signer(key).request(method, target, &headers, body)).await;
        raw.last_answer().await
    }

    /// Puts other text in place of the file, and waits until it is looked at.
    async fn change(&self, text: &str, outcome: &str) {
        let name = format!("esker_reloads_total{{of=\"keys\",outcome=\"{outcome}\"}}");
        let before = self.metric(&name).await;
        put(self.folder.path(), "keys.toml", text);
        self.daemon.reload();
        let begun = Instant::now();
        while self.metric(&name).await == before {
            assert!(begun.elapsed() < PATIENCE, "it is not {outcome}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.daemon.client.metrics().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// Whether a key may do an operation on `/bucket`, or on `/bucket/in/key`.
fn may(key: &str, operation: &ApiOperation) -> bool {
    let reads = matches!(operation.method, "GET" | "HEAD") || operation.name == "SelectObjectContent";
    match (key, operation.named) {
        (_, Named::Server) | ("all", _) => true,
        ("elsewhere", _) => false,
        // A listing without a prefix is about all of the bucket.
        ("in" | "look-in", Named::Bucket) if operation.name.starts_with("ListObject") => false,
        ("in" | "look-in", Named::Bucket) if operation.name == "ListMultipartUploads" => false,
        // Each key of a batch is judged by itself.
        (_, Named::Bucket) if operation.name == "DeleteObjects" => true,
        ("in", Named::Bucket) | ("look" | "look-in", _) => reads,
        _ => true,
    }
}

fn target_of(operation: &ApiOperation) -> String {
    let path = match operation.named {
        Named::Server => "/",
        Named::Bucket => "/bucket",
        Named::Object => "/bucket/in/key",
    };
    let query = operation.query.replace("uploadId", "uploadId=none").replace("partNumber", "partNumber=1");
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

fn headers_of(operation: &ApiOperation) -> &'static str {
    match operation.name {
        "CopyObject" | "UploadPartCopy" => "x-amz-copy-source: /bucket/in/source",
        "GetObjectAttributes" => "x-amz-object-attributes: ETag",
        _ => "",
    }
}

fn body_of(operation: &ApiOperation) -> &'static [u8] {
    match operation.name {
        "DeleteObjects" => b"<Delete><Object><Key>none</Key></Object></Delete>",
        "CompleteMultipartUpload" => {
            b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>"
        }
        _ => b"",
    }
}

#[tokio::test]
async fn every_operation_asks_what_a_key_may() {
    let (door, mut wrong) = (Door::open().await, vec![]);
    // These two have no address of their own.
    let named =
        |operation: &&ApiOperation| !["ListDirectoryBuckets", "WriteGetObjectResponse"].contains(&operation.name);
    for operation in OPERATIONS.iter().filter(named) {
        for key in ALL {
            let (target, headers) = (target_of(operation), headers_of(operation));
            let answer = door.ask(key, operation.method, &target, headers, body_of(operation)).await;

            let denied = answer.status == 403;
            let as_said = denied && (operation.method == "HEAD" || answer.text().contains("<Code>AccessDenied</Code>"));
            if denied == may(key, operation) || denied != as_said {
                wrong.push(format!("{} by {key}: {} {}", operation.name, answer.status, answer.text()));
            }
        }
        // Whatever was deleted is there for the next one.
        for target in ["/bucket", "/bucket/in/key", "/bucket/in/source"] {
            assert_eq!(door.ask("all", "PUT", target, "", b"").await.status, 200, "{target}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_copy_reads_its_source_and_writes_its_end() {
    let door = Door::open().await;
    for (key, from, to, allowed) in [
        ("in", "/bucket/in/source", "/bucket/in/copy", true),
        ("in", "/bucket/out", "/bucket/in/copy", false),
        ("in", "/bucket/in/source", "/bucket/out", false),
        ("look-in", "/bucket/in/source", "/bucket/in/copy", false),
        ("look", "/bucket/out", "/bucket/in/copy", false),
        ("whole", "/bucket/out", "/bucket/in/copy", true),
        ("elsewhere", "/bucket/out", "/other/copy", false),
    ] {
        let answer = door.ask(key, "PUT", to, &format!("x-amz-copy-source: {from}"), b"").await;

        assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{key}: {from} to {to}: {}", answer.text());
    }
}

#[tokio::test]
async fn each_key_of_a_batch_is_judged_by_itself() {
    let door = Door::open().await;
    let batch =
        b"<Delete><Object><Key>in/key</Key></Object><Object><Key>out</Key></Object><Object><Key>in/</Key></Object>\
        <Object><Key>i</Key></Object></Delete>";
    let batch: Vec<u8> = batch.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let ask = async |key| {
        let answer = door.ask(key, "POST", "/bucket?delete", "", &batch).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.text().matches("<Deleted>").count(), answer.text().matches("<Code>AccessDenied</Code>").count())
    };

    assert_eq!(ask("look").await, (0, 4));
    assert_eq!(ask("look-in").await, (0, 4));
    assert_eq!(ask("in").await, (2, 2));
    assert_eq!(door.ask("all", "HEAD", "/bucket/in/key", "", b"").await.status, 404);
    assert_eq!(door.ask("all", "HEAD", "/bucket/out", "", b"").await.status, 200);
    assert_eq!(door.ask("elsewhere", "POST", "/bucket?delete", "", &batch).await.status, 403);
}

#[tokio::test]
async fn a_listing_needs_a_prefix_within_reach_and_buckets_are_those_within_reach() {
    let door = Door::open().await;
    for (query, allowed) in [
        ("list-type=2&prefix=in/", true),
        ("list-type=2&prefix=in/k", true),
        ("list-type=2&prefix=in", false),
        ("prefix=in/", true),
        ("", false),
        ("versions&prefix=in/", true),
        ("versions", false),
        ("uploads&prefix=in/", true),
        ("uploads", false),
    ] {
        for key in ["in", "look-in"] {
            let answer = door.ask(key, "GET", &format!("/bucket?{query}"), "", b"").await;
            assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{key} {query}: {}", answer.text());
        }
    }
    let buckets = async |key| {
        let text = door.ask(key, "GET", "/", "", b"").await.text();
        ["bucket", "checkpoints", "other"].map(|name| text.contains(&format!("<Name>{name}</Name>")))
    };
    assert_eq!(buckets("all").await, [true, true, true]);
    assert_eq!(buckets("look").await, [true, true, true]);
    assert_eq!(buckets("look-in").await, [true, false, false]);
    assert_eq!(buckets("elsewhere").await, [false, false, true]);
}

#[tokio::test]
async fn a_presigned_address_opens_what_its_key_opens_and_as_long() {
    let door = Door::open().await;
    let fetch = async |access_key: &str, method: &str, key: &str| {
        let target = door.signer(access_key).presigned(method, "bucket", key).await;
        let host = door.daemon.s3();
        let request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n");
        ask(door.daemon.s3(), request).await.status
    };

    assert_eq!(fetch("look-in", "GET", "in/key").await, 200);
    assert_eq!(fetch("look-in", "PUT", "in/key").await, 403);
    assert_eq!(fetch("in", "PUT", "in/key").await, 200);
    assert_eq!(fetch("in", "GET", "out").await, 403);

    door.change("[[keys]]\naccess-key = 'other'\nsecret-key = 's'\n", "loaded").await;
    assert_eq!(fetch("look-in", "GET", "in/key").await, 403);
}

#[tokio::test]
async fn keys_change_without_a_restart_and_bad_ones_leave_the_old() {
    let door = Door::open().await;
    let status = async |key| door.ask(key, "GET", "/bucket/out", "", b"").await.status;
    assert_eq!((status("look").await, status("new").await), (200, 403));

    door.change(&KEYS.replace("\"look\"", "\"new\""), "loaded").await;
    assert_eq!((status("look").await, status("new").await), (403, 200));

    for bad in ["[[keys]]\naccess-key = 'look'\n", "keys = [", "[[keys]]\naccess-key = 'a b'\nsecret-key = 's'\n"] {
        door.change(bad, "refused").await;
        assert_eq!((status("look").await, status("new").await), (403, 200), "{bad}");
    }

    // Nobody is there any more, and nobody comes in for it.
    door.change("", "refused").await;
    assert_eq!((status("look").await, status("new").await), (403, 200));
    door.change("keys = []", "loaded").await;
    assert_eq!((status("look").await, status("new").await), (403, 403));
    let unsigned = ask(door.daemon.s3(), crate::raw::request("GET", "/bucket/out", "", b"")).await;
    assert_eq!(unsigned.status, 403);
    let address = format!("http://{}", door.daemon.api());
    assert!(Client::new(&address, None).unwrap().jobs().await.is_err());
}

#[tokio::test]
async fn tokens_of_the_file_open_the_native_api_or_let_read() {
    let door = Door::open().await;
    let address = format!("http://{}", door.daemon.api());
    let client = |token: &str| Client::new(&address, Some(token.to_owned())).unwrap();
    let status = |error: ClientError| error.status().map(|status| status.as_u16());

    client("all").create_job("j").await.unwrap();
    assert_eq!(client("look").jobs().await.unwrap().len(), 1);
    assert_eq!(client("look").create_job("k").await.map_err(status).unwrap_err(), Some(403));
    assert_eq!(client("other").jobs().await.map_err(status).unwrap_err(), Some(401));
}

#[tokio::test]
async fn a_file_that_cannot_be_used_ends_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = put(folder.path(), "keys.toml", "[[keys]]\naccess-key = 'a'\nsecret = 'hunter2'\n");
    let flags = vec![("auth.keys-file".to_owned(), path.display().to_string())];

    let Err((_, error)) = TestDaemon::try_start_on(tempfile::tempdir().unwrap(), flags).await else {
        panic!("it started")
    };

    let told = error.to_string();
    assert!(error.is_refusal() && told.contains("keys.0.secret") && told.contains("keys.toml:3"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}
