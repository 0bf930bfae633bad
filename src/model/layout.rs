//! Reads the meaning of a key: whose state it is, of which checkpoint, and how long it will live.
//!
//! Engines lay their state out in fixed ways; what dies together should be packed together. [`KeyLayout::of`] reads the job,
//! the scope and the checkpoint off a key. It never fails: a key that fits no layout belongs to the job of its first
//! folder.
//!
//! | engine | key below the checkpoint folder | job | scope | checkpoint |
//! | --- | --- | --- | --- | --- |
//! | Flink | `<32 hex>/chk-<n>/..` | up to the 32 hex | exclusive | n |
//! | Flink | `<32 hex>/shared/..`, `<32 hex>/dstl/..` | up to the 32 hex | shared | |
//! | Flink | `<32 hex>/taskowned/..` | up to the 32 hex | exclusive | |
//! | Flink, no folder per job | `chk-<n>/<leaf>`, `shared/<uuid>`, `taskowned/<uuid>` | the folder | as above | as above |
//! | Flink | `savepoint-<hex>-<hex>/..` | up to and with the savepoint | exclusive | |
//! | Spark | `state/<op>/<partition>/<v>.delta` (`.changelog`, `.zip`, their `.tmp`) | the folder | exclusive | v |
//! | Spark | `state/<op>/<partition>/<uuid>.sst` | the folder | shared | |
//! | Spark | `offsets/<n>`, `commits/<n>` | the folder | exclusive | n |
//! | Arroyo | `checkpoints/checkpoint-<n>/..` | the folder | exclusive | n |
//! | PyTorch DCP | `<step>/__<rank>_<n>.distcp` | the folder of the step | exclusive | the step, if it ends in a number |
//!
//! Flink never resumes the multipart upload of a state file or of `_metadata`: after a failure it writes the file anew. What
//! it does resume are the uploads of its file sink, whose keys fit no layout.
//!
//! The bucket and the folders in front are part of the job's name, because Flink repeats job ids across clusters.

use super::{About, CheckpointId, JobId, Label, StateScope, Writer};

/// Characters of a Flink job id.
const FLINK_JOB_CHARS: usize = 32;
/// Characters of a UUID.
const UUID_CHARS: usize = 36;
/// Bytes of a label.
const NAME_BYTES_MAX: usize = 1200;

/// The meaning of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLayout {
    /// The owner of the state.
    pub about: About,
    /// The checkpoint that is complete once this object is stored: the key is a Flink `_metadata`.
    pub completes: Option<CheckpointId>,
    /// Whether somebody may go on with a multipart upload to this key after a restart.
    pub resumable: bool,
    /// Whether Flink has merged files into this one.
    pub merged_by_flink: bool,
}

impl KeyLayout {
    /// Says what `key` of `bucket` is.
    pub fn of(bucket: &str, key: &str) -> Self {
        let parts: Vec<&str> = key.split('/').collect();
        let rules =
            [flink, flink_without_job_folder, savepoint, spark_state, spark_log, arroyo, distributed_checkpoint];
        let found = rules.iter().find_map(|rule| rule(&parts)).unwrap_or(Match {
            job_parts: usize::from(parts.len() > 1),
            scope: StateScope::Exclusive,
            checkpoint: None,
            completes: false,
            resumable: true,
            merged: false,
        });
        let checkpoint = found.checkpoint.map(CheckpointId);
        let about = About {
            job: job(bucket, &parts[..found.job_parts]),
            scope: found.scope,
            writer: Writer::default(),
            checkpoint,
            name: name(bucket, key),
        };
        Self {
            about,
            completes: checkpoint.filter(|_| found.completes),
            resumable: found.resumable,
            merged_by_flink: found.merged,
        }
    }
}

/// A key of Flink's checkpoints and savepoints, by its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlinkKey<'a> {
    /// The folder of the job, or of the savepoint.
    pub folder: &'a str,
    /// The folder below that.
    pub place: FlinkPlace,
    /// The rest of the key.
    pub below: &'a str,
    /// Whether Flink has merged files into this one.
    pub merged: bool,
}

/// The part of a job's folder that a key of Flink's is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlinkPlace {
    /// `chk-<n>`
    Checkpoint(u64),
    /// `shared`
    Shared,
    /// `taskowned`
    TaskOwned,
    /// `dstl`: changes that are written before a checkpoint needs them.
    Changelog,
    /// A savepoint has a folder of its own.
    Savepoint,
}

