//! A process: a runtime of its own, whose time goes on when it is told to.
//!
//! All runtimes are driven by one thread, one after the other, a few milliseconds each. One that is stopped is not driven; when it
//! goes on, its clocks jump. One that is killed is dropped, and with it every task of it where it stands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use esker::config::{Config, GivenObjects, Settings};
use esker::daemon::{Daemon, Surroundings};
use esker::error::chain;
use esker::runtime::Clock;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::network::{ReachedNetwork, Wires, address};
use crate::store::{Objects, ReachedStore};
use crate::world::{Place, ProcessClock, World};

pub(crate) const BUCKET: &str = "bucket";
pub(crate) const S3_PORT: u16 = 9000;
pub(crate) const API_PORT: u16 = 9001;
/// Where the daemons keep everything.
pub(crate) const PREFIX: &str = "esker";

/// A runtime and its clock.
pub(crate) struct Process {
    runtime: Runtime,
    clock: ProcessClock,
    /// Since when it is stopped.
    stopped: Option<Duration>,
}

impl Process {
    pub(crate) fn new(world: &World, place: Place) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let entered = runtime.enter();
        let clock = ProcessClock::new(world, place, world.now());
        drop(entered);
        Self { runtime, clock, stopped: None }
    }

    pub(crate) fn clock(&self) -> &ProcessClock {
        &self.clock
    }

    #[expect(clippy::disallowed_methods, reason = "it is a process of the simulation")]
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    /// Lets it go on until then.
    pub(crate) fn run_until(&self, now: Duration) {
        if self.stopped.is_none() {
            self.runtime.block_on(async { tokio::time::sleep_until(self.clock.at(now)).await });
        }
    }

    pub(crate) fn stop(&mut self, now: Duration) {
        self.stopped.get_or_insert(now);
    }

    pub(crate) fn go_on(&mut self, now: Duration) {
        if let Some(since) = self.stopped.take() {
            self.clock.stood_still(now - since);
            self.runtime.block_on(async { tokio::time::advance(now - since).await });
        }
    }

    pub(crate) fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// A member of the cluster, and the process that it is at the moment.
pub(crate) struct Member {
    process: Option<Running>,
    /// When it is to be started, if it is not there.
    start: Option<Duration>,
    /// When it is to go on, if it is stopped.
    go_on: Option<Duration>,
}

struct Running {
    number: u64,
    process: Process,
    end: CancellationToken,
    over: Arc<Mutex<Option<String>>>,
}

/// All members.
pub(crate) struct Members {
    world: Arc<World>,
    pub(crate) objects: Arc<Objects>,
    pub(crate) wires: Arc<Wires>,
    pub(crate) all: Vec<Member>,
    started: u64,
}

