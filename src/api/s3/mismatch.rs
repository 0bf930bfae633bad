//! Says why a signature does not match, where a proxy on the way changed what it covers.
//!
//! A signature covers host, path, query and headers as the client sent them. So each change that proxies are known to make is undone, one
//! at a time, and the signature is checked again; the one with which it matches is named. It helps nobody in: the request stays
//! refused.
//!
//! Finding out costs as much as many requests, so it is bounded: one request at a time, heads of a usual size, a number of tries.
//!
//! | a proxy | is undone by |
//! | --- | --- |
//! | puts a name of its own into `Host` | `X-Forwarded-Host`, `X-Original-Host`, `Forwarded`, or one of `server.virtual-host-domains` |
//! | takes the port off, or adds one | ports that are usual, and `X-Forwarded-Port` |
//! | makes one of `//` | two of each `/` |
//! | decodes `%2F` | `%2F` for each `/` behind the bucket |
//! | encodes what is encoded | decoding |
//! | takes `+` for a blank, or writes it so | the one for the other |
//! | adds a slash at the end, or takes it off | the other way |
//! | names other encodings that it accepts | those that clients sign |
//! | adds a parameter | leaving out each that is no part of the signature |
//! | encodes in the query what is encoded, or decodes `%2B` | decoding, `%2B` for each `+` |
//!
//! It does not matter where the signature stands, in the `Authorization` header or in a presigned address, nor whether the host
//! came in `Host` or in `:authority`, as over HTTP/2. A presigned address is also good for one method alone, whatever its user
//! believes: the others are tried, too.

