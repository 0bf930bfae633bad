//! Azure Blob Storage, as far as it is asked: conditions by entity tag, blocks and lists of them, batches of deletes, lists,
//! ranges and copies. Of its account there is the name in each path, as emulators have it.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};

use crate::faults::{Backend, Op};
use crate::s3_server::Conditions;
use crate::service::{
    Asked, BUCKET, Condition, Objects, Refusal, Service, elements, empty, error, escaped, http_date, read, xml,
};

pub const ACCOUNT: &str = "acme1";
/// Secret of the account, in Base64.
pub const ACCOUNT_KEY: &str = "c2VjcmV0IG9mIHRoZSBhY2NvdW50";
const METADATA: &str = "x-ms-meta-";
/// Requests of one batch, by the service's rules.
const BATCH_MAX: usize = 256;

pub async fn start(conditions: Conditions) -> Service {
    Service::start(Azure, Objects::new(Duration::ZERO, conditions)).await
}

/// The protocol, on what is stored.
pub struct Azure(pub Objects);

#[async_trait::async_trait]
impl Backend for Azure {
    fn op(&self, method: &Method, query: &str) -> Op {
        let comp = query.split('&').find_map(|pair| pair.strip_prefix("comp="));
        match comp {
            Some("block") => Op::UploadPart,
            Some("blocklist") => Op::CompleteUpload,
            Some("batch") => Op::Delete,
            Some("list") => Op::List,
            _ => Op::of(method, ""),
        }
    }

    fn key<'a>(&self, path: &'a str) -> &'a str {
        path.trim_start_matches('/').splitn(3, '/').nth(2).unwrap_or_default()
    }

    async fn carry_out(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        Some(self.answer(&Asked::new(request, 3)))
    }
}

fn refused(refusal: Refusal, condition: Condition) -> Response<Bytes> {
    match (refusal, condition) {
        (Refusal::Condition, Condition::Absent) => error(StatusCode::CONFLICT, "BlobAlreadyExists"),
        (Refusal::Condition, _) => error(StatusCode::PRECONDITION_FAILED, "ConditionNotMet"),
        (Refusal::TooSoon, _) => error(StatusCode::SERVICE_UNAVAILABLE, "ServerBusy"),
        (Refusal::Parts, _) => error(StatusCode::BAD_REQUEST, "InvalidBlockList"),
        (Refusal::Missing, _) => error(StatusCode::NOT_FOUND, "BlobNotFound"),
    }
}

fn e_tag(generation: u64) -> String {
    format!("\"0x{generation:015X}\"")
}

impl Azure {
    fn answer(&self, asked: &Asked) -> Response<Bytes> {
        let signed = format!("SharedKey {ACCOUNT}:");
        let is_signed = asked.header("authorization").is_some_and(|text| text.starts_with(&signed));
        if !is_signed || asked.header("date").is_none() || asked.header("x-ms-version").is_none() {
            return error(StatusCode::FORBIDDEN, "AuthenticationFailed");
        }
        if asked.path.first().map(String::as_str) != Some(ACCOUNT) {
            return error(StatusCode::BAD_REQUEST, "InvalidUri");
        }
        if asked.path.get(1).map(String::as_str) != Some(BUCKET) {
            return error(StatusCode::NOT_FOUND, "ContainerNotFound");
        }
        match (asked.path.get(2), asked.asks("comp")) {
            (None, Some("list")) => self.list(asked),
            (None, Some("batch")) => self.batch(asked),
            (Some(key), comp) if asked.method == Method::PUT => self.put(asked, key, comp),
            (Some(key), None) => match self.0.find(key) {
                Some(object) => read(asked, &object, &[("etag", e_tag(object.generation))]),
                None => error(StatusCode::NOT_FOUND, "BlobNotFound"),
            },
            _ => error(StatusCode::BAD_REQUEST, "UnsupportedQueryParameter"),
        }
    }

