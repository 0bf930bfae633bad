//! A cluster in one thread: three to five real daemons on a store and a network that are slow, lose answers, and are cut, with processes
//! that are killed, or stopped and go on. A seed decides everything, and the same seed leads to the same run, step by step.
//!
//! # What is real, and what is not
//! Real is everything from the listener of a door to the client of the store: doors, dispatcher, members, detector, take-over, hand-over,
//! balance, proofs, held requests, peers over HTTP/2, engine, catalog on SlateDB with its log, compactions and collector, merger, deleter,
//! sweep. Each daemon is a process of its own to the others: a runtime, driven for 5 ms at a time by the one thread (`member.rs`). It is
//! started as the program starts it, by [`esker::daemon::Daemon::start_in`], and is given, in place of the machine's:
//!
//! - the clocks (`world.rs`): the runtime's paused time is the monotonic clock, the wall clock may be wrong by an hour. A process that was
//!   stopped finds that both have gone on;
//! - the network (`network.rs`): connections in memory, with a delay, and cut in either direction. No packets, and no TLS;
//! - the client of the store (`store.rs`): objects in memory. So how a service's client repeats requests is not in it, but what it makes of
//!   them is: an answer that is lost, a create that was carried out twice, a 409 that says "exists";
//! - random bytes (`chance.rs`): those of the libraries, too.
//!
//! Multipart uploads of files never fail here, and clients only use the S3 door.
//!
//! # What always holds
//! - Each key has a history (`clients.rs`): no read is older than anything that was answered before it began, and what was answered can be
//!   read, byte for byte, at the end, too, when all is deleted that may be. So no file is deleted that is named, and no two
//!   owners answer.
//! - Nothing is written to a log behind the fence of another process (`log_watch.rs`).
//! - When nothing goes wrong any more, each member answers for each shard within 45 s.
//!
//! Rules that can be left out (`bug.rs`) have to be found.
//!
//! # To run it
//! ```text
//! cargo test --test simulation                                       # 200 seeds, each twice
//! ESKER_SIM_SEEDS=5000 ESKER_SIM_FROM=1000 ESKER_SIM_ONCE=1 cargo test --test simulation seeds -- --nocapture
//! SIM_SEED=17 cargo test --test simulation seeds -- --nocapture      # one, with the end of what happened if it fails
//! SIM_SEED=17 ESKER_SIM_TRACE=1 ESKER_SIM_LOG=esker=debug ..         # with all of that, and what the daemons log
//! ```

// As in a program: a test tells of what is wrong by a panic.
#![allow(clippy::unwrap_used, missing_docs)]

mod bug;
mod chance;
mod clients;
mod log_watch;
mod member;
mod network;
mod run;
mod scenario;
mod store;
mod world;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use bug::Bug;
use parking_lot::Mutex;

/// Seeds of a run by default.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// What a run in a process of its own tells: `key=value` of each.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    hash: String,
    broken: Option<String>,
    figures: Vec<u64>,
    text: String,
}

/// A library for the runs of this process.
struct Runs {
    library: PathBuf,
    _folder: tempfile::TempDir,
}

impl Runs {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        Some(Self { library: chance::build(folder.path())?, _folder: folder })
    }

    fn run(&self, seed: u64, scope: Option<Bug>, bug: Option<Bug>) -> Told {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "one_run_in_a_process_of_its_own", "--nocapture", "--test-threads=1"]);
        command.env("LD_PRELOAD", &self.library).env("ESKER_SIM_CHANCE", seed.to_string());
        command.env("ESKER_SIM_CHILD", seed.to_string()).stdin(Stdio::null());
        for (key, bug) in [("ESKER_SIM_SCOPE", scope), ("ESKER_SIM_BUG", bug)] {
            bug.map(|bug| command.env(key, format!("{bug:?}")));
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        let (Some(hash), Some(figures)) = (found("hash="), found("figures=")) else {
            panic!("seed {seed}: {}\n{}{}", output.status, text, String::from_utf8_lossy(&output.stderr));
        };
        let figures = figures.split(' ').map(|figure| figure.parse().unwrap()).collect();
        Told { hash, broken: found("broken="), figures, text }
    }
}

