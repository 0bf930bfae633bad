//! A checkpoint of Flink's on a local disk. Its `_metadata` are files that Flink has written (`tests/data/flink-metadata`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use esker::flink::{NamedPath, WrittenPath, read_metadata, relocate_metadata};
use tempfile::TempDir;

use crate::{daemon, pattern};

pub const JOB: &str = "0123456789abcdef0123456789abcdef";
pub const SAMPLES: [&[u8]; 3] = [
    include_bytes!("../data/flink-metadata/flink-1.13-v3.bin"),
    include_bytes!("../data/flink-metadata/flink-2.3-v4.bin"),
    include_bytes!("../data/flink-metadata/flink-2.3-v6.bin"),
];
/// Bytes of the largest file: more than is copied at once.
pub const LARGE: usize = 20 << 20;

/// A checkpoint 7 on the local disk, as Flink leaves it there.
#[derive(Debug)]
pub struct CheckpointOnDisk {
    folder: TempDir,
    pub metadata: Vec<u8>,
    /// What it names, by the path below Flink's folder.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl CheckpointOnDisk {
    /// One whose last file is large.
    pub fn new(sample: &[u8]) -> Self {
        Self::with_large(sample, 1)
    }

    /// One of whose files the last ones are large.
    pub fn with_large(sample: &[u8], large: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("flink");
        let metadata = relocate_metadata(sample, &mut |path| {
            let (WrittenPath::File(uri) | WrittenPath::Folder(uri)) = path;
            Some(uri.replace("s3://state/flink", &format!("file:{}", home.display())))
        });
        let mut source = Self { folder, metadata: metadata.unwrap(), files: BTreeMap::new() };
        let mut lens: BTreeMap<String, usize> = BTreeMap::new();
        read_metadata(&source.metadata, &mut |state| {
            let below = match &state.path {
                NamedPath::Relative(below) => format!("{JOB}/chk-7/{below}"),
                NamedPath::Absolute(uri) => uri.strip_prefix(&format!("file:{}/", home.display())).unwrap().to_owned(),
            };
            let len = lens.entry(below).or_default();
            *len = (*len).max((state.start + state.len) as usize);
        })
        .unwrap();
        // Flink names the whole of most files, and may have written behind what it names.
        for len in lens.values_mut().rev().take(large) {
            *len = LARGE;
        }
        for (seed, (below, len)) in lens.into_iter().enumerate() {
            let bytes = pattern(seed as u64, len);
            source.write(&below, &bytes);
            source.files.insert(below, bytes);
        }
        let metadata = source.metadata.clone();
        source.write(&format!("{JOB}/chk-7/_metadata"), &metadata);
        source
    }

    pub fn write(&self, below: &str, bytes: &[u8]) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join("flink").join(below)
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.path(&format!("{JOB}/chk-7")).display())
    }

    /// All its files, with what is in them.
    pub fn all(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        below(self.folder.path())
    }
}

fn below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    daemon::files(folder).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}
