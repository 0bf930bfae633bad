//! Writers at the native door: a job with a few workers that put segments, and a coordinator that completes, aborts and
//! subsumes checkpoints beside them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use esker::api::wire::{BatchAnswer, BatchHead, ListedSegment, PutParams, SegmentInfo};
use esker::catalog::record::CheckpointState;
use esker::client::{Client, ClientError};
use http::StatusCode;
use rand::Rng;
use rand::rngs::StdRng;

use crate::plan::any_len;
use crate::support::pattern;
use crate::{Look, Round};

type Cause = Box<dyn std::error::Error>;

/// A segment that was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    name: String,
    checkpoint: u64,
    seed: u64,
    len: usize,
    round: u32,
    /// Its handle, once it was answered or seen; none while nobody knows whether it is there.
    handle: Option<String>,
}

/// What a job's writers know.
pub struct Job {
    pub number: u64,
    id: String,
    sent: BTreeMap<String, Sent>,
    /// The checkpoint that segments are written for.
    current: Arc<AtomicU64>,
    /// States that each checkpoint may be in; those not named may be pending or unknown.
    states: BTreeMap<u64, Vec<CheckpointState>>,
    /// Checkpoints up to here may be subsumed: those that were answered, and those that were asked for.
    subsumed: (Option<u64>, Option<u64>),
    answered: u64,
    settled: u64,
}

/// Puts segments until the daemon ends.
pub struct Putter {
    round: Round,
    client: Client,
    job: u64,
    number: u64,
    current: Arc<AtomicU64>,
    rng: StdRng,
}

