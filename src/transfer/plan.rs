//! Which file of a checkpoint goes where.
//!
//! The layout stays: what is below the folder that holds the job's folder is in the same place below the target. A file
//! elsewhere, of a job whose checkpoint this one has claimed say, goes to the folder of its own job if its path tells
//! that, else to `shared/from-<hash>` of this one.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::location::{StorageLocation, joined};
use crate::flink::{METADATA, NamedPath, RelocateError, WrittenPath, read_metadata, relocate_metadata};
use crate::model::{FlinkKey, FlinkPlace};

/// Bytes of a hash that is part of a name.
const HASH_BYTES: usize = 8;

/// A file to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Where it is.
    pub from: StorageLocation,
    /// Where it goes.
    pub to: StorageLocation,
    /// Bytes of it that the checkpoint needs: it has at least as many.
    pub needed_bytes: u64,
}

/// What moving a checkpoint takes.
#[derive(Debug)]
pub struct TransferPlan {
    /// The files, each once.
    pub files: Vec<PlannedFile>,
    /// URIs of files that are on another kind of storage, and cannot be read from here.
    pub elsewhere: Vec<String>,
    /// The new `_metadata`.
    pub metadata: Vec<u8>,
    /// Where that goes.
    pub to: StorageLocation,
    /// The number of the checkpoint.
    pub checkpoint: u64,
}

/// Where a checkpoint is, and where it goes.
struct Route<'a> {
    /// The folder with `_metadata`.
    from: &'a StorageLocation,
    /// The folder that holds the job's folder, or the savepoint's.
    home: StorageLocation,
    /// The same on the other side.
    new_home: &'a StorageLocation,
}

/// Plans to move the checkpoint in the folder `from`, whose `_metadata` is `bytes`, below the folder `to`.
///
/// # Errors
/// [`RelocateError`] if `bytes` cannot be read, a path becomes too long, or two files would have the same.
pub fn plan(from: &StorageLocation, bytes: &[u8], to: &StorageLocation) -> Result<TransferPlan, RelocateError> {
    let route = Route { from, home: home_of(from), new_home: to };
    let mut files: BTreeMap<String, PlannedFile> = BTreeMap::new();
    let (mut elsewhere, mut same_place) = (vec![], None);
    let summary = read_metadata(bytes, &mut |state| {
        let file = match &state.path {
            NamedPath::Relative(below) => StorageLocation::of(&from.join(below).to_string()),
            NamedPath::Absolute(uri) => StorageLocation::of(uri),
        };
        match file {
            Ok(file) if file.root().is_like(from.root()) => {
                let to = route.of_file(&file);
                let planned = files.entry(to.path().to_owned()).or_insert_with(|| PlannedFile {
                    from: file.clone(),
                    to,
                    needed_bytes: 0,
                });
                if !planned.from.is_same(&file) {
                    let (first, second, to) = (planned.from.to_string(), file.to_string(), planned.to.to_string());
                    same_place.get_or_insert(RelocateError::SamePlace { first, second, to });
                }
                planned.needed_bytes = planned.needed_bytes.max(state.start.saturating_add(state.len));
            }
            Ok(file) => elsewhere.push(file.to_string()),
            Err(error) => elsewhere.push(error.to_string()),
        }
    })?;
    same_place.map_or(Ok(()), Err)?;
    let metadata = relocate_metadata(bytes, &mut |path| match path {
        WrittenPath::File(uri) => StorageLocation::of(uri).ok().map(|file| route.of_file(&file).to_string()),
        // Flink deletes the whole folder once: it must not be one of the original.
        WrittenPath::Folder(uri) => Some(
            StorageLocation::of(uri).map_or_else(|_| route.apart(uri), |folder| route.of_folder(&folder)).to_string(),
        ),
    })?;
    elsewhere.sort_unstable();
    elsewhere.dedup();
    Ok(TransferPlan {
        files: files.into_values().collect(),
        elsewhere,
        metadata,
        to: route.of_file(&from.join(METADATA)),
        checkpoint: summary.checkpoint,
    })
}

