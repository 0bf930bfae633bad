//! Completes s3s's answers before they go out: ids and messages of errors, and characters that XML parsers change.
//!
//! # Upstream
//! Each edit answers something that s3s 0.14.1 leaves out, and can go when s3s does it:
//! - The errors that s3s makes itself have no `RequestId`, and most of them no `Message` (`s3_error!` without a text, all
//!   over `src/ops` and `src/sig_v4`).
//! - Its serializer quotes the entity tag of `GetObjectAttributes`, the one answer of S3 where it stands bare
//!   (`src/xml/generated.rs`, `GetObjectAttributesOutput`).
//! - `S3Error` has no field for the `ActualObjectSize` of a refused range (`src/error/mod.rs`).
//! - Its serializer escapes `&`, `<`, `>` and quotes, but no carriage return (`src/xml/ser.rs`). A parser reads a bare one as
//!   a line feed (XML 1.0, 2.11), so a listed key would have another name than the object.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderName, HeaderValue, StatusCode};
use quick_xml::events::{BytesText, Event};
use quick_xml::{Reader, Writer};
use s3s::{Body, HttpResponse};

use crate::metrics::labels::Operation;

/// Begins every body of XML.
pub(super) const DECLARATION: &[u8] = b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>";
/// Names each request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
/// The second name that S3 gives: its clients write both into their errors.
const ID_2: HeaderName = HeaderName::from_static("x-amz-id-2");

/// Elements that s3s has no fields for: each stands before the next end of the element that it names.
#[derive(Debug, Clone, Default)]
pub(super) struct MoreElements(pub Vec<(&'static str, String)>);

/// The edits that an answer needs.
#[derive(Debug, Clone, Copy)]
struct Edits<'a> {
    /// The request's id, for the body of an error.
    error_id: Option<&'a str>,
    /// Whether entity tags lose their quotes.
    bare_etags: bool,
    more: &'a [(&'static str, String)],
}

/// The parts of an error that are there.
#[derive(Debug, Default)]
struct ErrorParts {
    code: Option<String>,
    message: Option<String>,
    request_id: Option<String>,
}

/// Completes an answer; returns the code of an error.
pub(super) fn complete(answer: &mut HttpResponse, id: &str, operation: Operation) -> Option<String> {
    if let Ok(value) = HeaderValue::from_str(id) {
        answer.headers_mut().insert(ID_2, value.clone());
        answer.headers_mut().insert(REQUEST_ID, value);
    }
    let MoreElements(mut more) = answer.extensions_mut().remove::<MoreElements>().unwrap_or_default();
    more.extend(actual_size(answer));
    let body = answer.body().bytes().filter(|body| body.starts_with(b"<"))?;
    let status = answer.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let bare_etags = operation == Operation::GetObjectAttributes;
    let edits = Edits { error_id: is_error.then_some(id), bare_etags, more: &more };
    if !is_error && !bare_etags && more.is_empty() && !body.contains(&b'\r') {
        return None;
    }
    // `Err`: it is no XML, and stays as it is.
    let (edited, error) = edit(&body, edits).ok()?;
    if edited != body {
        *answer.body_mut() = Body::from(edited);
        answer.headers_mut().remove(CONTENT_LENGTH);
    }
    error.code
}

/// The size that the headers of a refused range tell, for the body. Clients that read in ranges alone (AWS's in C, below
/// PyTorch's connector and Java's) take a refusal for an empty object if the body says 0.
fn actual_size(answer: &HttpResponse) -> Option<(&'static str, String)> {
    let len = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?;
    Some(("Error", format!("<ActualObjectSize>{len}</ActualObjectSize>")))
}

/// Whether an answer is s3s's refusal of a signature of a request, of which it says nothing more.
pub(super) fn is_mismatch(answer: &HttpResponse) -> bool {
    answer.status() == StatusCode::FORBIDDEN
        && !has_message(answer)
        && code_of(answer).as_deref() == Some("SignatureDoesNotMatch")
}

