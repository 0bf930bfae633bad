//! The door as an HTTP service: s3s, and around it what s3s does not do.
//!
//! - Every answer has a request id of its own, and every error is XML with a message.
//! - Bodies that stall are dropped, and the framing of aws-chunked ones is kept within bounds ([`super::chunked`]).
//! - A signature has to say and cover what it must ([`super::signature`]).
//! - A batch delete's body is compared with its `Content-MD5` or checksum, and every body with its SHA-256, also where s3s
//!   does not read it.
//! - A completion that takes long is kept alive with white space, as S3 does; its errors then stand inside a 200.
//! - Without configured keys, signatures are taken off, so that signed and anonymous requests both pass.
//! - Answers to HEAD, and 304, have no body.
//! - What s3s would misread or refuse is changed once its signature is checked ([`super::again`]).
//!
//! Each answer is timed by its operation, and refusals are counted by their reason.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use percent_encoding::percent_decode_str;
use s3s::{Body, HttpError, HttpRequest, HttpResponse, S3Error, S3ErrorCode, S3Result, StdError};

use super::checksums::{BodyHasher, Claims, EtagNeeds};
use super::chunked::{Framing, framed};
use super::errors::{self, BodyFault, not_implemented, payload_hash_mismatch, refuse};
use super::hosts::{Hosts, host_of};
use super::intake::Unchecked;
use super::mismatch::{Checker, SentHead};
use super::request_xml::{self, Document};
use super::surface::Named;
use super::{heads, signature, xml};
use crate::api::exchange::{Exchange, ExchangeNotes, told_referer};
use crate::api::peers::{Peers, Reason};
use crate::api::status::{ONE_HOST, STARTING, WITHOUT_TLS, names_one_host};
use crate::api::unread::BodyError;
use crate::metrics::Metrics;
use crate::metrics::labels::{DoorLabel, MetricLabel, Operation, RejectReason};
use crate::model::KeyLayout;
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
const LONG_OPERATION: Operation = Operation::CompleteMultipartUpload;
/// Names of query parameters that sign a request.
const SIGNATURE_PARAMETERS: [&str; 4] = ["Signature", "AWSAccessKeyId", "Expires", "x-amz-security-token"];

/// The operation that a request turned out to be; set once it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct OperationCell(Arc<OnceLock<Operation>>);

impl OperationCell {
    pub(super) fn set(&self, name: &str) {
        // A request that passes a second time keeps its operation.
        self.0.get_or_init(|| Operation::of_s3(name));
    }

    fn get(&self) -> Operation {
        self.0.get().copied().unwrap_or(Operation::None)
    }
}

/// The signer of a request whose signature was checked and taken off.
#[derive(Debug, Clone)]
pub(super) struct SignedBy(pub String);

/// The body of a request that is answered by somebody else.
pub type PassedBody = UnsyncBoxBody<Bytes, StdError>;

/// Answers requests in place of a door, which has no engine of its own.
pub trait InPlace: Send + Sync {
    /// Answers a request. If nobody can, says why in a sentence; the request may be repeated.
    fn answer(
        &self,
        request: Request<PassedBody>,
    ) -> BoxFuture<'static, Result<Result<HttpResponse, HttpError>, String>>;
}

/// The S3 door as an HTTP service, for `hyper`.
#[derive(Clone)]
pub struct S3Service {
    entropy: Entropy,
    turns: Turns,
}

/// Whether requests are answered, or turned away and why.
#[derive(Clone)]
enum Turns {
    Nobody(Arc<Gate>),
    /// Somebody else answers.
    NobodyHere(Arc<dyn InPlace>),
    /// The daemon is starting.
    AllWhoComeEarly(Metrics),
    /// There is no place for the connection.
    AllWhoComeLate(Peers),
    /// They came without TLS to a port that speaks it.
    AllWithoutTls,
}

crate::runtime::opaque_debug!(S3Service);

