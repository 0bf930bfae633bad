//! Requests that pass twice.
//!
//! Some of what s3s 0.14.1 refuses or misreads may only be changed once its signature is checked, because the signature
//! covers it. So such a request passes s3s once, which checks the signature and the hash of the body; then it is changed here,
//! and passes a second time without its signature, signed by whom it was.
//!
//! - Bodies of XML are made plain ([`super::request_xml`]). They are paid for before they are read.
//! - Ranges that make no sense are left out: RFC 9110 has them read the whole. So are dates that are none in
//!   `If-Modified-Since`.
//! - An `Expires` that is no date, such as `0`, is kept as it is, and goes beside the write.
//! - Entity tags that are none belong to no object: such an `If-Match` fails. Where a read names several, they go beside it.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, EXPIRES, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use s3s::dto;
use s3s::route::S3Route;
use s3s::{Body, HttpRequest, S3ErrorCode, S3Request, S3Response, S3Result};

use super::access::Guard;
use super::conditions::{TagLists, odd_tags};
use super::errors::{self, BodyFault, incomplete_body, not_implemented, refuse};
use super::gate::{SignedBy, XML_BYTES_MAX, without_signature};
use super::grants::grants;
use super::headers::SentExpires;
use super::request_xml::{self, Document, Plain};

/// Bodies from here on take a while to parse.
const LARGE_BODY_BYTES: usize = 256 << 10;

/// The route of requests that pass a second time.
pub(super) struct Again {
    /// The door again, without this route.
    pub s3: s3s::service::S3Service,
    pub guard: Guard,
}

#[async_trait::async_trait]
impl S3Route for Again {
    fn is_match(&self, method: &Method, _: &Uri, headers: &HeaderMap, extensions: &mut http::Extensions) -> bool {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        extensions.get::<Document>().is_some()
            || reads && (has_a_senseless_range(headers) || is_no_date(headers, &IF_MODIFIED_SINCE))
            || !reads && is_no_date(headers, &EXPIRES)
            || TAGS.iter().any(|name| headers.contains_key(name) && odd_tags(headers, name).is_some())
    }

    async fn check_access(&self, _: &mut S3Request<Body>) -> S3Result<()> {
        Ok(()) // Checked on the second pass.
    }

    async fn call(&self, mut req: S3Request<Body>) -> S3Result<S3Response<Body>> {
        make_head_plain(&req.method, &mut req.headers, &mut req.extensions)?;
        if let Some(document) = req.extensions.remove::<Document>() {
            // The rest of what it may is checked on the second pass, but nothing is read or paid for of strangers.
            if grants(&self.guard.keys, &req).are_none() {
                return Err(refuse(S3ErrorCode::AccessDenied, "the request is not signed"));
            }
            self.make_plain(&mut req, document).await?;
        }
        if let Some(trailers) = req.trailing_headers.take() {
            // Of a body without its framing, which is off since the first pass: the second has nothing to take them from.
            req.extensions.insert(trailers);
        }
        let mut request = HttpRequest::new(req.input);
        *request.method_mut() = req.method;
        *request.uri_mut() = without_signature(&req.uri);
        *request.headers_mut() = req.headers;
        *request.extensions_mut() = req.extensions;
        request.headers_mut().remove(AUTHORIZATION);
        if let Some(credentials) = req.credentials {
            request.extensions_mut().insert(SignedBy(credentials.access_key));
        }
        let answer = self.s3.call(request).await;
        let answer = answer.map_err(|_| errors::unavailable("the request could not pass a second time"))?;
        let (head, body) = answer.into_parts();
        Ok(S3Response { output: body, status: Some(head.status), headers: head.headers, extensions: head.extensions })
    }
}

impl Again {
    /// Puts the plain form of a body in its place.
    async fn make_plain(&self, req: &mut S3Request<Body>, document: Document) -> S3Result<()> {
        let len = req.headers.get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
        let Some(len) = len else {
            return Err(refuse(S3ErrorCode::MissingContentLength, "the header content-length is missing"));
        };
        if len > XML_BYTES_MAX {
            let message = format!("a body of XML has at most {XML_BYTES_MAX} bytes");
            return Err(refuse(S3ErrorCode::MaxMessageLengthExceeded, message));
        }
        let access_key = req.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        let mut paid = self.guard.pay_for_xml(access_key, len).await?;
        let fault = req.extensions.get::<BodyFault>().cloned().unwrap_or_default();
        let body = read(std::mem::take(&mut req.input), len, &fault).await?;
        let Plain { xml, claims } = plain(document, body).await?;
        req.extensions.insert(claims);
        // White space and comments are gone, so that what the plain form adds by its escapes is hardly ever more.
        let more = (xml.len() as u64).saturating_sub(len);
        if more > 0 {
            paid.merge(self.guard.pay_for_xml(access_key, more).await?);
        }
        req.headers.insert(CONTENT_LENGTH, HeaderValue::from(xml.len()));
        req.input = Body::from(Bytes::from(xml));
        // Held until the request is done.
        req.extensions.insert(Arc::new(paid));
        Ok(())
    }
}

