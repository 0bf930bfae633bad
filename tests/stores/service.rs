//! An object storage service in memory, on a free port of this machine, which speaks what [`crate::gcs`] or
//! [`crate::azure`] speaks.
//!
//! Conditions are checked and the write carried out under one lock: of any number of racing writers exactly one wins.
//! What the wire does to a request is up to [`crate::faults`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use esker::runtime::Clock;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use crate::faults::{Backend, Faults, Wired};
use crate::s3_server::Conditions;

/// The one bucket, or container, that is there.
pub const BUCKET: &str = "state";
/// Fewer than there are in the larger tests, so that lists have pages.
pub const PAGE: usize = 400;

/// A running service; ends when dropped.
pub struct Service {
    objects: Objects,
    wired: Wired,
}

impl Service {
    /// Starts one that answers as `dialect` does.
    pub async fn start<B: Backend + 'static>(dialect: impl FnOnce(Objects) -> B, objects: Objects) -> Self {
        let wired = Wired::start(dialect(objects.clone())).await;
        Self { objects, wired }
    }

    pub fn endpoint(&self) -> String {
        self.wired.endpoint()
    }

    /// What is stored.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What the wire does, and what came over it.
    pub fn faults(&self) -> &Faults {
        self.wired.faults()
    }
}

/// The condition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// There is none.
    Any,
    /// Nothing is there.
    Absent,
    /// The object of this generation is there.
    Generation(u64),
}

/// Why nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The condition does not hold.
    Condition,
    /// The name was written a moment ago.
    TooSoon,
    /// The parts are not there.
    Parts,
    /// There is no such object or upload.
    Missing,
}

#[derive(Debug, Clone)]
pub struct Object {
    pub data: Bytes,
    pub generation: u64,
    pub modified_ms: u64,
    /// Headers of the write that come back with each read.
    pub metadata: Vec<(String, String)>,
}

/// What is stored. Clones share it.
#[derive(Clone)]
pub struct Objects {
    contents: Arc<Mutex<Contents>>,
    /// Between two writes of one name.
    pause: Duration,
    conditions: Conditions,
}

#[derive(Default)]
struct Contents {
    objects: BTreeMap<String, Object>,
    /// Parts of files that are not there yet, by what they belong to.
    parts: HashMap<String, BTreeMap<String, Bytes>>,
    /// Headers of what began an upload, which its object has.
    begun_with: HashMap<String, Vec<(String, String)>>,
    written: HashMap<String, Instant>,
    hurried: Vec<String>,
    /// Makes generations and ids that were never used before.
    last: u64,
}

impl Contents {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Refuses a write that comes too soon after another one.
    fn admit(&mut self, key: &str, pause: Duration) -> Result<(), Refusal> {
        if self.written.get(key).is_some_and(|written| written.elapsed() < pause) {
            self.hurried.push(key.to_owned());
            return Err(Refusal::TooSoon);
        }
        Ok(())
    }

    fn holds(&self, key: &str, condition: Condition, conditions: Conditions) -> bool {
        let there = self.objects.get(key).map(|object| object.generation);
        match condition {
            Condition::Any => true,
            Condition::Absent => there.is_none() || conditions == Conditions::CreateIgnored,
            Condition::Generation(generation) => there == Some(generation) || conditions == Conditions::UpdateIgnored,
        }
    }

    fn put(&mut self, key: &str, data: Bytes, metadata: Vec<(String, String)>) -> u64 {
        let generation = self.next();
        let object = Object { data, generation, modified_ms: Clock::System.now().0, metadata };
        self.objects.insert(key.to_owned(), object);
        self.written.insert(key.to_owned(), Clock::instant());
        generation
    }
}

impl Objects {
    /// A store that takes one write of a name in `pause`.
    pub fn new(pause: Duration, conditions: Conditions) -> Self {
        Self { contents: Arc::default(), pause, conditions }
    }

    /// Names that somebody wanted to write too soon after they were written.
    pub fn hurried(&self) -> Vec<String> {
        self.contents.lock().hurried.clone()
    }

