//! What may happen next, and what it does.
//!
//! A request is sent in one step and takes effect in a later one, and between them anything else may happen. Its answer comes with
//! its effect: whoever gets it later only does later what it founds on it, which it may do anyway. So a process that is slow, or
//! stopped, needs no step of its own. A READ by an owner is another matter, because its proof has an age: there the answer has a step.

use super::bug::Bug;
use super::cluster::{Cluster, Seen};
use super::world::{
    Answer, Call, Client, Commit, Delete, FileAt, GRACE, ITEMS, Item, LEASE, Look, MapObject, OLD, Owner, Process,
    Question, Request, Run, Slot, Sweep, Tenure, Upload, Who, Word, World, replay,
};

/// What a process waits for.
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
            None if serves && world.left.sweeps > 0 => {
                if !unnamed(world, owner).is_empty() || self.has(Bug::SweepCheckedBeforeList) {
                    steps.push(Step::List(who));
                }
            }
            None => {}
            Some(sweep) if !sweep.checked => steps.push(Step::CheckSweep(who)),
            Some(sweep) if sweep.unnamed.is_empty() => steps.push(Step::List(who)),
            Some(_) => steps.push(Step::Sweep(who)),
        }
        if self.has(Bug::FenceCollected) && world.log.contains(&Slot::Fence { epoch: owner.epoch }) && owner.epoch > 1 {
            steps.push(Step::CollectFence(who));
        }
        match &process.question {
            None if serves && world.left.reads > 0 => steps.push(Step::AskRead(who)),
            None => {}
            Some(question) => {
                if question.proved || process.proof <= LEASE || self.is_alone(world, who) {
                    steps.push(Step::AnswerRead(who));
                }
            }
        }
        let idle = drained && process.question.is_none() && process.write.is_none();
        if serves && idle && world.left.hand_overs > 0 && self.believes_mine(world, who) {
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

    pub(crate) fn take(&self, world: &mut World, step: Step) {
        match step {
            Step::Tick => self.tick(world),
            Step::Late(index) => {
                let request = world.late.remove(index);
                if self.land(world, &request) == Answer::Done {
                    self.see(Seen::LateRequest);
                }
            }
            Step::Arrives(who, wait) => {
                let request = call(&mut world.processes[who], wait).request.clone();
                let answer = self.land(world, &request);
                self.answered(world, who, wait, answer);
            }
            Step::TimesOut(who, wait) => {
                world.left.time_outs -= 1;
                let request = call(&mut world.processes[who], wait).request.clone();
                world.late.push(request);
            }
            Step::Conflicts(who, wait) => {
                world.left.conflicts -= 1;
                self.answered(world, who, wait, Answer::Conflict);
            }
            Step::Look(who) if world.processes[who].owner().is_none() => {
                let found = Some(world.map.len() - 1);
                world.processes[who].look = Some(Look { age: 0, covers: false, found });
                self.look_ends(world, who);
            }
            Step::Look(who) => {
                let covers = world.processes[who].question.is_some();
                world.processes[who].look = Some(Look { age: 0, covers, found: None });
            }
            Step::LookTold(who) => {
                let newest = world.map.len() - 1;
                let process = &mut world.processes[who];
                // Past the end there is nothing to be found behind the number that it believes in.
                let found = process.known.max(newest);
                process.look.as_mut().expect("a look is under way").found = Some(found);
            }
            Step::LookEnds(who) => self.look_ends(world, who),
            Step::Join(who) => self.join(world, who),
            Step::WriteOther(who) => {
                world.left.other_writes -= 1;
                let object = self.belief(world, who).clone();
                self.write_map(world, who, object);
            }
            Step::ReadEpoch(who) => {
                if !self.is_needed(world, who) {
                    world.left.suspicions -= 1;
                }
                let epoch = world.manifest.epoch;
                if self.has(Bug::OpenBeforeMap) {
                    self.open(world, who, epoch, false);
                } else {
                    world.processes[who].tenure = Tenure::Claiming { epoch };
                }
            }
            Step::WriteMap(who) => self.write_claim(world, who),
            Step::OpenHanded(who) => {
                let epoch = self.belief(world, who).epoch_before;
                self.open(world, who, epoch, true);
            }
            Step::HandOver(who, to) => {
                world.left.hand_overs -= 1;
                let epoch = owner(world, who).epoch;
                if self.has(Bug::HandOverServesOn) {
                    let object = self.belief(world, who).clone();
                    let object = MapObject { owner: Some(to), epoch_before: epoch, handed: true, ..object };
                    self.write_map(world, who, object);
                } else {
                    self.shut_out(world, who);
                    world.processes[who].tenure = Tenure::Leaving { epoch, to };
                }
            }
            Step::Pause(who) => {
                world.left.pauses -= 1;
                world.processes[who].run = Run::Paused;
            }
            Step::Resume(who) => world.processes[who].run = Run::Up,
            Step::Crash(who) => {
                world.left.crashes -= 1;
                self.shut_out(world, who);
                let process = &mut world.processes[who];
                world.late.extend(process.write.take().map(|call| call.request));
                *process = Process::new(Run::Dead, 0);
            }
            Step::Start(who) => {
                world.left.starts -= 1;
                world.processes[who] = Process::new(Run::Up, world.map.len() - 1);
            }
            Step::SetClock(who) => {
                world.left.clock_steps -= 1;
                let process = &mut world.processes[who];
                process.proof = if process.owner().is_some() { 0 } else { process.proof };
            }
            other => self.take_of_owner(world, other),
        }
    }

    fn take_of_owner(&self, world: &mut World, step: Step) {
        match step {
            Step::LookUp(who, item) => {
                let found = match world.files[item] {
                    FileAt::Whole => Item::Live,
                    FileAt::Tombstone => Item::Going { was_live: false, commit: Commit::Queued },
                    FileAt::Absent => {
                        if !self.has(Bug::HeadWithoutTombstone) {
                            world.files[item] = FileAt::Tombstone;
                        }
                        Item::Going { was_live: false, commit: Commit::Queued }
                    }
                };
                owner(world, who).items[item] = found;
                self.begins_to_serve(world, who);
            }
            Step::Flush(who) => {
                let owner = owner(world, who);
                let words = owner.items.map(word);
                owner.items.iter_mut().for_each(start_flushing);
                let content = Slot::Batch { epoch: owner.epoch, words };
                owner.flush = Some(Call::new(Request::Log { slot: owner.slot, content }));
            }
            Step::UploadArrives(who, item) => {
                let taken = self.land(world, &Request::File(item)) != Answer::Done;
                let quick = |age| age <= GRACE / 2 || self.has(Bug::SlowPutUnchecked);
                if let Item::Storing { upload, .. } = &mut owner(world, who).items[item]
                    && let Upload::Sent { age } = *upload
                {
                    if taken {
                        self.see(Seen::Tombstone);
                    }
                    *upload = if taken { Upload::Refused } else { Upload::Done { checked: quick(age) } };
                }
            }
            Step::CheckPut(who, item) => {
                if !self.check_owner(world, who) {
                    self.see(Seen::SlowPut);
                } else if let Item::Storing { upload, .. } = &mut owner(world, who).items[item] {
                    *upload = Upload::Done { checked: true };
                }
            }
            Step::GiveUp(who, item) => {
                let before = std::mem::replace(
                    &mut owner(world, who).items[item],
                    Item::Going { was_live: false, commit: Commit::Queued },
                );
                match before {
                    Item::Storing { upload: Upload::Refused, .. } => return,
                    Item::Storing { upload: Upload::Sent { .. }, .. } => world.late.push(Request::File(item)),
                    _ => {}
                }
                world.left.give_ups -= 1;
            }
            Step::CheckDelete(who, item) => {
                if self.check_owner(world, who)
                    && let Item::Gone { delete, .. } = &mut owner(world, who).items[item]
                {
                    *delete = Delete::Checked;
                }
            }
            Step::Delete(who, item) => {
                if let Item::Gone { delete, .. } = &mut owner(world, who).items[item] {
                    *delete = Delete::Sent;
                }
                world.late.push(Request::Delete(item));
                self.see(Seen::Deleted);
            }
            Step::List(who) => {
                let found = world.processes[who].owner().map(|owner| unnamed(world, owner)).unwrap_or_default();
                let sweep = owner(world, who).sweep.take();
                if sweep.is_none() {
                    world.left.sweeps -= 1;
                    if self.has(Bug::SweepCheckedBeforeList) {
                        if self.check_owner(world, who) {
                            owner(world, who).sweep = Some(Sweep { unnamed: vec![], checked: true });
                        }
                        return;
                    }
                }
                let checked = sweep.is_some() || self.has(Bug::SweepUnchecked);
                owner(world, who).sweep =
                    Some(Sweep { unnamed: found, checked }).filter(|sweep| !sweep.unnamed.is_empty());
            }
            Step::CheckSweep(who) => {
                if self.check_owner(world, who)
                    && let Some(sweep) = &mut owner(world, who).sweep
                {
                    sweep.checked = true;
                }
            }
            Step::Sweep(who) => {
                let sweep = owner(world, who).sweep.take();
                let unnamed = sweep.map(|sweep| sweep.unnamed).unwrap_or_default();
                world.late.extend(unnamed.into_iter().map(Request::Delete));
                self.see(Seen::Swept);
            }
            Step::CollectFence(who) => {
                let epoch = owner(world, who).epoch;
                let fences = world.log.iter_mut().filter(|slot| **slot == Slot::Fence { epoch });
                fences.for_each(|slot| *slot = Slot::Empty);
            }
            Step::AskPut(who, item) => {
                world.left.puts -= 1;
                world.clients[item] = Client::PutAsked;
                owner(world, who).items[item] =
                    Item::Storing { upload: Upload::Sent { age: 0 }, commit: Commit::Queued };
            }
            Step::AnswerPut(who, item) => {
                owner(world, who).items[item] = Item::Live;
                world.clients[item] = world.clients[item].max(Client::PutAnswered);
                world.floor[item] = world.floor[item].max(1);
            }
            Step::AskDelete(who, item) => {
                world.left.deletes -= 1;
                world.clients[item] = Client::DeleteAsked;
                owner(world, who).items[item] = Item::Going { was_live: true, commit: Commit::Queued };
                if self.has(Bug::DeleteBeforeForgotten) {
                    world.late.push(Request::Delete(item));
                }
            }
            Step::AskRead(who) => {
                world.left.reads -= 1;
                let view = owner(world, who).view();
                let floor = world.floor;
                world.processes[who].question = Some(Question { view, floor, proved: false });
            }
            Step::AnswerRead(who) => self.answer_read(world, who),
            other => unreachable!("{other:?} is no step of an owner"),
        }
    }

    fn answer_read(&self, world: &mut World, who: Who) {
        let process = &world.processes[who];
        let alone = self.is_alone(world, who);
        match (&process.question, process.proof <= LEASE) {
            (Some(question), _) if question.proved => self.see(Seen::ReadByLook),
            (_, true) => self.see(Seen::ReadByProof),
            _ if alone => self.see(Seen::ReadAlone),
            _ => {}
        }
        let Some(question) = world.processes[who].question.take() else { return };
        for item in 0..ITEMS {
            world.broken.stale_read |= question.view[item] < question.floor[item];
            world.floor[item] = world.floor[item].max(question.view[item]);
        }
    }

    /// A request takes effect, or not.
    fn land(&self, world: &mut World, request: &Request) -> Answer {
        match request {
            Request::Map { number, object } if *number == world.map.len() => world.map.push(object.clone()),
            Request::Map { number, object } if self.has(Bug::BlindMapWrite) => {
                world.broken.map_went_back |= world.map[*number] != *object;
                world.map[*number] = object.clone();
            }
            Request::Claim { expected, by } if *expected == world.manifest.epoch => {
                (world.manifest.epoch, world.manifest.by) = (expected + 1, *by);
            }
            // The manifest says whose claim it was: an answer that was lost is recognised.
            Request::Claim { expected, by } if world.manifest.epoch == expected + 1 && world.manifest.by == *by => {
                self.see(Seen::LostAnswer);
            }
            Request::Log { slot, content } if world.log.get(*slot).is_none_or(|found| *found == Slot::Empty) => {
                while world.log.len() <= *slot {
                    world.log.push(Slot::Empty);
                }
                if let Slot::Batch { epoch, .. } = content {
                    // Its fence may have been removed since.
                    let later = |slot: &Slot| matches!(slot, Slot::Fence { epoch: fence } if fence > epoch);
                    let collected =
                        self.has(Bug::FenceCollected) && world.manifest.epoch > *epoch && *slot + 1 < world.log.len();
                    world.broken.flush_after_fence |= collected || world.log.iter().any(later);
                }
                world.log[*slot] = content.clone();
            }
            Request::File(item) if world.files[*item] == FileAt::Absent => world.files[*item] = FileAt::Whole,
            Request::Delete(item) => world.files[*item] = FileAt::Absent,
            Request::Map { .. } | Request::Claim { .. } | Request::Log { .. } | Request::File(_) => {
                return Answer::Taken;
            }
        }
        Answer::Done
    }

    fn check_owner(&self, world: &mut World, who: Who) -> bool {
        let ours = world.manifest.epoch == owner(world, who).epoch;
        if !ours {
            self.see(Seen::ShutOut);
            self.shut_out(world, who);
        }
        ours
    }

    /// The shard is closed as it is: what was sent is still under way.
    fn shut_out(&self, world: &mut World, who: Who) {
        let process = &mut world.processes[who];
        let call = match std::mem::replace(&mut process.tenure, Tenure::Idle) {
            Tenure::Opening { call, .. } => Some(call),
            Tenure::Owner(owner) => {
                for (item, held) in owner.items.iter().enumerate() {
                    if matches!(held, Item::Storing { upload: Upload::Sent { .. }, .. }) {
                        world.late.push(Request::File(item));
                    }
                }
                owner.flush
            }
            Tenure::Idle | Tenure::Claiming { .. } | Tenure::Leaving { .. } => None,
        };
        world.late.extend(call.map(|call| call.request));
        process.close();
    }

    fn look_ends(&self, world: &mut World, who: Who) {
        let newest = world.map.len() - 1;
        let process = &mut world.processes[who];
        let Some(Look { age, covers, found }) = process.look.take() else { return };
        let found = found.unwrap_or(process.known);
        let news = found > process.known;
        if news {
            (process.known, process.read) = (found, found.min(newest));
        }
        if self.begins_alone() {
            process.read_age = process.read_age.min(age);
        }
        let mine = self.believes_mine(world, who);
        let process = &mut world.processes[who];
        match &mut process.tenure {
            Tenure::Owner(owner) if mine => {
                owner.confirmed = true;
                process.proof = if self.has(Bug::ProofFromAnswer) { 0 } else { process.proof.min(age) };
                if let Some(question) = &mut process.question {
                    question.proved |= covers || self.has(Bug::ProofBeforeView);
                }
                self.begins_to_serve(world, who);
            }
            Tenure::Owner(_) | Tenure::Opening { .. } if !mine && !self.has(Bug::OpenBeforeMap) => {
                self.see(Seen::ShutOut);
                self.shut_out(world, who);
            }
            // What was to be written was decided before.
            Tenure::Claiming { .. } | Tenure::Leaving { .. } if news && process.write.is_none() => process.close(),
            _ => {}
        }
    }

    fn join(&self, world: &mut World, who: Who) {
        let mut object = self.belief(world, who).clone();
        let same = |other: &Who| self.member_of[*other] == self.member_of[who];
        object.members.retain(|member| !same(member));
        object.members.push(who);
        object.members.sort_unstable();
        if object.owner.as_ref().is_some_and(same) && !self.has(Bug::IncarnationIgnored) {
            (object.owner, object.handed) = (None, false);
        }
        self.write_map(world, who, object);
    }

    fn write_map(&self, world: &mut World, who: Who, object: MapObject) {
        let id = (who, draw(world, who));
        let process = &mut world.processes[who];
        let object = MapObject { id, ..object };
        process.write = Some(Call::new(Request::Map { number: process.known + 1, object }));
    }

    fn write_claim(&self, world: &mut World, who: Who) {
        let before = self.belief(world, who).clone();
        let (owner, epoch_before, handed) = match &world.processes[who].tenure {
            Tenure::Claiming { epoch } => (who, *epoch, false),
            Tenure::Leaving { epoch, to } => (*to, *epoch, true),
            Tenure::Owner(owner) => (who, owner.epoch - 1, false),
            Tenure::Idle | Tenure::Opening { .. } => return,
        };
        self.write_map(world, who, MapObject { owner: Some(owner), epoch_before, handed, ..before });
    }

    fn answered(&self, world: &mut World, who: Who, wait: Wait, answer: Answer) {
        match wait {
            Wait::Map => self.map_answered(world, who, answer),
            Wait::Open => self.open_answered(world, who, answer),
            Wait::Flush => self.flush_answered(world, who, answer),
        }
    }

    fn map_answered(&self, world: &mut World, who: Who, answer: Answer) {
        let joins = !self.believes_member(world, who);
        let process = &mut world.processes[who];
        let Some(Call { request: Request::Map { number, object }, .. }) = process.write.take() else { return };
        let mine = world.map.get(number).is_some_and(|found| found.id == object.id);
        let done = match answer {
            Answer::Done => true,
            Answer::Taken if self.has(Bug::LostIsFailure) => {
                process.lost_to = Some(number);
                false
            }
            Answer::Taken => {
                if mine {
                    self.see(Seen::LostAnswer);
                }
                mine
            }
            Answer::Conflict => {
                self.see(Seen::Conflict);
                if self.has(Bug::ConflictAtMap) {
                    process.known = process.known.max(number);
                }
                false
            }
        };
        if answer != Answer::Conflict && number > process.known {
            (process.known, process.read) = (number, number);
        }
        let process = &mut world.processes[who];
        match &mut process.tenure {
            Tenure::Claiming { epoch } => {
                let epoch = *epoch;
                if done {
                    self.open(world, who, epoch, false);
                } else {
                    process.close();
                }
            }
            Tenure::Leaving { .. } => process.close(),
            Tenure::Owner(_) if self.has(Bug::OpenBeforeMap) => match (&mut process.tenure, done) {
                (Tenure::Owner(owner), true) => {
                    owner.confirmed = true;
                    self.begins_to_serve(world, who);
                }
                _ => self.shut_out(world, who),
            },
            Tenure::Idle if done && joins && self.begins_alone() => {
                (process.joined, process.joined_age) = (number, 0);
            }
            Tenure::Idle | Tenure::Opening { .. } | Tenure::Owner(_) => {}
        }
    }

    fn open(&self, world: &mut World, who: Who, epoch: u8, handed: bool) {
        let (slot, by) = (world.log.len(), (who, draw(world, who)));
        let process = &mut world.processes[who];
        let call = Call::new(Request::Claim { expected: epoch, by });
        process.tried = Some(process.known);
        process.tenure = Tenure::Opening { epoch, slot, call, handed };
    }

    fn open_answered(&self, world: &mut World, who: Who, answer: Answer) {
        let process = &mut world.processes[who];
        let known = process.known;
        let Tenure::Opening { epoch, slot, call, handed } = &mut process.tenure else { return };
        let (epoch, still_ours) = (*epoch + 1, world.manifest.epoch == *epoch + 1);
        let fences = matches!(call.request, Request::Log { .. });
        let go_on = match answer {
            Answer::Done if fences && still_ours => {
                let (slot, handed) = (*slot, *handed);
                let items = replay(&world.log[..=slot]).map(|word| match word {
                    Word::Nothing => Item::Absent,
                    Word::Named => Item::Uncertain,
                    Word::Forgotten => Item::Gone { was_live: true, delete: Delete::Due },
                    Word::Dropped => Item::Gone { was_live: false, delete: Delete::Due },
                });
                let (flush, sweep, confirmed) = (None, None, false);
                process.tenure =
                    Tenure::Owner(Owner { epoch, slot: slot + 1, age: 0, confirmed, handed, items, flush, sweep });
                // A READ that began before the fence says nothing of it.
                process.look = None;
                return;
            }
            Answer::Done => !fences,
            // The name is taken by the owner before, or by this one's own fence whose answer was lost: the next one.
            Answer::Taken if fences && still_ours => {
                *slot += 1;
                true
            }
            Answer::Taken => false,
            Answer::Conflict => {
                self.see(Seen::Conflict);
                if self.has(Bug::ConflictAtLog) {
                    *slot += 1;
                }
                true
            }
        };
        if go_on {
            *call = Call::new(Request::Log { slot: *slot, content: Slot::Fence { epoch } });
            return;
        }
        self.see(Seen::FencedAtOpen);
        process.close();
        if self.has(Bug::FencedIsFinal) {
            process.lost_to = Some(known);
        }
    }

    fn begins_to_serve(&self, world: &World, who: Who) {
        let process = &world.processes[who];
        let Some(owner) = process.owner() else { return };
        if who == 0 && owner.epoch == 1 || !owner.confirmed || !owner.is_loaded() {
            return;
        }
        self.see(if owner.handed { Seen::HandOver } else { Seen::TakeOver });
        if (0..who).any(|other| self.member_of[other] == self.member_of[who]) {
            self.see(Seen::Restart);
        }
    }

    fn flush_answered(&self, world: &mut World, who: Who, answer: Answer) {
        let process = &mut world.processes[who];
        let Tenure::Owner(owner) = &mut process.tenure else { return };
        let Some(Call { request: Request::Log { slot, content }, age }) = owner.flush.take() else { return };
        let again = |slot| Some(Call::new(Request::Log { slot, content: content.clone() }));
        match answer {
            Answer::Done => {}
            Answer::Taken if world.log.get(slot) == Some(&content) => self.see(Seen::LostAnswer),
            Answer::Taken if self.has(Bug::NextNameWhenTaken) => {
                owner.slot += 1;
                owner.flush = again(owner.slot);
                return;
            }
            Answer::Conflict if !self.has(Bug::ConflictAtLog) => {
                self.see(Seen::Conflict);
                owner.flush = again(slot);
                return;
            }
            Answer::Taken | Answer::Conflict => {
                self.see(Seen::ShutOut);
                self.shut_out(world, who);
                return;
            }
        }
        owner.slot = slot + 1;
        let Slot::Batch { words, .. } = content else { return };
        let mut answered = vec![];
        for (item, held) in owner.items.iter_mut().enumerate() {
            match held {
                Item::Storing { commit, .. } if *commit == Commit::Flushing => *commit = Commit::Durable,
                Item::Going { was_live, commit: Commit::Flushing } => {
                    if words[item] == Word::Forgotten {
                        answered.push(item);
                    }
                    *held = Item::Gone { was_live: *was_live, delete: Delete::Due };
                }
                _ => {}
            }
        }
        process.proof = if self.has(Bug::ProofFromAnswer) { 0 } else { process.proof.min(age) };
        for item in answered {
            world.clients[item] = Client::DeleteAnswered;
            world.floor[item] = 2;
        }
    }

    fn tick(&self, world: &mut World) {
        for process in world.processes.iter_mut().filter(|process| matches!(process.run, Run::Up | Run::Paused)) {
            let stands = self.has(Bug::ProofStandsStill) && process.run == Run::Paused;
            if !stands {
                grow(&mut process.proof, OLD);
            }
            grow(&mut process.read_age, OLD);
            grow(&mut process.joined_age, OLD);
            if let Some(look) = &mut process.look {
                grow(&mut look.age, if self.begins_alone() { OLD } else { LEASE + 1 });
            }
            if let Tenure::Owner(owner) = &mut process.tenure {
                grow(&mut owner.age, GRACE.max(LEASE + 1));
                if let Some(flush) = &mut owner.flush {
                    grow(&mut flush.age, LEASE + 1);
                }
                for item in &mut owner.items {
                    if let Item::Storing { upload: Upload::Sent { age }, .. } = item {
                        grow(age, GRACE / 2 + 1);
                    }
                }
            }
        }
    }

    /// Leaves out what makes no difference, so that states which differ in nothing else are one.
    pub(crate) fn settle(&self, world: &mut World) {
        let World { late, map, manifest, log, processes, left, .. } = world;
        for process in processes.iter_mut() {
            let asked = left.reads > 0 || process.question.is_some();
            if process.proof > LEASE || !asked {
                process.proof = OLD;
            }
            if !asked {
                process.read_age = OLD;
            }
        }
        // Requests that can have no effect any more.
        late.retain(|request| match request {
            Request::Map { number, .. } => *number >= map.len() || self.has(Bug::BlindMapWrite),
            Request::Claim { expected, .. } => *expected == manifest.epoch,
            Request::Log { slot, .. } => {
                log.get(*slot).is_none_or(|slot| *slot == Slot::Empty) || self.has(Bug::FenceCollected)
            }
            Request::File(_) | Request::Delete(_) => true,
        });
        late.sort_unstable();
        late.dedup();
        // Objects of the map that nobody goes by, and ids that nobody asks for.
        let asked: Vec<(Who, u8)> = ids(late, processes).collect();
        let alive = processes.iter().filter(|process| matches!(process.run, Run::Up | Run::Paused));
        let reads: Vec<usize> = alive.map(|process| process.read).chain([map.len() - 1]).collect();
        for (number, object) in map.iter_mut().enumerate() {
            if !asked.contains(&object.id) {
                object.id = NOBODY;
                if !reads.contains(&number) && !self.has(Bug::BlindMapWrite) {
                    *object = MapObject { id: NOBODY, members: vec![], owner: None, epoch_before: 0, handed: false };
                }
            }
        }
        if !asked.contains(&manifest.by) {
            manifest.by = NOBODY;
        }
    }
}

