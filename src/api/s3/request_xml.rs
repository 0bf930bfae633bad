//! Bodies of requests as XML, made plain for s3s.
//!
//! s3s 0.14.1 reads names and text and little else: it leaves out CDATA sections, so that a batch delete of
//! `<Key>d/<![CDATA[a&b]]></Key>` deletes `d/`, and refuses prefixes of namespaces, `1` for `true` and white space around a
//! number. So bodies are read here, by a whole parser, and s3s gets what they say in the one form that it reads rightly.
//! To report upstream: in `xml/de.rs`, `Event::CData` belongs to the text like `Event::Text`; names should be compared
//! without their prefix; `bool` should take `1`, `0` and white space, `i32` and `i64` no trailing garbage.
//!
//! - A value is all its text, character references and CDATA sections, without comments and processing instructions. Keys
//!   keep their white space; the other values lose it at their ends.
//! - UTF-8 with and without a byte order mark, UTF-16, ISO-8859-1. Line ends are those of XML 1.0.
//! - A document type is refused, and with it every entity but the five of XML.
//! - An element that is there twice, or is not known inside an object or a part, is refused: it may be a condition. Unknown
//!   ones beside them are left out. Attributes mean nothing.
//!
//! # Source
//! <https://www.w3.org/TR/xml/>, <https://www.w3.org/TR/xml-names/>, <https://www.w3.org/TR/xmlschema-2/>

use std::borrow::Cow;

use quick_xml::NsReader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;

use super::checksums::Algorithm;
use super::errors::refuse;
use s3s::{S3Error, S3ErrorCode};

/// An element that a body may have.
#[derive(Debug)]
pub(super) struct Element {
    name: &'static str,
    /// Number of times that it may be there.
    times: usize,
    content: Holds,
}

/// The contents of an element.
#[derive(Debug)]
enum Holds {
    /// Text as it is.
    Exact,
    /// Text without white space at its ends.
    Text,
    Integer,
    Boolean,
    /// A checksum that s3s does not know; it goes beside the body.
    Checksum(Algorithm),
    Elements(&'static [Element], Unknown),
}

/// The treatment of unknown elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Refused,
    LeftOut,
}

const fn element(name: &'static str, times: usize, content: Holds) -> Element {
    Element { name, times, content }
}

/// One more than a request may name, so that too many are refused for that.
const KEYS_MAX: usize = 1001;
const PARTS_MAX: usize = 10_001;
const TAGS_MAX: usize = 100;
/// Elements within elements, attributes of one element, and prefixes of a document. No client comes near.
const DEPTH_MAX: usize = 16;
const ATTRIBUTES_MAX: usize = 64;
const PREFIXES_MAX: usize = 64;
/// A body that is not whole.
const OVER: &str = "it ends within an element";

/// The body of `DeleteObjects`.
pub(super) static DELETE: Element = element(
    "Delete",
    1,
    Holds::Elements(
        &[
            element(
                "Object",
                KEYS_MAX,
                Holds::Elements(
                    &[
                        element("Key", 1, Holds::Exact),
                        element("VersionId", 1, Holds::Text),
                        element("ETag", 1, Holds::Text),
                        element("LastModifiedTime", 1, Holds::Text),
                        element("Size", 1, Holds::Integer),
                    ],
                    Unknown::Refused,
                ),
            ),
            element("Quiet", 1, Holds::Boolean),
        ],
        Unknown::LeftOut,
    ),
);

