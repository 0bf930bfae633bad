//! Clients, and what they were answered: of each key a history, in which nothing may go back.
//!
//! A key has one writer, which gives it one version after the other. A read shows a version that was asked for, and none that is older
//! than what was answered, to anybody, before the read began. A writer that was not answered leaves the key: that version may come to be
//! at any time, or never.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use esker::model::Routing;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use crate::member::{BUCKET, Process, S3_PORT};
use crate::network::{ReachedNetwork, Wires, address};
use crate::world::{Place, World};

/// A client waits so long for an answer. Daemons hold a request for 10 s.
const PATIENCE: Duration = Duration::from_secs(14);
/// Folders, which go to the shards there are.
pub(crate) const FOLDERS: u64 = 6;
/// Versions of one key.
const VERSIONS_MAX: usize = 12;
/// Who writes.
const WRITERS: u64 = 3;
/// Clients are on machines of their own.
const FIRST_PLACE: Place = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Put { len: usize },
    Delete,
}

/// One key.
#[derive(Debug, Default)]
struct History {
    asked: Vec<Version>,
    /// The last version that somebody was answered.
    floor: usize,
}

/// What a client learns.
#[derive(Debug)]
enum Answer {
    Done(StatusCode, Bytes),
    /// Nobody was asked.
    Refused,
    Unknown(String),
}

/// What all clients know.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    keys: Mutex<BTreeMap<String, History>>,
    writes: Mutex<u64>,
    reads: Mutex<u64>,
    errors: Mutex<u64>,
}

/// A client.
#[derive(Clone)]
struct Client {
    number: u64,
    world: Arc<World>,
    network: ReachedNetwork,
    histories: Arc<Histories>,
}

/// The clients' process.
pub(crate) struct Clients {
    process: Process,
    world: Arc<World>,
    wires: Arc<Wires>,
    pub(crate) histories: Arc<Histories>,
    left: Arc<Mutex<usize>>,
}

impl Clients {
    pub(crate) fn new(world: &Arc<World>, wires: &Arc<Wires>) -> Self {
        let process = Process::new(world, FIRST_PLACE);
        let (world, wires, left) = (Arc::clone(world), Arc::clone(wires), Arc::default());
        Self { process, world, wires, histories: Arc::default(), left }
    }

    pub(crate) fn run_until(&self, now: Duration) {
        self.process.run_until(now);
    }

    fn client(&self, number: u64) -> Client {
        let place = FIRST_PLACE + usize::try_from(number).unwrap();
        let clock = self.process.clock().clone();
        let network = ReachedNetwork { world: Arc::clone(&self.world), wires: Arc::clone(&self.wires), place, clock };
        Client { number, world: Arc::clone(&self.world), network, histories: Arc::clone(&self.histories) }
    }

    /// Writes and reads begin, until the world is calm.
    pub(crate) fn begin(&self) {
        for number in 0..WRITERS {
            self.process.spawn(self.client(number).write_on());
        }
        for number in WRITERS..WRITERS + self.world.scenario.readers {
            self.process.spawn(self.client(number).read_on());
        }
    }

    /// Each member is to answer for each shard.
    pub(crate) fn begin_probes(&self) {
        let routing = Routing::over(self.world.scenario.shards);
        let shard_of = |folder: &u64| routing.of_key(BUCKET, &format!("f{folder}/x"));
        let folders = (0..routing.shards()).filter_map(|shard| (0..FOLDERS).find(|folder| shard_of(folder) == shard));
        let folders: Vec<u64> = folders.collect();
        for place in 0..self.world.scenario.members {
            *self.left.lock() += 1;
            let (client, left, folders) = (self.client(10 + place as u64), Arc::clone(&self.left), folders.clone());
            self.process.spawn(async move {
                for folder in folders {
                    client.probe(place, folder).await;
                }
                *left.lock() -= 1;
            });
        }
    }

