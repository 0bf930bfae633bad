//! The table of the S3 API, row by row, against a daemon, and against what the README and the tests say.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use esker::api::s3::surface::{ApiOperation, Carrier, Named, OPERATIONS, ROWS, Row, Served, Treatment, absent};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::daemon::TestDaemon;

const KEY: &str = "/bucket/key";

#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
}

/// A request, with its headers as lines.
fn request(method: &str, target: &str, headers: &str, body: &'static [u8]) -> Request<Full<Bytes>> {
    let builder = Request::builder().method(method).uri(target).header("host", "esker");
    let mut request = builder.header("content-length", body.len());
    for (name, value) in headers.lines().filter_map(|line| line.split_once(':')) {
        request = request.header(name, value.trim());
    }
    request.body(Full::from(body)).unwrap()
}

/// The answer to a request on a connection of its own.
async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driven = tokio::spawn(connection);
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    drop(sender);
    driven.await.unwrap().unwrap();
    Answer { status, body: String::from_utf8_lossy(&body).into_owned() }
}

/// A request for `operation` that could be answered well, with a header or a parameter more.
fn request_for(operation: &ApiOperation, upload: &str, header: &str, parameter: &str) -> Request<Full<Bytes>> {
    let path = match operation.named {
        Named::Server => "/",
        // Of its own, so that the bucket of the others stays.
        Named::Bucket if ["CreateBucket", "DeleteBucket"].contains(&operation.name) => "/another",
        Named::Bucket => "/bucket",
        Named::Object => KEY,
    };
    let query =
        operation.query.replace("uploadId", &format!("uploadId={upload}")).replace("partNumber", "partNumber=1");
    let query: Vec<&str> = [query.as_str(), parameter].into_iter().filter(|part| !part.is_empty()).collect();
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    let mut headers = header.to_owned();
    if ["CopyObject", "UploadPartCopy"].contains(&operation.name) && !header.starts_with("x-amz-copy-source:") {
        headers += "x-amz-copy-source: /bucket/source\n";
    }
    if operation.name == "GetObjectAttributes" && !header.starts_with("x-amz-object-attributes:") {
        headers += "x-amz-object-attributes: ETag\n";
    }
    let body: &'static [u8] = match operation.name {
        "PutObject" | "UploadPart" => b"body",
        "PutObjectTagging" => b"<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>",
        "DeleteObjects" => b"<Delete><Object><Key>none</Key></Object></Delete>",
        "CompleteMultipartUpload" => {
            b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>"
        }
        _ => b"",
    };
    request(operation.method, &target, &headers, body)
}

struct Door {
    daemon: TestDaemon,
    upload: String,
}

impl Door {
    async fn open() -> Self {
        let daemon = TestDaemon::start(&[]).await;
        let mut door = Self { daemon, upload: String::new() };
        door.prepare().await;
        door
    }

    /// Sets up again what an operation may have changed.
    async fn prepare(&mut self) {
        let address = self.daemon.s3();
        for (method, target) in [("PUT", "/bucket"), ("PUT", "/another"), ("PUT", KEY), ("PUT", "/bucket/source")] {
            assert_eq!(ask(address, request(method, target, "", b"")).await.status, 200, "{method} {target}");
        }
        let created = ask(address, request("POST", &format!("{KEY}?uploads"), "", b"")).await.body;
        let (_, rest) = created.split_once("<UploadId>").unwrap();
        self.upload = rest.split_once('<').unwrap().0.to_owned();
        let part = format!("{KEY}?partNumber=1&uploadId={}", self.upload);
        assert_eq!(ask(address, request("PUT", &part, "", b"part")).await.status, 200);
    }

    async fn ask(&mut self, operation: &ApiOperation, header: &str, parameter: &str) -> Answer {
        let answer = ask(self.daemon.s3(), request_for(operation, &self.upload, header, parameter)).await;
        if operation.method != "GET" && operation.method != "HEAD" {
            self.prepare().await;
        }
        answer
    }
}

fn served() -> impl Iterator<Item = &'static ApiOperation> {
    OPERATIONS.iter().filter(|operation| operation.served != Served::Refused)
}