impl Job {
    pub fn new(number: u64) -> Self {
        Self {
            number,
            id: job_id(number),
            sent: BTreeMap::new(),
            current: Arc::new(AtomicU64::new(1)),
            states: BTreeMap::new(),
            subsumed: (None, None),
            answered: 0,
            settled: 0,
        }
    }

    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("segments answered", self.answered), ("segments in doubt and settled", self.settled)]
    }

    pub fn putter(&self, round: Round, number: u64, rng: StdRng) -> Putter {
        let client = client(&round);
        Putter { round, client, job: self.number, number, current: Arc::clone(&self.current), rng }
    }

    /// Takes in what a putter has sent.
    pub fn wrote(&mut self, sent: Vec<Sent>) {
        self.answered += sent.iter().filter(|sent| sent.handle.is_some()).count() as u64;
        self.sent.extend(sent.into_iter().map(|sent| (sent.name.clone(), sent)));
    }

    /// Ends checkpoints and begins the next ones until the daemon ends.
    pub async fn coordinate(&mut self, round: &Round, mut rng: StdRng) {
        let client = client(round);
        loop {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..120))).await;
            let n = self.current.load(Ordering::SeqCst);
            let ended = match rng.random_range(0..10) {
                0..5 => self.end(n, CheckpointState::Completed, client.complete(&self.id, n).await),
                5..7 => self.end(n, CheckpointState::Aborted, client.abort(&self.id, n).await),
                7 => self.subsume(n.saturating_sub(rng.random_range(1..6)), &client).await,
                _ => client.begin(&self.id, n).await,
            };
            match ended {
                Ok(()) => {}
                // Nobody has written for it yet, or it is over.
                Err(ClientError::Refused { status: StatusCode::NOT_FOUND | StatusCode::CONFLICT, .. }) => {}
                Err(error) => return round.expect_end("a change of a checkpoint", &error),
            }
        }
    }

    fn end(&mut self, n: u64, state: CheckpointState, answer: Result<(), ClientError>) -> Result<(), ClientError> {
        match &answer {
            Ok(()) => drop(self.states.insert(n, vec![state])),
            Err(ClientError::Refused { .. }) => {}
            Err(_) => self.states.entry(n).or_insert_with(|| vec![CheckpointState::Pending]).push(state),
        }
        if !matches!(answer, Err(ClientError::Refused { .. })) {
            self.current.store(n + 1, Ordering::SeqCst);
        }
        answer
    }

    async fn subsume(&mut self, through: u64, client: &Client) -> Result<(), ClientError> {
        let answer = client.subsume(&self.id, through).await;
        if !matches!(answer, Err(ClientError::Refused { .. })) {
            self.subsumed.1 = self.subsumed.1.max(Some(through));
        }
        if answer.is_ok() {
            self.subsumed.0 = self.subsumed.0.max(Some(through));
        }
        answer
    }

    /// Compares the job in the daemon with what is known, and settles what is not.
    pub async fn check(&mut self, round: &Round, look: Look, mut rng: StdRng) {
        let client = client(round);
        client.create_job(&self.id).await.unwrap();
        let alive = self.check_checkpoints(&client).await;
        let listed = list(&client, &self.id).await;
        for (name, found) in &listed {
            let sent =
                self.sent.get(name).unwrap_or_else(|| panic!("{name} is there, and was settled as lost or freed"));
            assert_eq!(found.info.len, sent.len as u64, "{name}");
            assert_eq!(found.checkpoint, Some(sent.checkpoint), "{name}");
            assert!(alive(sent.checkpoint), "{name} lives, its checkpoint does not");
        }
        for mut sent in std::mem::take(&mut self.sent).into_values() {
            let in_doubt = sent.handle.is_none();
            let found = listed.get(&sent.name);
            if let Some(found) = found {
                sent.handle.get_or_insert_with(|| found.info.handle.clone());
            } else if !in_doubt && alive(sent.checkpoint) {
                panic!("{} was answered or read, and is gone", sent.name);
            }
            if in_doubt {
                self.settled += 1;
                repeat(&client, &self.id, &mut sent, found.map(|found| &found.info)).await;
            }
            if let (Some(handle), true) = (&sent.handle, alive(sent.checkpoint)) {
                if in_doubt || look.at(sent.round, round.number, &mut rng) {
                    read(&client, &sent, handle, &mut rng).await;
                }
                self.sent.insert(sent.name.clone(), sent);
            }
        }
    }

    /// Checks that every checkpoint is in a state that it may be in. Returns which ones keep their segments.
    async fn check_checkpoints(&mut self, client: &Client) -> impl Fn(u64) -> bool + use<> {
        let jobs = client.jobs().await.unwrap();
        let subsumed = jobs.into_iter().find(|job| job.job == self.id).unwrap().subsumed;
        let (answered, asked) = self.subsumed;
        assert!(answered <= subsumed && subsumed <= asked, "{subsumed:?} is subsumed, {answered:?} was answered");
        self.subsumed = (subsumed, subsumed);
        let found: BTreeMap<u64, CheckpointState> =
            client.checkpoints(&self.id).await.unwrap().into_iter().map(|info| (info.checkpoint, info.state)).collect();
        for (n, allowed) in self.states.range(subsumed.map_or(0, |n| n + 1)..) {
            let state = found.get(n).copied().unwrap_or(CheckpointState::Pending);
            assert!(allowed.contains(&state), "checkpoint {n} is {state:?}, not {allowed:?}");
        }
        self.states = found
            .iter()
            .filter(|(_, state)| **state != CheckpointState::Pending)
            .map(|(n, state)| (*n, vec![*state]))
            .collect();
        move |n| Some(n) > subsumed && found.get(&n) != Some(&CheckpointState::Aborted)
    }
}

fn job_id(number: u64) -> String {
    format!("crash-{number}")
}

fn client(round: &Round) -> Client {
    Client::new(&round.ready.api, None).unwrap()
}

