//! What a seed decides before anything happens: how many members and shards, how fast storage and network are, what goes wrong when.

use std::ops::Range;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::bug::Bug;
use crate::world::Place;

/// Members have come up before anything goes wrong.
pub(crate) const BEGIN: Duration = Duration::from_millis(1500);
/// For so long things go wrong, if it is not said otherwise.
const SECONDS: u64 = 7;

/// Whom something happens to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Whoever has this shard, as the map says.
    Owner(u32),
    Member(Place),
}

/// What happens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// Killed, and started again after so long.
    Kill(Target, Duration),
    /// Stopped, and continued after so long.
    Stop(Target, Duration),
    /// Ended in order, and started again.
    Restart(Target),
    /// Told to give its shards away.
    Drain(Target),
    /// The one hears nothing of the other for so long.
    Cut(Target, Place, Duration),
    /// Nobody of the others hears anything of it, or it of them.
    Isolate(Target, Duration),
    /// Does not reach storage for so long.
    OffStorage(Target, Duration),
    /// Storage refuses so many percent of what it is asked, for so long.
    Storm(u32, Duration),
    /// Storage takes so many times as long.
    Slow(u32, Duration),
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) about: About,
    pub(crate) members: usize,
    pub(crate) shards: u32,
    /// Milliseconds for half of a request to storage.
    pub(crate) storage: Range<u64>,
    /// The same for bytes of clients.
    pub(crate) uploads: Range<u64>,
    /// Milliseconds from one machine to another.
    pub(crate) network: Range<u64>,
    /// Of a thousand requests to storage so many fail in each way.
    pub(crate) odd: u32,
    /// Segments are stored in files, however small they are.
    pub(crate) files: bool,
    pub(crate) readers: u64,
    /// Of a thousand reads so many go to the first member, which is the owner at first, and of a thousand writes.
    pub(crate) at_first: (u32, u32),
    /// What was sent into a cut arrives piece by piece.
    pub(crate) trickles: bool,
    /// All members are on one machine.
    pub(crate) one_machine: bool,
    /// Milliseconds by which wall clocks are wrong.
    pub(crate) wall_off: Vec<i64>,
    pub(crate) events: Vec<(Duration, Event)>,
    /// From here on nothing goes wrong any more.
    pub(crate) end: Duration,
}

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// Everything.
    All,
    /// Processes that are killed.
    Killed,
    /// Owners that stand still.
    Stopped,
    /// Owners that the others do not reach, but clients and storage do.
    Silent,
    /// An owner that hears nothing of the others for a while, of one of them for longer: by then it has the shard again.
    Unheard,
}

impl Scenario {
    pub(crate) fn draw(rng: &mut StdRng, scope: Option<Bug>) -> Self {
        let any = [About::All, About::All, About::Killed, About::Stopped, About::Silent][rng.random_range(0..5)];
        let about = scope.map_or(any, Bug::shows_in);
        let narrow = scope.is_some_and(|bug| matches!(bug.shows_in(), About::Silent | About::Unheard));
        let members = match about {
            About::Unheard => 3,
            _ if narrow => 2,
            _ => rng.random_range(3..=5),
        };
        let shards = if narrow || rng.random_bool(0.5) { 1 } else { rng.random_range(2..=3) };
        let storage = match rng.random_range(0..4) {
            _ if narrow => 0..1,
            0 | 1 => 1..4,
            2 => 2..12,
            _ => 10..30,
        };
        let uploads = if rng.random_bool(0.4) { 10..200 } else { storage.clone() };
        let network = if narrow || rng.random_bool(0.7) { 1..3 } else { 2..20 };
        let odd = if narrow { 0 } else { [0, 3, 10][rng.random_range(0..3)] };
        let files = rng.random_bool(0.6) || scope == Some(Bug::HeadWithoutTombstone);
        let wrong = rng.random_bool(0.3);
        let wall_off = (0..members).map(|_| if wrong { rng.random_range(-3_600_000..3_600_000) } else { 0 }).collect();
        let seconds = crate::number("ESKER_SIM_SECONDS").unwrap_or(SECONDS);
        let mut scenario = Self {
            about,
            members,
            shards,
            storage,
            uploads,
            network,
            odd,
            files,
            readers: if narrow { 5 } else { 2 },
            at_first: if narrow { (700, 100) } else { (0, 0) },
            trickles: about == About::Unheard,
            one_machine: rng.random_bool(0.75),
            wall_off,
            events: vec![],
            end: BEGIN + Duration::from_secs(seconds),
        };
        if about == About::Unheard {
            scenario.goes_unheard(rng);
            return scenario;
        }
        // One that is only silent is left alone for 5 s after it came.
        let patient = matches!(about, About::Silent | About::Stopped);
        let mut at = if patient { BEGIN + millis(rng, 3000..4500) } else { BEGIN };
        while at < scenario.end {
            let event = scenario.event(rng);
            scenario.events.push((at, event));
            at += if patient { millis(rng, 2500..6000) } else { millis(rng, 300..2200) };
        }
        scenario
    }

    /// The first member has the shard, loses it, and comes to it again, while what one of the others had passed on to it is under way.
    fn goes_unheard(&mut self, rng: &mut StdRng) {
        let (sender, other) = if rng.random_bool(0.5) { (1, 2) } else { (2, 1) };
        let at = BEGIN + millis(rng, 3000..4500);
        let cut = |from, time| Event::Cut(Target::Member(from), 0, time);
        let killed_at = at + millis(rng, 3000..5000);
        let end = killed_at + millis(rng, 2000..4000);
        self.events.push((at, cut(sender, end - at)));
        self.events.push((at, cut(other, millis(rng, 1500..3000))));
        self.events.push((killed_at, Event::Kill(Target::Owner(0), millis(rng, 4000..6000))));
        self.end = end + Duration::from_secs(3);
    }

    fn event(&self, rng: &mut StdRng) -> Event {
        let owner = Target::Owner(rng.random_range(0..self.shards));
        let target = if rng.random_bool(0.7) { owner } else { Target::Member(rng.random_range(0..self.members)) };
        let kind = match self.about {
            About::All => rng.random_range(0..20),
            About::Killed => rng.random_range(0..7),
            About::Stopped if rng.random_bool(0.2) => rng.random_range(10..13),
            About::Stopped => return Event::Stop(owner, millis(rng, 1500..6000)),
            About::Silent => return Event::Isolate(owner, millis(rng, 2500..6000)),
            About::Unheard => unreachable!("its events are not drawn"),
        };
        match kind {
            0..5 => Event::Kill(target, millis(rng, 100..4000)),
            5..10 => Event::Stop(target, millis(rng, 200..6000)),
            10 => Event::Restart(target),
            11..13 => Event::Drain(target),
            13 => Event::Cut(target, rng.random_range(0..self.members), millis(rng, 500..6000)),
            14..17 => Event::Isolate(target, millis(rng, 1000..7000)),
            17 => Event::OffStorage(target, millis(rng, 300..5000)),
            18 => Event::Storm(rng.random_range(10..70), millis(rng, 300..2000)),
            _ => Event::Slow(rng.random_range(3..20), millis(rng, 300..2000)),
        }
    }
}

fn millis(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}