use std::collections::{HashSet, VecDeque};
use std::iter::from_fn;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use percent_encoding::percent_decode_str;
use s3s::route::S3Route;
use s3s::service::S3Service;
use s3s::{Body, HttpRequest, HttpResponse, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use tokio::sync::Semaphore;

use super::errors::refuse;
use super::signature;

/// Changes that are undone at most; each costs as much as a check of a signature.
const TRIES_MAX: usize = 48;
/// Slashes of a path that are looked at, from the end, where keys have them.
const SLASHES_MAX: usize = 16;
/// Bytes of address and headers at most; a check reads all of them.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Requests that are explained at once: those with a wrong key must not take the processor from those with the right one.
const EXPLAINED_AT_ONCE: usize = 1;
/// Ports that clients leave out or name.
const PORTS: [&str; 6] = ["80", "443", "8080", "8443", "9000", "9443"];
/// Parameters that are left out at most, one at a time.
const PARAMETERS_MAX: usize = 8;
/// Methods that a presigned address may be for.
const METHODS: [Method; 4] = [Method::GET, Method::PUT, Method::HEAD, Method::DELETE];
/// Encodings that clients sign.
const ENCODINGS: [&str; 3] = ["identity", "gzip", "gzip, deflate"];

/// The head of a request, kept until its signature was checked.
#[derive(Debug, Clone)]
pub(super) struct SentHead {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

/// The route of requests whose signature matches.
struct Matches;

#[async_trait::async_trait]
impl S3Route for Matches {
    fn is_match(&self, _: &Method, _: &Uri, _: &HeaderMap, _: &mut http::Extensions) -> bool {
        true
    }

    async fn check_access(&self, _: &mut S3Request<Body>) -> S3Result<()> {
        Ok(())
    }

    async fn call(&self, _: S3Request<Body>) -> S3Result<S3Response<Body>> {
        Ok(S3Response::new(Body::empty()))
    }
}

/// Checks signatures, and does nothing else.
#[derive(Debug)]
pub(super) struct Checker {
    s3: S3Service,
    turns: Semaphore,
}

impl Checker {
    /// Made of a service like the door's.
    pub(super) fn new(mut builder: s3s::service::S3ServiceBuilder) -> Self {
        builder.set_route(Matches);
        Self { s3: builder.build(), turns: Semaphore::new(EXPLAINED_AT_ONCE) }
    }

    /// Says why the signature of a request does not match, as far as that can be found out. Without the head, or while another
    /// request is looked at, it is not.
    pub(super) async fn explain(&self, sent: Option<&SentHead>, domains: &[String]) -> S3Error {
        let plain =
            "the signature does not match: the secret key is another one, or host or path were changed on the way";
        let Some(sent) = sent else { return refuse(S3ErrorCode::SignatureDoesNotMatch, plain) };
        let found = match self.turns.try_acquire() {
            Ok(_turn) => self.find(sent, domains).await,
            Err(_) => None,
        };
        let message = match found {
            Some(change) => change.told(sent),
            None => {
                let missing = sent.missing();
                let came = format!("{plain}; they came as {:?} and {:?}", sent.host(), sent.uri.path());
                match missing.is_empty() {
                    true => came,
                    false => format!("{came}, and {missing}, which the signature covers, did not come"),
                }
            }
        };
        refuse(S3ErrorCode::SignatureDoesNotMatch, message)
    }

    async fn find(&self, sent: &SentHead, domains: &[String]) -> Option<Change> {
        for change in changes(sent, domains).take(TRIES_MAX) {
            if let Some(head) = change.undone(sent)
                && self.matches(head).await
            {
                return Some(change);
            }
        }
        None
    }

    async fn matches(&self, head: SentHead) -> bool {
        // There is no body; where they are signed, they are as they came.
        let of_body = [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT].into_iter();
        let of_body: Vec<_> = of_body.filter(|name| !head.signs(name.as_str())).collect();
        let mut request: HttpRequest = Request::new(Body::empty());
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (head.method, head.uri, head.headers);
        for name in of_body {
            request.headers_mut().remove(name);
        }
        self.s3.call(request).await.is_ok_and(|answer: HttpResponse| answer.status().is_success())
    }
}

/// What a proxy may have changed, as the client sent it.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Host(String),
    Encoding(&'static str),
    Path(String),
    Query(String),
    Method(Method),
}

impl Change {
    /// The head as the client sent it, if this was the change.
    fn undone(&self, sent: &SentHead) -> Option<SentHead> {
        match self {
            Self::Host(was) => sent.with_header(HOST, was),
            Self::Encoding(was) => sent.with_header(ACCEPT_ENCODING, was),
            Self::Path(was) => sent.with_address(was, sent.uri.query()),
            Self::Query(was) => sent.with_address(sent.uri.path(), Some(was)),
            Self::Method(was) => Some(SentHead { method: was.clone(), ..sent.clone() }),
        }
    }

    /// What is said if it was.
    fn told(&self, sent: &SentHead) -> String {
        match self {
            Self::Host(was) => format!(
                "the signature is for the host {was:?}, and the request came with {:?}: a proxy on the way has to pass the Host \
                 header on as it is (nginx: proxy_set_header Host $http_host)",
                sent.host()
            ),
            Self::Encoding(was) => format!(
                "the signature is for accept-encoding: {was}, and the request came with {:?}: a proxy on the way has to leave \
                 it as it is",
                sent.text("accept-encoding").unwrap_or_default()
            ),
            Self::Path(was) => format!(
                "the signature is for the path {was:?}, and the request came with {:?}: a proxy on the way has to pass the path \
                 on as it is (nginx: proxy_pass without a path behind the host, merge_slashes off)",
                sent.uri.path()
            ),
            Self::Query(was) => format!(
                "the signature is for the query {:?}, and the request came with {:?}: neither a proxy on the way nor who uses \
                 the address may add or change a parameter",
                without_secrets(was),
                without_secrets(sent.uri.query().unwrap_or_default())
            ),
            Self::Method(was) => format!(
                "the signature is for the method {was}, and the request came as {}: a presigned address is good for one method",
                sent.method
            ),
        }
    }
}

/// A query without what a signature in it is made of: it would make the message long, and is nothing that anybody changes.
fn without_secrets(query: &str) -> String {
    let parts: Vec<&str> = query.split('&').filter(|part| !is_of_signature(part)).collect();
    parts.join("&")
}

/// Whether a parameter is part of a signature.
fn is_of_signature(parameter: &str) -> bool {
    parameter.get(..6).is_some_and(|begin| begin.eq_ignore_ascii_case("x-amz-"))
}

impl SentHead {
    /// The head of a request, if it is small enough to be looked at. As one of HTTP/1.1: its host is in `Host`.
    pub(super) fn of(request: &HttpRequest) -> Option<Self> {
        let (uri, headers) = (request.uri(), request.headers());
        let of_uri = uri.path_and_query().map_or(0, |text| text.as_str().len());
        let of_headers: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if of_uri + of_headers > HEAD_BYTES_MAX {
            return None;
        }
        let (method, mut headers) = (request.method().clone(), headers.clone());
        if let Some(authority) = uri.authority()
            && !headers.contains_key(HOST)
        {
            headers.insert(HOST, HeaderValue::from_str(authority.as_str()).ok()?);
        }
        let uri = uri.path_and_query().map_or("/", |address| address.as_str()).parse().ok()?;
        Some(Self { method, uri, headers })
    }

    fn host(&self) -> &str {
        self.text(HOST.as_str()).unwrap_or_default()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the signature stands in the address.
    fn is_presigned(&self) -> bool {
        !self.headers.contains_key(AUTHORIZATION)
    }

    /// The headers that the signature covers, about.
    fn signed(&self) -> Vec<String> {
        let in_header =
            || self.text("authorization")?.split_once("SignedHeaders=")?.1.split(',').next().map(str::to_owned);
        let in_query = || {
            let mut query = signature::query(&self.uri).into_iter();
            query.find(|(name, _)| name == "X-Amz-SignedHeaders").map(|(_, value)| value)
        };
        let names = if self.is_presigned() { in_query() } else { in_header() };
        names.unwrap_or_default().split(';').map(str::to_owned).collect()
    }

    fn signs(&self, name: &str) -> bool {
        self.signed().iter().any(|signed| signed == name)
    }

    /// The headers that the signature covers and that did not come.
    fn missing(&self) -> String {
        let missing = |name: &String| !name.is_empty() && !self.headers.contains_key(name.as_str());
        self.signed().into_iter().filter(missing).collect::<Vec<_>>().join(", ")
    }

    fn with_address(&self, path: &str, query: Option<&str>) -> Option<Self> {
        let query = query.filter(|query| !query.is_empty()).map(|query| format!("?{query}")).unwrap_or_default();
        let uri = format!("{path}{query}").parse().ok()?;
        Some(Self { method: self.method.clone(), uri, headers: self.headers.clone() })
    }

    fn with_header(&self, name: http::HeaderName, value: &str) -> Option<Self> {
        let mut headers = self.headers.clone();
        headers.insert(name, HeaderValue::from_str(value).ok()?);
        Some(Self { method: self.method.clone(), uri: self.uri.clone(), headers })
    }
}

/// Every change that may have happened, made up one by one as they are asked for. The kinds of them take turns, so that none has
/// to wait until the others are through.
fn changes<'a>(sent: &'a SentHead, domains: &'a [String]) -> impl Iterator<Item = Change> + Send + 'a {
    type Kind<'a> = Box<dyn Iterator<Item = Change> + Send + 'a>;
    let encodings = ENCODINGS.into_iter().filter(|_| sent.signs(ACCEPT_ENCODING.as_str()));
    let hosts: Kind<'_> = Box::new(hosts(sent, domains).map(Change::Host));
    let mut kinds = VecDeque::from([
        hosts,
        Box::new(encodings.map(Change::Encoding)),
        Box::new(paths(sent.uri.path()).map(Change::Path)),
        Box::new(queries(sent.uri.query().unwrap_or_default()).map(Change::Query)),
        Box::new(methods(sent).map(Change::Method)),
    ]);
    from_fn(move || {
        while let Some(mut kind) = kinds.pop_front() {
            if let Some(change) = kind.next() {
                kinds.push_back(kind);
                return Some(change);
            }
        }
        None
    })
}

/// Hosts that the client may have named: those that a proxy tells of, that which came, and those of the configuration.
fn hosts<'a>(sent: &'a SentHead, domains: &'a [String]) -> impl Iterator<Item = String> + Send + 'a {
    let came = sent.host();
    let first = |name: &str| sent.text(name).and_then(|value| value.split(',').next()).map(str::trim);
    let forwarded = sent.text("forwarded").and_then(|value| {
        let mut pairs = value.split([',', ';']).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, host)| host.trim_matches('"'))
    });
    let port = first("x-forwarded-port");
    let with_ports = move |name: &'a str| {
        let bare = name.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let ports = port.into_iter().chain(PORTS).filter(move |_| bare.is_none());
        bare.map(|(bare, _)| bare.to_owned()).into_iter().chain(ports.map(move |port| format!("{name}:{port}")))
    };
    let named = [first("x-forwarded-host"), first("x-original-host"), forwarded, Some(came)].into_iter().flatten();
    let named = named.flat_map(move |name| std::iter::once(name.to_owned()).chain(with_ports(name)));
    let configured = domains.iter().cloned().chain(domains.iter().flat_map(move |name| with_ports(name)));
    let mut seen = HashSet::from([came.to_owned()]);
    named.chain(configured).filter(move |host| !host.is_empty() && seen.insert(host.clone()))
}