    fn put(&self, asked: &Asked, key: &str, comp: Option<&str>) -> Response<Bytes> {
        let condition = match (asked.header("if-none-match"), asked.header("if-match")) {
            (Some("*"), _) => Condition::Absent,
            // A tag that was never given is of no generation.
            (_, Some(tag)) => Condition::Generation(generation(tag).unwrap_or_default()),
            _ => Condition::Any,
        };
        let metadata = asked.metadata(METADATA);
        // A name is one of a variable in C#.
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !metadata.iter().all(|(name, _)| is_name(&name[METADATA.len()..])) {
            return error(StatusCode::BAD_REQUEST, "InvalidMetadata");
        }
        let created = |status, generation| empty(status, &[("etag", e_tag(generation))]);
        let done = match (comp, asked.header("x-ms-copy-source")) {
            (Some("block"), _) => {
                let block = asked.asks("blockid").unwrap_or_default();
                self.0.put_part(key, block, asked.body.clone(), true).map(|_| empty(StatusCode::CREATED, &[]))
            }
            (Some("blocklist"), _) => {
                let blocks = elements(&asked.body, "Uncommitted");
                let completed = self.0.complete(key, key, &blocks, metadata, condition);
                // Without a single block that waits there is nothing that a list could name.
                let completed = completed.map_err(|refusal| match refusal {
                    Refusal::Missing => Refusal::Parts,
                    other => other,
                });
                completed.map(|generation| created(StatusCode::CREATED, generation))
            }
            (_, Some(source)) => {
                let source = percent_encoding::percent_decode_str(source).decode_utf8_lossy().into_owned();
                let from = source.split_once(&format!("/{BUCKET}/")).map_or("", |(_, from)| from);
                let found = self.0.find(from).ok_or(Refusal::Missing);
                let copied = found.and_then(|found| self.0.write(key, found.data, found.metadata, condition));
                copied.map(|generation| created(StatusCode::ACCEPTED, generation))
            }
            (_, None) if asked.header("x-ms-blob-type") != Some("BlockBlob") => {
                return error(StatusCode::BAD_REQUEST, "MissingRequiredHeader");
            }
            // Blocks that wait are a blob already, if nobody can read it: so it is with Azurite.
            (_, None) if condition == Condition::Absent && self.0.has_parts(key) => Err(Refusal::Condition),
            (_, None) => {
                let written = self.0.write(key, asked.body.clone(), metadata, condition);
                // Blocks that wait are dropped by a blob that is put whole.
                written.map(|generation| {
                    // There may be none.
                    self.0.drop_parts(key).unwrap_or_default();
                    created(StatusCode::CREATED, generation)
                })
            }
        };
        done.unwrap_or_else(|refusal| refused(refusal, condition))
    }

    fn batch(&self, asked: &Asked) -> Response<Bytes> {
        let body = String::from_utf8_lossy(&asked.body);
        let requests: Vec<(&str, &str)> = body
            .split("Content-ID: ")
            .skip(1)
            .filter_map(|part| Some((part.lines().next()?, part.split("DELETE ").nth(1)?.split(' ').next()?)))
            .collect();
        if requests.is_empty() || requests.len() > BATCH_MAX {
            return error(StatusCode::BAD_REQUEST, "InvalidInput");
        }
        let mut answers = String::new();
        for (id, path) in requests {
            let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
            let status = match self.0.delete(self.key(&path)) {
                Ok(()) => "202 Accepted",
                Err(_) => "404 The specified blob does not exist.",
            };
            answers += &format!(
                "--answers\r\nContent-Type: application/http\r\nContent-ID: {id}\r\n\r\n\
                 HTTP/1.1 {status}\r\nx-ms-version: 2023-11-03\r\n\r\n\r\n"
            );
        }
        answers += "--answers--\r\n";
        let answer = Response::builder().status(StatusCode::ACCEPTED);
        answer.header(header::CONTENT_TYPE, "multipart/mixed; boundary=answers").body(answers.into()).unwrap()
    }

    fn list(&self, asked: &Asked) -> Response<Bytes> {
        if asked.asks("startFrom").is_some() {
            // The version that the client says it speaks does not know it.
            return error(StatusCode::BAD_REQUEST, "UnsupportedQueryParameter");
        }
        let after = asked.asks("marker").unwrap_or_default();
        let page = self.0.list(asked.asks("prefix").unwrap_or_default(), after, asked.asks("delimiter"));
        let objects = page.objects.iter().map(|(key, object)| {
            format!(
                "<Blob><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified><Etag>{}</Etag>\
                 <Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type>\
                 </Properties></Blob>",
                escaped(key),
                http_date(object.modified_ms),
                // Without its quotes, which it has in headers.
                e_tag(object.generation).trim_matches('"'),
                object.data.len()
            )
        });
        let folders = page.folders.iter();
        let folders = folders.map(|folder| format!("<BlobPrefix><Name>{}</Name></BlobPrefix>", escaped(folder)));
        let blobs: String = objects.chain(folders).collect();
        let next = escaped(page.next.as_deref().unwrap_or_default());
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>{blobs}</Blobs>\
             <NextMarker>{next}</NextMarker></EnumerationResults>"
        );
        xml(StatusCode::OK, body)
    }
}

fn generation(e_tag: &str) -> Option<u64> {
    u64::from_str_radix(e_tag.trim_matches('"').strip_prefix("0x")?, 16).ok()
}