/// The body of `CompleteMultipartUpload`.
pub(super) static COMPLETE: Element = element(
    "CompleteMultipartUpload",
    1,
    Holds::Elements(
        &[element(
            "Part",
            PARTS_MAX,
            Holds::Elements(
                &[
                    element("PartNumber", 1, Holds::Integer),
                    element("ETag", 1, Holds::Text),
                    element("ChecksumCRC32", 1, Holds::Text),
                    element("ChecksumCRC32C", 1, Holds::Text),
                    element("ChecksumCRC64NVME", 1, Holds::Text),
                    element("ChecksumSHA1", 1, Holds::Text),
                    element("ChecksumSHA256", 1, Holds::Text),
                    element("ChecksumSHA512", 1, Holds::Checksum(Algorithm::Sha512)),
                    element("ChecksumMD5", 1, Holds::Checksum(Algorithm::Md5)),
                    element("ChecksumXXHASH64", 1, Holds::Checksum(Algorithm::XxHash64)),
                    element("ChecksumXXHASH3", 1, Holds::Checksum(Algorithm::XxHash3)),
                    element("ChecksumXXHASH128", 1, Holds::Checksum(Algorithm::XxHash128)),
                ],
                Unknown::Refused,
            ),
        )],
        Unknown::Refused,
    ),
);

/// The body of `CreateBucket`.
pub(super) static CREATE_BUCKET: Element = element(
    "CreateBucketConfiguration",
    1,
    Holds::Elements(&[element("LocationConstraint", 1, Holds::Text)], Unknown::LeftOut),
);

/// The body of `PutObjectTagging`. More tags than an object may have are refused for that.
pub(super) static TAGGING: Element = element(
    "Tagging",
    1,
    Holds::Elements(
        &[element(
            "TagSet",
            1,
            Holds::Elements(
                &[element(
                    "Tag",
                    TAGS_MAX,
                    Holds::Elements(
                        &[element("Key", 1, Holds::Exact), element("Value", 1, Holds::Exact)],
                        Unknown::Refused,
                    ),
                )],
                Unknown::Refused,
            ),
        )],
        Unknown::LeftOut,
    ),
);

/// A body that is to be read as such a document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document(pub &'static Element);

impl Document {
    /// Whether checksums in the headers beside it are those of the object that comes of it, and not of the body.
    pub(super) fn has_checksums_of_an_object(self) -> bool {
        std::ptr::eq(self.0, &raw const COMPLETE)
    }
}

/// A body, read.
#[derive(Debug, Default)]
pub(super) struct Plain {
    /// For s3s.
    pub xml: String,
    pub claims: PartClaims,
}

/// Checksums of parts that s3s has no fields for, each with the place of its part in the body.
#[derive(Debug, Clone, Default)]
pub(super) struct PartClaims(Vec<(usize, Algorithm, String)>);

impl PartClaims {
    /// The checksums that are claimed of the part at `place`.
    pub(super) fn of(&self, place: usize) -> impl Iterator<Item = (Algorithm, &str)> {
        let from = self.0.partition_point(|(part, ..)| *part < place);
        let claims = self.0[from..].iter().take_while(move |(part, ..)| *part == place);
        claims.map(|(_, algorithm, value)| (*algorithm, value.as_str()))
    }
}

