//! What there is, what may happen, and what must hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stateright::{Model, Property};

use crate::world::{LEASE, Who};

pub(super) const SHARDS: usize = 2;
/// Ages are not told apart from here on.
pub(super) const OLD: u8 = LEASE + 1;

/// One rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Bug {
    /// A map whose number was taken is written under the next one as it is.
    StaleMapRewritten,
    /// All edits of a member that go into one map are told that they are in it.
    EditsToldTogether,
    /// A commit in the log of one shard counts as a proof for all shards of a member.
    ProofOfOtherShard,
    /// A READ that ended for one shard counts for all shards of a member, whatever it said of them.
    ReadOfOtherShard,
    /// A member gives a shard to one that has one less.
    BalanceByOne,
}

/// Things that have to happen somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    TakeOver,
    HandOver,
    /// Two edits of one member are in one map.
    Together,
    /// A map whose number was taken is decided anew.
    DecidedAnew,
    ShutOut,
    Read,
}

pub(super) const SEEN: usize = Seen::Read as usize + 1;

/// Who has a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) owner: Who,
    pub(super) epoch_before: u8,
    pub(super) handed: bool,
}

pub(super) type Map = [Entry; SHARDS];

/// What a member wants to change in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Edit {
    Take { shard: usize, decided_on: Entry, epoch: u8 },
    Give { shard: usize, epoch: u8, to: Who },
}

/// A map under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Write {
    pub(super) number: usize,
    pub(super) map: Map,
    /// The edits that were to go into it, and whether each is in it.
    pub(super) edits: Vec<(Edit, bool)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Tenure {
    Idle,
    /// Its edit is not in a map yet.
    Wants,
    Opens {
        epoch: u8,
        handed: bool,
    },
    Owner(Owner),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) epoch: u8,
    pub(super) age: u8,
    pub(super) confirmed: bool,
    pub(super) handed: bool,
    pub(super) version: u8,
    pub(super) proof: u8,
    /// A read that waits: what had been answered before it was asked, and what it saw.
    pub(super) question: Option<(u8, u8)>,
    pub(super) proved: bool,
}

/// A READ for one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Look {
    pub(super) shard: usize,
    pub(super) age: u8,
    pub(super) covers: bool,
    pub(super) found: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Run {
    Up,
    Paused,
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Member {
    pub(super) run: Run,
    pub(super) known: usize,
    pub(super) waiting: Vec<Edit>,
    pub(super) write: Option<Write>,
    pub(super) look: Option<Look>,
    pub(super) shards: [Tenure; SHARDS],
}

/// What storage has of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub(super) epoch: u8,
    /// Of what was committed, and answered at once.
    pub(super) version: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Left {
    pub(super) suspicions: u8,
    pub(super) puts: u8,
    pub(super) reads: u8,
    pub(super) pauses: u8,
    pub(super) crashes: u8,
    /// Moves for balance.
    pub(super) moves: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) maps: Vec<Map>,
    pub(super) stored: [Stored; SHARDS],
    pub(super) members: Vec<Member>,
    pub(super) left: Left,
    /// Take-overs and moves so far.
    pub(super) taken: u8,
    pub(super) moved: u8,
    pub(super) broken: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Tick,
    /// Hears of the last map.
    Learn(Who),
    Suspect(Who, usize),
    Again(Who, usize),
    OpenHanded(Who, usize),
    WriteMap(Who),
    Arrives(Who),
    Open(Who, usize),
    Look(Who, usize),
    LookTold(Who),
    LookEnds(Who),
    Commit(Who, usize),
    AskRead(Who, usize),
    AnswerRead(Who, usize),
    Balance(Who),
    Pause(Who),
    Resume(Who),
    Crash(Who),
}

/// Two shards, which the members own as said, and room for what may happen.
#[derive(Debug, Clone)]
pub(super) struct Shards {
    pub(super) bug: Option<Bug>,
    pub(super) members: usize,
    pub(super) owners: [Who; SHARDS],
    pub(super) left: Left,
    pub(super) expected: &'static [Seen],
    pub(super) seen: Arc<[AtomicBool; SEEN]>,
}

impl Shards {
    pub(super) fn new(members: usize, owners: [Who; SHARDS], left: Left, expected: &'static [Seen]) -> Self {
        Self { bug: None, members, owners, left, expected, seen: Arc::default() }
    }

    pub(super) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(super) fn see(&self, seen: Seen) {
        self.seen[seen as usize].store(true, Ordering::Relaxed);
    }

