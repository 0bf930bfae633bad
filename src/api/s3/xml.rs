//! What s3s's answers lack before they go out: ids and messages of errors, and characters that XML parsers change.

use http::header::CONTENT_LENGTH;
use http::{HeaderName, HeaderValue};
use s3s::{Body, HttpResponse};

use bytes::Bytes;

/// Begins every body of XML.
pub(super) const DECLARATION: &[u8] = b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>";
/// Names each request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// Completes an answer; says the code of an error.
pub(super) fn complete(answer: &mut HttpResponse, id: &str, operation: &str) -> Option<String> {
    if let Ok(value) = HeaderValue::from_str(id) {
        answer.headers_mut().insert(REQUEST_ID, value);
    }
    let body = answer.body().bytes().filter(|body| body.starts_with(b"<"))?;
    let mut text = std::borrow::Cow::from(std::str::from_utf8(&body).ok()?);
    let error = answer.status().is_client_error() || answer.status().is_server_error();
    let code = if error { element(&text, "Code").map(str::to_owned) } else { None };
    if let Some(code) = &code {
        text = error_text(&text, code, id).into();
    }
    if operation == "GetObjectAttributes" {
        // The one answer whose entity tag has no quotes.
        text = text.replace("<ETag>\"", "<ETag>").replace("\"</ETag>", "</ETag>").into();
    }
    if text.contains('\r') {
        // A parser would read it as a line feed.
        text = text.replace('\r', "&#13;").into();
    }
    if let std::borrow::Cow::Owned(text) = text {
        *answer.body_mut() = Body::from(text);
        answer.headers_mut().remove(CONTENT_LENGTH);
    }
    code
}

/// An error with a message and the request's id.
fn error_text(text: &str, code: &str, id: &str) -> String {
    let Some(end) = text.rfind("</Error>") else { return text.to_owned() };
    let mut out = text[..end].to_owned();
    if element(text, "Message").is_none_or(str::is_empty) {
        out.push_str(&format!("<Message>{}</Message>", message(code)));
    }
    if element(text, "RequestId").is_none() {
        out.push_str(&format!("<RequestId>{id}</RequestId>"));
    }
    out.push_str(&text[end..]);
    out
}

/// The text of the first element with a name, as it stands there.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// What errors that s3s makes without a message mean.
fn message(code: &str) -> &'static str {
    match code {
        "SignatureDoesNotMatch" => "the signature does not match: check the secret key and the signing method",
        "MalformedXML" => "the body is not the XML that this request has",
        "MissingRequestBodyError" => "the request needs a body",
        "InvalidBucketName" => "the bucket name is not valid: 3 to 63 of a-z, 0-9, '.' and '-'",
        "InvalidURI" => "the address cannot be read",
        "KeyTooLongError" => "the key is longer than 1024 bytes",
        "MaxMessageLengthExceeded" => "the body is too large for this request",
        "MissingContentLength" => "the header content-length is missing",
        "IncompleteBody" => "the body has another length than declared",
        "MethodNotAllowed" => "the method does not fit what the address names",
        "AccessDenied" => "the request is not allowed",
        _ => "the request was refused, see the code",
    }
}

/// Whether an error has a message.
pub(super) fn has_message(answer: &HttpResponse) -> bool {
    let body = answer.body().bytes().unwrap_or_default();
    std::str::from_utf8(&body).is_ok_and(|text| element(text, "Message").is_some())
}

/// The XML of an answer, for a body that has its declaration already.
pub(super) fn without_declaration(answer: &HttpResponse) -> Bytes {
    let body = answer.body().bytes().unwrap_or_default();
    let skip = if body.starts_with(DECLARATION) { DECLARATION.len() } else { 0 };
    body.slice(skip..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(status: u16, body: &str, operation: &str) -> (String, Option<String>) {
        let mut answer = HttpResponse::new(Body::from(body.to_owned()));
        *answer.status_mut() = status.try_into().unwrap();
        let code = complete(&mut answer, "ID", operation);
        assert_eq!(answer.headers()["x-amz-request-id"], "ID");
        (String::from_utf8(answer.body().bytes().unwrap().to_vec()).unwrap(), code)
    }

    #[test]
    fn errors_get_a_message_and_an_id() {
        let (text, code) = completed(403, "<?xml?><Error><Code>AccessDenied</Code></Error>", "none");

        let message = message("AccessDenied");
        assert_eq!(
            text,
            format!(
                "<?xml?><Error><Code>AccessDenied</Code><Message>{message}</Message><RequestId>ID</RequestId></Error>"
            )
        );
        assert_eq!(code.as_deref(), Some("AccessDenied"));
    }

    #[test]
    fn a_message_that_is_there_stays() {
        let (text, _) = completed(404, "<Error><Code>C</Code><Message>m</Message></Error>", "none");

        assert_eq!(text, "<Error><Code>C</Code><Message>m</Message><RequestId>ID</RequestId></Error>");
    }

    #[test]
    fn good_answers_change_only_where_they_must() {
        assert_eq!(completed(200, "<A><Code>x</Code></A>", "ListObjects").0, "<A><Code>x</Code></A>");
        assert_eq!(completed(200, "<Key>a\r\nb</Key>", "ListObjects").0, "<Key>a&#13;\nb</Key>");
        assert_eq!(completed(200, "<ETag>\"e\"</ETag>", "GetObjectAttributes").0, "<ETag>e</ETag>");
        assert_eq!(completed(200, "data", "GetObject").0, "data");
    }
}
