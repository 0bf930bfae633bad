//! A folder that is filled with plain files, wholly or not at all.
//!
//! Everything is written below a folder of its own inside ([`PARTIAL`]) and moved to its place in the end, the list of
//! files last: a folder with a `manifest.jsonl` is complete. What is dropped before leaves the folder empty; what is
//! killed leaves [`PARTIAL`], which the next run removes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::model::SegmentHasher;

const PARTIAL: &str = ".esker-partial";
const MANIFEST: &str = "manifest.jsonl";
/// Longest name below the folder, and of one part of it, in bytes.
const NAME_BYTES_MAX: usize = 1024;
const PART_BYTES_MAX: usize = 255;

/// One line of the list of files.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct ManifestLine {
    /// The segment, or the entity tag of an object.
    pub id: String,
    /// The worker's name for it, or the key of an object.
    pub name: Option<String>,
    /// The bucket of an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Number of bytes.
    pub len: u64,
    /// CRC-32C of the bytes, 8 hex digits.
    pub crc32c: String,
    /// The file below the folder.
    pub file: String,
}

/// A folder while it is filled.
pub(super) struct Destination {
    path: PathBuf,
    partial: PathBuf,
    manifest: BufWriter<File>,
    files: HashSet<PathBuf>,
    folders: HashSet<PathBuf>,
}

/// A file while it is written. Without [`Destination::keep`] it is removed with the folder's rest.
pub(super) struct Writing {
    line: ManifestLine,
    file: File,
    hasher: SegmentHasher,
}

impl Destination {
    /// Takes an empty folder, or creates it.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        let shown = || path.display().to_string();
        fs::create_dir_all(path).with_context(shown)?;
        for entry in fs::read_dir(path).with_context(shown)? {
            let name = entry.with_context(shown)?.file_name();
            if name != PARTIAL {
                bail!("{} is not empty: it holds {}", path.display(), name.display());
            }
        }
        let partial = path.join(PARTIAL);
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| partial.display().to_string())?;
        }
        fs::create_dir(&partial).with_context(|| partial.display().to_string())?;
        let manifest = partial.join(MANIFEST);
        let manifest = File::create_new(&manifest).with_context(|| manifest.display().to_string())?;
        let files = HashSet::from([PathBuf::from(MANIFEST)]);
        Ok(Self { path: path.to_owned(), partial, manifest: BufWriter::new(manifest), files, folders: HashSet::new() })
    }

    /// Begins a file. It gets the name if that is safe and free, or else one with the identity in it.
    pub(super) fn begin(&mut self, id: &str, name: Option<&str>, bucket: Option<&str>) -> anyhow::Result<Writing> {
        let place = self.free_place(id, name);
        let path = self.partial.join(&place);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        let file = File::create_new(&path).with_context(|| path.display().to_string())?;
        self.folders.extend(place.ancestors().skip(1).map(Path::to_owned));
        let line = ManifestLine {
            id: id.to_owned(),
            name: name.map(str::to_owned),
            bucket: bucket.map(str::to_owned),
            file: place.display().to_string(),
            ..ManifestLine::default()
        };
        self.files.insert(place);
        Ok(Writing { line, file, hasher: SegmentHasher::default() })
    }

    fn free_place(&self, id: &str, name: Option<&str>) -> PathBuf {
        let safe = name.and_then(safe_place);
        let with_id = safe.as_ref().and_then(|place| safe_place(&format!("{}.{id}", place.display())));
        let numbered = (2..).map(|n| PathBuf::from(format!("{id}.{n}")));
        let mut places = [safe, with_id, Some(PathBuf::from(id))].into_iter().flatten().chain(numbered);
        places.find(|place| self.is_free(place)).unwrap_or_default()
    }

    /// Neither a file, nor a folder, nor below a file.
    fn is_free(&self, place: &Path) -> bool {
        !self.folders.contains(place) && !place.ancestors().any(|above| self.files.contains(above))
    }

    /// The file is whole.
    pub(super) fn keep(&mut self, writing: Writing) -> anyhow::Result<ManifestLine> {
        let Writing { mut line, file, hasher } = writing;
        drop(file);
        line.crc32c = format!("{:08x}", hasher.finish().whole);
        serde_json::to_writer(&mut self.manifest, &line)?;
        self.manifest.write_all(b"\n").context(MANIFEST)?;
        Ok(line)
    }

    /// The file is not whole, and goes.
    pub(super) fn discard(&mut self, writing: Writing) -> anyhow::Result<()> {
        let place = PathBuf::from(writing.line.file);
        let path = self.partial.join(&place);
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
        self.files.remove(&place);
        Ok(())
    }

    /// Moves everything to its place.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.manifest.flush().context(MANIFEST)?;
        let mut names = vec![];
        for entry in fs::read_dir(&self.partial)? {
            let name = entry?.file_name();
            if name != MANIFEST {
                names.push(name);
            }
        }
        for name in names.into_iter().chain([MANIFEST.into()]) {
            fs::rename(self.partial.join(&name), self.path.join(&name)).with_context(|| name.display().to_string())?;
        }
        fs::remove_dir(&self.partial).context(PARTIAL)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.partial)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("esker: {} could not be removed: {error}", self.partial.display());
        }
    }
}