/// Why a body is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadXml {
    #[error("the body is not well-formed XML: {0}")]
    NotXml(String),
    #[error("the body has a document type, which is not allowed")]
    DocumentType,
    #[error(
        "the body has more than {DEPTH_MAX} elements within elements, {ATTRIBUTES_MAX} attributes of an element or \
         {PREFIXES_MAX} prefixes"
    )]
    TooMuch,
    #[error("the body is in an encoding that is not known")]
    Encoding,
    #[error("the body must be a {0}")]
    Root(&'static str),
    #[error("{0} is there too often")]
    Repeated(&'static str),
    #[error("{0:?} does not belong into {1}")]
    Unknown(String, &'static str),
    #[error("the value of {0} is not one")]
    Value(&'static str),
}

impl From<BadXml> for S3Error {
    fn from(why: BadXml) -> Self {
        refuse(S3ErrorCode::MalformedXML, why.to_string())
    }
}

fn not_xml(why: impl ToString) -> BadXml {
    BadXml::NotXml(why.to_string())
}

/// Reads a body as `document` and writes it in the one form that s3s reads rightly.
///
/// # Errors
/// [`BadXml`]; nothing of the body counts then.
pub(super) fn plain(document: Document, body: &[u8]) -> Result<Plain, BadXml> {
    let text = decoded(body)?;
    let mut reader = NsReader::from_str(&text);
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.check_comments = true;
    let mut walk = XmlWalk { reader, depth: 0, prefixes: 0, begun: false, plain: Plain::default(), repeats: 0 };
    let root = document.0;
    match walk.next_beyond_space()? {
        Token::Start(name) if name == root.name => walk.element(root)?,
        _ => return Err(BadXml::Root(root.name)),
    }
    match walk.next_beyond_space()? {
        Token::Over => Ok(walk.plain),
        _ => Err(not_xml("something follows the root")),
    }
}

/// The body as text, by its byte order mark or its declaration.
fn decoded(body: &[u8]) -> Result<Cow<'_, str>, BadXml> {
    let utf8 = |bytes| std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| BadXml::Encoding);
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, []) = bytes.as_chunks::<2>() else { return Err(BadXml::Encoding) };
        let chars = char::decode_utf16(pairs.iter().map(|pair| unit(*pair)));
        chars.collect::<Result<String, _>>().map(Cow::Owned).map_err(|_| BadXml::Encoding)
    };
    match body {
        [0xEF, 0xBB, 0xBF, rest @ ..] => utf8(rest),
        [0xFE, 0xFF, rest @ ..] | rest @ [0, b'<', ..] => utf16(rest, u16::from_be_bytes),
        [0xFF, 0xFE, rest @ ..] | rest @ [b'<', 0, ..] => utf16(rest, u16::from_le_bytes),
        _ => match declared_encoding(body).unwrap_or_default().to_ascii_lowercase().as_str() {
            "" | "utf-8" | "utf8" | "us-ascii" | "ascii" => utf8(body),
            "iso-8859-1" | "latin1" => Ok(body.iter().map(|byte| char::from(*byte)).collect()),
            _ => Err(BadXml::Encoding),
        },
    }
}

/// The encoding that the declaration names.
fn declared_encoding(body: &[u8]) -> Option<&str> {
    let end = body.strip_prefix(b"<?xml")?.windows(2).position(|pair| pair == b"?>")?;
    let declaration = std::str::from_utf8(&body[..end + 5]).ok()?;
    let value = declaration.split_once("encoding")?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
    value[1..].split_once(quote).map(|(name, _)| name)
}

/// The pieces of a body that mean something.
enum Token<'a> {
    /// The name without its prefix.
    Start(String),
    End,
    Text(Cow<'a, str>),
    /// The end of the body.
    Over,
}

struct XmlWalk<'a> {
    reader: NsReader<&'a [u8]>,
    /// Elements that are open.
    depth: usize,
    /// Prefixes that were declared so far.
    prefixes: usize,
    /// Whether anything has been read: a declaration comes first.
    begun: bool,
    plain: Plain,
    /// Elements so far that may be there several times.
    repeats: usize,
}

