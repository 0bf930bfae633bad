//! What there is: storage, requests under way, processes, clients. How it changes stands in `effects.rs`.

use super::bug::Bug;

/// Objects that clients store, each in a physical file of its own.
pub(crate) const ITEMS: usize = 2;
/// Ticks for which a proof counts. The 300 ms of the design.
pub(crate) const LEASE: u8 = 1;
/// Ticks after which a file may be deleted, and half of it, after which the writer of a file has to look whether it still owns the shard.
pub(crate) const GRACE: u8 = 2;
/// Ticks for which a member that was alone at a READ is alone. The 60 s of the design.
pub(crate) const ALONE: u8 = 2;
/// Ages are not told apart from here on.
pub(crate) const OLD: u8 = 3;

/// Which process. A member that is restarted is another process.
pub(crate) type Who = usize;

/// One object of the map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MapObject {
    /// Who wrote it, and which of its writes it was: the `write_id`.
    pub(crate) id: (Who, u8),
    pub(crate) members: Vec<Who>,
    pub(crate) owner: Option<Who>,
    pub(crate) epoch_before: u8,
    /// Whether the owner before gave the shard away by itself.
    pub(crate) handed: bool,
}

/// The manifest's epoch, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Manifest {
    pub(crate) epoch: u8,
    pub(crate) by: (Who, u8),
}

/// What a commit says of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Word {
    Nothing,
    /// There is a file of this name; whether its bytes came has to be looked up.
    Named,
    /// It was there, and a client deleted it.
    Forgotten,
    /// It was never there.
    Dropped,
}

pub(crate) type Words = [Word; ITEMS];

/// One name of the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Slot {
    Empty,
    Fence { epoch: u8 },
    Batch { epoch: u8, words: Words },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FileAt {
    Absent,
    Whole,
    /// A successor took the name, so that the bytes cannot come any more.
    Tombstone,
}

/// A request that changes storage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Request {
    Map { number: usize, object: MapObject },
    Claim { expected: u8, by: (Who, u8) },
    Log { slot: usize, content: Slot },
    File(usize),
    Delete(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Answer {
    Done,
    /// 412: there is something of this name.
    Taken,
    /// 409 ConditionalRequestConflict: nothing was done, and nothing need be there.
    Conflict,
}

/// A request that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) request: Request,
    /// Since it was sent.
    pub(crate) age: u8,
}

impl Call {
    pub(crate) fn new(request: Request) -> Self {
        Self { request, age: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Run {
    Off,
    Up,
    /// Stopped, or cut off from everybody. Its clock goes on.
    Paused,
    Dead,
}

/// A READ of the map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Look {
    pub(crate) age: u8,
    /// Whether it began after the question that waits.
    pub(crate) covers: bool,
    /// The newest number, once storage has told.
    pub(crate) found: Option<usize>,
}

/// A client's read that has its view, and no answer yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) view: [u8; ITEMS],
    /// What had been answered before it was asked.
    pub(crate) floor: [u8; ITEMS],
    pub(crate) proved: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Tenure {
    Idle,
    /// Has read the epoch, and writes the map.
    Claiming {
        epoch: u8,
    },
    /// Opens the shard: first the manifest's epoch, then the fence in the log.
    Opening {
        epoch: u8,
        slot: usize,
        call: Call,
        handed: bool,
    },
    Owner(Owner),
    /// Has closed the shard, and writes the map.
    Leaving {
        epoch: u8,
        to: Who,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) epoch: u8,
    /// The next name of the log.
    pub(crate) slot: usize,
    /// Since the fence.
    pub(crate) age: u8,
    /// A READ after the fence said "still mine".
    pub(crate) confirmed: bool,
    pub(crate) handed: bool,
    pub(crate) items: [Item; ITEMS],
    pub(crate) flush: Option<Call>,
    pub(crate) sweep: Option<Sweep>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sweep {
    pub(crate) unnamed: Vec<usize>,
    pub(crate) checked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Commit {
    Queued,
    Flushing,
    Durable,
}

/// The upload of a file as its writer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Upload {
    Sent { age: u8 },
    Done { checked: bool },
    Refused,
}

/// One item in an owner's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Absent,
    Storing {
        upload: Upload,
        commit: Commit,
    },
    /// Named by the log that was replayed: its file has to be looked up.
    Uncertain,
    Live,
    Going {
        was_live: bool,
        commit: Commit,
    },
    /// Durably so.
    Gone {
        was_live: bool,
        delete: Delete,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Delete {
    Due,
    Checked,
    Sent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) run: Run,
    /// The newest number of the map that it knows of.
    pub(crate) known: usize,
    /// The number whose content it goes by: the same, if all is well.
    pub(crate) read: usize,
    /// The object of the map with which it last opened the shard.
    pub(crate) tried: Option<usize>,
    /// The object of the map that it takes for somebody else's.
    pub(crate) lost_to: Option<usize>,
    pub(crate) write: Option<Call>,
    pub(crate) look: Option<Look>,
    pub(crate) question: Option<Question>,
    /// Age of its proof.
    pub(crate) proof: u8,
    /// Age of its last READ.
    pub(crate) read_age: u8,
    /// The number of its JOIN, and its age.
    pub(crate) joined: usize,
    pub(crate) joined_age: u8,
    pub(crate) tenure: Tenure,
}

/// How far a client has come with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Client {
    Nothing,
    PutAsked,
    PutAnswered,
    DeleteAsked,
    DeleteAnswered,
}

/// How often things may still happen that make a run longer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Take-overs from an owner that is alive.
    pub(crate) suspicions: u8,
    pub(crate) puts: u8,
    pub(crate) deletes: u8,
    pub(crate) reads: u8,
    /// Uploads that are given up.
    pub(crate) give_ups: u8,
    pub(crate) sweeps: u8,
    pub(crate) hand_overs: u8,
    pub(crate) pauses: u8,
    pub(crate) crashes: u8,
    pub(crate) starts: u8,
    /// Requests that are sent again although the first may still arrive, or has.
    pub(crate) time_outs: u8,
    pub(crate) conflicts: u8,
    /// Writes of the map that have nothing to do with the shard.
    pub(crate) other_writes: u8,
    pub(crate) clock_steps: u8,
}

/// What must never happen, and is seen at the step at which it does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) stale_read: bool,
    pub(crate) flush_after_fence: bool,
    pub(crate) map_went_back: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) map: Vec<MapObject>,
    pub(crate) manifest: Manifest,
    pub(crate) log: Vec<Slot>,
    pub(crate) files: [FileAt; ITEMS],
    /// Requests under way that nobody waits for any more: they arrive at any time, or never.
    pub(crate) late: Vec<Request>,
    pub(crate) processes: Vec<Process>,
    pub(crate) clients: [Client; ITEMS],
    /// What has been answered: 0 = nothing, 1 = it is there, 2 = it is gone.
    pub(crate) floor: [u8; ITEMS],
    pub(crate) left: Budget,
    pub(crate) broken: Broken,
}

