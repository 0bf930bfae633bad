//! What a cluster has agreed on: its members, and which of them has which shard. Plain values, and no I/O.
//!
//! ```text
//! cluster/map/<20 digits>.map   one line of JSON: {"format":1,"write_id":"<32 hex digits>","by":"<member>","shards":16,"routing":1,
//!   "members":[{"id","incarnation","url","host","since"}], "owners":[{"shard","member","incarnation","host","epoch_before","how","since"}]}
//! ```
//!
//! Format 2 has besides `"generation":12`, if the number of shards was changed (see [`StoreShards`]), and while it is being changed
//! `"resharding":{"shards":4,"generation":12}`. Nobody is a member then. Only such maps have format 2, so that others are read by
//! older daemons.
//!
//! `since` is for people: no rule uses wall clocks. A shard without an entry in `owners` was never owned. The entry of an owner
//! that is no member any more stays: it tells a successor whom it succeeds.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use serde::{Deserialize, Serialize};

use crate::model::{ROUTING, SHARDS_MAX, ShardOf, StoreShards};

/// The format of most maps.
const FORMAT: u32 = 1;
/// That of maps that say of generations.
const FORMAT_OF_GENERATIONS: u32 = 2;

/// A daemon of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, which it keeps over restarts.
    pub id: String,
    /// This process of it.
    pub incarnation: String,
    /// Where its peers reach it.
    pub url: String,
    /// The machine it is on, if that is known: the boot of a kernel, and the network in it.
    pub host: String,
    /// When it joined, for people.
    pub since: String,
}

/// The way in which an owner came to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Succession {
    /// Nobody had it.
    Unowned,
    /// The owner before is dead: nobody listens where it was.
    Dead,
    /// The owner before does not answer.
    Silent,
    /// The owner before says that it has not got it: it has lost its storage, or was shut out.
    GivenUp,
    /// The owner before has given it away, and has stopped before it did.
    HandedOver,
    /// The one who has it was shut out, and has opened it again.
    Again,
    /// Nobody has it: the owner has stopped, after it had closed it.
    Ended,
}

impl Succession {
    /// The word in the map, in metrics and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unowned => "unowned",
            Self::Dead => "dead",
            Self::Silent => "silent",
            Self::GivenUp => "given-up",
            Self::HandedOver => "handed-over",
            Self::Again => "again",
            Self::Ended => "ended",
        }
    }
}

/// Who has a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// The shard.
    pub shard: u32,
    /// The owner.
    pub member: String,
    /// The owner's process.
    pub incarnation: String,
    /// The machine that it is on, as of a member.
    pub host: String,
    /// The epoch of the shard's catalog before the owner opened it. The owner has opened it for the next one exactly.
    pub epoch_before: u64,
    /// How the owner came to it.
    pub how: Succession,
    /// When, for people.
    pub since: String,
}

impl Ownership {
    /// The epoch in which the owner has the shard's catalog.
    pub fn epoch(&self) -> u64 {
        self.epoch_before + 1
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// The version of all this.
    pub format: u32,
    /// Tells one's own write from another's.
    pub write_id: String,
    /// The member that has written it.
    pub by: String,
    /// Into how many shards the name space is divided: the first map decides.
    pub shards: u32,
    /// How it is divided: see [`crate::model::Routing`]. The first maps did not say.
    #[serde(default = "first_routing")]
    pub routing: u32,
    /// The generation of the shards.
    #[serde(default, skip_serializing_if = "is_first")]
    pub generation: u64,
    /// The shards that are being made, while their number is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resharding: Option<StoreShards>,
    /// The daemons, by their names.
    pub members: Vec<Member>,
    /// The owners.
    pub owners: Vec<Ownership>,
}

fn first_routing() -> u32 {
    ROUTING
}

fn is_first(generation: &u64) -> bool {
    *generation == 0
}

/// A map that cannot be understood.
#[derive(Debug, Clone, thiserror::Error)]
#[error("map {number} of the cluster cannot be understood, or is of a later version: {reason}")]
pub struct InvalidMap {
    number: u64,
    reason: String,
}

impl ClusterMap {
    /// Before the first member, of a store with so many shards.
    pub fn empty(shards: u32) -> Self {
        Self::of(StoreShards::first(shards))
    }

