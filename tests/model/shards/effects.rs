//! What a step does.

use super::pair::{
    Bug, Edit, LOST, Look, OLD, Owner, Run, SHARDS, STALE, Seen, Shards, Step, Stored, Tenure, UNGIVEN, World, Write,
    owners,
};
use crate::world::Who;

impl Shards {
    pub(super) fn take(&self, world: &mut World, step: Step) {
        match step {
            Step::Tick => {
                for member in world.members.iter_mut().filter(|member| member.run != Run::Dead) {
                    for tenure in &mut member.shards {
                        if let Tenure::Owner(owner) = tenure {
                            (owner.age, owner.proof) = ((owner.age + 1).min(OLD), (owner.proof + 1).min(OLD));
                        }
                    }
                    if let Some(look) = &mut member.look {
                        look.age = (look.age + 1).min(OLD);
                    }
                }
            }
            Step::Learn(who) => world.members[who].known = world.maps.len() - 1,
            Step::Suspect(who, shard) | Step::Again(who, shard) => {
                let (decided_on, epoch) = (self.belief(world, who)[shard], world.stored[shard].epoch);
                if decided_on.owner != who && world.members[decided_on.owner].run != Run::Dead {
                    world.left.suspicions -= 1;
                }
                world.taken += u8::from(decided_on.owner != who);
                world.members[who].waiting.push(Edit::Take { shard, decided_on, epoch });
                world.members[who].shards[shard] = Tenure::Wants;
            }
            Step::OpenHanded(who, shard) => {
                let epoch = self.belief(world, who)[shard].epoch_before;
                world.members[who].shards[shard] = Tenure::Opens { epoch, handed: true };
            }
            Step::WriteMap(who) => self.write(world, who),
            Step::Arrives(who) => self.arrives(world, who),
            Step::Open(who, shard) => self.open(world, who, shard),
            Step::Look(who, shard) => {
                let asked =
                    matches!(&world.members[who].shards[shard], Tenure::Owner(owner) if owner.question.is_some());
                world.members[who].look = Some(Look { shard, age: 0, covers: asked, found: None });
            }
            Step::LookTold(who) => {
                let newest = world.maps.len() - 1;
                world.members[who].look.as_mut().expect("a look is under way").found = Some(newest);
            }
            Step::LookEnds(who) => self.look_ends(world, who),
            Step::Commit(who, shard) => {
                world.left.puts -= 1;
                let Stored { epoch, version } = &mut world.stored[shard];
                let Tenure::Owner(owner) = &mut world.members[who].shards[shard] else { return };
                if owner.epoch != *epoch {
                    self.see(Seen::ShutOut);
                    world.members[who].shards[shard] = Tenure::Idle;
                    return;
                }
                *version += 1;
                (owner.version, owner.proof) = (*version, 0);
                if self.has(Bug::ProofOfOtherShard) {
                    owners(&mut world.members[who]).for_each(|owner| owner.proof = 0);
                }
            }
            Step::AskRead(who, shard) => {
                world.left.reads -= 1;
                let floor = world.stored[shard].version;
                let member = &mut world.members[who];
                if let Tenure::Owner(owner) = &mut member.shards[shard] {
                    (owner.question, owner.proved) = (Some((floor, owner.version)), false);
                }
                // A READ that is under way began for another question.
                member.look.iter_mut().filter(|look| look.shard == shard).for_each(|look| look.covers = false);
            }
            Step::AnswerRead(who, shard) => {
                let Tenure::Owner(owner) = &mut world.members[who].shards[shard] else { return };
                let Some((floor, version)) = owner.question.take() else { return };
                self.see(Seen::Read);
                if version < floor {
                    world.broken = Some(STALE);
                }
            }
            Step::Balance(who) => {
                let Some((shard, to)) = self.to_give(world, who) else { return };
                world.left.moves -= 1;
                world.moved += 1;
                let Tenure::Owner(owner) = &world.members[who].shards[shard] else { return };
                let edit = Edit::Give { shard, epoch: owner.epoch, to };
                world.members[who].waiting.push(edit);
                world.members[who].shards[shard] = Tenure::Wants;
            }
            Step::Pause(who) => {
                world.left.pauses -= 1;
                world.members[who].run = Run::Paused;
            }
            Step::Resume(who) => world.members[who].run = Run::Up,
            Step::Crash(who) => {
                world.left.crashes -= 1;
                let member = &mut world.members[who];
                (member.run, member.look, member.waiting) = (Run::Dead, None, vec![]);
                member.shards = [Tenure::Idle, Tenure::Idle];
            }
        }
    }

