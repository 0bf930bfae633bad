//! Writers at the native door: a job with a few workers that put segments, and a coordinator that completes, aborts and
//! subsumes checkpoints beside them, uses segments of completed ones again, begins and discards savepoints, and restores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use esker_client::wire::{
    BatchAnswer, BatchHead, CheckpointKind, CheckpointState, ErrorKind, ListedSegment, PutParams, RestoreJob,
    RestoredJob, SegmentInfo,
};
use esker_client::{Client, ClientError};
use http::StatusCode;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

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
    /// The last checkpoint that uses it: the one that was answered, and the one that was asked for.
    used: (u64, u64),
}

/// What is known of a savepoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Savepoint {
    /// It was begun, and nobody asked to discard it.
    Begun,
    /// Its begin or its discarding was not answered.
    InDoubt,
    Discarded,
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
    savepoints: BTreeMap<u64, Savepoint>,
    /// Savepoints of earlier rounds: nobody writes for them any more.
    old_savepoints: BTreeSet<u64>,
    /// A restore was asked for while this was the newest checkpoint: those that had not completed may be aborted.
    restored: u64,
    answered: u64,
    settled: u64,
    reused: u64,
    discarded: u64,
    restores: u64,
}

/// The checkpoints that are there, and what that means for segments.
struct Known {
    found: BTreeMap<u64, CheckpointState>,
    savepoints: BTreeSet<u64>,
    subsumed: Option<u64>,
}

impl Known {
    /// Whether a segment that the last checkpoint to use it was `used` lives.
    fn lives(&self, sent: &Sent, used: u64) -> bool {
        let state = self.found.get(&sent.checkpoint);
        let aborted = state == Some(&CheckpointState::Aborted);
        if self.savepoints.contains(&sent.checkpoint) {
            return state.is_some() && !aborted;
        }
        Some(used) > self.subsumed && !(aborted && used == sent.checkpoint)
    }

    fn must_live(&self, sent: &Sent) -> bool {
        self.lives(sent, sent.used.0)
    }