    /// The same of a store with these shards.
    pub fn of(StoreShards { count, generation }: StoreShards) -> Self {
        let (write_id, by) = (String::new(), String::new());
        let (members, owners, resharding) = (vec![], vec![], None);
        let (format, shards, routing) = (FORMAT, count, ROUTING);
        Self { format, write_id, by, shards, routing, generation, resharding, members, owners }.formatted()
    }

    /// With the format that it needs.
    #[must_use]
    pub fn formatted(mut self) -> Self {
        let plain = self.generation == 0 && self.resharding.is_none();
        self.format = if plain { FORMAT } else { FORMAT_OF_GENERATIONS };
        self
    }

    /// The shards of the store.
    pub fn store_shards(&self) -> StoreShards {
        StoreShards { count: self.shards, generation: self.generation }
    }

    /// Reads what stands under `number`.
    ///
    /// # Errors
    /// [`InvalidMap`] if that is no map.
    pub fn parse(number: u64, bytes: &[u8]) -> Result<Self, InvalidMap> {
        let invalid = |reason: String| InvalidMap { number, reason };
        let map: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if !(FORMAT..=FORMAT_OF_GENERATIONS).contains(&map.format) {
            return Err(invalid(format!("its format is {}", map.format)));
        }
        if !(1..=SHARDS_MAX).contains(&map.shards) {
            return Err(invalid(format!("it has {} shards", map.shards)));
        }
        if map.routing != ROUTING {
            return Err(invalid(format!("its routing is {}", map.routing)));
        }
        Ok(map)
    }

    /// As it stands on storage.
    pub fn bytes(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).expect("plain text always encodes");
        line.push(b'\n');
        line.into()
    }

    /// The member of this name.
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The entry of a shard, whether or not its owner is still a member.
    pub fn ownership(&self, shard: u32) -> Option<&Ownership> {
        self.owners.iter().find(|owner| owner.shard == shard)
    }

    /// The member that has a shard: this very process of it.
    pub fn owner(&self, shard: u32) -> Option<(&Ownership, &Member)> {
        let ownership = self.ownership(shard).filter(|ownership| ownership.how != Succession::Ended)?;
        let member = self.member(&ownership.member)?;
        (member.incarnation == ownership.incarnation).then_some((ownership, member))
    }

    /// All shards.
    pub fn all_shards(&self) -> impl Iterator<Item = ShardOf> + use<> {
        self.store_shards().all()
    }

    /// Whether this is the only member.
    pub fn is_alone(&self, id: &str) -> bool {
        self.members.iter().all(|member| member.id == id)
    }

    /// With a member more, in place of an older process of the same name.
    #[must_use]
    pub fn joined(mut self, member: Member) -> Self {
        self.members.retain(|other| other.id != member.id);
        self.members.push(member);
        self.members.sort_by(|a, b| a.id.cmp(&b.id));
        self
    }

    /// Without a process. What it owned has an owner that is no member any more.
    #[must_use]
    pub fn left(mut self, id: &str, incarnation: &str) -> Self {
        self.members.retain(|member| member.id != id || member.incarnation != incarnation);
        self
    }

    /// With another owner of a shard.
    #[must_use]
    pub fn owned(mut self, ownership: Ownership) -> Self {
        self.owners.retain(|owner| owner.shard != ownership.shard);
        self.owners.push(ownership);
        self.owners.sort_by_key(|owner| owner.shard);
        self
    }

    /// With a shard that its owner has ended, and that nobody has now.
    #[must_use]
    pub fn ended(mut self, shard: u32) -> Self {
        for owner in self.owners.iter_mut().filter(|owner| owner.shard == shard) {
            owner.how = Succession::Ended;
        }
        self
    }

    /// Who may take a shard over, the first one first: the members but `without`, in an order that all of them find.
    pub fn candidates(&self, shard: u32, without: Option<&str>) -> Vec<&Member> {
        let mut candidates: Vec<&Member> =
            self.members.iter().filter(|member| Some(member.id.as_str()) != without).collect();
        candidates.sort_by_key(|member| std::cmp::Reverse(score(&member.id, shard)));
        candidates
    }
}