/// One run, as [`Runs::run`] starts it.
#[test]
fn one_run_in_a_process_of_its_own() {
    let Some(seed) = number("ESKER_SIM_CHILD") else { return };
    let named = |key| std::env::var(key).ok().map(|name| Bug::named(&name).expect("a bug"));
    let (scope, bug) = (named("ESKER_SIM_SCOPE"), named("ESKER_SIM_BUG"));
    if let Ok(filter) = std::env::var("ESKER_SIM_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let outcome = run::run(seed, scope, bug);
    let mut text = String::new();
    if let Some(broken) = &outcome.broken {
        outcome.last_lines.iter().for_each(|line| writeln!(text, "| {line}").unwrap());
        writeln!(text, "broken={}", broken.replace('\n', " ")).unwrap();
    }
    let millis = outcome.simulated.as_millis();
    let (opens, lines) = (outcome.opens, outcome.lines);
    writeln!(text, "figures={millis} {} {} {} {opens} {lines}", outcome.writes, outcome.reads, outcome.errors).unwrap();
    println!("\n{text}hash={:016x}", outcome.hash);
}

/// Where the whole of what happened goes.
fn keep(seed: u64, text: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulation");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{seed}.txt"));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn seeds() {
    let Some(runs) = Runs::new() else { return };
    let only = number("SIM_SEED");
    let from = only.or_else(|| number("ESKER_SIM_FROM")).unwrap_or(1);
    let count = only.map_or_else(|| number("ESKER_SIM_SEEDS").unwrap_or(SEEDS), |_| 1);
    let once = std::env::var_os("ESKER_SIM_ONCE").is_some();
    let (sums, broken) = (Mutex::new([0_u64; 6]), Mutex::new(vec![]));
    let one = |seed| {
        let first = runs.run(seed, None, None);
        if only.is_some() {
            print!("{}", first.text);
        }
        for (sum, figure) in sums.lock().iter_mut().zip(&first.figures) {
            *sum += figure;
        }
        if let Some(what) = &first.broken {
            println!("seed {seed}: {what}\n    {}", keep(seed, &first.text).display());
            return broken.lock().push(seed);
        }
        if seed % 100 == 0 {
            println!("seed {seed}");
        }
        if once {
            return;
        }
        let again = runs.run(seed, None, None);
        if again.hash != first.hash {
            println!("seed {seed}: not the same twice: {:?}, {:?}", first.figures, again.figures);
            broken.lock().push(seed);
        }
    };
    let next = AtomicU64::new(from);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..number("ESKER_SIM_JOBS").map_or(jobs, |jobs| usize::try_from(jobs).unwrap()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    one(seed);
                }
            });
        }
    });
    let ([millis, writes, reads, errors, opens, _], broken) = (sums.into_inner(), broken.into_inner());
    println!(
        "{count} seeds from {from}: {} s, {writes} answered writes, {reads} answered reads, {errors} errors, {opens} opens of a catalog",
        millis / 1000
    );
    assert!(broken.is_empty(), "SIM_SEED= {broken:?}");
}

fn finds(bug: Bug, within: u64) {
    let Some(runs) = Runs::new() else { return };
    for seed in 1..=within {
        if let Some(what) = runs.run(seed, Some(bug), Some(bug)).broken {
            println!("{bug:?}: seed {seed}: {what}");
            assert_eq!(runs.run(seed, Some(bug), None).broken, None, "seed {seed}, with the rule");
            return;
        }
    }
    panic!("{bug:?} is not found by {within} seeds");
}

macro_rules! bugs {
    ($($test:ident: $bug:ident within $seeds:literal;)*) => {
        $(#[test]
        fn $test() {
            finds(Bug::$bug, $seeds);
        })*
    };
}

bugs! {
    finds_a_proof_that_was_taken_before_the_view: ProofBeforeView within 40;
    finds_a_clock_that_stands_still: ProofStandsStill within 100;
    finds_a_new_owner_that_does_not_wait: ServesAtOnce within 100;
    finds_an_open_before_the_map_was_written: OpenBeforeMap within 40;
    finds_a_fence_that_keeps_nobody_out: BlindLogWrite within 40;
    finds_a_look_in_place_of_a_tombstone: HeadWithoutTombstone within 200;
    finds_a_request_that_is_done_in_a_later_epoch: ForAnyEpoch within 100;
}
