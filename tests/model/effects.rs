//! What a step does.

use super::bug::Bug;
use super::cluster::{Cluster, Seen};
use super::steps::{Step, Wait, calls, unnamed, word};
use super::world::{
    Answer, Call, Client, Commit, Delete, FileAt, GRACE, ITEMS, Item, LEASE, Look, MapObject, OLD, Owner, Process,
    Question, Request, Run, Slot, Sweep, Tenure, Upload, Who, World,
};

impl Cluster {
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
                let process = &mut world.processes[who];
                process.question = Some(Question { view, floor, proved: false });
                // A READ that is under way began for another question.
                process.look.iter_mut().for_each(|look| look.covers = false);
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
pub(crate) fn draw(world: &World, who: Who) -> u8 {
    let taken: Vec<(Who, u8)> = ids(&world.late, &world.processes).collect();
    (0..u8::MAX).find(|number| !taken.contains(&(who, *number))).expect("few requests are under way")
}

fn grow(age: &mut u8, most: u8) {
    *age = (*age + 1).min(most.max(*age));
}

pub(crate) fn owner(world: &mut World, who: Who) -> &mut Owner {
    match &mut world.processes[who].tenure {
        Tenure::Owner(owner) => owner,
        other => unreachable!("process {who} is no owner: {other:?}"),
    }
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

fn start_flushing(item: &mut Item) {
    if let Item::Storing { commit, .. } | Item::Going { commit, .. } = item
        && *commit == Commit::Queued
    {
        *commit = Commit::Flushing;
    }
}