/// What the log says, read as a successor reads it: a commit behind a later owner's fence does not count.
pub(crate) fn replay(log: &[Slot]) -> Words {
    let (mut words, mut newest) = ([Word::Nothing; ITEMS], 0);
    for slot in log {
        match slot {
            Slot::Empty => {}
            Slot::Fence { epoch } => newest = newest.max(*epoch),
            Slot::Batch { epoch, words: new } if *epoch >= newest => {
                for (word, new) in words.iter_mut().zip(new).filter(|(_, new)| **new != Word::Nothing) {
                    *word = *new;
                }
            }
            Slot::Batch { .. } => {}
        }
    }
    words
}

impl Slot {
    pub(crate) fn epoch(&self) -> Option<u8> {
        match self {
            Self::Empty => None,
            Self::Fence { epoch } | Self::Batch { epoch, .. } => Some(*epoch),
        }
    }
}

impl Item {
    /// 0 = not there, 1 = there, 2 = gone.
    pub(crate) fn level(&self) -> u8 {
        match self {
            Self::Absent | Self::Storing { .. } | Self::Uncertain => 0,
            Self::Live => 1,
            Self::Going { was_live, .. } => u8::from(*was_live),
            Self::Gone { was_live, .. } => 2 * u8::from(*was_live),
        }
    }
}

impl Owner {
    pub(crate) fn view(&self) -> [u8; ITEMS] {
        self.items.map(|item| item.level())
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.items.iter().all(|item| *item != Item::Uncertain)
    }

    /// Whether it takes requests: the owner before cannot answer any more.
    pub(crate) fn serves(&self, bug: Option<Bug>) -> bool {
        let waited = self.handed || self.age > LEASE || bug == Some(Bug::ServesAtOnce);
        self.confirmed && self.is_loaded() && waited
    }
}

impl Process {
    pub(crate) fn new(run: Run, known: usize) -> Self {
        Self {
            run,
            known,
            read: known,
            tried: None,
            lost_to: None,
            write: None,
            look: None,
            question: None,
            proof: OLD,
            read_age: OLD,
            joined: 0,
            joined_age: OLD,
            tenure: Tenure::Idle,
        }
    }

    pub(crate) fn owner(&self) -> Option<&Owner> {
        match &self.tenure {
            Tenure::Owner(owner) => Some(owner),
            _ => None,
        }
    }

    /// The process goes on without the shard.
    pub(crate) fn close(&mut self) {
        self.tenure = Tenure::Idle;
        self.question = None;
        self.proof = OLD;
    }
}