#[derive(Debug)]
pub(super) struct Gate {
    pub s3: s3s::service::S3Service,
    /// Finds out why signatures do not match.
    pub checker: Checker,
    pub entropy: Entropy,
    pub metrics: Metrics,
    pub hosts: Hosts,
    pub signatures: Signatures,
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// Longest time from the head of a request to its answer.
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
        Self { entropy: gate.entropy.clone(), turns: Turns::Nobody(Arc::new(gate)) }
    }

    /// The door before there is a daemon behind it: everything is told to come back.
    pub fn starting(entropy: Entropy, metrics: Metrics) -> Self {
        Self { entropy, turns: Turns::AllWhoComeEarly(metrics) }
    }

    /// The door of a daemon in whose place `answers` answers.
    pub fn in_place(entropy: Entropy, answers: Arc<dyn InPlace>) -> Self {
        Self { entropy, turns: Turns::NobodyHere(answers) }
    }

    /// The same door when there is no place for a connection: everything is told to come back.
    pub fn full(&self, peers: Peers) -> Self {
        Self { turns: Turns::AllWhoComeLate(peers), ..self.clone() }
    }

    /// The same door for those who speak plain HTTP where TLS is spoken: everything is told so.
    pub fn without_tls(&self) -> Self {
        Self { turns: Turns::AllWithoutTls, ..self.clone() }
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
        let error = match &self.turns {
            Turns::Nobody(gate) => {
                let gate = Arc::clone(gate);
                return Box::pin(async move { gate.answer(request).await });
            }
            Turns::NobodyHere(answers) => {
                let head = request.method() == Method::HEAD;
                let answer = answers.answer(request.map(|body| body.map_err(Into::into).boxed_unsync()));
                let entropy = self.entropy.clone();
                return Box::pin(async move {
                    answer.await.unwrap_or_else(|why| turn_away(errors::unavailable(why), &entropy, head))
                });
            }
            Turns::AllWhoComeEarly(metrics) => {
                metrics.rejected.of(RejectReason::Unavailable).inc();
                errors::unavailable(STARTING)
            }
            Turns::AllWhoComeLate(peers) => {
                peers.count(Reason::Connections, None);
                errors::slow_down("all connections are taken, repeat the request more slowly")
            }
            Turns::AllWithoutTls => refuse(S3ErrorCode::InvalidRequest, WITHOUT_TLS),
        };
        let (entropy, head) = (self.entropy.clone(), request.method() == Method::HEAD);
        Box::pin(async move { turn_away(error, &entropy, head) })
    }
}

fn turn_away(error: S3Error, entropy: &Entropy, head: bool) -> Result<HttpResponse, HttpError> {
    let mut answer = http_answer(error)?;
    let exchange = Exchange::current();
    let code = xml::complete(&mut answer, &id(exchange.as_ref(), entropy), Operation::None);
    exchange.iter().for_each(|exchange| exchange.note(|notes| notes.code.clone_from(&code)));
    without_body(&mut answer, head);
    Ok(answer)
}

/// Names the request.
fn id(exchange: Option<&Exchange>, entropy: &Entropy) -> String {
    exchange.map_or_else(|| entropy.hex(8).to_uppercase(), |exchange| exchange.id().to_owned())
}

