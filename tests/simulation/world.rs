//! What all processes share: the time, the one source of chance, what is cut and slow at the moment, and the trace.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use esker::model::Millis;
use esker::runtime::MachineClocks;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::bug::Bug;
use crate::scenario::Scenario;

/// The wall clock at the beginning: 2026-01-01, in milliseconds since 1970.
const BEGINNING: u64 = 1_767_225_600_000;
/// Machines have been up for so long then.
const UP: Duration = Duration::from_secs(100);
/// Lines of the trace that are kept for whoever looks for the cause of a failure.
const LINES_KEPT: usize = 4000;

/// A member's place: its number, and its machine's.
pub(crate) type Place = usize;

/// The world. One thread at a time is in it.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) bug: Option<Bug>,
    inner: Mutex<Inner>,
}

struct Inner {
    rng: StdRng,
    /// The end of the last step.
    now: Duration,
    /// Directions in which nothing comes through.
    cuts: BTreeSet<(Place, Place)>,
    /// Members that do not reach storage.
    off_storage: BTreeSet<Place>,
    /// Of a hundred requests to storage so many are refused at the moment.
    refused_percent: u32,
    /// Requests to storage take so many times as long at the moment.
    slowness: u32,
    calm: bool,
    trace: Trace,
    broken: Option<String>,
    late: Vec<Late>,
}

struct Late {
    due: Duration,
    request: String,
    land: Box<dyn FnOnce() -> String + Send>,
}

struct Trace {
    hash: DefaultHasher,
    lines: u64,
    last: VecDeque<String>,
    shown: bool,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    pub(crate) fn new(seed: u64, scope: Option<Bug>, bug: Option<Bug>) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let scenario = Scenario::draw(&mut rng, scope);
        let shown = std::env::var_os("ESKER_SIM_TRACE").is_some();
        let trace = Trace { hash: DefaultHasher::new(), lines: 0, last: VecDeque::new(), shown };
        let inner = Inner {
            rng,
            now: Duration::ZERO,
            cuts: BTreeSet::new(),
            off_storage: BTreeSet::new(),
            refused_percent: 0,
            slowness: 1,
            calm: true,
            trace,
            broken: None,
            late: vec![],
        };
        Arc::new(Self { scenario, bug, inner: Mutex::new(inner) })
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The end of the last step. Within one, processes have their own [`ProcessClock`].
    pub(crate) fn now(&self) -> Duration {
        self.inner.lock().now
    }

    pub(crate) fn set_now(&self, now: Duration) {
        self.inner.lock().now = now;
    }

    /// One of `range`.
    pub(crate) fn draw(&self, range: Range<u64>) -> u64 {
        self.inner.lock().rng.random_range(range)
    }

    /// A time of so many milliseconds.
    pub(crate) fn millis(&self, range: Range<u64>) -> Duration {
        // Not whole ones: no two things happen at once by chance.
        Duration::from_micros(self.draw(range.start * 1000..range.end * 1000))
    }

    /// Happens to so many of a thousand.
    pub(crate) fn chance(&self, per_thousand: u32) -> bool {
        self.inner.lock().rng.random_ratio(per_thousand.min(1000), 1000)
    }

    /// Nothing goes wrong from here on, or may again.
    pub(crate) fn set_calm(&self, calm: bool) {
        let mut inner = self.inner.lock();
        inner.calm = calm;
        if calm {
            inner.cuts.clear();
            inner.off_storage.clear();
            (inner.refused_percent, inner.slowness) = (0, 1);
        }
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.inner.lock().calm
    }

    pub(crate) fn cut(&self, from: Place, to: Place, cut: bool) {
        let mut inner = self.inner.lock();
        let _changed = if cut { inner.cuts.insert((from, to)) } else { inner.cuts.remove(&(from, to)) };
    }

    pub(crate) fn is_cut(&self, from: Place, to: Place) -> bool {
        self.inner.lock().cuts.contains(&(from, to))
    }

    pub(crate) fn cut_off_storage(&self, place: Place, cut: bool) {
        let mut inner = self.inner.lock();
        let _changed = if cut { inner.off_storage.insert(place) } else { inner.off_storage.remove(&place) };
    }

    pub(crate) fn is_off_storage(&self, place: Place) -> bool {
        self.inner.lock().off_storage.contains(&place)
    }

    pub(crate) fn refuse(&self, percent: u32) {
        self.inner.lock().refused_percent = percent;
    }