    pub(super) fn belief<'a>(&self, world: &'a World, who: Who) -> &'a Map {
        &world.maps[world.members[who].known]
    }

    pub(super) fn serves(owner: &Owner) -> bool {
        owner.confirmed && (owner.handed || owner.age > LEASE)
    }

    /// The map with these edits, and which of them are in it.
    pub(super) fn edited(&self, map: &Map, edits: &[Edit], who: Who) -> (Map, Vec<(Edit, bool)>) {
        let (mut map, mut told) = (*map, vec![]);
        for edit in edits {
            let (shard, made) = match *edit {
                Edit::Take { shard, decided_on, epoch } => {
                    let as_before = map[shard] == decided_on;
                    (shard, as_before.then_some(Entry { owner: who, epoch_before: epoch, handed: false }))
                }
                Edit::Give { shard, epoch, to } => {
                    let mine = map[shard].owner == who && map[shard].epoch_before + 1 == epoch;
                    (shard, mine.then_some(Entry { owner: to, epoch_before: epoch, handed: true }))
                }
            };
            told.push((*edit, made.is_some()));
            map[shard] = made.unwrap_or(map[shard]);
        }
        if self.has(Bug::EditsToldTogether) && told.iter().any(|(_, made)| *made) {
            told.iter_mut().for_each(|(_, made)| *made = true);
        }
        (map, told)
    }

    pub(super) fn member_steps(&self, world: &World, who: Who, steps: &mut Vec<Step>) {
        let (member, belief) = (&world.members[who], self.belief(world, who));
        for (shard, entry) in belief.iter().enumerate() {
            match &member.shards[shard] {
                Tenure::Idle => {
                    let gone = entry.owner != who && world.members[entry.owner].run == Run::Dead;
                    if gone || entry.owner != who && world.left.suspicions > 0 {
                        steps.push(Step::Suspect(who, shard));
                    } else if entry.owner == who && entry.handed && world.stored[shard].epoch == entry.epoch_before {
                        steps.push(Step::OpenHanded(who, shard));
                    } else if entry.owner == who {
                        steps.push(Step::Again(who, shard));
                    }
                }
                Tenure::Wants => {}
                Tenure::Opens { .. } => steps.push(Step::Open(who, shard)),
                Tenure::Owner(owner) => {
                    if member.look.is_none() {
                        steps.push(Step::Look(who, shard));
                    }
                    if Self::serves(owner) && world.left.puts > 0 {
                        steps.push(Step::Commit(who, shard));
                    }
                    if Self::serves(owner) && owner.question.is_none() && world.left.reads > 0 {
                        steps.push(Step::AskRead(who, shard));
                    }
                    if owner.question.is_some() && (owner.proved || owner.proof <= LEASE) {
                        steps.push(Step::AnswerRead(who, shard));
                    }
                }
            }
        }
        if member.write.is_none() && !member.waiting.is_empty() {
            steps.push(Step::WriteMap(who));
        }
        if member.write.is_none() && member.known + 1 < world.maps.len() {
            steps.push(Step::Learn(who));
        }
        if member.look.is_some_and(|look| look.found.is_some()) {
            steps.push(Step::LookEnds(who));
        }
        if world.left.moves > 0 && self.to_give(world, who).is_some() {
            steps.push(Step::Balance(who));
        }
        if world.left.pauses > 0 {
            steps.push(Step::Pause(who));
        }
        if world.left.crashes > 0 {
            steps.push(Step::Crash(who));
        }
    }

    /// The shard that a member gives away to spread them, and to whom: by the map that it knows, while all of them are served.
    pub(super) fn to_give(&self, world: &World, who: Who) -> Option<(usize, Who)> {
        let (member, belief) = (&world.members[who], self.belief(world, who));
        let count = |id: Who| belief.iter().filter(|entry| entry.owner == id).count();
        let up = (0..self.members).filter(|other| *other != who && world.members[*other].run == Run::Up);
        let to = up.min_by_key(|other| (count(*other), *other))?;
        let more = if self.has(Bug::BalanceByOne) { 1 } else { 2 };
        let served = |shard: usize| {
            let serving =
                |member: &Member| matches!(&member.shards[shard], Tenure::Owner(owner) if Self::serves(owner));
            world.members.iter().any(serving)
        };
        let mine = |shard: &usize| {
            let serving = matches!(&member.shards[*shard], Tenure::Owner(owner) if Self::serves(owner) && owner.question.is_none());
            serving && belief[*shard].owner == who
        };
        let free = member.write.is_none() && member.waiting.is_empty();
        let shard = (0..SHARDS).find(mine)?;
        (free && count(who) >= count(to) + more && (0..SHARDS).all(served)).then_some((shard, to))
    }
}

