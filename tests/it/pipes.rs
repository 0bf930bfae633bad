//! Something else in the place of a file that a start opens: it is refused by its name, and nothing waits for it.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::daemon::{TestDaemon, checkpoint, files};
use crate::support::pattern;

/// The newest file with this ending in a folder.
fn newest(folder: &Path, ending: &str) -> PathBuf {
    let found = files(folder).into_iter().filter(|path| path.to_string_lossy().ends_with(ending));
    found.max().unwrap_or_else(|| panic!("{} has no {ending}", folder.display()))
}

fn put(kind: &str, path: &Path) {
    match kind {
        "a pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "a folder" => fs::create_dir(path).unwrap(),
        "a socket" => drop(UnixListener::bind(path).unwrap()),
        _ => symlink(path, path).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_place_of_a_file_is_named_and_nothing_waits_for_it() {
    let daemon = TestDaemon::start(&[]).await;
    daemon.client.create_job("j").await.unwrap();
    let stored = daemon.client.put("j", &checkpoint(1), None, pattern(1, 1000).into()).await.unwrap();
    let mut folder = daemon.shut_down().await;
    let at = |name: &str| folder.path().join(name);
    let (catalog, owners) = (at("catalog"), at("owners"));
    let places = [
        catalog.join("LOCK"),
        catalog.join("RESERVE"),
        at("RESERVE"),
        catalog.join("log/FENCE"),
        catalog.join("log/TURN"),
        catalog.join("log/DATA"),
        newest(&catalog.join("log"), ".log"),
        newest(&catalog.join("db/manifest"), ".manifest"),
        newest(&catalog.join("db/compactions"), ".compactions"),
        newest(&owners, ""),
    ];
    for path in places {
        for kind in ["a pipe", "a folder", "a socket", "a symbolic link that leads to no file"] {
            // A socket's name has a hundred bytes.
            if kind == "a socket" && path.as_os_str().len() > 100 {
                continue;
            }
            let there = fs::read(&path).ok();
            there.is_some().then(|| fs::remove_file(&path).unwrap());
            put(kind, &path);

            let starting =
                tokio::time::timeout(Duration::from_secs(30), TestDaemon::try_start_on(folder, vec![])).await;

            let Ok(started) = starting else { panic!("{kind} at {}: the start waits", path.display()) };
            let Err((given_back, error)) = started else { panic!("{kind} at {} is taken", path.display()) };
            folder = given_back;
            let text = esker::error::chain(&error);
            assert!(error.is_refusal() && text.contains(path.to_str().unwrap()) && text.contains(kind), "{text}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
            there.iter().for_each(|bytes| fs::write(&path, bytes).unwrap());
        }
    }
    let daemon = TestDaemon::try_start_on(folder, vec![]).await.map_err(|(_, error)| error).unwrap();
    assert_eq!(daemon.client.get(&stored.segment).await.unwrap(), pattern(1, 1000));
}
