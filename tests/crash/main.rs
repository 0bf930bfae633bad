//! Writers at both doors, and `kill -9` at random moments: what was answered is there, byte for byte; what was not is
//! there whole or not at all; what was read once stays; and no file is left that nobody accounts for.
//!
//! All rounds work on one folder. A round starts the daemon, compares what is there with what the writers of the
//! rounds before know, lets writers loose, and ends the daemon: mostly by `kill -9`, sometimes already while it
//! starts, sometimes by SIGTERM. Its surroundings are hostile: its clock is minutes off in some rounds, it is started on
//! an empty volume and without room on the disk, stopped for a while in the middle (SIGSTOP), and asked by readers that
//! then take nothing. `ESKER_CRASH_STORE` names another store, a folder of an HDFS or a prefix that does not exist yet; what only a folder
//! on a disk can suffer is left out then. `ESKER_CRASH_ROUNDS` says how many rounds, `ESKER_CRASH_SEED` repeats a run: the same requests and
//! the same moments, as far as two processes ever do the same twice.

#![allow(clippy::clone_on_ref_ptr, clippy::disallowed_methods, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod native;
mod objects;
mod plan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esker_test_support::{self as support, clock, process};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use native::Job;
use objects::Keys;
use plan::{Before, End, Plan};
use process::{Process, Ready, esker};
use support::watchdog::Watchdog;

const JOBS: u64 = 2;
const PUTTERS_PER_JOB: u64 = 3;
const S3_WRITERS: u64 = 4;
/// A round is a matter of seconds, the last one reads everything.
const ROUND_TAKES_AT_MOST: Duration = Duration::from_secs(300);
/// Rounds whose writes are all looked at; of older ones a sample.
const RECENT_ROUNDS: u32 = 3;

/// What one check or one writer has to know of its round.
#[derive(Debug, Clone)]
pub struct Round {
    number: u32,
    ready: Ready,
    /// Set before the daemon is told to end: from then on, errors are expected.
    ending: Arc<AtomicBool>,
}

impl Round {
    /// A request failed. Unless the daemon is being ended, it should not have.
    fn expect_end(&self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let error = esker::error::chain(error);
        assert!(self.ending.load(Ordering::SeqCst), "{what} failed while the daemon was running: {error}");
    }
}

/// How much of what older rounds wrote is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Sample,
    Everything,
}

impl Look {
    /// Whether something of round `written` is looked at in round `now`.
    fn at(self, written: u32, now: u32, rng: &mut StdRng) -> bool {
        self == Self::Everything || written + RECENT_ROUNDS >= now || rng.random_bool(0.1)
    }
}

/// Everything that the writers know.
struct World {
    rng: StdRng,
    jobs: Vec<Job>,
    keys: Vec<Keys>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            jobs: (0..JOBS).map(Job::new).collect(),
            keys: (0..S3_WRITERS).map(Keys::new).collect(),
        }
    }

    fn fork(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.rng.random())
    }

    /// Compares what the daemon has with what the writers know, and settles what they do not.
    async fn check(&mut self, round: &Round, look: Look) {
        let mut tasks = tokio::task::JoinSet::new();
        for mut job in std::mem::take(&mut self.jobs) {
            let (round, rng) = (round.clone(), self.fork());
            tasks.spawn(async move {
                job.check(&round, look, rng).await;
                Checked::Job(job)
            });
        }
        for mut keys in std::mem::take(&mut self.keys) {
            let (round, rng) = (round.clone(), self.fork());
            tasks.spawn(async move {
                keys.check(&round, look, rng).await;
                Checked::Keys(keys)
            });
        }
        for checked in tasks.join_all().await {
            match checked {
                Checked::Job(job) => self.jobs.push(job),
                Checked::Keys(keys) => self.keys.push(keys),
            }
        }
        self.jobs.sort_by_key(|job| job.number);
        self.keys.sort_by_key(|keys| keys.number);
    }

    /// Lets all writers loose and ends the daemon while they write.
    async fn write(&mut self, round: &Round, plan: &Plan, daemon: Process) {
        let mut putters = tokio::task::JoinSet::new();
        let mut coordinators = tokio::task::JoinSet::new();
        for mut job in std::mem::take(&mut self.jobs) {
            for putter in 0..PUTTERS_PER_JOB {
                putters.spawn(job.putter(round.clone(), putter, self.fork()).run());
            }
            let (round, rng) = (round.clone(), self.fork());
            coordinators.spawn(async move {
                job.coordinate(&round, rng).await;
                job
            });
        }
        let mut s3 = tokio::task::JoinSet::new();
        for mut keys in std::mem::take(&mut self.keys) {
            let (round, rng) = (round.clone(), self.fork());
            s3.spawn(async move {
                keys.write(&round, rng).await;
                keys
            });
        }

        let _stalled = if plan.stalled_reader { objects::ask_and_take_nothing(round).await } else { None };
        tokio::time::sleep(plan.lives).await;
        if let Some(pause) = plan.stands_still {
            daemon.signal("STOP");
            tokio::time::sleep(pause).await;
            daemon.signal("CONT");
            tokio::time::sleep(plan.lives / 2).await;
        }
        round.ending.store(true, Ordering::SeqCst);
        let end = plan.end;
        tokio::task::spawn_blocking(move || end_of(daemon, end)).await.unwrap();

        self.jobs = coordinators.join_all().await;
        self.jobs.sort_by_key(|job| job.number);
        self.keys = s3.join_all().await;
        self.keys.sort_by_key(|keys| keys.number);
        for (job, written) in putters.join_all().await {
            self.jobs[job as usize].wrote(written);
        }
    }

    fn counts(&self) -> BTreeMap<&'static str, u64> {
        let jobs = self.jobs.iter().map(Job::counts);
        let all = jobs.chain(self.keys.iter().map(Keys::counts)).flatten();
        all.fold(BTreeMap::new(), |mut sum, (what, count)| {
            *sum.entry(what).or_default() += count;
            sum
        })
    }
}