    /// Keys that start with `prefix`.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.contents.lock().objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// Whether parts are waiting for `of`.
    pub fn has_parts(&self, of: &str) -> bool {
        self.contents.lock().parts.get(of).is_some_and(|parts| !parts.is_empty())
    }

    /// How many parts lie about that are in no object.
    pub fn loose_parts(&self) -> usize {
        self.contents.lock().parts.values().map(BTreeMap::len).sum()
    }

    pub fn find(&self, key: &str) -> Option<Object> {
        self.contents.lock().objects.get(key).cloned()
    }

    /// Writes an object if the condition holds, in one step. Returns its generation.
    pub fn write(
        &self,
        key: &str,
        data: Bytes,
        metadata: Vec<(String, String)>,
        condition: Condition,
    ) -> Result<u64, Refusal> {
        let mut contents = self.contents.lock();
        contents.admit(key, self.pause)?;
        if !contents.holds(key, condition, self.conditions) {
            return Err(Refusal::Condition);
        }
        Ok(contents.put(key, data, metadata))
    }

    /// Deletes an object.
    pub fn delete(&self, key: &str) -> Result<(), Refusal> {
        let mut contents = self.contents.lock();
        if !contents.objects.contains_key(key) {
            return Err(Refusal::Missing);
        }
        contents.admit(key, self.pause)?;
        contents.objects.remove(key);
        contents.written.insert(key.to_owned(), Clock::instant());
        Ok(())
    }

    /// Puts an object there behind everybody's back.
    pub fn insert(&self, key: &str, data: Bytes) {
        self.contents.lock().put(key, data, vec![]);
    }

    /// A place for parts, under a name that was never used.
    pub fn begin_upload(&self, metadata: Vec<(String, String)>) -> String {
        let mut contents = self.contents.lock();
        let id = format!("upload-{:016x}", contents.next());
        contents.parts.insert(id.clone(), BTreeMap::new());
        contents.begun_with.insert(id.clone(), metadata);
        id
    }

    /// Puts a part to what is there under `of`. Returns its tag.
    pub fn put_part(&self, of: &str, id: &str, data: Bytes, may_be_first: bool) -> Result<u64, Refusal> {
        let mut contents = self.contents.lock();
        if !may_be_first && !contents.parts.contains_key(of) {
            return Err(Refusal::Missing);
        }
        contents.parts.entry(of.to_owned()).or_default().insert(id.to_owned(), data);
        Ok(contents.next())
    }

    /// Makes an object of the parts `ids` of `of` if the condition holds; the others are dropped.
    pub fn complete(
        &self,
        of: &str,
        key: &str,
        ids: &[String],
        mut metadata: Vec<(String, String)>,
        condition: Condition,
    ) -> Result<u64, Refusal> {
        let mut contents = self.contents.lock();
        if !contents.holds(key, condition, self.conditions) {
            return Err(Refusal::Condition);
        }
        let mut whole = BytesMut::new();
        for id in ids {
            let parts = contents.parts.get(of).ok_or(Refusal::Missing)?;
            whole.extend_from_slice(parts.get(id).ok_or(Refusal::Parts)?);
        }
        contents.admit(key, self.pause)?;
        contents.parts.remove(of);
        metadata.extend(contents.begun_with.remove(of).unwrap_or_default());
        Ok(contents.put(key, whole.freeze(), metadata))
    }

    /// Drops the parts of `of`.
    pub fn drop_parts(&self, of: &str) -> Result<(), Refusal> {
        self.contents.lock().parts.remove(of).map(|_| ()).ok_or(Refusal::Missing)
    }

