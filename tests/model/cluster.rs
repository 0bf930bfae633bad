//! The cluster as a model: who is there, what may happen, and what must hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stateright::{Model, Property};

use super::bug::Bug;
use super::steps::Step;
use super::world::{
    ALONE, Broken, Budget, Client, FileAt, Item, LEASE, Manifest, MapObject, OLD, Owner, Process, Run, Slot, Tenure,
    Who, Word, World, replay,
};

/// Things that have to happen somewhere, so that what always holds says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    TakeOver,
    HandOver,
    ShutOut,
    LateRequest,
    ReadByProof,
    ReadByLook,
    ReadAlone,
    LostAnswer,
    Conflict,
    Tombstone,
    SlowPut,
    Swept,
    Deleted,
    FencedAtOpen,
    Restart,
}

const SEEN: usize = Seen::Restart as usize + 1;

/// A cluster with one shard, which the first process owns, and room for what may happen.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) bug: Option<Bug>,
    /// The member that each process is an incarnation of.
    pub(crate) member_of: Vec<u8>,
    /// So many of them are members at the beginning.
    pub(crate) members: usize,
    pub(crate) budget: Budget,
    /// Objects of the map, and epochs, beyond which it is not looked.
    pub(crate) map_max: usize,
    pub(crate) epoch_max: u8,
    pub(crate) expected: &'static [Seen],
    seen: Arc<[AtomicBool; SEEN]>,
}

impl Cluster {
    pub(crate) fn new(member_of: &[u8], members: usize, budget: Budget, expected: &'static [Seen]) -> Self {
        let (member_of, seen) = (member_of.to_vec(), Arc::default());
        Self { bug: None, member_of, members, budget, map_max: 4, epoch_max: 4, expected, seen }
    }