/// The weight of a member for a shard (rendezvous hashing): another member's coming or going changes nobody's.
pub(super) fn score(id: &str, shard: u32) -> (u64, &str) {
    (checksum(CrcAlgorithm::Crc64Nvme, format!("{id}/{shard}").as_bytes()), id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, incarnation: &str) -> Member {
        Member {
            id: id.to_owned(),
            incarnation: incarnation.to_owned(),
            url: format!("http://{id}:9001"),
            host: String::new(),
            since: String::new(),
        }
    }

    fn ownership(id: &str, incarnation: &str, epoch_before: u64) -> Ownership {
        Ownership {
            shard: 0,
            member: id.to_owned(),
            incarnation: incarnation.to_owned(),
            host: String::new(),
            epoch_before,
            how: Succession::Dead,
            since: String::new(),
        }
    }

    #[test]
    fn a_map_is_read_as_it_was_written_and_anything_else_is_refused() {
        let map = ClusterMap::empty(1).joined(member("a", "1")).owned(ownership("a", "1", 7));

        assert_eq!(ClusterMap::parse(3, &map.bytes()).unwrap(), map);

        let text = String::from_utf8(map.bytes().to_vec()).unwrap();
        let later = text.replace("\"format\":1", "\"format\":3");
        let endless = text.replace("\"shards\":1", "\"shards\":257");
        let other = text.replace("\"routing\":1", "\"routing\":2");
        for wrong in ["", "{}", &later, &endless, &other, &text[..text.len() / 2]] {
            let error = ClusterMap::parse(3, wrong.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("map 3 of the cluster"), "{error}");
        }
        let of_first_release = text.replace(",\"routing\":1", "");
        assert_eq!(ClusterMap::parse(3, of_first_release.as_bytes()).unwrap(), map);
    }

    #[test]
    fn only_maps_that_say_of_generations_are_refused_by_older_daemons() {
        let (old, new) = (StoreShards::first(16), StoreShards { count: 4, generation: 12 });
        let being = ClusterMap { resharding: Some(new), ..ClusterMap::of(old) }.formatted();

        for (map, format) in [(ClusterMap::of(old), 1), (being.clone(), 2), (ClusterMap::of(new), 2)] {
            assert_eq!(map.format, format);
            assert_eq!(ClusterMap::parse(3, &map.bytes()).unwrap(), map);
        }
        let text = String::from_utf8(being.bytes().to_vec()).unwrap();
        assert!(text.contains("\"resharding\":{\"shards\":4,\"generation\":12}"), "{text}");
        let plain = String::from_utf8(ClusterMap::of(old).bytes().to_vec()).unwrap();
        assert!(!plain.contains("generation") && !plain.contains("resharding"), "{plain}");
    }

    #[test]
    fn a_restart_is_another_process_and_owns_nothing() {
        let map = ClusterMap::empty(1).joined(member("a", "1")).owned(ownership("a", "1", 7));
        assert_eq!(map.owner(0).unwrap().1.incarnation, "1");

        let map = map.joined(member("a", "2"));

        assert_eq!(map.members.len(), 1);
        assert!(map.owner(0).is_none());
        assert_eq!(map.ownership(0).unwrap().incarnation, "1", "a successor knows whom it succeeds");
        assert_eq!(map.clone().left("a", "1"), map, "a process that is gone takes nobody else with it");
        assert!(map.left("a", "2").members.is_empty());
    }

    #[test]
    fn what_ended_has_no_owner() {
        let map = ClusterMap::empty(1).joined(member("a", "1")).owned(ownership("a", "1", 7)).ended(0);

        assert!(map.owner(0).is_none());
        assert_eq!(map.ownership(0).unwrap().how, Succession::Ended);
    }

    #[test]
    fn all_find_the_same_candidates_and_a_member_less_does_not_change_the_order_of_the_others() {
        let ids = ["a", "b", "c", "d"];
        let map = ids.iter().fold(ClusterMap::empty(1), |map, id| map.joined(member(id, "1")));
        let backwards = ids.iter().rev().fold(ClusterMap::empty(1), |map, id| map.joined(member(id, "1")));
        let names = |map: &ClusterMap, without| {
            map.candidates(0, without).into_iter().map(|member| member.id.clone()).collect::<Vec<_>>()
        };

        let all = names(&map, None);
        assert_eq!(all, names(&backwards, None));
        let first = all[0].as_str();
        assert_eq!(names(&map, Some(first)), all[1..]);
    }
}