    /// A page of names after `after` that start with `prefix`.
    pub fn list(&self, prefix: &str, after: &str, delimiter: Option<&str>) -> Page {
        let contents = self.contents.lock();
        let mut page = Page::default();
        for (key, object) in &contents.objects {
            if !key.starts_with(prefix) || key.as_str() <= after {
                continue;
            }
            let folder = delimiter.and_then(|delimiter| {
                key[prefix.len()..].find(delimiter).map(|at| key[..prefix.len() + at + delimiter.len()].to_owned())
            });
            if folder.as_ref().is_some_and(|folder| folder.as_str() <= after || page.folders.last() == Some(folder)) {
                continue;
            }
            if page.objects.len() + page.folders.len() == PAGE {
                page.next = page.last.clone();
                break;
            }
            page.last = folder.clone().or_else(|| Some(key.clone()));
            match folder {
                Some(folder) => page.folders.push(folder),
                None => page.objects.push((key.clone(), object.clone())),
            }
        }
        page
    }
}

/// A page of a list.
#[derive(Debug, Default)]
pub struct Page {
    pub objects: Vec<(String, Object)>,
    pub folders: Vec<String>,
    /// What the next page comes after.
    pub next: Option<String>,
    last: Option<String>,
}

/// A request, taken apart.
pub struct Asked {
    pub method: Method,
    pub query: BTreeMap<String, String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The parts of the path, decoded; the last one may have slashes.
    pub path: Vec<String>,
}

impl Asked {
    /// Takes the path apart at its first slashes, so that there are `parts` parts at most.
    pub fn new(request: Request<Bytes>, parts: usize) -> Self {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let path = decoded(request.uri().path());
        let path = path.trim_start_matches('/').splitn(parts, '/').map(str::to_owned).collect();
        let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        });
        let (method, query) = (request.method().clone(), query.collect());
        let (head, body) = request.into_parts();
        Self { method, query, headers: head.headers, body, path }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn asks(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// The headers that begin with `prefix`.
    pub fn metadata(&self, prefix: &str) -> Vec<(String, String)> {
        let named = self.headers.iter().filter(|(name, _)| name.as_str().starts_with(prefix));
        named.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }
}

/// The object, or the range of it that is asked for, with these headers.
pub fn read(asked: &Asked, object: &Object, headers: &[(&str, String)]) -> Response<Bytes> {
    let mut answer = Response::builder().header(header::LAST_MODIFIED, http_date(object.modified_ms));
    for (name, value) in headers.iter().map(|(name, value)| (*name, value)) {
        answer = answer.header(name, value);
    }
    for (name, value) in &object.metadata {
        answer = answer.header(name, value);
    }
    let len = object.data.len();
    if asked.method == Method::HEAD {
        return answer.header(header::CONTENT_LENGTH, len).body(Bytes::new()).unwrap();
    }
    let Some(range) = asked.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
        return answer.body(object.data.clone()).unwrap();
    };
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse::<usize>().map_or(len, |to| (to + 1).min(len));
    if from >= len {
        return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
    }
    let content_range = format!("bytes {from}-{}/{len}", to - 1);
    let answer = answer.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content_range);
    answer.body(object.data.slice(from..to)).unwrap()
}

/// An answer without a body.
pub fn empty(status: StatusCode, headers: &[(&str, String)]) -> Response<Bytes> {
    let answer = Response::builder().status(status);
    headers.iter().fold(answer, |answer, (name, value)| answer.header(*name, value)).body(Bytes::new()).unwrap()
}

/// An error as both services tell it.
pub fn error(status: StatusCode, code: &str) -> Response<Bytes> {
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the test's server</Message></Error>");
    xml(status, body)
}

pub fn xml(status: StatusCode, body: String) -> Response<Bytes> {
    Response::builder().status(status).header(header::CONTENT_TYPE, "application/xml").body(body.into()).unwrap()
}

/// Text for XML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What stands between each `<name>` and its end.
pub fn elements(body: &[u8], name: &str) -> Vec<String> {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    let body = String::from_utf8_lossy(body);
    body.split(&begin).skip(1).filter_map(|rest| rest.split(&end).next()).map(str::to_owned).collect()
}

/// As HTTP has it, which is without milliseconds.
pub fn http_date(ms: u64) -> String {
    let at = chrono::DateTime::from_timestamp_millis(i64::try_from(ms).unwrap()).unwrap();
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
