//! What may happen next.
//!
//! A request is sent in one step and takes effect in a later one, and between them anything else may happen. Its answer comes with
//! its effect: whoever gets it later only does later what it founds on it, which it may do anyway. So a process that is slow, or
//! stopped, needs no step of its own. A READ by an owner is another matter, because its proof has an age: there the answer has a step.

use super::bug::Bug;
use super::cluster::Cluster;
use super::world::{
    Call, Client, Commit, Delete, FileAt, GRACE, ITEMS, Item, LEASE, Owner, Process, Request, Run, Slot, Tenure,
    Upload, Who, Word, World,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wait {
    Map,
    Open,
    Flush,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Tick,
    /// A request that nobody waits for takes effect.
    Late(usize),
    // Requests that are waited for.
    Arrives(Who, Wait),
    TimesOut(Who, Wait),
    Conflicts(Who, Wait),
    // The map.
    Look(Who),
    LookTold(Who),
    LookEnds(Who),
    Join(Who),
    WriteOther(Who),
    ReadEpoch(Who),
    WriteMap(Who),
    OpenHanded(Who),
    HandOver(Who, Who),
    // The owner.
    LookUp(Who, usize),
    Flush(Who),
    UploadArrives(Who, usize),
    CheckPut(Who, usize),
    GiveUp(Who, usize),
    CheckDelete(Who, usize),
    Delete(Who, usize),
    List(Who),
    CheckSweep(Who),
    Sweep(Who),
    CollectFence(Who),
    // Clients.
    AskPut(Who, usize),
    AnswerPut(Who, usize),
    AskDelete(Who, usize),
    AskRead(Who),
    AnswerRead(Who),
    // The world.
    Pause(Who),
    Resume(Who),
    Crash(Who),
    Start(Who),
    SetClock(Who),
}

impl Cluster {
    pub(crate) fn steps(&self, world: &World, steps: &mut Vec<Step>) {
        steps.push(Step::Tick);
        steps.extend((0..world.late.len()).map(Step::Late));
        for (who, process) in world.processes.iter().enumerate() {
            match process.run {
                Run::Off | Run::Dead => self.steps_of_nobody(world, who, steps),
                Run::Paused => {
                    steps.push(Step::Resume(who));
                    Self::arrivals(process, who, steps);
                }
                Run::Up => {
                    Self::arrivals(process, who, steps);
                    self.steps_of_calls(world, who, steps);
                    self.steps_of_member(world, who, steps);
                    if let Some(owner) = process.owner() {
                        self.steps_of_owner(world, who, owner, steps);
                    }
                    self.steps_of_world(world, who, steps);
                }
            }
        }
    }

    fn steps_of_nobody(&self, world: &World, who: Who, steps: &mut Vec<Step>) {
        let gone = |other: &Who| self.member_of[*other] == self.member_of[who] && *other < who;
        let replaces = (0..who).filter(gone).all(|other| world.processes[other].run != Run::Up);
        if world.processes[who].run == Run::Off && world.left.starts > 0 && replaces {
            steps.push(Step::Start(who));
        }
    }

    /// What was sent arrives, whatever becomes of its sender.
    fn arrivals(process: &Process, who: Who, steps: &mut Vec<Step>) {
        steps.extend(calls(process).map(|(wait, _)| Step::Arrives(who, wait)));
        if process.look.as_ref().is_some_and(|look| look.found.is_none()) {
            steps.push(Step::LookTold(who));
        }
        for (item, held) in process.owner().iter().flat_map(|owner| owner.items.iter().enumerate()) {
            if matches!(held, Item::Storing { upload: Upload::Sent { .. }, .. }) {
                steps.push(Step::UploadArrives(who, item));
            }
        }
    }

    fn steps_of_calls(&self, world: &World, who: Who, steps: &mut Vec<Step>) {
        for (wait, call) in calls(&world.processes[who]) {
            if world.left.time_outs > 0 {
                steps.push(Step::TimesOut(who, wait));
            }
            if world.left.conflicts > 0 && !matches!(call.request, Request::Claim { .. }) {
                steps.push(Step::Conflicts(who, wait));
            }
        }
    }

    fn steps_of_member(&self, world: &World, who: Who, steps: &mut Vec<Step>) {
        let process = &world.processes[who];
        match &process.look {
            Some(look) if look.found.is_some() => steps.push(Step::LookEnds(who)),
            Some(_) => {}
            None => {
                let owns = process
                    .owner()
                    .is_some_and(|owner| !owner.confirmed || process.question.is_some() || world.left.reads > 0);
                if owns || process.known + 1 < world.map.len() {
                    steps.push(Step::Look(who));
                }
            }
        }
        if process.write.is_some() || process.known >= world.map.len() {
            return;
        }
        let member = self.believes_member(world, who);
        match &process.tenure {
            Tenure::Idle if !member => {
                if self.joins(world, who) {
                    steps.push(Step::Join(who));
                }
            }
            Tenure::Idle => {
                let belief = self.belief(world, who);
                let mine = self.believes_mine(world, who);
                let needed = self.is_needed(world, who);
                if mine && belief.handed && process.tried != Some(process.known) {
                    steps.push(Step::OpenHanded(who));
                } else if (needed || !mine && world.left.suspicions > 0) && self.may_take(world, who) {
                    steps.push(Step::ReadEpoch(who));
                }
            }
            Tenure::Claiming { .. } | Tenure::Leaving { .. } => steps.push(Step::WriteMap(who)),
            Tenure::Owner(_) if self.has(Bug::OpenBeforeMap) && !self.believes_mine(world, who) => {
                steps.push(Step::WriteMap(who));
            }
            Tenure::Opening { .. } | Tenure::Owner(_) => {}
        }
        let stable = matches!(process.tenure, Tenure::Idle | Tenure::Owner(_));
        if member && stable && world.left.other_writes > 0 {
            steps.push(Step::WriteOther(who));
        }
    }

    fn steps_of_owner(&self, world: &World, who: Who, owner: &Owner, steps: &mut Vec<Step>) {
        let process = &world.processes[who];
        let serves = owner.serves(self.bug);
        let mut drained = owner.flush.is_none() && owner.sweep.is_none();
        for (item, held) in owner.items.iter().enumerate() {
            drained &= matches!(held, Item::Absent | Item::Live | Item::Gone { .. });
            self.steps_of_item(world, (who, owner), item, *held, steps);
        }
        if owner.flush.is_none() && owner.items.iter().any(|item| word(*item) != Word::Nothing) {
            steps.push(Step::Flush(who));
        }
        match &owner.sweep {
            None => {
                let finds = !unnamed(world, owner).is_empty() || self.has(Bug::SweepCheckedBeforeList);
                if serves && finds && world.left.sweeps > 0 {
                    steps.push(Step::List(who));
                }
            }
            Some(sweep) if !sweep.checked => steps.push(Step::CheckSweep(who)),
            Some(sweep) if sweep.unnamed.is_empty() => steps.push(Step::List(who)),
            Some(_) => steps.push(Step::Sweep(who)),
        }
        if self.has(Bug::FenceCollected) && world.log.contains(&Slot::Fence { epoch: owner.epoch }) && owner.epoch > 1 {
            steps.push(Step::CollectFence(who));
        }
        match &process.question {
            None => {
                if serves && world.left.reads > 0 {
                    steps.push(Step::AskRead(who));
                }
            }
            Some(question) => {
                let proved = question.proved || process.proof <= LEASE || self.is_alone(world, who);
                if proved {
                    steps.push(Step::AnswerRead(who));
                }
            }
        }
        let idle = drained && process.question.is_none() && process.write.is_none();
        if serves && idle && world.left.hand_overs > 0 && self.believes_still_mine(world, who) {
            let others =
                (0..world.processes.len()).filter(|other| *other != who && world.processes[*other].run == Run::Up);
            let others = others.filter(|other| self.belief(world, who).members.contains(other));
            steps.extend(others.map(|other| Step::HandOver(who, other)));
        }
    }

    fn steps_of_item(
        &self,
        world: &World,
        (who, owner): (Who, &Owner),
        item: usize,
        held: Item,
        steps: &mut Vec<Step>,
    ) {
        let serves = owner.serves(self.bug);
        match held {
            Item::Absent => {
                let next = world.clients.iter().position(|client| *client == Client::Nothing) == Some(item);
                if serves && world.left.puts > 0 && next {
                    steps.push(Step::AskPut(who, item));
                }
            }
            Item::Uncertain => steps.push(Step::LookUp(who, item)),
            Item::Storing { upload, commit } => {
                match upload {
                    Upload::Sent { .. } => {}
                    Upload::Done { checked: false } if commit == Commit::Durable => {
                        steps.push(Step::CheckPut(who, item));
                    }
                    Upload::Done { checked } => {
                        let durable = commit == Commit::Durable && checked;
                        if durable || self.has(Bug::AnswerBeforeDurable) {
                            steps.push(Step::AnswerPut(who, item));
                        }
                    }
                    Upload::Refused => steps.push(Step::GiveUp(who, item)),
                }
                if world.left.give_ups > 0 && upload != Upload::Refused {
                    steps.push(Step::GiveUp(who, item));
                }
            }
            Item::Live => {
                if serves && world.left.deletes > 0 && world.clients[item] == Client::PutAnswered {
                    steps.push(Step::AskDelete(who, item));
                }
            }
            Item::Going { .. } => {}
            Item::Gone { delete, .. } => match delete {
                Delete::Due if owner.age >= GRACE && world.files[item] != FileAt::Absent => {
                    steps.push(Step::CheckDelete(who, item));
                }
                Delete::Checked => steps.push(Step::Delete(who, item)),
                Delete::Due | Delete::Sent => {}
            },
        }
    }

    fn steps_of_world(&self, world: &World, who: Who, steps: &mut Vec<Step>) {
        if world.left.pauses > 0 {
            steps.push(Step::Pause(who));
        }
        if world.left.crashes > 0 {
            steps.push(Step::Crash(who));
        }
        if world.left.clock_steps > 0 && self.has(Bug::ProofByWallClock) {
            steps.push(Step::SetClock(who));
        }
    }
}

/// The requests that a process waits for.
pub(crate) fn calls(process: &Process) -> impl Iterator<Item = (Wait, &Call)> {
    let tenure = match &process.tenure {
        Tenure::Opening { call, .. } => Some((Wait::Open, call)),
        Tenure::Owner(owner) => owner.flush.as_ref().map(|call| (Wait::Flush, call)),
        Tenure::Idle | Tenure::Claiming { .. } | Tenure::Leaving { .. } => None,
    };
    process.write.iter().map(|call| (Wait::Map, call)).chain(tenure)
}

/// What the next flush says of an item.
pub(crate) fn word(item: Item) -> Word {
    match item {
        Item::Storing { commit: Commit::Queued, .. } => Word::Named,
        Item::Going { was_live: true, commit: Commit::Queued } => Word::Forgotten,
        Item::Going { was_live: false, commit: Commit::Queued } => Word::Dropped,
        _ => Word::Nothing,
    }
}

/// The files that an owner finds and cannot name.
pub(crate) fn unnamed(world: &World, owner: &Owner) -> Vec<usize> {
    (0..ITEMS).filter(|item| world.files[*item] != FileAt::Absent && owner.items[*item] == Item::Absent).collect()
}