impl<'a> FlinkKey<'a> {
    /// Takes a key apart; `None` for one that fits no layout of Flink's.
    pub fn of(key: &'a str) -> Option<Self> {
        let parts: Vec<&str> = key.split('/').collect();
        let in_job = flink(&parts).or_else(|| flink_without_job_folder(&parts));
        let found = in_job.or_else(|| savepoint(&parts))?;
        let place = match (in_job.and(parts.get(found.job_parts)), found.checkpoint) {
            (None, _) => FlinkPlace::Savepoint,
            (_, Some(number)) => FlinkPlace::Checkpoint(number),
            (Some(&"shared"), _) => FlinkPlace::Shared,
            (Some(&"dstl"), _) => FlinkPlace::Changelog,
            (Some(_), _) => FlinkPlace::TaskOwned,
        };
        let len = |parts: &[&str]| parts.iter().map(|part| part.len() + 1).sum::<usize>();
        let folder = &key[..len(&parts[..found.job_parts]).saturating_sub(1)];
        let below = &key[len(&parts[..found.job_parts + usize::from(in_job.is_some())])..];
        Some(Self { folder, place, below, merged: found.merged })
    }
}

/// A layout that fits a key: the number of its parts that name the job, and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    job_parts: usize,
    scope: StateScope,
    checkpoint: Option<u64>,
    completes: bool,
    resumable: bool,
    merged: bool,
}

fn exclusive(job_parts: usize, checkpoint: Option<u64>) -> Match {
    Match { job_parts, scope: StateScope::Exclusive, checkpoint, completes: false, resumable: true, merged: false }
}

fn shared(job_parts: usize) -> Match {
    Match { job_parts, scope: StateScope::Shared, checkpoint: None, completes: false, resumable: true, merged: false }
}

fn flink(parts: &[&str]) -> Option<Match> {
    parts.windows(2).enumerate().find_map(|(at, pair)| {
        let is_job = pair[0].len() == FLINK_JOB_CHARS && is_lower_hex(pair[0]);
        let below = parts.get(at + 2..).filter(|below| is_job && !below.is_empty())?;
        flink_folder(at + 1, pair[1], below)
    })
}

/// With `state.checkpoints.create-subdir` off the job's folder is missing; then the leaf has to look like Flink's too,
/// because `shared` is a common word.
fn flink_without_job_folder(parts: &[&str]) -> Option<Match> {
    let folder = parts.len().checked_sub(2)?;
    let leaf = parts[folder + 1];
    let known = leaf == "_metadata" || leaf.is_empty() && parts[folder].starts_with("chk-") || is_uuid(leaf);
    if known { flink_folder(folder, parts[folder], &parts[folder + 1..]) } else { None }
}

fn flink_folder(job_parts: usize, folder: &str, below: &[&str]) -> Option<Match> {
    let found = match folder {
        "shared" => Match { merged: is_merged(below, "_op_"), ..shared(job_parts) },
        "dstl" => shared(job_parts),
        "taskowned" => Match { merged: is_merged(below, "_tm_"), ..exclusive(job_parts, None) },
        _ => {
            let number = decimal(folder.strip_prefix("chk-")?)?;
            let completes = *below == ["_metadata"];
            Match { completes, ..exclusive(job_parts, Some(number)) }
        }
    };
    Some(Match { resumable: false, ..found })
}

/// Whether this is a file of Flink's own merging: it has folders `job_<id>_op_<operator>` and `job_<id>_tm_<manager>`.
fn is_merged(below: &[&str], of: &str) -> bool {
    let [folder, _, ..] = below else { return false };
    folder.strip_prefix("job_").and_then(|rest| rest.split_once(of)).is_some_and(|(job, _)| is_lower_hex(job))
}

fn savepoint(parts: &[&str]) -> Option<Match> {
    let folders = parts.split_last()?.1;
    let at = folders.iter().position(|part| {
        let ids = part.strip_prefix("savepoint-").and_then(|ids| ids.split_once('-'));
        ids.is_some_and(|(job, random)| is_lower_hex(job) && is_lower_hex(random))
    })?;
    Some(Match { resumable: false, ..exclusive(at + 1, None) })
}