    /// All that there is is read once more.
    pub(crate) fn begin_last_reads(&self) {
        let keys: Vec<String> = self.histories.keys.lock().keys().cloned().collect();
        *self.left.lock() += 1;
        let (client, left) = (self.client(20), Arc::clone(&self.left));
        self.process.spawn(async move {
            for key in keys {
                while !client.read(&key, client.some_member()).await {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            *left.lock() -= 1;
        });
    }

    /// Tells a member to give its shards away.
    pub(crate) fn drain(&self, place: Place) {
        let client = self.client(30);
        self.process.spawn(async move {
            let at = address(place, crate::member::API_PORT);
            let path = format!("/v1/cluster/drain/m{place}");
            let _answer = client.ask(at, Method::POST, &path, Bytes::new()).await;
        });
    }

    /// Whether what was begun last has ended.
    pub(crate) fn are_done(&self) -> bool {
        *self.left.lock() == 0
    }
}

impl Histories {
    /// Answered writes, answered reads, and what was answered with an error or not at all.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (*self.writes.lock(), *self.reads.lock(), *self.errors.lock())
    }

    fn floor(&self, key: &str) -> usize {
        self.keys.lock().get(key).map_or(0, |history| history.floor)
    }

    fn ask(&self, key: &str, version: Version) -> usize {
        let mut keys = self.keys.lock();
        let history = keys.entry(key.to_owned()).or_default();
        history.asked.push(version);
        history.asked.len()
    }

    fn answered(&self, key: &str, version: usize) {
        *self.writes.lock() += 1;
        let mut keys = self.keys.lock();
        let history = keys.entry(key.to_owned()).or_default();
        history.floor = history.floor.max(version);
    }

    /// A read that began when `floor` was so has shown this. Returns what is wrong with that.
    fn read(&self, key: &str, floor: usize, shown: Option<&Bytes>) -> Option<String> {
        *self.reads.lock() += 1;
        let mut keys = self.keys.lock();
        let history = keys.entry(key.to_owned()).or_default();
        let asked = history.asked.len();
        let version = match shown {
            Some(bytes) => {
                let number = bytes.split(|byte| *byte == b' ').nth(1);
                let number = number.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
                let version: usize = number.unwrap_or(usize::MAX);
                match version.checked_sub(1).and_then(|index| history.asked.get(index)) {
                    Some(Version::Put { len }) if content(key, version, *len) == *bytes => version,
                    _ => return Some(format!("{key} has bytes that nobody has put: {} bytes", bytes.len())),
                }
            }
            None => {
                let is_absent = |version: &usize| *version == 0 || history.asked[*version - 1] == Version::Delete;
                match (floor..=asked).find(is_absent) {
                    Some(version) => version,
                    None => return Some(format!("{key} is gone, after version {floor} of {asked} was answered")),
                }
            }
        };
        if version < floor {
            return Some(format!("{key} shows version {version} after {floor} was answered"));
        }
        history.floor = history.floor.max(version);
        None
    }
}

/// The bytes of a version.
fn content(key: &str, version: usize, len: usize) -> Bytes {
    let mut bytes = format!("{key} {version} ").into_bytes();
    bytes.resize(len.max(bytes.len()), b'a' + u8::try_from(version % 26).unwrap());
    bytes.into()
}

impl Client {
    /// A member: the first one in so many of a thousand cases; by chance if that is 0.
    fn member(&self, at_first: u32) -> Place {
        let most = self.world.scenario.members as u64;
        match self.world.chance(at_first) {
            true => 0,
            false if at_first == 0 => usize::try_from(self.world.draw(0..most)).unwrap(),
            false => usize::try_from(self.world.draw(1..most)).unwrap(),
        }
    }

    fn some_member(&self) -> Place {
        self.member(0)
    }

    /// Often at once, and then for a while not at all.
    async fn think(&self) {
        let pause = if self.world.chance(800) { 1..60 } else { 200..1200 };
        tokio::time::sleep(self.world.millis(pause)).await;
    }

    async fn write_on(self) {
        let mut keys = 0;
        while !self.world.is_calm() {
            keys += 1;
            let folder = self.world.draw(0..FOLDERS);
            let key = format!("f{folder}/c{}-{keys}", self.number);
            let mut member = self.member(self.world.scenario.at_first.1);
            for _ in 0..VERSIONS_MAX {
                self.think().await;
                if self.world.chance(150) {
                    member = self.member(self.world.scenario.at_first.1);
                }
                match self.write(&key, member).await {
                    Wrote::Answered => {}
                    Wrote::NotAsked => member = self.member(self.world.scenario.at_first.1),
                    Wrote::Unknown => {
                        member = self.member(self.world.scenario.at_first.1);
                        break;
                    }
                }
            }
        }
    }