/// Queries that the client may have sent.
fn queries(query: &str) -> impl Iterator<Item = String> + Send + '_ {
    let plus = query.contains('+').then(|| query.replace('+', "%2B"));
    let encoded = query.contains("%25").then(|| query.replace("%25", "%"));
    let others = query.split('&').enumerate().filter(|(_, part)| !part.is_empty() && !is_of_signature(part));
    let without = others.take(PARAMETERS_MAX).map(move |(left_out, _)| {
        let parts: Vec<&str> =
            query.split('&').enumerate().filter(|(at, _)| *at != left_out).map(|(_, part)| part).collect();
        parts.join("&")
    });
    plus.into_iter().chain(encoded).chain(without)
}

/// Methods that a presigned address may be for, but that which came.
fn methods(sent: &SentHead) -> impl Iterator<Item = Method> + Send + use<> {
    let (presigned, came) = (sent.is_presigned(), sent.method.clone());
    METHODS.into_iter().filter(move |method| presigned && *method != came)
}

/// Paths that the client may have named.
fn paths(path: &str) -> impl Iterator<Item = String> + Send + '_ {
    let whole = WHOLE_PATHS.into_iter().filter_map(move |undo| undo(path));
    let behind_bucket = path.match_indices('/').nth(2).map(|(at, _)| at);
    let slashes = path.rmatch_indices('/').take(SLASHES_MAX);
    let slashes = slashes.flat_map(move |(at, _)| {
        let with = |text: &str| format!("{}{text}{}", &path[..at], &path[at + 1..]);
        let encoded = behind_bucket.is_some_and(|first| at >= first).then(|| with("%2F"));
        std::iter::once(with("//")).chain(encoded)
    });
    whole.chain(slashes)
}

