//! One request and its answer: an id that both carry, and what is told of them in the access log.
//!
//! An [`Exchange`] is bound to the task that works on the request, like its payer, and to its bodies. It is over when the last
//! of them is dropped; then its line goes to the log.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use http::header::{REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::access_log::{AccessLine, AccessLog};
use crate::metrics::labels::{DoorLabel, MetricLabel};
use crate::model::Millis;
use crate::runtime::{Clock, Entropy};

tokio::task_local! {
    static EXCHANGE: Exchange;
}

/// The name that a proxy gave the request.
const OF_PROXY: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a header that are told. S3A's audit is the longest.
const HEADER_BYTES_MAX: usize = 2 << 10;
/// Bytes of everything else that a client may make long.
const NOTE_BYTES_MAX: usize = 1 << 10;
/// Bytes of a method. No client's is longer.
const METHOD_BYTES_MAX: usize = 32;
/// Ends of names whose values open something, as they stand in an address, or in one that was put into another.
const SECRET_NAMES: [&str; 4] = ["signature=", "signature%3d", "security-token=", "security-token%3d"];
/// Ends of values in an address.
const VALUE_ENDS: [&str; 3] = ["&", "%26", "#"];

/// Begins exchanges at a door.
#[derive(Clone)]
pub struct Exchanges {
    door: DoorLabel,
    entropy: Entropy,
    clock: Clock,
    log: Option<AccessLog>,
}

crate::runtime::opaque_debug!(Exchanges);

/// A request that is worked on. Clones are about the same one.
#[derive(Clone)]
pub struct Exchange(Arc<ExchangeShared>);

crate::runtime::opaque_debug!(Exchange);

struct ExchangeShared {
    id: String,
    begun: Instant,
    /// `None`: nobody is told.
    told: Option<ToldExchange>,
}

/// What is told of an exchange, as far as it is known.
struct ToldExchange {
    log: AccessLog,
    at: Millis,
    door: DoorLabel,
    remote: Option<SocketAddr>,
    method: Method,
    /// 0 until there is an answer.
    status: AtomicU16,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    first_byte_micros: AtomicU64,
    notes: Mutex<ExchangeNotes>,
}

/// What the doors find out.
#[derive(Debug, Default)]
pub struct ExchangeNotes {
    /// S3's name of it; of the native API, method and path.
    pub operation: Option<String>,
    /// The bucket, if one is named.
    pub bucket: Option<String>,
    /// The key, if one is named.
    pub key: Option<String>,
    /// The job, if it is named or the key tells.
    pub job: Option<String>,
    /// The code or the kind of an error.
    pub code: Option<String>,
    /// The access key that the request names as its signer.
    pub key_id: Option<String>,
    user_agent: Option<String>,
    audit: Option<String>,
    proxy_request_id: Option<String>,
}

impl Exchanges {
    /// At this door. Their lines go to `log`.
    pub fn new(door: DoorLabel, entropy: Entropy, clock: Clock, log: Option<AccessLog>) -> Self {
        Self { door, entropy, clock, log }
    }

    /// A request has come.
    pub(super) fn begin(&self, method: &Method, headers: &HeaderMap, remote: Option<SocketAddr>) -> Exchange {
        let told = self.log.clone().map(|log| ToldExchange {
            log,
            at: self.clock.wall(),
            door: self.door,
            remote,
            method: short(method),
            status: AtomicU16::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            first_byte_micros: AtomicU64::new(0),
            notes: Mutex::new(ExchangeNotes::of(headers)),
        });
        let id = self.entropy.hex(8).to_uppercase();
        Exchange(Arc::new(ExchangeShared { id, begun: Clock::instant(), told }))
    }

    /// Whether answers carry the id in the header of proxies: those of S3 have one of their own.
    pub(super) fn name_answers(&self) -> bool {
        self.door != DoorLabel::S3
    }
}

impl Exchange {
    /// The exchange that is worked on right here.
    pub fn current() -> Option<Self> {
        EXCHANGE.try_with(Clone::clone).ok()
    }