enum Checked {
    Job(Job),
    Keys(Keys),
}

fn end_of(daemon: Process, end: End) {
    match end {
        // What dropping it does: `kill -9`.
        End::Killed => drop(daemon),
        End::Terminated => daemon.terminate(),
    }
}

#[test]
fn what_was_answered_survives_kill_9() {
    let rounds = from_env("ESKER_CRASH_ROUNDS").unwrap_or(25) as u32;
    let seed = from_env("ESKER_CRASH_SEED").unwrap_or_else(rand::random);
    println!("{rounds} rounds; ESKER_CRASH_SEED={seed} repeats them");
    let folder = tempfile::tempdir().unwrap();
    let place = Place { folder: folder.path().to_owned(), url: std::env::var("ESKER_CRASH_STORE").ok() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();

    runtime.block_on(async {
        let mut world = World::new(seed);
        let begun = Instant::now();
        for number in 0..rounds {
            run_round(&mut world, &place, number).await;
        }
        last_round(&mut world, &place, rounds).await;
        println!("{:?} in {:?}", world.counts(), begun.elapsed());
    });
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Where the daemon works.
struct Place {
    /// Its log is here, and its data unless there is a URL.
    folder: PathBuf,
    url: Option<String>,
}

impl Place {
    fn spawn(&self, environment: &[(&'static str, String)]) -> Process {
        match &self.url {
            Some(url) => Process::serve(&self.folder, url, environment),
            None => Process::spawn(&self.folder, environment),
        }
    }
}

async fn run_round(world: &mut World, place: &Place, number: u32) {
    let folder = place.folder.as_path();
    let mut plan = Plan::draw(&mut world.rng);
    if let Some(url) = &place.url {
        plan.is_not_on_a_disk(url);
    }
    let what = format!("round {number}, {plan:?},");
    let _watchdog = Watchdog::watch(what, ROUND_TAKES_AT_MOST, folder.join("log"));
    match plan.before {
        Before::Nothing => {}
        Before::KilledStart(lives) => {
            let daemon = place.spawn(&plan.environment);
            tokio::time::sleep(lives).await;
            drop(daemon);
        }
        Before::EmptyVolume => is_refused_on_an_empty_volume(folder, &plan),
        Before::FullDisk => writes_nothing_on_a_full_disk(place, &plan, number).await,
    }
    let (daemon, round) = start(place, &plan.environment, number).await;
    world.check(&round, Look::Sample).await;
    world.write(&round, &plan, daemon).await;
    match plan.end {
        End::Terminated => nothing_is_left_over(place),
        // On HDFS nobody reads what stands in files that are still open, before the next start has closed them.
        End::Killed if number % 10 == 9 && place.url.is_none() => drop(verified(place)),
        End::Killed => {}
    }
}

/// The data is not there for one start, as of a volume that was not mounted; the catalog is.
fn is_refused_on_an_empty_volume(folder: &Path, plan: &Plan) {
    let (root, aside) = (folder.join("data"), folder.join("aside"));
    let there: Vec<&str> = ["data", "owners", "ESKER"].into_iter().filter(|name| root.join(name).exists()).collect();
    // The first start of all may have been killed before there was a store.
    if !there.contains(&"ESKER") || !there.contains(&"owners") {
        return;
    }
    std::fs::create_dir(&aside).unwrap();
    there.iter().for_each(|name| std::fs::rename(root.join(name), aside.join(name)).unwrap());

    let (status, log) = Process::spawn(folder, &plan.environment).wait_end();

    assert_eq!(status.code(), Some(2), "{log}");
    for name in there {
        assert!(!root.join(name).exists(), "{name} was made on the empty volume:\n{log}");
        std::fs::rename(aside.join(name), root.join(name)).unwrap();
    }
    std::fs::remove_dir(aside).unwrap();
}

/// No disk has so much room: what is new is refused, and what is there is not.
async fn writes_nothing_on_a_full_disk(place: &Place, plan: &Plan, number: u32) {
    let mut environment = plan.environment.clone();
    environment.push(("ESKER__STORE__RESERVE", "1000 tb".to_owned()));
    let (daemon, round) = start(place, &environment, number).await;
    native::is_refused_for_want_of_room(&round).await;
    drop(daemon);
}

/// Everything that was ever answered, one last time.
async fn last_round(world: &mut World, place: &Place, number: u32) {
    let _watchdog = Watchdog::watch("the last round".to_owned(), ROUND_TAKES_AT_MOST, place.folder.join("log"));
    let mut environment = plan::environment();
    if let Some(url) = &place.url {
        plan::give_time(&mut environment, url);
    }
    let (daemon, round) = start(place, &environment, number).await;
    world.check(&round, Look::Everything).await;
    tokio::task::spawn_blocking(move || end_of(daemon, End::Terminated)).await.unwrap();
    nothing_is_left_over(place);
}

async fn start(place: &Place, environment: &[(&'static str, String)], number: u32) -> (Process, Round) {
    let mut daemon = place.spawn(environment);
    let started = tokio::task::spawn_blocking(move || {
        let ready = daemon.wait_ready();
        (daemon, ready)
    });
    let (daemon, ready) = tokio::time::timeout(Duration::from_secs(90), started).await.unwrap().unwrap();
    (daemon, Round { number, ready, ending: Arc::default() })
}

/// `esker verify` finds no fault. Returns what it says.
fn verified(place: &Place) -> String {
    let mut verify = esker();
    verify.args(["verify", "--read-data", "100"]);
    match &place.url {
        Some(url) => verify.arg("--store").arg(url),
        None => verify.arg("--data-dir").arg(place.folder.join("data")),
    };
    let output = verify.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// After a start and an orderly end, the catalog knows every physical file, and nothing else lies about.
fn nothing_is_left_over(place: &Place) {
    let said = verified(place);
    // An object storage service is given a file beside the commit that names it: without that, it waits for the sweep.
    let is_service = place.url.as_ref().is_some_and(|url| !url.starts_with("hdfs:"));
    let is_expected = |line: &str| !line.starts_with("note:") || is_service && line.contains("is not in the catalog");
    assert!(said.lines().all(is_expected), "{said}");
    if place.url.is_some() {
        return;
    }
    let folder = place.folder.as_path();
    let mut strange = vec![];
    walk(&folder.join("data"), &mut |path| {
        let name = path.strip_prefix(folder.join("data")).unwrap().to_string_lossy().into_owned();
        let folders = ["data/", "catalog/db/", "catalog/log/", "catalog/lost+found/", "owners/", "lost+found/data/"];
        let known = folders.iter().any(|folder| name.starts_with(folder)) || name.starts_with("catalog/RESERVE");
        let known = known || ["ESKER", "catalog/LOCK", "catalog/STORE"].contains(&name.as_str());
        if !known || name.contains('#') {
            strange.push(name);
        }
    });
    assert_eq!(strange, Vec::<String>::new());
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, visit) } else { visit(&path) }
    }
}