    pub(crate) fn with(mut self, bug: Bug) -> Self {
        (self.bug, self.seen) = (Some(bug), Arc::default());
        self
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn see(&self, seen: Seen) {
        self.seen[seen as usize].store(true, Ordering::Relaxed);
    }

    pub(crate) fn saw(&self, seen: Seen) -> bool {
        self.seen[seen as usize].load(Ordering::Relaxed)
    }

    /// Whether members can be alone: only then is the age of a READ worth knowing.
    pub(crate) fn begins_alone(&self) -> bool {
        self.members == 1
    }

    /// The map as a process knows it.
    pub(crate) fn belief<'a>(&self, world: &'a World, who: Who) -> &'a MapObject {
        &world.map[world.processes[who].read]
    }

    pub(crate) fn is_same(&self, one: Who, other: Who) -> bool {
        one == other || self.has(Bug::IncarnationIgnored) && self.member_of[one] == self.member_of[other]
    }

    pub(crate) fn believes_mine(&self, world: &World, who: Who) -> bool {
        self.belief(world, who).owner.is_some_and(|owner| self.is_same(owner, who))
    }

    /// Whether the map still speaks of the time for which a process has the shard open. Its name alone does not tell: the shard
    /// may have been another one's meanwhile, and given back.
    pub(crate) fn believes_still_mine(&self, world: &World, who: Who) -> bool {
        let epoch_before = match &world.processes[who].tenure {
            Tenure::Owner(owner) => Some(owner.epoch - 1),
            Tenure::Opening { epoch, .. } => Some(*epoch),
            Tenure::Idle | Tenure::Claiming { .. } | Tenure::Leaving { .. } => None,
        };
        let ignored = self.has(Bug::EpochIgnored) || self.has(Bug::IncarnationIgnored);
        let same = epoch_before.is_none_or(|epoch| epoch == self.belief(world, who).epoch_before);
        self.believes_mine(world, who) && (same || ignored)
    }

    pub(crate) fn believes_member(&self, world: &World, who: Who) -> bool {
        self.belief(world, who).members.iter().any(|member| self.is_same(*member, who))
    }

    /// Whether a process may answer from its view because it was the only member a while ago.
    pub(crate) fn is_alone(&self, world: &World, who: Who) -> bool {
        let fresh = world.processes[who].read_age <= ALONE || self.has(Bug::AloneForEver);
        self.belief(world, who).members == [who] && fresh
    }

    /// Whether a process is no member yet. One whose member has a newer incarnation never will be.
    pub(crate) fn joins(&self, world: &World, who: Who) -> bool {
        let same = |member: &Who| self.member_of[*member] == self.member_of[who] && *member > who;
        let members = &self.belief(world, who).members;
        !members.contains(&who) && !members.iter().any(same)
    }

    /// Whether nobody but `who` would bring the shard back, by what `who` knows: it says nothing of suspicions.
    pub(crate) fn is_needed(&self, world: &World, who: Who) -> bool {
        let process = &world.processes[who];
        if !self.believes_member(world, who) || process.lost_to == Some(process.known) {
            return false;
        }
        match self.belief(world, who).owner {
            None => true,
            Some(owner) => self.is_same(owner, who) || world.processes[owner].run != Run::Up,
        }
    }

    /// Whether a process that joined later may take something from one that was alone: that one knows of it, or is known to be
    /// dead, or has not read the map for so long that it does not take itself for the only one any more.
    pub(crate) fn may_take(&self, world: &World, who: Who) -> bool {
        let process = &world.processes[who];
        let knows = |other: Who| {
            let ended = matches!(world.processes[other].run, Run::Off | Run::Dead);
            let restarted = self.member_of[other] == self.member_of[who] && self.has(Bug::RestartDoesNotWait);
            other == who || ended || restarted || world.processes[other].known >= process.joined
        };
        let known = (0..world.processes.len()).all(knows);
        process.joined == 0 || known || process.joined_age > ALONE || self.has(Bug::JoinerDoesNotWait)
    }

    /// The owner whose fence is the newest, once it has loaded.
    fn newest<'a>(&self, world: &'a World) -> Option<&'a Owner> {
        let newest = world.log.iter().filter_map(Slot::epoch).max();
        let mut owners = world.processes.iter().filter_map(Process::owner);
        owners.find(|owner| Some(owner.epoch) == newest && owner.is_loaded())
    }

    fn answered_is_readable(&self, world: &World) -> bool {
        let (words, newest) = (replay(&world.log), self.newest(world));
        (0..world.clients.len()).all(|item| {
            let held = newest.map(|newest| newest.items[item]);
            match world.clients[item] {
                Client::PutAnswered => words[item] == Word::Named && held.is_none_or(|held| held == Item::Live),
                Client::DeleteAnswered => {
                    let gone = |held| matches!(held, Item::Gone { was_live: true, .. });
                    words[item] == Word::Forgotten && held.is_none_or(gone)
                }
                _ => true,
            }
        })
    }

    fn living_files_are_there(&self, world: &World) -> bool {
        let newest = self.newest(world);
        (0..world.clients.len()).all(|item| {
            let living = world.clients[item] == Client::PutAnswered
                || newest.is_some_and(|newest| newest.items[item] == Item::Live);
            !living || world.files[item] == FileAt::Whole
        })
    }

    fn log_is_one_sequence(&self, world: &World) -> bool {
        world.log.iter().filter_map(Slot::epoch).is_sorted()
    }

    fn one_answers_from_memory(&self, world: &World) -> bool {
        let may = |who: &Who| {
            let process = &world.processes[*who];
            let proved = process.proof <= LEASE || self.is_alone(world, *who);
            proved && process.owner().is_some_and(|owner| owner.serves(self.bug))
        };
        (0..world.processes.len()).filter(may).count() <= 1
    }

    /// That a shard which nobody has open, and nobody is opening, is still somebody's business.
    fn somebody_cares(&self, world: &World) -> bool {
        // A process whose member was restarted has nothing to do here any more.
        let replaced = |who: Who| !self.believes_member(world, who) && !self.joins(world, who);
        let up = || (0..world.processes.len()).filter(|who| world.processes[*who].run == Run::Up && !replaced(*who));
        let rests = |who: Who| {
            let process = &world.processes[who];
            let idle = process.tenure == Tenure::Idle && process.write.is_none() && process.look.is_none();
            let knows = process.known + 1 >= world.map.len();
            idle && knows && !self.is_needed(world, who) && !self.joins(world, who)
        };
        up().next().is_none() || !up().all(rests)
    }
}