    /// `future` as work on this exchange.
    pub(super) fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        EXCHANGE.scope(self.clone(), future)
    }

    /// `poll` as work on this exchange.
    pub(super) fn sync_scope<T>(&self, poll: impl FnOnce() -> T) -> T {
        EXCHANGE.sync_scope(self.clone(), poll)
    }

    /// The id of the request that is worked on right here, for lines of the log.
    pub fn current_id() -> Option<String> {
        EXCHANGE.try_with(|exchange| exchange.0.id.clone()).ok()
    }

    /// Names the request.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Takes notes, if anybody will read them.
    pub fn note(&self, note: impl FnOnce(&mut ExchangeNotes)) {
        if let Some(told) = &self.0.told {
            let mut notes = told.notes.lock();
            note(&mut notes);
            notes.shorten();
        }
    }

    /// The head of the answer is there.
    pub(super) fn answered(&self, status: StatusCode) {
        if let Some(told) = &self.0.told {
            told.status.store(status.as_u16(), Ordering::Relaxed);
            told.first_byte_micros.store(micros(self.0.begun), Ordering::Relaxed);
        }
    }

    /// Bytes of the request's body have come.
    pub(super) fn received(&self, bytes: u64) {
        if let Some(told) = &self.0.told {
            told.bytes_in.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of the answer's body were handed out.
    pub(super) fn sent(&self, bytes: u64) {
        if let Some(told) = &self.0.told {
            told.bytes_out.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for ExchangeShared {
    fn drop(&mut self) {
        let Some(told) = self.told.take() else { return };
        let notes = told.notes.into_inner();
        let status = Some(told.status.into_inner()).filter(|status| *status != 0);
        told.log.push(AccessLine {
            time: told.at,
            request_id: std::mem::take(&mut self.id),
            door: told.door.as_str(),
            remote: told.remote,
            method: told.method,
            operation: notes.operation,
            bucket: notes.bucket,
            key: notes.key,
            job: notes.job,
            status,
            code: notes.code,
            bytes_in: told.bytes_in.into_inner(),
            bytes_out: told.bytes_out.into_inner(),
            first_byte_micros: status.map(|_| told.first_byte_micros.into_inner()),
            micros: micros(self.begun),
            key_id: notes.key_id,
            user_agent: notes.user_agent,
            audit: notes.audit,
            proxy_request_id: notes.proxy_request_id,
        });
    }
}

impl ExchangeNotes {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| Some(text_of(headers.get(name)?));
        Self {
            user_agent: text(USER_AGENT),
            // S3A tells the operation, path and job of its user there.
            audit: headers.get(REFERER).map(told_referer),
            proxy_request_id: text(OF_PROXY),
            ..Self::default()
        }
    }

    /// Lines wait in memory that nobody has paid for.
    fn shorten(&mut self) {
        let Self { operation, bucket, key, job, code, key_id, .. } = self;
        for text in [operation, bucket, key, job, code, key_id].into_iter().flatten() {
            shorten(text, NOTE_BYTES_MAX);
        }
    }
}

/// The header `Referer` as it may be told: presigned addresses in it open nothing.
pub(super) fn told_referer(value: &HeaderValue) -> String {
    let text = text_of(value);
    // As long as the text, byte by byte.
    let lower = text.to_ascii_lowercase();
    let first = |from: usize, words: &[&str]| {
        let found = words.iter().filter_map(|word| Some((from + lower[from..].find(word)?, word.len())));
        found.min()
    };
    let (mut told, mut at) = (String::with_capacity(text.len()), 0);
    while let Some((name, len)) = first(at, &SECRET_NAMES) {
        told.push_str(&text[at..name + len]);
        told.push_str("..");
        at = first(name + len, &VALUE_ENDS).map_or(text.len(), |(end, _)| end);
    }
    told.push_str(&text[at..]);
    told
}

fn text_of(value: &HeaderValue) -> String {
    let value = value.as_bytes();
    let mut text = String::from_utf8_lossy(value.get(..HEADER_BYTES_MAX).unwrap_or(value)).into_owned();
    shorten(&mut text, HEADER_BYTES_MAX);
    text
}

/// Cuts a text to so many bytes, and gives the memory of the rest back.
fn shorten(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.shrink_to_fit();
    }
}

fn short(method: &Method) -> Method {
    let begin = method.as_str().as_bytes().get(..METHOD_BYTES_MAX);
    begin.and_then(|begin| Method::from_bytes(begin).ok()).unwrap_or_else(|| method.clone())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AccessLogPlace;
    use crate::metrics::Metrics;

    #[test]
    fn what_a_client_makes_long_is_cut() {
        let (log, _writer) = AccessLog::open(AccessLogPlace::Stdout, Metrics::new()).unwrap();
        let exchanges = Exchanges::new(DoorLabel::S3, Entropy::from_seed(1, Clock::System), Clock::System, Some(log));
        let mut headers = HeaderMap::new();
        for name in [USER_AGENT, REFERER, OF_PROXY] {
            // Each byte becomes a character of three.
            headers.insert(name, HeaderValue::from_bytes(&[0xff; 8000]).unwrap());
        }
        let long = || Some("\u{e9}".repeat(4000));

        let exchange = exchanges.begin(&"M".repeat(8000).parse().unwrap(), &headers, None);
        exchange.note(|notes| {
            (notes.operation, notes.bucket, notes.key) = (long(), long(), long());
            (notes.job, notes.code, notes.key_id) = (long(), long(), long());
        });

        let told = exchange.0.told.as_ref().unwrap();
        assert_eq!(told.method.as_str().len(), METHOD_BYTES_MAX);
        let ExchangeNotes { operation, bucket, key, job, code, key_id, user_agent, audit, proxy_request_id } =
            &*told.notes.lock();
        for text in [operation, bucket, key, job, code, key_id] {
            let text = text.as_ref().unwrap();
            assert!(text.len() == NOTE_BYTES_MAX && text.capacity() < 2 * NOTE_BYTES_MAX);
        }
        for text in [user_agent, audit, proxy_request_id] {
            assert!((HEADER_BYTES_MAX - 3..=HEADER_BYTES_MAX).contains(&text.as_ref().unwrap().len()));
        }
    }

    #[test]
    fn a_presigned_address_is_told_without_what_opens_it() {
        for (came, told) in [
            ("https://a/b?X-Amz-Signature=0f&x-id=GetObject", "https://a/b?X-Amz-Signature=..&x-id=GetObject"),
            (
                "https://a/b?x-amz-security-token=a%2Fb&X-AMZ-SIGNATURE=0f",
                "https://a/b?x-amz-security-token=..&X-AMZ-SIGNATURE=..",
            ),
            ("https://a/b?AWSAccessKeyId=K&Signature=a/b%3D#x", "https://a/b?AWSAccessKeyId=K&Signature=..#x"),
            (
                "https://a/?u=https%3A%2F%2Fb%3FX-Amz-Signature%3D0f%26c&d=e",
                "https://a/?u=https%3A%2F%2Fb%3FX-Amz-Signature%3D..%26c&d=e",
            ),
            (
                "https://audit.example.org/hadoop/1/op_create/?p1=a",
                "https://audit.example.org/hadoop/1/op_create/?p1=a",
            ),
        ] {
            assert_eq!(told_referer(&HeaderValue::from_static(came)), told);
        }
    }
}