/// The code of an answer that tells of an error.
pub(super) fn code_of(answer: &HttpResponse) -> Option<String> {
    let body = answer.body().bytes()?;
    edit(&body, Edits { error_id: None, bare_etags: false, more: &[] }).ok()?.1.code
}

/// Writes what s3s has no fields for into an answer, and does nothing else to it.
pub(super) fn add_more(answer: &mut HttpResponse) {
    let Some(MoreElements(more)) = answer.extensions_mut().remove::<MoreElements>() else { return };
    let body = answer.body().bytes().unwrap_or_default();
    if let Ok((edited, _)) = edit(&body, Edits { error_id: None, bare_etags: false, more: &more }) {
        *answer.body_mut() = Body::from(edited);
        answer.headers_mut().remove(CONTENT_LENGTH);
    }
}

/// Applies `edits` to a body of XML; returns it with what it says of an error at its root.
fn edit(xml: &[u8], edits: Edits<'_>) -> quick_xml::Result<(Vec<u8>, ErrorParts)> {
    let mut reader = Reader::from_reader(xml);
    let mut writer = Writer::new(Vec::with_capacity(xml.len() + 256));
    let mut path: Vec<Vec<u8>> = vec![];
    let mut error = ErrorParts::default();
    let mut more = edits.more.iter().peekable();
    loop {
        match reader.read_event()? {
            Event::Eof => return Ok((writer.into_inner(), error)),
            Event::Start(start) => {
                path.push(start.name().as_ref().to_vec());
                error.begin(&path);
                writer.write_event(Event::Start(start))?;
            }
            Event::End(end) => {
                if let (Some(id), [root]) = (edits.error_id, &path[..])
                    && root == b"Error"
                {
                    error.write_missing(id, &mut writer)?;
                }
                if let Some((_, element)) = more.next_if(|(within, _)| within.as_bytes() == end.name().as_ref()) {
                    writer.write_event(Event::Text(BytesText::from_escaped(element.as_str())))?;
                }
                path.pop();
                writer.write_event(Event::End(end))?;
            }
            Event::Text(text) => {
                let mut text = text.decode()?.into_owned();
                error.text(&path, &text);
                if edits.bare_etags && path.last().is_some_and(|name| name == b"ETag") {
                    text = text.trim_matches('"').to_owned();
                }
                writer.write_event(Event::Text(BytesText::from_escaped(text.replace('\r', "&#13;"))))?;
            }
            other => writer.write_event(other)?,
        }
    }
}

impl ErrorParts {
    /// The part that the element at `path` is.
    fn part(&mut self, path: &[Vec<u8>]) -> Option<&mut Option<String>> {
        let [root, name] = path else { return None };
        match (&root[..], &name[..]) {
            (b"Error", b"Code") => Some(&mut self.code),
            (b"Error", b"Message") => Some(&mut self.message),
            (b"Error", b"RequestId") => Some(&mut self.request_id),
            _ => None,
        }
    }

    fn begin(&mut self, path: &[Vec<u8>]) {
        if let Some(part) = self.part(path) {
            part.get_or_insert_default();
        }
    }

    fn text(&mut self, path: &[Vec<u8>], text: &str) {
        if let Some(part) = self.part(path) {
            part.get_or_insert_default().push_str(text);
        }
    }

    /// Neither the messages below nor an id has a character that XML escapes.
    fn write_missing(&self, id: &str, writer: &mut Writer<Vec<u8>>) -> quick_xml::Result<()> {
        if self.message.as_deref().is_none_or(str::is_empty) {
            let message = message(self.code.as_deref().unwrap_or_default());
            writer.create_element("Message").write_text_content(BytesText::from_escaped(message))?;
        }
        if self.request_id.is_none() {
            writer.create_element("RequestId").write_text_content(BytesText::from_escaped(id))?;
        }
        Ok(())
    }
}

