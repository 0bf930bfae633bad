//! The door as an HTTP service: s3s, and around it what s3s does not do.
//!
//! - Every answer has a request id of its own, and every error is XML with a message.
//! - Bodies that stall are dropped, and the framing of aws-chunked ones is kept within bounds ([`super::chunked`]).
//! - A signature has to say and cover what it must ([`super::signature`]).
//! - A batch delete's body is compared with its `Content-MD5` or checksum, and every body with its SHA-256, also where s3s
//!   does not read it.
//! - A completion that takes long is kept alive with white space, as S3 does; its errors then stand inside a 200.
//! - Without configured keys, signatures are taken off, so that signed and anonymous requests both pass.
//! - Ranges that make no sense are ignored, as RFC 9110 wants, not refused.
//!
//! Each answer is timed by its operation, and refusals are counted by their reason.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HOST, RANGE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use s3s::dto;
use s3s::route::S3Route;
use s3s::{
    Body, HttpError, HttpRequest, HttpResponse, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, StdError,
};

use super::access::Hosts;
use super::checksums::{BodyHasher, Claims, EtagNeeds};
use super::chunked::{Framing, framed};
use super::errors::{self, BodyStalled, incomplete_body, not_implemented, payload_hash_mismatch, refuse};
use super::intake::Unchecked;
use super::{signature, xml};
use crate::api::peers::{Peers, Reason};
use crate::api::unread::BodyError;
use crate::metrics::Metrics;
use crate::runtime::{Clock, Entropy};

/// Bytes of a request's XML at most: 10,000 parts with checksums, or 1,000 keys of 1 KiB, written wastefully.
pub(super) const XML_BYTES_MAX: u64 = 8 << 20;
/// The SHA-256 of no bytes.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// After this long a completion is answered with white space.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Between two blanks.
const BLANK_EVERY: Duration = Duration::from_secs(1);
/// The operation that may take long.
const LONG_OPERATION: &str = "CompleteMultipartUpload";
/// Names of query parameters that sign a request.
const SIGNATURE_PARAMETERS: [&str; 4] = ["Signature", "AWSAccessKeyId", "Expires", "x-amz-security-token"];

/// Which operation a request turned out to be; set once it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Operation(Arc<OnceLock<String>>);

impl Operation {
    pub(super) fn set(&self, name: &str) {
        // Known already: the request passes a second time.
        drop(self.0.set(name.to_owned()));
    }

    fn name(&self) -> &str {
        self.0.get().map_or("none", String::as_str)
    }
}

/// Who signed a request whose signature was checked and taken off.
#[derive(Debug, Clone)]
pub(super) struct SignedBy(pub String);

/// What went wrong while s3s read a body: s3s itself would call it an internal error.
#[derive(Debug, Clone, Default)]
struct Fault(Arc<Mutex<Option<S3Error>>>);

/// The S3 door as an HTTP service, for `hyper`.
#[derive(Clone)]
pub struct S3Service {
    gate: Arc<Gate>,
    /// Set when it turns everything away.
    full: Option<Peers>,
}

#[derive(Debug)]
pub(super) struct Gate {
    pub s3: s3s::service::S3Service,
    pub entropy: Entropy,
    pub metrics: Metrics,
    pub hosts: Hosts,
    pub signatures: Signatures,
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// From head to answer.
    pub request_timeout: Duration,
}

/// Whether signatures are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signatures {
    Checked,
    Ignored,
}

impl S3Service {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate: Arc::new(gate), full: None }
    }

    /// The same door when there is no place for a connection: everything is told to come back.
    pub fn full(&self, peers: Peers) -> Self {
        Self { gate: Arc::clone(&self.gate), full: Some(peers) }
    }
}

impl<B> hyper::service::Service<Request<B>> for S3Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = HttpResponse;
    type Error = HttpError;
    type Future = BoxFuture<'static, Result<HttpResponse, HttpError>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let gate = Arc::clone(&self.gate);
        if let Some(peers) = &self.full {
            peers.count(Reason::Connections, None);
            return Box::pin(async move { gate.turn_away() });
        }
        Box::pin(async move { gate.answer(request).await })
    }
}

