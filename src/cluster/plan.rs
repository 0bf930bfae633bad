//! Which shard should have another owner, as all members find from the map alone.
//!
//! A shard is moved when its owner has two more than another member. One at a time, and only while all of them have owners: what is
//! being taken over counts for nobody yet. Whoever has the most gives one away; the others do nothing.

use std::cmp::Reverse;

use super::map::{ClusterMap, score};

/// A shard that is to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardMove {
    /// The shard.
    pub shard: u32,
    /// The name of its owner.
    pub from: String,
    /// The name of the member that is to have it.
    pub to: String,
}

/// The next move; `None` if there is none to make. Members that take none are not counted.
pub fn plan(map: &ClusterMap, takes: impl Fn(&str) -> bool) -> Option<ShardMove> {
    let owned: Vec<(u32, &str)> = (0..map.shards)
        .map(|shard| map.owner(shard).map(|(_, member)| (shard, member.id.as_str())))
        .collect::<Option<_>>()?;
    let count = |id: &str| owned.iter().filter(|(_, owner)| *owner == id).count();
    let ids = || map.members.iter().map(|member| member.id.as_str());
    let from = ids().max_by_key(|id| (count(id), Reverse(*id)))?;
    let to = ids().filter(|id| takes(id)).min_by_key(|id| (count(id), *id))?;
    if count(from) < count(to) + 2 {
        return None;
    }
    let of_from = owned.iter().filter(|(_, owner)| *owner == from);
    let (shard, _) = of_from.max_by_key(|(shard, _)| (score(to, *shard), Reverse(*shard)))?;
    Some(ShardMove { shard: *shard, from: from.to_owned(), to: to.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::map::{Member, Ownership, Succession};
    use super::*;

    fn member(id: &str) -> Member {
        let text = || id.to_owned();
        Member { id: text(), incarnation: text(), url: String::new(), host: String::new(), since: String::new() }
    }

    fn owned(map: ClusterMap, shard: u32, id: &str) -> ClusterMap {
        map.owned(Ownership {
            shard,
            member: id.to_owned(),
            incarnation: id.to_owned(),
            host: String::new(),
            epoch_before: 1,
            how: Succession::HandedOver,
            since: String::new(),
        })
    }

    fn all_of_first(shards: u32, ids: &[&str]) -> ClusterMap {
        let map = ids.iter().fold(ClusterMap::empty(shards), |map, id| map.joined(member(id)));
        (0..shards).fold(map, |map, shard| owned(map, shard, ids[0]))
    }

    #[test]
    fn moves_end_with_members_that_differ_by_one() {
        for (shards, ids) in [(16, &["a", "b", "c"][..]), (4, &["a", "b", "c"]), (1, &["a", "b"]), (7, &["a"])] {
            let mut map = all_of_first(shards, ids);
            let mut moves = 0;
            while let Some(next) = plan(&map, |_| true) {
                assert_eq!(map.owner(next.shard).unwrap().1.id, next.from);
                map = owned(map, next.shard, &next.to);
                moves += 1;
                assert!(moves < shards, "{shards} {ids:?}");
            }

            let counts =
                ids.iter().map(|id| (0..shards).filter(|shard| map.owner(*shard).unwrap().1.id == *id).count());
            let counts: Vec<_> = counts.collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
    }

    #[test]
    fn nothing_is_moved_while_a_shard_has_no_owner_and_nothing_to_who_takes_none() {
        let map = all_of_first(4, &["a", "b"]);

        assert_eq!(plan(&map.clone().ended(2), |_| true), None);
        assert_eq!(plan(&map, |id| id != "b"), None);
        assert!(plan(&map, |_| true).is_some_and(|next| next.to == "b"));
    }
}
