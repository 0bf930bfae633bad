//! Machines whose clocks are wrong, by Debian's `faketime`.

use std::path::{Path, PathBuf};

/// The environment of a program whose clock is `off` from the right time, such as `-60s` or `+30d`; none where `faketime`
/// is not installed. What measures durations is right.
pub fn wrong_by(off: &str) -> Option<[(&'static str, String); 3]> {
    Some([
        ("LD_PRELOAD", library()?.display().to_string()),
        ("FAKETIME", off.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

/// The same of one whose clock is off by what stands in a file, and is set whenever that changes.
pub fn set_by(file: &Path) -> Option<[(&'static str, String); 4]> {
    Some([
        ("LD_PRELOAD", library()?.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

fn library() -> Option<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/lib/faketime")];
    folders
        .extend(std::fs::read_dir("/usr/lib").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("faketime"))));
    folders.into_iter().map(|folder| folder.join("libfaketime.so.1")).find(|library| library.exists())
}

/// Removes what `faketime` keeps in shared memory for a process that was killed.
pub fn forget(process: u32) {
    for name in [format!("faketime_shm_{process}"), format!("sem.faketime_sem_{process}")] {
        // There is none of a process whose clock was right.
        drop(std::fs::remove_file(PathBuf::from("/dev/shm").join(name)));
    }
}
