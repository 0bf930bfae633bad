//! What requests do to storage, and what whoever sent them makes of the answer.

use super::bug::Bug;
use super::cluster::{Cluster, Seen};
use super::effects::{draw, owner};
use super::steps::Wait;
use super::world::{
    Answer, Call, Client, Commit, Delete, FileAt, Item, Look, MapObject, Owner, Request, Slot, Tenure, Upload, Who,
    Word, World, replay,
};

impl Cluster {
    /// A request takes effect, or not.
    pub(crate) fn land(&self, world: &mut World, request: &Request) -> Answer {
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

    pub(crate) fn check_owner(&self, world: &mut World, who: Who) -> bool {
        let ours = world.manifest.epoch == owner(world, who).epoch;
        if !ours {
            self.see(Seen::ShutOut);
            self.shut_out(world, who);
        }
        ours
    }

    /// The shard is closed as it is: what was sent is still under way.
    pub(crate) fn shut_out(&self, world: &mut World, who: Who) {
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

    pub(crate) fn look_ends(&self, world: &mut World, who: Who) {
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
        let mine = self.believes_still_mine(world, who);
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

    pub(crate) fn join(&self, world: &mut World, who: Who) {
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

    pub(crate) fn write_map(&self, world: &mut World, who: Who, object: MapObject) {
        let id = (who, draw(world, who));
        let process = &mut world.processes[who];
        let object = MapObject { id, ..object };
        process.write = Some(Call::new(Request::Map { number: process.known + 1, object }));
    }

    pub(crate) fn write_claim(&self, world: &mut World, who: Who) {
        let before = self.belief(world, who).clone();
        let (owner, epoch_before, handed) = match &world.processes[who].tenure {
            Tenure::Claiming { epoch } => (who, *epoch, false),
            Tenure::Leaving { epoch, to } => (*to, *epoch, true),
            Tenure::Owner(owner) => (who, owner.epoch - 1, false),
            Tenure::Idle | Tenure::Opening { .. } => return,
        };
        self.write_map(world, who, MapObject { owner: Some(owner), epoch_before, handed, ..before });
    }

    pub(crate) fn answered(&self, world: &mut World, who: Who, wait: Wait, answer: Answer) {
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

    pub(crate) fn open(&self, world: &mut World, who: Who, epoch: u8, handed: bool) {
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

    pub(crate) fn begins_to_serve(&self, world: &World, who: Who) {
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
}