/// Undoes a change of the path as a whole, if it may have been made.
type UndoPath = fn(&str) -> Option<String>;

const WHOLE_PATHS: [UndoPath; 6] = [
    |path| path.contains('+').then(|| path.replace('+', "%20")),
    |path| path.contains("%20").then(|| path.replace("%20", "+")),
    |path| path.contains("%25").then(|| path.replace("%25", "%")),
    |path| path.contains("%25").then(|| percent_decode_str(path).decode_utf8_lossy().into_owned()),
    |path| {
        let encoded = path.contains("%2F") || path.contains("%2f");
        encoded.then(|| path.replace("%2F", "/").replace("%2f", "/"))
    },
    |path| {
        Some(match path.strip_suffix('/') {
            Some(without) if !without.is_empty() => without.to_owned(),
            _ => format!("{path}/"),
        })
    },
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use s3s::auth::{S3Auth, SecretKey};
    use s3s::config::{S3Config, StaticConfigProvider};
    use s3s::service::S3ServiceBuilder;

    use super::*;

    fn sent(uri: &str, headers: &[(&'static str, &str)]) -> SentHead {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        SentHead { method: Method::GET, uri: uri.parse().unwrap(), headers }
    }

    #[test]
    fn hosts_that_a_proxy_tells_of_come_first_and_that_which_came_is_none() {
        let behind = sent("/", &[("host", "esker:9000"), ("x-forwarded-host", "s3.example.com, inner")]);

        let domains = ["s3.local".to_owned()];
        let hosts: Vec<_> = hosts(&behind, &domains).collect();

        assert_eq!(hosts[0], "s3.example.com");
        for wanted in ["s3.example.com:443", "s3.local", "esker"] {
            assert!(hosts.iter().any(|host| host == wanted), "{wanted}");
        }
        assert!(!hosts.contains(&"esker:9000".to_owned()));
        let forwarded = sent("/", &[("host", "a"), ("forwarded", "for=1.2.3.4;host=\"b:81\";proto=https")]);
        assert!(super::hosts(&forwarded, &[]).any(|host| host == "b:81"));
    }

    #[test]
    fn paths_are_those_that_proxies_make_into_this_one() {
        for (came, was) in [
            ("/b/a/c", "/b/a//c"),
            ("/b/a/c", "/b/a%2Fc"),
            ("/b/a%2520c", "/b/a%20c"),
            ("/b/a+c", "/b/a%20c"),
            ("/b/a%20c", "/b/a+c"),
            ("/b/a", "/b/a/"),
            ("/b/a/", "/b/a"),
            ("/", "//"),
        ] {
            assert!(paths(came).any(|path| path == was), "{came} of {was}: {:?}", paths(came).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_signed_header_is_found_in_the_authorization() {
        let authorization =
            ("authorization", "AWS4-HMAC-SHA256 Credential=K, SignedHeaders=accept-encoding;host, Signature=0");
        let head = sent("/b/k", &[("host", "h"), authorization]);

        assert!(head.signs("accept-encoding") && head.signs("host") && !head.signs("expect"));
        let gzip = changes(&head, &[]).find(|change| *change == Change::Encoding("gzip")).unwrap();
        assert!(gzip.told(&head).contains("accept-encoding: gzip"));
    }

    #[test]
    fn queries_are_those_that_proxies_make_into_this_one() {
        let all = |query: &str| queries(query).collect::<Vec<_>>();

        assert_eq!(all("prefix=a+b"), ["prefix=a%2Bb", ""]);
        assert_eq!(all("prefix=a%2520b"), ["prefix=a%20b", ""]);
        // What is of the signature is never left out.
        assert_eq!(all("a=1&X-Amz-Date=2&b=3"), ["X-Amz-Date=2&b=3", "a=1&X-Amz-Date=2"]);
        assert_eq!(all("X-Amz-Date=2&X-Amz-Signature=0"), Vec::<String>::new());
        assert_eq!(all(""), Vec::<String>::new());
        let many: Vec<String> = (0..100).map(|n| format!("p{n}=1")).collect();
        assert_eq!(all(&many.join("&")).len(), PARAMETERS_MAX);
        assert_eq!(without_secrets("a=1&X-Amz-Credential=K&b=3"), "a=1&b=3");
    }

    #[test]
    fn a_head_of_http_2_and_a_presigned_address_are_read_like_any_other() {
        let request =
            Request::get("http://s3.example.com/b/k?X-Amz-SignedHeaders=accept-encoding%3Bcontent-type%3Bhost");
        let head = SentHead::of(&request.header("accept-encoding", "br").body(Body::empty()).unwrap()).unwrap();

        assert_eq!((head.host(), head.uri.authority()), ("s3.example.com", None));
        assert!(head.signs("accept-encoding") && head.signs("host") && !head.signs("expect"));
        assert_eq!(head.missing(), "content-type");
        assert!(changes(&head, &[]).any(|change| change == Change::Encoding("gzip")));
        assert!(changes(&head, &[]).any(|change| change == Change::Method(Method::PUT)));
        // One that is signed in its header was made for its method.
        let signed = wrong("/b/k");
        assert!(!changes(&signed, &[]).any(|change| matches!(change, Change::Method(_))));
    }

    #[test]
    fn a_path_of_many_slashes_is_changed_at_the_last_ones_alone() {
        let path = "/a".repeat(2000);

        let all: Vec<_> = paths(&path).collect();

        // One with a slash at the end, and two for each slash.
        assert_eq!(all.len(), 1 + 2 * SLASHES_MAX);
        assert!(all.contains(&format!("{}//a", "/a".repeat(1999))));
    }

    #[test]
    fn many_domains_do_not_keep_a_path_from_being_tried() {
        let (head, domains) = (sent("/b/a/c", &[("host", "esker")]), vec![]);
        let alone: Vec<_> = changes(&head, &domains).filter(|change| matches!(change, Change::Path(_))).collect();
        let domains: Vec<_> = (0..1000).map(|n| format!("s3-{n}.example.com")).collect();

        let tried: Vec<_> = changes(&head, &domains).take(TRIES_MAX).collect();

        assert!(alone.len() > 4 && alone.iter().all(|path| tried.contains(path)), "{tried:?}");
        assert!(tried.contains(&Change::Host(domains[0].clone())), "{tried:?}");
    }

    /// Knows one secret, and counts how often it is asked for: once for each try.
    #[derive(Clone, Default)]
    struct Counting(Arc<AtomicUsize>);

    struct Nothing;

    impl s3s::S3 for Nothing {}

    #[async_trait::async_trait]
    impl S3Auth for Counting {
        async fn get_secret_key(&self, _: &str) -> S3Result<SecretKey> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(SecretKey::from("s"))
        }
    }

    fn checker() -> (Checker, Counting) {
        let (mut builder, counting) = (S3ServiceBuilder::new(Nothing), Counting::default());
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = u32::MAX;
        builder.set_auth(counting.clone());
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        (Checker::new(builder), counting)
    }

    /// A request that is signed with another secret.
    fn wrong(path: &str) -> SentHead {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=K/20260102/us-east-1/s3/aws4_request, \
             SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={}",
            "0".repeat(64)
        );
        let headers = [
            ("host", "esker"),
            ("x-amz-date", "20260102T030405Z"),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            ("authorization", &authorization),
        ];
        sent(path, &headers)
    }

    #[tokio::test]
    async fn a_wrong_signature_costs_a_bounded_number_of_tries() {
        let (checker, counting) = checker();
        let domains: Vec<_> = (0..1000).map(|n| format!("s3-{n}.example.com")).collect();

        let error = checker.explain(Some(&wrong(&format!("/bucket{}", "/a".repeat(500)))), &domains).await;

        assert_eq!(counting.0.load(Ordering::Relaxed), TRIES_MAX);
        assert!(error.message().unwrap().contains("the secret key is another one"), "{error:?}");
    }

    #[tokio::test]
    async fn who_comes_while_another_is_explained_is_told_the_plain_reason() {
        let (checker, counting) = checker();
        let taken = checker.turns.try_acquire().unwrap();

        let error = checker.explain(Some(&wrong("/bucket/k")), &[]).await;

        assert_eq!(counting.0.load(Ordering::Relaxed), 0);
        assert!(error.message().unwrap().contains("the secret key is another one"), "{error:?}");
        drop(taken);
        checker.explain(Some(&wrong("/bucket/k")), &[]).await;
        assert!(counting.0.load(Ordering::Relaxed) > 0);
    }

    #[tokio::test]
    async fn a_large_head_is_neither_kept_nor_explained() {
        let request = |len: usize| {
            let request = Request::get("/b/k").header("x-amz-meta-a", "a".repeat(len));
            request.body(Body::empty()).unwrap()
        };
        let (checker, counting) = checker();

        assert!(SentHead::of(&request(HEAD_BYTES_MAX / 2)).is_some());
        let error = checker.explain(SentHead::of(&request(HEAD_BYTES_MAX)).as_ref(), &[]).await;

        assert_eq!(counting.0.load(Ordering::Relaxed), 0);
        assert!(error.message().unwrap().contains("the secret key is another one"), "{error:?}");
    }
}
