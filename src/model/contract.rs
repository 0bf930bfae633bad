//! Reads what an engine's contract says of the object under a key: that its name is temporary, or that it is state which the
//! engine deletes once no checkpoint needs it.
//!
//! | engine | last part of the key | contract |
//! | --- | --- | --- |
//! | Spark, Delta Lake | `.<name>.<uuid>.tmp`, `.<name>.<uuid>.TID<n>.tmp` | temporary: `CheckpointFileManager` renames it, or fails |
//! | Flink | `._metadata.inprogress.<uuid>` | temporary: it is renamed to `_metadata`, or the checkpoint fails |
//!
//! | engine | key | contract |
//! | --- | --- | --- |
//! | Flink | `chk-<n>/..`, `shared/..`, `taskowned/..` of a job | state: never written again under the same name |
//! | Spark | `state/<op>/<partition>/..` | state: what maintenance finds too old it deletes, again if need be |
//!
//! A name is temporary only if the one who renames it notices that the object is gone: a rename of one file fails then. So a
//! file in `_temporary/` of Hadoop's output committers is not: a folder is renamed without those that are missing. Nor is a
//! `.inprogress` file of Flink's file sink, which goes on with it after a restart. Savepoints and the logs of Spark are no
//! state in this sense: people delete those by hand to go back, and want that to last.
//!
//! # Source
//! `CheckpointFileManager.RenameBasedFSDataOutputStream` of Spark 4.1; `FsCheckpointMetadataOutputStream` and
//! `HadoopRecoverableFsDataOutputStream` of Flink 2.3.

use super::layout::{FlinkKey, FlinkPlace, is_spark_state, is_uuid};

/// What an engine's contract says of the object under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyContract {
    /// It will be renamed, and its engine notices if it is gone before.
    Temporary,
    /// It is state, which its engine deletes once nobody needs it.
    State,
    /// Nothing is known.
    Other,
}

impl KeyContract {
    /// Says what is known of the object under `key`.
    pub fn of(key: &str) -> Self {
        let leaf = key.rsplit('/').next().unwrap_or(key);
        if is_temporary(leaf) {
            return Self::Temporary;
        }
        let of_flink = FlinkKey::of(key).map(|key| key.place);
        match of_flink {
            Some(FlinkPlace::Checkpoint(_) | FlinkPlace::Shared | FlinkPlace::TaskOwned) => Self::State,
            Some(FlinkPlace::Changelog | FlinkPlace::Savepoint) => Self::Other,
            None if is_spark_state(key) => Self::State,
            None => Self::Other,
        }
    }
}

fn is_temporary(leaf: &str) -> bool {
    let Some(leaf) = leaf.strip_prefix('.') else { return false };
    leaf.strip_prefix("_metadata.inprogress.").is_some_and(is_uuid) || is_temporary_of_spark(leaf)
}

/// `<name>.<uuid>.tmp`, with `.TID<n>` before the end if a task wrote it.
fn is_temporary_of_spark(leaf: &str) -> bool {
    let Some(named) = leaf.strip_suffix(".tmp") else { return false };
    let named = match named.rsplit_once(".TID") {
        Some((named, task)) if is_number(task) => named,
        _ => named,
    };
    named.rsplit_once('.').is_some_and(|(name, id)| !name.is_empty() && is_uuid(id))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const J: &str = "0123456789abcdef0123456789abcdef";
    const U: &str = "5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f";

    #[test]
    fn files_that_spark_and_flink_rename_are_temporary() {
        for key in [
            format!("q/state/0/12/.41.delta.{U}.TID5.tmp"),
            format!("q/state/0/12/.41_{U}.zip.{U}.TID512.tmp"),
            format!("q/offsets/.7.{U}.tmp"),
            format!(".metadata.{U}.tmp"),
            format!("table/_delta_log/.00000000000000000007.json.{U}.tmp"),
            format!("d/{J}/chk-7/._metadata.inprogress.{U}"),
        ] {
            assert_eq!(KeyContract::of(&key), KeyContract::Temporary, "{key}");
        }
    }

    #[test]
    fn names_that_only_look_like_it_are_not_temporary() {
        for key in [
            format!("q/offsets/7.{U}.tmp"),
            format!("q/offsets/.{U}.tmp"),
            format!("q/offsets/.7.{U}.tmp.x"),
            "q/offsets/.7.tmp".to_owned(),
            "q/offsets/.7.not-a-uuid.tmp".to_owned(),
            format!("q/offsets/.7.{U}.TID.tmp"),
            format!("q/offsets/.7.{U}.TIDx.tmp"),
            format!(".x.{U}.tmp/y"),
            format!("out/_temporary/0/_temporary/attempt_1/part-{U}.parquet"),
            format!("out/.part-{U}-0.inprogress.{U}"),
            format!("out/__magic/job-{U}/tasks/a/__base/part-0.pending"),
        ] {
            assert_eq!(KeyContract::of(&key), KeyContract::Other, "{key}");
        }
    }

    #[test]
    fn state_is_what_an_engine_deletes_by_itself() {
        for key in [
            format!("d/{J}/chk-17/{U}"),
            format!("d/{J}/chk-17/_metadata"),
            format!("d/{J}/chk-17/"),
            format!("d/{J}/shared/{U}"),
            format!("d/{J}/taskowned/{U}"),
            format!("ckpt/chk-3/{U}"),
            "q/state/0/12/41.delta".to_owned(),
            format!("q/state/0/12/{U}.sst"),
        ] {
            assert_eq!(KeyContract::of(&key), KeyContract::State, "{key}");
        }
        for key in [
            format!("sp/savepoint-0a1b2c-0123456789ab/{U}"),
            format!("d/{J}/dstl/{U}"),
            "q/offsets/7".to_owned(),
            "q/commits/7".to_owned(),
            "j/checkpoints/checkpoint-0000012/operator-a/table-b-001".to_owned(),
            "run/step-500/__3_0.distcp".to_owned(),
            "pictures/cat.png".to_owned(),
        ] {
            assert_eq!(KeyContract::of(&key), KeyContract::Other, "{key}");
        }
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(key in "\\PC{0,40}|([.]|/|TID[0-9]{0,3}|tmp|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|chk-1|state|_metadata|inprogress){0,12}") {
            let contract = KeyContract::of(&key);
            prop_assert!(contract != KeyContract::Temporary || key.contains('.'));
        }
    }
}