/// Makes a body plain; a large one beside the threads that serve everybody.
async fn plain(document: Document, body: Vec<u8>) -> S3Result<Plain> {
    if body.len() < LARGE_BODY_BYTES {
        return Ok(request_xml::plain(document, &body)?);
    }
    #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
    let made = tokio::task::spawn_blocking(move || request_xml::plain(document, &body)).await;
    Ok(made.map_err(|_| errors::unavailable("the body could not be read"))??)
}

/// Reads a body that is as long as its client says.
async fn read(mut body: Body, len: u64, fault: &BodyFault) -> S3Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| fault.take().unwrap_or_else(|| errors::body(&error)))?;
        if bytes.len() as u64 + piece.len() as u64 > len {
            return Err(incomplete_body("the body has more bytes than declared"));
        }
        bytes.extend_from_slice(&piece);
    }
    if (bytes.len() as u64) < len {
        return Err(incomplete_body(format!("{len} bytes were declared, {} arrived", bytes.len())));
    }
    Ok(bytes)
}

/// Headers with entity tags.
const TAGS: [HeaderName; 4] = [
    IF_MATCH,
    IF_NONE_MATCH,
    HeaderName::from_static("x-amz-copy-source-if-match"),
    HeaderName::from_static("x-amz-copy-source-if-none-match"),
];

/// # Errors
/// `NotImplemented` for a write on the condition that none of several entity tags is there.
fn make_head_plain(method: &Method, headers: &mut HeaderMap, extensions: &mut http::Extensions) -> S3Result<()> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if reads && has_a_senseless_range(headers) {
        let ranges: Vec<_> = headers.get_all(RANGE).iter().collect();
        let within = if let [range] = ranges[..] { range.to_str().ok().and_then(within_bounds) } else { None };
        match within.and_then(|range| HeaderValue::try_from(range).ok()) {
            Some(range) => drop(headers.insert(RANGE, range)),
            None => drop(headers.remove(RANGE)),
        }
    }
    if reads && is_no_date(headers, &IF_MODIFIED_SINCE) {
        headers.remove(IF_MODIFIED_SINCE);
    }
    if !reads
        && is_no_date(headers, &EXPIRES)
        && let Some(sent) = headers.remove(EXPIRES)
        && let Ok(sent) = sent.to_str()
    {
        extensions.insert(SentExpires(sent.to_owned()));
    }
    let mut lists = TagLists::default();
    for name in TAGS {
        let Some(tags) = odd_tags(headers, &name) else { continue };
        match name {
            IF_MATCH if reads => lists.if_match = tags,
            IF_NONE_MATCH if reads => lists.if_none_match = tags,
            IF_NONE_MATCH => {
                return Err(not_implemented("If-None-Match with anything but * or an entity tag on a write"));
            }
            _ => {
                // No object has several, so none is meant.
                headers.insert(name, HeaderValue::from_static("\"?\""));
                continue;
            }
        }
        headers.remove(name);
    }
    extensions.insert(lists);
    Ok(())
}

fn is_no_date(headers: &HeaderMap, name: &HeaderName) -> bool {
    let date = headers.get(name).map(|date| date.to_str().unwrap_or_default());
    date.is_some_and(|date| dto::Timestamp::parse(dto::TimestampFormat::HttpDate, date).is_err())
}

/// A range with numbers that s3s does not take, as one that names the same bytes of any object: none has so many.
fn within_bounds(range: &str) -> Option<String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(i64::MAX))
    };
    Some(match range.strip_prefix("bytes=")?.split_once('-')? {
        ("", length) => format!("bytes=-{}", number(length)?),
        (first, "") => format!("bytes={}-", number(first)?),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| format!("bytes={first}-{last}"))?
        }
    })
}

fn has_a_senseless_range(headers: &HeaderMap) -> bool {
    // s3s reads `bytes=-` as a suffix of no length.
    let parses = |text: &str| text != "bytes=-" && dto::Range::parse(text).is_ok();
    let sensible = |range: &HeaderValue| range.to_str().is_ok_and(parses);
    headers.get_all(RANGE).iter().any(|range| !sensible(range))
}