/// The folder whose layout stays: the one with the job's folder in it, or that of the savepoint, or of a copy.
fn home_of(checkpoint: &StorageLocation) -> StorageLocation {
    let metadata = checkpoint.join(METADATA);
    match FlinkKey::of(metadata.path()) {
        Some(FlinkKey { folder, place: FlinkPlace::Checkpoint(_), .. }) => checkpoint.at(folder).parent(),
        _ => checkpoint.parent(),
    }
}

impl Route<'_> {
    fn of_file(&self, file: &StorageLocation) -> StorageLocation {
        if file.root() == self.home.root()
            && let Some(below) = below(file.path(), self.home.path())
        {
            return self.new_home.join(below);
        }
        if let Some(flink) = FlinkKey::of(file.path()) {
            let below = file.path()[flink.folder.len()..].trim_start_matches('/');
            let job = flink.folder.rsplit('/').next().unwrap_or_default();
            return self.new_home.join(&joined(job, below));
        }
        self.apart(&file.parent().to_string()).join(file.name())
    }

    fn of_folder(&self, folder: &StorageLocation) -> StorageLocation {
        self.of_file(&folder.join("file")).parent()
    }

    /// Where the files of a folder go that is in no layout.
    fn apart(&self, folder: &str) -> StorageLocation {
        let hash = hex::encode(&Sha256::digest(folder)[..HASH_BYTES]);
        self.of_file(self.from).parent().join(&format!("shared/from-{hash}"))
    }
}

