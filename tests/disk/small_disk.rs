//! A disk of 96 MiB.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

const DISK_BYTES: u64 = 96 << 20;
/// Set in the process that may mount.
const INSIDE: &str = "ESKER_TEST_IN_MOUNT_NAMESPACE";

/// Runs `test` with a folder whose `data` is a disk of its own. `name` is the test's: it runs once more, by itself, in a
/// process that may mount.
pub fn on_a_small_disk(name: &str, test: impl AsyncFnOnce(&Path)) {
    if std::env::var_os(INSIDE).is_none() {
        return run_inside(name);
    }
    let folder = tempfile::tempdir().unwrap();
    mount(folder.path()).unwrap();
    let _mounted = Mounted(folder.path().join("data"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(folder.path()));
}

/// Lets go of the disk, so that the folder can be removed.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(run(Command::new("umount").arg("--lazy").arg(&self.0)));
    }
}

fn run_inside(name: &str) {
    if let Err(reason) = can_mount() {
        eprintln!("skipped: this machine does not let the test mount a disk: {reason}");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut inside = Command::new("unshare");
    inside.arg("--mount").arg(this).args([name, "--exact", "--nocapture"]).env(INSIDE, "1");
    let ended = inside.status().unwrap();
    assert!(ended.success(), "{name} failed on its disk");
}

fn can_mount() -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let (image, disk) = (folder.path().join("image"), folder.path().join("disk"));
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    fs::create_dir(&disk).unwrap();
    let script = format!("mkfs.ext4 -q {0} && mount -o loop {0} {1}", image.display(), disk.display());
    run(Command::new("unshare").args(["--mount", "sh", "-c", &script]))
}

fn mount(folder: &Path) -> Result<(), String> {
    let (image, disk) = (folder.join("image"), folder.join("data"));
    fs::File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    fs::create_dir(&disk).unwrap();
    // Nothing for root alone, or what is free would depend on who asks.
    run(Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-m", "0"]).arg(&image))?;
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// What another program has put on the disk: everything that was free, to the last byte.
pub struct Filler(PathBuf);

impl Filler {
    pub fn fill(folder: &Path) -> Self {
        let path = folder.join("data/filler");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for piece in [1 << 20, 4096, 1] {
            let bytes = vec![0x5a; piece];
            loop {
                match file.write(&bytes) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        // What was written fits, or it does not count.
        file.sync_all().unwrap();
        Self(path)
    }

    pub fn remove(self) {
        fs::remove_file(self.0).unwrap();
    }
}

/// Empty files that another program has made on the disk, until no more could be.
pub struct Files(PathBuf);

impl Files {
    pub fn fill(folder: &Path) -> Self {
        let files = folder.join("data/files");
        fs::create_dir(&files).unwrap();
        for number in 0.. {
            match fs::File::create(files.join(number.to_string())) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        Self(files)
    }

    pub fn remove(self) {
        fs::remove_dir_all(self.0).unwrap();
    }
}
