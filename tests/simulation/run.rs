//! One run: members come up, things go wrong, all is well again, and then everybody has to answer.

use std::sync::Arc;
use std::time::Duration;

use crate::bug::Bug;
use crate::clients::Clients;
use crate::member::Members;
use crate::scenario::{BEGIN, Event, Target};
use crate::world::{Place, World};

/// All go on for so long, one after the other.
const STEP: Duration = Duration::from_millis(5);
/// When clients begin.
const CLIENTS: Duration = Duration::from_millis(1200);
/// After the faults, each member has to answer for each shard within this time: a process that was alone may be waited for for 15 s, an
/// owner that is silent is left alone for up to a minute.
const ANSWERS_WITHIN: Duration = Duration::from_secs(45);
/// What was forgotten is deleted then, and what has no name swept.
const DELETED_AFTER: Duration = Duration::from_secs(4);

/// What came of a run.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// What does not hold that must.
    pub(crate) broken: Option<String>,
    pub(crate) hash: u64,
    pub(crate) lines: u64,
    /// The time that it took, of the simulation.
    pub(crate) simulated: Duration,
    pub(crate) writes: u64,
    pub(crate) reads: u64,
    pub(crate) errors: u64,
    pub(crate) opens: usize,
    pub(crate) last_lines: Vec<String>,
}

/// What ends by itself.
enum Until {
    Cut(Place, Place),
    Isolated(Place),
    OffStorage(Place),
    Storm,
    Slow,
}

struct Run {
    world: Arc<World>,
    members: Members,
    clients: Clients,
    until: Vec<(Duration, Until)>,
}

/// Runs it. What happens is what shows the bug of `scope`.
pub(crate) fn run(seed: u64, scope: Option<Bug>, bug: Option<Bug>) -> Outcome {
    let world = World::new(seed, scope, bug);
    world.tell(format_args!("{:?}", world.scenario));
    let members = Members::new(&world);
    let clients = Clients::new(&world, &members.wires);
    let mut run = Run { world, members, clients, until: vec![] };
    run.go_through();
    let Run { world, clients, members, .. } = &run;
    let (hash, lines) = world.trace();
    let (writes, reads, errors) = clients.histories.counts();
    let opens = members.objects.log.fences();
    let (simulated, last_lines, broken) = (world.now(), world.last_lines(), world.broken());
    Outcome { broken, hash, lines, simulated, writes, reads, errors, opens, last_lines }
}

impl Run {
    fn go_through(&mut self) {
        self.go_on_until(CLIENTS);
        // Their first requests may come before there is anybody.
        self.world.set_calm(false);
        self.clients.begin();
        self.go_on_until(BEGIN);
        for (at, event) in self.world.scenario.events.clone() {
            self.go_on_until(at);
            self.happens(event);
        }
        self.go_on_until(self.world.scenario.end);
        self.until.clear();
        self.world.set_calm(true);
        self.members.all_go_on();
        let calm = self.world.now();
        self.clients.begin_probes();
        while !self.clients.are_done() && self.world.broken().is_none() {
            if self.world.now() > calm + ANSWERS_WITHIN {
                self.world.break_with(format!("after {ANSWERS_WITHIN:?} not every member answers for every shard"));
                return;
            }
            self.go_on();
        }
        self.go_on_until(self.world.now() + DELETED_AFTER);
        self.clients.begin_last_reads();
        let begun = self.world.now();
        while !self.clients.are_done() && self.world.broken().is_none() {
            if self.world.now() > begun + ANSWERS_WITHIN {
                self.world.break_with("not everything can be read".to_owned());
                return;
            }
            self.go_on();
        }
    }

    fn go_on_until(&mut self, then: Duration) {
        while self.world.now() < then && self.world.broken().is_none() {
            self.go_on();
        }
    }

    fn go_on(&mut self) {
        let then = self.world.now() + STEP;
        self.world.land_late();
        self.end_what_is_over();
        self.members.run_until(then);
        self.clients.run_until(then);
        self.world.set_now(then);
    }

    fn end_what_is_over(&mut self) {
        let now = self.world.now();
        let all = std::mem::take(&mut self.until);
        for (at, until) in all {
            if at > now {
                self.until.push((at, until));
                continue;
            }
            match until {
                Until::Cut(from, to) => self.world.cut(from, to, false),
                Until::Isolated(place) => self.isolate(place, false),
                Until::OffStorage(place) => self.world.cut_off_storage(place, false),
                Until::Storm => self.world.refuse(0),
                Until::Slow => self.world.slow_down(1),
            }
        }
    }

    fn isolate(&self, place: Place, cut: bool) {
        for other in (0..self.world.scenario.members).filter(|other| *other != place) {
            self.world.cut(place, other, cut);
            self.world.cut(other, place, cut);
        }
    }

    fn place(&self, target: Target) -> Place {
        match target {
            Target::Owner(shard) => self.members.owner(shard).unwrap_or_default(),
            Target::Member(place) => place,
        }
    }

    fn happens(&mut self, event: Event) {
        self.world.tell(format_args!("{event:?}"));
        let now = self.world.now();
        match event {
            Event::Kill(target, again) => self.members.kill(self.place(target), again),
            Event::Stop(target, time) => self.members.stop(self.place(target), time),
            Event::Restart(target) => self.members.end(self.place(target)),
            Event::Drain(target) => self.clients.drain(self.place(target)),
            Event::Cut(from, to, time) => {
                let from = self.place(from);
                self.world.cut(from, to, true);
                self.until.push((now + time, Until::Cut(from, to)));
            }
            Event::Isolate(target, time) => {
                let place = self.place(target);
                self.isolate(place, true);
                self.until.push((now + time, Until::Isolated(place)));
            }
            Event::OffStorage(target, time) => {
                let place = self.place(target);
                self.world.cut_off_storage(place, true);
                self.until.push((now + time, Until::OffStorage(place)));
            }
            Event::Storm(percent, time) => {
                self.world.refuse(percent);
                self.until.push((now + time, Until::Storm));
            }
            Event::Slow(times, time) => {
                self.world.slow_down(times);
                self.until.push((now + time, Until::Slow));
            }
        }
    }
}