impl Gate {
    async fn answer<B>(&self, request: Request<B>) -> Result<HttpResponse, HttpError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
    {
        let started = Clock::instant();
        let (operation, fault) = (OperationCell::default(), BodyFault::default());
        let exchange = Exchange::current();
        let id = id(exchange.as_ref(), &self.entropy);
        if let Some(exchange) = &exchange {
            exchange.note(|notes| self.note_head(request.uri(), request.headers(), notes));
        }
        let (head, referer) = (request.method() == Method::HEAD, request.headers().get("referer").cloned());
        let mut answer = match self.admit(request, &operation, &fault).await {
            Ok(request) => {
                let xml = self.is_read_whole(&request);
                // A signature is checked with the head alone, and that is gone with the request.
                let checked = self.signatures == Signatures::Checked;
                let sent = if checked { SentHead::of(&request) } else { None };
                let answer = self.run(request, &operation).await?;
                let because = fault.take();
                if checked && xml::is_mismatch(&answer) {
                    http_answer(self.checker.explain(sent.as_ref(), &self.hosts.domains).await)?
                } else {
                    explained(answer, because, xml)?
                }
            }
            Err(error) => http_answer(error)?,
        };
        if head && answer.status() == StatusCode::OK && answer.headers().contains_key(CONTENT_RANGE) {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        let code = xml::complete(&mut answer, &id, operation.get());
        without_body(&mut answer, head);
        if let Some(reason) = code.as_deref().and_then(reason)
            && !errors::is_counted(answer.headers())
        {
            self.metrics.rejected.of(reason).inc();
        }
        if let Some(exchange) = &exchange {
            exchange.note(|notes| {
                notes.operation = Some(operation.get().as_str().to_owned());
                notes.code = code.clone();
            });
        }
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.answer_seconds.of((DoorLabel::S3, operation.get())).observe(seconds);
        let status = answer.status().as_u16();
        // S3A tells the operation, path and job of its user in the referer.
        tracing::debug!(
            id,
            operation = operation.get().as_str(),
            status,
            code,
            referer = referer.as_ref().map(told_referer),
            seconds,
            "answered at the S3 door"
        );
        Ok(answer)
    }

    /// What a head says of itself, true or not: the access log tells of those, too, that are refused.
    fn note_head(&self, uri: &Uri, headers: &HeaderMap, notes: &mut ExchangeNotes) {
        let (bucket, key) = self.hosts.place(uri, headers);
        if let (Some(bucket), Some(key)) = (&bucket, &key) {
            let about = KeyLayout::of(bucket, key).about;
            notes.job = Some(about.job.to_string());
        }
        (notes.bucket, notes.key) = (bucket, key);
        notes.key_id = signature::claimed_key(uri, headers);
    }

    /// Refuses what s3s would do and should not, and prepares the rest for it.
    async fn admit<B>(&self, request: Request<B>, operation: &OperationCell, fault: &BodyFault) -> S3Result<HttpRequest>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
    {
        let (mut head, body) = request.into_parts();
        if !names_one_host(head.version, &head.headers) {
            return Err(refuse(S3ErrorCode::InvalidRequest, ONE_HOST));
        }
        if head.method == Method::POST && is_form(&head.headers) {
            return Err(not_implemented("uploading by a browser form"));
        }
        if self.signatures == Signatures::Checked {
            signature::check(&head.uri, &head.headers)?;
        }
        heads::make_plain(&head.uri, &mut head.headers)?;
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
        let document = self.document(&head.method, &head.uri, &head.headers);
        let hasher = if let Some(document) = &document {
            body_hasher(document, &head.headers)?
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
        if let Some(document) = document {
            head.extensions.insert(document);
        }
        let watched = self.watched(body, hasher, fault.clone());
        head.extensions.insert(fault.clone());
        if hash.is_some() && wants_no_body(&head.method, &head.uri) {
            read_to_end(watched, fault).await?;
            return Ok(Request::from_parts(head, Body::empty()));
        }
        let body = match framing {
            Some(framing) => as_body(framed(watched, framing, fault.clone())),
            None => as_body(watched),
        };
        Ok(Request::from_parts(head, body))
    }

    /// Whether s3s reads a body whole, and compares it with a hash.
    fn is_read_whole(&self, request: &HttpRequest) -> bool {
        let (method, headers) = (request.method(), request.headers());
        let with_body = http_body::Body::size_hint(request.body()).exact() != Some(0);
        let hashed = with_body && signature::payload_hash(headers).is_ok_and(|hash| hash.is_some());
        let here = request.extensions().get::<Document>().is_some();
        !here && (*method == Method::POST || hashed && !self.puts_object(method, request.uri(), headers))
    }

    /// Whether a request puts an object or a part: its body is looked at while it is taken in ([`super::intake`]).
    fn puts_object(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        let plain = |name: &str| {
            name.starts_with("X-Amz-")
                || name.starts_with("x-amz-")
                || ["partNumber", "uploadId", "x-id"].contains(&name)
        };
        *method == Method::PUT
            && self.named(uri, headers) == Named::Object
            && parameters(uri).all(|(name, _)| plain(name))
    }

    /// The document that the body of a request has to be, if it is XML.
    fn document(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Document> {
        let has = |name| has_parameter(uri, name);
        Some(Document(match *method {
            Method::POST if has("delete") => &request_xml::DELETE,
            Method::POST if has("uploadId") => &request_xml::COMPLETE,
            Method::PUT if self.named(uri, headers) == Named::Bucket && parameters(uri).all(is_of_client) => {
                &request_xml::CREATE_BUCKET
            }
            Method::PUT if self.named(uri, headers) == Named::Object && has("tagging") => &request_xml::TAGGING,
            _ => return None,
        }))
    }

    fn named(&self, uri: &Uri, headers: &HeaderMap) -> Named {
        let host = host_of(uri, headers);
        let path = uri.path().strip_prefix('/').unwrap_or_default();
        let in_host = self.hosts.bucket(host).is_some();
        let key = if in_host { Some(path) } else { path.split_once('/').map(|(_, key)| key) };
        match key {
            Some("") | None if in_host || !path.is_empty() => Named::Bucket,
            Some("") | None => Named::Server,
            Some(_) => Named::Object,
        }
    }

    /// A body that may not stall, and is compared with what the client said of it. Nothing is read before it is asked
    /// for, so a client that waits for `100 Continue` waits until its bytes are paid for.
    fn watched<B>(
        &self,
        body: B,
        hasher: Option<BodyHasher>,
        fault: BodyFault,
    ) -> impl stream::Stream<Item = Result<Bytes, StdError>> + Send + use<B>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
    {
        let idle = self.body_timeout;
        let fail = move |fault: &BodyFault, error: S3Error| {
            let text: StdError = error.to_string().into();
            fault.set(error);
            Some((Err(text), None))
        };
        stream::unfold(Some((Box::pin(body), hasher, fault)), move |state| async move {
            let (mut body, mut hasher, fault) = state?;
            loop {
                match tokio::time::timeout(idle, body.frame()).await {
                    Err(_) => return fail(&fault, errors::body_stalled()),
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
                            return fail(&fault, errors::body_stalled());
                        }
                        return fail(&fault, errors::broken_body());
                    }
                    Ok(None) => {
                        let error = hasher.and_then(|hasher| hasher.finish(None).err())?;
                        return fail(&fault, error);
                    }
                }
            }
        })
    }

    /// Lets s3s answer, in time.
    async fn run(&self, request: HttpRequest, operation: &OperationCell) -> Result<HttpResponse, HttpError> {
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
                Err(_) if operation.get() == LONG_OPERATION => return Ok(kept_alive(call)),
                Err(_) => {}
            }
        }
    }
}