/// Stands for ids that make no difference.
const NOBODY: (Who, u8) = (Who::MAX, 0);

/// The ids of requests under way.
fn ids<'a>(late: &'a [Request], processes: &'a [Process]) -> impl Iterator<Item = (Who, u8)> {
    let calls = processes.iter().flat_map(|process| calls(process).map(|(_, call)| &call.request));
    calls.chain(late).filter_map(|request| match request {
        Request::Map { object, .. } => Some(object.id),
        Request::Claim { by, .. } => Some(*by),
        Request::Log { .. } | Request::File(_) | Request::Delete(_) => None,
    })
}

/// A number that none of a process's requests under way has.
fn draw(world: &World, who: Who) -> u8 {
    let taken: Vec<(Who, u8)> = ids(&world.late, &world.processes).collect();
    (0..u8::MAX).find(|number| !taken.contains(&(who, *number))).expect("few requests are under way")
}

fn grow(age: &mut u8, most: u8) {
    *age = (*age + 1).min(most.max(*age));
}

fn owner(world: &mut World, who: Who) -> &mut Owner {
    match &mut world.processes[who].tenure {
        Tenure::Owner(owner) => owner,
        other => unreachable!("process {who} is no owner: {other:?}"),
    }
}

pub(crate) fn calls(process: &Process) -> impl Iterator<Item = (Wait, &Call)> {
    let tenure = match &process.tenure {
        Tenure::Opening { call, .. } => Some((Wait::Open, call)),
        Tenure::Owner(owner) => owner.flush.as_ref().map(|call| (Wait::Flush, call)),
        Tenure::Idle | Tenure::Claiming { .. } | Tenure::Leaving { .. } => None,
    };
    process.write.iter().map(|call| (Wait::Map, call)).chain(tenure)
}

fn call(process: &mut Process, wait: Wait) -> &mut Call {
    let call = match (wait, &mut process.tenure) {
        (Wait::Map, _) => process.write.as_mut(),
        (Wait::Open, Tenure::Opening { call, .. }) => Some(call),
        (Wait::Flush, Tenure::Owner(owner)) => owner.flush.as_mut(),
        _ => None,
    };
    call.expect("only a call that is there takes a step")
}

/// What the next flush says of an item.
fn word(item: Item) -> Word {
    match item {
        Item::Storing { commit: Commit::Queued, .. } => Word::Named,
        Item::Going { was_live: true, commit: Commit::Queued } => Word::Forgotten,
        Item::Going { was_live: false, commit: Commit::Queued } => Word::Dropped,
        _ => Word::Nothing,
    }
}

fn start_flushing(item: &mut Item) {
    if let Item::Storing { commit, .. } | Item::Going { commit, .. } = item
        && *commit == Commit::Queued
    {
        *commit = Commit::Flushing;
    }
}

/// The files that an owner finds and cannot name.
fn unnamed(world: &World, owner: &Owner) -> Vec<usize> {
    (0..ITEMS).filter(|item| world.files[*item] != FileAt::Absent && owner.items[*item] == Item::Absent).collect()
}
