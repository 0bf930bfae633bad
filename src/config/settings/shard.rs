//! The settings of one shard of a store: its place, and its part of what one daemon may take.

use super::Settings;
use crate::model::ShardOf;

/// Less than this no catalog may hold back, and no table of one may be smaller than half of it.
const UNFLUSHED_BYTES_MIN: u64 = 2 << 20;
const CACHE_BYTES_MIN: u64 = 1 << 20;
const TABLE_BYTES_MAX: u64 = 16 << 20;

impl Settings {
    /// Those of the engine of one shard. A daemon may have all shards: what bounds the memory of one engine is divided among them.
    /// What is paid for from a common budget is not.
    #[must_use]
    pub fn of_shard(&self, shard: ShardOf) -> Self {
        let mut settings = self.at_shard(shard);
        let Some(folders) = shard.folder() else { return settings };
        let part = |bytes: u64| bytes / u64::from(shard.of);
        if let Some(copy) = &mut settings.store.local_copy {
            for dir in &mut copy.dirs {
                *dir = folders.iter().fold(dir.clone(), |dir, folder| dir.join(folder));
            }
            copy.bytes_max = part(copy.bytes_max);
            copy.waiting_bytes_max = part(copy.waiting_bytes_max);
        }
        let (catalog, limits) = (&mut settings.catalog, &mut settings.limits);
        catalog.cache_bytes = part(catalog.cache_bytes).max(CACHE_BYTES_MIN);
        catalog.unflushed_bytes_max = part(catalog.unflushed_bytes_max).max(UNFLUSHED_BYTES_MIN);
        catalog.table_bytes_max = Some((catalog.unflushed_bytes_max / 2).min(TABLE_BYTES_MAX));
        catalog.inline_bytes_max = part(catalog.inline_bytes_max);
        limits.catalog_memory_bytes = part(limits.catalog_memory_bytes);
        // A part that is kept in memory has to fit.
        limits.multipart_memory_bytes =
            part(limits.multipart_memory_bytes).max(limits.multipart_part_in_memory_bytes_max);
        settings
    }

    /// The same settings for the place of a shard.
    #[must_use]
    pub fn at_shard(&self, shard: ShardOf) -> Self {
        let mut settings = self.clone();
        if let Some(folders) = shard.folder() {
            settings.store.url = self.store.url.below(&folders);
            settings.catalog.url = self.catalog.url.as_ref().map(|url| url.below(&folders));
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::model::StoreShards;

    fn settings(flags: &[(&str, &str)]) -> Settings {
        let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::load_with(None, [], &flags).unwrap().settings().unwrap()
    }

    #[test]
    fn a_shard_has_a_place_of_its_own_and_its_part_of_the_memory() {
        let whole = settings(&[
            ("store.url", "s3://bucket/p"),
            ("store.region", "r"),
            ("catalog.url", "s3://other"),
            ("catalog.cache", "32 mb"),
            ("catalog.unflushed-max", "64 mb"),
        ]);

        let of_shard = whole.of_shard(StoreShards::first(16).shard(7));

        assert_eq!(of_shard.store.url.to_string(), "s3://bucket/p/shards/7");
        assert_eq!(of_shard.catalog.url.unwrap().to_string(), "s3://other/shards/7");
        assert_eq!(of_shard.catalog.cache_bytes, 2 << 20);
        assert_eq!((of_shard.catalog.unflushed_bytes_max, of_shard.catalog.table_bytes_max), (4 << 20, Some(2 << 20)));
        assert_eq!(of_shard.limits.memory_bytes, whole.limits.memory_bytes, "that is one budget");
        let undivided = whole.of_shard(ShardOf::WHOLE);
        assert_eq!((undivided.store.url.to_string(), undivided.catalog), ("s3://bucket/p".to_owned(), whole.catalog));
    }
}