/// The message of an error that s3s makes without one.
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
    edit(&body, Edits { error_id: None, bare_etags: false, more: &[] }).is_ok_and(|(_, error)| error.message.is_some())
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

    fn completed(status: u16, body: &str, operation: Operation) -> (String, Option<String>) {
        let mut answer = HttpResponse::new(Body::from(body.to_owned()));
        *answer.status_mut() = status.try_into().unwrap();
        let code = complete(&mut answer, "ID", operation);
        assert_eq!(answer.headers()["x-amz-request-id"], "ID");
        (String::from_utf8(answer.body().bytes().unwrap().to_vec()).unwrap(), code)
    }

    #[test]
    fn errors_get_a_message_and_an_id() {
        let (text, code) = completed(403, "<?xml?><Error><Code>AccessDenied</Code></Error>", Operation::None);

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
        let (text, _) = completed(404, "<Error><Code>C</Code><Message>m</Message></Error>", Operation::None);

        assert_eq!(text, "<Error><Code>C</Code><Message>m</Message><RequestId>ID</RequestId></Error>");
    }

    #[test]
    fn a_refused_range_tells_the_size_in_its_body() {
        let mut answer =
            HttpResponse::new(Body::from("<Error><Code>InvalidRange</Code><Message>m</Message></Error>".to_owned()));
        *answer.status_mut() = http::StatusCode::RANGE_NOT_SATISFIABLE;
        answer.headers_mut().insert(CONTENT_RANGE, HeaderValue::from_static("bytes */0"));

        complete(&mut answer, "ID", Operation::GetObject);

        let text = String::from_utf8(answer.body().bytes().unwrap().to_vec()).unwrap();
        assert!(text.ends_with("<RequestId>ID</RequestId><ActualObjectSize>0</ActualObjectSize></Error>"), "{text}");
    }

    #[test]
    fn elements_that_s3s_has_no_fields_for_are_written_where_they_belong() {
        let mut answer = HttpResponse::new(Body::from("<A><P>1</P><P>2</P><P>3</P></A>".to_owned()));
        answer.extensions_mut().insert(MoreElements(vec![
            ("P", String::new()),
            ("P", "<S/>".into()),
            ("A", "<T/>".into()),
        ]));

        complete(&mut answer, "ID", Operation::ListParts);

        assert_eq!(&answer.body().bytes().unwrap()[..], b"<A><P>1</P><P>2<S/></P><P>3</P><T/></A>");
    }

    #[test]
    fn good_answers_change_only_where_they_must() {
        assert_eq!(completed(200, "<A><Code>x</Code></A>", Operation::ListObjects).0, "<A><Code>x</Code></A>");
        assert_eq!(completed(200, "<Key>a\r\nb</Key>", Operation::ListObjects).0, "<Key>a&#13;\nb</Key>");
        assert_eq!(completed(200, "<ETag>\"e\"</ETag>", Operation::GetObjectAttributes).0, "<ETag>e</ETag>");
        assert_eq!(completed(200, "data", Operation::GetObject).0, "data");
    }

    #[test]
    fn what_is_escaped_stays_escaped() {
        let listing = "<A xmlns=\"n\"><Key>a&lt;&amp;&#39;\r</Key><Empty/><!-- c --></A>";

        let (text, _) = completed(200, listing, Operation::ListObjects);

        assert_eq!(text, listing.replace('\r', "&#13;"));
    }

    #[test]
    fn a_body_that_is_no_xml_stays() {
        assert_eq!(
            completed(400, "<Error><Code>C</Error>", Operation::None),
            ("<Error><Code>C</Error>".to_owned(), None)
        );
    }

    #[test]
    fn only_an_error_at_the_root_is_completed() {
        let body = "<DeleteResult><Error><Code>C</Code></Error></DeleteResult>";

        assert_eq!(completed(400, body, Operation::DeleteObjects), (body.to_owned(), None));
    }
}
