//! Shards: the parts into which the name space of a cluster is divided, and the one that a key or a job is in.
//!
//! Routing 1, which is frozen, because a key must never move: the parts of a key are its bucket and its folders, those of a job's id
//! what its slashes divide. Parts that no job's id can hold are left out (empty ones, `.`, `..`, and those with control characters), so
//! that a job that is known by its keys is where they are. What decides ends with the first part of 32 lower-case hex digits, as
//! Flink names its jobs; without one, after the first two parts. The shard is the CRC-64/NVME of that, its parts joined by slashes,
//! modulo the number of shards.
//!
//! | key | what decides |
//! | --- | --- |
//! | `bucket`, `flink/jobs/<32 hex>/chk-7/x` | `bucket/flink/jobs/<32 hex>` |
//! | `bucket`, `spark/query/state/0/1/2.delta` | `bucket/spark` |
//! | `bucket`, `a.txt` | `bucket` |

use std::fmt;

use crc_fast::{CrcAlgorithm, checksum};
use serde::{Deserialize, Serialize};

/// Shards that a store may have.
pub const SHARDS_MAX: u32 = 256;
/// The number of this routing, the only one that there is.
pub const ROUTING: u32 = 1;
/// The shard that decides which buckets there are.
pub const OF_BUCKETS: u32 = 0;
/// Parts that decide where no part is the id of a job of Flink's.
const PARTS: usize = 2;
/// Digits of an id of a job of Flink's.
const HEX_DIGITS: usize = 32;

/// The shards that a store is divided into.
///
/// Each change of their number makes a new *generation*, whose shards have folders of their own: no name of an earlier one is used
/// again. A new store has generation 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreShards {
    /// Their number.
    #[serde(rename = "shards")]
    pub count: u32,
    /// Tells them from those that were there before.
    pub generation: u64,
}

impl StoreShards {
    /// A store that was never divided.
    pub const UNDIVIDED: Self = Self { count: 1, generation: 0 };

    /// So many shards of a new store.
    pub fn first(count: u32) -> Self {
        Self { count, generation: 0 }
    }

    /// One of them.
    pub fn shard(self, shard: u32) -> ShardOf {
        ShardOf { shard, of: self.count, generation: self.generation }
    }

    /// All of them.
    pub fn all(self) -> impl Iterator<Item = ShardOf> + use<> {
        (0..self.count).map(move |shard| self.shard(shard))
    }

    /// Where keys and jobs are.
    pub fn routing(self) -> Routing {
        Routing::over(self.count)
    }

    /// Whether the one shard has the root of the store itself.
    pub fn is_undivided(self) -> bool {
        self == Self::UNDIVIDED
    }
}

impl fmt::Display for StoreShards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.count, if self.count == 1 { "shard" } else { "shards" })
    }
}

/// One shard of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardOf {
    /// Its number, from 0 on.
    pub shard: u32,
    /// The number of shards that the store has.
    pub of: u32,
    /// The generation of the store's shards.
    pub generation: u64,
}

impl ShardOf {
    /// All of a store that is not divided.
    pub const WHOLE: Self = Self { shard: 0, of: 1, generation: 0 };

    /// Whether it has all of the store.
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// The folder of the shard below the store's root; `None` if the shard has the root itself.
    pub fn folder(self) -> Option<[String; 2]> {
        let name = match self.generation {
            0 if self.is_whole() => return None,
            0 => self.shard.to_string(),
            generation => format!("{generation}.{}", self.shard),
        };
        Some(["shards".to_owned(), name])
    }

    /// Whether an object with this key is in it, or would be.
    pub fn has_key(self, bucket: &str, key: &str) -> bool {
        self.routing().of_key(bucket, key) == self.shard
    }

    /// Whether a job of this name is in it, or would be.
    pub fn has_job(self, job: &str) -> bool {
        self.routing().of_job(job) == self.shard
    }