impl<'a> XmlWalk<'a> {
    fn next(&mut self) -> Result<Token<'a>, BadXml> {
        loop {
            let (namespace, event) = self.reader.read_resolved_event().map_err(not_xml)?;
            let unbound = matches!(namespace, ResolveResult::Unknown(_));
            let first = !std::mem::replace(&mut self.begun, true);
            return Ok(match event {
                Event::Start(_) | Event::Empty(_) if unbound => return Err(not_xml("a prefix is not declared")),
                Event::Start(start) | Event::Empty(start) => {
                    self.open(&start)?;
                    Token::Start(local_name(&start)?)
                }
                Event::End(_) => {
                    self.depth -= 1;
                    Token::End
                }
                Event::Eof => Token::Over,
                Event::Text(text) => Token::Text(text.xml10_content().map_err(not_xml)?),
                Event::CData(text) => Token::Text(text.xml10_content().map_err(not_xml)?),
                Event::GeneralRef(reference) => {
                    let name = reference.decode().map_err(not_xml)?;
                    let text = match reference.resolve_char_ref().map_err(not_xml)? {
                        Some(character) => character.to_string(),
                        None => resolve_xml_entity(&name).ok_or_else(|| not_xml("an unknown entity"))?.to_owned(),
                    };
                    Token::Text(text.into())
                }
                Event::Comment(_) | Event::PI(_) => continue,
                Event::Decl(_) if first => continue,
                Event::Decl(_) => return Err(not_xml("a declaration is not at the beginning")),
                Event::DocType(_) => return Err(BadXml::DocumentType),
            });
        }
    }

    /// Keeps what is open, and what is declared, to a size at which each element costs little.
    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), BadXml> {
        self.depth += 1;
        // Not checked against each other here, which would take a while if they are many.
        let (mut attributes, mut declared) = (0, 0);
        for attribute in start.attributes().with_checks(false).flatten() {
            attributes += 1;
            declared += usize::from(attribute.key.as_namespace_binding().is_some());
        }
        self.prefixes += declared;
        if self.depth > DEPTH_MAX || attributes > ATTRIBUTES_MAX || self.prefixes > PREFIXES_MAX {
            return Err(BadXml::TooMuch);
        }
        Ok(())
    }

    /// The next token where there is no text.
    fn next_beyond_space(&mut self) -> Result<Token<'a>, BadXml> {
        loop {
            match self.next()? {
                Token::Text(text) if is_space(&text) => {}
                Token::Text(_) => return Err(not_xml("text where elements belong")),
                other => return Ok(other),
            }
        }
    }

    /// Reads on from behind the start of `element` until behind its end.
    fn element(&mut self, element: &'static Element) -> Result<(), BadXml> {
        let Element { name, content, times } = element;
        if *times > 1 {
            self.repeats += 1;
        }
        if let Holds::Checksum(algorithm) = content {
            let value = self.value(name)?.trim_matches(space).to_owned();
            self.plain.claims.0.push((self.repeats - 1, *algorithm, value));
            return Ok(());
        }
        self.tag("<", name);
        match content {
            Holds::Elements(known, unknown) => self.elements(name, known, *unknown)?,
            Holds::Exact => {
                let value = self.value(name)?;
                self.text(&value);
            }
            content => {
                let value = self.value(name)?;
                let value = value.trim_matches(space);
                let plain = match (content, value) {
                    (Holds::Integer, _) => integer(value).ok_or(BadXml::Value(name))?.to_string(),
                    (Holds::Boolean, "true" | "TRUE" | "True" | "1") => "true".to_owned(),
                    (Holds::Boolean, "false" | "FALSE" | "False" | "0") => "false".to_owned(),
                    (Holds::Boolean, _) => return Err(BadXml::Value(name)),
                    _ => value.to_owned(),
                };
                self.text(&plain);
            }
        }
        self.tag("</", name);
        Ok(())
    }

    fn elements(&mut self, of: &'static str, known: &'static [Element], unknown: Unknown) -> Result<(), BadXml> {
        let mut times = vec![0_usize; known.len()];
        loop {
            let name = match self.next_beyond_space()? {
                Token::Start(name) => name,
                Token::End => return Ok(()),
                Token::Text(_) | Token::Over => return Err(not_xml(OVER)),
            };
            match known.iter().zip(&mut times).find(|(known, _)| known.name == name) {
                Some((known, times)) if *times == known.times => return Err(BadXml::Repeated(known.name)),
                Some((known, times)) => {
                    *times += 1;
                    self.element(known)?;
                }
                None if unknown == Unknown::LeftOut => self.skip()?,
                None => return Err(BadXml::Unknown(name, of)),
            }
        }
    }

    /// The text of an element without others in it, up to behind its end.
    fn value(&mut self, of: &'static str) -> Result<String, BadXml> {
        let mut value = String::new();
        loop {
            match self.next()? {
                Token::Text(text) => value.push_str(&text),
                Token::End => return Ok(value),
                Token::Start(name) => return Err(BadXml::Unknown(name, of)),
                Token::Over => return Err(not_xml(OVER)),
            }
        }
    }

    /// Leaves out an element with all that is in it.
    fn skip(&mut self) -> Result<(), BadXml> {
        let mut open = 1_usize;
        while open > 0 {
            match self.next()? {
                Token::Start(_) => open += 1,
                Token::End => open -= 1,
                Token::Text(_) => {}
                Token::Over => return Err(not_xml(OVER)),
            }
        }
        Ok(())
    }

    fn tag(&mut self, before: &str, name: &str) {
        self.plain.xml.extend([before, name, ">"]);
    }

    fn text(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.plain.xml.push_str("&amp;"),
                '<' => self.plain.xml.push_str("&lt;"),
                '>' => self.plain.xml.push_str("&gt;"),
                '\r' => self.plain.xml.push_str("&#13;"),
                other => self.plain.xml.push(other),
            }
        }
    }
}