fn spark_state(parts: &[&str]) -> Option<Match> {
    let [.., "state", operator, partition, leaf] = parts else { return None };
    decimal(operator)?;
    decimal(partition)?;
    let job_parts = parts.len() - 4;
    // Before its rename a file is called `.<name>.<uuid>.TID<n>.tmp`.
    let leaf = leaf.strip_prefix('.').filter(|_| leaf.ends_with(".tmp")).unwrap_or(leaf);
    let (stem, kind) = leaf.split_once('.')?;
    match kind.split('.').next()? {
        "delta" | "changelog" | "zip" | "snapshot" => Some(exclusive(job_parts, Some(decimal(version(stem))?))),
        "sst" => Some(shared(job_parts)),
        _ => None,
    }
}

/// Whether a key is one of Spark's files of state.
pub(super) fn is_spark_state(key: &str) -> bool {
    spark_state(&key.split('/').collect::<Vec<_>>()).is_some()
}

/// Spark 4 writes `<version>_<unique id>`.
fn version(stem: &str) -> &str {
    stem.split('_').next().unwrap_or(stem)
}

fn spark_log(parts: &[&str]) -> Option<Match> {
    let [.., "offsets" | "commits", leaf] = parts else { return None };
    Some(exclusive(parts.len() - 2, Some(decimal(leaf)?)))
}

fn arroyo(parts: &[&str]) -> Option<Match> {
    let at = parts.windows(2).position(|pair| pair[0] == "checkpoints" && pair[1].starts_with("checkpoint-"))?;
    parts.get(at + 2)?;
    Some(exclusive(at, Some(decimal(parts[at + 1].strip_prefix("checkpoint-")?)?)))
}

fn distributed_checkpoint(parts: &[&str]) -> Option<Match> {
    let [.., step, leaf] = parts else { return None };
    let (rank, number) = leaf.strip_prefix("__")?.strip_suffix(".distcp")?.split_once('_')?;
    decimal(rank)?;
    decimal(number)?;
    let digits = step.len() - step.bytes().rev().take_while(u8::is_ascii_digit).count();
    let number = decimal(&step[digits..]);
    let job_parts = if number.is_some() { parts.len() - 2 } else { parts.len() - 1 };
    Some(exclusive(job_parts, number))
}