    pub(crate) fn refused_percent(&self) -> u32 {
        self.inner.lock().refused_percent
    }

    pub(crate) fn slow_down(&self, slowness: u32) {
        self.inner.lock().slowness = slowness;
    }

    pub(crate) fn slowness(&self) -> u32 {
        self.inner.lock().slowness
    }

    /// Something has happened.
    pub(crate) fn tell(&self, line: std::fmt::Arguments<'_>) {
        let mut inner = self.inner.lock();
        let mut text = String::new();
        write!(text, "{:.3} {line}", inner.now.as_secs_f64()).unwrap();
        inner.trace.tell(text);
    }

    /// The hash of all that has happened, and how much that was.
    pub(crate) fn trace(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.trace.hash.finish(), inner.trace.lines)
    }

    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.inner.lock().trace.last.iter().cloned().collect()
    }

    /// Something does not hold that must. The first one counts.
    pub(crate) fn break_with(&self, what: String) {
        self.tell(format_args!("BROKEN {what}"));
        self.inner.lock().broken.get_or_insert(what);
    }

    pub(crate) fn broken(&self) -> Option<String> {
        self.inner.lock().broken.clone()
    }

    /// A request that nobody waits for any more arrives all the same.
    pub(crate) fn send_late(&self, after: Duration, request: String, land: Box<dyn FnOnce() -> String + Send>) {
        let mut inner = self.inner.lock();
        let due = inner.now + after;
        inner.late.push(Late { due, request, land });
    }

    /// Has all that is due arrive.
    pub(crate) fn land_late(&self) {
        loop {
            let next = {
                let mut inner = self.inner.lock();
                let now = inner.now;
                let due = inner.late.iter().position(|late| late.due <= now);
                due.map(|index| inner.late.remove(index))
            };
            let Some(Late { request, land, .. }) = next else { return };
            let answer = land();
            self.tell(format_args!("late {request} -> {answer}"));
        }
    }
}

impl Trace {
    fn tell(&mut self, line: String) {
        self.hash.write(line.as_bytes());
        self.lines += 1;
        if self.shown {
            println!("{line}");
        }
        if self.last.len() == LINES_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

/// The clocks of a process, which go by its runtime. Use it where that is entered.
#[derive(Debug, Clone)]
pub(crate) struct ProcessClock {
    /// The time of the world at `begun`.
    started: Duration,
    begun: Instant,
    /// The wall clock is wrong by so much.
    wall_off: i64,
    since_boot: SinceBoot,
}

/// How time since the boot is told.
#[derive(Debug, Clone)]
enum SinceBoot {
    Right,
    /// By a clock that stands still while the process does, for so long so far.
    WithoutStops(Arc<Mutex<Duration>>),
    /// By one that is so many times as fast.
    Fast(u32),
}

impl ProcessClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub(crate) fn new(world: &World, place: Place, started: Duration) -> Self {
        let since_boot = match world.bug {
            Some(Bug::ProofStandsStill) => SinceBoot::WithoutStops(Arc::default()),
            Some(Bug::ServesAtOnce) if place != 0 => SinceBoot::Fast(40),
            _ => SinceBoot::Right,
        };
        let wall_off = world.scenario.wall_off.get(place).copied().unwrap_or_default();
        Self { started, begun: Instant::now(), wall_off, since_boot }
    }

    /// The time of the world.
    pub(crate) fn now(&self) -> Duration {
        self.started + self.begun.elapsed()
    }

    /// The instant of the runtime at that time of the world.
    pub(crate) fn at(&self, now: Duration) -> Instant {
        self.begun + now.saturating_sub(self.started)
    }

    /// The process stood still for so long.
    pub(crate) fn stood_still(&self, time: Duration) {
        if let SinceBoot::WithoutStops(stood) = &self.since_boot {
            *stood.lock() += time;
        }
    }
}

impl MachineClocks for ProcessClock {
    fn wall(&self) -> Millis {
        let millis = BEGINNING + u64::try_from(self.now().as_millis()).unwrap();
        Millis(millis.saturating_add_signed(self.wall_off))
    }

    fn since_boot(&self) -> Duration {
        let up = UP + self.now();
        match &self.since_boot {
            SinceBoot::Right => up,
            SinceBoot::WithoutStops(stood) => up.saturating_sub(*stood.lock()),
            SinceBoot::Fast(times) => up * *times,
        }
    }
}
