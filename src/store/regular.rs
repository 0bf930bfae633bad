//! Whether files are files: whatever reads a pipe or a device waits for ever, and a folder in place of a file is told by nobody
//! who wanted to read it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The file that holds room; `space` knows it by the same name.
const RESERVE: &str = "RESERVE";
/// Files beside the data.
const DATA_FILES: [&str; 2] = [RESERVE, "owners/"];
/// Files of a catalog on a local disk; of a folder all that are in it, or those with an ending.
const CATALOG_FILES: [&str; 8] = [
    "LOCK",
    RESERVE,
    "log/FENCE",
    "log/TURN",
    "log/DATA",
    "log/*.log",
    "db/manifest/*.manifest",
    "db/compactions/*.compactions",
];

/// Something that is in the place of a file.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is {what} and not a regular file. Nothing was changed. Move it away; {}", path.display(), advice(path)
)]
pub struct NotRegular {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub what: &'static str,
}

/// The file itself is worth nothing, or it is not.
fn advice(path: &Path) -> &'static str {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("LOCK" | RESERVE) => "a start makes a new file",
        _ => {
            "if a file was there, put it back as it was, or make a new catalog from the files with `esker rebuild --replace`"
        }
    }
}

/// Looks at the files beside the data in `folder`, as far as they are there.
///
/// # Errors
/// The first that is no regular file.
pub(super) fn check_data_folder(folder: &Path) -> Result<(), NotRegular> {
    DATA_FILES.iter().try_for_each(|name| check(folder, name))
}

/// The same for the folder of a catalog.
///
/// # Errors
/// The first that is no regular file.
pub(super) fn check_catalog_folder(folder: &Path) -> Result<(), NotRegular> {
    CATALOG_FILES.iter().try_for_each(|name| check(folder, name))
}

fn check(folder: &Path, name: &str) -> Result<(), NotRegular> {
    let Some((inner, ending)) = name.split_once("/*").or_else(|| Some((name.strip_suffix('/')?, ""))) else {
        return check_file(&folder.join(name));
    };
    // A folder that is not there, or cannot be listed, is told by whoever needs it.
    let Ok(entries) = fs::read_dir(folder.join(inner)) else { return Ok(()) };
    let named = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut named = named.filter(|path| path.to_string_lossy().ends_with(ending));
    named.try_for_each(|path| check_file(&path))
}

fn check_file(path: &Path) -> Result<(), NotRegular> {
    irregular(path).map_or(Ok(()), |what| Err(NotRegular { path: path.to_owned(), what }))
}

/// Looks at what a name leads to; a link to a file is one. Opens nothing. `None`: it is a file, or nothing is there, or it
/// cannot be looked at, which whoever needs it will tell.
pub(super) fn irregular(path: &Path) -> Option<&'static str> {
    match fs::metadata(path) {
        Ok(there) if there.is_file() => None,
        Ok(there) => Some(name_of(there.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => None,
        Err(_) if fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) => {
            Some("a symbolic link that leads to no file")
        }
        Err(_) => None,
    }
}

fn name_of(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_files_and_links_to_files_are_taken_for_files() {
        assert_eq!(RESERVE, crate::store::space::RESERVE_FILE);
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("log")).unwrap();
        assert!(check_catalog_folder(folder.path()).is_ok(), "what is not there is made");
        fs::write(at("file"), "").unwrap();
        symlink(at("file"), at("LOCK")).unwrap();
        fs::write(at("log/FENCE"), "").unwrap();
        fs::create_dir(at("log/other")).unwrap();
        assert!(check_catalog_folder(folder.path()).is_ok());

        let refused = |name: &str, what: &str| {
            let refused = check_catalog_folder(folder.path()).unwrap_err();
            assert_eq!((refused.path.clone(), refused.what), (at(name), what));
            let text = refused.to_string();
            assert!(text.contains(name) && text.contains(what), "{text}");
            fs::remove_file(at(name)).or_else(|_| fs::remove_dir(at(name))).unwrap();
        };
        fs::remove_file(at("LOCK")).unwrap();
        symlink("LOCK", at("LOCK")).unwrap();
        refused("LOCK", "a symbolic link that leads to no file");
        fs::create_dir(at(RESERVE)).unwrap();
        refused(RESERVE, "a folder");
        let socket = UnixListener::bind(at("log/1.log")).unwrap();
        refused("log/1.log", "a socket");
        drop(socket);
        symlink("/dev/zero", at("log/TURN")).unwrap();
        refused("log/TURN", "a device");
        assert!(check_catalog_folder(folder.path()).is_ok());
    }

    #[test]
    fn beside_data_every_mark_of_an_owner_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("owners/00000000000000000001")).unwrap();

        let refused = check_data_folder(folder.path()).unwrap_err();

        assert!(refused.path.ends_with("owners/00000000000000000001"));
        assert_eq!(refused.what, "a folder");
    }
}