    fn may_live(&self, sent: &Sent) -> bool {
        self.lives(sent, sent.used.1)
    }
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
            savepoints: BTreeMap::new(),
            old_savepoints: BTreeSet::new(),
            restored: 0,
            answered: 0,
            settled: 0,
            reused: 0,
            discarded: 0,
            restores: 0,
        }
    }

    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("segments answered", self.answered),
            ("segments in doubt and settled", self.settled),
            ("segments reused", self.reused),
            ("savepoints discarded", self.discarded),
            ("restores of jobs", self.restores),
        ]
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
            let ended = match rng.random_range(0..16) {
                0..5 => self.end(n, CheckpointState::Completed, client.complete(&self.id, n).await),
                5..7 => self.end(n, CheckpointState::Aborted, client.abort(&self.id, n).await),
                7 => self.subsume(n.saturating_sub(rng.random_range(1..6)), &client).await,
                8..12 => self.reuse(n, &client, &mut rng).await,
                12 => self.begin_savepoint(n + 1, &client).await,
                13 => self.discard(&client, &mut rng).await,
                14 => self.restore(n, &client).await.map(drop),
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

    /// A checkpoint uses segments of completed ones again.
    async fn reuse(&mut self, n: u64, client: &Client, rng: &mut StdRng) -> Result<(), ClientError> {
        let completed = [CheckpointState::Completed];
        let usable = |sent: &&mut Sent| {
            let of_checkpoint = !self.savepoints.contains_key(&sent.checkpoint);
            let done = self.states.get(&sent.checkpoint).is_some_and(|allowed| *allowed == completed);
            sent.handle.is_some() && of_checkpoint && done && Some(sent.used.0) > self.subsumed.1
        };
        let mut chosen = self.sent.values_mut().filter(usable).choose_multiple(rng, 20);
        let handles = chosen.iter().filter_map(|sent| sent.handle.clone()).collect();
        let answer = client.reuse(&self.id, n, handles).await;
        if !matches!(answer, Err(ClientError::Refused { .. })) {
            chosen.iter_mut().for_each(|sent| sent.used.1 = sent.used.1.max(n));
        }
        let answer = answer?;
        assert_eq!(answer.refused, Vec::<String>::new(), "what lives can be used again");
        self.reused += answer.reused;
        chosen.iter_mut().for_each(|sent| sent.used.0 = sent.used.0.max(n));
        Ok(())
    }

    /// From now on segments are written for a savepoint.
    async fn begin_savepoint(&mut self, n: u64, client: &Client) -> Result<(), ClientError> {
        let answer = client.begin_savepoint(&self.id, n).await;
        match &answer {
            Ok(()) => {
                self.savepoints.insert(n, Savepoint::Begun);
                self.current.store(n, Ordering::SeqCst);
            }
            Err(ClientError::Refused { .. }) => {}
            Err(_) => drop(self.savepoints.insert(n, Savepoint::InDoubt)),
        }
        answer
    }

    async fn discard(&mut self, client: &Client, rng: &mut StdRng) -> Result<(), ClientError> {
        let Some(n) = self.old_savepoints.iter().copied().choose(rng) else { return Ok(()) };
        let answer = client.discard_savepoint(&self.id, n).await;
        self.old_savepoints.remove(&n);
        match &answer {
            Ok(()) => {
                self.discarded += 1;
                self.savepoints.insert(n, Savepoint::Discarded);
            }
            Err(_) => drop(self.savepoints.insert(n, Savepoint::InDoubt)),
        }
        answer
    }

    /// The job goes on from its newest completed checkpoint. What had not completed is aborted.
    async fn restore(&mut self, n: u64, client: &Client) -> Result<RestoredJob, ClientError> {
        let answer = client.restore_job(&self.id, &RestoreJob::default()).await;
        if !matches!(answer, Err(ClientError::Refused { .. })) {
            self.restored = self.restored.max(n + 1);
        }
        if answer.is_ok() {
            self.restores += 1;
            self.current.store(n + 2, Ordering::SeqCst);
        }
        answer
    }

    /// Compares the job in the daemon with what is known, and settles what is not.
    pub async fn check(&mut self, round: &Round, look: Look, mut rng: StdRng) {
        let client = client(round);
        client.create_job(&self.id).await.unwrap();
        let n = self.current.load(Ordering::SeqCst);
        let restored = if rng.random_bool(0.3) { self.restore(n, &client).await.ok() } else { None };
        let known = self.check_checkpoints(&client).await;
        let listed = list(&client, &self.id).await;
        for (name, found) in &listed {
            let sent =
                self.sent.get(name).unwrap_or_else(|| panic!("{name} is there, and was settled as lost or freed"));
            assert_eq!(found.info.len, sent.len as u64, "{name}");
            assert_eq!(found.checkpoint, Some(sent.checkpoint), "{name}");
            assert!(known.may_live(sent), "{name} lives, and nothing that uses it does: {sent:?}");
        }
        if let Some(restored) = restored {
            self.check_restored(&restored, &known, &listed);
        }
        for mut sent in std::mem::take(&mut self.sent).into_values() {
            let in_doubt = sent.handle.is_none();
            let found = listed.get(&sent.name);
            if let Some(found) = found {
                sent.handle.get_or_insert_with(|| found.info.handle.clone());
                if !known.must_live(&sent) {
                    // It was in doubt whether it is used, and is not any more.
                    sent.used.0 = known.subsumed.map_or(sent.used.0, |subsumed| sent.used.0.max(subsumed + 1));
                }
            } else if !in_doubt && known.must_live(&sent) {
                panic!("{} was answered or read, and is gone: {sent:?}", sent.name);
            }
            if in_doubt {
                self.settled += 1;
                repeat(&client, &self.id, &mut sent, found.map(|found| &found.info)).await;
            }
            let there = found.is_some() || in_doubt;
            if let (Some(handle), true) = (&sent.handle, there) {
                if in_doubt || look.at(sent.round, round.number, &mut rng) {
                    read(&client, &sent, handle, &mut rng).await;
                }
                self.sent.insert(sent.name.clone(), sent);
            }
        }
    }

    /// Checks that every checkpoint is in a state that it may be in. Returns which ones there are.
    async fn check_checkpoints(&mut self, client: &Client) -> Known {
        let jobs = client.jobs().await.unwrap();
        let subsumed = jobs.into_iter().find(|job| job.job == self.id).unwrap().subsumed;
        let (answered, asked) = self.subsumed;
        assert!(answered <= subsumed && subsumed <= asked, "{subsumed:?} is subsumed, {answered:?} was answered");
        self.subsumed = (subsumed, subsumed);
        let infos = client.checkpoints(&self.id).await.unwrap();
        let found: BTreeMap<u64, CheckpointState> = infos.iter().map(|info| (info.checkpoint, info.state)).collect();
        let savepoints: BTreeSet<u64> = infos
            .iter()
            .filter(|info| info.kind == CheckpointKind::Savepoint)
            .map(|info| info.checkpoint)
            .chain(self.savepoints.keys().copied())
            .collect();
        for info in &infos {
            let is_savepoint = info.kind == CheckpointKind::Savepoint;
            assert_eq!(is_savepoint, self.savepoints.contains_key(&info.checkpoint), "{info:?}");
        }
        for (n, savepoint) in std::mem::take(&mut self.savepoints) {
            self.check_savepoint(n, savepoint, found.get(&n).copied());
        }
        let begun = found.iter().map(|(n, state)| (n, Some(*state)));
        let ended = self.states.range(subsumed.map_or(0, |n| n + 1)..).map(|(n, _)| (n, found.get(n).copied()));
        for (n, state) in begun.chain(ended) {
            if state.is_none() && savepoints.contains(n) {
                continue;
            }
            let state = state.unwrap_or(CheckpointState::Pending);
            let pending = vec![CheckpointState::Pending];
            let allowed = self.states.get(n).unwrap_or(&pending);
            let restored = *n <= self.restored && allowed.contains(&CheckpointState::Pending);
            let fits = allowed.contains(&state) || restored && state == CheckpointState::Aborted;
            assert!(fits, "checkpoint {n} is {state:?}, not {allowed:?}");
        }
        self.states = found
            .iter()
            .filter(|(_, state)| **state != CheckpointState::Pending)
            .map(|(n, state)| (*n, vec![*state]))
            .collect();
        self.old_savepoints = self.savepoints.keys().copied().collect();
        Known { found, savepoints, subsumed }
    }

    /// Checks that a savepoint is there if it must be, and remembers it if it is.
    fn check_savepoint(&mut self, n: u64, known: Savepoint, found: Option<CheckpointState>) {
        let completed = self.states.get(&n).is_some_and(|allowed| *allowed == [CheckpointState::Completed]);
        let may_be_dropped = !completed && Some(n) <= self.subsumed.0;
        match (known, found) {
            (Savepoint::Discarded, Some(state)) => assert_eq!(state, CheckpointState::Aborted, "savepoint {n}"),
            (Savepoint::Begun, None) => assert!(may_be_dropped, "savepoint {n} is gone"),
            _ => {}
        }
        if known == Savepoint::InDoubt && found == Some(CheckpointState::Aborted) {
            self.states.insert(n, vec![CheckpointState::Aborted]);
        }
        if known == Savepoint::Discarded && found.is_some() {
            self.states.insert(n, vec![CheckpointState::Aborted]);
        }
        if found.is_some() {
            self.savepoints.insert(n, Savepoint::Begun);
        }
    }

    /// A restore tells the segments of its checkpoint, all of them and no others.
    fn check_restored(&self, restored: &RestoredJob, known: &Known, listed: &BTreeMap<String, ListedSegment>) {
        let n = restored.checkpoint;
        let told: BTreeSet<&str> = restored.segments.iter().filter_map(|segment| segment.name.as_deref()).collect();
        for name in &told {
            assert!(listed.contains_key(*name), "{name} is restored, and not there");
        }
        for sent in self.sent.values().filter(|sent| listed.contains_key(&sent.name)) {
            let is_part_of = |used| match (known.savepoints.contains(&n), known.savepoints.contains(&sent.checkpoint)) {
                (false, false) => sent.checkpoint <= n && n <= used,
                (true, true) => sent.checkpoint == n,
                _ => false,
            };
            let is_told = told.contains(&*sent.name);
            assert!(is_told || !is_part_of(sent.used.0), "checkpoint {n} lacks {sent:?}");
            assert!(!is_told || is_part_of(sent.used.1), "checkpoint {n} does not use {sent:?}");
        }
    }
}

/// The daemon says that there is no room; what is there is told.
pub async fn is_refused_for_want_of_room(round: &Round) {
    let client = client(round);
    let job = job_id(0);
    client.create_job(&job).await.unwrap();
    let params = PutParams { checkpoint: Some(1 << 40), name: Some("no-room".to_owned()), ..PutParams::default() };
    let answer = client.put(&job, &params, None, pattern(1, 64 << 10).into()).await;
    assert_eq!(answer.unwrap_err().status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    client.jobs().await.unwrap();
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
        let checkpoint = self.current.load(Ordering::SeqCst);
        Sent {
            name: format!("r{}-w{}-{count}-{index}", self.round.number, self.number),
            checkpoint,
            used: (checkpoint, checkpoint),
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
                        BatchAnswer::Error(body) if body.error.kind == ErrorKind::Conflict => continue,
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