/// The rest of a path that is below a folder.
fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    if folder.is_empty() { Some(path) } else { path.strip_prefix(folder)?.strip_prefix('/') }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "0123456789abcdef0123456789abcdef";
    /// Names files of `s3://state/flink/<job>`.
    const SAMPLE: &[u8] = include_bytes!("../../tests/data/flink-metadata/flink-2.3-v6.bin");

    fn at(uri: &str) -> StorageLocation {
        StorageLocation::of(uri).unwrap()
    }

    fn routes(from: &str, to: &str) -> Vec<(String, String, u64)> {
        let plan = plan(&at(from), SAMPLE, &at(to)).unwrap();
        assert_eq!(plan.elsewhere, Vec::<String>::new());
        plan.files.iter().map(|file| (file.from.to_string(), file.to.to_string(), file.needed_bytes)).collect()
    }

    fn uris(bytes: &[u8]) -> Vec<String> {
        let mut uris = vec![];
        let all = relocate_metadata(bytes, &mut |path| {
            let (WrittenPath::File(uri) | WrittenPath::Folder(uri)) = path;
            uris.push(uri.to_owned());
            None
        });
        all.unwrap();
        uris
    }

    #[test]
    fn the_layout_stays_and_every_path_moves() {
        let from = format!("s3://state/flink/{JOB}/chk-7");
        let plan = plan(&at(&from), SAMPLE, &at("s3://bucket/a/b")).unwrap();

        assert_eq!((plan.to.to_string(), plan.checkpoint), (format!("s3://bucket/a/b/{JOB}/chk-7/_metadata"), 7));
        for file in &plan.files {
            let moved = file.from.to_string().replace("s3://state/flink", "s3://bucket/a/b");
            assert_eq!(file.to.to_string(), moved);
        }
        let merged = plan.files.iter().find(|file| file.from.path().ends_with("job_j_op_o_0_4/channels")).unwrap();
        assert_eq!(merged.needed_bytes, 49, "its first 40 bytes are of somebody else, and come with it");
        assert!(plan.files.iter().any(|file| file.from.path().ends_with("chk-7/state-0")));
        for uri in uris(&plan.metadata) {
            assert!(uri.starts_with(&format!("s3://bucket/a/b/{JOB}/")), "{uri}");
        }
    }

    #[test]
    fn what_goes_back_is_what_came() {
        let there = plan(&at(&format!("s3a://state/flink/{JOB}/chk-7")), SAMPLE, &at("hdfs://n:8020/x")).unwrap();
        let back = plan(&there.to.parent(), &there.metadata, &at("s3://state/flink")).unwrap();

        assert_eq!(back.metadata, SAMPLE);
        assert_eq!(back.to.to_string(), format!("s3://state/flink/{JOB}/chk-7/_metadata"));
    }

    #[test]
    fn files_of_another_folder_go_to_that_of_their_job() {
        let other = "ffffffffffffffffffffffffffffffff";
        let routes = routes(&format!("s3://elsewhere/ckpt/{other}/chk-7"), "s3://bucket/a");

        let shared = format!("s3://state/flink/{JOB}/shared/nested");
        assert!(routes.contains(&(shared, format!("s3://bucket/a/{JOB}/shared/nested"), 21)), "{routes:?}");
        let own = format!("s3://elsewhere/ckpt/{other}/chk-7/meta");
        assert!(routes.contains(&(own, format!("s3://bucket/a/{other}/chk-7/meta"), 50)), "{routes:?}");
    }

    #[test]
    fn files_in_no_layout_go_to_a_folder_that_tells_them_apart() {
        let moved = relocate_metadata(SAMPLE, &mut |path| {
            let (WrittenPath::File(uri) | WrittenPath::Folder(uri)) = path;
            Some(uri.replace(&format!("flink/{JOB}/shared"), "plain"))
        });
        let plan = plan(&at(&format!("s3://state/flink/{JOB}/chk-7")), &moved.unwrap(), &at("s3://bucket/a")).unwrap();

        let plain: Vec<_> = plan.files.iter().filter(|file| file.from.path().starts_with("plain/")).collect();
        assert!(plain.len() > 3, "{plan:?}");
        for file in &plain {
            let to = file.to.to_string();
            assert!(to.starts_with(&format!("s3://bucket/a/{JOB}/shared/from-")), "{to}");
            assert!(to.ends_with(file.from.name()), "{to}");
        }
        assert!(uris(&plan.metadata).iter().all(|uri| uri.starts_with("s3://bucket/a/")), "{:?}", uris(&plan.metadata));
    }

    #[test]
    fn a_savepoint_keeps_its_folder_alone() {
        let routes = routes("s3://state/sp/savepoint-012345-0123456789ab", "file:/x");

        let own = "s3://state/sp/savepoint-012345-0123456789ab/meta".to_owned();
        assert!(routes.contains(&(own, "file:/x/savepoint-012345-0123456789ab/meta".to_owned(), 50)), "{routes:?}");
    }

    #[test]
    fn a_checkpoint_without_a_folder_of_its_job_keeps_what_holds_it() {
        let to = plan(&at("s3://state/jobs/mine/chk-7"), SAMPLE, &at("s3://b")).unwrap().to;
        assert_eq!(to.to_string(), "s3://b/mine/chk-7/_metadata");
        let to = plan(&at("s3://state/chk-7"), SAMPLE, &at("s3://b/x")).unwrap().to;
        assert_eq!(to.to_string(), "s3://b/x/chk-7/_metadata");
    }

    #[test]
    fn two_files_do_not_go_to_the_same_place_unless_they_are_one_under_two_names() {
        let from = format!("s3://state/flink/{JOB}/chk-7");
        let planned_with = |raw: &str| {
            let renamed = relocate_metadata(SAMPLE, &mut |path| match path {
                WrittenPath::File(uri) if uri.ends_with("/shared/raw") => Some(raw.to_owned()),
                _ => None,
            });
            plan(&at(&from), &renamed.unwrap(), &at("s3://b")).map(|plan| plan.files.len())
        };

        // Beside the one that the sample names, which ends so.
        let one = planned_with(&format!("s3a://state/flink/{JOB}/shared/nested"));
        let two = planned_with(&format!("s3://other/flink/{JOB}/shared/nested"));

        assert_eq!(one.unwrap(), routes(&from, "s3://b").len() - 1);
        assert!(matches!(two, Err(RelocateError::SamePlace { .. })), "{two:?}");
    }

    #[test]
    fn files_on_another_kind_of_storage_are_told() {
        let plan = plan(&at(&format!("hdfs://n/flink/{JOB}/chk-7")), SAMPLE, &at("s3://b")).unwrap();

        assert_eq!(plan.elsewhere.len(), 9, "{:?}", plan.elsewhere);
        assert!(plan.files.iter().all(|file| file.from.path().contains("/chk-7/")));
    }
}