/// A 200 whose body is white space until the answer is there, and then the answer, whatever its status.
fn kept_alive(call: impl Future<Output = Result<HttpResponse, HttpError>> + Send + 'static) -> HttpResponse {
    let begin = stream::once(async { Ok(Bytes::from_static(xml::DECLARATION)) }).boxed();
    let exchange = Exchange::current();
    let rest = stream::unfold(Some((Box::pin(call), exchange)), |call| async move {
        let (mut call, exchange) = call?;
        match tokio::time::timeout(BLANK_EVERY, &mut call).await {
            Err(_) => Some((Ok(Bytes::from_static(b" ")), Some((call, exchange)))),
            Ok(Ok(mut answer)) => {
                // The head said 200: the code alone tells that it failed.
                if let (Some(exchange), false) = (exchange, answer.status().is_success()) {
                    exchange.note(|notes| notes.code = xml::code_of(&answer));
                }
                xml::add_more(&mut answer);
                Some((Ok(xml::without_declaration(&answer)), None))
            }
            Ok(Err(error)) => Some((Err(StdError::from(error)), None)),
        }
    });
    let mut answer = HttpResponse::new(as_body(begin.chain(rest)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    answer
}

/// Empties an answer that has no body: to HEAD, or 304.
fn without_body(answer: &mut HttpResponse, head: bool) {
    if head || answer.status() == StatusCode::NOT_MODIFIED {
        // HTTP/1 leaves the body of such an answer out by itself; in HTTP/2 a client takes it for a broken protocol.
        drop(std::mem::replace(answer.body_mut(), Body::empty()));
        if answer.status() != StatusCode::OK && answer.status() != StatusCode::PARTIAL_CONTENT {
            answer.headers_mut().remove(CONTENT_LENGTH);
        }
    }
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

/// Compares a document with what the client says of its bytes.
fn body_hasher(document: &Document, headers: &HeaderMap) -> S3Result<Option<BodyHasher>> {
    let mut claims =
        if document.has_checksums_of_an_object() { Claims::of_md5(headers)? } else { Claims::of(headers)? };
    claims.check_payload_hash(headers);
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

/// As s3s reads it, whose names may be encoded.
fn has_parameter(uri: &Uri, name: &str) -> bool {
    parameters(uri).any(|(known, _)| known == name || known.contains('%') && percent_decode_str(known).eq(name.bytes()))
}

/// Whether a parameter names no part of a bucket: it is a client's own, or of a presigned address.
fn is_of_client((name, _): (&str, &str)) -> bool {
    name.get(..2).is_some_and(|begin| begin.eq_ignore_ascii_case("x-"))
}

/// Requests whose operation would not read a body, should they have one.
fn wants_no_body(method: &Method, uri: &Uri) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::DELETE)
        || *method == Method::POST && has_parameter(uri, "uploads")
}

/// Reads what nobody wants, for its hash.
async fn read_to_end(
    body: impl stream::Stream<Item = Result<Bytes, StdError>> + Send,
    fault: &BodyFault,
) -> S3Result<()> {
    let mut body = std::pin::pin!(body);
    let mut len = 0;
    while let Some(Ok(bytes)) = body.next().await {
        len += bytes.len() as u64;
        if len > XML_BYTES_MAX {
            return Err(refuse(S3ErrorCode::EntityTooLarge, "the request needs no body"));
        }
    }
    fault.take().map_or(Ok(()), Err)
}

/// The address without the parameters of a signature.
pub(super) fn without_signature(uri: &Uri) -> Uri {
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

/// The reason under which a refusal with this code is counted.
fn reason(code: &str) -> Option<RejectReason> {
    Some(match code {
        "SlowDown" => RejectReason::SlowDown,
        "ServiceUnavailable" => RejectReason::Unavailable,
        "AccessDenied"
        | "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "RequestTimeTooSkewed"
        | "AuthorizationHeaderMalformed"
        | "AuthorizationQueryParametersError" => RejectReason::NotAllowed,
        "EntityTooLarge" | "KeyTooLongError" | "MetadataTooLarge" | "MaxMessageLengthExceeded" => {
            RejectReason::TooLarge
        }
        "RequestTimeout" => RejectReason::Slow,
        "IncompleteBody" | "MissingContentLength" => RejectReason::Body,
        "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "MalformedTrailerError" => RejectReason::Digest,
        "NotImplemented" => RejectReason::NotImplemented,
        "InternalError" => RejectReason::Internal,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::api::access_log::AccessLog;
    use crate::api::exchange::Exchanges;
    use crate::config::AccessLogPlace;

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

    #[tokio::test]
    async fn a_completion_that_fails_late_is_told_with_its_code() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (log, writer) = AccessLog::open(AccessLogPlace::File(path.clone()), Metrics::new()).unwrap();
        let entropy = Entropy::from_seed(1, Clock::System);
        let exchanges = Exchanges::new(DoorLabel::S3, entropy, Clock::System, Some(log));
        let exchange = exchanges.begin(&Method::POST, &HeaderMap::new(), None);
        let late = async { http_answer(refuse(S3ErrorCode::NoSuchUpload, "it is gone")) };

        let answer = exchange.scope(async { kept_alive(late) }).await;
        exchange.answered(answer.status());
        drop(exchange);
        let body = BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();

        assert!(body.windows(12).any(|window| window == b"NoSuchUpload"), "{body:?}");
        let stop = CancellationToken::new();
        stop.cancel();
        writer.run(stop).await;
        let line: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!((&line["status"], &line["code"]), (&200.into(), &"NoSuchUpload".into()));
    }

    #[test]
    fn parameters_are_found_with_and_without_values() {
        assert!(has_parameter(&uri("/b?delete"), "delete"));
        assert!(has_parameter(&uri("/b?x=1&delete="), "delete"));
        assert!(!has_parameter(&uri("/b?deleted"), "delete"));
        assert!(has_parameter(&uri("/b?%64elete"), "delete"));
    }
}
