//! Machines whose clocks are wrong, by Debian's `faketime`.

use std::path::PathBuf;

/// The environment of a program whose clock is `off` from the right time, such as `-60s` or `+30d`; none where `faketime`
/// is not installed. What measures durations is right.
pub fn wrong_by(off: &str) -> Option<[(&'static str, String); 3]> {
    let mut folders = vec![PathBuf::from("/usr/lib/faketime")];
    folders
        .extend(std::fs::read_dir("/usr/lib").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("faketime"))));
    let library = folders.into_iter().map(|folder| folder.join("libfaketime.so.1")).find(|library| library.exists())?;
    Some([
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", off.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

/// Removes what `faketime` keeps in shared memory for a process that was killed.
pub fn forget(process: u32) {
    for name in [format!("faketime_shm_{process}"), format!("sem.faketime_sem_{process}")] {
        // There is none of a process whose clock was right.
        drop(std::fs::remove_file(PathBuf::from("/dev/shm").join(name)));
    }
}
