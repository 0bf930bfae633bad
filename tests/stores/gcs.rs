//! Google Cloud Storage, as far as its XML API is asked: one write a second under one name, conditions by generation, lists,
//! ranges, copies and multipart uploads.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};

use crate::faults::Backend;
use crate::s3_server::Conditions;
use crate::service::{
    Asked, BUCKET, Condition, Object, Objects, Refusal, Service, elements, empty, error, escaped, read, xml,
};

const GENERATION: &str = "x-goog-generation";
const METADATA: &str = "x-goog-meta-";
const IF_GENERATION: &str = "x-goog-if-generation-match";

/// The rule of the service: writes of one name, deletes included, are a second apart.
pub const PAUSE: Duration = Duration::from_secs(1);

pub async fn start(conditions: Conditions) -> Service {
    Service::start(Gcs, Objects::new(PAUSE, conditions)).await
}

/// The protocol, on what is stored.
pub struct Gcs(pub Objects);

#[async_trait::async_trait]
impl Backend for Gcs {
    async fn carry_out(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        Some(self.answer(&Asked::new(request, 2)))
    }
}

fn refused(refusal: Refusal) -> Response<Bytes> {
    match refusal {
        Refusal::Condition => error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
        Refusal::TooSoon => error(StatusCode::TOO_MANY_REQUESTS, "SlowDown"),
        Refusal::Parts => error(StatusCode::BAD_REQUEST, "InvalidPart"),
        Refusal::Missing => error(StatusCode::NOT_FOUND, "NoSuchKey"),
    }
}

fn tagged(generation: u64) -> [(&'static str, String); 2] {
    [("etag", e_tag(generation)), (GENERATION, generation.to_string())]
}

fn e_tag(generation: u64) -> String {
    format!("\"{generation:032x}\"")
}

impl Gcs {
    fn answer(&self, asked: &Asked) -> Response<Bytes> {
        // A token that the service account has signed: three parts of Base64.
        let token = asked.header("authorization").and_then(|text| text.strip_prefix("Bearer "));
        if !token.is_some_and(|token| token.starts_with("ey") && token.split('.').count() == 3) {
            return error(StatusCode::UNAUTHORIZED, "AuthenticationRequired");
        }
        if asked.path.first().map(String::as_str) != Some(BUCKET) {
            return error(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        let Some(key) = asked.path.get(1) else { return self.list(asked) };
        let done = match asked.method {
            Method::PUT => self.put(asked, key),
            Method::POST => self.post(asked, key),
            Method::DELETE => self.delete(asked, key),
            _ => self.objects().find(key).ok_or(Refusal::Missing).map(|object| self.get(asked, &object)),
        };
        done.unwrap_or_else(refused)
    }

    fn objects(&self) -> &Objects {
        &self.0
    }

    fn get(&self, asked: &Asked, object: &Object) -> Response<Bytes> {
        read(asked, object, &tagged(object.generation))
    }

    fn put(&self, asked: &Asked, key: &str) -> Result<Response<Bytes>, Refusal> {
        if let (Some(upload), Some(number)) = (asked.asks("uploadId"), asked.asks("partNumber")) {
            let tag = self.objects().put_part(upload, number, asked.body.clone(), false)?;
            return Ok(empty(StatusCode::OK, &[("etag", e_tag(tag))]));
        }
        let condition = match asked.header(IF_GENERATION).map(|text| text.parse().unwrap()) {
            None => Condition::Any,
            Some(0) => Condition::Absent,
            Some(generation) => Condition::Generation(generation),
        };
        let (data, metadata) = match asked.header("x-goog-copy-source") {
            Some(source) => {
                let source = percent_encoding::percent_decode_str(source).decode_utf8_lossy().into_owned();
                let (_, from) = source.trim_start_matches('/').split_once('/').ok_or(Refusal::Missing)?;
                let object = self.objects().find(from).ok_or(Refusal::Missing)?;
                (object.data, object.metadata)
            }
            None => (asked.body.clone(), asked.metadata(METADATA)),
        };
        let generation = self.objects().write(key, data, metadata, condition)?;
        Ok(empty(StatusCode::OK, &tagged(generation)))
    }

    fn post(&self, asked: &Asked, key: &str) -> Result<Response<Bytes>, Refusal> {
        if asked.asks("uploads").is_some() {
            let id = self.objects().begin_upload(asked.metadata(METADATA));
            let body = format!(
                "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            );
            return Ok(xml(StatusCode::OK, body));
        }
        let upload = asked.asks("uploadId").ok_or(Refusal::Missing)?;
        let numbers = elements(&asked.body, "PartNumber");
        // The service takes no condition here, whatever stands in the headers.
        let generation = self.objects().complete(upload, key, &numbers, vec![], Condition::Any)?;
        let body = format!(
            "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>",
            escaped(&e_tag(generation))
        );
        let mut answer = xml(StatusCode::OK, body);
        answer.headers_mut().insert(GENERATION, generation.to_string().parse().unwrap());
        Ok(answer)
    }

    fn delete(&self, asked: &Asked, key: &str) -> Result<Response<Bytes>, Refusal> {
        match asked.asks("uploadId") {
            Some(upload) => self.objects().drop_parts(upload)?,
            None => self.objects().delete(key)?,
        }
        Ok(empty(StatusCode::NO_CONTENT, &[]))
    }

    fn list(&self, asked: &Asked) -> Response<Bytes> {
        let after = asked.asks("continuation-token").or(asked.asks("start-after")).unwrap_or_default();
        let page = self.objects().list(asked.asks("prefix").unwrap_or_default(), after, asked.asks("delimiter"));
        let objects = page.objects.iter().map(|(key, object)| {
            let modified = std::time::UNIX_EPOCH + Duration::from_millis(object.modified_ms);
            format!(
                "<Contents><Key>{}</Key><Size>{}</Size><LastModified>{}</LastModified><ETag>{}</ETag></Contents>",
                escaped(key),
                object.data.len(),
                humantime::format_rfc3339_millis(modified),
                escaped(&e_tag(object.generation))
            )
        });
        let folders = page.folders.iter();
        let folders =
            folders.map(|folder| format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(folder)));
        let next = page.next.iter();
        let next = next.map(|next| format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(next)));
        let body: String = objects.chain(folders).chain(next).collect();
        xml(StatusCode::OK, format!("<ListBucketResult><Name>{BUCKET}</Name>{body}</ListBucketResult>"))
    }
}
