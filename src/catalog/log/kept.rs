//! Keeps what is cut off the log: a tail that looks torn may be one that was damaged.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Log;
use super::format::LogFileHeader;
use crate::store::append_file::sync_parent;
use crate::store::remove_leftover;
use crate::store::space::DiskUse;

/// Bytes of cut-off tails that are kept, the newest first; the last one is kept whatever its size.
const KEPT_BYTES_MAX: u64 = 64 << 20;
/// The folder, beside that of the log.
const FOLDER: &str = "lost+found";

/// Copies the bytes that stand at `offset` of a log file aside. They are durable when this returns.
///
/// # Errors
/// The operating system's error; a full disk only when nothing is left to be given up.
pub(super) fn keep(log: &Log, header: LogFileHeader, offset: usize, bytes: &[u8]) -> io::Result<PathBuf> {
    let folder = log.folder.with_file_name(FOLDER);
    // In the order of names they are in the order in which they were cut.
    let path = folder.join(format!("{}-{offset:020}", header.file_name()));
    let written = log.space.insist(DiskUse::Catalog, || {
        fs::create_dir_all(&folder)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        file.write_all(bytes).and_then(|()| file.sync_all())
    });
    if let Err(error) = written {
        remove_leftover(&path);
        return Err(error);
    }
    // The names, too: the caller cuts the log off next, and a power cut must leave one of the two.
    File::open(&folder)?.sync_all().and_then(|()| sync_parent(&folder))?;
    if let Err(error) = remove_oldest(&folder, &path) {
        tracing::warn!(folder = %folder.display(), %error, "what was cut off the catalog's log long ago stays");
    }
    Ok(path)
}

fn remove_oldest(folder: &Path, newest: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_ours =
            entry.file_name().to_str().and_then(|name| name.rsplit_once('-')).is_some_and(|(log_file, at)| {
                at.bytes().all(|digit| digit.is_ascii_digit()) && LogFileHeader::from_file_name(log_file).is_some()
            });
        if is_ours && entry.path() != newest {
            files.push((entry.path(), entry.metadata()?.len()));
        }
    }
    files.sort_unstable();
    let mut kept = fs::metadata(newest)?.len();
    for (path, len) in files.into_iter().rev() {
        kept = kept.saturating_add(len);
        if kept > KEPT_BYTES_MAX {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_there_is_too_much() {
        let folder = tempfile::tempdir().unwrap();
        let file = |epoch, mib: u64| {
            let name = LogFileHeader { epoch, first_id: 1, number: 0 }.file_name();
            let path = folder.path().join(format!("{name}-{:020}", 44));
            File::create(&path).unwrap().set_len(mib << 20).unwrap();
            path
        };
        let (old, recent, newest) = (file(1, 30), file(2, 30), file(3, 30));
        let foreign = folder.path().join("notes");
        File::create(&foreign).unwrap();

        remove_oldest(folder.path(), &newest).unwrap();

        assert_eq!([&old, &recent, &newest, &foreign].map(|path| path.exists()), [false, true, true, true]);
    }
}