impl Writing {
    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| self.line.file.clone())?;
        self.hasher.update(bytes);
        self.line.len += bytes.len() as u64;
        Ok(())
    }
}

/// The name as a path that stays below the folder; `None` for any other.
fn safe_place(name: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = name.split('/').collect();
    let fits = name.len() <= NAME_BYTES_MAX && parts.iter().all(|part| part.len() <= PART_BYTES_MAX);
    let plain = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
    let ours = parts.first().is_some_and(|first| *first == PARTIAL);
    let place = PathBuf::from(name);
    let normal = place.components().all(|part| matches!(part, Component::Normal(_)));
    (fits && plain && normal && !ours && !name.chars().any(char::is_control)).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &mut Destination, id: &str, name: Option<&str>) -> String {
        let mut writing = folder.begin(id, name, None).unwrap();
        writing.write(id.as_bytes()).unwrap();
        folder.keep(writing).unwrap().file
    }

    #[test]
    fn names_that_are_safe_and_free_are_kept_and_others_get_the_identity() {
        let path = tempfile::tempdir().unwrap();
        let mut folder = Destination::take(path.path()).unwrap();

        assert_eq!(put(&mut folder, "1", Some("a/b")), "a/b");
        assert_eq!(put(&mut folder, "2", Some("a/b")), "a/b.2");
        assert_eq!(put(&mut folder, "3", Some("a")), "a.3");
        assert_eq!(put(&mut folder, "4", Some("a/b/c")), "4");
        assert_eq!(put(&mut folder, "4", None), "4.2");
        assert_eq!(put(&mut folder, "5", Some("manifest.jsonl")), "manifest.jsonl.5");
        let long = "x".repeat(300);
        for (id, bad) in
            ["/etc/passwd", "../x", "a/../b", "", "a//b", "a/", ".esker-partial/x", "a\nb", &long].iter().enumerate()
        {
            let id = format!("bad-{id}");
            assert_eq!(put(&mut folder, &id, Some(bad)), id, "{bad:?}");
        }
        folder.finish().unwrap();

        assert_eq!(fs::read_to_string(path.path().join("a/b.2")).unwrap(), "2");
        assert!(!path.path().join(PARTIAL).exists());
        assert_eq!(fs::read_to_string(path.path().join(MANIFEST)).unwrap().lines().count(), 15);
    }

    #[test]
    fn what_is_dropped_leaves_an_empty_folder_and_what_was_killed_is_removed() {
        let path = tempfile::tempdir().unwrap();
        let mut folder = Destination::take(path.path()).unwrap();
        put(&mut folder, "1", Some("a/b"));
        drop(folder);
        assert_eq!(fs::read_dir(path.path()).unwrap().count(), 0);

        std::mem::forget(Destination::take(path.path()).unwrap());
        Destination::take(path.path()).unwrap().finish().unwrap();

        assert!(Destination::take(path.path()).is_err(), "a folder with files was taken");
    }
}