    /// Whether it decides which buckets there are. The others are told when they are asked for one.
    pub fn decides_on_buckets(self) -> bool {
        self.shard == OF_BUCKETS
    }

    /// Where keys and jobs of the store are.
    pub fn routing(self) -> Routing {
        Routing { shards: self.of }
    }
}

impl fmt::Display for ShardOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {} of {}", self.shard, self.of)
    }
}

/// Says which of so many shards a key or a job is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    shards: u32,
}

impl Routing {
    /// Over so many shards; at least one.
    pub fn over(shards: u32) -> Self {
        Self { shards: shards.max(1) }
    }

    /// The number of shards.
    pub fn shards(self) -> u32 {
        self.shards
    }

    /// The shard of a key.
    pub fn of_key(self, bucket: &str, key: &str) -> u32 {
        let folders = key.rsplit_once('/').map_or("", |(folders, _)| folders);
        self.of(&decisive(parts(bucket, folders)).0)
    }

    /// The shard of a job.
    pub fn of_job(self, job: &str) -> u32 {
        self.of(&decisive(job.split('/').filter(is_part)).0)
    }

    /// The shard that all keys with this prefix are in; `None` if they may be in several.
    pub fn of_prefix(self, bucket: &str, prefix: &str) -> Option<u32> {
        if self.shards == 1 {
            return Some(0);
        }
        // Its last part may go on in a key.
        let folders = prefix.rsplit_once('/').map_or("", |(folders, _)| folders);
        let (route, is_cut) = decisive(parts(bucket, folders));
        is_cut.then(|| self.of(&route))
    }

    fn of(self, route: &str) -> u32 {
        let sum = checksum(CrcAlgorithm::Crc64Nvme, route.as_bytes());
        u32::try_from(sum % u64::from(self.shards)).expect("a remainder is less than its divisor")
    }
}

fn parts<'a>(bucket: &'a str, folders: &'a str) -> impl Iterator<Item = &'a str> {
    std::iter::once(bucket).chain(folders.split('/').filter(is_part))
}

fn is_part(part: &&str) -> bool {
    !matches!(*part, "" | "." | "..") && !part.chars().any(char::is_control)
}