/// The name without its prefix; the attributes are looked at for their form alone.
fn local_name(start: &BytesStart<'_>) -> Result<String, BadXml> {
    if let Some(Err(error)) = start.attributes().find(Result::is_err) {
        return Err(not_xml(error));
    }
    std::str::from_utf8(start.local_name().as_ref()).map(str::to_owned).map_err(not_xml)
}

fn space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

fn is_space(text: &str) -> bool {
    text.chars().all(space)
}

fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn delete(body: &[u8]) -> Result<String, BadXml> {
        plain(Document(&DELETE), body).map(|plain| plain.xml)
    }

    fn deleted(objects: &str) -> String {
        format!("<Delete>{objects}</Delete>")
    }

    #[test]
    fn more_elements_within_elements_attributes_or_prefixes_than_any_client_writes_are_refused() {
        let prefixes = |count: usize| (0..count).map(|n| format!(" xmlns:p{n}='u'")).collect::<String>();
        let attributes = |count: usize| (0..count).map(|n| format!(" a{n}=''")).collect::<String>();
        let nested = |count: usize| format!("<Delete>{}{}</Delete>", "<a>".repeat(count), "</a>".repeat(count));
        let is_too_much = |body: &str| matches!(delete(body.as_bytes()), Err(BadXml::TooMuch));

        assert!(delete(nested(DEPTH_MAX - 1).as_bytes()).is_ok());
        // As many as do not fit into 16 bits, too.
        assert!(is_too_much(&nested(DEPTH_MAX)) && is_too_much(&format!("<Delete>{}", "<a>".repeat(70_000))));
        assert!(delete(format!("<Delete{}/>", prefixes(PREFIXES_MAX)).as_bytes()).is_ok());
        assert!(is_too_much(&format!("<Delete{}><x xmlns:q='u'/></Delete>", prefixes(PREFIXES_MAX))));
        assert!(is_too_much(&format!("<Delete{}/>", attributes(ATTRIBUTES_MAX + 1))));
    }

    #[test]
    fn the_same_keys_however_they_are_written() {
        let expected = deleted("<Object><Key>d/a&amp;b</Key></Object><Quiet>true</Quiet>");
        for body in [
            "<Delete><Object><Key>d/<![CDATA[a&b]]></Key></Object><Quiet>1</Quiet></Delete>",
            "<Delete>\n <Object>\n  <Key>d/&#97;&#x26;b</Key>\n </Object>\n <Quiet> true\n</Quiet>\n</Delete>\n",
            "<?xml version='1.0'?><!-- a --><Delete><Quiet>TRUE</Quiet><Object><Key>d/a<!-- b -->&amp;<?c d?>b</Key></Object></Delete>",
            "<s3:Delete xmlns:s3='urn:a'><s3:Object><s3:Key>d/<![CDATA[a]]>&amp;b</s3:Key></s3:Object><s3:Quiet>1</s3:Quiet></s3:Delete>",
            "<Delete xmlns='urn:a' a='b'><Object c='d'><Key xmlns=''>d/a&amp;b</Key></Object><Other><A/>x</Other><Quiet>true</Quiet></Delete>",
        ] {
            let mut got = delete(body.as_bytes()).unwrap();
            if got.starts_with("<Delete><Quiet>") {
                got = deleted(
                    &(got.replace("<Quiet>true</Quiet>", "")[8..].replace("</Delete>", "") + "<Quiet>true</Quiet>"),
                );
            }
            assert_eq!(got, expected, "{body}");
        }
    }

    #[test]
    fn keys_keep_their_white_space_and_other_values_do_not() {
        let body = "<Delete><Object><Key> a \n</Key><VersionId> null </VersionId><Size> 007 </Size></Object></Delete>";

        let objects = "<Object><Key> a \n</Key><VersionId>null</VersionId><Size>7</Size></Object>";
        assert_eq!(delete(body.as_bytes()).unwrap(), deleted(objects));
        let line_ends = delete(b"<Delete><Object><Key>a\r\nb\rc&#13;</Key></Object></Delete>").unwrap();
        assert_eq!(line_ends, deleted("<Object><Key>a\nb\nc&#13;</Key></Object>"));
        assert_eq!(
            delete(b"<Delete><Object><Key/></Object></Delete>").unwrap(),
            deleted("<Object><Key></Key></Object>")
        );
    }

    #[test]
    fn encodings_are_told_by_mark_or_declaration() {
        let text = "<Delete><Object><Key>\u{fc}</Key></Object></Delete>";
        let expected = deleted("<Object><Key>\u{fc}</Key></Object>");
        let utf16: fn(u16) -> [u8; 2] = u16::to_be_bytes;
        let wide = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        let latin: Vec<u8> = format!("<?xml version=\"1.0\" encoding='ISO-8859-1'?>{text}")
            .chars()
            .map(|character| u8::try_from(u32::from(character)).unwrap())
            .collect();
        for body in [
            text.as_bytes().to_vec(),
            format!("\u{feff}{text}").into_bytes(),
            wide(&format!("\u{feff}{text}"), utf16),
            wide(&format!("\u{feff}<?xml version='1.0' encoding='utf-16'?>{text}"), u16::to_le_bytes),
            wide(text, u16::to_le_bytes),
            latin,
        ] {
            assert_eq!(delete(&body).unwrap(), expected, "{body:?}");
        }
        for body in [&b"<?xml version='1.0' encoding='EBCDIC'?><Delete/>"[..], b"<Delete>\xfc</Delete>", b"\xfe\xff\0"]
        {
            assert!(matches!(delete(body), Err(BadXml::Encoding)), "{body:?}");
        }
    }

    #[test]
    fn what_is_not_the_document_is_refused() {
        for body in [
            "",
            " ",
            "text",
            "<Delete>",
            "<Delete><Object><Key>a</Key></Object>",
            "<Delete></Object></Delete>",
            "<Delete/><Delete/>",
            "<Delete/>x",
            "<delete/>",
            "<CompleteMultipartUpload/>",
            "<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
            "<Delete><Quiet>1</Quiet><Quiet>1</Quiet></Delete>",
            "<Delete><Object><Key>a</Key><IfMatch>e</IfMatch></Object></Delete>",
            "<Delete><Object><Key>a<b/></Key></Object></Delete>",
            "<Delete><Object>a<Key>a</Key></Object></Delete>",
            "<Delete><Quiet>yes</Quiet></Delete>",
            "<Delete><Object><Key>a</Key><Size>1x</Size></Object></Delete>",
            "<Delete><Object><Key>&other;</Key></Object></Delete>",
            "<Delete><Object><Key>a & b</Key></Object></Delete>",
            "<x:Delete/>",
            "<Delete a='1' a='2'/>",
            "<Delete a=1/>",
            "<Delete/><?xml version='1.0'?>",
            "<!DOCTYPE Delete><Delete/>",
            "<!DOCTYPE d [<!ENTITY a 'b'>]><Delete><Object><Key>&a;</Key></Object></Delete>",
        ] {
            assert!(delete(body.as_bytes()).is_err(), "{body}");
        }
        let many = "<Object><Key>a</Key></Object>".repeat(1002);
        assert!(matches!(delete(deleted(&many).as_bytes()), Err(BadXml::Repeated("Object"))));
    }

    #[test]
    fn parts_are_made_plain() {
        let body = "<CompleteMultipartUpload><Part><ETag> <![CDATA[\"e\"]]> </ETag><PartNumber>\n01 </PartNumber></Part></CompleteMultipartUpload>";

        let got = plain(Document(&COMPLETE), body.as_bytes()).unwrap().xml;

        let part = "<Part><ETag>\"e\"</ETag><PartNumber>1</PartNumber></Part>";
        assert_eq!(got, format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>"));
    }

    #[test]
    fn checksums_that_s3s_does_not_know_go_beside_the_body() {
        let part = |claims: &str| format!("<Part><PartNumber>1</PartNumber>{claims}</Part>");
        let md5 = "<ChecksumMD5> bQ== </ChecksumMD5>";
        let parts = part("") + &part(&format!("{md5}<ChecksumXXHASH3>eA==</ChecksumXXHASH3>")) + &part(md5);
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");

        let got = plain(Document(&COMPLETE), body.as_bytes()).unwrap();

        let of = |place| got.claims.of(place).map(|(algorithm, value)| (algorithm.name(), value)).collect::<Vec<_>>();
        assert_eq!([of(0), of(1), of(2)], [vec![], vec![("MD5", "bQ=="), ("XXHASH3", "eA==")], vec![("MD5", "bQ==")]]);
        assert!(!got.xml.contains("MD5"));
    }

    #[test]
    fn a_location_is_made_plain() {
        let body = "<CreateBucketConfiguration><Tags><Tag/></Tags><LocationConstraint> a </LocationConstraint></CreateBucketConfiguration>";

        let got = plain(Document(&CREATE_BUCKET), body.as_bytes()).unwrap().xml;

        let location = "<LocationConstraint>a</LocationConstraint>";
        assert_eq!(got, format!("<CreateBucketConfiguration>{location}</CreateBucketConfiguration>"));
    }

    /// One way to write a character.
    fn written(character: char, way: u8) -> String {
        let number = u32::from(character);
        match (way, character) {
            (0, _) => format!("&#{number};"),
            (1, _) => format!("&#x{number:X};"),
            (2, '&') => "&amp;".into(),
            (2, '<') => "&lt;".into(),
            (2, '>') => "&gt;".into(),
            (3, _) if !"\r]".contains(character) => format!("<![CDATA[{character}]]>"),
            (4, _) => format!("<!-- {} -->&#{number};<?a b?>", "c"),
            (_, '&' | '<' | '>' | '\r') => format!("&#{number};"),
            _ => character.to_string(),
        }
    }

    proptest! {
        #[test]
        fn keys_come_out_as_they_are_however_each_character_is_written(
            keys in proptest::collection::vec(proptest::collection::vec((any::<char>().prop_filter("no XML has it", |c| *c != '\0'), 0u8..6), 0..20), 1..5),
        ) {
            let objects = |write: &dyn Fn(char, u8) -> String| {
                let one = |key: &Vec<(char, u8)>| {
                    let text: String = key.iter().map(|(character, way)| write(*character, *way)).collect();
                    format!("<Object><Key>{text}</Key></Object>")
                };
                deleted(&keys.iter().map(one).collect::<String>())
            };
            let plainly = |character: char, _: u8| match character {
                '&' => "&amp;".to_owned(),
                '<' => "&lt;".to_owned(),
                '>' => "&gt;".to_owned(),
                '\r' => "&#13;".to_owned(),
                other => other.to_string(),
            };

            prop_assert_eq!(delete(objects(&written).as_bytes()).unwrap(), objects(&plainly));
        }

        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200), text in "[<>/!\\[\\]A-Za-z&;?\"'= -]{0,60}") {
            for document in [&DELETE, &COMPLETE, &CREATE_BUCKET] {
                let _ = plain(Document(document), &body);
                let _ = plain(Document(document), text.as_bytes());
            }
        }
    }
}