fn decimal(text: &str) -> Option<u64> {
    // `parse` would take a plus sign.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn is_lower_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == UUID_CHARS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

/// The job of these folders. Parts that an id cannot hold are left out; what still is no id falls back to the bucket.
fn job(bucket: &str, parts: &[&str]) -> JobId {
    let valid = |part: &&str| !matches!(*part, "" | "." | "..") && !part.chars().any(char::is_control);
    let mut id = bucket.to_owned();
    for part in parts.iter().copied().filter(valid) {
        id.push('/');
        id.push_str(part);
    }
    let bucket = || bucket.parse().unwrap_or_else(|_| "_".parse().expect("a plain letter is a job id"));
    id.parse().unwrap_or_else(|_| bucket())
}

/// `s3://bucket/key`, cut and cleaned to fit a label.
fn name(bucket: &str, key: &str) -> Option<Label> {
    let mut text = format!("s3://{bucket}/{key}");
    if text.chars().any(char::is_control) {
        text = text.replace(char::is_control, "\u{fffd}");
    }
    text.truncate(text.floor_char_boundary(NAME_BYTES_MAX));
    Label::parse("name", &text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const J: &str = "0123456789abcdef0123456789abcdef";
    const U: &str = "5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f";

    fn facts(key: &str) -> (String, StateScope, Option<u64>, bool) {
        let KeyLayout { about, completes, .. } = KeyLayout::of("b", key);
        (about.job.to_string(), about.scope, about.checkpoint.map(|n| n.0), completes.is_some())
    }

    #[test]
    fn exclusive_state_of_flink_belongs_to_its_checkpoint() {
        let expected = (format!("b/dir/jobs/{J}"), StateScope::Exclusive, Some(17), false);

        assert_eq!(facts(&format!("dir/jobs/{J}/chk-17/{U}")), expected);
        assert_eq!(facts(&format!("dir/jobs/{J}/chk-17/")), expected);
    }

    #[test]
    fn only_the_metadata_of_a_checkpoint_completes_it() {
        let expected = (format!("b/{J}"), StateScope::Exclusive, Some(17), true);

        assert_eq!(facts(&format!("{J}/chk-17/_metadata")), expected);
        assert!(!facts(&format!("{J}/chk-17/._metadata.inprogress.{U}")).3);
        assert!(!facts(&format!("{J}/chk-17/x/_metadata")).3);
        assert!(!facts(&format!("{J}/_metadata")).3);
        assert!(!facts("savepoint-012345-0123456789ab/_metadata").3);
    }

    #[test]
    fn shared_and_task_owned_state_of_flink_belong_to_the_job() {
        let job = format!("b/d/{J}");

        for key in ["shared/U", "shared/job_J_op_x_1_2_/U", "dstl/U", "shared/"] {
            assert_eq!(facts(&format!("d/{J}/{key}")), (job.clone(), StateScope::Shared, None, false), "{key}");
        }
        for key in ["taskowned/U", "taskowned/job_J_tm_x/U"] {
            assert_eq!(facts(&format!("d/{J}/{key}")), (job.clone(), StateScope::Exclusive, None, false), "{key}");
        }
    }

    #[test]
    fn uploads_of_state_files_of_flink_are_never_resumed_and_all_others_may_be() {
        for state in [
            format!("d/{J}/chk-17/_metadata"),
            format!("d/{J}/chk-17/{U}"),
            format!("d/{J}/shared/{U}"),
            format!("d/{J}/taskowned/{U}"),
            format!("ckpt/chk-3/{U}"),
            format!("sp/savepoint-0a1b2c-0123456789ab/{U}"),
        ] {
            assert!(!KeyLayout::of("b", &state).resumable, "{state}");
        }
        for other in [
            "out/2026-11-28--22/part-5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f-0",
            "out/shared/part-0-0",
            "out/chk-17/part-0-0",
            "q/state/0/12/41.zip",
            "t/__magic/job-1/tasks/a/__base/part-0",
            "a.txt",
        ] {
            assert!(KeyLayout::of("b", other).resumable, "{other}");
        }
    }

    #[test]
    fn files_that_flink_has_merged_are_told_from_others() {
        let merged = |key: &str| KeyLayout::of("b", &format!("d/{J}/{key}")).merged_by_flink;

        for key in [format!("shared/job_{J}_op_x_1_2_/{U}"), format!("taskowned/job_{J}_tm_localhost-1/{U}")] {
            assert!(merged(&key), "{key}");
        }
        for key in ["shared/U", "taskowned/U", "shared/job_J_op_x/U", "chk-1/job_0_op_x/U", "dstl/job_0_op_x/U"] {
            assert!(!merged(key), "{key}");
        }
    }

    #[test]
    fn without_a_job_folder_the_directory_is_the_job() {
        assert_eq!(facts(&format!("ckpt/chk-3/{U}")), ("b/ckpt".into(), StateScope::Exclusive, Some(3), false));
        assert_eq!(facts("ckpt/chk-3/_metadata"), ("b/ckpt".into(), StateScope::Exclusive, Some(3), true));
        assert_eq!(facts(&format!("x/ckpt/shared/{U}")), ("b/x/ckpt".into(), StateScope::Shared, None, false));
        assert_eq!(facts("x/pictures/shared/cat.png").0, "b/x");
    }

    #[test]
    fn a_key_of_flink_has_a_folder_and_a_place_in_it() {
        let parts = |key: &str| FlinkKey::of(key).map(|key| (key.folder.to_owned(), key.place, key.merged));
        let job = format!("a//d/{J}");

        assert_eq!(parts(&format!("{job}/chk-7/{U}")), Some((job.clone(), FlinkPlace::Checkpoint(7), false)));
        assert_eq!(parts(&format!("{job}/chk-7/")), Some((job.clone(), FlinkPlace::Checkpoint(7), false)));
        assert_eq!(parts(&format!("{job}/shared/{U}")), Some((job.clone(), FlinkPlace::Shared, false)));
        assert_eq!(
            parts(&format!("{job}/taskowned/job_{J}_tm_x/{U}")),
            Some((job.clone(), FlinkPlace::TaskOwned, true))
        );
        assert_eq!(parts(&format!("{job}/dstl/{U}")), Some((job, FlinkPlace::Changelog, false)));
        let below = |key: &str| FlinkKey::of(key).unwrap().below.to_owned();
        assert_eq!(below(&format!("{J}/shared/op_x_attempt_1/db/{U}")), format!("op_x_attempt_1/db/{U}"));
        assert_eq!(below(&format!("{J}/chk-7/")), "");
        assert_eq!(below("chk-3/_metadata"), "_metadata");
        assert_eq!(below("sp/savepoint-0a1b2c-0123456789ab/x/y"), "x/y");
        assert_eq!(parts(&format!("shared/{U}")), Some((String::new(), FlinkPlace::Shared, false)));
        assert_eq!(parts("chk-3/_metadata"), Some((String::new(), FlinkPlace::Checkpoint(3), false)));
        let savepoint = "sp/savepoint-0a1b2c-0123456789ab";
        assert_eq!(parts(&format!("{savepoint}/{U}")), Some((savepoint.to_owned(), FlinkPlace::Savepoint, false)));
        for other in ["sp/x/_metadata", "q/state/0/1/2.delta", "", "/", "shared", "a.txt"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn a_savepoint_is_a_job_of_its_own() {
        let (job, scope, checkpoint, _) = facts(&format!("sp/savepoint-0a1b2c-0123456789ab/{U}"));

        assert_eq!(
            (job.as_str(), scope, checkpoint),
            ("b/sp/savepoint-0a1b2c-0123456789ab", StateScope::Exclusive, None)
        );
        assert_eq!(facts("sp/savepoint-notes.txt").0, "b/sp");
    }

    #[test]
    fn state_and_logs_of_spark_belong_to_the_query() {
        for leaf in ["41.delta", "41.changelog", "41.zip", "41_0-1.zip", ".41.delta.abc.TID5.tmp"] {
            let expected = ("b/q".into(), StateScope::Exclusive, Some(41), false);
            assert_eq!(facts(&format!("q/state/0/12/{leaf}")), expected, "{leaf}");
        }
        assert_eq!(facts(&format!("q/state/0/12/{U}.sst")), ("b/q".into(), StateScope::Shared, None, false));
        assert_eq!(facts("x/q/offsets/7"), ("b/x/q".into(), StateScope::Exclusive, Some(7), false));
        assert_eq!(facts("x/q/commits/+7").0, "b/x");
    }

    #[test]
    fn checkpoints_of_arroyo_and_dcp_are_told_apart() {
        let key = "j/checkpoints/checkpoint-0000012/operator-a/table-b-001";
        assert_eq!(facts(key), ("b/j".into(), StateScope::Exclusive, Some(12), false));
        assert_eq!(facts("run/step-500/__3_0.distcp"), ("b/run".into(), StateScope::Exclusive, Some(500), false));
        assert_eq!(facts("run/last/__3_0.distcp"), ("b/run/last".into(), StateScope::Exclusive, None, false));
    }

    #[test]
    fn other_keys_belong_to_their_first_folder() {
        assert_eq!(facts("logs/2026/a.txt"), ("b/logs".into(), StateScope::Exclusive, None, false));
        assert_eq!(facts("a.txt").0, "b");
        assert_eq!(facts("dir/").0, "b/dir");
    }

    #[test]
    fn parts_that_no_job_can_hold_are_left_out() {
        assert_eq!(facts(&format!("a//./../c\nd/{J}/chk-1/{U}")).0, format!("b/a/{J}"));
        assert_eq!(facts("/x").0, "b");
        assert_eq!(facts("../x").0, "b");
    }

    #[test]
    fn numbers_too_large_for_a_checkpoint_are_none() {
        assert_eq!(facts(&format!("{J}/chk-99999999999999999999/{U}")).2, None);
    }

    #[test]
    fn names_are_cut_at_a_character() {
        let layout = KeyLayout::of("b", &"ü".repeat(1000));

        assert_eq!(layout.about.name.unwrap().as_str().len(), 1199);
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(key in "\\PC{0,80}|([a-f0-9]{32}|chk-[0-9]{0,22}|shared|state|[0-9]{1,3}|[.]{0,3}|\n|/|__1_2\\.distcp|offsets|savepoint-a-b|checkpoints|checkpoint-1){0,12}") {
            let layout = KeyLayout::of("bucket", &key);
            prop_assert!(layout.about.job.as_str().starts_with("bucket"));
            prop_assert!(layout.completes.is_none() || layout.completes == layout.about.checkpoint);
        }
    }
}