/// All segments of a job by name.
async fn list(client: &Client, job: &str) -> BTreeMap<String, ListedSegment> {
    let mut all = BTreeMap::new();
    let mut after = None;
    loop {
        let page = client.segments(job, None, after.as_deref()).await.unwrap();
        for segment in page.segments {
            let twice = all.insert(segment.name.clone().unwrap(), segment);
            assert!(twice.is_none(), "{:?} is there twice", twice.unwrap().name);
        }
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

/// Sends a segment in doubt again: if it is there, the answer is what is there; if it is not, it is now.
async fn repeat(client: &Client, job: &str, sent: &mut Sent, found: Option<&SegmentInfo>) {
    let data = pattern(sent.seed, sent.len).into();
    match client.put(job, &sent.params(), Some(&sent.name), data).await {
        Ok(info) => {
            if let Some(found) = found {
                assert_eq!(info.segment, found.segment, "{} is there twice now", sent.name);
            }
            sent.handle = Some(info.handle);
        }
        // Its checkpoint is over.
        Err(error) => {
            assert_eq!(error.status(), Some(StatusCode::CONFLICT), "{}: {}", sent.name, esker::error::chain(&error));
        }
    }
}

/// Reads a segment in one of several ways.
async fn read(client: &Client, sent: &Sent, handle: &str, rng: &mut StdRng) {
    let id = handle.split(':').nth(1).unwrap();
    let wanted = pattern(sent.seed, sent.len);
    match rng.random_range(0..3) {
        0 => {
            let from = rng.random_range(0..sent.len);
            let to = rng.random_range(from..sent.len) + 1;
            let bytes = client.get_range(id, from as u64..to as u64).await;
            assert!(bytes.unwrap() == wanted[from..to], "bytes {from}..{to} of {} are not what was stored", sent.name);
        }
        1 => assert!(client.get_handle(handle).await.unwrap() == wanted, "{} is not what was stored", sent.name),
        _ => assert!(client.get(id).await.unwrap() == wanted, "{} is not what was stored", sent.name),
    }
}

impl Sent {
    fn params(&self) -> PutParams {
        let by = self.seed % 3;
        PutParams {
            checkpoint: Some(self.checkpoint),
            scope: Some(if by == 0 { "shared" } else { "exclusive" }.to_owned()),
            operator: (by > 0).then(|| "map".to_owned()),
            subtask: (by > 0).then_some((self.seed % 5) as u32),
            parallelism: (by > 0).then_some(5),
            task_manager: (by > 0).then(|| "tm".to_owned()),
            name: Some(self.name.clone()),
        }
    }

    fn head(&self) -> BatchHead {
        let params = self.params();
        BatchHead {
            checkpoint: params.checkpoint,
            scope: params.scope,
            operator: params.operator,
            subtask: params.subtask,
            parallelism: params.parallelism,
            task_manager: params.task_manager,
            name: params.name,
            idempotency_key: Some(self.name.clone()),
            ..BatchHead::default()
        }
    }
}

impl Putter {
    /// Writes until the daemon ends. Returns the job's number and what may be there.
    pub async fn run(mut self) -> (u64, Vec<Sent>) {
        let mut sent = vec![];
        for count in 0.. {
            let batch = self.rng.random_bool(0.2);
            let over = if batch { self.put_many(count, &mut sent).await } else { self.put(count, &mut sent).await };
            if over {
                break;
            }
        }
        (self.job, sent)
    }

    fn next(&mut self, count: u64, index: u64) -> Sent {
        Sent {
            name: format!("r{}-w{}-{count}-{index}", self.round.number, self.number),
            checkpoint: self.current.load(Ordering::SeqCst),
            seed: self.rng.random(),
            len: any_len(&mut self.rng).max(1),
            round: self.round.number,
            handle: None,
        }
    }

    async fn put(&mut self, count: u64, all: &mut Vec<Sent>) -> bool {
        let mut sent = self.next(count, 0);
        let data = Bytes::from(pattern(sent.seed, sent.len));
        let answer = self.client.put(&job_id(self.job), &sent.params(), Some(&sent.name), data).await;
        match answer {
            Ok(info) => sent.handle = Some(info.handle),
            Err(ClientError::Refused { status: StatusCode::CONFLICT, .. }) => return false,
            Err(error) => {
                self.round.expect_end("a put", &error);
                all.push(sent);
                return true;
            }
        }
        all.push(sent);
        false
    }

    async fn put_many(&mut self, count: u64, all: &mut Vec<Sent>) -> bool {
        let many = self.rng.random_range(2..8);
        let batch: Vec<Sent> = (0..many).map(|index| self.next(count, index)).map(small).collect();
        let segments: Vec<_> =
            batch.iter().map(|sent| (sent.head(), Bytes::from(pattern(sent.seed, sent.len)))).collect();
        match self.client.put_many(&job_id(self.job), &segments).await {
            Ok(answers) if answers.len() == batch.len() => {
                for (mut sent, answer) in batch.into_iter().zip(answers) {
                    match answer {
                        BatchAnswer::Stored(info) => sent.handle = Some(info.handle),
                        BatchAnswer::Error(body) if body.error.kind == "conflict" => continue,
                        BatchAnswer::Error(body) => {
                            self.round.expect_end("a put of many", &*Cause::from(body.error.message))
                        }
                    }
                    all.push(sent);
                }
                false
            }
            failed => {
                self.round.expect_end("a put of many", &*Cause::from(format!("{failed:?}")));
                all.extend(batch);
                true
            }
        }
    }
}

/// In a batch no segment is larger than a part.
fn small(sent: Sent) -> Sent {
    Sent { len: sent.len.min(1 << 20), ..sent }
}