impl Gate {
    async fn answer<B>(&self, request: Request<B>) -> Result<HttpResponse, HttpError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
    {
        let started = Clock::instant();
        let (id, operation, fault) = (self.entropy.hex(8).to_uppercase(), Operation::default(), Fault::default());
        let (head, referer) = (request.method() == Method::HEAD, request.headers().get("referer").cloned());
        let mut answer = match self.admit(request, &operation, &fault).await {
            Ok(request) => {
                let xml = self.is_read_whole(&request);
                let answer = self.run(request, &operation).await?;
                let because = fault.0.lock().take();
                explained(answer, because, xml)?
            }
            Err(error) => http_answer(error)?,
        };
        if head && answer.status() == StatusCode::OK && answer.headers().contains_key(CONTENT_RANGE) {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        let code = xml::complete(&mut answer, &id, operation.name());
        if let Some(reason) = code.as_deref().and_then(reason)
            && !errors::is_counted(answer.headers())
        {
            self.metrics.rejected.with_label_values(&[reason]).inc();
        }
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.answer_seconds.with_label_values(&["s3", operation.name()]).observe(seconds);
        let status = answer.status().as_u16();
        // S3A tells the operation, path and job of its user in the referer.
        tracing::debug!(id, operation = operation.name(), status, code, ?referer, seconds, "answered at the S3 door");
        Ok(answer)
    }

    fn turn_away(&self) -> Result<HttpResponse, HttpError> {
        let mut answer = http_answer(errors::slow_down("all connections are taken, repeat the request more slowly"))?;
        xml::complete(&mut answer, &self.entropy.hex(8).to_uppercase(), "none");
        Ok(answer)
    }

    /// Refuses what s3s would do and should not, and prepares the rest for it.
    async fn admit<B>(&self, request: Request<B>, operation: &Operation, fault: &Fault) -> S3Result<HttpRequest>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
    {
        let (mut head, body) = request.into_parts();
        if head.method == Method::POST && is_form(&head.headers) {
            return Err(not_implemented("uploading by a browser form"));
        }
        if self.signatures == Signatures::Checked {
            signature::check(&head.uri, &head.headers)?;
        }
        head.extensions.insert(operation.clone());
        let payload = head.headers.get("x-amz-content-sha256").map(|value| value.as_bytes().to_vec());
        let framing = match (payload.as_deref(), self.signatures) {
            (Some(kind), Signatures::Ignored) if kind.starts_with(b"STREAMING-") => {
                Some(Framing::Removed(Unchecked::default()))
            }
            (Some(b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"), _) => Some(Framing::Renewed),
            (Some(kind), _) if kind.starts_with(b"STREAMING-") => Some(Framing::Watched),
            _ => None,
        };
        if self.signatures == Signatures::Ignored {
            head.headers.remove(AUTHORIZATION);
            head.uri = without_signature(&head.uri);
            let unchecked = match &framing {
                Some(Framing::Removed(unchecked)) => unchecked.clone(),
                _ => Unchecked::default(),
            };
            head.extensions.insert(unchecked);
        }
        let hash = signature::payload_hash(&head.headers)?.map(str::to_owned);
        let deletes = head.method == Method::POST && has_parameter(&head.uri, "delete");
        let hasher = if deletes {
            body_hasher(&head.headers)?
        } else if hash.is_some() && !self.puts_object(&head.method, &head.uri, &head.headers) {
            Some(Claims::of_payload(&head.headers).hasher(EtagNeeds::Nothing))
        } else {
            None
        };
        if body.size_hint().exact() == Some(0) && (hasher.is_none() || !deletes) {
            if hash.is_some_and(|hash| hash != EMPTY_SHA256) {
                return Err(payload_hash_mismatch());
            }
            return Ok(Request::from_parts(head, Body::empty()));
        }
        let watched = self.watched(body, hasher, fault.clone());
        if hash.is_some() && wants_no_body(&head.method, &head.uri) {
            read_to_end(watched, fault).await?;
            return Ok(Request::from_parts(head, Body::empty()));
        }
        let body = match framing {
            Some(framing) => as_body(framed(watched, framing)),
            None => as_body(watched),
        };
        Ok(Request::from_parts(head, body))
    }

    /// Whether s3s reads a body whole, and compares it with a hash.
    fn is_read_whole(&self, request: &HttpRequest) -> bool {
        let (method, headers) = (request.method(), request.headers());
        let with_body = http_body::Body::size_hint(request.body()).exact() != Some(0);
        let hashed = with_body && signature::payload_hash(headers).is_ok_and(|hash| hash.is_some());
        *method == Method::POST || hashed && !self.puts_object(method, request.uri(), headers)
    }

    /// Whether a request puts an object or a part: its body is looked at while it is taken in ([`super::intake`]).
    fn puts_object(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        let plain = |name: &str| name.starts_with("X-Amz-") || ["partNumber", "uploadId", "x-id"].contains(&name);
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| Some(uri.authority()?.as_str())).unwrap_or_default();
        let key = if self.hosts.bucket(host).is_some() {
            uri.path().strip_prefix('/')
        } else {
            uri.path().strip_prefix('/').and_then(|path| path.split_once('/')).map(|(_, key)| key)
        };
        *method == Method::PUT && key.is_some_and(|key| !key.is_empty()) && parameters(uri).all(|(name, _)| plain(name))
    }

    /// A body that may not stall, and is compared with what the client said of it. Nothing is read before it is asked
    /// for, so a client that waits for `100 Continue` waits until its bytes are paid for.
    fn watched<B>(
        &self,
        body: B,
        hasher: Option<BodyHasher>,
        fault: Fault,
    ) -> impl stream::Stream<Item = Result<Bytes, StdError>> + Send + use<B>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
    {
        let idle = self.body_timeout;
        let fail = move |fault: &Fault, error: S3Error, as_text: &dyn std::error::Error| {
            let text: StdError = as_text.to_string().into();
            *fault.0.lock() = Some(error);
            Some((Err(text), None))
        };
        stream::unfold(Some((Box::pin(body), hasher, fault)), move |state| async move {
            let (mut body, mut hasher, fault) = state?;
            loop {
                match tokio::time::timeout(idle, body.frame()).await {
                    Err(_) => return fail(&fault, errors::body(&BodyStalled.into()), &BodyStalled),
                    Ok(Some(Ok(frame))) => {
                        let Ok(bytes) = frame.into_data() else { continue };
                        if let Some(hasher) = &mut hasher {
                            hasher.update(&bytes);
                        }
                        return Some((Ok(bytes), Some((body, hasher, fault))));
                    }
                    Ok(Some(Err(error))) => {
                        let error: StdError = error.into();
                        if BodyError::is_slow(&*error) {
                            return fail(&fault, errors::body(&BodyStalled.into()), &BodyStalled);
                        }
                        return fail(&fault, incomplete_body("the body broke off"), &*error);
                    }
                    Ok(None) => {
                        let error = hasher.and_then(|hasher| hasher.finish(None).err())?;
                        let text = error.to_string();
                        return fail(&fault, error, &*StdError::from(text));
                    }
                }
            }
        })
    }

    /// Has s3s answer, in time.
    async fn run(&self, request: HttpRequest, operation: &Operation) -> Result<HttpResponse, HttpError> {
        let s3 = self.s3.clone();
        let limit = self.request_timeout;
        let mut call = Box::pin(async move {
            match tokio::time::timeout(limit, s3.call(request)).await {
                Ok(answer) => answer,
                Err(_) => http_answer(refuse(S3ErrorCode::RequestTimeout, "the request took too long")),
            }
        });
        loop {
            match tokio::time::timeout(SILENCE_MAX, &mut call).await {
                Ok(answer) => return answer,
                Err(_) if operation.name() == LONG_OPERATION => return Ok(kept_alive(call)),
                Err(_) => {}
            }
        }
    }
}

/// A 200 whose body is white space until the answer is there, and then the answer, whatever its status.
fn kept_alive(call: impl Future<Output = Result<HttpResponse, HttpError>> + Send + 'static) -> HttpResponse {
    let begin = stream::once(async { Ok(Bytes::from_static(xml::DECLARATION)) }).boxed();
    let rest = stream::unfold(Some(Box::pin(call)), |call| async move {
        let mut call = call?;
        match tokio::time::timeout(BLANK_EVERY, &mut call).await {
            Err(_) => Some((Ok(Bytes::from_static(b" ")), Some(call))),
            Ok(Ok(answer)) => Some((Ok(xml::without_declaration(&answer)), None)),
            Ok(Err(error)) => Some((Err(StdError::from(error)), None)),
        }
    });
    let mut answer = HttpResponse::new(as_body(begin.chain(rest)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    answer
}

fn as_body(bytes: impl stream::Stream<Item = Result<Bytes, StdError>> + Send + 'static) -> Body {
    Body::http_body_unsync(StreamBody::new(futures::TryStreamExt::map_ok(bytes, Frame::data)))
}

fn http_answer(error: S3Error) -> Result<HttpResponse, HttpError> {
    error.to_http_response().map_err(|error| HttpError::new(Box::new(error)))
}

/// The answer, or what it should have been: s3s calls everything an internal error that it meets while it reads a body
/// of XML.
fn explained(answer: HttpResponse, because: Option<S3Error>, xml: bool) -> Result<HttpResponse, HttpError> {
    if answer.status() != StatusCode::INTERNAL_SERVER_ERROR {
        return Ok(answer);
    }
    match because {
        Some(error) => http_answer(error),
        // Its own internal errors have no message; in a body that arrived whole, only the hash can be wrong.
        None if xml && !xml::has_message(&answer) => http_answer(payload_hash_mismatch()),
        None => Ok(answer),
    }
}

fn body_hasher(headers: &HeaderMap) -> S3Result<Option<BodyHasher>> {
    let claims = Claims::of(headers)?;
    Ok(if claims.is_empty() { None } else { Some(claims.hasher(EtagNeeds::Nothing)) })
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn has_parameter(uri: &Uri, name: &str) -> bool {
    parameters(uri).any(|(known, _)| known == name)
}

/// Requests whose operation would not read a body, should they have one.
fn wants_no_body(method: &Method, uri: &Uri) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::DELETE)
        || *method == Method::POST && has_parameter(uri, "uploads")
}

/// Reads what nobody wants, for its hash.
async fn read_to_end(body: impl stream::Stream<Item = Result<Bytes, StdError>> + Send, fault: &Fault) -> S3Result<()> {
    let mut body = std::pin::pin!(body);
    let mut len = 0;
    while let Some(Ok(bytes)) = body.next().await {
        len += bytes.len() as u64;
        if len > XML_BYTES_MAX {
            return Err(refuse(S3ErrorCode::EntityTooLarge, "the request needs no body"));
        }
    }
    fault.0.lock().take().map_or(Ok(()), Err)
}

/// The address without the parameters of a signature.
fn without_signature(uri: &Uri) -> Uri {
    let signs = |name: &str| name.starts_with("X-Amz-") || SIGNATURE_PARAMETERS.contains(&name);
    if !has_parameter(uri, "X-Amz-Signature") && !has_parameter(uri, "Signature") {
        return uri.clone();
    }
    let kept = parameters(uri).filter(|(name, _)| !signs(name)).map(|(name, value)| format!("{name}={value}"));
    let (path, query) = (uri.path(), kept.collect::<Vec<_>>().join("&"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = if query.is_empty() { path.parse().ok() } else { format!("{path}?{query}").parse().ok() };
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// Under which reason a refusal is counted, by its code.
fn reason(code: &str) -> Option<&'static str> {
    Some(match code {
        "SlowDown" => "slow_down",
        "ServiceUnavailable" => "unavailable",
        "AccessDenied"
        | "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "RequestTimeTooSkewed"
        | "AuthorizationHeaderMalformed"
        | "AuthorizationQueryParametersError" => "not_allowed",
        "EntityTooLarge" | "KeyTooLongError" | "MetadataTooLarge" | "MaxMessageLengthExceeded" => "too_large",
        "RequestTimeout" => "slow",
        "IncompleteBody" | "MissingContentLength" => "body",
        "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "MalformedTrailerError" => "digest",
        "NotImplemented" => "not_implemented",
        "InternalError" => "internal",
        _ => return None,
    })
}

/// Reads whose `Range` makes no sense: s3s would refuse them, RFC 9110 has them read the whole. Their signature covers
/// the header, so it is checked first; then they pass a second time without either.
pub(super) struct SenselessRanges {
    /// The door again, without this route.
    pub s3: s3s::service::S3Service,
}

#[async_trait::async_trait]
impl S3Route for SenselessRanges {
    fn is_match(&self, method: &Method, _: &Uri, headers: &HeaderMap, _: &mut http::Extensions) -> bool {
        // s3s reads `bytes=-` as a suffix of no length.
        let parses = |text: &str| text != "bytes=-" && dto::Range::parse(text).is_ok();
        let sensible = |range: &HeaderValue| range.to_str().is_ok_and(parses);
        matches!(*method, Method::GET | Method::HEAD) && headers.get_all(RANGE).iter().any(|range| !sensible(range))
    }

    async fn check_access(&self, _: &mut S3Request<Body>) -> S3Result<()> {
        Ok(()) // Checked on the second pass.
    }

    async fn call(&self, req: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let mut request = HttpRequest::new(req.input);
        *request.method_mut() = req.method;
        *request.uri_mut() = without_signature(&req.uri);
        *request.headers_mut() = req.headers;
        *request.extensions_mut() = req.extensions;
        request.headers_mut().remove(RANGE);
        request.headers_mut().remove(AUTHORIZATION);
        if let Some(credentials) = req.credentials {
            request.extensions_mut().insert(SignedBy(credentials.access_key));
        }
        let answer = self.s3.call(request).await;
        let answer = answer.map_err(|_| errors::unavailable("the request could not be repeated without its range"))?;
        let (head, body) = answer.into_parts();
        Ok(S3Response { output: body, status: Some(head.status), headers: head.headers, extensions: head.extensions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn signatures_are_taken_off_an_address() {
        let presigned = uri("/b/k%20x?X-Amz-Signature=0&x-id=GetObject&X-Amz-Date=1&partNumber=2");

        assert_eq!(without_signature(&presigned), uri("/b/k%20x?x-id=GetObject&partNumber=2"));
        assert_eq!(without_signature(&uri("/b/k?Signature=0&Expires=1&AWSAccessKeyId=K")), uri("/b/k"));
        assert_eq!(without_signature(&uri("/b?list-type=2")), uri("/b?list-type=2"));
    }

    #[test]
    fn parameters_are_found_with_and_without_values() {
        assert!(has_parameter(&uri("/b?delete"), "delete"));
        assert!(has_parameter(&uri("/b?x=1&delete="), "delete"));
        assert!(!has_parameter(&uri("/b?deleted"), "delete"));
    }
}