/// What decides of these parts, and whether it ends with the id of a job of Flink's.
fn decisive<'a>(parts: impl Iterator<Item = &'a str>) -> (String, bool) {
    let mut first = vec![];
    let mut all = vec![];
    for part in parts {
        all.push(part);
        if part.len() == HEX_DIGITS && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return (all.join("/"), true);
        }
        if first.len() < PARTS {
            first.push(part);
        }
    }
    (first.join("/"), false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::KeyLayout;

    const J: &str = "0123456789abcdef0123456789abcdef";

    /// Of 16 and of 5 shards. These values are on storage: they may never change.
    #[test]
    fn every_key_is_where_it_has_always_been() {
        let golden = [
            ("states", "a.txt", GOLDEN[0]),
            ("states", "flink/jobs/0123456789abcdef0123456789abcdef/chk-7/_metadata", GOLDEN[1]),
            ("states", "0123456789abcdef0123456789abcdef/shared/x", GOLDEN[2]),
            ("states", "spark/query/state/0/1/2.delta", GOLDEN[3]),
            ("states", "spark/other/offsets/7", GOLDEN[3]),
            ("states", "run/step-500/__3_0.distcp", GOLDEN[4]),
            ("bücket", "ordner ü/x", GOLDEN[5]),
            ("logs", "a//./b/x", GOLDEN[6]),
            ("logs", "a/b", GOLDEN[6]),
        ];
        for (bucket, key, expected) in golden {
            let found = (Routing::over(16).of_key(bucket, key), Routing::over(5).of_key(bucket, key));
            assert_eq!(found, expected, "{bucket} {key}");
        }
        let jobs = [("wordcount", GOLDEN[7]), ("team/wordcount", GOLDEN[8]), ("team/wordcount/7", GOLDEN[8])];
        for (job, expected) in jobs {
            assert_eq!((Routing::over(16).of_job(job), Routing::over(5).of_job(job)), expected, "{job}");
        }
    }

    /// Computed by another program, bit by bit.
    const GOLDEN: [(u32, u32); 9] = [(1, 2), (10, 0), (11, 4), (11, 0), (9, 0), (8, 4), (13, 0), (15, 3), (7, 1)];

    #[test]
    fn all_that_a_job_of_flink_has_is_together_and_no_other_job_of_it_has_to_be() {
        let routing = Routing::over(SHARDS_MAX);
        let of = |key: &str| routing.of_key("b", key);

        for key in ["chk-1/x", "chk-2/_metadata", "shared/a/b/c", "taskowned/y"] {
            assert_eq!(of(&format!("d/e/{J}/{key}")), of(&format!("d/e/{J}/z")), "{key}");
        }
        assert_ne!(of(&format!("d/e/{J}/x")), of("d/e/f0123456789abcdef0123456789abcde/x"));
        assert_eq!(of(&format!("d/e/{J}")), of("d/f/x"), "a file of that name is no folder");
        assert_eq!(of(&format!("d/e/{}/x", J.to_uppercase())), of("d/f/x"));
    }

    #[test]
    fn a_prefix_that_tells_the_shard_has_the_whole_id_of_a_job() {
        let routing = Routing::over(16);

        for prefix in [format!("d/e/{J}/"), format!("{J}/chk-1")] {
            assert_eq!(routing.of_prefix("b", &prefix), Some(routing.of_key("b", &format!("{prefix}/x"))), "{prefix}");
        }
        for prefix in ["", "d/", "d/e/f/g/", &format!("d/{J}"), &J[..20]] {
            assert_eq!(routing.of_prefix("b", prefix), None, "{prefix}");
        }
        assert_eq!(Routing::over(1).of_prefix("b", ""), Some(0));
    }

    #[test]
    fn no_two_shards_ever_have_the_same_place() {
        let folder = |shards: StoreShards, shard| shards.shard(shard).folder().map(|folders| folders.join("/"));

        assert_eq!(folder(StoreShards::UNDIVIDED, 0), None);
        assert_eq!(folder(StoreShards::first(16), 7).unwrap(), "shards/7");
        let [one, four] = [1, 4].map(|count| StoreShards { count, generation: 12 });
        assert_eq!(folder(one, 0).unwrap(), "shards/12.0");
        assert_eq!(folder(four, 3).unwrap(), "shards/12.3");
    }

    proptest! {
        #[test]
        fn keys_with_a_prefix_that_tells_are_where_it_says(
            prefix in "([a-c./]|0123456789abcdef0123456789abcdef|\n){0,5}",
            rest in "([a-c./]|0123456789abcdef0123456789abcdef){0,5}",
            shards in 1..=SHARDS_MAX,
        ) {
            let routing = Routing::over(shards);
            let shard = routing.of_key("b", &format!("{prefix}{rest}"));

            prop_assert!(shard < shards);
            if let Some(told) = routing.of_prefix("b", &prefix) {
                prop_assert_eq!(told, shard);
            }
        }

        /// But for a query or a job right below the bucket, whose id is shorter than what decides.
        #[test]
        fn a_job_that_is_known_by_its_keys_is_where_they_are(key in "(([a-c.]|[.]{2}|0123456789abcdef0123456789abcdef|chk-1|shared|state|1|\n)/){0,6}(_metadata|7|x)") {
            let routing = Routing::over(16);
            let job = KeyLayout::of("b", &key).about.job;

            // A folder with such a name below a checkpoint is nobody's layout.
            let is_cut = |text: &str| text.contains(J);
            if job.as_str().contains('/') && is_cut(job.as_str()) == is_cut(&key) {
                prop_assert_eq!(routing.of_job(job.as_str()), routing.of_key("b", &key), "{}", job);
            }
        }
    }
}