    /// What waits goes into the map after the one that is known, as far as it still can.
    fn write(&self, world: &mut World, who: Who) {
        let edits = std::mem::take(&mut world.members[who].waiting);
        let (map, told) = self.edited(self.belief(world, who), &edits, who);
        if map == *self.belief(world, who) {
            self.tell(world, who, &told);
            return;
        }
        if told.iter().filter(|(_, made)| *made).count() > 1 {
            self.see(Seen::Together);
        }
        let member = &mut world.members[who];
        member.write = Some(Write { number: member.known + 1, map, edits: told });
    }

    fn arrives(&self, world: &mut World, who: Who) {
        let Some(write) = world.members[who].write.take() else { return };
        let newest = world.maps.len() - 1;
        if write.number == newest + 1 {
            let decided = |shard: usize| {
                let of = |edit: &Edit| match edit {
                    Edit::Take { shard, .. } | Edit::Give { shard, .. } => *shard,
                };
                write.edits.iter().any(|(edit, _)| of(edit) == shard)
            };
            if (0..SHARDS).any(|shard| world.maps[newest][shard] != write.map[shard] && !decided(shard)) {
                world.broken = Some(LOST);
            }
            world.maps.push(write.map);
            if world.members[who].run != Run::Dead {
                world.members[who].known = write.number;
                self.tell(world, who, &write.edits);
            }
            return;
        }
        if world.members[who].run == Run::Dead {
            return;
        }
        self.see(Seen::DecidedAnew);
        let member = &mut world.members[who];
        member.known = newest;
        if self.has(Bug::StaleMapRewritten) {
            member.write = Some(Write { number: newest + 1, ..write });
            return;
        }
        let again = write.edits.into_iter().map(|(edit, _)| edit);
        member.waiting = again.chain(std::mem::take(&mut member.waiting)).collect();
    }

    fn tell(&self, world: &mut World, who: Who, told: &[(Edit, bool)]) {
        for (edit, made) in told {
            match *edit {
                Edit::Take { shard, epoch, .. } => {
                    let given = world.maps[world.members[who].known][shard];
                    if *made && (given.owner, given.epoch_before) != (who, epoch) {
                        world.broken = Some(UNGIVEN);
                    }
                    let next = if *made { Tenure::Opens { epoch, handed: false } } else { Tenure::Idle };
                    world.members[who].shards[shard] = next;
                }
                Edit::Give { shard, .. } => world.members[who].shards[shard] = Tenure::Idle,
            }
        }
    }

    fn open(&self, world: &mut World, who: Who, shard: usize) {
        let Tenure::Opens { epoch, handed } = world.members[who].shards[shard] else { return };
        let stored = &mut world.stored[shard];
        if stored.epoch != epoch {
            self.see(Seen::ShutOut);
            world.members[who].shards[shard] = Tenure::Idle;
            return;
        }
        stored.epoch += 1;
        self.see(if handed { Seen::HandOver } else { Seen::TakeOver });
        let (epoch, version) = (stored.epoch, stored.version);
        let owner =
            Owner { epoch, age: 0, confirmed: false, handed, version, proof: OLD, question: None, proved: false };
        let member = &mut world.members[who];
        member.shards[shard] = Tenure::Owner(owner);
        // A READ that began before says nothing of it.
        member.look = member.look.filter(|look| look.shard != shard);
    }

    fn look_ends(&self, world: &mut World, who: Who) {
        let Some(Look { shard: of, age, covers, found }) = world.members[who].look.take() else { return };
        let found = found.unwrap_or_default().max(world.members[who].known);
        world.members[who].known = found;
        let map = world.maps[found];
        for shard in (0..SHARDS).filter(|shard| *shard == of || self.has(Bug::ReadOfOtherShard)) {
            let Tenure::Owner(owner) = &mut world.members[who].shards[shard] else { continue };
            let mine = map[shard].owner == who && map[shard].epoch_before + 1 == owner.epoch;
            if mine || shard != of {
                owner.confirmed = true;
                owner.proof = owner.proof.min(age);
                owner.proved |= covers;
            } else {
                self.see(Seen::ShutOut);
                world.members[who].shards[shard] = Tenure::Idle;
            }
        }
    }
}