/// The operations that a row is about.
fn operations_of(row: &'static Row) -> impl Iterator<Item = &'static ApiOperation> {
    let other = |operation: &ApiOperation| {
        let mut rows = ROWS.iter().filter(|other| other.carrier == row.carrier && other.name == row.name);
        rows.any(|other| other.on.contains(&operation.name))
    };
    served().filter(move |operation| row.on.contains(&operation.name) || row.on.is_empty() && !other(operation))
}

fn is_refused(answer: &Answer, status: u16, code: &str, operation: &ApiOperation) -> bool {
    answer.status == status && (operation.method == "HEAD" || answer.body.contains(&format!("<Code>{code}</Code>")))
}

#[tokio::test]
async fn every_operation_is_answered_as_the_table_says() {
    let (mut door, mut wrong) = (Door::open().await, vec![]);
    for operation in &OPERATIONS {
        let answer = door.ask(operation, "", "").await;

        let as_said = match operation.served {
            Served::Done(_) => (200..300).contains(&answer.status),
            Served::Unset(status) => answer.status == status,
            // Two have no address of their own.
            Served::Refused => {
                ["ListDirectoryBuckets", "WriteGetObjectResponse"].contains(&operation.name)
                    || is_refused(&answer, 501, "NotImplemented", operation)
            }
        };
        if !as_said {
            wrong.push(format!("{}: {} {}", operation.name, answer.status, answer.body));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What a row says that is not the case for an operation.
async fn wrong(door: &mut Door, row: &Row, operation: &ApiOperation) -> Vec<String> {
    let name = row.name.replace('*', "anything");
    let with = |value: &str| match row.carrier {
        Carrier::Header => (format!("{name}: {value}\n"), String::new()),
        Carrier::Query => (String::new(), format!("{name}={value}")),
    };
    let mut wrong = vec![];
    let mut note = |right: bool, value: &str, answer: &Answer| {
        if !right {
            wrong.push(format!("{name}: {value} of {}: {} {}", operation.name, answer.status, answer.body));
        }
    };
    let (header, parameter) = with("other");
    match row.treatment {
        Treatment::Only(values, code, _) => {
            let status = match code {
                "NotImplemented" => 501,
                "AccessDenied" => 403,
                _ => 400,
            };
            let answer = door.ask(operation, &header, &parameter).await;
            note(is_refused(&answer, status, code, operation), "other", &answer);
            for value in values {
                let (header, parameter) = with(value);
                let answer = door.ask(operation, &header, &parameter).await;
                note(!is_refused(&answer, status, code, operation), value, &answer);
            }
        }
        Treatment::Harmless(_) => {
            let without = door.ask(operation, "", "").await.status;
            // Where it is a yes or no, s3s takes nothing else.
            let (header, parameter) = with("true");
            let answer = door.ask(operation, &header, &parameter).await;
            note(answer.status == without, "true", &answer);
        }
        // The test that the row names shows more than a value could.
        Treatment::Honoured(_) => {}
    }
    wrong
}

#[tokio::test]
async fn every_row_that_refuses_refuses_and_every_harmless_one_changes_nothing() {
    let (mut door, mut found) = (Door::open().await, vec![]);
    for row in ROWS {
        for operation in operations_of(row) {
            found.extend(wrong(&mut door, row, operation).await);
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn what_is_in_no_row_is_refused_by_its_name() {
    let (mut door, mut wrong) = (Door::open().await, vec![]);
    for operation in served() {
        for (header, parameter) in [("x-amz-of-next-year: 1\n", ""), ("", "of-next-year")] {
            let answer = door.ask(operation, header, parameter).await;

            let named = operation.method == "HEAD" || answer.body.contains("of-next-year");
            if !named || !is_refused(&answer, 501, "NotImplemented", operation) {
                wrong.push(format!("{} {header}{parameter}: {} {}", operation.name, answer.status, answer.body));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boto3");
    let done = OPERATIONS.iter().filter_map(|operation| match operation.served {
        Served::Done(test) => Some(test),
        _ => None,
    });
    let honoured = ROWS.iter().filter_map(|row| match row.treatment {
        Treatment::Honoured(test) => Some(test),
        _ => None,
    });
    for test in done.chain(honoured) {
        let (file, name) = test.split_once("::").unwrap();
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        assert!(text.contains(&format!("\ndef {name}(")), "{test}");
    }
}

#[test]
fn the_readme_says_what_is_absent() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");

    assert!(words(&readme).contains(&words(&absent())), "the README should say: {}", absent());
}