impl Members {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        let at = |place: Place| Duration::from_millis(150) * u32::try_from(place).unwrap();
        let member = |place| Member { process: None, start: Some(at(place)), go_on: None };
        let all = (0..world.scenario.members).map(member).collect();
        Self { world: Arc::clone(world), objects: Arc::default(), wires: Arc::default(), all, started: 0 }
    }

    /// Lets all go on until then.
    pub(crate) fn run_until(&mut self, then: Duration) {
        let now = self.world.now();
        for place in 0..self.all.len() {
            if self.all[place].go_on.is_some_and(|at| at <= now) {
                self.go_on(place);
            }
            if self.all[place].start.is_some_and(|at| at <= now) {
                self.start(place);
            }
            let Some(running) = &self.all[place].process else { continue };
            running.process.run_until(then);
            let over = running.over.lock().take();
            if let Some(why) = over {
                self.world.tell(format_args!("{} of {place} is over: {why}", running.number));
                self.kill(place, Duration::from_millis(700));
            }
        }
    }

    fn start(&mut self, place: Place) {
        let world = &self.world;
        self.started += 1;
        let number = self.started;
        world.tell(format_args!("{number} of {place} starts"));
        let process = Process::new(world, place);
        let clock = process.clock().clone();
        let network =
            ReachedNetwork { world: Arc::clone(world), wires: Arc::clone(&self.wires), place, clock: clock.clone() };
        let store = Arc::new(ReachedStore::new(world, &self.objects, place, number));
        let objects = Arc::<ReachedStore>::clone(&store);
        let settings = settings(world, place).on(GivenObjects { objects, multipart: store });
        let seed = Some(world.draw(0..u64::MAX));
        let surroundings = Surroundings { clock: Clock::Given(Arc::new(clock)), seed, network: Arc::new(network) };
        let (end, over) = (CancellationToken::new(), Arc::new(Mutex::new(None)));
        let (told, ending) = (Arc::clone(&over), end.clone());
        process.spawn(async move {
            let why = match Box::pin(Daemon::start_in(settings, surroundings)).await {
                Err(error) => format!("not started: {}", chain(&error)),
                Ok(daemon) => {
                    let failed = daemon.failed();
                    tokio::select! {
                        biased;
                        () = ending.cancelled() => {}
                        () = failed.cancelled() => {}
                    }
                    match daemon.shut_down().await {
                        Ok(_) => "ended".to_owned(),
                        Err(error) => format!("ended: {}", chain(&error)),
                    }
                }
            };
            told.lock().replace(why);
        });
        let member = &mut self.all[place];
        member.process = Some(Running { number, process, end, over });
        (member.start, member.go_on) = (None, None);
    }

    pub(crate) fn kill(&mut self, place: Place, again: Duration) {
        let now = self.world.now();
        let member = &mut self.all[place];
        let Some(running) = member.process.take() else { return };
        self.world.tell(format_args!("{} of {place} is killed", running.number));
        (member.start, member.go_on) = (Some(now + again), None);
        running.process.kill();
    }

    pub(crate) fn stop(&mut self, place: Place, time: Duration) {
        let now = self.world.now();
        let member = &mut self.all[place];
        let Some(running) = &mut member.process else { return };
        self.world.tell(format_args!("{} of {place} is stopped", running.number));
        running.process.stop(now);
        member.go_on = Some(now + time);
    }

    pub(crate) fn go_on(&mut self, place: Place) {
        let now = self.world.now();
        let member = &mut self.all[place];
        member.go_on = None;
        if let Some(running) = &mut member.process {
            self.world.tell(format_args!("{} of {place} goes on", running.number));
            running.process.go_on(now);
        }
    }

    /// Ends one as a signal would. It is started again.
    pub(crate) fn end(&mut self, place: Place) {
        if let Some(running) = &self.all[place].process {
            self.world.tell(format_args!("{} of {place} is to end", running.number));
            running.end.cancel();
        }
    }

    /// All are there, or will be soon, and run.
    pub(crate) fn all_go_on(&mut self) {
        for place in 0..self.all.len() {
            if self.all[place].go_on.is_some() {
                self.go_on(place);
            }
            let now = self.world.now();
            let member = &mut self.all[place];
            member.start = member.start.map(|at| at.min(now));
        }
    }

    /// The owner of a shard, as the last map says.
    pub(crate) fn owner(&self, shard: u32) -> Option<Place> {
        let last = self.objects.keys(&format!("{PREFIX}/cluster/map")).into_iter().max()?;
        let map: serde_json::Value = serde_json::from_slice(&self.objects.bytes(&last)?).unwrap();
        let owners = map["owners"].as_array()?;
        let owner = owners.iter().find(|owner| owner["shard"] == shard)?;
        owner["member"].as_str()?.strip_prefix('m')?.parse().ok()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in &mut self.all {
            if let Some(running) = member.process.take() {
                running.process.kill();
            }
        }
    }
}

fn settings(world: &World, place: Place) -> Settings {
    let scenario = &world.scenario;
    let (s3, api) = (address(place, S3_PORT), address(place, API_PORT));
    let inline = if scenario.files { "0" } else { "20 kb" };
    let mut flags: BTreeMap<&str, String> = BTreeMap::new();
    let mut set = |key, value: &str| drop(flags.insert(key, value.to_owned()));
    set("store.url", &format!("s3://simulated/{PREFIX}"));
    set("store.region", "r");
    set("store.request-timeout", "3 s");
    set("store.retry-timeout", "2 s");
    set("server.s3", &s3.to_string());
    set("server.api", &api.to_string());
    set("server.drain-timeout", "5 s");
    set("server.buckets", BUCKET);
    set("execution.checkpointing.data-inline-threshold", inline);
    set("merging.inline-group-max", "0");
    set("reclaim.delete-grace", "2 s");
    set("reclaim.interval", "1 s");
    set("reclaim.sweep-interval", "2 s");
    set("limits.memory", "64 mb");
    set("limits.multipart-memory", "8 mb");
    set("limits.multipart-part-in-memory-max", "5 mb");
    set("store.max-bytes-in-flight", "32 mb");
    set("execution.checkpointing.file-merging.max-file-size", "8 mb");
    set("cluster.enabled", "true");
    set("cluster.daemon-id", &format!("m{place}"));
    set("cluster.advertised-url", &format!("http://{api}"));
    set("cluster.token", "token");
    set("cluster.shards", &scenario.shards.to_string());
    set("cluster.balance-after", "3 s");
    let flags: Vec<_> = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Config::load_with(None, [], &flags).unwrap().settings().unwrap()
}