pub(super) fn entry(owner: Who) -> Entry {
    Entry { owner, epoch_before: 0, handed: false }
}

pub(super) fn owners(member: &mut Member) -> impl Iterator<Item = &mut Owner> {
    member.shards.iter_mut().filter_map(|tenure| match tenure {
        Tenure::Owner(owner) => Some(owner),
        Tenure::Idle | Tenure::Wants | Tenure::Opens { .. } => None,
    })
}

pub(super) const STALE: &str = "no read is older than an answer";
pub(super) const LOST: &str = "a map changes no shard but those that its writer decided on";
pub(super) const UNGIVEN: &str = "nobody opens a shard that no map gave to it";
pub(super) const ONE: &str = "of a shard one member at most answers from memory";
pub(super) const CARED: &str = "a shard is always somebody's business";
pub(super) const ENDS: &str = "balance comes to an end";

impl Model for Shards {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let owner = Owner {
            epoch: 1,
            age: OLD,
            confirmed: true,
            handed: false,
            version: 0,
            proof: OLD,
            question: None,
            proved: false,
        };
        let of = |who: Who, shard: usize| {
            if self.owners[shard] == who { Tenure::Owner(owner) } else { Tenure::Idle }
        };
        let member = |who| Member {
            run: Run::Up,
            known: 0,
            waiting: vec![],
            write: None,
            look: None,
            shards: [of(who, 0), of(who, 1)],
        };
        vec![World {
            maps: vec![self.owners.map(entry)],
            stored: [Stored { epoch: 1, version: 0 }; SHARDS],
            members: (0..self.members).map(member).collect(),
            left: self.left,
            taken: 0,
            moved: 0,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        steps.push(Step::Tick);
        for (who, member) in world.members.iter().enumerate() {
            if member.write.is_some() {
                steps.push(Step::Arrives(who));
            }
            if member.look.is_some_and(|look| look.found.is_none()) {
                steps.push(Step::LookTold(who));
            }
            match member.run {
                Run::Up => self.member_steps(world, who, steps),
                Run::Paused => steps.push(Step::Resume(who)),
                Run::Dead => {}
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, step);
        // Maps that nobody goes by, and ages that nobody asks for.
        let known: Vec<usize> = next.members.iter().map(|member| member.known).collect();
        let last = next.maps.len() - 1;
        for (_, map) in next.maps.iter_mut().enumerate().filter(|(number, _)| *number < last && !known.contains(number))
        {
            *map = self.owners.map(entry);
        }
        let reads = next.left.reads > 0;
        for member in &mut next.members {
            let asked = reads || owners(member).any(|owner| owner.question.is_some());
            if !asked && let Some(look) = &mut member.look {
                look.age = OLD;
            }
            for owner in owners(member) {
                if !reads && owner.question.is_none() || owner.proof > LEASE {
                    owner.proof = OLD;
                }
                if owner.handed {
                    owner.age = OLD;
                }
            }
        }
        if self.left.moves == 0 {
            next.taken = 0;
        }
        (next != *world).then_some(next)
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.maps.len() <= 5 && world.stored.iter().all(|stored| stored.epoch <= 4)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(STALE, |_, world: &World| world.broken != Some(STALE)),
            Property::always(LOST, |_, world: &World| world.broken != Some(LOST)),
            Property::always(UNGIVEN, |_, world: &World| world.broken != Some(UNGIVEN)),
            Property::always(ONE, |_, world: &World| {
                let answers = |member: &&Member, shard: usize| matches!(&member.shards[shard], Tenure::Owner(owner) if Self::serves(owner) && owner.proof <= LEASE);
                (0..SHARDS).all(|shard| world.members.iter().filter(|member| answers(member, shard)).count() <= 1)
            }),
            Property::always(CARED, |shards: &Self, world: &World| {
                let up = || world.members.iter().filter(|member| member.run == Run::Up);
                let busy = up().any(|member| member.write.is_some() || member.known + 1 < world.maps.len());
                let cares = |shard: usize| {
                    let owner = world.maps[world.maps.len() - 1][shard].owner;
                    let gone = world.members[owner].run != Run::Up;
                    let has = |member: &Member| member.shards[shard] != Tenure::Idle;
                    gone || up().any(has) || shards.belief(world, owner)[shard].owner == owner
                };
                busy || (0..SHARDS).all(cares)
            }),
            Property::always(ENDS, |_, world: &World| world.moved <= 1 + world.taken),
        ]
    }
}