fn saw<const SEEN: usize>(cluster: &Cluster, _: &World) -> bool {
    cluster.seen[SEEN].load(Ordering::Relaxed)
}

impl Seen {
    fn property(self) -> Property<Cluster> {
        macro_rules! sometimes {
            ($($seen:ident $name:literal),*) => {
                match self {
                    $(Self::$seen => Property::sometimes($name, saw::<{ Self::$seen as usize }>),)*
                }
            };
        }
        sometimes!(
            TakeOver "a take-over completes",
            HandOver "a hand-over completes",
            ShutOut "an owner that was shut out is refused",
            LateRequest "a request arrives late and takes effect",
            ReadByProof "a read is answered by a proof",
            ReadByLook "a read is answered by a READ of the map",
            ReadAlone "a read is answered by the only member",
            LostAnswer "a lost answer is recognised",
            Conflict "a 409 is repeated",
            Tombstone "a tombstone keeps an upload out",
            SlowPut "a slow upload is refused by a look at the owner",
            Swept "an unnamed file is swept",
            Deleted "a forgotten file is deleted",
            FencedAtOpen "an open is refused by the epoch",
            Restart "a new incarnation serves"
        )
    }
}

pub(crate) const ALWAYS: [&str; 8] = [
    "what was answered can be read",
    "no living file is deleted",
    "no flush takes effect after a fence",
    "the log is one sequence of commits",
    "no read is older than an answer",
    "one member at most answers from memory",
    "the map never goes back",
    "a shard is always somebody's business",
];

impl Model for Cluster {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let members = (0..self.members).collect();
        let first = MapObject { id: (0, 0), members, owner: Some(0), epoch_before: 0, handed: false };
        let run = |who: Who| if who < self.members { Run::Up } else { Run::Off };
        let mut processes: Vec<Process> = (0..self.member_of.len()).map(|who| Process::new(run(who), 0)).collect();
        processes[0].tenure = Tenure::Owner(Owner {
            epoch: 1,
            slot: 1,
            age: OLD.min(LEASE + 1),
            confirmed: true,
            handed: false,
            items: [Item::Absent; 2],
            flush: None,
            sweep: None,
        });
        processes[0].read_age = if self.begins_alone() { 0 } else { OLD };
        vec![World {
            map: vec![first],
            manifest: Manifest { epoch: 1, by: (0, 0) },
            log: vec![Slot::Fence { epoch: 1 }],
            files: [FileAt::Absent; 2],
            late: vec![],
            processes,
            clients: [Client::Nothing; 2],
            floor: [0; 2],
            left: self.budget,
            broken: Broken::default(),
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.steps(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, step);
        self.settle(&mut next);
        (next != *world).then_some(next)
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.map.len() <= self.map_max && world.manifest.epoch <= self.epoch_max
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let [answered, living, fenced, sequence, read, one, map, cared] = ALWAYS;
        let always = [
            Property::always(answered, Self::answered_is_readable),
            Property::always(living, Self::living_files_are_there),
            Property::always(fenced, |_, world: &World| !world.broken.flush_after_fence),
            Property::always(sequence, Self::log_is_one_sequence),
            Property::always(read, |_, world: &World| !world.broken.stale_read),
            Property::always(one, Self::one_answers_from_memory),
            Property::always(map, |_, world: &World| !world.broken.map_went_back),
            Property::always(cared, Self::somebody_cares),
        ];
        always.into_iter().chain(self.expected.iter().map(|seen| seen.property())).collect()
    }
}