    async fn write(&self, key: &str, member: Place) -> Wrote {
        let version = match self.world.draw(0..10) {
            0 => Version::Delete,
            1 => Version::Put { len: 25_000 },
            _ => Version::Put { len: usize::try_from(self.world.draw(20..600)).unwrap() },
        };
        let number = self.histories.ask(key, version);
        let (method, bytes) = match version {
            Version::Put { len } => (Method::PUT, content(key, number, len)),
            Version::Delete => (Method::DELETE, Bytes::new()),
        };
        let answer = self.ask(address(member, S3_PORT), method.clone(), &format!("/{BUCKET}/{key}"), bytes).await;
        match answer {
            Answer::Done(status, _) if status.is_success() => {
                self.histories.answered(key, number);
                Wrote::Answered
            }
            Answer::Refused => {
                self.histories.keys.lock().get_mut(key).unwrap().asked.pop();
                Wrote::NotAsked
            }
            Answer::Done(status, text) if !status.is_server_error() => {
                let text = String::from_utf8_lossy(&text).into_owned();
                self.world.break_with(format!("{method} {key} at {member} is answered {status}: {text}"));
                Wrote::Unknown
            }
            Answer::Done(..) | Answer::Unknown(_) => {
                *self.histories.errors.lock() += 1;
                Wrote::Unknown
            }
        }
    }

    async fn read_on(self) {
        while !self.world.is_calm() {
            self.think().await;
            let keys: Vec<String> = self.histories.keys.lock().keys().cloned().collect();
            let Some(last) = keys.len().checked_sub(1) else { continue };
            let index = usize::try_from(self.world.draw(0..keys.len() as u64)).unwrap();
            // Mostly one that is being written: the last one of a writer.
            let of = format!("/c{}-", self.world.draw(0..WRITERS));
            let newest = keys.iter().filter(|key| key.contains(&of)).max_by_key(|key| number_of(key));
            let key = newest.filter(|_| self.world.chance(900)).unwrap_or(&keys[index.min(last)]);
            let member = self.member(self.world.scenario.at_first.0);
            for _ in 0..self.world.draw(1..5) {
                self.read(key, member).await;
            }
        }
    }

    /// Returns whether it was answered.
    async fn read(&self, key: &str, member: Place) -> bool {
        let floor = self.histories.floor(key);
        let at = address(member, S3_PORT);
        let answer = self.ask(at, Method::GET, &format!("/{BUCKET}/{key}"), Bytes::new()).await;
        let shown = match &answer {
            Answer::Done(StatusCode::OK, bytes) => Some(bytes),
            Answer::Done(StatusCode::NOT_FOUND, _) => None,
            Answer::Done(status, text) if !status.is_server_error() => {
                let text = String::from_utf8_lossy(text);
                self.world.break_with(format!("GET {key} at {member} is answered {status}: {text}"));
                return false;
            }
            Answer::Refused => return false,
            Answer::Done(..) | Answer::Unknown(_) => {
                *self.histories.errors.lock() += 1;
                return false;
            }
        };
        if let Some(fault) = self.histories.read(key, floor, shown) {
            self.world.break_with(format!("at {member}: {fault}"));
        }
        true
    }

    /// Writes and reads through one member until both are answered.
    async fn probe(&self, member: Place, folder: u64) {
        for again in 0.. {
            let key = format!("f{folder}/probe-{member}-{again}");
            if matches!(self.write(&key, member).await, Wrote::Answered) && self.read(&key, member).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn ask(&self, at: SocketAddr, method: Method, path: &str, body: Bytes) -> Answer {
        let name = format!("client {} {method} {path} at {at}", self.number);
        let asking = async {
            let socket = match self.network.connect_to(at).await {
                Ok(socket) => socket,
                Err(_) => return Ok(Answer::Refused),
            };
            let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
            let request = Request::builder().method(method).uri(path).header("host", at.to_string());
            let request = request.body(Full::new(body)).unwrap();
            let answering = async {
                let answer = sender.send_request(request).await?;
                let status = answer.status();
                Ok::<_, hyper::Error>(Answer::Done(status, answer.into_body().collect().await?.to_bytes()))
            };
            let mut connection = std::pin::pin!(connection);
            let mut answering = std::pin::pin!(answering);
            let mut over = false;
            loop {
                tokio::select! {
                    biased;
                    answer = &mut answering => return answer,
                    _ = &mut connection, if !over => over = true,
                }
            }
        };
        let answer = match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::Unknown(error.to_string()),
            Err(_) => Answer::Unknown("no answer".to_owned()),
        };
        match &answer {
            Answer::Done(status, bytes) => {
                self.world.tell(format_args!("{name} -> {} {} bytes", status.as_u16(), bytes.len()));
            }
            Answer::Refused => self.world.tell(format_args!("{name} -> refused")),
            Answer::Unknown(why) => self.world.tell(format_args!("{name} -> {why}")),
        }
        answer
    }
}

/// What became of a write.
enum Wrote {
    Answered,
    NotAsked,
    Unknown,
}

fn number_of(key: &str) -> u64 {
    key.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}
